//! Files go into a container and out of it, as a tar archive.
//!
//! Nothing is run for that, and nothing of the container's is believed: its root is held as a descriptor, every path is
//! resolved beneath that, by the kernel as if it were the root (`RESOLVE_IN_ROOT`, no magic links) or one name at a time,
//! whatever is put in the way meanwhile. While it runs the root is the one that its first process sees, volumes and
//! all; otherwise it is its snapshot, and no task is made until the copy is done. Whoever removes the container by force ends
//! the copies of it: at the other end of one there may be somebody who takes nothing, or gives nothing.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use actix::{Context, Handler, ResponseFuture};
use cofferdam_archive::{ApplyOptions, Put};
use cofferdam_kernel::Fair;
use cofferdam_metadata::records::containers;
use cofferdam_sys::userns::IdMaps;
use cofferdam_types::{Error, GrantId, Id, Namespace, Result};
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::Mode,
};
use tokio::sync::{OwnedMutexGuard, watch};

use crate::{
    actor::{Ctx, Key, TasksActor, note},
    create::{mounted, root_mounts},
    entry::Entry,
    messages::OpenFiles,
    shim::from_shim,
};

/// The longest path that is taken.
const LONGEST: usize = 4096;
/// How often a path is resolved again while somebody moves what is on it.
const TRIES: usize = 64;

/// A container's root file system, held for a copy.
#[derive(Debug)]
pub(crate) struct Files {
    root: OwnedFd,
    /// Those of the user namespace in which it is mounted.
    ids: Option<IdMaps>,
    /// Whether device nodes may be made.
    devices: bool,
    stop: Stop,
    /// Nobody makes or removes its task meanwhile.
    _turn: Option<OwnedMutexGuard<()>>,
}

/// Copies of each container, under way and to come: what tells them that they end.
#[derive(Clone, Default)]
pub(crate) struct Copies(Rc<RefCell<BTreeMap<Key, watch::Sender<bool>>>>);

impl Copies {
    fn begin(&self, ns: &Namespace, id: &Id) -> Stop {
        let mut copies = self.0.borrow_mut();
        copies.retain(|_, copies| copies.receiver_count() > 0);
        Stop { id: id.clone(), told: copies.entry((ns.clone(), id.clone())).or_default().subscribe() }
    }

    /// Ends those that there are by now.
    pub fn end(&self, ns: &Namespace, id: &Id) {
        if let Some(copies) = self.0.borrow_mut().remove(&(ns.clone(), id.clone())) {
            copies.send_replace(true);
        }
    }
}

/// Whether a copy is to end.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    id: Id,
    told: watch::Receiver<bool>,
}

impl Stop {
    /// Waits until it is.
    pub async fn told(&mut self) -> Error {
        if self.told.wait_for(|told| *told).await.is_err() {
            // The actor crashed, and another has its work: nobody ends this one any more.
            std::future::pending::<()>().await;
        }
        Error::cancelled("container", &self.id, "is being removed, and nothing is copied any more")
    }
}

/// How an archive is unpacked in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// Where.
    pub path: String,
    /// It is a directory that is there, and all goes into it. Otherwise the one thing at the archive's top goes into the
    /// directory that is there, or takes that name in the one above.
    pub into: bool,
    /// Owners are those that the archive says, and not root.
    pub keep_owners: bool,
}

impl Handler<OpenFiles> for TasksActor {
    type Result = ResponseFuture<Result<Files>>;
    fn handle(&mut self, message: OpenFiles, _: &mut Context<Self>) -> Self::Result {
        note("OpenFiles", &message.namespace, &message.id, &message.authority);
        let ctx = self.ctx.clone();
        Box::pin(async move { ctx.files(message).await })
    }
}

impl Ctx {
    async fn files(&self, message: OpenFiles) -> Result<Files> {
        let OpenFiles { namespace, id, authority } = message;
        let mut stop = self.copies.begin(&namespace, &id);
        let turn = tokio::select! {
            turn = self.turn(&namespace, &id) => turn,
            error = stop.told() => return Err(error),
        };
        let container = containers::get(&self.deps.metadata.read()?, &namespace, &id)?;
        let devices = authority.ceiling.host;
        let entry = self.entries.borrow().get(&(namespace.clone(), id.clone())).cloned();
        if let Some(entry) = entry {
            if entry.init.ended().is_none() {
                entry.link.settled().await?;
            }
            if entry.init.ended().is_none() {
                let (root, ids) = of_task(&entry).await?;
                return Ok(Files { root, ids, devices, stop, _turn: None });
            }
        }
        let run = serde_json::from_slice(&container.options).unwrap_or_default();
        let mounts = root_mounts(&self.deps, &namespace, &container, &run).await?;
        if mounts.is_empty() {
            let why = "has no files of its own: its spec names a directory of the host";
            return Err(Error::failed_precondition("container", &id, why));
        }
        let root = tokio::task::spawn_blocking(move || mounted(&mounts)).await;
        let root = root.unwrap_or_else(|e| Err(Error::internal("container", &id, e.to_string())))?;
        Ok(Files { root, ids: None, devices, stop, _turn: Some(turn) })
    }
}

