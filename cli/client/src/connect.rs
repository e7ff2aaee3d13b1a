//! The connection, and what it leads to.

use std::{
    cell::OnceCell,
    future::Future,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use capnp::traits::{Owned, Pipelined};
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use cofferdam_types::{Code, Error, Result};
use cofferdam_wire::{
    API_VERSION,
    connect::network,
    convert::{text, texts},
    error::{from_rpc, malformed},
    fdstream::Fds,
    gate_capnp::{gate, namespaces, root},
    grant_capnp::grant_info,
};
use futures::{FutureExt, future::LocalBoxFuture, future::Shared};
use serde::Serialize;
use tokio::{net::UnixStream, task::AbortHandle};

use crate::{
    audit::Audit,
    call::{Reply, reply},
    collector::Collector,
    grant::{GrantInfo, info},
    namespace::{Namespace, Namespaces},
    system::System,
};

/// What a client accepts as one message: the daemon's answers hold at most a block of a list, or a chunk.
const MESSAGE: usize = 64 << 20;

/// What keeps a connection open: every handle holds one, and with the last the socket is closed.
pub(crate) struct Link {
    pub(crate) fds: Fds,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a connection is to have.
#[derive(Clone)]
enum Wanted {
    /// What the daemon grants there.
    Given,
    /// That, which has to be a grant.
    Grant,
    /// What the grant of this token gives.
    Restored(Rc<str>),
}

/// What the daemon says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DaemonInfo {
    /// The version of the API that it speaks.
    pub api: u32,
    /// Its own version.
    pub daemon: String,
    /// What it can do beyond that version.
    pub features: Vec<String>,
    /// Whether descriptors pass on this connection.
    pub fds: bool,
}

/// A connection to the daemon, with what it granted there.
#[derive(Clone)]
pub struct Client {
    pub(crate) link: Rc<Link>,
    /// Kept, since letting go of it would be one message more.
    _gate: gate::Client,
    root: root::Client,
    /// Kept once it was asked for: it is on the way to nearly all.
    namespaces: Rc<OnceCell<namespaces::Client>>,
    hello: Shared<LocalBoxFuture<'static, Result<DaemonInfo>>>,
    entered: Shared<LocalBoxFuture<'static, Result<Option<GrantInfo>>>>,
    path: Rc<PathBuf>,
    name: Rc<str>,
    wanted: Wanted,
}

impl Client {
    /// Opens the connection. No answer of the daemon is awaited: a refusal comes out of the first call.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Client> {
        Client::connect_as(path, "cofferdam-client").await
    }

    /// The same, with a name of your own for the daemon's logs.
    pub async fn connect_as(path: impl AsRef<Path>, name: &str) -> Result<Client> {
        Client::enter(path.as_ref(), name, Wanted::Given).await
    }

    /// Opens a connection by a socket that is a grant (`Grant.export`), with a name of your own. Others may have that directory too:
    /// no link is followed that lies in the socket's place, and what gives everything is refused. So what is to be done by that grant
    /// is done by no other authority that you have. It waits for the daemon's answer.
    pub async fn by_grant_as(path: impl AsRef<Path>, name: &str) -> Result<Client> {
        Client::enter(path.as_ref(), name, Wanted::Grant).await
    }

    /// Opens a connection that has what the grant of a token gives, and nothing else. Whether there is one comes out of the
    /// first call.
    pub async fn restore(path: impl AsRef<Path>, token: &str) -> Result<Client> {
        Client::restore_as(path, "cofferdam-client", token).await
    }

    /// The same, with a name of your own for the daemon's logs.
    pub async fn restore_as(path: impl AsRef<Path>, name: &str, token: &str) -> Result<Client> {
        Client::enter(path.as_ref(), name, Wanted::Restored(token.into())).await
    }

    async fn enter(path: &Path, name: &str, wanted: Wanted) -> Result<Client> {
        let connected = match wanted {
            Wanted::Grant => connect_itself(path).await,
            _ => UnixStream::connect(path).await,
        };
        let stream = connected.map_err(|error| {
            let why = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "there is no such socket: is cofferd running, with this state directory?"
                }
                std::io::ErrorKind::ConnectionRefused if !is_socket(path) => {
                    "that is no socket: give the path of the socket itself, such as /run/cofferdam/cofferd.sock"
                }
                std::io::ErrorKind::ConnectionRefused => "nobody listens there: start cofferd",
                std::io::ErrorKind::PermissionDenied => {
                    "the socket is not yours to open: use sudo, or ask the operator"
                }
                _ if error.raw_os_error() == Some(nix::libc::ELOOP) => {
                    "a symbolic link is in the place of the socket, and isn't followed: ask who has the directory"
                }
                _ => return Error::unavailable("socket", path.display(), format!("can't be connected to: {error}")),
            };
            Error::unavailable("socket", path.display(), why)
        })?;
        let client = Client::over(stream, path, name, wanted);
        if matches!(client.wanted, Wanted::Grant) && client.grant().await?.is_none() {
            let why = "is no grant's, and gives everything: ask who has the directory, or connect to it as to the daemon's own";
            return Err(Error::failed_precondition("socket", path.display(), why));
        }
        Ok(client)
    }

    /// Over a stream that is already open. `path` is where a new one may be had.
    fn over(stream: UnixStream, path: &Path, name: &str, wanted: Wanted) -> Client {
        let (network, fds) = network(stream, Side::Client, MESSAGE);
        let mut system = RpcSystem::new(Box::new(network), None);
        let gate: gate::Client = system.bootstrap(Side::Server);
        let task = tokio::task::spawn_local(async move {
            // How a connection ended is seen in the calls that were under way.
            let _ = system.await;
        });

        let link = Rc::new(Link { fds, task: task.abort_handle() });
        let mut request = gate.hello_request();
        request.get().set_version(API_VERSION);
        request.get().set_name(name);
        let hello = reply(&link, request, |answer| {
            Ok(DaemonInfo {
                api: answer.get_version(),
                daemon: text(answer.get_daemon())?.to_owned(),
                features: texts(answer.get_features())?,
                fds: answer.get_fds(),
            })
        });
        let (root, entered) = match &wanted {
            Wanted::Given | Wanted::Grant => {
                let entered = gate.enter_request().send();
                let read = |reader: gate::enter_results::Reader<'_>| held(reader.has_grant(), reader.get_grant());
                (entered.pipeline.get_root(), answered(entered.promise, read))
            }
            Wanted::Restored(token) => {
                let mut request = gate.restore_request();
                request.get().set_token(token);
                let restored = request.send();
                let read = |reader: gate::restore_results::Reader<'_>| held(reader.has_grant(), reader.get_grant());
                (restored.pipeline.get_root(), answered(restored.promise, read))
            }
        };
        Client {
            link,
            _gate: gate,
            root,
            namespaces: Rc::default(),
            hello: hello.boxed_local().shared(),
            entered: entered.boxed_local().shared(),
            path: Rc::new(path.to_owned()),
            name: name.into(),
            wanted,
        }
    }

    /// A new connection to the same place, with what this one was granted there: a token is restored once more.
    pub async fn again(&self) -> Result<Client> {
        Client::enter(&self.path, &self.name, self.wanted.clone()).await
    }

    /// Whether the connection has ended. One that is breaking just now may not be known to.
    pub fn is_closed(&self) -> bool {
        self.link.task.is_finished()
    }

    /// The grant that this connection has; none where it has everything.
    pub fn grant(&self) -> Reply<Option<GrantInfo>> {
        let (entered, link) = (self.entered.clone(), self.link.clone());
        Reply::new(async move {
            let _link = link;
            entered.await
        })
    }

    /// Who is at the other end.
    pub fn hello(&self) -> Reply<DaemonInfo> {
        Reply::new(self.hello.clone())
    }

    /// All namespaces.
    pub fn namespaces(&self) -> Namespaces {
        let ask = || self.root.namespaces_request().send().pipeline.get_namespaces();
        Namespaces { link: self.link.clone(), client: self.namespaces.get_or_init(ask).clone() }
    }

    /// One namespace.
    pub fn namespace(&self, name: &str) -> Namespace {
        self.namespaces().get(name)
    }

    /// What goes because nothing keeps it.
    pub fn collector(&self) -> Collector {
        Collector { link: self.link.clone(), client: self.root.collector_request().send().pipeline.get_collector() }
    }

    /// Who used which authority for what.
    pub fn audit(&self) -> Audit {
        Audit { link: self.link.clone(), client: self.root.audit_request().send().pipeline.get_audit() }
    }

    /// The daemon itself.
    pub fn system(&self) -> System {
        System { link: self.link.clone(), client: self.root.system_request().send().pipeline.get_system() }
    }
}

