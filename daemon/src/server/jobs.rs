//! `Jobs` and `Job` (job.capnp).

use std::{rc::Rc, time::Duration};

use cofferdam_transfer::{Job as Handle, Phase, Status as JobStatus};
use cofferdam_types::{Code, Error, Result};
use cofferdam_wire::{
    convert::{set_texts, text},
    job_capnp::{job, job_cursor, job_info, jobs},
};

use super::{Place, cursor::Cursor, ends, rpc};

/// The jobs of a namespace.
pub struct Jobs(pub Place);

/// One job. Dropping it drops the handle alone.
pub struct Job(pub Handle);

/// Hands out a job that was begun through this place: it ends with the grant that it was begun by.
pub fn begun(place: &Place, job: Handle) -> job::Client {
    ends::job(place, &job);
    place.hand_out(Job(job))
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Elsewhere => "elsewhere",
        Phase::Fetching => "fetching",
        Phase::Unpacking => "unpacking",
        Phase::Present => "exists",
        Phase::Done => "done",
    }
}

fn set_info(mut builder: job_info::Builder<'_>, status: &JobStatus) {
    builder.set_id(status.id.to_string());
    builder.set_kind(status.kind);
    builder.set_subject(&status.subject);
    builder.set_started(status.started.0);
    let state = match &status.outcome {
        None => "running",
        Some(Ok(_)) => "done",
        Some(Err(error)) => {
            builder.set_error(error.to_reason());
            if error.code == Code::Cancelled { "cancelled" } else { "failed" }
        }
    };
    builder.set_state(state);
    builder.set_stage(&status.progress.stage);
    let items = &status.progress.items;
    let mut list = builder.init_items(items.len() as u32);
    for (n, item) in items.iter().enumerate() {
        let mut builder = list.reborrow().get(n as u32);
        builder.set_name(&item.name);
        builder.set_phase(phase(item.phase));
        builder.set_done(item.done);
        builder.set_total(item.total);
    }
}

fn id(text: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::not_found("job", text, "does not exist; `coffer job ls` lists those that do"))
}

impl jobs::Server for Jobs {
    async fn list(self: Rc<Self>, _: jobs::ListParams, mut results: jobs::ListResults) -> capnp::Result<()> {
        let (transfer, namespace) = (self.0.services().transfer.clone(), self.0.namespace.clone());
        let cursor = Cursor::new(
            Box::new(move |after, max| {
                let after = after.map(id).transpose()?.unwrap_or_default();
                Ok(transfer.jobs(&namespace, after, max).iter().map(Handle::status).collect())
            }),
            |status: &JobStatus| status.id.to_string(),
            |_| true,
        );
        results.get().set_cursor(self.0.hand_out(JobCursor(cursor)));
        Ok(())
    }

    async fn get(self: Rc<Self>, params: jobs::GetParams, mut results: jobs::GetResults) -> capnp::Result<()> {
        let id = rpc(text(params.get()?.get_id()).and_then(id))?;
        let handle = rpc(self.0.services().transfer.job(&self.0.namespace, id))?;
        results.get().set_job(self.0.hand_out(Job(handle)));
        Ok(())
    }
}

struct JobCursor(Cursor<JobStatus>);

impl job_cursor::Server for JobCursor {
    async fn next(
        self: Rc<Self>,
        params: job_cursor::NextParams,
        mut results: job_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.0.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, status) in block.iter().enumerate() {
            set_info(items.reborrow().get(n as u32), status);
        }
        Ok(())
    }
}

impl job::Server for Job {
    async fn info(self: Rc<Self>, _: job::InfoParams, mut results: job::InfoResults) -> capnp::Result<()> {
        set_info(results.get().init_info(), &self.0.status());
        Ok(())
    }

    async fn watch(self: Rc<Self>, params: job::WatchParams, mut results: job::WatchResults) -> capnp::Result<()> {
        let pause = Duration::from_millis(u64::from(params.get()?.get_after_millis()).clamp(10, 60_000));
        let mut progress = self.0.progress();
        progress.borrow_and_update();
        let done = self.0.wait();
        // At least the pause, then the next change; the end at once.
        let changed = async {
            tokio::time::sleep(pause).await;
            let _ = progress.changed().await;
        };
        tokio::select! {
            _ = done => {}
            () = changed => {}
        }
        set_info(results.get().init_info(), &self.0.status());
        Ok(())
    }

    async fn wait(self: Rc<Self>, _: job::WaitParams, mut results: job::WaitResults) -> capnp::Result<()> {
        let arrived = rpc(self.0.wait().await)?;
        let names: Vec<String> = arrived.iter().map(|image| image.name.to_string()).collect();
        set_texts(results.get().init_names(names.len() as u32), &names);
        Ok(())
    }

    async fn cancel(self: Rc<Self>, _: job::CancelParams, _: job::CancelResults) -> capnp::Result<()> {
        self.0.cancel();
        let _ = self.0.wait().await;
        Ok(())
    }
}
