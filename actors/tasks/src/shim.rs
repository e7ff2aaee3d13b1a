//! Starting shims and talking to them.

use std::{
    fs::File,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, MetadataExt as _},
            net::UnixListener,
            net::UnixStream as StdStream,
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use cofferdam_oci::runc;
use cofferdam_sys::{
    fd::open_path,
    mount::{clone_tree, set_attributes},
    process::{ended_within, pidfd_open, pidfd_send_signal},
};
use cofferdam_types::{Code, Error, Result};
use cofferdam_wire::{SHIM_VERSION, connect, error, fdstream::Fds, shim_capnp::shim};
use futures::{FutureExt as _, future::Shared};
use nix::errno::Errno;
use tokio::net::UnixStream;

use crate::{
    handle::Deps,
    layout::{Layout, through},
};

const SOCKET: &str = "shim.sock";
/// How long a shim may take to die of SIGKILL.
const DEATH: Duration = Duration::from_secs(5);
/// Answers of a shim are small.
const MESSAGE: usize = 16 << 20;

/// A connection to a shim.
#[derive(Clone)]
pub(crate) struct Connection {
    pub shim: shim::Client,
    pub fds: Fds,
    pub close: Close,
    /// Done when the connection has ended.
    pub ended: Shared<futures::future::LocalBoxFuture<'static, ()>>,
}

/// Keeps a connection open: it is closed when the last clone falls. A shim without containers ends with its connection,
/// and capnp-rpc by itself keeps one for as long as the other side does.
#[derive(Clone)]
pub(crate) struct Close {
    _hold: Rc<tokio::sync::oneshot::Sender<()>>,
}

/// The program that shims run, held through a mount that can't be written: what a container reaches of it, by
/// `/proc/<pid>/exe` of a process that is just becoming its own or by a command that names it, is for reading (X2).
#[derive(Clone, Debug)]
pub struct Program(Arc<Held>);

#[derive(Debug)]
struct Held {
    path: PathBuf,
    read_only: OwnedFd,
}

impl Program {
    /// Takes the program at `path`, as it is now.
    pub fn open(path: &Path) -> Result<Program> {
        let fail = |e: std::io::Error| Error::io("shim", path.display(), "can't be held by a read-only mount", &e);
        let read_only = open_path(path).and_then(|file| clone_tree(file, false)).map_err(fail)?;
        set_attributes(&read_only, libc::MOUNT_ATTR_RDONLY, 0, 0, false).map_err(fail)?;
        Ok(Program(Arc::new(Held { path: path.to_owned(), read_only })))
    }
}

/// A new shim's id: 64 random bits.
pub(crate) fn new_id() -> Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| Error::internal("random", "", e.to_string()))?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

/// Makes a new shim's directory: before the commit that names it, or a crash between the two would look like a reboot.
pub(crate) fn place(dir: &Path, id: &str) -> Result<()> {
    let make = || std::fs::DirBuilder::new().mode(0o700).create(dir);
    let made = match (make(), dir.parent()) {
        // Somebody tidied up the state directory.
        (Err(e), Some(above)) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::DirBuilder::new().mode(0o700).recursive(true).create(above).and_then(|()| make())
        }
        (made, _) => made,
    };
    made.map_err(|e| Error::io("shim", id, "its directory can't be made", &e))
}

/// Starts a shim in its own directory, see [`place`]. Its socket listens before it runs: nobody has to wait for it. On an
/// error only the directory is left: a record that names it goes before it.
pub(crate) async fn spawn(dir: PathBuf, deps: &Deps, id: &str) -> Result<(u32, Connection)> {
    let (program, children, name) = (deps.shim.clone(), deps.children.clone(), id.to_owned());
    // A fork takes a millisecond in which others are served.
    let started = tokio::task::spawn_blocking(move || {
        let (child, held) = start(&dir, &program, &name)?;
        Ok((children.add(child), held))
    })
    .await;
    let started = started.unwrap_or_else(|e| Err(Error::internal("shim", id, e.to_string())));
    started.and_then(|(child, held)| match open(&held, id) {
        Ok(connection) => Ok((child, connection)),
        Err(error) => {
            // Its end, which it has met already if it is gone, is taken in by nobody else.
            deps.children.end(child);
            if !is_gone(&error) {
                return Err(error);
            }
            Err(Error::unavailable("shim", id, format!("ended before it was asked for anything: {}", error.message)))
        }
    })
}

fn start(dir: &Path, program: &Program, id: &str) -> Result<(Child, File)> {
    let os = |what: &str, e: &std::io::Error| Error::io("shim", id, what, e);
    let held = File::open(dir).map_err(|e| os("its directory can't be opened", &e))?;
    let listener = UnixListener::bind(through(&held, SOCKET)).map_err(|e| os("its socket can't be bound", &e))?;
    let log = File::options().create(true).append(true).open(dir.join("log"));
    let log = log
        .or_else(|_| File::options().write(true).open("/dev/null"))
        .map_err(|e| os("its log can't be opened", &e))?;
    let (path, place) = (program.0.path.clone(), dir.to_owned());
    let fds = [program.0.read_only.as_fd(), listener.as_fd(), log.as_fd()];
    let child = cofferdam_sys::spawn::spawn(fds, move |[program, listener, log]| {
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.arg0(path).env_clear().current_dir(place);
        command.stdin(listener.try_clone()?).stdout(Stdio::null()).stderr(log.try_clone()?);
        Ok(command)
    });
    let child = child.map_err(|e| os(&format!("{} can't be started", program.0.path.display()), &e))?;
    Ok((child, held))
}

