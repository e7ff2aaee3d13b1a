//! Another process in a container: made, started, deleted.

use std::{rc::Rc, time::Duration};

use cofferdam_oci as oci;
use cofferdam_sys::process::pidfd_send_signal;
use cofferdam_types::{Error, Id, Result, Timestamp};
use cofferdam_wire::{convert::Life, life};
use oci_spec::runtime::Process as ProcessSpec;

use super::{ALIVE, Container, Exec, State, borrow, ending::KILLED};
use crate::{
    process::{End, Process},
    stdio::{Prepared, Through, Wishes, prepare},
};

/// How long the end of one that was killed at its start is waited for.
const DYING: Duration = Duration::from_secs(2);

impl Container {
    pub(super) async fn start_exec(&self, id: &str, process: &Rc<Process>) -> Result<Life> {
        // In a frozen cgroup it would stand still before it has told us that it is there.
        self.only_in("", &[State::Running], "nothing can be started in it")?;
        self.held.free(&self.id)?;
        let made = self.made()?;
        // Before it is taken: what fails here can be tried again.
        let group = self.enter(&made, &process.life().grant)?;
        let pending = self.execs.borrow_mut().get_mut(id).and_then(|exec| exec.pending.take());
        let (spec, prepared) =
            pending.ok_or_else(|| Error::failed_precondition("process", id, "could not be started before"))?;
        let exec_id = Id::new(id)?;
        let Prepared { given, relays, feed } = prepared;
        // On a thread of its own: those who are in the container see the process before it is its program, and can stop it.
        let run = self.act(true, move |runtime| {
            let (stdio, group) = (borrow(&given), group.as_deref());
            runtime.exec(&made, &oci::ExecRequest { id: &exec_id, process: &spec, stdio, group })
        });
        match run.await {
            Ok((made, busy)) => {
                let known = process.made(&made, relays, feed, None).and_then(|()| process.started());
                if known.is_err() || process.is_doomed() {
                    // Nobody would know that it runs; or somebody had it killed meanwhile.
                    process.doom();
                    let _ = pidfd_send_signal(&made.pidfd, libc::SIGKILL);
                }
                // From here on the reaper knows it.
                drop(busy);
                if known.is_err() {
                    // Who hears of the error finds what has ended, and not what is yet to be started.
                    let _ = tokio::time::timeout(DYING, process.wait()).await;
                }
                known.map(|()| process.life())
            }
            // It was given up, or died on its way.
            Err(_) if process.is_doomed() => {
                process.exited(KILLED, "");
                Err(Error::cancelled("process", id, "was killed while it was being started"))
            }
            Err(error) => {
                // Those who wait for it are told, as a shell would: 127 not found, 126 not executable.
                let status = if error.code == cofferdam_types::Code::NotFound { 127 } else { 126 };
                process.exited(End::Code(status), "could not be started");
                Err(error)
            }
        }
    }

    /// Whether a driver is at it: it has not begun, as far as anybody knows, and will.
    pub(super) fn is_being_started(&self, id: &str) -> bool {
        let execs = self.execs.borrow();
        execs.get(id).is_some_and(|exec| exec.pending.is_none() && self.state(&exec.process) == State::Created)
    }

    /// Makes another process, to be started later.
    pub fn exec(&self, id: Id, spec: ProcessSpec, stdio: Wishes, terminal: bool, grant: &str) -> Result<Life> {
        self.only_in("", &ALIVE, "nothing can be run in it")?;
        if self.execs.borrow().contains_key(&id) {
            return Err(Error::already_exists("process", &id, "is there already: choose another id"));
        }
        let mut prepared = prepare(stdio, terminal, Through::Nothing, self.pipes)?;
        // The record of a deleted one of that name gives way.
        self.forgotten.borrow().iter().filter(|process| process.life().id == *id).for_each(|process| process.seal());
        let process = Process::new(self.dir.clone(), life::file_name(&self.id, &id), &id, grant, terminal)?;
        process.feed(&mut prepared.feed)?;
        let life = process.life();
        self.execs.borrow_mut().insert(id, Exec { process, pending: Some((spec, prepared)) });
        Ok(life)
    }

    /// Deletes an exec that has ended, or was never started. With `keep` the end of one is there until it is forgotten. Those
    /// who follow its output are waited for as behind the deletion of a container.
    pub fn delete_exec(self: &Rc<Self>, id: &str, keep: bool, drain: Duration) -> Result<Life> {
        let process = self.process(id)?;
        if id.is_empty() {
            return Err(Error::invalid("process", id, "is the container's first: delete the container"));
        }
        self.only_in(id, &[State::Created, State::Stopped], "kill it first")?;
        if self.is_being_started(id) {
            // It would run without anybody to tell its end.
            return Err(Error::failed_precondition("process", id, "is being started: kill it, or wait until it runs"));
        }
        self.execs.borrow_mut().remove(id);
        match keep && process.life().exited != Timestamp(0) {
            true => process.set_deleted(true),
            false => process.forget(),
        }
        let life = process.life();
        if life.pid != 0 && life.output_end == Timestamp(0) {
            process.drain(drain);
            let (container, process) = (self.clone(), process.clone());
            tokio::task::spawn_local(async move {
                process.delivered().await;
                container.tidy();
            });
        }
        self.forgotten.borrow_mut().push(process);
        self.tidy();
        Ok(life)
    }
}
