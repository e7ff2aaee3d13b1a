//! `coffer-shim`: the parent of a container's first process.
//!
//! It outlives the daemon: it holds the container's terminal and pipes, reaps what the container leaves, and keeps the
//! record of each process's life in its own directory. It is started with that directory as its working directory and
//! its listening socket as descriptor 0, and it accepts nobody but its own uid. One thread does all of it but for calls of
//! drivers that may take long ([`calls`]); a child that the native driver clones takes no lock that another may hold.

mod calls;
mod checkpoint;
mod container;
mod dump;
mod host;
mod oom;
mod output;
mod process;
mod registry;
mod service;
mod sink;
mod stdio;
mod surroundings;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Display,
    io::Write as _,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::UnixListener as StdListener,
    },
    process::ExitCode,
    rc::Rc,
    time::Duration,
};

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use cofferdam_oci::native::Native;
use cofferdam_sys::process as sys;
use cofferdam_types::{Error, Result, Timestamp};
use cofferdam_wire::{connect, shim_capnp};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use crate::{
    calls::Calls,
    checkpoint::Helper,
    container::Container,
    process::{End, take},
    registry::Registry,
    service::Service,
};

/// The daemon sends specs and environments; more than this is not one.
const MESSAGE: usize = 16 << 20;
/// A shim whose daemon died before it made a container waits this long for another one.
const GRACE: Duration = Duration::from_secs(10);

/// What the shim's tasks share.
pub struct Shared {
    containers: Registry,
    calls: Rc<Calls>,
    connections: Cell<usize>,
    /// What containers start with, see [`surroundings::protect`].
    oom_score: Option<i32>,
    /// What the next container will need.
    ahead: RefCell<Option<Native>>,
    /// Containers that are deleted, and whose output is still on its way.
    leaving: Cell<usize>,
    /// Processes of ours that work on a container.
    helpers: RefCell<BTreeMap<i32, Helper>>,
    /// Told when a connection or a container went: there may be nothing left to do.
    idle: Notify,
    started: Timestamp,
    /// Whether it has a mount namespace of its own.
    own_mounts: Cell<bool>,
}

impl Shared {
    /// A container is deleted. Who follows its output has it yet to come: the shim stays until he has it, is gone, or takes
    /// nothing for as long as `drain`.
    fn let_go(self: &Rc<Self>, container: &Rc<Container>, drain: Duration) {
        self.containers.remove(container);
        if container.is_delivered() {
            return;
        }
        container.drain(drain);
        self.leaving.set(self.leaving.get() + 1);
        let (shared, container) = (self.clone(), container.clone());
        tokio::task::spawn_local(async move {
            container.delivered().await;
            shared.leaving.set(shared.leaving.get() - 1);
            shared.idle.notify_one();
        });
    }