fn held(is: bool, reader: capnp::Result<grant_info::Reader<'_>>) -> Result<Option<GrantInfo>> {
    is.then(|| info(reader.map_err(malformed)?)).transpose()
}

/// The answer to a call whose pipeline is somebody else's.
fn answered<R: Owned + Pipelined + Unpin + 'static>(
    promise: capnp::capability::Promise<capnp::capability::Response<R>, capnp::Error>,
    read: impl for<'a> FnOnce(R::Reader<'a>) -> Result<Option<GrantInfo>> + 'static,
) -> Reply<Option<GrantInfo>> {
    Reply::new(async move {
        let response = promise.await.map_err(from_rpc)?;
        read(response.get().map_err(from_rpc)?)
    })
}

/// Connects to what is in this place itself, and to nothing that a link there leads to.
async fn connect_itself(path: &Path) -> std::io::Result<UnixStream> {
    use std::os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _};
    let held =
        std::fs::File::options().read(true).custom_flags(nix::libc::O_PATH | nix::libc::O_NOFOLLOW).open(path)?;
    if held.metadata()?.is_symlink() {
        return Err(std::io::Error::from_raw_os_error(nix::libc::ELOOP));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", held.as_raw_fd())).await
}

/// Anything else refuses connections as a socket does that nobody listens on.
fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

/// How long a lost daemon may take to come back.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The first and the longest pause between two attempts to find it.
pub(crate) const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// Whether the error says that the connection broke: what was asked for may have happened or not.
pub fn is_lost(error: &Error) -> bool {
    error.code == Code::Unavailable && error.kind == "connection"
}

/// Runs a future on a fresh current-thread runtime with a `LocalSet`, as the library needs it. A thread that the future
/// left behind, which may wait for input for ever, is not waited for.
pub fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("runtime", "", "can't be made", &e))?;
    let done = tokio::task::LocalSet::new().block_on(&runtime, future);
    runtime.shutdown_background();
    Ok(done)
}
