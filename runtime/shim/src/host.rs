//! Streams that a client names by a path of the host. The daemon has checked that it may.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use cofferdam_types::{Error, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::SFlag;

use crate::sink::kind;

/// A FIFO to read from, and an opening that is a writer too: the others may go without ending the input.
pub fn fifo_input(path: &str) -> Result<(OwnedFd, OwnedFd)> {
    let hold = fifo_output(path)?;
    // There is a writer, so that this waits for none.
    let read = File::open(format!("/proc/self/fd/{}", hold.as_raw_fd()));
    Ok((read.map_err(|e| Error::io("fifo", path, "can't be opened", &e))?.into(), hold))
}

/// A FIFO to write to, opened for both: nobody has to read it yet.
pub fn fifo_output(path: &str) -> Result<OwnedFd> {
    let io = |e: std::io::Error| Error::io("fifo", path, "can't be opened", &e);
    absolute("fifo", path)?;
    // Looked at before it is opened: to open something else may do something.
    let found = OwnedFd::from(File::options().read(true).custom_flags(libc::O_PATH).open(path).map_err(io)?);
    if kind(&found)? != SFlag::S_IFIFO {
        return Err(Error::invalid("fifo", path, "is no FIFO: make one with mkfifo, or name it as a file"));
    }
    let both = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", found.as_raw_fd()));
    Ok(both.map_err(io)?.into())
}

/// A file to read from.
pub fn file_input(path: &str) -> Result<OwnedFd> {
    regular(path, File::options().read(true))
}

/// A file to append to; it is made if it isn't there.
pub fn file_output(path: &str) -> Result<OwnedFd> {
    regular(path, File::options().append(true).create(true).mode(0o600))
}

fn regular(path: &str, options: &mut std::fs::OpenOptions) -> Result<OwnedFd> {
    absolute("file", path)?;
    let wrong =
        || Error::invalid("file", path, "is no regular file: name a FIFO as one, and pass others as descriptors");
    let opened = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = OwnedFd::from(opened.map_err(|e| match e.raw_os_error() {
        // A FIFO that nobody reads, or a directory.
        Some(libc::ENXIO | libc::EISDIR) => wrong(),
        _ => Error::io("file", path, "can't be opened", &e),
    })?);
    if kind(&file)? != SFlag::S_IFREG {
        return Err(wrong());
    }
    let io = |e: nix::Error| Error::io("file", path, "can't be set up", &e.into());
    let flags = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL).map_err(io)?);
    fcntl(&file, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK)).map_err(io)?;
    Ok(file)
}

fn absolute(what: &'static str, path: &str) -> Result<()> {
    if path.starts_with('/') { Ok(()) } else { Err(Error::invalid(what, path, "must be an absolute path of the host")) }
}
