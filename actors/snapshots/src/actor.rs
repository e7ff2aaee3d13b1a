//! The mailbox. Each request goes on as a task of its own, which ends even if whoever asked is gone.

use std::{future::Future, sync::Arc};

use actix::{Actor, Context, Handler, Message, ResponseFuture};
use cofferdam_kernel::hosted;
use cofferdam_types::Result;

use crate::{
    core::Core,
    messages::{
        Check, Commit, CommitLayers, Discard, Limit, Measure, Prepare, Remove, ReplaceLayer, Reserve, StageAgain,
        StageLayer,
    },
};

/// The actor that owns the drivers' directories.
pub struct SnapshotsActor(pub(crate) Arc<Core>);

hosted!(SnapshotsActor);

impl Actor for SnapshotsActor {
    type Context = Context<SnapshotsActor>;

    fn started(&mut self, _ctx: &mut Context<SnapshotsActor>) {
        // Not the context's: it ends although the actor may not live to see it.
        actix_rt::spawn(self.0.clone().sweep());
        for driver in self.0.drivers() {
            self.restock(driver);
        }
    }
}

impl SnapshotsActor {
    fn restock(&self, driver: &str) {
        let (core, driver) = (self.0.clone(), driver.to_owned());
        actix_rt::spawn(async move { core.restock(&driver).await });
    }

    fn run<R, F>(&self, f: impl FnOnce(Arc<Core>) -> F) -> ResponseFuture<R>
    where
        F: Future<Output = R> + 'static,
    {
        Box::pin(f(self.0.clone()))
    }
}

/// Messages that the core answers by itself. All but those that make something new wait for the sweep of the start.
macro_rules! handle {
    ($($message:ty => $method:ident),* $(,)?) => {$(
        impl Handler<$message> for SnapshotsActor {
            type Result = ResponseFuture<<$message as Message>::Result>;
            fn handle(&mut self, m: $message, _ctx: &mut Context<SnapshotsActor>) -> Self::Result {
                self.run(|core| async move {
                    core.settled().await;
                    core.$method(m).await
                })
            }
        }
    )*};
}

handle! {
    Commit => commit,
    Remove => remove,
    Measure => measure,
    Limit => limit,
    StageAgain => stage_again,
    ReplaceLayer => replace_layer,
    CommitLayers => commit_layers,
    Check => check,
}

impl Handler<StageLayer> for SnapshotsActor {
    type Result = ResponseFuture<<StageLayer as Message>::Result>;
    fn handle(&mut self, m: StageLayer, _ctx: &mut Context<SnapshotsActor>) -> Self::Result {
        self.run(|core| async move { core.stage_layer(m).await })
    }
}

impl Handler<Discard> for SnapshotsActor {
    type Result = ResponseFuture<Result<()>>;
    fn handle(&mut self, m: Discard, _ctx: &mut Context<SnapshotsActor>) -> Self::Result {
        self.run(|core| async move {
            core.settled().await;
            core.discard(m.0).await
        })
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
