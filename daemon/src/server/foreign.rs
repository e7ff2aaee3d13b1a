//! A descriptor of a client's, made ready to be read or written without waiting.
//!
//! Its flags are the client's and stay as they are: pipes and terminals are opened again, non-blocking, and of sockets each
//! call says that it doesn't wait. A file can say nothing of the kind, and its file system may be a program of the client's that
//! never answers (FUSE): what the kernel can't read at once is read, or written, by a thread of its own behind a pipe of ours. There
//! are few of these for those who would hold one for ever, and others wait for none of them.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
};

use cofferdam_types::{Error, Result};
use cofferdam_wire::received::{Received, Room};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        socket::{getsockopt, sockopt},
        stat::SFlag,
        statfs::{FUSE_SUPER_MAGIC, fstatfs},
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
};

use super::bytes::{End, pipe};

/// How many files of one user, or of one grant, are read and written so at a time, and of all others than the operator.
pub const FILES: usize = 4;
pub const FILES_OF_ALL: usize = 32;

/// What is to be done with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It is read.
    In,
    /// It is written to.
    Out,
}

impl Way {
    pub fn fault(self, e: &io::Error) -> Error {
        let what = match self {
            Way::In => "can't be read",
            Way::Out => "can't be written to",
        };
        match e.raw_os_error() {
            // What it is an opening of has no bytes to give or take.
            Some(libc::EINVAL | libc::EISDIR | libc::EOPNOTSUPP) => Error::invalid("fd", "", format!("{what}: {e}")),
            _ => Error::io("fd", "", what, e),
        }
    }
}

/// What is read or written.
#[derive(Debug)]
enum Opening {
    /// As it came.
    Theirs(Received),
    /// Opened again, or a pipe of ours.
    Ours(OwnedFd),
}

#[derive(Debug)]
pub struct Foreign {
    opening: Opening,
    pub socket: bool,
    pub pipe: bool,
    /// Whether who has the other end can make us wait.
    waits: bool,
}

/// Tells how a thread fared that reads or writes a file.
pub struct Aside(oneshot::Receiver<io::Result<()>>, Way);

impl Aside {
    /// Waits for its end.
    pub async fn done(self) -> Result<()> {
        match self.0.await {
            Ok(done) => done.map_err(|e| self.1.fault(&e)),
            Err(_) => Err(Error::internal("fd", "", "was not read to its end")),
        }
    }
}

impl Foreign {
    /// One that may be waited for; and, where a file is behind it that may not, the thread that does.
    pub async fn take(fd: Received, way: Way, files: &Arc<Room>) -> Result<(Foreign, Option<Aside>)> {
        let os = |e: nix::Error| way.fault(&e.into());
        let kind = fd.kind().map_err(|e| way.fault(&e))?;
        // What is opened again is opened with the daemon's rights: it must be open for this as it came.
        let mode = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL).map_err(os)?);
        let (access, otherwise) = match way {
            Way::In => (OFlag::O_RDONLY, "is not open for reading: give one that can be read"),
            Way::Out => (OFlag::O_WRONLY, "is open for reading alone: give one that can be written to"),
        };
        if mode.contains(OFlag::O_PATH) || ![access, OFlag::O_RDWR].contains(&(mode & OFlag::O_ACCMODE)) {
            return Err(Error::invalid("fd", "", otherwise));
        }
        let plain = |opening, socket, pipe, waits| (Foreign { opening, socket, pipe, waits }, None);
        match kind {
            SFlag::S_IFREG if way == Way::In && fd.readable_at_once() => {
                Ok(plain(Opening::Theirs(fd), false, false, false))
            }
            SFlag::S_IFREG => {
                let (ours, aside) = aside(fd, way, files)?;
                Ok((Foreign { opening: Opening::Ours(ours), socket: false, pipe: true, waits: true }, Some(aside)))
            }
            // One that others connect to has nothing to read, ever.
            SFlag::S_IFSOCK if getsockopt(&fd, sockopt::AcceptConn).map_err(os)? => {
                Err(Error::invalid("fd", "", "is a socket that listens: give one that is connected"))
            }
            SFlag::S_IFSOCK => Ok(plain(Opening::Theirs(fd), true, false, true)),
            SFlag::S_IFIFO | SFlag::S_IFCHR => {
                let flags = (access | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
                let pipe = kind == SFlag::S_IFIFO;
                let opened = if fd.is_nameless() {
                    cofferdam_sys::fd::reopen(&fd, flags)
                } else {
                    // To open it by its name asks the file system that this lies on.
                    let opened = on_a_thread(files, move || cofferdam_sys::fd::reopen(&fd, flags))?.await;
                    opened.map_err(|_| Error::internal("fd", "", "was not opened"))?
                };
                let opened = opened.map_err(|e| way.fault(&e))?;
                Ok(plain(Opening::Ours(opened), false, pipe, true))
            }
            _ => Err(Error::invalid("fd", "", "is no pipe, socket, terminal or file: give one of these")),
        }
    }
}

