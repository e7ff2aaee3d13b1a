//! The actor: what is under way, and what has to be tried again.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc, sync::Arc, time::Duration};

use actix::{Actor, AsyncContext as _, Context, Handler, Message, ResponseFuture};
use cofferdam_kernel::hosted;
use cofferdam_types::{Error, Id, Result};
use tokio::sync::oneshot;

use crate::{
    attach::Core,
    messages::{Attach, List, Release},
};

/// The first and the longest pause between two attempts at a DEL.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// See the crate's page.
pub struct NetworksActor {
    core: Arc<Core>,
    /// Those that are tried again until it is done.
    persisting: Rc<RefCell<BTreeSet<Id>>>,
}

hosted!(NetworksActor);

impl NetworksActor {
    pub(crate) fn new(core: Arc<Core>) -> NetworksActor {
        NetworksActor { core, persisting: Rc::default() }
    }

    /// Undoes a connection, however often it takes; `tell` hears of the first attempt.
    fn undo(&self, id: Id, tell: oneshot::Sender<Result<()>>, context: &mut Context<Self>) {
        let (core, persisting) = (self.core.clone(), self.persisting.clone());
        let undo = async move {
            let mut outcome = core.detach(&id).await;
            let _ = tell.send(outcome.clone());
            if outcome.is_ok() || !persisting.borrow_mut().insert(id.clone()) {
                return;
            }
            let mut pause = PAUSES.0;
            while let Err(error) = outcome {
                tracing::warn!(attachment = %id, %error, "a network is not undone yet: it is tried again in {pause:?}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
                outcome = core.detach(&id).await;
            }
            persisting.borrow_mut().remove(&id);
        };
        context.spawn(actix::fut::wrap_future(undo));
    }
}

impl Actor for NetworksActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        if self.core.metadata.writable().is_err() {
            return;
        }
        let given_up = match self.core.given_up() {
            Ok(given_up) => given_up,
            Err(error) => {
                // PANIC: without the records nothing can be undone: the kernel tries again later.
                panic!("the attachments can't be read: {error}");
            }
        };
        for id in given_up {
            self.undo(id, oneshot::channel().0, context);
        }
        let core = self.core.clone();
        let sweep = async move {
            let swept = core.pool.run({
                let core = core.clone();
                move || core.sweep()
            });
            if let Err(error) = swept.await {
                tracing::warn!(%error, "network namespaces are left behind");
            }
        };
        context.spawn(actix::fut::wrap_future(sweep));
    }
}

impl Handler<Attach> for NetworksActor {
    type Result = ResponseFuture<<Attach as Message>::Result>;
    fn handle(&mut self, message: Attach, _: &mut Context<Self>) -> Self::Result {
        let core = self.core.clone();
        Box::pin(async move { core.attach(message).await })
    }
}

impl Handler<Release> for NetworksActor {
    type Result = ResponseFuture<Result<()>>;
    fn handle(&mut self, Release(id): Release, context: &mut Context<Self>) -> Self::Result {
        let (tell, told) = oneshot::channel();
        self.undo(id, tell, context);
        let lost = || Error::unavailable("actor", "networks", "went down meanwhile; it goes on when it is up again");
        Box::pin(async move { told.await.unwrap_or_else(|_| Err(lost())) })
    }
}

impl Handler<List> for NetworksActor {
    type Result = ResponseFuture<<List as Message>::Result>;
    fn handle(&mut self, _: List, _: &mut Context<Self>) -> Self::Result {
        let core = self.core.clone();
        Box::pin(async move {
            let configs = core.configs.clone();
            core.pool.run(move || cofferdam_net::list(&configs)).await
        })
    }
}
