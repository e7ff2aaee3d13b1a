//! Where output goes: a client's descriptor, behind a ring that bounds what it may lag.
//!
//! A received descriptor's flags are never changed: it is shared with whoever sent it. Pipes and terminals are reopened
//! through /proc/self/fd, so that non-blocking is a property of our own opening alone.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    rc::{Rc, Weak},
};

use cofferdam_types::{Error, Result};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl, open},
    sys::{
        socket::{MsgFlags, send},
        stat::{Mode, SFlag, fstat},
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

/// What an attached client may lag behind.
pub const RING: usize = 64 << 10;

/// Opens a pipe or terminal again, non-blocking, without touching the flags of the one we were given.
pub fn reopen(fd: &OwnedFd, mode: OFlag) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(open(path.as_str(), mode | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Watches a descriptor for readiness.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and the same for as long as the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

fn access(fd: &OwnedFd) -> io::Result<OFlag> {
    Ok(OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE)
}

/// What kind of file a descriptor is.
pub fn kind(fd: &OwnedFd) -> Result<SFlag> {
    let stat = fstat(fd).map_err(|e| Error::io("fd", fd.as_raw_fd(), "can't be examined", &e.into()))?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
}

enum Target {
    /// A pipe or terminal, opened again.
    Reopened(AsyncFd<OwnedFd>),
    /// A socket: `send` with MSG_DONTWAIT leaves its flags alone.
    Socket(AsyncFd<OwnedFd>),
    /// A regular file never makes a writer wait for a reader.
    File(OwnedFd),
}

impl Target {
    /// Writes all of it, and counts it.
    async fn write(&self, mut bytes: &[u8], written: &Cell<u64>) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = match self {
                Target::Reopened(fd) => {
                    fd.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await?
                }
                Target::Socket(fd) => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    fd.async_io(Interest::WRITABLE, |fd| Ok(send(fd.as_raw_fd(), bytes, flags)?)).await?
                }
                Target::File(fd) => nix::unistd::write(fd, bytes)?,
            };
            bytes = &bytes[n..];
            written.set(written.get() + n as u64);
        }
        Ok(())
    }

    /// How much of it nobody has taken yet, as far as the kernel says. A pipe that is read from takes more only once a page of
    /// it is free: whether somebody reads doesn't show in what can be written.
    fn waiting(&self) -> u64 {
        let (fd, question) = match self {
            Target::Reopened(fd) if matches!(kind(fd.get_ref()), Ok(SFlag::S_IFIFO)) => (fd, libc::FIONREAD),
            // Of a socket too.
            Target::Reopened(fd) | Target::Socket(fd) => (fd, libc::TIOCOUTQ),
            Target::File(_) => return 0,
        };
        let mut bytes: libc::c_int = 0;
        // SAFETY: both write one int (ioctl_pipe(2), ioctl_tty(2), unix(7)), which lives across the call.
        let asked = unsafe { libc::ioctl(fd.get_ref().as_raw_fd(), question, &mut bytes) };
        if asked == 0 { bytes as u64 } else { 0 }
    }
}

struct Ring {
    bytes: RefCell<VecDeque<u8>>,
    /// The sink's task holds bytes that it took out and has not written yet.
    writing: Cell<bool>,
    /// So many bytes of it are written.
    written: Cell<u64>,
    /// Why it takes no more.
    over: Cell<Option<&'static str>>,
    changed: Notify,
    done: Notify,
    cutting: Notify,
}

impl Ring {
    /// Over for another reason than the process's end: what is left is not written any more.
    fn cut(&self) -> bool {
        self.over.get().is_some_and(|why| why != "exit")
    }

    /// Wakes those who wait for room, or for the end, and whoever is about to.
    fn tell(&self) {
        self.done.notify_waiters();
        self.done.notify_one();
    }

    /// Waits for that.
    async fn until_cut(&self) {
        loop {
            let gone = self.cutting.notified();
            if self.cut() {
                return;
            }
            gone.await;
        }
    }
}

/// One destination of a process's output.
#[derive(Clone)]
pub struct Sink {
    ring: Rc<Ring>,
    /// It is closed when the last is written.
    target: Weak<Target>,
    /// The client that started the process: it makes the process wait rather than lose bytes. Those that attached
    /// later are detached when they fall a ring behind.
    foreground: bool,
}

impl Sink {
    /// Writes to a client's descriptor.
    pub fn fd(fd: OwnedFd, foreground: bool) -> Result<Sink> {
        let os = |e: io::Error| Error::io("fd", "", "can't be written to", &e);
        let target = match kind(&fd)? {
            SFlag::S_IFREG => Target::File(fd),
            SFlag::S_IFSOCK => Target::Socket(watch(fd, Interest::WRITABLE).map_err(os)?),
            SFlag::S_IFIFO | SFlag::S_IFCHR => {
                // A FIFO that is open for reading too has no end when its readers go: it keeps that.
                let both = kind(&fd)? == SFlag::S_IFIFO && access(&fd).map_err(os)? == OFlag::O_RDWR;
                let fresh = reopen(&fd, if both { OFlag::O_RDWR } else { OFlag::O_WRONLY }).map_err(os)?;
                let tty_or_pipe = watch(fresh, Interest::WRITABLE);
                // /dev/null and its like can't be polled, and never make a writer wait.
                tty_or_pipe.map(Target::Reopened).unwrap_or(Target::File(fd))
            }
            other => {
                return Err(Error::invalid(
                    "fd",
                    "",
                    format!("is of type {other:?}: give a pipe, socket, terminal or file"),
                ));
            }
        };
        Ok(Sink::spawn(target, foreground))
    }

