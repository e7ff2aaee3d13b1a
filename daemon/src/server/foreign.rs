//! A descriptor of a client's, made ready to be read or written without waiting.
//!
//! Its flags are the client's and stay as they are: pipes and terminals are opened again, non-blocking, and of sockets each
//! call says that it doesn't wait.

use std::{io, os::fd::OwnedFd};

use cofferdam_types::{Error, Result};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        socket::{getsockopt, sockopt},
        stat::{SFlag, fstat},
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// What is to be done with it.
#[derive(Clone, Copy)]
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

pub struct Foreign {
    pub fd: OwnedFd,
    pub socket: bool,
    /// Whether who has the other end can make us wait.
    waits: bool,
}

impl Foreign {
    pub fn take(fd: OwnedFd, way: Way) -> Result<Foreign> {
        let os = |e: nix::Error| way.fault(&e.into());
        let kind = SFlag::from_bits_truncate(fstat(&fd).map_err(os)?.st_mode) & SFlag::S_IFMT;
        // What is opened again is opened with the daemon's rights: it must be open for this as it came.
        let mode = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL).map_err(os)?);
        let (access, otherwise) = match way {
            Way::In => (OFlag::O_RDONLY, "is not open for reading: give one that can be read"),
            Way::Out => (OFlag::O_WRONLY, "is open for reading alone: give one that can be written to"),
        };
        if mode.contains(OFlag::O_PATH) || ![access, OFlag::O_RDWR].contains(&(mode & OFlag::O_ACCMODE)) {
            return Err(Error::invalid("fd", "", otherwise));
        }
        match kind {
            SFlag::S_IFREG => Ok(Foreign { fd, socket: false, waits: false }),
            // One that others connect to has nothing to read, ever.
            SFlag::S_IFSOCK if getsockopt(&fd, sockopt::AcceptConn).map_err(os)? => {
                Err(Error::invalid("fd", "", "is a socket that listens: give one that is connected"))
            }
            SFlag::S_IFSOCK => Ok(Foreign { fd, socket: true, waits: true }),
            SFlag::S_IFIFO | SFlag::S_IFCHR => {
                let flags = (access | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
                let fd = cofferdam_sys::fd::reopen(&fd, flags).map_err(|e| way.fault(&e))?;
                Ok(Foreign { fd, socket: false, waits: true })
            }
            _ => Err(Error::invalid("fd", "", "is no pipe, socket, terminal or file: give one of these")),
        }
    }

    /// What tells when there is something to do; none where there always is. It has a descriptor of its own for the same
    /// opening: other threads read or write meanwhile.
    pub fn watch(&self, interest: Interest) -> Result<Option<AsyncFd<OwnedFd>>> {
        if !self.waits {
            return Ok(None);
        }
        let watch = || {
            let fd = self.fd.try_clone()?;
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
