//! A terminal between its user and a container: keys go into a pipe, and some of them detach.

use std::{
    io::IsTerminal as _,
    os::fd::{AsFd as _, OwnedFd},
};

use cofferdam_types::Error;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    args::{Args, Flag, value},
    failure::Failure,
};

/// The flag that changes them.
pub const DETACH_KEYS: Flag =
    value("detach-keys", None, "KEYS", "what detaches at a terminal; ctrl-p,ctrl-q otherwise, empty for nothing");

/// A pipe that the container reads, and what fills it.
pub struct Keyboard {
    read: OwnedFd,
    write: OwnedFd,
    keys: Keys,
}

impl Keyboard {
    /// `None` where standard input is no terminal: what comes from elsewhere is passed on as it is.
    pub fn open(args: &Args) -> Result<Option<Keyboard>, Failure> {
        let keys = args.read(DETACH_KEYS.name, sequence)?.unwrap_or_else(|| vec![CTRL_P, CTRL_Q]);
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let io = |e: nix::Error| Failure::io("a pipe", e);
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io)?;
        // It never blocks.
        fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_WRONLY)).map_err(io)?;
        Ok(Some(Keyboard { read, write, keys: Keys::new(keys) }))
    }

    /// The end that the container reads, once more.
    pub fn input(&self) -> Result<OwnedFd, Error> {
        self.read.try_clone().map_err(|e| Error::io("pipe", "", "can't be duplicated", &e))
    }

    /// Copies keys into the pipe until those that detach.
    pub async fn forward(self) -> Result<(), Failure> {
        let io = |e: std::io::Error| Failure::io("standard input", e);
        let Keyboard { read: _read, write, mut keys } = self;
        let pipe = watched(write, Interest::WRITABLE).map_err(io)?;
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(io)?;
        let stdin = watched(stdin, Interest::READABLE).map_err(io)?;
        let mut buffer = [0; 4096];
        loop {
            // The terminal stays blocking for who shares it: we read only what is there, once for each time that it is.
            let mut ready = stdin.readable().await.map_err(io)?;
            let n = match nix::unistd::read(ready.get_inner(), &mut buffer) {
                // A terminal that is gone: the signal that says so is looked at elsewhere.
                Err(nix::Error::EIO) => 0,
                read => read.map_err(|e| io(e.into()))?,
            };
            ready.clear_ready();
            drop(ready);
            if n == 0 {
                drop(pipe);
                return std::future::pending().await;
            }
            let (bytes, detach) = keys.take(&buffer[..n]);
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let written = pipe.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, rest)?)).await;
                match written {
                    Ok(n) => rest = &rest[n..],
                    // The container has closed its input, or ended: what it writes is still followed.
                    Err(_) => return std::future::pending().await,
                }
            }
            if detach {
                return Ok(());
            }
        }
    }
}

/// Tells when a descriptor can be read or written.
pub fn watched(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor from its beginning to its end.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

/// `ctrl-p,ctrl-q`, `ctrl-a,d`: letters, and what the control key makes of them.
pub fn sequence(text: &str) -> Result<Vec<u8>, String> {
    const FORM: &str =
        "give keys with commas between them, such as ctrl-p,ctrl-q: letters, or ctrl- and one of a-z @ [ \\ ] ^ _";
    let key = |word: &str| {
        let last = |text: &str| text.bytes().next().filter(|_| text.len() == 1);
        match word.strip_prefix("ctrl-") {
            Some(rest) => {
                last(rest).map(|byte| byte.to_ascii_uppercase()).filter(|b| (b'@'..=b'_').contains(b)).map(|b| b & 0x1f)
            }
            None => last(word).filter(u8::is_ascii_graphic),
        }
    };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',').map(|word| key(word).ok_or_else(|| FORM.to_owned())).collect()
}

/// Looks for a sequence, which may come in pieces.
struct Keys {
    sequence: Vec<u8>,
    /// How much of it has come; that much is held back.
    held: usize,
}

impl Keys {
    fn new(sequence: Vec<u8>) -> Keys {
        Keys { sequence, held: 0 }
    }

    /// What goes on to the container, and whether the user detaches.
    fn take(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        if self.sequence.is_empty() {
            return (input.to_vec(), false);
        }
        let mut pending = self.sequence[..self.held].to_vec();
        let mut out = Vec::with_capacity(input.len() + pending.len());
        for &key in input {
            pending.push(key);
            while !self.sequence.starts_with(&pending) {
                out.push(pending.remove(0));
            }
            if pending.len() == self.sequence.len() {
                return (out, true);
            }
        }
        self.held = pending.len();
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_detach_however_they_come() {
        let fresh = || Keys::new(sequence("ctrl-p,ctrl-q").unwrap());
        let mut keys = fresh();
        assert_eq!(keys.take(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(keys.take(b"\x11more"), (vec![], true));
        let mut keys = fresh();
        assert_eq!(keys.take(b"a\x10b\x11"), (b"a\x10b\x11".to_vec(), false));
        assert_eq!(keys.take(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.take(b"\x11"), (vec![], true));
    }

    #[test]
    fn other_keys_can_be_chosen() {
        assert_eq!(sequence("ctrl-a,d"), Ok(vec![1, b'd']));
        assert_eq!(sequence("ctrl-[,ctrl-@"), Ok(vec![27, 0]));
        for bad in ["ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-p ctrl-q", "\u{e9}"] {
            assert!(sequence(bad).is_err(), "{bad}");
        }
        // One that begins again inside itself.
        let mut keys = Keys::new(sequence("a,a,b").unwrap());
        assert_eq!(keys.take(b"aa"), (vec![], false));
        assert_eq!(keys.take(b"aab"), (b"aa".to_vec(), true));
        let mut none = Keys::new(sequence("").unwrap());
        assert_eq!(none.take(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
