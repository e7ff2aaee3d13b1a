//! The console socket, through which the binary hands over the master of a terminal.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
};

use cofferdam_sys::fd;
use cofferdam_types::{Error, Result};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// A socket's name has to fit into `sockaddr_un`.
const MAX_PATH: usize = 107;

/// A listening socket in a bundle; its file goes with it, and with the bundle whoever is killed.
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
    /// The bundle, where its path is too long for an address.
    _bundle: Option<File>,
}

impl Console {
    /// Binds it in the bundle, which must be closed to others (0700).
    pub fn new(bundle: &Path) -> Result<Console> {
        // Unique in this process and, by the pid, among those that make something in this bundle.
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("tty-{}-{number}", std::process::id());
        let (mut path, mut held) = (bundle.join(&name), None);
        if path.as_os_str().len() > MAX_PATH {
            let dir = File::open(bundle).map_err(|e| fail("opening the bundle", &e))?;
            // The binary comes upon it by our descriptor.
            path = format!("/proc/{}/fd/{}/{name}", std::process::id(), dir.as_raw_fd()).into();
            held = Some(dir);
        }
        // One of an earlier process with our pid.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(|e| fail("binding the console socket", &e))?;
        let console = Console { listener, path, _bundle: held };
        console.listener.set_nonblocking(true).map_err(|e| fail("preparing the console socket", &e))?;
        Ok(console)
    }

    /// Where the binary finds it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal that came. To be called when the binary has ended well: it has sent it by then.
    pub fn receive(&self) -> Result<OwnedFd> {
        let (stream, _) =
            self.listener.accept().map_err(|e| fail("no terminal came through the console socket", &e))?;
        stream.set_nonblocking(true).map_err(|e| fail("preparing the console socket", &e))?;
        let mut name = [0; 4096];
        let mut parts = [IoSliceMut::new(&mut name)];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)
            .map_err(|e| fail("no terminal came through the console socket", &e.into()))?;
        let mut received = Vec::new();
        for control in message.cmsgs().map_err(|e| fail("reading the console socket", &e.into()))? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel just put these into our table, for nobody but us.
                received.extend(fds.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        let wrong = |what: &str| Error::internal("terminal", "", format!("the runtime sent {what} as the console"));
        let master =
            received.pop().filter(|_| received.is_empty()).ok_or_else(|| wrong("not exactly one descriptor"))?;
        // X6: whatever the binary or the container made of it, only a terminal's master is taken for one.
        match fd::is_char_device(&master, 5, 2) {
            Ok(true) => Ok(master),
            _ => Err(wrong("something that is no terminal's master")),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn fail(what: &str, error: &io::Error) -> Error {
    Error::io("terminal", "", what, error)
}
