//! The mailbox: names jobs and hands them to the pool.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor, Context, Handler};
use cofferdam_kernel::hosted;
use cofferdam_types::Result;

use crate::{Job, messages::Begin, transfer::Core};

/// How long after a job its memory is given back.
const SETTLED: Duration = Duration::from_millis(500);
/// What was over before that had little of it, and there may be many.
const SHORT: Duration = Duration::from_millis(50);

/// The actor that begins jobs. Those that run do not notice when it crashes.
pub struct TransferActor(pub(crate) Arc<Core>);

hosted!(TransferActor);

impl Actor for TransferActor {
    type Context = Context<TransferActor>;
}

impl Handler<Begin> for TransferActor {
    type Result = Result<Job>;

    fn handle(&mut self, m: Begin, _ctx: &mut Context<TransferActor>) -> Result<Job> {
        let Begin { pool, kind, subject, namespace, whose, work } = m;
        let job = self.0.jobs.begin(kind, subject, &namespace);
        let (core, running) = (self.0.clone(), job.clone());
        let (refused, done) = (job.clone(), core.clone());
        let begun = Instant::now();
        actix_rt::spawn(async move {
            let run = move || {
                running.run(|job| work(&core, job));
                Ok(())
            };
            tokio::select! {
                over = pool(&done).run(whose, run) => over.unwrap_or_else(|error| refused.end(Err(error))),
                // Cancelled before its turn came, it gives up its place, and what it was to read or write.
                _ = refused.wait() => {}
            }
            if begun.elapsed() < SHORT {
                return;
            }
            // It holds the allocator's locks: whoever waited has the answer by then.
            actix_rt::time::sleep(SETTLED).await;
            let trim = || {
                cofferdam_sys::memory::trim();
                Ok(())
            };
            let _ = done.local.run(trim).await;
        });
        Ok(job)
    }
}