/// Connects to the shim that has this directory; `not_found` if nobody listens, and only then: what the host is short of says
/// nothing of the shim.
pub(crate) fn find(layout: &Layout, id: &str) -> Result<Connection> {
    let held = File::open(layout.shim(id)).map_err(|e| Error::io("shim", id, "its directory can't be opened", &e))?;
    open(&held, id)
}

/// Without waiting: a shim that stands still takes no callers, and once its queue is full whoever waits for room in it would
/// stand still as well, with all that its thread serves.
fn connect(path: &Path) -> nix::Result<StdStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(StdStream::from(fd))
}

/// Whether an error of asking a shim says that it is no more. Its connection may break for what was sent over it, too.
pub(crate) fn is_gone(error: &Error) -> bool {
    error.code == Code::NotFound
}

/// Whether its connection broke.
pub(crate) fn broke(error: &Error) -> bool {
    error.code == Code::Unavailable && error.kind == "shim"
}

fn open(dir: &File, id: &str) -> Result<Connection> {
    let fail = |e: std::io::Error| Error::io("shim", id, "its socket can't be connected to", &e);
    let stream = connect(&through(dir, SOCKET)).map_err(|error| match error {
        Errno::ENOENT | Errno::ECONNREFUSED => {
            Error::not_found("shim", id, format!("nobody listens on its socket: {error}"))
        }
        Errno::EAGAIN => {
            let why = "has as many callers as wait for it at most: it doesn't take them, and stands still, as far as can be seen";
            Error::unavailable("socket", id, why)
        }
        other => fail(other.into()),
    })?;
    let (network, fds) = connect::network(UnixStream::from_std(stream).map_err(fail)?, Side::Client, MESSAGE);
    let mut system = RpcSystem::new(Box::new(network), None);
    let shim: shim::Client = system.bootstrap(Side::Server);
    let (tell, ended) = tokio::sync::oneshot::channel::<()>();
    let (hold, fell) = tokio::sync::oneshot::channel::<()>();
    tokio::task::spawn_local(async move {
        tokio::select! {
            _ = system => {}
            _ = fell => {}
        }
        drop(tell);
    });
    let ended = async move { drop(ended.await) }.boxed_local().shared();
    Ok(Connection { shim, fds, close: Close { _hold: Rc::new(hold) }, ended })
}

/// Says hello: a shim may be older than this daemon.
pub(crate) async fn hello(shim: &shim::Client) -> Result<()> {
    let mut request = shim.hello_request();
    request.get().set_version(SHIM_VERSION);
    request.get().init_features(0);
    let answer = request.send().promise.await.map_err(from_shim)?;
    spoken(answer.get().map_err(from_shim)?.get_version(), SHIM_VERSION)
}

/// Whether a daemon of version `ours` speaks with a shim of version `theirs`. All versions before its own it does: what
/// they lack is not asked of them. What a later one would take for granted it can't know.
fn spoken(theirs: u32, ours: u32) -> Result<()> {
    if (1..=ours).contains(&theirs) {
        return Ok(());
    }
    let why = format!(
        "speaks version {theirs} of the protocol, this daemon speaks {ours} and older: start the daemon of the release \
         that the container was started by, or remove the container by force"
    );
    Err(Error::unimplemented("shim", "", why))
}

/// What a call to a shim failed with. That its connection broke is no news of the client's own connection, which the
/// same error would be.
pub(crate) fn from_shim(error: capnp::Error) -> Error {
    let error = error::from_rpc(error);
    if error.code == Code::Unavailable && error.kind == "connection" {
        return Error::unavailable("shim", "", "ended before it answered");
    }
    error
}

/// Kills a shim that can't be asked, and waits until it is dead.
pub(crate) async fn kill(dir: PathBuf) -> Result<()> {
    let killed = tokio::task::spawn_blocking(move || kill_in(&dir)).await;
    killed.unwrap_or_else(|e| Err(Error::internal("shim", "", e.to_string())))
}

/// Waits until nothing is left of what a lost shim ran to make a container in this bundle: it dies with the shim, but a
/// moment later, and may be in the middle of making a cgroup. The runtime is known by its note: of one whose first thread
/// is dead already, and another is not, the working directory is to be seen no more. What it had started itself is found
/// by that.
pub(crate) fn outlive(bundle: &Path) -> std::io::Result<()> {
    if !runc::await_maker(bundle, DEATH)? {
        // Who is still there will not end for being waited for.
        return Err(std::io::ErrorKind::TimedOut.into());
    }
    outlive_in(bundle)
}

