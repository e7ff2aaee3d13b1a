//! The way to a task's shim: being looked for, there, out of reach, or lost.

use std::{cell::RefCell, time::Duration};

use cofferdam_types::{Code, Error, Result, Timestamp};
use cofferdam_wire::{convert::life, fdstream::Fds, shim_capnp::shim_container};
use tokio::sync::Notify;

use crate::shim::Close;

/// How long a request waits for a task that is still being looked for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A shim's container, and the descriptors of the connection to it.
#[derive(Clone)]
pub(crate) struct Remote {
    pub container: shim_container::Client,
    pub fds: Fds,
    /// The connection lives for as long as somebody holds this.
    pub _close: Close,
}

impl Remote {
    /// Whether a process has neither begun nor ended.
    pub async fn is_waiting(&self, exec: &str) -> bool {
        let Ok(answer) = self.container.state_request().send().promise.await else { return false };
        answer.get().and_then(|answer| answer.get_processes()).is_ok_and(|all| {
            let mut lives = all.iter().filter_map(|found| life(found).ok());
            lives.any(|life| life.id == exec && life.started == Timestamp(0) && life.exited == Timestamp(0))
        })
    }
}

enum State {
    Looking,
    There(Remote),
    /// It is there, as far as anybody knows, and can't be asked.
    Mute(String),
    Lost(String),
}

/// See the module.
pub(crate) struct Link {
    state: RefCell<State>,
    changed: Notify,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.state())
    }
}

impl Link {
    pub fn looking() -> Link {
        Link { state: RefCell::new(State::Looking), changed: Notify::new() }
    }

    pub fn there(remote: Remote) -> Link {
        Link { state: RefCell::new(State::There(remote)), changed: Notify::new() }
    }

    /// How it is, as a word.
    pub fn state(&self) -> &'static str {
        match &*self.state.borrow() {
            State::Looking => "looking",
            State::There(_) => "there",
            State::Mute(_) => "mute",
            State::Lost(_) => "lost",
        }
    }

    pub fn found(&self, remote: Remote) {
        *self.state.borrow_mut() = State::There(remote);
        self.changed.notify_waiters();
    }

    pub fn mute(&self, why: impl Into<String>) {
        *self.state.borrow_mut() = State::Mute(why.into());
        self.changed.notify_waiters();
    }

    pub fn lose(&self, why: impl Into<String>) {
        *self.state.borrow_mut() = State::Lost(why.into());
        self.changed.notify_waiters();
    }

    /// The shim's container; waits while it is being looked for.
    pub async fn remote(&self) -> Result<Remote> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                match &*self.state.borrow() {
                    State::There(remote) => return Ok(remote.clone()),
                    State::Mute(why) => return Err(Error::unavailable("task", "", why.clone())),
                    State::Lost(why) => return Err(Error::failed_precondition("task", "", why.clone())),
                    State::Looking => {}
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable("task", "", "is still being looked for: try again")))
    }

    /// Waits until there is no way any more.
    pub async fn lost(&self) {
        loop {
            let changed = self.changed.notified();
            if let State::Lost(_) = &*self.state.borrow() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the shim was found, or is known to be gone: before that nobody knows how its processes are.
    pub async fn settled(&self) -> Result<()> {
        match self.remote().await {
            Err(error) if error.code == Code::FailedPrecondition => Ok(()),
            other => other.map(drop),
        }
    }
}
