//! A task as the actor knows it: its shim, its processes, and what has become of each.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use cofferdam_metadata::records::tasks::{Exit, State};
use cofferdam_types::{Code, Error, Id, Namespace, Result, Timestamp};
use cofferdam_wire::convert::Life;
use tokio::sync::watch;

use crate::{
    handle::ExitWatch,
    link::{Link, Remote},
    messages::ProcessState,
    patience::Patience,
    recover::{ANSWER, SILENT},
    shim::from_shim,
    spare::Home,
};

/// One process.
#[derive(Debug)]
pub(crate) struct Process {
    pub life: RefCell<Life>,
    pub exit: ExitWatch,
    /// Its end is in the tables, with its event.
    pub recorded: Cell<bool>,
    /// Its start failed: that its shim noted it before is no start.
    pub in_vain: Cell<bool>,
}

impl Process {
    pub fn new(life: Life) -> Rc<Process> {
        let exit = exit_of(&life);
        let (recorded, in_vain) = Default::default();
        Rc::new(Process { life: RefCell::new(life), exit: watch::channel(exit).0, recorded, in_vain })
    }

    /// Takes the news in; tells who waits.
    pub fn update(&self, life: Life) {
        let exit = exit_of(&life);
        *self.life.borrow_mut() = life;
        if exit.is_some() {
            self.exit.send_replace(exit);
        }
    }

    /// Takes in that the container ran out of memory.
    pub fn out_of_memory(&self, life: &Life) {
        let mut mine = self.life.borrow_mut();
        (mine.oomed, mine.ooms) = (life.oomed, life.ooms);
    }

    pub fn ended(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// When it began, if it did.
    pub fn began(&self) -> Option<Timestamp> {
        Some(self.life.borrow().started).filter(|at| *at != Timestamp(0) && !self.in_vain.get())
    }
}

fn exit_of(life: &Life) -> Option<Exit> {
    (life.exited != Timestamp(0)).then(|| Exit { status: life.status, at: life.exited, reason: life.reason.clone() })
}

/// A start that is under way.
pub(crate) struct Starting(Rc<Entry>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.starting.send_modify(|n| *n -= 1);
    }
}

/// How many ends are kept of processes that nobody deleted.
const PAST: usize = 4096;

/// Ends, the oldest first: small, where a process with all that belongs to it is not.
#[derive(Debug, Default)]
pub(crate) struct Past(VecDeque<(String, Exit)>);

impl Past {
    pub fn keep(&mut self, exec: String, exit: Exit) {
        self.take(&exec);
        if self.0.len() == PAST {
            self.0.pop_front();
        }
        self.0.push_back((exec, exit));
    }

    pub fn exit(&self, exec: &str) -> Option<Exit> {
        self.0.iter().find(|(id, _)| id == exec).map(|(_, exit)| exit.clone())
    }

    pub fn take(&mut self, exec: &str) -> Option<Exit> {
        let at = self.0.iter().position(|(id, _)| id == exec)?;
        self.0.remove(at).map(|(_, exit)| exit)
    }
}

/// One task.
#[derive(Debug)]
pub(crate) struct Entry {
    pub namespace: Namespace,
    pub id: Id,
    pub shim: String,
    /// Its connection to a network.
    pub attachment: Option<Id>,
    /// Others of it share the shim.
    pub group: Option<Id>,
    /// Nothing in it outlives its first process: they have a pid namespace of their own, and the driver is ours. False
    /// where that isn't known.
    pub ends_at_once: bool,
    /// The container, its task and its snapshot go when the task has ended.
    pub remove_on_exit: bool,
    /// The cgroup, for the case that the shim is lost.
    pub cgroup: String,
    /// What a runc-compatible binary keeps of it.
    pub runc: PathBuf,
    pub link: Link,
    pub init: Rc<Process>,
    pub execs: RefCell<BTreeMap<String, Rc<Process>>>,
    /// Deleted ones whose end is not in the tables yet: until then their shim keeps it.
    pub leaving: RefCell<BTreeMap<String, Rc<Process>>>,
    pub paused: Cell<bool>,
    /// Where its shim goes, if it can be used again.
    pub home: RefCell<Option<Home>>,
    /// How long its shim may take for what it is asked.
    pub patience: Patience,
    /// So many starts of the first process are not answered: whether it runs is about to be known.
    pub starting: watch::Sender<u32>,
    /// What happened to it and is not in the journal yet, the oldest first; the first is being written.
    pub news: RefCell<VecDeque<&'static str>>,
    /// The ends of other processes that the shim has forgotten.
    pub past: RefCell<Past>,
    /// The grants through which something was run in it, and whether their end is waited for.
    pub granted: RefCell<BTreeMap<String, bool>>,
    /// Somebody is removing it: the end of its shim is no loss.
    pub removing: Cell<bool>,
    /// Its end is in the tables, with its event.
    pub recorded: watch::Sender<bool>,
}