    /// Takes in a child that has ended, if one has. While calls are at work, only one that is known: the others may be
    /// theirs.
    fn take_one(&self) -> std::io::Result<bool> {
        if !self.calls.any() {
            // An error is that there is no child, ended or not.
            return sys::ended_child().ok().flatten().map_or(Ok(false), |pid| self.take_in(pid).map(|()| true));
        }
        let ended = |helper: &Helper| !sys::is_alive(&helper.pidfd);
        let helper = self.helpers.borrow().iter().find_map(|(pid, helper)| ended(helper).then_some(*pid));
        if let Some(pid) = helper {
            return self.take_in(pid).map(|()| true);
        }
        match self.containers.ended() {
            Some((container, process)) => container.exited(&process, process.reap()?),
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Takes in a child that has ended: what is ours by its pidfd, so that no other's status is taken for its; anything
    /// else is an orphan that fell to us.
    fn take_in(&self, pid: i32) -> std::io::Result<()> {
        // Better than to come upon it for ever.
        let by_pid = |_| sys::reap(pid).map(End::from);
        let helper = self.helpers.borrow_mut().remove(&pid);
        if let Some(Helper { pidfd, tell }) = helper {
            let end = take(&pidfd).or_else(by_pid)?;
            // Maybe nobody waits for it any more.
            let _ = tell.send(end);
            return Ok(());
        }
        match self.containers.child(pid) {
            Some((container, child)) => container.exited(&child, child.reap().or_else(by_pid)?),
            None => drop(sys::reap(pid)?),
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == checkpoint::ARGUMENT) {
        return checkpoint::run();
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(error);
            ExitCode::FAILURE
        }
    }
}

/// Says something in the shim's log. A disk that takes no line of it is no reason to end, and containers with us.
fn complain(what: impl Display) {
    let _ = writeln!(std::io::stderr(), "coffer-shim: {what}");
}

/// The soft limit of descriptors that programs expect. The daemon has raised its own, for its connections; a container
/// whose spec says nothing gets ours.
const DESCRIPTORS: u64 = 1024;

fn run() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft > DESCRIPTORS
    {
        // To lower it is everybody's right.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, hard);
    }
    let os = |what: &'static str| move |e: std::io::Error| Error::io("shim", "", what, &e);
    // SAFETY: descriptor 0 is ours by the contract of the start (see above), and nothing has taken it yet.
    let listener = StdListener::from(unsafe { OwnedFd::from_raw_fd(0) });
    let listener: StdListener = {
        // The number 0 must stay taken, or the next descriptor would become somebody's standard input.
        let moved = listener.try_clone().map_err(os("can't move its socket"))?;
        let null = std::fs::File::open("/dev/null").map_err(os("can't open /dev/null"))?;
        nix::unistd::dup2_stdin(&null).map_err(|e| os("can't set its standard input")(e.into()))?;
        std::mem::forget(listener);
        moved
    };
    // SAFETY: closes what was inherited by accident; nothing of ours but the listener lies above 2, and it is spared.
    unsafe {
        use std::os::fd::AsRawFd as _;
        let keep = listener.as_raw_fd() as libc::c_uint;
        if keep > 3 {
            libc::close_range(3, keep - 1, 0);
        }
        libc::close_range(keep + 1, libc::c_uint::MAX, 0);
    }
    cofferdam_sys::memory::one_heap();
    // It is started through a descriptor, after which the kernel would name it.
    let _ = nix::sys::prctl::set_name(c"coffer-shim");
    let oom_score = surroundings::protect();
    // The daemon's is 077; what drivers make of a container (mount points, cgroups) is for its users. What is ours has
    // explicit modes.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let _ = nix::unistd::setsid();
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| os("can't become a subreaper")(e.into()))?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(os("has no runtime"))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        listener.set_nonblocking(true).map_err(os("can't listen"))?;
        let listener = UnixListener::from_std(listener).map_err(os("can't listen"))?;
        let children = signal(SignalKind::child()).map_err(os("can't watch its children"))?;
        let here = std::fs::File::open(".").map_err(os("can't open its directory"))?;
        let shared = Rc::new(Shared {
            containers: Registry::new(here.into()),
            calls: Rc::default(),
            connections: Cell::new(0),
            leaving: Cell::new(0),
            oom_score,
            ahead: RefCell::default(),
            idle: Notify::new(),
            started: Timestamp::now(),
            own_mounts: Cell::new(false),
            helpers: RefCell::default(),
        });
        tokio::task::spawn_local(reap(children, shared.clone()));
        tokio::task::spawn_local(accept(listener, shared.clone()));
        until_idle(&shared).await;
        Ok(())
    })
}

/// Returns when the shim holds no container and nobody talks to it.
async fn until_idle(shared: &Shared) {
    let nothing = || shared.containers.is_empty() && shared.connections.get() == 0 && shared.leaving.get() == 0;
    loop {
        // A container that was deleted ends the shim with its connection; one that was never made gets the grace.
        if nothing() && shared.containers.had_any() {
            return;
        }
        if tokio::time::timeout(GRACE, shared.idle.notified()).await.is_err() && nothing() {
            return;
        }
    }
}

async fn accept(listener: UnixListener, shared: Rc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, say: somebody has to go first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // S2, S3: checked on every accept, whatever the directory's mode says.
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == nix::unistd::geteuid().as_raw() => {
                tokio::task::spawn_local(serve(stream, shared.clone()));
            }
            _ => drop(stream),
        }
    }
}

async fn serve(stream: UnixStream, shared: Rc<Shared>) {
    shared.connections.set(shared.connections.get() + 1);
    let (network, fds) = connect::network(stream, Side::Server, MESSAGE);
    let shim: shim_capnp::shim::Client = capnp_rpc::new_client(Service::new(shared.clone(), fds));
    let _ = RpcSystem::new(Box::new(network), Some(shim.client)).await;
    shared.connections.set(shared.connections.get() - 1);
    shared.idle.notify_one();
}

/// Takes in every child that ended: the containers' processes and the orphans that fall to the subreaper.
///
/// What a driver waits for itself is never taken from it, and a process is registered before its end can be seen: a call is
/// over within one poll of a task, or it is among those at work.
async fn reap(mut children: tokio::signal::unix::Signal, shared: Rc<Shared>) {
    loop {
        if !matches!(shared.take_one(), Ok(true)) {
            tokio::select! {
                _ = children.recv() => {}
                () = shared.calls.over.notified() => {}
            }
        }
    }
}