/// The root that a task's first process has, and the ids that it has where they are not the daemon's.
async fn of_task(entry: &Rc<Entry>) -> Result<(OwnedFd, Option<IdMaps>)> {
    let id = &entry.id;
    let remote = entry.remote().await?;
    let pid = entry.init.life.borrow().pid;
    if pid == 0 {
        return Err(Error::failed_precondition("task", id, "is created and has no process yet: start it first"));
    }
    let ended = || Error::failed_precondition("task", id, "has just ended: try again");
    let process = File::open(format!("/proc/{pid}")).map_err(|_| ended())?;
    // Only now it is sure whose number it is: what is in the cgroup has not been taken in.
    let answer = entry.answer(&remote, remote.container.pids_request().send().promise).await?;
    let pids = answer.get().and_then(|answer| answer.get_pids()).map_err(from_shim)?;
    if !pids.iter().any(|other| other == pid) {
        return Err(ended());
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = openat(&process, "root", flags, Mode::empty()).map_err(|_| ended())?;
    Ok((root, IdMaps::of_process(process.as_fd()).map_err(|_| ended())?))
}

/// A path of the container as names from its root on; whether it must be a directory.
fn names(path: &str) -> Result<(PathBuf, bool)> {
    if path.is_empty() || path.len() > LONGEST || path.contains('\0') {
        return Err(Error::invalid("path", path.get(..64).unwrap_or(path), "is empty, too long, or has a NUL in it"));
    }
    let mut names = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            _ => {}
        }
    }
    Ok((names, path.ends_with('/') || path.ends_with("/.")))
}

/// What is at a path, as if `root` were the root.
fn resolve(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let mut tries = 0;
    loop {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN) if tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

fn fault(path: &str, errno: Errno) -> Error {
    match errno {
        Errno::ENOENT => Error::not_found("path", path, "does not exist in the container"),
        Errno::ENOTDIR => Error::invalid("path", path, "is not a directory"),
        Errno::ELOOP => Error::invalid("path", path, "leads through too many links, or through one of /proc"),
        _ => Error::io("path", path, "can't be opened", &errno.into()),
    }
}

/// Packs what is at `path`, until that is done or to end: what is at the other end of `out` is closed then, or waits for ever.
pub(crate) async fn take(files: Files, path: String, out: OwnedFd, pool: &Fair, whose: Option<GrantId>) -> Result<()> {
    let mut stop = files.stop.clone();
    tokio::select! {
        packed = pool.run(whose, move || pack(&files, &path, out)) => packed,
        error = stop.told() => Err(error),
    }
}

/// A link itself, unless what it leads to must be a directory.
fn pack(files: &Files, path: &str, out: OwnedFd) -> Result<()> {
    let (names, directory) = names(path)?;
    let flags = if directory { OFlag::O_DIRECTORY } else { OFlag::O_NOFOLLOW };
    let handle = resolve(files.root.as_fd(), &names, flags).map_err(|errno| fault(path, errno))?;
    let contents = path.ends_with("/.") || path == ".";
    let top = if contents { None } else { names.file_name() };
    let (top, ids) = (Path::new(top.unwrap_or_default()), files.ids.as_ref());
    cofferdam_diff::pack_as(handle.as_fd(), top, ids, File::from(out), &|| Ok(()))
}

/// Calls `f` with the ids that root has in a user namespace where files are concerned: on a thread of its own, so that no
/// other work ever has them.
fn as_root_of<T: Send>(ids: &IdMaps, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let (uid, gid) = ids.outer_root();
    let failed = |e: &io::Error| Error::io("path", "", "taking the ids of the container's root", e);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("copy".into())
            .spawn_scoped(scope, || cofferdam_sys::process::with_file_ids(uid, gid, f).map_err(|e| failed(&e))?);
        let ended = thread.map_err(|e| failed(&e))?.join();
        ended.unwrap_or_else(|_| Err(Error::internal("path", "", "the thread that copies panicked")))
    })
}

/// Where an archive is to be unpacked: looked at, not yet touched.
pub struct Arrival {
    files: Files,
    put: Put,
    pool: Fair,
    whose: Option<GrantId>,
}

