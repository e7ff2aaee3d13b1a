//! What a container writes comes out of pipes and goes to coffer's own standard output and error: who has left sees no more
//! of it, and coffer knows what could not be written.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use libc::{STDERR_FILENO, STDOUT_FILENO};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::fstat,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{cx::say, failure::Failure, keys::watched, terminal};

/// What is read at once.
const BUFFER: usize = 16 << 10;
/// What has room at all takes so much without waiting (PIPE_BUF).
const PIECE: usize = 4096;
/// How long a pipe whose container has ended may be silent and have no end.
const SILENCE: Duration = Duration::from_secs(2);

/// What a container writes, shown where coffer writes itself.
pub struct Screen {
    out: Channel,
    /// `None` where it is one with the other: a terminal, or a file in which the order of both matters.
    err: Option<Channel>,
}

/// A pipe that the container writes to.
struct Channel {
    read: AsyncFd<OwnedFd>,
    write: OwnedFd,
    shown: Shown,
}

/// How far it is shown.
struct Shown {
    to: BorrowedFd<'static>,
    name: &'static str,
    stays: bool,
    /// The same, watched; `None` for a file, which never makes a writer wait for a reader. Of anything else the flags are
    /// shared with others and stay as they are: it is written to while it has room.
    watched: Option<AsyncFd<OwnedFd>>,
    /// Read and not yet written: who waits for the showing may let go of it in between.
    held: RefCell<Vec<u8>>,
    /// Something could not be written, and nothing is any more.
    lost: Cell<bool>,
}

impl Screen {
    /// Nothing is shown yet. Of a terminal there is one stream. `stays`: what can't be written ends nothing.
    pub fn open(tty: bool, stays: bool) -> Result<Screen, Failure> {
        let out = Channel::open(STDOUT_FILENO, "standard output", stays)?;
        let err = if tty || one_file() { None } else { Some(Channel::open(STDERR_FILENO, "standard error", stays)?) };
        Ok(Screen { out, err })
    }

    /// The ends that the container writes to, once more.
    pub fn outputs(&self) -> Result<[OwnedFd; 2], Failure> {
        let one = |channel: &Channel| channel.write.try_clone().map_err(|e| Failure::io("a pipe", e));
        Ok([one(&self.out)?, one(self.err.as_ref().unwrap_or(&self.out))?])
    }

    /// Shows what comes, for as long as somebody waits for it. Ends when nobody reads it any more.
    pub async fn show(&self) -> Failure {
        let err = async {
            match &self.err {
                Some(err) => err.show().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            failure = self.out.show() => failure,
            failure = err => failure,
        }
    }

    /// Shows what is left of a container that has ended, and says whether all that it wrote was shown. What else was made by
    /// `outputs` must be closed.
    pub async fn rest(self) -> Result<bool, Failure> {
        let Screen { out, err } = self;
        let err = async {
            match err {
                Some(err) => err.rest().await,
                None => Ok(true),
            }
        };
        let (out, err) = tokio::try_join!(out.rest(), err)?;
        Ok(out && err)
    }
}

impl Channel {
    fn open(to: RawFd, name: &'static str, stays: bool) -> Result<Channel, Failure> {
        // SAFETY: the standard descriptors are open from the start to the end of the program.
        let to = unsafe { BorrowedFd::borrow_raw(to) };
        let io = |e: nix::Error| Failure::io("a pipe", e);
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io)?;
        fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io)?;
        let read = watched(read, Interest::READABLE).map_err(|e| Failure::io("a pipe", e))?;
        let copy = to.try_clone_to_owned().map_err(|e| Failure::io(name, e))?;
        let watched = watched(copy, Interest::WRITABLE).ok();
        let shown = Shown { to, name, stays, watched, held: RefCell::default(), lost: Cell::new(false) };
        Ok(Channel { read, write, shown })
    }

    async fn show(&self) -> Failure {
        match self.shown.copy(&self.read, None).await {
            Err(failure) => failure,
            // We hold the other end.
            Ok(()) => std::future::pending().await,
        }
    }

    async fn rest(self) -> Result<bool, Failure> {
        let Channel { read, write, shown } = self;
        drop(write);
        shown.copy(&read, Some(SILENCE)).await?;
        Ok(!shown.lost.get())
    }
}

impl Shown {
    async fn copy(&self, from: &AsyncFd<OwnedFd>, patience: Option<Duration>) -> Result<(), Failure> {
        let mut buffer = vec![0; BUFFER];
        loop {
            self.put().await?;
            let reading = from.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut buffer)?));
            let n = match patience {
                None => reading.await,
                Some(patience) => match tokio::time::timeout(patience, reading).await {
                    Ok(n) => n,
                    Err(_) => return Ok(()),
                },
            };
            match n.map_err(|e| Failure::io("a pipe", e))? {
                0 => return Ok(()),
                n => self.held.borrow_mut().extend_from_slice(&buffer[..n]),
            }
        }
    }

    async fn put(&self) -> Result<(), Failure> {
        while !self.lost.get() && !self.held.borrow().is_empty() {
            match self.write().await {
                Ok(n) => drop(self.held.borrow_mut().drain(..n)),
                // Nobody is there to see it; the container goes on until it has heard of that.
                Err(_) if terminal::hung_up() => break,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Failure::output(error)),
                Err(error) => {
                    let text = Failure::io(self.name, error).text;
                    if !self.stays {
                        return Err(Failure::usage(format!("{text}: what it writes can't be written here")));
                    }
                    say(&format!("{text}: from here on what the container writes is not shown; it goes on"));
                    self.lost.set(true);
                }
            }
        }
        self.held.borrow_mut().clear();
        Ok(())
    }

    async fn write(&self) -> io::Result<usize> {
        let Some(out) = &self.watched else { return Ok(nix::unistd::write(self.to, &self.held.borrow())?) };
        let piece = |fd: &OwnedFd| {
            if !has_room(fd) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let held = self.held.borrow();
            Ok(nix::unistd::write(fd, &held[..held.len().min(PIECE)])?)
        };
        out.async_io(Interest::WRITABLE, piece).await
    }
}

/// Whether a write wouldn't wait.
fn has_room(fd: impl AsFd) -> bool {
    let mut asked = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Whether standard output and standard error are one file.
fn one_file() -> bool {
    let place = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino);
    match (fstat(io::stdout()), fstat(io::stderr())) {
        (Ok(out), Ok(err)) => place(out) == place(err),
        _ => false,
    }
}
