//! Starting shims and talking to them.

use std::{
    fs::File,
    os::{
        fd::OwnedFd,
        unix::{fs::DirBuilderExt as _, net::UnixListener, net::UnixStream as StdStream},
    },
    path::Path,
    process::{Child, Command, Stdio},
    rc::Rc,
};

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use cofferdam_types::{Error, Result};
use cofferdam_wire::{SHIM_VERSION, connect, error::from_rpc, fdstream::Fds, shim_capnp::shim};
use futures::{FutureExt as _, future::Shared};
use tokio::net::UnixStream;

use crate::layout::{self, Layout, through};

const SOCKET: &str = "shim.sock";
/// Answers of a shim are small.
const MESSAGE: usize = 16 << 20;

/// A connection to a shim.
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

/// A new shim's id: 64 random bits.
pub(crate) fn new_id() -> Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| Error::internal("random", "", e.to_string()))?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

/// Starts a shim in its own directory. Its socket listens before it runs: nobody has to wait for it.
pub(crate) fn spawn(layout: &Layout, program: &Path, id: &str) -> Result<(Child, Connection)> {
    let os = |what: &str, e: &std::io::Error| Error::io("shim", id, what, e);
    let dir = layout.shim(id);
    std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|e| os("its directory can't be made", &e))?;
    let started = (|| {
        let held = File::open(&dir).map_err(|e| os("its directory can't be opened", &e))?;
        let listener = UnixListener::bind(through(&held, SOCKET)).map_err(|e| os("its socket can't be bound", &e))?;
        let log = File::options().create(true).append(true).open(dir.join("log"));
        let child = Command::new(program)
            .env_clear()
            .current_dir(&dir)
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(log.map_or_else(|_| Stdio::null(), Stdio::from))
            .spawn()
            .map_err(|e| os(&format!("{} can't be started", program.display()), &e))?;
        Ok((child, open(&held, id)?))
    })();
    started.inspect_err(|_| drop(layout::remove(&dir)))
}

/// Connects to the shim that has this directory; `not_found` if nobody listens.
pub(crate) fn find(layout: &Layout, id: &str) -> Result<Connection> {
    let held = File::open(layout.shim(id)).map_err(|e| Error::io("shim", id, "its directory can't be opened", &e))?;
    open(&held, id)
}

fn open(dir: &File, id: &str) -> Result<Connection> {
    let gone = |e: std::io::Error| Error::not_found("shim", id, format!("nobody listens on its socket: {e}"));
    let stream = StdStream::connect(through(dir, SOCKET)).map_err(gone)?;
    stream.set_nonblocking(true).map_err(gone)?;
    let (network, fds) = connect::network(UnixStream::from_std(stream).map_err(gone)?, Side::Client, MESSAGE);
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
    let answer = request.send().promise.await.map_err(from_rpc)?;
    let version = answer.get().map_err(from_rpc)?.get_version();
    if version == 0 || version > SHIM_VERSION {
        let why = format!("speaks version {version} of the protocol; this daemon speaks {SHIM_VERSION} and older");
        return Err(Error::unimplemented("shim", "", why));
    }
    Ok(())
}
