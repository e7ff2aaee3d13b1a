//! The end of all that runs in a group.

use std::{
    collections::BTreeSet,
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use cofferdam_types::{Error, Result};

use super::{Cgroup, PATIENCE, Part, join};
use crate::process::{pidfd_open, pidfd_send_signal};

/// Descriptors that are held at a time.
const HELD: usize = 128;

impl Cgroup {
    /// Kills every process, frozen or not; that they have ended shows in [`Cgroup::remove`]. Somebody else may be
    /// removing the group at the same time.
    pub fn kill(&self) -> Result<()> {
        match self.kill_all() {
            // What is gone of it was empty, and can't freeze the rest.
            Err(_) if self.parts.iter().any(|part| !join(&part.hierarchy.root, &self.path).exists()) => {
                self.kill_unfrozen()
            }
            other => other,
        }
    }

    fn kill_all(&self) -> Result<()> {
        if let Some(dir) = self.unified() {
            match self.write_at(dir, "cgroup.kill", "1") {
                Ok(()) => {
                    self.thaw_v1();
                    // That signal is for the main thread of each process: where it has ended, the others live on.
                    return self.kill_rest();
                }
                // cgroup.kill came with Linux 5.14.
                Err(e) if e.code == cofferdam_types::Code::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        if self.unified().is_none() && self.v1("freezer").is_none() {
            return self.kill_unfrozen();
        }
        // Frozen, the group can't fork away from the signals; each is delivered when it thaws.
        let frozen = self.freeze();
        self.kill_once()?;
        let thawed = self.thaw();
        frozen.and(thawed)
    }

    /// Lets a process that was killed die though its group stands still. In a v1 hierarchy it would wait for the others to go
    /// on: it goes where nothing stands still, to die there.
    pub fn let_die(&self, pid: i32) -> Result<()> {
        let freezes = |part: &&Part| part.hierarchy.controllers.iter().any(|c| c == "freezer");
        let Some(part) = self.parts.iter().find(freezes) else { return Ok(()) };
        match std::fs::write(part.hierarchy.root.join("cgroup.procs"), pid.to_string()) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(self.unkilled(&e)),
            _ => Ok(()),
        }
    }

    fn is_frozen_v1(&self) -> Result<bool> {
        let Some(dir) = self.v1("freezer") else { return Ok(false) };
        Ok(self.read_at(dir, "freezer.state")?.trim() != "THAWED")
    }

    /// Whether it stands still, by whose wish ever.
    pub fn is_frozen(&self) -> Result<bool> {
        match self.unified() {
            Some(dir) if self.read_key(dir, "cgroup.events", "frozen")? == Some(1) => Ok(true),
            _ => self.is_frozen_v1(),
        }
    }

    /// Kills all that is in a group below, though this one stands still.
    pub fn kill_inner(&self, inner: &Cgroup) -> Result<()> {
        if !self.is_frozen_v1()? {
            return inner.kill();
        }
        let end = Instant::now() + PATIENCE;
        let mut let_go = BTreeSet::new();
        loop {
            let mut new = inner.pids()?;
            new.retain(|pid| !let_go.contains(pid));
            if new.is_empty() {
                break;
            }
            inner.signal(&new, libc::SIGKILL)?;
            // Who stands still doesn't end: until it is let go its number is its own.
            new.iter().try_for_each(|pid| self.let_die(*pid))?;
            let_go.extend(new);
            if Instant::now() > end {
                return Err(Error::failed_precondition("cgroup", &inner.path, "processes still run in it"));
            }
        }
        // Of a group of the freezer's they have left all by that; it would not thaw below one that stands still.
        if inner.unified().is_some() { inner.kill() } else { Ok(()) }
    }

    /// Signals every process until there is none that was not: who has been signalled forks no more.
    fn kill_rest(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut signalled = BTreeSet::new();
        loop {
            let mut new = self.pids()?;
            new.retain(|pid| !signalled.contains(pid));
            if new.is_empty() {
                return Ok(());
            }
            self.signal(&new, libc::SIGKILL)?;
            signalled.extend(new);
            if Instant::now() > end {
                return Err(Error::failed_precondition("cgroup", &self.path, "processes still run in it"));
            }
        }
    }

    /// Signals every process; how many there were.
    fn kill_once(&self) -> Result<usize> {
        let pids = self.pids()?;
        self.signal(&pids, libc::SIGKILL)?;
        Ok(pids.len())
    }

    /// Signals every process that is in it now.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        self.signal(&self.pids()?, signal)
    }

    /// A signal for each of these that is still in the group once it is held: before, its number may pass to another
    /// process.
    pub(super) fn signal(&self, pids: &[i32], signal: i32) -> Result<()> {
        for some in pids.chunks(HELD) {
            let mut held: Vec<(i32, OwnedFd)> = Vec::new();
            for pid in some {
                match pidfd_open(*pid) {
                    Ok(pidfd) => held.push((*pid, pidfd)),
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(e) => return Err(self.unkilled(&e)),
                }
            }
            let there = self.pids()?;
            for (_, pidfd) in held.iter().filter(|(pid, _)| there.binary_search(pid).is_ok()) {
                match pidfd_send_signal(pidfd, signal) {
                    Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(self.unkilled(&e)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn unkilled(&self, error: &io::Error) -> Error {
        Error::io("cgroup", &self.path, "signalling its processes", error)
    }

    /// Of a group whose making was interrupted there may be nothing to freeze: signals until nobody is left.
    fn kill_unfrozen(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.kill_once()? > 0 {
            if Instant::now() > end {
                return Err(Error::failed_precondition("cgroup", &self.path, "processes still run in it"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
