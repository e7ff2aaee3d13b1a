//! Sockets that are grants: in a directory of the host, so that they can be mounted into a container, where the directory
//! stays when a daemon that starts anew makes another socket in it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, ErrorKind},
    os::{fd::OwnedFd, unix::net::UnixListener as StdListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actix_rt::ArbiterHandle;
use cofferdam_grants::{End, Live, Node};
use cofferdam_sys::fd;
use cofferdam_types::{Error, GrantId, Result};
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{Mode, fchmod, fstatat, mkdirat},
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

/// The mode of a directory that is made here. Whoever gets in holds the grant: others are let in by somebody who means to.
const OWN: Mode = Mode::S_IRWXU;
/// And of those above it that aren't there either: others pass, as is usual.
const ABOVE: Mode = Mode::from_bits_truncate(0o755);

/// Where the directory of this name lies, behind all links that lead there now. What goes on record is that: who puts a link into
/// its way later leads nobody elsewhere.
pub fn resolve(directory: &str) -> Result<String> {
    let bad = |why: &str| Err(Error::invalid("directory", directory.escape_default(), why));
    if !Path::new(directory).is_absolute() {
        return bad("is not absolute: give the whole path on the daemon's host");
    }
    if directory.contains('\0') {
        return bad("holds a NUL byte");
    }
    // What isn't there yet is made by the names that it has.
    let (mut there, mut made) = (Path::new(directory), Vec::new());
    let mut place = loop {
        match there.canonicalize() {
            Ok(place) => break place,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let (Some(above), Some(name)) = (there.parent(), there.file_name()) else {
                    return bad("goes back from what isn't there: give it without ..");
                };
                made.push(name);
                there = above;
            }
            Err(e) => return Err(Error::io("directory", directory, "can't be looked at", &e)),
        }
    };
    place.extend(made.iter().rev());
    match place.into_os_string().into_string() {
        Ok(place) => Ok(place),
        Err(_) => bad("is reached by a link to a name that is not UTF-8: give another"),
    }
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
        // What ended while no daemon ran goes first: in its place there may be another one's by now, which is made anew then.
        for (id, directory) in services.grants.ended()? {
            if let Err(error) = clear(Path::new(&directory)) {
                tracing::warn!(grant = %id, directory, %error, "the socket of a grant that has ended can't be removed");
            }
        }
        services.grants.forget_ended();
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
        // Held from here on: its name may come to stand for another one, and what is removed in the end is what was made here.
        let held = File::from(make(&place, OWN).map_err(|e| match Errno::from_raw(e.raw_os_error().unwrap_or_default()) {
            Errno::ELOOP => {
                let why = "has a symbolic link on the way to it, and none is followed: see who put that there, then unexport the \
                           grant and export it again";
                Error::failed_precondition("directory", directory, why)
            }
            _ => os("can't be made or opened", &e),
        })?);
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

/// A directory of the host. No link is followed: who may write above it could have led elsewhere meanwhile.
fn look(directory: &Path) -> io::Result<OwnedFd> {
    let below = directory.strip_prefix("/").map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
    below_of(fd::open_dir(Path::new("/"))?, &Path::new(".").join(below))
}

fn below_of(held: OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    fd::open_no_symlinks(held, path, libc::O_RDONLY | libc::O_DIRECTORY, 0)
}

/// The same, and makes what isn't there of it: the directory with this mode. What is there keeps the mode that somebody gave it.
fn make(directory: &Path, mode: Mode) -> io::Result<OwnedFd> {
    let missing = match look(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => e,
        other => return other,
    };
    let (Some(above), Some(name)) = (directory.parent(), directory.file_name()) else { return Err(missing) };
    let above = make(above, ABOVE)?;
    let made = match mkdirat(&above, name, OWN) {
        Err(Errno::EEXIST) => false,
        made => made.map(|()| true)?,
    };
    let held = below_of(above, Path::new(name))?;
    // The daemon's umask is 077.
    if made && mode != OWN {
        fchmod(&held, mode)?;
    }
    Ok(held)
}

/// Removes the socket of a grant that has ended, if there is one.
fn clear(directory: &Path) -> io::Result<()> {
    let held = match look(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        held => held?,
    };
    match fstatat(&held, SOCKET, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(there) if fd::file_type(&there) == libc::S_IFSOCK => {
            Ok(unlinkat(&held, SOCKET, UnlinkatFlags::NoRemoveDir)?)
        }
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
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

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    };

    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn f1_a_directory_that_is_made_is_for_root_alone_and_one_that_is_there_stays_as_it_is() {
        let (_dir, dir) = scratch();
        let path = dir.join("above/own");
        for _ in 0..2 {
            make(&path, OWN).unwrap();
            assert_eq!((mode(&path), mode(&dir.join("above"))), (0o700, 0o755));
            // Made anew at a start it is so too.
            std::fs::remove_dir_all(dir.join("above")).unwrap();
        }
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o2711)).unwrap();
        make(&path, OWN).unwrap();
        assert_eq!(mode(&path), 0o2711);
        make(Path::new("/"), OWN).unwrap();
    }

    #[test]
    fn f4_a_link_on_the_way_to_a_directory_is_resolved_once_and_then_not_followed() {
        let (_dir, dir) = scratch();
        let (victim, link) = (dir.join("victim"), dir.join("link"));
        std::fs::create_dir(&victim).unwrap();
        symlink(&victim, &link).unwrap();
        let resolved = |path: PathBuf| resolve(path.to_str().unwrap());
        assert_eq!(resolved(link.join("a/b")).unwrap(), victim.join("a/b").to_str().unwrap());
        assert_eq!(resolved(link.join("../victim")).unwrap(), victim.to_str().unwrap());
        let error = resolved(dir.join("not/there/../a")).unwrap_err();
        assert!(error.message.contains("without .."), "{error}");
        assert!(resolve("grants").unwrap_err().message.contains("is not absolute"));

        symlink(dir.join("nowhere"), dir.join("dangling")).unwrap();
        for path in [link.clone(), link.join("a/b"), dir.join("dangling")] {
            let error = make(&path, OWN).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP), "{}", path.display());
            assert_eq!(clear(&path).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        }
        assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
        assert!(!dir.join("nowhere").exists());
    }

    #[test]
    fn with_a_grant_that_has_ended_goes_its_socket_and_nothing_else() {
        let (_dir, dir) = scratch();
        let socket = dir.join(SOCKET);
        drop(UnixListener::bind(&socket).unwrap());
        clear(&dir).unwrap();
        assert!(socket.symlink_metadata().is_err());
        for nothing in [&dir, &dir.join("not/there")] {
            clear(nothing).unwrap();
        }
        std::fs::write(&socket, "mine").unwrap();
        clear(&dir).unwrap();
        assert_eq!(std::fs::read_to_string(&socket).unwrap(), "mine");
    }
}