impl Arrival {
    pub(crate) fn new(files: Files, options: &CopyOptions, pool: Fair, whose: Option<GrantId>) -> Result<Arrival> {
        let path = &*options.path;
        let (at, directory) = names(path)?;
        let ids = files.ids.clone();
        let owner = (!options.keep_owners).then(|| ids.as_ref().map_or((0, 0), IdMaps::root));
        let found = resolve(files.root.as_fd(), &at, OFlag::O_DIRECTORY);
        let put = match found {
            Ok(_) => Put { at, name: None, owner, ids },
            Err(Errno::ENOENT | Errno::ENOTDIR) if !options.into && !directory => {
                let (Some(above), Some(name)) = (at.parent(), at.file_name()) else {
                    return Err(fault(path, Errno::ENOENT));
                };
                resolve(files.root.as_fd(), above, OFlag::O_DIRECTORY).map_err(|errno| fault(path, errno))?;
                Put { at: above.to_owned(), name: Some(OsString::from(name)), owner, ids }
            }
            Err(errno) => return Err(fault(path, errno)),
        };
        Ok(Arrival { files, put, pool, whose })
    }

    /// Unpacks what `source` gives, until that is done or to end, also with `ended`: then nothing more is unpacked once `source` ends,
    /// which is for the caller to see to. What was unpacked before an error stays.
    pub async fn unpack(self, source: OwnedFd, ended: impl Future<Output = Error>) -> Result<()> {
        let Arrival { files, put, pool, whose } = self;
        let mut stop = files.stop.clone();
        let cancel = Arc::new(AtomicBool::new(false));
        let cancelled = cancel.clone();
        let unpacking = pool.run(whose, move || {
            let options = ApplyOptions { put: Some(put), devices: files.devices, ..ApplyOptions::default() };
            let apply = || cofferdam_archive::apply(files.root.as_fd(), File::from(source), &options, &cancelled);
            let applied = match &files.ids {
                None => apply(),
                // Whom the namespace doesn't have can't make a file in it.
                Some(ids) => as_root_of(ids, apply),
            };
            applied.map(drop).map_err(|error| Error { kind: "path".into(), ..error })
        });
        let error = tokio::select! {
            unpacked = unpacking => return unpacked,
            error = stop.told() => error,
            error = ended => error,
        };
        cancel.store(true, Ordering::Relaxed);
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;
    use tokio::sync::Mutex;

    use super::*;

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(10), what).await.expect("in time")
    }

    // At the other end of each there is somebody who neither gives nor takes.
    #[test]
    fn a_copy_ends_with_its_grant_and_with_its_container_and_leaves_the_turn() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("large"), vec![0; 1 << 20]).unwrap();
        let (copies, turn, pool) = (Copies::default(), Arc::new(Mutex::new(())), Fair::new("copies", 2, 2));
        let (ns, id) = (Namespace::default_namespace(), Id::new("web").unwrap());
        let files = async || Files {
            root: File::open(dir.path()).unwrap().into(),
            ids: None,
            devices: false,
            stop: copies.begin(&ns, &id),
            _turn: Some(turn.clone().lock_owned().await),
        };
        let arrival = async || {
            let options = CopyOptions { path: "/".into(), into: true, keep_owners: false };
            Arrival::new(files().await, &options, pool.clone(), None).unwrap()
        };
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        actix_rt::System::new().block_on(async {
            let (read, write) = pipe();
            let revoked = async { Error::revoked("grant", "", "was taken back") };
            let error = soon(arrival().await.unpack(read, revoked)).await.unwrap_err();
            assert_eq!(error.code, cofferdam_types::Code::Revoked);
            drop(write);
            drop(soon(turn.lock()).await);

            let (read, write) = pipe();
            let unpacking = arrival().await.unpack(read, std::future::pending());
            let (unpacked, ()) = soon(async { tokio::join!(unpacking, async { copies.end(&ns, &id) }) }).await;
            assert_eq!(unpacked.unwrap_err().code, cofferdam_types::Code::Cancelled);
            drop(write);
            drop(soon(turn.lock()).await);

            let (read, write) = pipe();
            let packing = take(files().await, "/large".into(), write, &pool, None);
            let (packed, ()) = soon(async { tokio::join!(packing, async { copies.end(&ns, &id) }) }).await;
            assert_eq!(packed.unwrap_err().code, cofferdam_types::Code::Cancelled);
            drop(read);
            drop(soon(turn.lock()).await);

            // Those that come later are others.
            let (read, write) = pipe();
            drop(write);
            let unpacked = soon(arrival().await.unpack(read, std::future::pending())).await;
            assert!(unpacked.err().is_none_or(|error| error.code != cofferdam_types::Code::Cancelled));
            assert!(soon(files().await.stop.told()).now_or_never().is_none());
        });
    }
}
