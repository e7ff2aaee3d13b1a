//! The actor: every message becomes a job of the pool.

use std::sync::Arc;

use actix::{Actor, Context, Handler, Message, ResponseFuture};
use cofferdam_kernel::hosted;
use cofferdam_types::Result;

use crate::{
    messages::{Abort, Check, CommitMany, Delete, Discard, Open, Sweep},
    store::Store,
};

/// Serves the content store. It has no state of its own: a new one begins where the old one crashed, and sweeps.
pub struct ContentActor {
    store: Arc<Store>,
}

impl ContentActor {
    pub(crate) fn new(store: Arc<Store>) -> ContentActor {
        ContentActor { store }
    }

    fn job<R: Send + 'static>(
        &self,
        job: impl FnOnce(&Arc<Store>) -> Result<R> + Send + 'static,
    ) -> ResponseFuture<Result<R>> {
        let store = self.store.clone();
        Box::pin(async move {
            let pool = store.pool.clone();
            pool.run(move || job(&store)).await
        })
    }
}

hosted!(ContentActor);

impl Actor for ContentActor {
    type Context = Context<ContentActor>;

    fn started(&mut self, _: &mut Context<ContentActor>) {
        if self.store.meta.writable().is_err() {
            return;
        }
        let sweep = self.job(|store| store.sweep());
        // Not the context's: a sweep that was begun may end although the actor does not live to see it.
        actix_rt::spawn(async move {
            if let Err(error) = sweep.await {
                tracing::error!(%error, "the content store can't be swept");
            }
        });
    }
}

macro_rules! jobs {
    ($($message:ty => |$store:ident, $m:ident| $job:expr;)+) => {$(
        impl Handler<$message> for ContentActor {
            type Result = ResponseFuture<<$message as Message>::Result>;
            fn handle(&mut self, $m: $message, _: &mut Context<ContentActor>) -> Self::Result {
                self.job(move |$store| $job)
            }
        }
    )+};
}

jobs! {
    Open => |store, m| store.open(&m.authority, &m.namespace, m.options);
    CommitMany => |store, m| store.commit_many(&m.authority, m.commits);
    Delete => |store, m| store.delete(&m.authority, &m.namespace, &m.digest);
    Discard => |store, m| {
        m.0.iter().for_each(|digest| store.discard(digest));
        drop(m.1);
        Ok(())
    };
    Abort => |store, m| store.abort(&m.authority, &m.namespace, &m.reference);
    Sweep => |store, _m| store.sweep();
    Check => |store, m| Ok(store.check(m.0));
}
