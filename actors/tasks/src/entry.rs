//! A task as the actor knows it: its shim, its processes, and what has become of each.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::PathBuf,
    rc::Rc,
};

use cofferdam_metadata::records::tasks::{Exit, State};
use cofferdam_types::{Code, Error, Id, Namespace, Result, Timestamp};
use cofferdam_wire::convert::Life;
use tokio::sync::watch;

use crate::{
    handle::ExitWatch,
    link::{Link, Remote},
    messages::ProcessState,
    recover::{ANSWER, SILENT},
    shim::from_shim,
    spare::Home,
};

/// One process.
#[derive(Debug)]
pub(crate) struct Process {
    pub life: RefCell<Life>,
    pub exit: ExitWatch,
}

impl Process {
    pub fn new(life: Life) -> Rc<Process> {
        let exit = exit_of(&life);
        Rc::new(Process { life: RefCell::new(life), exit: watch::channel(exit).0 })
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
}

fn exit_of(life: &Life) -> Option<Exit> {
    (life.exited != Timestamp(0)).then(|| Exit { status: life.status, at: life.exited, reason: life.reason.clone() })
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
    pub paused: Cell<bool>,
    /// Where its shim goes, if it can be used again.
    pub home: RefCell<Option<Home>>,
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
        Err(Error::unavailable("task", &self.id, SILENT))
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
        let process = self.process(exec)?;
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
