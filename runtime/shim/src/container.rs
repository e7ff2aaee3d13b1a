//! A container, and what can be done with it.

use std::{
    cell::{Cell, Ref, RefCell},
    collections::BTreeMap,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use cofferdam_log::Writer;
use cofferdam_oci::{self as oci, Runtime};
use cofferdam_sys::oom::OomWatch;
use cofferdam_types::{Error, Id, Mount, Namespace, Result, Timestamp};
use cofferdam_wire::{convert::Life, life};
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Process as ProcessSpec, Spec};

use crate::{
    checkpoint::{Driver, Held},
    oom::Oom,
    process::{End, Process},
    stdio::{Given, Owner, Prepared, Wishes, prepare},
};

/// How long a deletion waits for processes that it killed.
const KILL: Duration = Duration::from_secs(10);

/// All but the end.
const ALIVE: [State; 3] = [State::Created, State::Running, State::Paused];
const KILLED: End = End::Signal(libc::SIGKILL as u32);

/// What makes a container.
pub struct Create {
    /// Where it lies.
    pub namespace: Namespace,
    /// Its id.
    pub id: Id,
    /// The bundle directory.
    pub bundle: OwnedFd,
    /// The OCI runtime spec.
    pub spec: Spec,
    /// The root file system.
    pub rootfs: Vec<Mount>,
    /// The driver.
    pub runtime: Box<dyn Runtime>,
    /// The driver, for another process.
    pub driver: Driver,
    /// What it is restored from, if it is.
    pub source: Option<Source>,
    /// The first process's streams.
    pub stdio: Wishes,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Who owns the pipes of its processes, where somebody is to: user and group.
    pub pipes: Owner,
    /// What its seccomp profile compiles to; empty if nobody has compiled it.
    pub filter: Vec<libc::sock_filter>,
    /// Where its output is kept.
    pub log: Option<Writer>,
}

/// A checkpoint that a container is restored from.
pub struct Source {
    /// Its directory.
    pub dir: OwnedFd,
    /// criu.
    pub criu: PathBuf,
    /// See [`oci::RestoreFrom`].
    pub tcp_established: bool,
    /// See [`oci::RestoreFrom`].
    pub unix_sockets: bool,
}

/// All that a restore needs, until the start.
struct Pending {
    spec: Spec,
    rootfs: Vec<Mount>,
    source: Source,
    filter: Vec<libc::sock_filter>,
    prepared: Prepared,
}

/// One container.
pub struct Container {
    /// Where it lies.
    pub namespace: Namespace,
    /// Its id.
    pub id: Id,
    dir: Rc<OwnedFd>,
    /// Held for as long as the driver names it by path.
    bundle: OwnedFd,
    runtime: Box<dyn Runtime>,
    pipes: Owner,
    /// For a process that works on it.
    pub driver: Driver,
    /// `None` until it is restored.
    made: RefCell<Option<oci::Container>>,
    pending: RefCell<Option<Pending>>,
    held: Held,
    /// Without a pid namespace of its own its processes outlive the first one unless somebody kills them.
    own_pids: bool,
    init: Rc<Process>,
    log: Option<Rc<RefCell<Writer>>>,
    execs: RefCell<BTreeMap<Id, Exec>>,
    paused: Cell<bool>,
    /// What is known of its memory.
    pub oom: Oom,
}

/// How far a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Created,
    Running,
    Paused,
    Stopped,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
        }
    }
}

struct Exec {
    process: Rc<Process>,
    /// Until it is started.
    pending: Option<(ProcessSpec, Prepared)>,
}

impl Container {
    /// Makes one whose life records go into `dir`. On an error nothing is left of it.
    pub fn create(dir: Rc<OwnedFd>, request: Create) -> Result<Rc<Container>> {
        let Create {
            namespace,
            id,
            bundle,
            spec,
            rootfs,
            runtime,
            driver,
            source,
            stdio,
            terminal,
            pipes,
            filter,
            log,
        } = request;
        let log = log.map(|writer| Rc::new(RefCell::new(writer)));
        let prepared = prepare(stdio, terminal, log.is_some(), pipes)?;
        let init = Process::new(dir.clone(), life::file_name(&id, ""), "", "", terminal)?;
        let own_pids = spec
            .linux()
            .as_ref()
            .and_then(|l| l.namespaces().as_ref())
            .is_some_and(|all| all.iter().any(|n| n.typ() == LinuxNamespaceType::Pid && n.path().is_none()));
        let container = Rc::new(Container {
            namespace,
            id,
            dir,
            bundle,
            runtime,
            pipes,
            driver,
            made: RefCell::new(None),
            pending: RefCell::new(None),
            held: Held::default(),
            own_pids,
            init,
            log,
            execs: RefCell::default(),
            paused: Cell::new(false),
            oom: Oom::default(),
        });
        if let Some(source) = source {
            *container.pending.borrow_mut() = Some(Pending { spec, rootfs, source, filter, prepared });
            return Ok(container);
        }
        container.make(&spec, &rootfs, None, &filter, prepared).inspect_err(|_| container.init.forget())?;
        Ok(container)
    }

