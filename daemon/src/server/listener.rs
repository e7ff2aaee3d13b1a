//! The sockets, and the connections that come in.

use std::{
    fs::{File, Permissions},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::UnixListener as StdListener,
        },
    },
    panic::AssertUnwindSafe,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_rt::{Arbiter, ArbiterHandle};
use capnp_rpc::{RpcSystem, rpc_capnp};
use cofferdam_grants::{Calls, End};
use cofferdam_types::{Authority, Error, Peer, Result};
use cofferdam_wire::gate_capnp::gate;
use futures::FutureExt as _;
use nix::{
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::stat::{Mode, fstatat},
};
use tokio::net::{UnixListener, UnixStream};

use super::{
    admission::{Admission, Admitted},
    exports::whose,
    gate::Gate,
    intake,
    meter::Meter,
    reach::Reach,
    session::{Entry, Held, Session},
    trail::About,
};
use crate::services::Services;

/// RPC systems can't move between threads: connections are dealt out to so many.
const ARBITERS: usize = 2;
/// How long clients wait for the start of the actors.
const START: Duration = Duration::from_secs(5);

/// The threads on which connections are served.
pub struct Rooms(Vec<Arbiter>);

impl Rooms {
    /// Starts them.
    pub fn start() -> Rooms {
        Rooms((0..ARBITERS).map(|_| Arbiter::new()).collect())
    }

    /// Ways to them.
    pub fn handles(&self) -> Vec<ArbiterHandle> {
        self.0.iter().map(Arbiter::handle).collect()
    }
}

/// What whoever comes through a socket finds.
pub struct Door {
    pub arbiters: Vec<ArbiterHandle>,
    pub services: Services,
    pub admission: Arc<Admission>,
    /// The grant that the socket is.
    pub entry: Option<Entry>,
}

/// The main socket.
pub struct Listener {
    arbiters: Vec<Arbiter>,
    task: tokio::task::JoinHandle<()>,
}

impl Listener {
    /// Binds the socket, takes its place in one step, and serves from now on. Must be called on a runtime that serves
    /// local tasks.
    pub fn start(
        dir: &Path,
        name: &str,
        rooms: Rooms,
        services: Services,
        admission: Arc<Admission>,
        group: Option<u32>,
    ) -> Result<Listener> {
        let path = dir.join(name);
        let os = |what: &str, e: &std::io::Error| Error::io("socket", path.display(), what, e);
        let listener = bind(dir, name, 0o660, group)?;
        listener.set_nonblocking(true).map_err(|e| os("can't listen", &e))?;
        let listener = UnixListener::from_std(listener).map_err(|e| os("can't listen", &e))?;
        let door = Door { arbiters: rooms.handles(), services, admission, entry: None };
        let task = tokio::task::spawn_local(accept(listener, door));
        Ok(Listener { arbiters: rooms.0, task })
    }

    /// Takes no more connections and ends those that are there.
    pub fn stop(self) {
        self.task.abort();
        for arbiter in self.arbiters {
            arbiter.stop();
        }
    }
}

/// Binds under a temporary name and renames: a client sees the old socket or the new one, never a refused connection
/// on a half-made one, and a link planted at the name is replaced, not followed (F4).
pub fn bind(dir: &Path, name: &str, mode: u32, group: Option<u32>) -> Result<StdListener> {
    let os = |what: &str, e: &std::io::Error| Error::io("socket", dir.join(name).display(), what, e);
    let held = File::open(dir).map_err(|e| os("its directory can't be opened", &e))?;
    let (listener, _) = bind_in(&held, name, mode, group).map_err(|(what, e)| os(what, &e))?;
    Ok(listener)
}

/// Device and inode of a socket: what it is, whatever its name comes to stand for.
type Place = (u64, u64);

