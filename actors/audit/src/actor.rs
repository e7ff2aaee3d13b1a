//! The actor: has what waits written, in time. Writes and reads are jobs of its pool.

use std::{sync::Arc, time::Duration};

use actix::{Actor, AsyncContext as _, Context, Handler, Message, ResponseFuture, Running, WrapFuture as _};
use cofferdam_kernel::{Pool, hosted};
use cofferdam_types::{Error, Result};

use crate::{
    core::Core,
    messages::{Append, ReadLog, Room, Verify},
};

/// What nobody waits for is written with what comes in this time.
const DELAY: Duration = Duration::from_millis(70);
/// After a failure it is tried again in this time, and so often those are looked for that are told in a while.
const AGAIN: Duration = Duration::from_secs(1);

/// See the crate's page.
pub struct AuditActor {
    core: Arc<Core>,
    pool: Pool,
}

impl AuditActor {
    pub(crate) fn new(core: Arc<Core>, pool: Pool) -> AuditActor {
        AuditActor { core, pool }
    }

    fn job<R: Send + 'static>(
        &self,
        job: impl FnOnce(&Core) -> Result<R> + Send + 'static,
    ) -> ResponseFuture<Result<R>> {
        let (core, pool) = (self.core.clone(), self.pool.clone());
        Box::pin(async move { pool.run(move || job(&core)).await })
    }
}

hosted!(AuditActor);

impl Actor for AuditActor {
    type Context = Context<AuditActor>;

    fn started(&mut self, ctx: &mut Context<AuditActor>) {
        let (core, pool) = (self.core.clone(), self.pool.clone());
        let write = async move {
            let mut well = true;
            loop {
                if !core.waits() {
                    core.wake.notified().await;
                }
                let soon = core.soon();
                tokio::select! {
                    biased;
                    () = core.urgent.notified() => {}
                    () = core.wake.notified(), if !soon => continue,
                    () = tokio::time::sleep(if well && soon { DELAY } else { AGAIN }) => {}
                }
                let theirs = core.clone();
                let written = pool.run(move || theirs.flush()).await;
                if let (true, Err(error)) = (well, &written) {
                    tracing::error!(%error, "the audit log can't be written; what waits for it is tried again");
                }
                well = written.is_ok();
            }
        };
        ctx.spawn(write.into_actor(self));
    }

    fn stopping(&mut self, _: &mut Context<AuditActor>) -> Running {
        self.core.finish();
        Running::Stop
    }
}

impl Handler<Append> for AuditActor {
    type Result = ResponseFuture<Result<()>>;
    fn handle(&mut self, Append(record): Append, _: &mut Context<Self>) -> Self::Result {
        let answered = self.core.append(record);
        let lost = || Error::unavailable("audit", "", "went down meanwhile: whether this is on record is open");
        Box::pin(async move { answered.await.unwrap_or_else(|_| Err(lost())) })
    }
}

impl Handler<Room> for AuditActor {
    type Result = ResponseFuture<Result<()>>;
    fn handle(&mut self, _: Room, _: &mut Context<Self>) -> Self::Result {
        self.job(Core::room)
    }
}

impl Handler<ReadLog> for AuditActor {
    type Result = ResponseFuture<<ReadLog as Message>::Result>;
    fn handle(&mut self, message: ReadLog, _: &mut Context<Self>) -> Self::Result {
        let ReadLog { mut place, max, filter } = message;
        self.job(move |core| core.read(&mut place, max, &filter).map(|(found, end)| (found, place, end)))
    }
}

impl Handler<Verify> for AuditActor {
    type Result = ResponseFuture<<Verify as Message>::Result>;
    fn handle(&mut self, _: Verify, _: &mut Context<Self>) -> Self::Result {
        self.job(Core::verify)
    }
}