    /// Makes it, or restores it from a checkpoint. On an error nothing is left of it.
    fn make(
        &self,
        spec: &Spec,
        rootfs: &[Mount],
        source: Option<&Source>,
        filter: &[libc::sock_filter],
        prepared: Prepared,
    ) -> Result<()> {
        let path = path_of(&self.bundle, &self.id)?;
        let request = oci::CreateRequest {
            id: &self.id,
            namespace: &self.namespace,
            bundle: self.bundle.as_fd(),
            bundle_path: &path,
            spec,
            rootfs,
            stdio: borrow(&prepared.given),
            filter: (!filter.is_empty()).then_some(filter),
        };
        let made = match source {
            None => self.runtime.create(&request)?,
            Some(source) => self.runtime.restore(
                &request,
                &oci::RestoreFrom {
                    dir: &path_of(&source.dir, &self.id)?,
                    criu: &source.criu,
                    tcp_established: source.tcp_established,
                    unix_sockets: source.unix_sockets,
                },
            )?,
        };
        let Prepared { given, relays, feed } = prepared;
        // The process's ends are its own now: kept open here they would hide its end of file from us.
        drop(given);
        if let Err(error) = self.init.made(&made.init, relays, feed, self.log.as_ref()) {
            let _ = self.runtime.delete(&made);
            return Err(error);
        }
        *self.made.borrow_mut() = Some(made);
        Ok(())
    }