/// Does what may never come back, on a thread of its own that counts for as long as it is there.
fn on_a_thread<R: Send + 'static>(
    files: &Arc<Room>,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<oneshot::Receiver<R>> {
    let Some(place) = files.place() else {
        let why = "is on a file system that may keep its reader waiting, and as many such are being read and written as may be: wait \
                   for one to end, or give a pipe";
        return Err(Error::resource_exhausted("fd", "", why));
    };
    let (tell, told) = oneshot::channel();
    let run = move || {
        let done = work();
        drop(place);
        let _ = tell.send(done);
    };
    thread::Builder::new().name("file".into()).spawn(run).map_err(|e| Error::io("fd", "", "can't be read", &e))?;
    Ok(told)
}

/// Copies between a file and a pipe, of which the other end is given.
fn aside(fd: Received, way: Way, files: &Arc<Room>) -> Result<(OwnedFd, Aside)> {
    let (read, write) = pipe(if way == Way::In { End::Read } else { End::Write })?;
    let (from, to, ours) = match way {
        Way::In => (fd, Received::from(write), read),
        Way::Out => (Received::from(read), fd, write),
    };
    let copy = move || {
        // They are closed here too: that may take as long.
        let (mut from, mut to) = (File::from(from.into_fd()), File::from(to.into_fd()));
        io::copy(&mut from, &mut to).map(drop)
    };
    Ok((ours, Aside(on_a_thread(files, copy)?, way)))
}

/// A descriptor to read an archive from, by whoever may not be kept waiting by a file system.
pub async fn archive(fd: Received, files: &Arc<Room>) -> Result<OwnedFd> {
    match fd.kind().map_err(|e| Way::In.fault(&e))? {
        SFlag::S_IFDIR => vouched(fd, files).await,
        SFlag::S_IFREG if !fd.readable_at_once() => {
            let (read, aside) = aside(fd, Way::In, files)?;
            tokio::task::spawn_local(async move {
                // Who reads the archive finds it cut short.
                if let Err(error) = aside.done().await {
                    tracing::warn!(%error, "an archive ends before its time");
                }
            });
            Ok(read)
        }
        _ => Ok(fd.into_fd()),
    }
}

/// The same descriptor, unless it is a file or directory of a file system that is a program.
pub async fn vouched(fd: Received, files: &Arc<Room>) -> Result<OwnedFd> {
    if !matches!(fd.kind(), Ok(SFlag::S_IFREG | SFlag::S_IFDIR)) {
        return Ok(fd.into_fd());
    }
    let ask = move || {
        let asked = fstatfs(&fd).map(|known| known.filesystem_type());
        (fd, asked)
    };
    let told = on_a_thread(files, ask)?.await;
    let (fd, asked) = told.map_err(|_| Error::internal("fd", "", "was not looked at"))?;
    if asked.map_err(|e| Error::io("fd", "", "can't be looked at", &e.into()))? == FUSE_SUPER_MAGIC {
        let why = "is on a file system that is a program (FUSE), which may never answer: give a pipe";
        return Err(Error::failed_precondition("fd", "", why));
    }
    Ok(fd.into_fd())
}

impl Foreign {
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.opening {
            Opening::Theirs(fd) => fd.as_fd(),
            Opening::Ours(fd) => fd.as_fd(),
        }
    }

    /// What tells when there is something to do; none where there always is. It has a descriptor of its own for the same
    /// opening: other threads read or write meanwhile.
    pub fn watch(&self, interest: Interest) -> Result<Option<AsyncFd<OwnedFd>>> {
        if !self.waits {
            return Ok(None);
        }
        let watch = || {
            let fd = self.fd().try_clone_to_owned()?;
            // SAFETY: an `OwnedFd` stays open and the same for as long as the `AsyncFd` owns it.
            io::Result::Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
        };
        match watch() {
            Ok(ready) => Ok(Some(ready)),
            // /dev/null and its like can't be watched, and never make anybody wait.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(None),
            Err(e) => Err(unwatched(&e)),
        }
    }
}

pub fn unwatched(e: &io::Error) -> Error {
    Error::io("fd", "", "can't be watched", e)
}
