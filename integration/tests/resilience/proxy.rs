//! A proxy between client and daemon that passes descriptors on, counts, and holds the daemon's bytes back until it is
//! told to let go.

use std::{
    io::{IoSlice, IoSliceMut, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// What is known of the traffic.
#[derive(Default)]
pub struct Traffic {
    /// Bytes from the client that went on to the daemon.
    pub asked: AtomicUsize,
    /// Descriptors likewise.
    pub descriptors: AtomicUsize,
    /// Bytes from the daemon that are kept from the client.
    pub held: AtomicUsize,
    /// Bytes from the daemon that the client got.
    pub answered: AtomicUsize,
    open: Mutex<bool>,
    opened: Condvar,
}

impl Traffic {
    /// Lets the daemon's bytes through.
    pub fn let_go(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// Listens at a path of its own for one client, and connects it with `daemon`.
pub fn between(dir: &Path, daemon: PathBuf) -> (PathBuf, Arc<Traffic>) {
    let path = dir.join("proxy.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let traffic = Arc::new(Traffic::default());
    let shared = traffic.clone();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let daemon = UnixStream::connect(daemon).unwrap();
        let (from, to, told) = (daemon.try_clone().unwrap(), client.try_clone().unwrap(), shared.clone());
        let back = std::thread::spawn(move || answers(from, to, &told));
        requests(&client, &daemon, &shared);
        let _ = daemon.shutdown(std::net::Shutdown::Write);
        shared.let_go();
        back.join().unwrap();
    });
    (path, traffic)
}

fn requests(client: &UnixStream, daemon: &UnixStream, traffic: &Traffic) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut space = nix::cmsg_space!([RawFd; 64]);
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(message) = recvmsg::<()>(client.as_raw_fd(), &mut iov, Some(&mut space), flags) else { return };
        let mut fds = Vec::new();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just made them for us.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let n = message.bytes;
        if n == 0 {
            return;
        }
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let sent = sendmsg::<()>(daemon.as_raw_fd(), &[IoSlice::new(&buffer[..n])], control, MsgFlags::empty(), None);
        let sent = sent.unwrap();
        (&mut { daemon }).write_all(&buffer[sent..n]).unwrap();
        traffic.asked.fetch_add(n, Ordering::SeqCst);
        traffic.descriptors.fetch_add(raw.len(), Ordering::SeqCst);
    }
}

/// What the daemon answered and the client doesn't have yet.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    end: bool,
}

/// Reads all the time, so that the daemon never waits for us; writes once it may.
fn answers(mut daemon: UnixStream, mut client: UnixStream, traffic: &Arc<Traffic>) {
    let kept: Arc<(Mutex<Kept>, Condvar)> = Arc::default();
    let (shared, told) = (kept.clone(), traffic.clone());
    let writer = std::thread::spawn(move || {
        let mut open = told.open.lock().unwrap();
        while !*open {
            open = told.opened.wait(open).unwrap();
        }
        drop(open);
        loop {
            let mut kept = shared.0.lock().unwrap();
            while kept.bytes.is_empty() && !kept.end {
                kept = shared.1.wait(kept).unwrap();
            }
            let bytes = std::mem::take(&mut kept.bytes);
            if bytes.is_empty() {
                let _ = client.shutdown(std::net::Shutdown::Write);
                return;
            }
            drop(kept);
            told.answered.fetch_add(bytes.len(), Ordering::SeqCst);
            if client.write_all(&bytes).is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = daemon.read(&mut buffer).unwrap_or(0);
        let mut held = kept.0.lock().unwrap();
        held.bytes.extend(&buffer[..n]);
        held.end |= n == 0;
        traffic.held.fetch_add(n, Ordering::SeqCst);
        kept.1.notify_all();
        drop(held);
        if n == 0 {
            break;
        }
    }
    writer.join().unwrap();
}