    /// What the driver made of it.
    fn made(&self) -> Result<Ref<'_, oci::Container>> {
        Ref::filter_map(self.made.borrow(), Option::as_ref).map_err(|_| {
            let why = "is not restored from its checkpoint yet: start it first";
            Error::failed_precondition("container", &self.id, why)
        })
    }

    fn restore(self: &Rc<Self>, pending: Pending) -> Result<Life> {
        let Pending { spec, rootfs, source, filter, prepared } = pending;
        self.init.started()?;
        match self.make(&spec, &rootfs, Some(&source), &filter, prepared) {
            Ok(()) => {
                self.oom.start(self);
                Ok(self.init.life())
            }
            Err(error) => {
                self.init.exited(End::Code(126), "could not be restored");
                Err(error)
            }
        }
    }

    /// Freezes it for a checkpoint. Whether it is paused is another matter: that is somebody's wish.
    pub fn hold(&self) -> Result<()> {
        self.only_in("", &[State::Running, State::Paused], "there is nothing to checkpoint")?;
        self.held.take(&self.id)?;
        if self.paused.get() {
            return Ok(());
        }
        let frozen = self.made().and_then(|made| self.runtime.pause(&made));
        frozen.inspect_err(|_| self.held.give_back())
    }

    /// What [`Container::hold`] did is over.
    pub fn release(&self) -> Result<()> {
        self.held.give_back();
        if self.paused.get() || !self.init.alive() {
            return Ok(());
        }
        self.runtime.resume(&*self.made()?)
    }

    /// The bundle's path.
    pub fn bundle(&self) -> Result<PathBuf> {
        path_of(&self.bundle, &self.id)
    }

    /// Its cgroup, and its first process.
    pub fn place(&self) -> Result<(String, i32)> {
        let made = self.made()?;
        Ok((made.cgroup.clone(), made.init.pid))
    }

    /// The name of its driver.
    pub fn driver(&self) -> &'static str {
        self.runtime.name()
    }

    /// A process by its id; the empty one is the first process.
    pub fn process(&self, id: &str) -> Result<Rc<Process>> {
        if id.is_empty() {
            return Ok(self.init.clone());
        }
        let found = self.execs.borrow().get(id).map(|exec| exec.process.clone());
        found.ok_or_else(|| Error::not_found("process", id, "is not one of this container's"))
    }

    fn state(&self, process: &Process) -> State {
        let life = process.life();
        match (life.exited, life.started) {
            (Timestamp(0), Timestamp(0)) => State::Created,
            (Timestamp(0), _) if self.paused.get() => State::Paused,
            (Timestamp(0), _) => State::Running,
            _ => State::Stopped,
        }
    }

    /// A process that is in one of these states.
    fn only_in(&self, id: &str, states: &[State], otherwise: &str) -> Result<Rc<Process>> {
        let process = self.process(id)?;
        let state = self.state(&process);
        if states.contains(&state) {
            return Ok(process);
        }
        let (kind, id) = if id.is_empty() { ("task", self.id.as_str()) } else { ("process", id) };
        Err(Error::failed_precondition(kind, id, format!("is {}: {otherwise}", state.as_str())))
    }

    /// Starts a process that was made.
    pub fn start(self: &Rc<Self>, id: &str) -> Result<Life> {
        let process = self.only_in(id, &[State::Created], "it can't be started again")?;
        if id.is_empty() {
            if let Some(pending) = self.pending.take() {
                return self.restore(pending);
            }
            // `started` first: a process that runs must not look as if it hadn't been started.
            process.started()?;
            if let Some(made) = self.made.borrow_mut().as_mut() {
                self.runtime.start(made)?;
            }
            self.oom.start(self);
            return Ok(process.life());
        }
        // In a frozen cgroup it would stand still before it has told us that it is there.
        self.only_in("", &[State::Running], "nothing can be started in it")?;
        let pending = self.execs.borrow_mut().get_mut(id).and_then(|exec| exec.pending.take());
        let (spec, prepared) =
            pending.ok_or_else(|| Error::failed_precondition("process", id, "could not be started before"))?;
        let exec_id = Id::new(id)?;
        let request = oci::ExecRequest { id: &exec_id, process: &spec, stdio: borrow(&prepared.given) };
        let run = self.made().and_then(|made| self.runtime.exec(&made, &request));
        let Prepared { given, relays, feed } = prepared;
        drop(given);
        match run {
            Ok(made) => {
                let known = process.made(&made, relays, feed, None).and_then(|()| process.started());
                // Nobody would know that it runs.
                known.inspect_err(|_| drop(process.kill(libc::SIGKILL)))?;
                Ok(process.life())
            }
            Err(error) => {
                // Those who wait for it are told, as a shell would: 127 not found, 126 not executable.
                let status = if error.code == cofferdam_types::Code::NotFound { 127 } else { 126 };
                process.exited(End::Code(status), "could not be started");
                Err(error)
            }
        }
    }

    /// Makes another process, to be started later.
    pub fn exec(&self, id: Id, spec: ProcessSpec, stdio: Wishes, terminal: bool, grant: &str) -> Result<Life> {
        self.only_in("", &ALIVE, "nothing can be run in it")?;
        if self.execs.borrow().contains_key(&id) {
            return Err(Error::already_exists("process", &id, "is there already: choose another id"));
        }
        let prepared = prepare(stdio, terminal, false, self.pipes)?;
        let process = Process::new(self.dir.clone(), life::file_name(&self.id, &id), &id, grant, terminal)?;
        let life = process.life();
        self.execs.borrow_mut().insert(id, Exec { process, pending: Some((spec, prepared)) });
        Ok(life)
    }

    /// Sends a signal to one process, or to all.
    pub fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let process = self.there(id)?;
        drop(self.made()?);
        if !all {
            return process.kill(signal);
        }
        if signal == libc::SIGKILL {
            return self.kill_all();
        }
        for pid in self.pids()? {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::try_from(signal).ok(),
            );
        }
        Ok(())
    }

    fn kill_all(&self) -> Result<()> {
        self.init.doom();
        self.execs.borrow().values().for_each(|exec| exec.process.doom());
        self.runtime.kill_all(&*self.made()?)
    }

    /// Changes limits.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        drop(self.made()?);
        self.only_in("", &ALIVE, "it has no limits to change")?;
        self.runtime.update(&*self.made()?, resources)
    }

    /// The news that it ran out of memory.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        self.made()?.watch_oom()
    }

    /// Whether it stands still for want of memory.
    pub fn under_oom(&self) -> bool {
        self.made().and_then(|made| made.under_oom()).unwrap_or_default()
    }

    /// Takes in whether it ran out of memory.
    pub fn look_for_ooms(&self) -> bool {
        let kills = self.made().and_then(|made| made.oom_kills()).unwrap_or_default();
        let new = self.oom.count(kills);
        if let Some(ooms) = new {
            self.init.out_of_memory(ooms);
        }
        new.is_some()
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

    /// Every process's pid, on the host.
    pub fn pids(&self) -> Result<Vec<i32>> {
        drop(self.made()?);
        self.only_in("", &ALIVE, "it has no processes")?;
        self.runtime.pids(&*self.made()?)
    }

    /// Freezes, or lets go on.
    pub fn pause(&self, pause: bool) -> Result<()> {
        if pause {
            self.only_in("", &[State::Running], "only what runs can be paused")?;
        } else {
            self.only_in("", &[State::Paused], "only what is paused can be resumed")?;
        }
        self.held.free(&self.id)?;
        let made = self.made()?;
        if pause {
            self.runtime.pause(&made)?
        } else {
            self.runtime.resume(&made)?
        }
        self.paused.set(pause);
        Ok(())
    }

    /// Whether it is frozen.
    pub fn paused(&self) -> bool {
        self.paused.get()
    }

    /// How many bytes of output could not be kept.
    pub fn log_lost(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.borrow().lost())
    }

    /// A process that is there: an exec is only from its start on.
    fn there(&self, id: &str) -> Result<Rc<Process>> {
        let process = self.process(id)?;
        if !id.is_empty() && self.state(&process) == State::Created {
            return self.only_in(id, &[State::Running, State::Paused], "it is not there yet: start or delete it");
        }
        Ok(process)
    }

    /// Changes the size of a process's terminal.
    pub fn resize(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        self.there(id)?;
        self.only_in(id, &ALIVE, "its terminal is gone")?.resize(rows, columns)
    }

    /// A process that can be followed; of one that has ended there is nothing to be had but its end.
    pub fn attachable(&self, id: &str) -> Result<Rc<Process>> {
        self.there(id)
    }

    /// A process whose standard input can be written to.
    pub fn fed(&self, id: &str) -> Result<Rc<Process>> {
        self.only_in(id, &ALIVE, "it has no standard input to write to")
    }

    /// Every process's life, the first one's first.
    pub fn lives(&self) -> Vec<Life> {
        let execs = self.execs.borrow();
        std::iter::once(self.init.life()).chain(execs.values().map(|exec| exec.process.life())).collect()
    }

    /// Forgets an exec that has ended, or was never started.
    pub fn delete_exec(&self, id: &str) -> Result<Life> {
        let process = self.process(id)?;
        if id.is_empty() {
            return Err(Error::invalid("process", id, "is the container's first: delete the container"));
        }
        self.only_in(id, &[State::Created, State::Stopped], "kill it first")?;
        self.execs.borrow_mut().remove(id);
        process.forget();
        Ok(process.life())
    }

    /// Kills what runs and removes all that the driver made. May be repeated.
    pub async fn delete(&self) -> Result<Life> {
        if self.init.alive() {
            if self.paused.replace(false) {
                let _ = self.made().and_then(|made| self.runtime.resume(&made));
            }
            self.kill_all()?;
            let _ = self.init.kill(libc::SIGKILL);
            tokio::time::timeout(KILL, self.init.wait()).await.map_err(|_| {
                Error::deadline_exceeded("container", &self.id, "did not die within 10 s of SIGKILL: is its disk hung?")
            })?;
        }
        self.oom.stop();
        match self.made.borrow().as_ref() {
            Some(made) => self.runtime.delete(made)?,
            // Whoever waits for its end would wait for ever.
            None if self.pending.take().is_some() => self.init.exited(End::Code(0), "was never started"),
            None => {}
        }
        for exec in self.execs.borrow().values() {
            exec.process.forget();
        }
        self.init.seal();
        Ok(self.init.life())
    }

    /// Unmounts the root file system of one that is deleted.
    pub fn release_root(&self) {
        if let Some(made) = &*self.made.borrow() {
            made.release_root();
        }
    }

    /// The process of its that is this child of ours.
    pub fn child(&self, pid: i32) -> Option<Rc<Process>> {
        if self.init.is(pid) {
            return Some(self.init.clone());
        }
        self.execs.borrow().values().map(|exec| &exec.process).find(|process| process.is(pid)).cloned()
    }

    /// One of its processes has ended, and was taken in.
    pub fn exited(self: &Rc<Self>, process: &Rc<Process>, end: End) {
        let reason = self.reason(process, end);
        let first = Rc::ptr_eq(process, &self.init);
        if first && !self.own_pids {
            let _ = self.kill_all();
        }
        process.exited(end, reason);
        if first {
            let container = self.clone();
            tokio::task::spawn_local(async move {
                container.init.wait().await;
                // Behind the answers to those who wait as well.
                tokio::task::yield_now().await;
                if let Some(made) = &*container.made.borrow() {
                    made.release_mounts();
                }
            });
        }
    }
}

/// Where a directory is.
fn path_of(dir: &OwnedFd, id: &str) -> Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))
        .map_err(|e| Error::io("bundle", id, "has no path", &e))
}

fn borrow(given: &Given) -> oci::Stdio<'_> {
    match given {
        Given::Fds([stdin, stdout, stderr]) => {
            oci::Stdio::Fds { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() }
        }
        Given::Terminal((rows, cols)) => oci::Stdio::Terminal { rows: *rows, cols: *cols },
    }
}