fn outlive_in(bundle: &Path) -> std::io::Result<()> {
    let meta = std::fs::metadata(bundle)?;
    let end = Instant::now() + DEATH;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(held) = pidfd_open(pid) else { continue };
        let cwd = std::fs::metadata(entry.path().join("cwd"));
        if cwd.is_ok_and(|cwd| (cwd.dev(), cwd.ino()) == (meta.dev(), meta.ino())) {
            ended_within(&held, end.saturating_duration_since(Instant::now()))?;
        }
    }
    Ok(())
}

/// Which process it is its working directory says, as does its environment, which is empty (see [`spawn`]): nobody else
/// who happens to be in that directory is taken for it, and no number is kept that could be another process's by now.
fn kill_in(dir: &Path) -> Result<()> {
    let os = |e: std::io::Error| Error::io("shim", dir.display(), "can't be killed", &e);
    // Without its directory there is none.
    let Ok(own) = std::fs::metadata(dir).map(|m| (m.dev(), m.ino())) else { return Ok(()) };
    let is_it = |process: &Path| {
        std::fs::metadata(process.join("cwd")).is_ok_and(|m| (m.dev(), m.ino()) == own)
            && std::fs::read(process.join("environ")).is_ok_and(|bytes| bytes.is_empty())
    };
    for entry in std::fs::read_dir("/proc").map_err(os)?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let process = entry.path();
        if !is_it(&process) {
            continue;
        }
        // Looked at again while it is held: before, the number may have passed to another process.
        let Ok(held) = pidfd_open(pid) else { continue };
        if !is_it(&process) {
            continue;
        }
        match pidfd_send_signal(&held, libc::SIGKILL) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(os(e)),
            _ => {}
        }
        if !ended_within(&held, DEATH).map_err(os)? {
            return Err(Error::deadline_exceeded("shim", dir.display(), "does not die of SIGKILL"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cofferdam_wire::shim_capnp::shim::{HelloParams, HelloResults, Server};

    use super::*;

    /// A shim of some version, or of one before `hello`.
    struct Other(Option<u32>);

    impl Server for Other {
        async fn hello(self: Rc<Self>, params: HelloParams, mut results: HelloResults) -> capnp::Result<()> {
            let Some(version) = self.0 else { return Err(capnp::Error::unimplemented("hello".into())) };
            assert_eq!(params.get()?.get_version(), SHIM_VERSION, "it is told who asks");
            results.get().set_version(version);
            Ok(())
        }
    }

    fn answer(version: Option<u32>) -> Result<()> {
        futures::executor::block_on(hello(&capnp_rpc::new_client(Other(version))))
    }

    #[test]
    fn every_version_up_to_ours_is_spoken() {
        (1..=SHIM_VERSION).for_each(|version| answer(Some(version)).unwrap());
        // As it will be when there has been more than one.
        (1..=7).for_each(|version| spoken(version, 7).unwrap());
    }

    #[test]
    fn a_version_that_is_not_spoken_is_refused_with_what_to_do() {
        for version in [0, SHIM_VERSION + 1, u32::MAX] {
            let error = answer(Some(version)).unwrap_err();
            assert_eq!((error.code, &*error.kind), (Code::Unimplemented, "shim"));
            let named = error.message.contains(&format!("version {version} of"));
            assert!(named && error.message.contains("remove the container by force"), "{error}");
        }
        assert_eq!(spoken(8, 7).unwrap_err().code, Code::Unimplemented);
        assert_eq!(answer(None).unwrap_err().code, Code::Unimplemented);
    }

    fn connected(dir: &Path) -> Result<Connection> {
        let held = File::open(dir).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async { open(&held, "1234") })
    }

    /// Whoever waited for it would wait for as long as it stands still.
    #[test]
    fn a_shim_that_takes_no_callers_is_not_waited_for() {
        use nix::sys::socket::{Backlog, listen};
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let waiting: Vec<_> = std::iter::from_fn(|| connect(&dir.path().join(SOCKET)).ok()).collect();
        assert!(!waiting.is_empty());
        let error = connected(dir.path()).map(drop).unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "{error}");
        assert!(!is_gone(&error) && !broke(&error), "{error}");
        drop(listener);
        let error = connected(dir.path()).map(drop).unwrap_err();
        assert!(is_gone(&error), "{error}");
    }

    #[test]
    fn what_runs_in_a_bundle_is_outlived() {
        let (bundle, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run =
            |dir: &Path, time: &str| std::process::Command::new("sleep").arg(time).current_dir(dir).spawn().unwrap();
        let (mut within, mut elsewhere) = (run(bundle.path(), "0.3"), run(other.path(), "1000"));
        outlive_in(bundle.path()).unwrap();
        let ended = [within.try_wait(), elsewhere.try_wait()].map(|status| status.unwrap().is_some());
        elsewhere.kill().unwrap();
        elsewhere.wait().unwrap();
        within.wait().unwrap();
        assert_eq!(ended, [true, false]);
    }
}
