//! From a client's wishes for its streams to descriptors: which go straight to the process, which through the shim.
//!
//! A pipe or file that nobody else needs to see is handed over directly: its bytes never pass the shim. What is logged,
//! attached to or a terminal goes through an [`Output`](crate::output::Output).

use std::{fs::File, os::fd::OwnedFd};

use cofferdam_log::Stream;
use cofferdam_types::{Error, Result};
use cofferdam_wire::{
    common_capnp::{input, output, stdio},
    convert::text,
    error::malformed,
    fdstream::Fds,
};
use nix::fcntl::OFlag;

use crate::{host, output::nonblocking, sink::Sink};

/// A stream as the client named it, its descriptor taken off the connection.
pub enum Wish {
    /// /dev/null.
    Null,
    /// A descriptor of the client's.
    Fd(OwnedFd),
    /// Input only: a pipe whose write end we hold.
    Pipe,
    /// Input only: a FIFO of the host, and the opening that keeps it from ending with a writer.
    Fifo(OwnedFd, OwnedFd),
}

impl Wish {
    fn sink(self) -> Result<Option<Sink>> {
        Ok(match self {
            Wish::Null | Wish::Pipe | Wish::Fifo(..) => None,
            Wish::Fd(fd) => Some(Sink::fd(fd, true)?),
        })
    }

    /// As a sink of a client that attached later.
    pub fn late_sink(self) -> Result<Option<Sink>> {
        Ok(match self {
            Wish::Null | Wish::Pipe | Wish::Fifo(..) => None,
            Wish::Fd(fd) => Some(Sink::fd(fd, false)?),
        })
    }
}

/// All three, and the terminal's size.
pub struct Wishes {
    /// Standard input.
    pub stdin: Wish,
    /// Standard output.
    pub stdout: Wish,
    /// Standard error.
    pub stderr: Wish,
    /// Height and width; zeros leave them to the spec.
    pub size: (u16, u16),
}

impl Wishes {
    /// Reads the message and takes the descriptors that it names.
    pub fn read(reader: stdio::Reader<'_>, fds: &Fds) -> Result<Wishes> {
        let stdin = if !reader.has_stdin() {
            Wish::Null
        } else {
            match reader.get_stdin().map_err(malformed)?.which().map_err(|e| malformed(e.into()))? {
                input::Null(()) => Wish::Null,
                input::Fd(number) => Wish::Fd(fds.take(number)?.into_fd()),
                input::Stream(()) => Wish::Pipe,
                input::Fifo(path) => {
                    let (read, hold) = host::fifo_input(text(path)?)?;
                    Wish::Fifo(read, hold)
                }
                input::File(path) => Wish::Fd(host::file_input(text(path)?)?),
            }
        };
        let out = |has: bool, reader: capnp::Result<output::Reader<'_>>| -> Result<Wish> {
            if !has {
                return Ok(Wish::Null);
            }
            Ok(match reader.map_err(malformed)?.which().map_err(|e| malformed(e.into()))? {
                output::Null(()) => Wish::Null,
                output::Fd(number) => Wish::Fd(fds.take(number)?.into_fd()),
                output::Stream(_) => {
                    return Err(Error::unimplemented("output", "", "a shim writes to descriptors alone"));
                }
                output::Fifo(path) => Wish::Fd(host::fifo_output(text(path)?)?),
                output::File(path) => Wish::Fd(host::file_output(text(path)?)?),
            })
        };
        Ok(Wishes {
            stdin,
            stdout: out(reader.has_stdout(), reader.get_stdout())?,
            stderr: out(reader.has_stderr(), reader.get_stderr())?,
            size: (reader.get_rows(), reader.get_columns()),
        })
    }
}

/// What the process gets.
pub enum Given {
    /// These three.
    Fds([OwnedFd; 3]),
    /// A terminal of this size.
    Terminal((u16, u16)),
}

/// The shim's side of one output: where it reads, which stream it is, and the client's sink.
pub struct Relay {
    /// The read end; `None` for a terminal, whose master comes from the driver.
    pub source: Option<OwnedFd>,
    /// Which of the process's streams.
    pub stream: Stream,
    /// The client that started the process.
    pub sink: Option<Sink>,
}

