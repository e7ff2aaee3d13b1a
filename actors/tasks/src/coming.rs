//! Containers whose record is being committed. Who asks for the task of one at once need not wait for the disk: the task
//! is made meanwhile, and its own record stands behind the container's in the writer's queue.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use actix::{Context, Handler, ResponseFuture};
use cofferdam_metadata::records::containers::Container;
use cofferdam_types::{Error, Id, Mount, Namespace, Result};
use tokio::sync::watch;

use crate::{
    actor::{Key, TasksActor},
    create,
    messages::{CreateContainer, RunRecord},
};

/// Whether the transaction that makes it has gone through.
#[derive(Clone, Default)]
pub(crate) struct Entered(Arc<AtomicBool>);

impl Entered {
    pub fn set(&self, entered: bool) {
        self.0.store(entered, Ordering::Relaxed);
    }

    /// Refuses what is for the container that was to be made, where another has its name.
    pub fn require(&self, id: &Id) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(Error::failed_precondition("container", id, "was not made: see why, and make it again")),
        }
    }
}

/// One of them.
pub(crate) struct Coming {
    pub record: Container,
    /// Its snapshot's, which is on record with it.
    pub mounts: Vec<Mount>,
    /// Tells the task's transaction, which comes behind, whether the container of that name is this one.
    pub entered: Entered,
    alone: bool,
    made: watch::Receiver<Option<Result<()>>>,
}

impl Coming {
    /// Waits for its commit.
    pub async fn made(&self) -> Result<()> {
        let mut made = self.made.clone();
        let crashed = |_| Error::unavailable("actor", "tasks", "crashed while the container was made");
        let outcome = made.wait_for(Option::is_some).await.map_err(crashed)?;
        outcome.clone().unwrap_or(Ok(()))
    }

    /// Whether its task needs nothing of what others have on record: no group's shim and no network.
    pub fn is_alone(&self) -> bool {
        self.alone
    }
}

type All = Rc<RefCell<BTreeMap<Key, Rc<Coming>>>>;

/// All of them.
#[derive(Clone, Default)]
pub(crate) struct Arrivals(All);

impl Arrivals {
    pub fn find(&self, ns: &Namespace, id: &Id) -> Option<Rc<Coming>> {
        self.0.borrow().get(&(ns.clone(), id.clone())).cloned()
    }

    /// Makes one known, until what is given falls; none where one of that name is coming already.
    pub fn announce(&self, ns: &Namespace, record: &Container, run: &RunRecord, mounts: &[Mount]) -> Option<Announced> {
        let key = (ns.clone(), record.id.clone());
        if self.0.borrow().contains_key(&key) {
            return None;
        }
        let (tell, made) = watch::channel(None);
        let alone = record.group.is_none() && run.network.is_none();
        let entered = Entered::default();
        let coming = Coming { record: record.clone(), mounts: mounts.to_vec(), entered: entered.clone(), alone, made };
        self.0.borrow_mut().insert(key.clone(), Rc::new(coming));
        Some(Announced { all: self.0.clone(), key, tell, entered })
    }
}

/// Falls with the commit, however that ends.
pub(crate) struct Announced {
    all: All,
    key: Key,
    tell: watch::Sender<Option<Result<()>>>,
    pub entered: Entered,
}

impl Announced {
    pub fn settle(self, outcome: &Result<Container>) {
        self.tell.send_replace(Some(outcome.as_ref().map(drop).map_err(Clone::clone)));
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.all.borrow_mut().remove(&self.key);
    }
}

impl Handler<CreateContainer> for TasksActor {
    type Result = ResponseFuture<Result<Container>>;
    fn handle(&mut self, message: CreateContainer, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let CreateContainer { authority, namespace, new, presence, placed } = message;
            let goes = new.remove_on_exit;
            let made = create::create(&ctx.deps, &authority, &namespace, *new, &ctx.coming, placed).await?;
            ctx.departed.forget(&namespace, &made.id);
            // Who has made its task already waits for it there.
            let has_task = ctx.entries.borrow().contains_key(&(namespace.clone(), made.id.clone()));
            if goes && !has_task {
                ctx.expect_start(&namespace, &made.id, Some(presence));
            }
            Ok(made)
        })
    }
}
