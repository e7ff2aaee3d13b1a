//! The sweep of a start, and who waits for it.

use std::{pin::Pin, sync::PoisonError, time::Duration};

use cofferdam_metadata::records::snapshots::{self, Kind};

use super::{Arc, Area, Core, Depot, Name, Namespace, Result, known, parents};

/// So many lost trees are told of one by one.
const TOLD: usize = 20;
/// How long after a sweep that failed it is tried again; each time twice as long, up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A sweep to be gone on with. It counts as under way already.
pub type Begun = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A sweep that is under way until this is dropped.
struct Sweep(Arc<Core>);

impl Sweep {
    fn begin(core: Arc<Core>) -> Sweep {
        core.sweeps.send_modify(|under_way| *under_way += 1);
        Sweep(core)
    }

    fn run(self) -> Result<()> {
        let _alone = self.0.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pause = AGAIN.0;
        loop {
            match self.0.sweep_once() {
                Err(error) if pause <= AGAIN.1 => {
                    tracing::warn!(%error, "the snapshots' directories can't be swept; it is tried again");
                }
                done => return done,
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        self.0.sweeps.send_modify(|under_way| *under_way -= 1);
    }
}

impl Core {
    /// Begins to bring directories and records together; see [`Area::sweep`]. That takes a while where there are many, and
    /// nobody waits for it but who changes or measures what is there already: [`Core::settled`].
    pub fn begin_sweep(self: &Arc<Core>) -> Begun {
        // From now on, and until the job ends: whoever waits for that may be gone.
        let sweep = Sweep::begin(self.clone());
        let pool = self.pool.clone();
        Box::pin(async move {
            let done = pool.run(move || sweep.run());
            if let Err(error) = done.await {
                tracing::error!(%error, "the snapshots' directories can't be swept before the next start");
            }
        })
    }

    fn sweep_once(&self) -> Result<()> {
        if self.meta.writable().is_err() {
            return Ok(());
        }
        for Depot { area, .. } in &self.depots {
            let driver = area.driver().name();
            let lost = area.sweep(|| known(&self.meta.read()?, driver))?;
            for id in lost.iter().take(TOLD) {
                tracing::error!(driver, id, "the tree of a committed snapshot is lost: remove it and unpack again");
            }
            if lost.len() > TOLD {
                tracing::error!(driver, lost = lost.len(), "more of them are: `coffer system check` lists all");
            }
        }
        Ok(())
    }

    /// Waits for the sweep of the start.
    pub async fn settled(&self) {
        // The sender is in `self`.
        let _ = self.sweeps.subscribe().wait_for(|under_way| *under_way == 0).await;
    }

    /// Keeps sweeps from going on.
    #[cfg(test)]
    pub fn hold_sweeps(&self) -> std::sync::MutexGuard<'_, ()> {
        self.sweeping.lock().unwrap()
    }

    /// The same for one directory: what this daemon has made is no concern of the sweep's.
    pub(super) async fn settled_of(&self, area: &Area, dir: u64) {
        if !area.is_new(dir) {
            self.settled().await;
        }
    }

    /// Waits until a snapshot is as its record says: the sweep may have to come to it, and one whose directory a power cut
    /// took may not have found room to be made again.
    pub async fn ready(&self, ns: &Namespace, driver: &str, key: &Name) -> Result<()> {
        let area = self.depot(driver)?.area.clone();
        // Of most that are used: it costs them no more than this.
        let dir = snapshots::get(&self.meta.read()?, ns, driver, key)?.dir;
        if area.is_new(dir) {
            return Ok(());
        }
        self.settled().await;
        let (record, parents) = {
            let view = self.meta.read()?;
            let record = snapshots::get(&view, ns, driver, key)?;
            let parents = parents(&view, ns, driver, record.parent.as_ref())?;
            (record, parents)
        };
        let own = record.kind == Kind::Active || record.kind == Kind::View && parents.is_empty();
        if !own || self.meta.writable().is_err() || area.is_there(record.dir) {
            return Ok(());
        }
        let (meta, name) = (self.meta.clone(), area.driver().name());
        let restore = move || {
            area.restore(record.dir, parents.first().copied())?;
            // Whoever removed it meanwhile has looked for it before.
            if snapshots::dir_references(&meta.read()?, name, record.dir)? == 0 {
                area.discard(record.dir)
            } else {
                Ok(())
            }
        };
        self.pool.run(restore).await
    }
}
