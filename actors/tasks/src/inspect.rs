//! What a task uses, and the processes in it.

use std::{collections::BTreeMap, rc::Rc};

use actix::{Context, Handler, ResponseFuture};
use cofferdam_sys::{
    cgroup::{Cgroup, Layout},
    metrics::Metrics,
    procfs,
};
use cofferdam_types::{Code, Error, Result};

use crate::{
    actor::TasksActor,
    entry::Entry,
    messages::{Measure, Pids, ProcessEntry, Processes},
    shim::from_shim,
};

/// What one answer lists at most.
const MOST: usize = 4096;
/// The bytes of arguments in one answer; behind them stand names alone.
const ARGUMENTS: usize = 256 << 10;

impl Handler<Measure> for TasksActor {
    type Result = ResponseFuture<Result<Metrics>>;
    fn handle(&mut self, message: Measure, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            // The kernel has the figures: a shim that doesn't answer hides none.
            let entry = ctx.entry(&message.namespace, &message.id)?;
            let path = entry.cgroup.clone();
            let measured = blocking(move || Metrics::read(&Cgroup::open(&Layout::detect()?, &path)?)).await;
            measured.map_err(|error| match (error.code, entry.state("")) {
                (Code::NotFound, Ok(state)) => {
                    let why = format!("is {}, and its cgroup is gone", state.state.as_str());
                    Error::failed_precondition("task", &entry.id, why)
                }
                _ => error,
            })
        })
    }
}

impl Handler<Pids> for TasksActor {
    type Result = ResponseFuture<Result<Vec<u32>>>;
    fn handle(&mut self, message: Pids, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move { pids(&ctx.settled(&message.namespace, &message.id).await?).await })
    }
}

impl Handler<Processes> for TasksActor {
    type Result = ResponseFuture<Result<Vec<ProcessEntry>>>;
    fn handle(&mut self, message: Processes, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let entry = ctx.settled(&message.namespace, &message.id).await?;
            let pids = pids(&entry).await?;
            let known = |pid: u32, life: &cofferdam_wire::convert::Life| {
                pid != 0 && life.exited == cofferdam_types::Timestamp(0)
            };
            let execs: BTreeMap<u32, String> = entry
                .execs
                .borrow()
                .iter()
                .map(|(id, process)| (process.life.borrow().pid, id.clone()))
                .filter(|(pid, id)| entry.process(id).is_ok_and(|process| known(*pid, &process.life.borrow())))
                .collect();
            let first = entry.init.life.borrow().pid;
            let seen = blocking(move || Ok(look(&pids))).await?;
            let inside = |pid: i32| seen.iter().any(|process| process.pid == pid);
            let entries = seen.iter().map(|process| ProcessEntry {
                first: process.pid as u32 == first,
                exec: execs.get(&(process.pid as u32)).cloned().unwrap_or_default(),
                process: procfs::Process {
                    parent: if inside(process.parent) { process.parent } else { 0 },
                    ..process.clone()
                },
            });
            Ok(entries.collect())
        })
    }
}

/// Those that have ended meanwhile are left out.
fn look(pids: &[u32]) -> Vec<procfs::Process> {
    let mut left = ARGUMENTS;
    let seen = pids.iter().take(MOST).filter_map(|pid| procfs::process(*pid as i32).ok());
    seen.map(|mut process| {
        let size: usize = process.command.iter().map(String::len).sum();
        if size > left {
            process.command.truncate(1);
            process.command.iter_mut().for_each(|name| *name = name.chars().take(16).collect());
        }
        left = left.saturating_sub(size);
        process
    })
    .collect()
}

async fn pids(entry: &Rc<Entry>) -> Result<Vec<u32>> {
    entry.running("has no processes")?;
    let remote = entry.remote().await?;
    let answer = entry.answer(&remote, remote.container.pids_request().send().promise).await?;
    let pids = answer.get().and_then(|a| a.get_pids()).map_err(from_shim)?;
    Ok(pids.iter().collect())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal("task", "", e.to_string())))
}