    fn spawn(target: Target, foreground: bool) -> Sink {
        let ring = Rc::new(Ring {
            bytes: RefCell::default(),
            writing: Cell::new(false),
            written: Cell::new(0),
            over: Cell::new(None),
            changed: Notify::new(),
            done: Notify::new(),
            cutting: Notify::new(),
        });
        let owned = Rc::new(target);
        let target = Rc::downgrade(&owned);
        tokio::task::spawn_local(drive(owned, ring.clone()));
        Sink { ring, target, foreground }
    }

    /// Whether it is this one.
    pub fn is(&self, other: &Sink) -> bool {
        Rc::ptr_eq(&self.ring, &other.ring)
    }

    /// A number that changes when its reader takes something.
    pub fn taken(&self) -> u64 {
        self.ring.written.get().wrapping_sub(self.target.upgrade().map_or(0, |target| target.waiting()))
    }

    /// Takes bytes in. A foreground sink waits for room; another is detached when it has none. `false`: it is over.
    pub async fn push(&self, bytes: &[u8]) -> bool {
        let mut last_chance = false;
        loop {
            if self.ring.over.get().is_some() {
                return false;
            }
            if self.ring.bytes.borrow().len() + bytes.len() <= RING {
                break;
            }
            if self.foreground {
                self.ring.done.notified().await;
                continue;
            }
            if last_chance {
                self.end("overflow");
                return false;
            }
            // Whoever calls this may have been reading for a while without letting the sink's own task write.
            last_chance = true;
            tokio::task::yield_now().await;
        }
        self.ring.bytes.borrow_mut().extend(bytes);
        self.ring.changed.notify_one();
        true
    }

    /// Takes no more bytes. At the process's end (`exit`) what it has is still written; otherwise the descriptor is
    /// closed at once, whatever its reader does.
    pub fn end(&self, why: &'static str) {
        if self.ring.over.get().is_none() {
            self.ring.over.set(Some(why));
        }
        self.tell();
    }

    /// The same of what it has from a process that has ended: that is not written any more.
    pub fn cut(&self, why: &'static str) {
        if !self.ring.cut() {
            self.ring.over.set(Some(why));
        }
        self.tell();
    }

    fn tell(&self) {
        self.ring.cutting.notify_waiters();
        self.ring.changed.notify_one();
        self.ring.tell();
    }

    /// Takes no more.
    pub fn is_over(&self) -> bool {
        self.ring.over.get().is_some()
    }

    /// Waits until all that it took in is written, or can't be.
    pub async fn flushed(&self) {
        while self.pending() {
            self.ring.done.notified().await;
        }
    }

    /// Whether it has something that is not written yet.
    pub fn pending(&self) -> bool {
        !self.ring.cut() && (self.ring.writing.get() || !self.ring.bytes.borrow().is_empty())
    }

    /// Waits until it is over, and says why: `exit`, `detached` or `overflow`.
    pub async fn over(&self) -> &'static str {
        loop {
            let notified = self.ring.done.notified();
            if let Some(why) = self.ring.over.get().filter(|_| !self.pending()) {
                return why;
            }
            notified.await;
        }
    }
}

async fn drive(target: Rc<Target>, ring: Rc<Ring>) {
    loop {
        if ring.cut() {
            ring.bytes.borrow_mut().clear();
        }
        let batch: Vec<u8> = ring.bytes.borrow_mut().drain(..).collect();
        if batch.is_empty() {
            if ring.over.get().is_some() {
                break;
            }
            ring.changed.notified().await;
            continue;
        }
        ring.writing.set(true);
        // There is room again, whether or not its reader takes what is in hand.
        ring.tell();
        let written = tokio::select! {
            written = target.write(&batch, &ring.written) => written.is_ok(),
            () = ring.until_cut() => false,
        };
        ring.writing.set(false);
        if !written {
            if !ring.cut() {
                // The reader is gone: that is a detach, not a failure of the process.
                ring.over.set(Some("detached"));
            }
            ring.bytes.borrow_mut().clear();
        }
        ring.tell();
    }
    ring.tell();
}

/// A borrowed descriptor's own copy.
pub fn duplicate(fd: &impl AsFd) -> Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned().map_err(|e| Error::io("fd", "", "can't be duplicated", &e))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
    };

    use super::*;

    /// A reader who doesn't read has a pipe full, what is in hand for him, and a ring.
    #[test]
    fn what_is_in_hand_leaves_the_ring_free() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let (mut reader, mut writer) = (File::from(read), File::from(write.try_clone().unwrap()));
        // Half of the pipe is taken, so that the first batch can't be written at once.
        writer.write_all(&vec![0; RING / 2]).unwrap();
        drop(writer);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let sink = Sink::fd(write, true).unwrap();
            let piece = vec![1; RING / 4];
            let pushes = async {
                for _ in 0..8 {
                    assert!(sink.push(&piece).await);
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(10), pushes)
                .await
                .expect("there is room for two rings");
            sink.end("exit");
            let all = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).map(|_| bytes)
            });
            sink.flushed().await;
            drop(sink);
            assert_eq!(all.await.unwrap().unwrap().len(), RING / 2 + 2 * RING);
        });
    }
}
