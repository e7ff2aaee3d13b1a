//! The mailbox. Each request goes on as a task of its own, which ends even if whoever asked is gone.

use std::{future::Future, sync::Arc};

use actix::{Actor, Context, Handler, Message, ResponseFuture};
use cofferdam_kernel::hosted;
use cofferdam_types::Result;

use crate::{
    core::{Begun, Core},
    messages::{
        Check, Commit, CommitLayers, Discard, Limit, Measure, Prepare, Remove, ReplaceLayer, Reserve, StageAgain,
        StageLayer,
    },
};

/// The actor that owns the drivers' directories.
pub struct SnapshotsActor {
    core: Arc<Core>,
    /// That of the start, until it begins.
    sweep: Option<Begun>,
}

impl SnapshotsActor {
    pub(crate) fn new(core: Arc<Core>, sweep: Begun) -> SnapshotsActor {
        SnapshotsActor { core, sweep: Some(sweep) }
    }
}

hosted!(SnapshotsActor);

impl Actor for SnapshotsActor {
    type Context = Context<SnapshotsActor>;

    fn started(&mut self, _ctx: &mut Context<SnapshotsActor>) {
        // Not the context's: it ends although the actor may not live to see it.
        self.sweep.take().map(actix_rt::spawn);
        for driver in self.core.drivers() {
            self.restock(driver);
        }
    }
}

impl SnapshotsActor {
    fn restock(&self, driver: &str) {
        let (core, driver) = (self.core.clone(), driver.to_owned());
        actix_rt::spawn(async move { core.restock(&driver).await });
    }

    fn run<R, F>(&self, f: impl FnOnce(Arc<Core>) -> F) -> ResponseFuture<R>
    where
        F: Future<Output = R> + 'static,
    {
        Box::pin(f(self.core.clone()))
    }
}

/// Messages that the core answers by itself.
macro_rules! handle {
    ($($message:ty => $method:ident),* $(,)?) => {$(
        impl Handler<$message> for SnapshotsActor {
            type Result = ResponseFuture<<$message as Message>::Result>;
            fn handle(&mut self, m: $message, _ctx: &mut Context<SnapshotsActor>) -> Self::Result {
                self.run(|core| async move { core.$method(m).await })
            }
        }
    )*};
}

handle! {
    Commit => commit,
    Remove => remove,
    Measure => measure,
    Limit => limit,
    StageLayer => stage_layer,
    StageAgain => stage_again,
    ReplaceLayer => replace_layer,
    CommitLayers => commit_layers,
    Check => check,
}

impl Handler<Discard> for SnapshotsActor {
    type Result = ResponseFuture<Result<()>>;
    fn handle(&mut self, m: Discard, _ctx: &mut Context<SnapshotsActor>) -> Self::Result {
        self.run(|core| async move { core.discard(m.0).await })
    }
}

impl Handler<Reserve> for SnapshotsActor {
    type Result = ResponseFuture<<Reserve as Message>::Result>;
    fn handle(&mut self, m: Reserve, _ctx: &mut Context<SnapshotsActor>) -> Self::Result {
        let driver = m.driver.clone();
        self.run(|core| async move {
            let reserved = core.reserve(m).await;
            actix_rt::spawn(async move { core.restock(&driver).await });
            reserved
        })
    }
}

impl Handler<Prepare> for SnapshotsActor {
    type Result = ResponseFuture<<Prepare as Message>::Result>;
    fn handle(&mut self, m: Prepare, _ctx: &mut Context<SnapshotsActor>) -> Self::Result {
        let driver = m.reserve.driver.clone();
        self.run(|core| async move {
            let mounts = core.prepare(m).await;
            actix_rt::spawn(async move { core.restock(&driver).await });
            mounts
        })
    }
}
