//! Shims that wait for a container. To start one takes longer than anything else in making a container, and needs nothing
//! of it: so one is made ahead, and one whose container is gone is kept for the next.
//!
//! Nobody has one who doesn't run containers: it is made when one was used, and goes when it was not for a while. Until
//! it is used its directory lies apart from those of the others, which a task's record names.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use cofferdam_types::{Id, Result};
use cofferdam_wire::life::file_name as life_file;
use futures::FutureExt as _;
use tokio::sync::{Mutex, Notify};

use crate::{
    handle::Deps,
    layout,
    recover::ANSWER,
    shim::{self, Connection},
};

/// The last one goes if none was needed for so long, the others sooner.
const KEEP: Duration = Duration::from_secs(30);
const KEEP_MORE: Duration = Duration::from_secs(2);
/// What is made need not be started at once.
const SOON: Duration = Duration::from_millis(20);
/// How many wait at most. One alone is made ahead; the others come back.
const MOST: usize = 8;

/// A shim that has no container.
pub(crate) struct Spare {
    pub id: String,
    /// Its pid, see [`crate::Children`].
    pub child: u32,
    pub connection: Connection,
    /// It had one: whoever used it first takes its end in.
    pub used: bool,
    /// What a container will need is there, or being made.
    prepared: bool,
    since: Instant,
}

/// Where a task's shim goes when the task is gone. What it made must have been deleted by it.
pub(crate) struct Home {
    pub spares: Rc<Spares>,
    pub child: u32,
    pub connection: Connection,
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "of shim {}", self.child)
    }
}

pub(crate) struct Spares {
    deps: Arc<Deps>,
    /// Those that came last are taken first, the prepared before the others: what is not needed goes after a while.
    waiting: RefCell<Vec<Spare>>,
    /// Whether the container before this one wanted a new network namespace: the next one probably will.
    network: Cell<bool>,
    making: Mutex<()>,
    /// The machine is busy with one container no longer.
    started: Notify,
    /// Whether somebody looks for those that were not needed.
    tidying: Cell<bool>,
}

impl Spares {
    pub fn new(deps: Arc<Deps>) -> Rc<Spares> {
        Rc::new(Spares {
            deps,
            waiting: RefCell::default(),
            network: Cell::default(),
            making: Mutex::default(),
            started: Notify::new(),
            tidying: Cell::default(),
        })
    }

    /// One that is ready, its directory where those of others are.
    pub async fn take(&self) -> Option<Spare> {
        let mut found = self.best();
        if found.is_none() {
            // What is being made is ready sooner than another one would be.
            drop(self.making.lock().await);
            found = self.best();
        }
        let (spare, layout) = (found?, &self.deps.layout);
        let placed = std::fs::rename(layout.spare(&spare.id), layout.shim(&spare.id));
        if placed.is_err() || has_ended(&spare.connection) {
            // Somebody killed it.
            let at = if placed.is_ok() { layout.shim(&spare.id) } else { layout.spare(&spare.id) };
            end(&self.deps, spare, at);
            return None;
        }
        Some(spare)
    }

    fn best(&self) -> Option<Spare> {
        let mut waiting = self.waiting.borrow_mut();
        let at = waiting.iter().rposition(|spare| spare.prepared).or_else(|| waiting.len().checked_sub(1))?;
        Some(waiting.remove(at))
    }

    /// What the next container will be like.
    pub fn foresee(&self, network: bool) {
        self.network.set(network);
    }

    /// Prepares one when the container that is being made has started: until then it would be in its way.
    pub async fn refill_soon(self: Rc<Self>) {
        let _ = tokio::time::timeout(SOON, self.started.notified()).await;
        self.refill().await;
    }

    /// A container has started.
    pub fn refill_now(&self) {
        self.started.notify_waiters();
    }

    /// Prepares one, if there is none that is, and makes one for that, if there is none at all.
    async fn refill(self: Rc<Self>) {
        let Ok(_making) = self.making.try_lock() else { return };
        let network = self.network.get();
        if self.waiting.borrow().iter().any(|spare| spare.prepared) {
            return;
        }
        if let Some(spare) = self.waiting.borrow_mut().last_mut() {
            return spare.prepare(network);
        }
        match make(&self.deps, network).await {
            Ok(spare) => self.add(spare),
            // Who needs a shim is told why there is none.
            Err(error) => tracing::warn!(%error, "no shim can be made ahead"),
        }
    }

