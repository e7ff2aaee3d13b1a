//! Sockets that are grants: in a directory of the host, so that they can be mounted into a container, where the directory
//! stays when a daemon that starts anew makes another socket in it.

use std::{
    collections::HashMap,
    fs::File,
    io::ErrorKind,
    os::unix::{
        fs::{OpenOptionsExt as _, PermissionsExt as _},
        net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actix_rt::ArbiterHandle;
use cofferdam_grants::{End, Live, Node};
use cofferdam_types::{Error, GrantId, Result};
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::fstatat,
    unistd::{UnlinkatFlags, unlinkat},
};
use tokio::{net::UnixListener, sync::OwnedMutexGuard};

use super::{
    admission::{Admission, Whose},
    listener::{Door, accept, bind_in},
    session::Entry,
};
use crate::services::Services;

/// What the socket is called, wherever it lies.
pub const SOCKET: &str = "cofferdam.sock";

/// Whether a directory can be named so.
pub fn check(directory: &str) -> Result<()> {
    let why = if !Path::new(directory).is_absolute() {
        "is not absolute: give the whole path on the daemon's host"
    } else if directory.contains('\0') {
        "holds a NUL byte"
    } else {
        return Ok(());
    };
    Err(Error::invalid("directory", directory.escape_default(), why))
}

/// All of them. Cheap to clone.
#[derive(Clone)]
pub struct Exports(Arc<Inner>);

struct Inner {
    /// Where they are served.
    arbiters: Vec<ArbiterHandle>,
    admission: Arc<Admission>,
    /// Those that are open: each ends with its grant, or when it is closed.
    open: Mutex<HashMap<GrantId, Arc<Live>>>,
    /// For who exports a grant, or takes that back: each is several steps.
    turns: Mutex<HashMap<GrantId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Exports {
    /// None yet.
    pub fn new(arbiters: Vec<ArbiterHandle>, admission: Arc<Admission>) -> Exports {
        Exports(Arc::new(Inner { arbiters, admission, open: Mutex::default(), turns: Mutex::default() }))
    }

    fn sockets(&self) -> MutexGuard<'_, HashMap<GrantId, Arc<Live>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held from before the record of an export is changed until the socket is what that says.
    pub async fn turn(&self, id: GrantId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(id).or_default().clone()
        };
        turn.lock_owned().await
    }

    /// Opens those that are on record. One that can't be is told, and keeps nobody from being served.
    pub fn open_all(&self, services: &Services) -> Result<()> {
        for (node, directory) in services.grants.exported()? {
            if let Err(error) = self.open(services, &node, &directory) {
                tracing::error!(grant = %node.id(), %error, "a grant is no socket");
            }
        }
        Ok(())
    }

    /// Makes the socket, and serves whoever connects.
    pub fn open(&self, services: &Services, node: &Arc<Node>, directory: &str) -> Result<()> {
        let place = PathBuf::from(directory);
        let os = |what: &str, e: &std::io::Error| Error::io("directory", directory, what, e);
        make(&place).map_err(|e| os("can't be made", &e))?;
        // Held from here on: its name may come to stand for another one, and what is removed in the end is what was made here.
        let held = File::open(&place).map_err(|e| os("can't be opened", &e))?;
        match fstatat(&held, SOCKET, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(there) if there.st_mode & libc::S_IFMT != libc::S_IFSOCK => {
                let why = format!("has a {SOCKET} that is no socket: give another directory");
                return Err(Error::failed_precondition("directory", directory, why));
            }
            Err(e) if e != Errno::ENOENT => return Err(os("can't be looked at", &e.into())),
            _ => {}
        }
        // Whoever can get there holds it, whichever user that is: it is the directory that keeps others out.
        let (listener, made) = bind_in(&held, SOCKET, 0o666, None)
            .map_err(|(what, e)| Error::io("socket", place.join(SOCKET).display(), what, &e))?;
        let socket = Socket { held, made };
        listener.set_nonblocking(true).map_err(|e| os("has a socket that can't listen", &e))?;
        let entry = Entry { node: node.clone(), live: Live::below(&[&node.live]) };
        if let Some(before) = self.sockets().insert(node.id(), entry.live.clone()) {
            before.finish(End::Revoked);
        }
        let Some(arbiter) = self.0.arbiters.first() else { return Ok(()) };
        let inner = self.0.clone();
        let door = Door {
            arbiters: inner.arbiters.clone(),
            services: services.clone(),
            admission: inner.admission.clone(),
            entry: Some(entry.clone()),
        };
        arbiter.spawn_fn(move || {
            tokio::task::spawn_local(async move {
                if let Err(error) = serve(listener, socket, door, &entry).await {
                    tracing::error!(grant = %entry.node.id(), %error, "a grant is no socket any more");
                }
                // Another one may be there under its id by now.
                let mut open = inner.open.lock().unwrap_or_else(PoisonError::into_inner);
                if open.get(&entry.node.id()).is_some_and(|live| Arc::ptr_eq(live, &entry.live)) {
                    open.remove(&entry.node.id());
                }
            });
        });
        Ok(())
    }

    /// Removes the socket of a grant, and ends the connections that came by it.
    pub fn close(&self, id: GrantId) {
        let live = self.sockets().remove(&id);
        if let Some(live) = live {
            live.finish(End::Revoked);
        }
    }
}

/// Makes a directory, and those above it, so that others pass: the daemon's umask is 077. What is there keeps the mode that
/// somebody gave it.
fn make(directory: &Path) -> std::io::Result<()> {
    match std::fs::create_dir(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            make(directory.parent().ok_or(e)?)?;
            make(directory)
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        // Not by its name: a link may have been put there since, where somebody else has the directory above.
        made => made.and_then(|()| {
            let held = File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(directory)?;
            held.set_permissions(std::fs::Permissions::from_mode(0o755))
        }),
    }
}

/// Where one lies, and what it is known by there.
struct Socket {
    held: File,
    made: (u64, u64),
}

impl Socket {
    /// Only the one that was made here: somebody may have exported another grant to this place since.
    fn remove(&self) -> nix::Result<()> {
        match fstatat(&self.held, SOCKET, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(there) if (there.st_dev, there.st_ino) == self.made => {
                unlinkat(&self.held, SOCKET, UnlinkatFlags::NoRemoveDir)
            }
            _ => Ok(()),
        }
    }
}

/// Until the grant ends.
async fn serve(listener: StdListener, socket: Socket, door: Door, entry: &Entry) -> Result<()> {
    let os = |e: std::io::Error| Error::io("socket", SOCKET, "can't be served", &e);
    let listener = UnixListener::from_std(listener).map_err(os)?;
    tokio::select! {
        () = accept(listener, door) => {}
        _ = entry.live.until_ended() => {}
    }
    socket.remove().map_err(|e| os(e.into()))
}

/// For whom a connection to this entry counts.
pub fn whose(entry: Option<&Entry>, uid: u32) -> Whose {
    entry.map_or(Whose::User(uid), |entry| Whose::Grant(entry.node.id()))
}