/// The shim's side of the input.
pub enum Feed {
    /// Nothing to do.
    None,
    /// The write end of the process's pipe.
    Pipe(OwnedFd),
    /// The client's descriptor, to be read into the terminal, and what holds it open.
    Terminal(OwnedFd, Option<OwnedFd>),
    /// What holds the process's FIFO open.
    Held(OwnedFd),
    /// The write end of the process's pipe, and the client's descriptor, to be read into it.
    Through(OwnedFd, OwnedFd),
}

/// A process's streams, ready for the driver.
pub struct Prepared {
    /// For the process.
    pub given: Given,
    /// For the shim.
    pub relays: Vec<Relay>,
    /// For the shim.
    pub feed: Feed,
}

/// User and group; `None` leaves them as they are.
pub type Owner = (Option<u32>, Option<u32>);

/// What of a process's streams goes through the shim, beside a terminal's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// What nobody else can be.
    Nothing,
    /// The outputs, so that they can be logged and attached to.
    Outputs,
    /// All of them, so that they can be cut.
    All,
}

/// Makes the pipes. Whichever the process gets belong to `owner`.
pub fn prepare(wishes: Wishes, terminal: bool, through: Through, owner: Owner) -> Result<Prepared> {
    let keep = through != Through::Nothing;
    if terminal {
        let feed = match wishes.stdin {
            Wish::Fd(fd) => Feed::Terminal(fd, None),
            Wish::Fifo(fd, hold) => Feed::Terminal(fd, Some(hold)),
            _ => Feed::None,
        };
        let relay = Relay { source: None, stream: Stream::Stdout, sink: wishes.stdout.sink()? };
        return Ok(Prepared { given: Given::Terminal(wishes.size), relays: vec![relay], feed });
    }
    let (stdin, feed) = match wishes.stdin {
        Wish::Null => (null()?, Feed::None),
        Wish::Fd(source) if through == Through::All => {
            let (read, write) = pipe()?;
            nonblocking(&write).map_err(|e| Error::io("stdin", "", "can't be set up", &e))?;
            (read, Feed::Through(write, source))
        }
        Wish::Fd(fd) => (fd, Feed::None),
        Wish::Fifo(fd, hold) => (fd, Feed::Held(hold)),
        Wish::Pipe => {
            let (read, write) = pipe()?;
            nonblocking(&write).map_err(|e| Error::io("stdin", "", "can't be set up", &e))?;
            (read, Feed::Pipe(write))
        }
    };
    let mut relays = Vec::new();
    let mut out = |wish: Wish, stream: Stream| -> Result<OwnedFd> {
        match wish {
            Wish::Null if !keep => null(),
            Wish::Fd(fd) if !keep => Ok(fd),
            wish => {
                let (read, write) = pipe()?;
                nonblocking(&read).map_err(|e| Error::io("output", "", "can't be set up", &e))?;
                relays.push(Relay { source: Some(read), stream, sink: wish.sink()? });
                Ok(write)
            }
        }
    };
    let (stdout, stderr) = (out(wishes.stdout, Stream::Stdout)?, out(wishes.stderr, Stream::Stderr)?);
    let given = [stdin, stdout, stderr];
    if owner != (None, None) {
        given.iter().try_for_each(|fd| own(fd, owner))?;
    }
    Ok(Prepared { given: Given::Fds(given), relays, feed })
}

/// A FIFO of the host is no pipe of the container's.
fn own(fd: &OwnedFd, (uid, gid): Owner) -> Result<()> {
    use nix::unistd::{Gid, Uid, fchown};
    let fail = |e: std::io::Error| Error::io("pipe", "", "can't be given to ioUid and ioGid", &e);
    const PIPEFS: i64 = 0x5049_5045;
    if cofferdam_sys::fd::filesystem(fd).map_err(fail)? != PIPEFS {
        return Ok(());
    }
    fchown(fd, uid.map(Uid::from_raw), gid.map(Gid::from_raw)).map_err(|e| fail(e.into()))
}

fn null() -> Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/null");
    Ok(file.map_err(|e| Error::io("fd", "/dev/null", "can't be opened", &e))?.into())
}

/// Both ends close on exec.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| Error::io("pipe", "", "can't be made", &e.into()))
}