    fn add(self: &Rc<Self>, spare: Spare) {
        self.waiting.borrow_mut().push(spare);
        if self.tidying.replace(true) {
            return;
        }
        let spares = self.clone();
        tokio::task::spawn_local(async move {
            while !spares.waiting.borrow().is_empty() {
                tokio::time::sleep(KEEP_MORE).await;
                for spare in spares.unneeded() {
                    let at = spares.deps.layout.spare(&spare.id);
                    end(&spares.deps, spare, at);
                }
            }
            spares.tidying.set(false);
        });
    }

    /// Takes out what was not needed for long enough.
    fn unneeded(&self) -> Vec<Spare> {
        let mut waiting = self.waiting.borrow_mut();
        let mut behind = waiting.len();
        let unneeded = |spare: &mut Spare| {
            behind -= 1;
            spare.since.elapsed() >= if behind == 0 { KEEP } else { KEEP_MORE }
        };
        waiting.extract_if(.., unneeded).collect()
    }

    /// Ends what is there, now.
    pub fn end(&self) {
        for spare in self.waiting.take() {
            spare.child().inspect(|child| self.deps.children.end(*child));
            let _ = layout::remove(&self.deps.layout.spare(&spare.id));
        }
    }
}

impl Home {
    /// Takes the shim of this id back, with its directory: container `of` was its last one. It gets another name, which
    /// nobody has known it by.
    pub fn take_back(self, id: &str, of: &Id) -> Result<()> {
        let Home { spares, child, connection } = self;
        let layout = &spares.deps.layout;
        let own = layout.shim(id);
        let room = spares.waiting.borrow().len() < MOST;
        let new = shim::new_id()?;
        let _ = std::fs::remove_file(own.join(life_file(of, "")));
        let _ = std::fs::File::options().write(true).truncate(true).open(own.join("log"));
        if has_ended(&connection) || !room || std::fs::rename(&own, layout.spare(&new)).is_err() {
            return layout::remove(&own);
        }
        let spare = Spare { id: new, child, connection, used: true, prepared: false, since: Instant::now() };
        tokio::task::spawn_local(async move {
            // It answers once it has let go of the container, whose root file system may take as long as a sync.
            let freed = tokio::time::timeout(ANSWER, shim::hello(&spare.connection.shim)).await;
            if matches!(freed, Ok(Ok(()))) && spares.waiting.borrow().len() < MOST {
                return spares.add(spare);
            }
            let at = spares.deps.layout.spare(&spare.id);
            end(&spares.deps, spare, at);
        });
        Ok(())
    }
}

async fn make(deps: &Deps, network: bool) -> Result<Spare> {
    let id = shim::new_id()?;
    let dir = deps.layout.spare(&id);
    shim::place(&dir, &id)?;
    let spawned = shim::spawn(dir.clone(), deps, &id).await;
    let (child, connection) = spawned.inspect_err(|_| drop(layout::remove(&dir)))?;
    let mut spare = Spare { id, child, connection, used: false, prepared: false, since: Instant::now() };
    spare.prepare(network);
    Ok(spare)
}

impl Spare {
    /// Whom to end. One that was used and has ended is taken in already: its number may be another's.
    fn child(&self) -> Option<u32> {
        let taken_in = self.used && has_ended(&self.connection);
        (!taken_in).then_some(self.child)
    }

    /// Has it make what the next container will need. Whatever it is asked for later finds that made.
    fn prepare(&mut self, network: bool) {
        let mut request = self.connection.shim.prepare_request();
        request.get().set_network(network);
        let prepared = request.send().promise;
        // What can't be made ahead is made in time.
        tokio::task::spawn_local(async move { drop(prepared.await) });
        self.prepared = true;
    }
}

fn has_ended(connection: &Connection) -> bool {
    connection.ended.clone().now_or_never().is_some()
}

fn end(deps: &Deps, spare: Spare, dir: std::path::PathBuf) {
    let (children, child) = (deps.children.clone(), spare.child());
    tokio::task::spawn_blocking(move || {
        child.inspect(|child| children.end(*child));
        let _ = layout::remove(&dir);
    });
}
