//! What the tables say of a container's processes beside the first one. The shim knows how each is, and forgets it when it
//! is deleted, or dies; which starts and ends were told stands in the task's record, in the same commit as the event: so
//! each is told once, whoever of daemon, actor and shim is killed in between.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use cofferdam_metadata::{
    Tx,
    records::{
        events,
        tasks::{self, ExecTold, Exit, Task},
    },
};
use cofferdam_types::{Authority, Code, Event, Namespace, Result, Timestamp};
use cofferdam_wire::convert::{Life, life};

use crate::{
    entry::{Entry, Process},
    handle::Deps,
    remove::{exit_payload, persist, persisted},
    shim::{self, from_shim},
};

/// How long the ends of those are waited for that are killed with their container.
const KILLED: Duration = Duration::from_secs(2);

/// One of them, as the tables know it.
fn told(process: &Process) -> ExecTold {
    let life = process.life.borrow();
    ExecTold { created: life.created, pid: life.pid, ended: false }
}

fn started(tx: &mut Tx<'_>, ns: &Namespace, task: &mut Task, exec: &str, told: &ExecTold) -> Result<()> {
    let execs = task.execs.get_or_insert_default();
    if execs.get(exec).is_some_and(|known| known.created == told.created) {
        return Ok(());
    }
    execs.insert(exec.to_owned(), told.clone());
    let payload = serde_json::json!({ "container_id": task.id, "exec_id": exec, "pid": told.pid });
    events::emit(tx, Event::new(ns, "/tasks/exec-started", payload))
}

/// The task that a process belongs to: one of that name may be another by now.
fn task_of(tx: &mut Tx<'_>, entry: &Known) -> Result<Option<Task>> {
    let mut task = tasks::find(tx, &entry.ns, &entry.id)?.filter(|task| task.shim == entry.shim);
    if let Some(execs) = task.as_mut().and_then(|task| task.execs.as_mut()) {
        // What was deleted is told and never asked for again.
        execs.retain(|exec, told| !told.ended || entry.execs.contains(exec));
    }
    Ok(task)
}

/// An entry, for a write.
#[derive(Clone)]
struct Known {
    ns: Namespace,
    id: cofferdam_types::Id,
    shim: String,
    execs: std::collections::BTreeSet<String>,
}

impl Known {
    fn of(entry: &Entry) -> Known {
        let execs = entry.execs.borrow().keys().chain(entry.leaving.borrow().keys()).cloned().collect();
        Known { ns: entry.namespace.clone(), id: entry.id.clone(), shim: entry.shim.clone(), execs }
    }
}

/// Records that one runs.
pub(crate) async fn record_start(deps: &Deps, entry: &Entry, exec: &str, process: &Process) -> Result<()> {
    let (known, exec, told) = (Known::of(entry), exec.to_owned(), told(process));
    let write = move |tx: &mut Tx<'_>| {
        let Some(mut task) = task_of(tx, &known)? else { return Ok(()) };
        started(tx, &known.ns, &mut task, &exec, &told)?;
        tasks::update(tx, &known.ns, task).map(drop)
    };
    let auth = Authority::system();
    persisted(async || deps.metadata.write_lazily(&auth, write.clone()).await).await
}

/// The end of one, to be put into the tables.
#[derive(Clone)]
struct End {
    exec: String,
    told: ExecTold,
    /// Whether it ever ran.
    began: bool,
    payload: serde_json::Value,
}

impl End {
    /// `None`: it has not ended.
    fn of(entry: &Entry, exec: &str, process: &Process) -> Option<End> {
        let exit = process.ended()?;
        let told = ExecTold { ended: true, ..told(process) };
        let payload = exit_payload(&entry.id, exec, told.pid, &exit);
        let began = process.began().is_some();
        Some(End { exec: exec.to_owned(), told, began, payload })
    }

    fn tell(&self, tx: &mut Tx<'_>, ns: &Namespace, task: &mut Task) -> Result<()> {
        let known = task.execs.iter().flatten().find(|(exec, _)| **exec == self.exec).map(|(_, told)| told);
        if known.is_some_and(|known| known.ended && known.created == self.told.created) {
            return Ok(());
        }
        if self.began {
            started(tx, ns, task, &self.exec, &self.told)?;
        }
        task.execs.get_or_insert_default().insert(self.exec.clone(), self.told.clone());
        events::emit(tx, Event::new(ns, "/tasks/exit", self.payload.clone()))
    }
}

