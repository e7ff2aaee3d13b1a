//! A container, and what can be done with it. Each change of it has its turn; signals, streams and questions don't wait.

mod ending;
mod exec;
mod granted;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use cofferdam_log::Writer;
use cofferdam_oci::{self as oci, Runtime};
use cofferdam_sys::oom::OomWatch;
use cofferdam_types::{Error, Id, Mount, Namespace, Result, Timestamp};
use cofferdam_wire::{convert::Life, life};
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Process as ProcessSpec, Spec};

use self::granted::Granted;
use crate::{
    calls::{Busy, Calls, Patience},
    checkpoint::{Driver, Held},
    oom::Oom,
    process::{End, Process},
    stdio::{Given, Owner, Prepared, Through, Wishes, prepare},
};

/// All but the end.
const ALIVE: [State; 3] = [State::Created, State::Running, State::Paused];

/// How long a container may take to be made: somewhat less than a daemon waits for it. Every driver has deadlines of its own for
/// what it waits for, so this is for what hangs in the kernel: a file system that doesn't answer, say. Others of the group are
/// not to wait for that, nor the shim to live for it.
const MAKE: Duration = Duration::from_secs(50);

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
    pub runtime: Arc<dyn Runtime>,
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
    /// Through which grant it is made; empty: none.
    pub grant: String,
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
    bundle: Arc<OwnedFd>,
    runtime: Arc<dyn Runtime>,
    /// Whether making, starting and removing it may take long.
    slow: bool,
    calls: Rc<Calls>,
    patience: Patience,
    turn: tokio::sync::Mutex<()>,
    /// Held while it is being frozen, or let go on.
    freezing: tokio::sync::Mutex<()>,
    pipes: Owner,
    /// For a process that works on it.
    pub driver: Driver,
    /// `None` until it is restored.
    made: RefCell<Option<Arc<oci::Container>>>,
    pending: RefCell<Option<Pending>>,
    held: Held,
    /// Without a pid namespace of its own its processes outlive the first one unless somebody kills them.
    own_pids: bool,
    init: Rc<Process>,
    log: Option<Rc<RefCell<Writer>>>,
    execs: RefCell<BTreeMap<Id, Exec>>,
    granted: Granted,
    /// Deleted ones whose output is still on its way, or whose end the daemon has yet to write down.
    forgotten: RefCell<Vec<Rc<Process>>>,
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
    pub async fn create(dir: Rc<OwnedFd>, calls: Rc<Calls>, request: Create) -> Result<Rc<Container>> {
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
            grant,
        } = request;
        let log = log.map(|writer| Rc::new(RefCell::new(writer)));
        let through = match (grant.is_empty(), log.is_some()) {
            (false, _) => Through::All,
            (true, true) => Through::Outputs,
            (true, false) => Through::Nothing,
        };
        let mut prepared = prepare(stdio, terminal, through, pipes)?;
        let init = Process::new(dir.clone(), life::file_name(&id, ""), "", &grant, terminal)?;
        init.gave(prepared.relays.iter().filter_map(|relay| relay.sink.clone()));
        init.feed(&mut prepared.feed)?;
        let own_pids = spec
            .linux()
            .as_ref()
            .and_then(|l| l.namespaces().as_ref())
            .is_some_and(|all| all.iter().any(|n| n.typ() == LinuxNamespaceType::Pid && n.path().is_none()));
        let container = Rc::new(Container {
            namespace,
            id,
            dir,
            bundle: Arc::new(bundle),
            slow: runtime.is_slow(&spec),
            runtime,
            calls,
            patience: Patience::default(),
            turn: tokio::sync::Mutex::default(),
            freezing: tokio::sync::Mutex::default(),
            pipes,
            driver,
            made: RefCell::new(None),
            pending: RefCell::new(None),
            held: Held::default(),
            own_pids,
            init,
            log,
            execs: RefCell::default(),
            granted: Granted::default(),
            forgotten: RefCell::default(),
            paused: Cell::new(false),
            oom: Oom::default(),
        });
        if let Some(source) = source {
            *container.pending.borrow_mut() = Some(Pending { spec, rootfs, source, filter, prepared });
            return Ok(container);
        }
        let made = container.make(spec, rootfs, None, filter, prepared).await;
        made.inspect_err(|_| container.init.forget())?;
        Ok(container)
    }

    /// Makes it, or restores it from a checkpoint. On an error nothing is left of it.
    async fn make(
        &self,
        spec: Spec,
        rootfs: Vec<Mount>,
        source: Option<Source>,
        filter: Vec<libc::sock_filter>,
        prepared: Prepared,
    ) -> Result<()> {
        let Prepared { given, relays, feed } = prepared;
        let (id, namespace) = (self.id.clone(), self.namespace.clone());
        let (bundle, runtime) = (self.bundle.clone(), self.runtime.clone());
        let slow = self.slow || source.is_some();
        let limit = if source.is_some() { Duration::MAX } else { MAKE };
        // The process's ends fall with it: kept open here they would hide its end of file from us.
        let work = move || {
            let path = path_of(&bundle, &id)?;
            let request = oci::CreateRequest {
                id: &id,
                namespace: &namespace,
                bundle: bundle.as_fd(),
                bundle_path: &path,
                spec: &spec,
                rootfs: &rootfs,
                stdio: borrow(&given),
                filter: (!filter.is_empty()).then_some(&*filter),
            };
            let Some(source) = source else { return runtime.create(&request) };
            let from = oci::RestoreFrom {
                dir: &path_of(&source.dir, &id)?,
                criu: &source.criu,
                tcp_established: source.tcp_established,
                unix_sockets: source.unix_sockets,
            };
            runtime.restore(&request, &from)
        };
        let runtime = self.runtime.clone();
        let late = move |made| drop(runtime.delete(&made));
        let (made, _busy) = self.calls.make_within(limit, slow, &self.patience, work, late).await?;
        let made = Arc::new(made);
        if let Err(error) = self.init.made(&made.init, relays, feed, self.log.as_ref()) {
            let _ = self.act(slow, move |runtime| runtime.delete(&made)).await;
            return Err(error);
        }
        *self.made.borrow_mut() = Some(made);
        Ok(())
    }

    /// Has the driver do something.
    async fn act<T: Send + 'static>(
        &self,
        slow: bool,
        what: impl FnOnce(&dyn Runtime) -> Result<T> + Send + 'static,
    ) -> Result<(T, Option<Busy>)> {
        let runtime = self.runtime.clone();
        self.calls.make(slow, &self.patience, move || what(&*runtime)).await
    }

    /// What the driver made of it.
    fn made(&self) -> Result<Arc<oci::Container>> {
        self.made.borrow().clone().ok_or_else(|| {
            let state = self.state(&self.init).as_str();
            let why =
                format!("is {state}, and not restored from its checkpoint: there is nothing of it before its start");
            Error::failed_precondition("task", &self.id, why)
        })
    }

    async fn restore(self: &Rc<Self>, pending: Pending) -> Result<Life> {
        let Pending { spec, rootfs, source, filter, prepared } = pending;
        self.init.started()?;
        match self.make(spec, rootfs, Some(source), filter, prepared).await {
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
    pub async fn hold(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.only_in("", &[State::Running, State::Paused], "there is nothing to checkpoint")?;
        self.held.take(&self.id)?;
        if self.paused.get() {
            return Ok(());
        }
        let made = self.made().inspect_err(|_| self.held.give_back())?;
        let frozen = self.act(true, move |runtime| runtime.pause(&made)).await;
        frozen.inspect_err(|_| self.held.give_back())?;
        self.doomed_die().await;
        Ok(())
    }

    /// What [`Container::hold`] did is over.
    pub async fn release(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.held.give_back();
        if self.paused.get() || !self.init.alive() {
            return Ok(());
        }
        let made = self.made()?;
        self.act(true, move |runtime| runtime.resume(&made)).await.map(drop)
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
    pub async fn start(self: &Rc<Self>, id: &str) -> Result<Life> {
        let _turn = self.turn.lock().await;
        let life = self.process(id)?.life();
        let otherwise = if life.started == Timestamp(0) && life.exited != Timestamp(0) {
            format!("it ended with status {} before it was started: delete it, and make another", life.status)
        } else {
            "it can't be started again".to_owned()
        };
        let process = self.only_in(id, &[State::Created], &otherwise)?;
        if !id.is_empty() {
            return self.start_exec(id, &process).await;
        }
        let pending = self.pending.take();
        if let Some(pending) = pending {
            return self.restore(pending).await;
        }
        // `started` first: a process that runs must not look as if it hadn't been started.
        process.started()?;
        let made = self.made()?;
        self.act(self.slow, move |runtime| runtime.start(&made)).await?;
        self.oom.start(self);
        Ok(process.life())
    }

    /// Changes limits.
    pub async fn update(&self, resources: LinuxResources) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.only_in("", &ALIVE, "it has no limits to change")?;
        let made = self.made()?;
        // The kernel may have to take memory away first.
        self.act(true, move |runtime| runtime.update(&made, &resources)).await.map(drop)
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

    /// Every process's pid, on the host.
    pub async fn pids(&self) -> Result<Vec<i32>> {
        self.only_in("", &ALIVE, "it has no processes")?;
        let made = self.made()?;
        Ok(self.act(self.runtime.is_foreign(), move |runtime| runtime.pids(&made)).await?.0)
    }

    /// Freezes, or lets go on.
    pub async fn pause(&self, pause: bool) -> Result<()> {
        let _turn = self.turn.lock().await;
        let _freezing = self.freezing.lock().await;
        if pause {
            self.only_in("", &[State::Running], "only what runs can be paused")?;
        } else {
            self.only_in("", &[State::Paused], "only what is paused can be resumed")?;
        }
        self.held.free(&self.id)?;
        let made = self.made()?;
        // What stands still in the kernel is waited for.
        let act = self.act(true, move |runtime| if pause { runtime.pause(&made) } else { runtime.resume(&made) });
        act.await?;
        self.paused.set(pause);
        if pause {
            self.doomed_die().await;
        }
        Ok(())
    }

    /// Whether it stands still, for whichever reason.
    fn is_frozen(&self) -> bool {
        self.paused.get() || self.held.is_taken()
    }

    /// Whether it is frozen, as far as that is known at the moment.
    pub fn paused(&self) -> bool {
        self.paused.get()
    }

    /// Whether it is frozen, once that is known: who asks since a pause didn't answer him wants to know what came of it.
    pub async fn settled(&self) -> bool {
        let _freezing = self.freezing.lock().await;
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
        let process = self.only_in(id, &ALIVE, "its terminal is gone")?;
        if process.waits_for_terminal() {
            drop(self.made()?);
        }
        process.resize(rows, columns)
    }

    /// A process that can be followed; of one that has ended there is nothing to be had but its end.
    pub fn attachable(&self, id: &str) -> Result<Rc<Process>> {
        let process = self.there(id)?;
        if process.life().exited == Timestamp(0) {
            drop(self.made()?);
        }
        Ok(process)
    }

    /// A process whose standard input can be written to.
    pub fn fed(&self, id: &str) -> Result<Rc<Process>> {
        let process = self.only_in(id, &ALIVE, "it has no standard input to write to")?;
        if process.waits_for_terminal() {
            return self.only_in(id, &[State::Running, State::Paused], "its terminal is not there yet: start it");
        }
        Ok(process)
    }

    /// Every process's life, the first one's first, with those that are deleted and kept.
    pub fn lives(&self) -> Vec<Life> {
        let (execs, forgotten) = (self.execs.borrow(), self.forgotten.borrow());
        let deleted = forgotten.iter().map(|process| process.life()).filter(|life| life.deleted);
        std::iter::once(self.init.life()).chain(execs.values().map(|exec| exec.process.life())).chain(deleted).collect()
    }

    /// A process of its that has ended and can be taken in.
    pub fn ended(&self) -> Option<Rc<Process>> {
        let execs = self.execs.borrow();
        let mut all = std::iter::once(&self.init).chain(execs.values().map(|exec| &exec.process));
        all.find(|process| process.has_ended()).cloned()
    }

    /// The process of its that is this child of ours.
    pub fn child(&self, pid: i32) -> Option<Rc<Process>> {
        if self.init.is(pid) {
            return Some(self.init.clone());
        }
        self.execs.borrow().values().map(|exec| &exec.process).find(|process| process.is(pid)).cloned()
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
