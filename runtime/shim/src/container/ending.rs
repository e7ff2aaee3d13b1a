//! How containers and their processes end: by signals, by themselves, by removal.

use std::{rc::Rc, sync::Arc, time::Duration};

use cofferdam_oci as oci;
use cofferdam_types::{Error, Result, Timestamp};
use cofferdam_wire::convert::Life;

use super::{Container, State};
use crate::process::{End, Process};

/// How long a deletion waits for processes that it killed.
const KILL: Duration = Duration::from_secs(10);

/// How long a deletion waits for whoever else changes the container: the daemon gives a deletion five seconds.
const HURRY: Duration = Duration::from_secs(2);

/// The first and the longest pause between two attempts to kill what a first process left.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

pub(super) const KILLED: End = End::Signal(libc::SIGKILL as u32);

impl Container {
    /// Sends a signal to one process, or to all.
    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        if (all, signal) == (false, libc::SIGKILL) && self.is_being_started(id) {
            // Who starts it sees to that. Ours may stand still; what a runtime of others has begun it alone can bring to an end.
            self.process(id)?.doom();
            if !self.runtime.is_foreign() {
                self.patience.lose();
            }
            return Ok(());
        }
        let process = self.there(id)?;
        if !(0..=libc::SIGRTMAX()).contains(&signal) {
            return Err(Error::invalid("signal", signal, "is not a signal; kill -l lists those that are"));
        }
        if self.made.borrow().is_none() && process.life().exited == Timestamp(0) {
            return self.kill_unmade(signal);
        }
        match (all, signal) {
            (true, libc::SIGKILL) => self.kill_all().await,
            (false, libc::SIGKILL) if self.is_frozen() && self.state(&process) != State::Created => {
                self.kill_frozen(&process).await
            }
            (false, _) => process.kill(signal),
            (true, _) => {
                self.only_in("", &super::ALIVE, "it has no processes")?;
                self.made()?.signal_all(signal)
            }
        }
    }

    /// A signal for what is not restored yet: there is nobody who could take any but the one that nobody is asked about.
    fn kill_unmade(&self, signal: i32) -> Result<()> {
        if signal != libc::SIGKILL {
            return self.made().map(drop);
        }
        self.init.doom();
        // A restore that is at work ends by that, and tells the end.
        self.patience.lose();
        if self.pending.take().is_some() {
            self.init.exited(KILLED, "");
        }
        Ok(())
    }

    /// In a v1 hierarchy nobody dies before he goes on. With the first process all others die, so they may.
    async fn kill_frozen(&self, process: &Rc<Process>) -> Result<()> {
        if Rc::ptr_eq(process, &self.init) {
            return self.kill_all().await;
        }
        process.kill(libc::SIGKILL)?;
        // It is our child, which we have not taken in: the number is its own.
        self.made()?.let_die(process.life().pid as i32)
    }

    /// Who was killed while the container was being frozen stands still before he could die of that. Where that fails it stands
    /// still all the same, as it was asked to.
    pub(super) async fn doomed_die(&self) {
        if let Err(error) = self.kill_doomed().await {
            crate::complain(format_args!("what was killed in {} stands still: {error}", self.id));
        }
    }

    async fn kill_doomed(&self) -> Result<()> {
        if self.init.alive() && self.init.is_doomed() {
            return self.kill_all().await;
        }
        let doomed: Vec<_> = {
            let execs = self.execs.borrow();
            let all = execs.values().map(|exec| &exec.process).filter(|process| process.is_doomed());
            all.filter(|process| process.alive() && !process.has_ended()).cloned().collect()
        };
        doomed.iter().try_for_each(|process| self.made()?.let_die(process.life().pid as i32))
    }

    pub(super) async fn kill_all(&self) -> Result<()> {
        self.init.doom();
        self.execs.borrow().values().for_each(|exec| exec.process.doom());
        let made = self.made()?;
        // Not `act`: who kills gives up what else is at work, which must not be this.
        let runtime = self.runtime.clone();
        self.calls.make(true, &Default::default(), move || runtime.kill_all(&made)).await.map(drop)
    }

    /// Why a process ended, where that is nobody's order and not its own doing.
    fn reason(&self, process: &Process, end: End) -> &'static str {
        let first = std::ptr::eq(process, &*self.init);
        if first || end == KILLED {
            self.look_for_ooms();
        }
        let killed = end == KILLED && !process.is_doomed() && self.oom.recent();
        // The others of a pid namespace die of the first one's end, before it has ended.
        let of_the_first = !first && cofferdam_sys::procfs::is_exiting(self.init.life().pid as i32);
        if killed && !of_the_first { "oom killed" } else { "" }
    }

    /// One of its processes has ended, and was taken in.
    pub fn exited(self: &Rc<Self>, process: &Rc<Process>, end: End) {
        let reason = self.reason(process, end);
        let container = self.clone();
        if !Rc::ptr_eq(process, &self.init) {
            process.exited(end, reason);
        } else if self.own_pids {
            process.exited(end, reason);
            tokio::task::spawn_local(async move { container.let_go().await });
        } else {
            // Its end is told when it is that of all.
            process.taken_in();
            let process = process.clone();
            tokio::task::spawn_local(async move {
                container.kill_rest().await;
                process.exited(end, reason);
                container.let_go().await;
            });
        }
    }

    /// Kills what the first process left. That fails for want of a thread or a descriptor, say, which passes: its end is that of
    /// all, and not told before.
    async fn kill_rest(&self) {
        let mut pause = AGAIN.0;
        while let Err(error) = self.kill_all().await {
            crate::complain(format_args!("what {} left can't be killed: {error}", self.id));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    /// Lets go of what its end can do without.
    async fn let_go(&self) {
        self.init.wait().await;
        // Behind the answers to those who wait as well.
        tokio::task::yield_now().await;
        if let Some(made) = &*self.made.borrow() {
            made.release_mounts();
        }
    }

    /// Whether all that its processes wrote before their ends has arrived.
    pub fn is_delivered(&self) -> bool {
        self.ended_ones().iter().all(|process| process.life().output_end != Timestamp(0))
    }

    /// Who follows what was written gets no more of it once he takes nothing for so long.
    pub fn drain(&self, limit: Duration) {
        self.ended_ones().iter().for_each(|process| process.drain(limit));
    }

    /// Waits for that.
    pub async fn delivered(&self) {
        for process in self.ended_ones() {
            process.delivered().await;
        }
    }

    /// Those that have run, in a container where nothing runs any more.
    fn ended_ones(&self) -> Vec<Rc<Process>> {
        let (execs, forgotten) = (self.execs.borrow(), self.forgotten.borrow());
        let all = std::iter::once(&self.init).chain(execs.values().map(|exec| &exec.process)).chain(&*forgotten);
        all.filter(|process| process.life().pid != 0).cloned().collect()
    }

    /// The end of a deleted one is written down elsewhere.
    pub fn forget_exec(&self, id: &str, created: Timestamp) {
        for process in &*self.forgotten.borrow() {
            let life = process.life();
            if life.deleted && (life.id.as_str(), life.created) == (id, created) {
                process.forget();
                process.set_deleted(false);
            }
        }
        self.tidy();
    }

    /// Lets go of deleted ones of which nothing is wanted any more.
    pub(super) fn tidy(&self) {
        self.forgotten.borrow_mut().retain(|process| {
            let life = process.life();
            life.deleted || (life.pid != 0 && life.output_end == Timestamp(0))
        });
    }

    /// Kills what runs and removes all that the driver made. May be repeated.
    pub async fn delete(&self) -> Result<Life> {
        // Who is at work for it, such as a start whose program has ended already, is not waited for long.
        let _turn = match tokio::time::timeout(HURRY, self.turn.lock()).await {
            Ok(turn) => turn,
            Err(_) => {
                self.patience.lose();
                if self.init.alive() && self.made.borrow().is_some() {
                    self.kill_all().await?;
                }
                self.turn.lock().await
            }
        };
        if self.init.alive() {
            let made = self.made()?;
            if self.paused.replace(false) {
                let made = made.clone();
                let _ = self.act(true, move |runtime| runtime.resume(&made)).await;
            }
            self.kill_all().await?;
            let _ = self.init.kill(libc::SIGKILL);
            tokio::time::timeout(KILL, self.init.wait()).await.map_err(|_| {
                Error::deadline_exceeded("container", &self.id, "did not die within 10 s of SIGKILL: is its disk hung?")
            })?;
        }
        self.oom.stop();
        let made = self.made.borrow().clone();
        match made {
            Some(made) => self.unmake(made).await?,
            // Whoever waits for its end would wait for ever.
            None if self.pending.take().is_some() => self.init.exited(End::Code(0), "was never started"),
            None => {}
        }
        let (execs, forgotten) = (self.execs.borrow(), self.forgotten.borrow());
        execs.values().map(|exec| &exec.process).chain(&*forgotten).for_each(|process| process.forget());
        self.init.seal();
        Ok(self.init.life())
    }

    async fn unmake(&self, made: Arc<oci::Container>) -> Result<()> {
        if self.runtime.delete_at_once(&made).unwrap_or_default() {
            return Ok(());
        }
        self.act(true, move |runtime| runtime.delete(&made)).await.map(drop)
    }

    /// Unmounts the root file system of one that is deleted. Where others are served, they are while it takes.
    pub async fn release_root(&self, others: bool) {
        let made = self.made.borrow().clone();
        if let Some(made) = made {
            let release = move |_: &dyn oci::Runtime| {
                made.release_root();
                Ok(())
            };
            let _ = self.act(others, release).await;
        }
    }
}