/// At what a socket failed, and why.
type Failed = (&'static str, std::io::Error);

/// The same in a directory that is held, and what the socket is known by there.
pub fn bind_in(
    held: &File,
    name: &str,
    mode: u32,
    group: Option<u32>,
) -> std::result::Result<(StdListener, Place), Failed> {
    // Through the descriptor: names outgrow sun_path.
    let fresh = format!("/proc/self/fd/{}/.{name}.new", held.as_raw_fd());
    let _ = std::fs::remove_file(&fresh);
    let listener = StdListener::bind(&fresh).map_err(|e| ("can't be bound", e))?;
    Ok((listener, put(held, name, mode, group)?))
}

/// Gives the one that was bound its group and mode, and its name. Somebody else may have the directory too, in a container,
/// and put a link where the socket was: all is done to what is held, and that is a socket.
fn put(held: &File, name: &str, mode: u32, group: Option<u32>) -> std::result::Result<Place, Failed> {
    let fresh = format!(".{name}.new");
    let other = || std::io::Error::other("something else was put in its place");
    let found = openat(held, &*fresh, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    let socket = File::from(found.map_err(|e| ("can't be found", e.into()))?);
    let made = socket.metadata().map_err(|e| ("can't be looked at", e))?;
    if !made.file_type().is_socket() {
        return Err(("can't be given its mode", other()));
    }
    let made = (made.dev(), made.ino());
    let there = format!("/proc/self/fd/{}", socket.as_raw_fd());
    if group.is_some() {
        std::os::unix::fs::chown(&there, None, group).map_err(|e| ("can't be given its group", e))?;
    }
    // The daemon's umask is 077: until here nobody else could have connected.
    std::fs::set_permissions(&there, Permissions::from_mode(mode)).map_err(|e| ("can't be given its mode", e))?;
    renameat(held, &*fresh, held, name).map_err(|e| ("can't be put in place", e.into()))?;
    let put = fstatat(held, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|e| ("can't be looked at", e.into()))?;
    if (put.st_dev, put.st_ino) != made {
        return Err(("can't be put in place", other()));
    }
    Ok(made)
}

/// Serves whoever connects.
pub async fn accept(listener: UnixListener, door: Door) {
    let Door { arbiters, services, admission, entry } = door;
    // Who connects while the actors are starting waits in the backlog for some milliseconds, instead of being told to
    // try again. A daemon of which a part doesn't come up serves with what it has.
    if !matches!(tokio::time::timeout(START, services.kernel.ready()).await, Ok(Ok(()))) {
        tracing::error!("not every actor is up: the daemon is degraded");
    }
    // Whoever is refused may try again at once, and for ever: that is told once a second.
    let (mut told, mut refused) = (None::<Instant>, 0u64);
    for turn in 0usize.. {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection can't be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(credentials) = stream.peer_cred() else { continue };
        let (uid, gid, pid) = (credentials.uid(), credentials.gid(), credentials.pid().unwrap_or_default());
        let admitted = match admission.admit(whose(entry.as_ref(), uid)) {
            Ok(admitted) => admitted,
            Err(error) => {
                refused += 1;
                if told.is_none_or(|told| told.elapsed() >= Duration::from_secs(1)) {
                    tracing::warn!(uid, pid, refused, "{error}");
                    (told, refused) = (Some(Instant::now()), 0);
                }
                refuse(&stream, &error);
                continue;
            }
        };
        let Ok(stream) = stream.into_std() else { continue };
        let (services, entry) = (services.clone(), entry.clone());
        arbiters[turn % arbiters.len()].spawn_fn(move || {
            tokio::task::spawn_local(async move {
                let quiet = services.quiet.clone();
                if let Err(error) = serve(stream, services, Peer::Unix { uid, gid, pid }, entry, admitted).await {
                    tracing::debug!(%error, "a connection ended");
                }
                quiet.stir();
            });
        });
    }
}

/// Says why to a client that gets no connection. It may be gone, or not listen: nobody waits for it.
fn refuse(stream: &UnixStream, error: &Error) {
    let mut message = capnp::message::Builder::new_default();
    let mut abort = message.init_root::<rpc_capnp::message::Builder<'_>>().init_abort();
    abort.set_reason(error.to_reason());
    abort.set_type(rpc_capnp::exception::Type::Overloaded);
    let _ = stream.try_write(&capnp::serialize::write_message_to_words(&message));
}

/// Waits until the socket by which a connection came is no grant any more, and until its calls could be told so.
async fn until_closed(session: &Session) -> End {
    let Some(entry) = &session.entry else { return std::future::pending().await };
    let end = entry.live.until_ended().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    end
}

async fn serve(
    stream: std::os::unix::net::UnixStream,
    services: Services,
    peer: Peer,
    entry: Option<Entry>,
    admitted: Admitted,
) -> Result<()> {
    let os = |e: std::io::Error| Error::io("connection", "", "can't be served", &e);
    let stream = UnixStream::from_std(stream).map_err(os)?;
    services.quiet.stir();
    let meter = Meter::new(services.quiet.clone(), admitted.lot.share.clone());
    let (network, fds) = intake::network(stream, meter.clone());
    fds.within(admitted.lot.fds.clone());
    let session = Session::new(services, fds, peer, meter, admitted.lot.files.clone(), entry);
    // The gate confers nothing, but it too is guarded: its calls count and its panics are contained.
    let of_socket = session.entry.as_ref().map(|entry| entry.node.path.clone());
    let held = Held {
        // On a socket that is a grant all is that grant's, whoever is at the other end: root there is no operator.
        authority: Authority { peer: Some(peer), grants: of_socket.unwrap_or_default(), ..Authority::system() },
        grant: session.grant.clone(),
        given: None,
        reach: Reach::everything(),
        check: None,
        gone: None,
        deadline: None,
        calls: Calls::default(),
        about: About::default(),
    };
    let gate: gate::Client = session.hand_out(Gate(session.clone()), &held);
    // What was not foreseen in the protocol's own code ends the connection that met it, and what it had.
    let system = RpcSystem::new(Box::new(network), Some(gate.client));
    let disconnector = system.get_disconnector();
    let system = AssertUnwindSafe(system).catch_unwind();
    tokio::pin!(system);
    let ended = tokio::select! {
        ended = &mut system => match ended {
            Ok(ended) => ended.map_err(cofferdam_wire::error::from_rpc),
            Err(_) => Err(Error::internal("connection", "", "panicked and is cut")),
        },
        () = session.meter.until_cut() => {
            Err(Error::resource_exhausted("connection", "", "was over its budget and is cut"))
        }
        end = until_closed(&session) => Err(end.error()),
    };
    // What still works for this client ends with its connection.
    session.grant.finish(End::Closed);
    // The answers that are to come hold the RPC system's tables, which hold them: without this they would stay, and the
    // socket would.
    let _ = disconnector.now_or_never();
    ended
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn f4_a_link_put_where_a_socket_was_bound_is_not_followed() {
        let (dir, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = host.path().join("secret");
        std::fs::write(&secret, "").unwrap();
        std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        let (held, fresh) = (File::open(dir.path()).unwrap(), dir.path().join(".s.new"));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;

        let _bound = StdListener::bind(&fresh).unwrap();
        symlink(&secret, dir.path().join("link")).unwrap();
        std::fs::rename(dir.path().join("link"), &fresh).unwrap();
        put(&held, "s", 0o666, None).unwrap_err();
        assert_eq!(mode(&secret), 0o600);
        assert!(!dir.path().join("s").exists());

        // One that lies there from before is in nobody's way.
        let (_bound, made) = bind_in(&held, "s", 0o666, None).unwrap();
        let there = dir.path().join("s").symlink_metadata().unwrap();
        assert_eq!((there.dev(), there.ino()), made);
        assert_eq!((mode(&dir.path().join("s")), mode(&secret)), (0o666, 0o600));
    }
}
