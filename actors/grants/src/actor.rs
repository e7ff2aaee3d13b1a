//! The actor: what has to be finished whoever waits for it, and time.

use std::{sync::Arc, time::Duration};

use actix::{Actor, AsyncContext as _, Context, Handler, ResponseFuture, WrapFuture as _};
use cofferdam_kernel::hosted;
use cofferdam_metadata::records::grants::Grant;
use cofferdam_types::{Result, Timestamp};

use crate::{
    Node, Token,
    core::Core,
    messages::{Create, Export, Restore, Revoke, Save},
};

/// A timer doesn't see that the clock was set: as long as some grant ends by itself, the clock is looked at this often.
const LOOK: Duration = Duration::from_secs(1);

/// See the crate's page.
pub struct GrantsActor(pub(crate) Arc<Core>);

hosted!(GrantsActor);

impl Actor for GrantsActor {
    type Context = Context<GrantsActor>;

    fn started(&mut self, ctx: &mut Context<GrantsActor>) {
        let core = self.0.clone();
        let watch = async move {
            loop {
                core.expire();
                match core.tree.soonest() {
                    None => core.timed.notified().await,
                    Some(end) => {
                        let left = Duration::from_nanos(end.0.saturating_sub(Timestamp::now().0));
                        tokio::select! {
                            () = tokio::time::sleep(left.clamp(Duration::from_millis(1), LOOK)) => {}
                            () = core.timed.notified() => {}
                        }
                    }
                }
            }
        };
        ctx.spawn(watch.into_actor(self));
        let core = self.0.clone();
        let forget = async move {
            loop {
                core.forget_overdue().await;
            }
        };
        ctx.spawn(forget.into_actor(self));
    }
}

impl Handler<Create> for GrantsActor {
    type Result = ResponseFuture<Result<Arc<Node>>>;
    fn handle(&mut self, message: Create, _: &mut Context<Self>) -> Self::Result {
        let core = self.0.clone();
        Box::pin(async move { core.create(message).await })
    }
}

impl Handler<Save> for GrantsActor {
    type Result = ResponseFuture<Result<Token>>;
    fn handle(&mut self, message: Save, _: &mut Context<Self>) -> Self::Result {
        let core = self.0.clone();
        Box::pin(async move { core.save(message).await })
    }
}

impl Handler<Restore> for GrantsActor {
    type Result = ResponseFuture<Result<Arc<Node>>>;
    fn handle(&mut self, message: Restore, _: &mut Context<Self>) -> Self::Result {
        let core = self.0.clone();
        Box::pin(async move { core.restore(&message.token, message.uid).await })
    }
}

impl Handler<Revoke> for GrantsActor {
    type Result = ResponseFuture<Result<()>>;
    fn handle(&mut self, message: Revoke, _: &mut Context<Self>) -> Self::Result {
        let core = self.0.clone();
        Box::pin(async move { core.revoke(&message.authority, message.id).await })
    }
}

impl Handler<Export> for GrantsActor {
    type Result = ResponseFuture<Result<(Arc<Node>, Grant)>>;
    fn handle(&mut self, message: Export, _: &mut Context<Self>) -> Self::Result {
        let core = self.0.clone();
        Box::pin(async move { core.export(message).await })
    }
}
