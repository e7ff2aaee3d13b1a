//! The sockets, and the connections that come in.

use std::{
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, net::UnixListener as StdListener},
    },
    path::Path,
    sync::Arc,
};

use actix_rt::{Arbiter, ArbiterHandle};
use capnp_rpc::{RpcSystem, rpc_capnp, rpc_twoparty_capnp::Side};
use cofferdam_grants::End;
use cofferdam_types::{Error, Peer, Result};
use cofferdam_wire::{connect, gate_capnp::gate};
use tokio::net::{UnixListener, UnixStream};

use super::{
    admission::{Admission, Admitted},
    gate::Gate,
    intake::{Network, Tap},
    meter::Meter,
    reach::Reach,
    session::{Held, Session},
};
use crate::services::Services;

/// RPC systems can't move between threads: connections are dealt out to so many.
const ARBITERS: usize = 2;
/// How long clients wait for the start of the actors.
const START: std::time::Duration = std::time::Duration::from_secs(5);

/// The main socket.
pub struct Listener {
    arbiters: Vec<Arbiter>,
    task: tokio::task::JoinHandle<()>,
}

impl Listener {
    /// Binds the socket, takes its place in one step, and serves from now on. Must be called on a runtime that serves
    /// local tasks.
    pub fn start(dir: &Path, name: &str, services: Services, admission: Arc<Admission>) -> Result<Listener> {
        let path = dir.join(name);
        let os = |what: &str, e: &std::io::Error| Error::io("socket", path.display(), what, e);
        let listener = bind(dir, name)?;
        listener.set_nonblocking(true).map_err(|e| os("can't listen", &e))?;
        let listener = UnixListener::from_std(listener).map_err(|e| os("can't listen", &e))?;
        let arbiters: Vec<Arbiter> = (0..ARBITERS).map(|_| Arbiter::new()).collect();
        let handles: Vec<ArbiterHandle> = arbiters.iter().map(Arbiter::handle).collect();
        let task = tokio::task::spawn_local(accept(listener, handles, services, admission));
        Ok(Listener { arbiters, task })
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
fn bind(dir: &Path, name: &str) -> Result<StdListener> {
    let os = |what: &str, e: &std::io::Error| Error::io("socket", dir.join(name).display(), what, e);
    let held = std::fs::File::open(dir).map_err(|e| os("its directory can't be opened", &e))?;
    // Through the descriptor: names outgrow sun_path.
    let fresh = format!("/proc/self/fd/{}/.{name}.new", held.as_raw_fd());
    let _ = std::fs::remove_file(&fresh);
    let listener = StdListener::bind(&fresh).map_err(|e| os("can't be bound", &e))?;
    // The daemon's umask is 077: until here nobody else could have connected.
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660))
        .map_err(|e| os("can't be given its mode", &e))?;
    std::fs::rename(&fresh, format!("/proc/self/fd/{}/{name}", held.as_raw_fd()))
        .map_err(|e| os("can't be put in place", &e))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, arbiters: Vec<ArbiterHandle>, services: Services, admission: Arc<Admission>) {
    // Who connects while the actors are starting waits in the backlog for some milliseconds, instead of being told to
    // try again. A daemon of which a part doesn't come up serves with what it has.
    if !matches!(tokio::time::timeout(START, services.kernel.ready()).await, Ok(Ok(()))) {
        tracing::error!("not every actor is up: the daemon is degraded");
    }
    for turn in 0usize.. {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection can't be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(credentials) = stream.peer_cred() else { continue };
        let (uid, gid, pid) = (credentials.uid(), credentials.gid(), credentials.pid().unwrap_or_default());
        let admitted = match admission.admit(uid) {
            Ok(admitted) => admitted,
            Err(error) => {
                tracing::warn!(uid, pid, "{error}");
                refuse(&stream, &error);
                continue;
            }
        };
        let Ok(stream) = stream.into_std() else { continue };
        let services = services.clone();
        arbiters[turn % arbiters.len()].spawn_fn(move || {
            tokio::task::spawn_local(async move {
                let quiet = services.quiet.clone();
                if let Err(error) = serve(stream, services, Peer::Unix { uid, gid, pid }, admitted).await {
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

async fn serve(
    stream: std::os::unix::net::UnixStream,
    services: Services,
    peer: Peer,
    _admitted: Admitted,
) -> Result<()> {
    let os = |e: std::io::Error| Error::io("connection", "", "can't be served", &e);
    let stream = UnixStream::from_std(stream).map_err(os)?;
    services.quiet.stir();
    let meter = Meter::new(services.quiet.clone());
    let tap = |reader| Tap::new(reader, meter.clone());
    let (network, fds) = connect::network_through(stream, Side::Server, connect::MESSAGE, tap);
    let network = Network::new(network, meter.clone());
    let session = Session::new(services, fds, peer, meter, None);
    // The gate confers nothing, but it too is guarded: its calls count and its panics are contained.
    let held = Held {
        authority: cofferdam_types::Authority::system(),
        grant: session.grant.clone(),
        reach: Reach::everything(),
        check: None,
        deadline: None,
    };
    let gate: gate::Client = session.hand_out(Gate(session.clone()), &held);
    let system = RpcSystem::new(Box::new(network), Some(gate.client));
    let ended = tokio::select! {
        ended = system => ended.map_err(cofferdam_wire::error::from_rpc),
        () = session.meter.until_cut() => {
            Err(Error::resource_exhausted("connection", "", "was over its budget and is cut"))
        }
    };
    // What still works for this client ends with its connection.
    session.grant.finish(End::Closed);
    ended
}
