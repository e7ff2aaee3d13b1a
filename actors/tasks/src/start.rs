//! The start of a process: its shim has a deadline, and what it does behind that is taken in all the same.

use std::{rc::Rc, time::Duration};

use actix::{Context, Handler, ResponseFuture};
use cofferdam_types::{Code, Error, Result, Timestamp};
use cofferdam_wire::convert::{Life, life};

use crate::{
    actor::{Ctx, TasksActor, note},
    entry::{Entry, Starting},
    layout,
    link::Remote,
    messages::Start,
    shim::from_shim,
};

/// How long a lost shim's container may take to die.
const DYING: Duration = Duration::from_secs(15);

impl Handler<Start> for TasksActor {
    type Result = ResponseFuture<Result<u32>>;
    fn handle(&mut self, message: Start, _: &mut Context<Self>) -> Self::Result {
        note("Start", &message.namespace, &message.id, &message.authority);
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let (ns, id) = (&message.namespace, &message.id);
            let first = message.exec.is_empty();
            // A deletion that is under way comes first; one that comes later sees that this is.
            let turn = if first { Some(ctx.turn(ns, id).await) } else { None };
            let entry = ctx.entry(ns, id).map_err(|e| ctx.departed.refusal(ns, id).unwrap_or(e))?;
            let under_way = first.then(|| entry.begin());
            drop(turn);
            let maker = if first { ctx.deps.makers.take(&message.namespace, &message.id) } else { None };
            let started = ctx.start(&entry, &message.exec, under_way).await;
            if let (Some(maker), Err(_)) = (maker, &started) {
                ctx.expect_start(&message.namespace, &message.id, Some(maker));
            }
            ctx.spares.refill_now();
            started
        })
    }
}

impl Ctx {
    async fn start(&self, entry: &Rc<Entry>, exec: &str, under_way: Option<Starting>) -> Result<u32> {
        let remote = match entry.link.remote().await {
            // Its shim died between the making and the start: as below.
            Err(error) if error.code == Code::FailedPrecondition && exec.is_empty() => {
                let never = entry.init.life.borrow().started == Timestamp(0);
                return if never && entry.init.ended().is_some() { Ok(0) } else { Err(error) };
            }
            other => other?,
        };
        let limit = if exec.is_empty() { entry.patience.start } else { entry.patience.exec };
        let (ctx, own, theirs, id) = (self.clone(), entry.clone(), remote.clone(), exec.to_owned());
        // What the shim does when nobody waits any more is taken in all the same.
        let mut started = tokio::task::spawn_local(async move {
            let _under_way = under_way;
            ctx.started_by(&own, theirs, &id).await
        });
        match tokio::time::timeout(limit, &mut started).await {
            Ok(answer) => answer.unwrap_or_else(|e| Err(Error::internal("task", &entry.id, e.to_string()))),
            Err(_) => {
                entry.silent(&remote);
                Err(entry.late("started", limit))
            }
        }
    }

    /// Has the shim start a process, and takes in what comes of it.
    async fn started_by(&self, entry: &Rc<Entry>, remote: Remote, exec: &str) -> Result<u32> {
        let mut request = remote.container.start_request();
        request.get().set_id(exec);
        // Watched from before the start, so that no end is missed; the first process has been watched since it was made.
        let watching = (!exec.is_empty()).then(|| self.watch(entry, exec.to_owned(), true));
        let process = entry.process(exec)?;
        // A start that another comes before is refused, which is no news of the process. An exec is noted when it runs.
        let alone = exec.is_empty() && *entry.starting.borrow() == 1 && process.began().is_none();
        let answer = match request.send().promise.await.map_err(from_shim) {
            // The shim died of something: whether before the start or behind it, the process ends as one that it lost.
            Err(error) if error.code == Code::Unavailable => {
                let mut exit = process.exit.subscribe();
                let ended = tokio::time::timeout(DYING, exit.wait_for(Option::is_some)).await;
                return if ended.is_ok_and(|ended| ended.is_ok()) { Ok(0) } else { Err(error) };
            }
            Err(error) => {
                // One that could not be run has ended, and that is told; one that may not run now has no end, nor has one that was
                // deleted meanwhile.
                let deleted = (error.code, &*error.kind) == (Code::NotFound, "process");
                if let Some(watching) = watching
                    && (deleted || remote.is_waiting(exec).await)
                {
                    watching.abort();
                }
                if alone {
                    process.in_vain.set(true);
                }
                return Err(error);
            }
            Ok(answer) => answer,
        };
        let life = life(answer.get().and_then(|a| a.get_life()).map_err(from_shim)?)?;
        let pid = life.pid;
        process.in_vain.set(false);
        if exec.is_empty() {
            // What it was restored from, if it was.
            let removed = layout::remove(&self.deps.layout.restored(&entry.shim, &entry.id));
            // It runs all the same.
            removed.unwrap_or_else(|error| tracing::warn!(%error, "a directory is left behind"));
        }
        if process.ended().is_none() {
            // One that has ended by now is known to have when that is told: by whoever watches it.
            process.update(Life { exited: Timestamp(0), ..life });
        }
        // The shim's life record has it; the tables follow. It is in the writer's queue before its end can be.
        self.record_start(entry, exec, &process).await;
        Ok(pid)
    }
}
