//! The far ends of a process's streams: pipes and terminals that a test makes.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Condvar, Mutex},
    time::Instant,
};

use cofferdam_client::{Input, Output};

use crate::wait::DEADLINE;

/// A pipe: read end, write end. Both are closed on exec, so that no other test's child holds one.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe")
}

/// An output to be given to a process, and what arrives there.
pub fn output() -> (Output, Arrivals) {
    let (read, write) = pipe();
    (Output::Fd(write), Arrivals::new(read))
}

/// An input to be given to a process, and where to write to.
pub fn input() -> (Input, File) {
    let (read, write) = pipe();
    (Input::Fd(read), write.into())
}

/// A terminal of the test's own, as a shell's user has one: master and slave.
pub fn terminal() -> (OwnedFd, OwnedFd) {
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    for fd in [&pty.master, &pty.slave] {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).expect("flags");
    }
    // As a client does: what is typed goes through untouched, the container's own terminal does the rest.
    let mut raw = nix::sys::termios::tcgetattr(&pty.slave).expect("its settings");
    nix::sys::termios::cfmakeraw(&mut raw);
    nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &raw).expect("raw mode");
    (pty.master, pty.slave)
}

#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    end: bool,
}

/// What arrives at a descriptor, read by a thread for as long as somebody writes.
#[derive(Clone)]
pub struct Arrivals(Arc<(Mutex<Seen>, Condvar)>);

impl Arrivals {
    /// Reads from now on.
    pub fn new(fd: OwnedFd) -> Arrivals {
        let arrivals = Arrivals(Arc::default());
        let shared = arrivals.0.clone();
        std::thread::spawn(move || {
            let mut file = File::from(fd);
            let mut buffer = vec![0; 64 << 10];
            loop {
                // A terminal's master says EIO when nobody has the slave any more.
                let n = file.read(&mut buffer).unwrap_or(0);
                let mut seen = shared.0.lock().expect("not poisoned");
                seen.bytes.extend(&buffer[..n]);
                seen.end |= n == 0;
                shared.1.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        arrivals
    }

    fn wait<T>(&self, what: &str, mut look: impl FnMut(&Seen) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        let mut seen = self.0.0.lock().expect("not poisoned");
        loop {
            if let Some(found) = look(&seen) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            let text = String::from_utf8_lossy(&seen.bytes[..seen.bytes.len().min(4096)]).into_owned();
            assert!(!left.is_zero(), "not within {DEADLINE:?}: {what}, but {} bytes: {text:?}", seen.bytes.len());
            seen = self.0.1.wait_timeout(seen, left).expect("not poisoned").0;
        }
    }

    async fn wait_async<T: Send + 'static>(
        &self,
        what: String,
        look: impl FnMut(&Seen) -> Option<T> + Send + 'static,
    ) -> T {
        let me = self.clone();
        tokio::task::spawn_blocking(move || me.wait(&what, look)).await.expect("it arrives")
    }

    /// Everything, once nobody can write any more.
    pub async fn all(&self) -> Vec<u8> {
        self.wait_async("the end of the stream".into(), |seen| seen.end.then(|| seen.bytes.clone())).await
    }

    /// The same as text.
    pub async fn text(&self) -> String {
        String::from_utf8(self.all().await).expect("it is text")
    }

    /// Waits until this text is among what arrived; gives all that did so far.
    pub async fn contains(&self, text: &str) -> String {
        let text = text.to_owned();
        self.wait_async(format!("{text:?}"), move |seen| {
            let all = String::from_utf8_lossy(&seen.bytes);
            all.contains(&text).then(|| all.into_owned())
        })
        .await
    }

    /// What arrived so far.
    pub fn so_far(&self) -> Vec<u8> {
        self.0.0.lock().expect("not poisoned").bytes.clone()
    }
}

/// Writes to a descriptor that the test keeps.
pub fn write(fd: &OwnedFd, text: &str) {
    let mut file = File::from(fd.as_fd().try_clone_to_owned().expect("a copy"));
    file.write_all(text.as_bytes()).expect("somebody reads");
}