/// Records the end of one; `at_once` for whoever waits for that. It is done once, however often it is asked for.
pub(crate) async fn record_end(deps: &Deps, entry: &Entry, exec: &str, process: &Process, at_once: bool) -> Result<()> {
    if process.recorded.get() {
        return Ok(());
    }
    let Some(end) = End::of(entry, exec, process) else { return Ok(()) };
    let known = Known::of(entry);
    let write = move |tx: &mut Tx<'_>| {
        // Who deleted the task has told it.
        let Some(mut task) = task_of(tx, &known)? else { return Ok(()) };
        end.tell(tx, &known.ns, &mut task)?;
        tasks::update(tx, &known.ns, task).map(drop)
    };
    let auth = Authority::system();
    if at_once {
        persist(deps, &auth, write).await?;
    } else {
        persisted(async || deps.metadata.write_lazily(&auth, write.clone()).await).await?;
    }
    process.recorded.set(true);
    Ok(())
}

/// Deletes one; its shim keeps its end until that is in the tables. Gives it, and whether that is yet to come.
pub(crate) async fn delete(deps: &Deps, entry: &Rc<Entry>, exec: &str) -> Result<(Rc<Process>, bool)> {
    let remote = match entry.remote().await {
        Err(error) if error.code == Code::FailedPrecondition => return lost(entry, exec, error).await,
        remote => remote?,
    };
    let known = entry.process(exec).ok();
    let mut request = remote.container.delete_exec_request();
    request.get().set_id(exec);
    request.get().set_drain(deps.drain.as_secs() as u32);
    request.get().set_keep(!known.as_ref().is_some_and(|process| process.recorded.get()));
    let answer = entry
        .answer(&remote, request.send().promise)
        .await
        .and_then(|answer| life(answer.get().and_then(|a| a.get_life()).map_err(from_shim)?));
    let life = match (answer, &known) {
        (Ok(life), _) => life,
        // An answer before this one was lost.
        (Err(error), Some(known)) if error.code == Code::NotFound => {
            Life { deleted: true, ..known.life.borrow().clone() }
        }
        // It went with its container, or died, meanwhile.
        (Err(error), Some(_)) if shim::broke(&error) => return lost(entry, exec, error).await,
        (Err(error), _) => return Err(error),
    };
    entry.execs.borrow_mut().remove(exec);
    let process = known.unwrap_or_else(|| Process::new(life.clone()));
    let kept = life.deleted;
    process.update(life);
    if kept {
        entry.leaving.borrow_mut().insert(exec.to_owned(), process.clone());
    }
    Ok((process, kept))
}

/// The same where its shim is gone: of what that kept nothing is left to be deleted, and the end is known, or about to be.
async fn lost(entry: &Rc<Entry>, exec: &str, error: cofferdam_types::Error) -> Result<(Rc<Process>, bool)> {
    let process = entry.process(exec)?;
    if process.life.borrow().started != Timestamp(0) {
        let mut exit = process.exit.subscribe();
        let ended = tokio::time::timeout(KILLED, exit.wait_for(Option::<Exit>::is_some)).await;
        if !matches!(ended, Ok(Ok(_))) {
            return Err(error);
        }
    }
    // Somebody else may have deleted it meanwhile.
    let process = entry.execs.borrow_mut().remove(exec).ok_or(error)?;
    let untold = process.ended().is_some() && !process.recorded.get();
    if untold {
        // Who removes the container tells it too.
        entry.leaving.borrow_mut().insert(exec.to_owned(), process.clone());
    }
    Ok((process, untold))
}

