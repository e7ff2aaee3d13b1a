//! A shim made ahead. To start one takes longer than anything else in making a container, and needs nothing of it.
//!
//! Nobody has one who doesn't run containers: it is made when one was used, and goes when it was not for a while. Until
//! it is used its directory lies apart from those of the others, which a task's record names.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use cofferdam_types::Result;
use futures::FutureExt as _;
use tokio::sync::{Mutex, Notify};

use crate::{
    handle::Deps,
    layout,
    shim::{self, Connection},
};

/// It goes if none was needed for so long.
const KEEP: Duration = Duration::from_secs(30);
/// What is made need not be started at once.
const SOON: Duration = Duration::from_millis(20);

/// A shim that nothing was asked of yet.
pub(crate) struct Spare {
    pub id: String,
    /// Its pid, see [`crate::Children`].
    pub child: u32,
    pub connection: Connection,
}

#[derive(Default)]
pub(crate) struct Spares {
    one: RefCell<Option<Spare>>,
    /// Whether the container before this one wanted a new network namespace: the next one probably will.
    network: Cell<bool>,
    making: Mutex<()>,
    /// The machine is busy with one container no longer.
    started: Notify,
}

impl Spares {
    /// One that is ready, its directory where those of others are.
    pub async fn take(&self, deps: &Deps) -> Option<Spare> {
        // What is being made is ready sooner than another one would be.
        drop(self.making.lock().await);
        let spare = self.one.borrow_mut().take()?;
        let placed = std::fs::rename(deps.layout.spare(&spare.id), deps.layout.shim(&spare.id));
        if placed.is_err() || spare.connection.ended.clone().now_or_never().is_some() {
            // Somebody killed it.
            let at = if placed.is_ok() { deps.layout.shim(&spare.id) } else { deps.layout.spare(&spare.id) };
            end(deps, spare, at);
            return None;
        }
        Some(spare)
    }

    /// What the next container will be like.
    pub fn foresee(&self, network: bool) {
        self.network.set(network);
    }

    /// Makes one when the container that is being made has started: until then it would be in its way.
    pub async fn refill_soon(self: Rc<Self>, deps: Arc<Deps>) {
        let _ = tokio::time::timeout(SOON, self.started.notified()).await;
        self.refill(deps).await;
    }

    /// A container has started.
    pub fn refill_now(&self) {
        self.started.notify_waiters();
    }

    /// Makes one, if there is none.
    async fn refill(self: Rc<Self>, deps: Arc<Deps>) {
        let Ok(making) = self.making.try_lock() else { return };
        if self.one.borrow().is_some() {
            return;
        }
        let id = match make(&deps, self.network.get()).await {
            Ok(spare) => self.one.borrow_mut().insert(spare).id.clone(),
            // Who needs a shim is told why there is none.
            Err(error) => return tracing::warn!(%error, "no shim can be made ahead"),
        };
        drop(making);
        let (spares, deps) = (self.clone(), deps.clone());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(KEEP).await;
            let unused = spares.one.borrow_mut().take_if(|spare| spare.id == id);
            if let Some(spare) = unused {
                end(&deps, spare, deps.layout.spare(&id));
            }
        });
    }

    /// Ends what is there, now.
    pub fn end(&self, deps: &Deps) {
        if let Some(spare) = self.one.borrow_mut().take() {
            deps.children.end(spare.child);
            let _ = layout::remove(&deps.layout.spare(&spare.id));
        }
    }
}

async fn make(deps: &Deps, network: bool) -> Result<Spare> {
    let id = shim::new_id()?;
    let dir = deps.layout.spare(&id);
    shim::place(&dir, &id)?;
    let spawned = shim::spawn(dir.clone(), deps, &id).await;
    let (child, connection) = spawned.inspect_err(|_| drop(layout::remove(&dir)))?;
    let mut request = connection.shim.prepare_request();
    request.get().set_network(network);
    let prepared = request.send().promise;
    // What can't be made ahead is made in time.
    tokio::task::spawn_local(async move { drop(prepared.await) });
    Ok(Spare { id, child, connection })
}

fn end(deps: &Deps, spare: Spare, dir: std::path::PathBuf) {
    let children = deps.children.clone();
    tokio::task::spawn_blocking(move || {
        children.end(spare.child);
        let _ = layout::remove(&dir);
    });
}
