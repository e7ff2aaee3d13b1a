//! The mailbox: hands jobs to the pool.

use std::sync::Arc;

use actix::{Actor, Context, Handler, Message, ResponseFuture};
use cofferdam_kernel::hosted;
use cofferdam_types::Descriptor;

use crate::{
    extract,
    handle::{Core, blame},
    messages::{Apply, Settle, Verify},
};

/// The actor that runs extractions.
pub struct DiffActor(pub(crate) Arc<Core>);

hosted!(DiffActor);

impl Actor for DiffActor {
    type Context = Context<DiffActor>;
}

impl Handler<Apply> for DiffActor {
    type Result = ResponseFuture<<Apply as Message>::Result>;
    fn handle(&mut self, m: Apply, _ctx: &mut Context<DiffActor>) -> Self::Result {
        let core = self.0.clone();
        Box::pin(async move {
            let content = core.content.clone();
            let job = move || {
                let source = content.job_reader(&m.namespace, &m.layer.digest)?;
                let extracted = extract::extract(source, &m.layer, &m.diff_id, m.stage, &m.limits, &m.cancel);
                blame(&content, &m.layer, extracted)
            };
            core.pool.run(job).await
        })
    }
}

impl Handler<Verify> for DiffActor {
    type Result = ResponseFuture<<Verify as Message>::Result>;
    fn handle(&mut self, m: Verify, _ctx: &mut Context<DiffActor>) -> Self::Result {
        let core = self.0.clone();
        Box::pin(async move {
            let (content, limits) = (core.content.clone(), core.ceiling());
            let job = move || {
                let source = content.job_reader(&m.namespace, &m.layer.digest)?;
                blame(&content, &m.layer, extract::verify(source, &m.layer, &m.diff_id, &limits, &m.cancel))
            };
            core.pool.run(job).await
        })
    }
}

impl Handler<Settle> for DiffActor {
    type Result = ResponseFuture<<Settle as Message>::Result>;
    fn handle(&mut self, m: Settle, _ctx: &mut Context<DiffActor>) -> Self::Result {
        let core = self.0.clone();
        Box::pin(async move {
            let (content, limits) = (core.content.clone(), core.ceiling());
            let job = move || {
                let open = |layer: &Descriptor| content.job_reader(&m.namespace, &layer.digest);
                let blame = |layer: &Descriptor, done| blame(&content, layer, done);
                extract::settle(m.rungs, open, blame, &limits, &m.cancel)
            };
            core.pool.run(job).await
        })
    }
}
