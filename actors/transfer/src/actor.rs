//! The mailbox: names jobs and hands them to the pool.

use std::sync::Arc;

use actix::{Actor, Context, Handler};
use cofferdam_kernel::hosted;
use cofferdam_types::Result;

use crate::{Job, messages::Begin, transfer::Core};

/// The actor that begins jobs. Those that run do not notice when it crashes.
pub struct TransferActor(pub(crate) Arc<Core>);

hosted!(TransferActor);

impl Actor for TransferActor {
    type Context = Context<TransferActor>;
}

impl Handler<Begin> for TransferActor {
    type Result = Result<Job>;

    fn handle(&mut self, m: Begin, _ctx: &mut Context<TransferActor>) -> Result<Job> {
        let Begin { kind, subject, namespace, work } = m;
        let job = self.0.jobs.begin(kind, subject, &namespace);
        let (core, running) = (self.0.clone(), job.clone());
        let done = core.pool.clone();
        let (refused, core) = (job.clone(), core);
        actix_rt::spawn(async move {
            let run = move || {
                running.run(|job| work(&core, job));
                // Whoever waited has the answer by now.
                cofferdam_sys::memory::trim();
                Ok(())
            };
            if let Err(error) = done.run(run).await {
                refused.end(Err(error));
            }
        });
        Ok(job)
    }
}