impl Entry {
    pub fn process(&self, exec: &str) -> Result<Rc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let found = self.execs.borrow().get(exec).cloned();
        found.ok_or_else(|| Error::not_found("process", exec, format!("is not one of container {}'s", self.id)))
    }

    /// From here on a start is under way, until what this gives falls.
    pub fn begin(self: &Rc<Self>) -> Starting {
        self.starting.send_modify(|n| *n += 1);
        Starting(self.clone())
    }

    /// Waits for the answer to a start that is under way.
    pub async fn begun(&self, otherwise: &str) -> Result<()> {
        let mut starting = self.starting.subscribe();
        match tokio::time::timeout(ANSWER, starting.wait_for(|n| *n == 0)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::failed_precondition("task", &self.id, format!("is about to be started: {otherwise}"))),
        }
    }

    /// Refuses what only a task can do that has not ended.
    pub fn running(&self, otherwise: &str) -> Result<()> {
        match self.init.ended() {
            None => Ok(()),
            Some(_) => Err(Error::failed_precondition("task", &self.id, format!("is stopped: it {otherwise}"))),
        }
    }

    /// Refuses what can only be done to a task that has ended.
    pub async fn ended_or(&self, otherwise: &str) -> Result<()> {
        if self.init.ended().is_none() {
            self.link.settled().await?;
        }
        if self.init.ended().is_some() {
            return Ok(());
        }
        let why = format!("is {}: {otherwise}", self.state("")?.state.as_str());
        Err(Error::failed_precondition("task", &self.id, why))
    }

    /// The shim's container. Without one the task has ended, and that is said.
    pub async fn remote(&self) -> Result<Remote> {
        self.link.remote().await.map_err(|error| match (error.code, self.state("")) {
            (Code::FailedPrecondition, Ok(state)) => {
                let why = format!("is {}: {}", state.state.as_str(), error.message);
                Error::failed_precondition("task", &self.id, why)
            }
            _ => Error { id: self.id.to_string(), ..error },
        })
    }

    /// What its shim answers. One that doesn't do so in time is out of reach until it does.
    pub async fn answer<T>(
        self: &Rc<Self>,
        remote: &Remote,
        asked: impl Future<Output = capnp::Result<T>>,
    ) -> Result<T> {
        if let Ok(answer) = tokio::time::timeout(ANSWER, asked).await {
            return answer.map_err(from_shim);
        }
        self.silent(remote);
        Err(Error::unavailable("task", &self.id, SILENT))
    }

    /// Its shim has not answered in time: it is out of reach until it does.
    pub fn silent(self: &Rc<Self>, remote: &Remote) {
        if self.link.state() == "there" {
            tracing::error!(container = %self.id, shim = %self.shim, "its shim doesn't answer: it is waited for");
            self.link.mute(SILENT);
            let (entry, remote) = (self.clone(), remote.clone());
            tokio::task::spawn_local(async move {
                // It answers when it goes on, or dies of what it is in: whoever watches the connection sees to that.
                let Ok(answer) = remote.container.state_request().send().promise.await else { return };
                if entry.link.state() == "mute" {
                    // What it was asked for it may have done behind our back.
                    entry.paused.set(answer.get().is_ok_and(|state| state.get_paused()));
                    entry.link.found(remote);
                }
            });
        }
    }

    /// What was to be done within `limit` and was not: done or not, that is known when its shim answers.
    pub fn late(&self, what: &str, limit: Duration) -> Error {
        let why = format!(
            "was not {what} by its shim within {limit:?}: it may be yet, which its state says when the shim answers; if it \
             never does, remove the container by force"
        );
        Error::deadline_exceeded("task", &self.id, why)
    }

    /// Sends a signal to one process, or to all.
    pub async fn kill(self: &Rc<Self>, exec: &str, signal: u32, all: bool) -> Result<()> {
        let remote = self.remote().await?;
        let mut request = remote.container.kill_request();
        request.get().set_id(exec);
        request.get().set_signal(signal);
        request.get().set_all(all);
        self.answer(&remote, request.send().promise).await.map(drop)
    }

    pub fn state(&self, exec: &str) -> Result<ProcessState> {
        let past = |error: Error| -> Result<ProcessState> {
            let exit = self.past.borrow().exit(exec).ok_or(error)?;
            let (created, oomed) = (Timestamp::default(), Timestamp::default());
            Ok(ProcessState { state: State::Stopped, pid: 0, created, started: None, exit: Some(exit), oomed, ooms: 0 })
        };
        let process = match self.process(exec) {
            Ok(process) => process,
            Err(error) => return past(error),
        };
        let exit = process.ended();
        let life = process.life.borrow();
        let started = (life.started != Timestamp(0)).then_some(life.started);
        let state = match (&exit, started) {
            (Some(_), _) => State::Stopped,
            (None, Some(_)) if self.paused.get() => State::Paused,
            (None, Some(_)) => State::Running,
            (None, None) => State::Created,
        };
        let pid = if exit.is_some() { 0 } else { life.pid };
        let (oomed, ooms) = (life.oomed, life.ooms);
        Ok(ProcessState { state, pid, created: life.created, started, exit, oomed, ooms })
    }
}