/// The end of a deleted one is in the tables: its shim needn't keep it.
pub(crate) async fn forget(entry: &Rc<Entry>, exec: &str, process: &Rc<Process>) {
    let is_it = |leaving: &BTreeMap<String, Rc<Process>>| leaving.get(exec).is_some_and(|p| Rc::ptr_eq(p, process));
    if !is_it(&entry.leaving.borrow()) {
        return;
    }
    // One that doesn't answer forgets it with the container, and the tables have it until then: its record is still there.
    let Ok(remote) = entry.remote().await else { return };
    let mut request = remote.container.forget_exec_request();
    request.get().set_id(exec);
    request.get().set_created(process.life.borrow().created.0);
    if entry.answer(&remote, request.send().promise).await.is_err() {
        return;
    }
    let mut leaving = entry.leaving.borrow_mut();
    if is_it(&leaving) {
        leaving.remove(exec);
    }
}

/// What a daemon before this one that kept no such record has told, as far as can be known: each start, and each end that
/// its shim still knows of.
pub(crate) async fn adopt(deps: &Deps, entry: &Entry) -> Result<()> {
    let known = Known::of(entry);
    let all: Vec<_> = {
        let execs = entry.execs.borrow();
        let began = execs.iter().filter(|(_, process)| process.life.borrow().started != Timestamp(0));
        began
            .map(|(exec, process)| (exec.clone(), ExecTold { ended: process.ended().is_some(), ..told(process) }))
            .collect()
    };
    let write = move |tx: &mut Tx<'_>| {
        let Some(mut task) = task_of(tx, &known)? else { return Ok(()) };
        let execs = task.execs.get_or_insert_default();
        for (exec, told) in &all {
            execs.entry(exec.clone()).or_insert_with(|| told.clone());
        }
        tasks::update(tx, &known.ns, task).map(drop)
    };
    persist(deps, &Authority::system(), write).await
}

/// Those of a container that is being deleted, for the commit that does it.
#[derive(Clone)]
pub(crate) struct Ends {
    ends: Vec<End>,
    at: Timestamp,
}

impl Ends {
    /// Waits for the ends of those that die with the container.
    pub async fn of(entry: &Rc<Entry>) -> Ends {
        over(entry).await;
        let (execs, leaving) = (entry.execs.borrow(), entry.leaving.borrow());
        let ends = execs.iter().chain(&*leaving).filter(|(_, process)| !process.recorded.get());
        Ends { ends: ends.filter_map(|(exec, process)| End::of(entry, exec, process)).collect(), at: Timestamp::now() }
    }

    /// Puts them into the tables, and those of whom nobody has seen the end: it comes now.
    pub fn tell(&self, tx: &mut Tx<'_>, ns: &Namespace, task: &mut Task) -> Result<()> {
        for end in &self.ends {
            end.tell(tx, ns, task)?;
        }
        let open = task.execs.iter().flatten().filter(|(_, told)| !told.ended);
        for (exec, told) in open {
            let payload = serde_json::json!({
                "container_id": task.id, "id": exec, "pid": told.pid, "exit_status": 128 + libc::SIGKILL as u32,
                "exited_at": self.at.to_rfc3339(), "reason": "deleted with its container",
            });
            events::emit(tx, Event::new(ns, "/tasks/exit", payload))?;
        }
        Ok(())
    }
}

/// Waits until those that were started have ended, which is soon where the container has.
async fn over(entry: &Rc<Entry>) {
    let running = |process: &&Rc<Process>| process.life.borrow().started != Timestamp(0) && process.ended().is_none();
    let waits: Vec<_> = entry.execs.borrow().values().filter(running).map(|process| process.exit.subscribe()).collect();
    let all = futures::future::join_all(waits.into_iter().map(async |mut exit| {
        let _ = exit.wait_for(Option::<Exit>::is_some).await;
    }));
    let _ = tokio::time::timeout(KILLED, all).await;
}

/// Records the ends of all, of a container that has ended.
pub(crate) async fn record_all(deps: &Deps, entry: &Rc<Entry>) -> Result<()> {
    over(entry).await;
    let all: Vec<_> = entry.execs.borrow().iter().map(|(exec, process)| (exec.clone(), process.clone())).collect();
    for (exec, process) in all {
        record_end(deps, entry, &exec, &process, true).await?;
    }
    Ok(())
}

/// Whether a write failed only for what passes: there is no room, or nobody who writes.
pub(crate) fn may_come(outcome: &Result<()>) -> bool {
    outcome.as_ref().is_err_and(|error| matches!(error.code, Code::ResourceExhausted | Code::Unavailable))
}
