//! `attach`: follow a running container.

use std::{io::IsTerminal as _, os::fd::AsFd as _, os::fd::OwnedFd};

use cofferdam_client::{Client, Input, Stdio};
use cofferdam_types::Error;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    args::{Command, Positional, Times, switch},
    cx::Cx,
    failure::Failure,
    nouns::run::{Passed, attended, stdio, tell},
    signals::{FORWARDED, Signals},
    terminal::Raw,
};

/// `coffer attach`.
pub static ATTACH: Command = Command {
    path: &["attach"],
    about: "follow a running container, and feed its input",
    positionals: &[Positional { name: "CONTAINER", times: Times::Once }],
    flags: &[switch("no-stdin", None, "only follow")],
    notes: "On a terminal ctrl-p ctrl-q detaches and leaves the container running. Signals are passed on. A restart of the\n\
            daemon is waited out.\n\n\
            exit code: the container's own; 0 after detaching",
    failure: 1,
    action: |cx| Box::pin(attach(cx)),
};

async fn attach(cx: Cx) -> Result<i32, Failure> {
    let id = cx.args.at(0).to_owned();
    let client = cx.client().await?;
    let container = client.namespace(&cx.namespace).containers().get(&id);
    let terminal = container.info().await?.task.is_some_and(|task| task.terminal);
    let stdin = !cx.args.has("no-stdin");
    let keys = stdin && std::io::stdin().is_terminal();

    let signals = Signals::take(FORWARDED)?;
    let raw = if terminal && keys { Raw::stdin()? } else { None };
    if let Some(raw) = &raw {
        raw.started()?;
    }
    let (input, pump) = if keys { pipe().map(|(read, write)| (Some(read), Some(write)))? } else { (None, None) };
    let streams = || -> Result<Stdio, Error> {
        let mut streams = stdio(stdin && !keys, terminal)?;
        if let Some(input) = &input {
            let input = input.try_clone().map_err(|e| Error::io("pipe", "", "can't be duplicated", &e))?;
            streams.stdin = Input::Fd(input);
        }
        Ok(streams)
    };
    // After a restart of the daemon the attachment is made anew: the old one ended with the connection.
    let follow = client.persist(async |client: Client| {
        let task = client.namespace(&cx.namespace).containers().get(&id).task();
        let exit = task.wait();
        let attachment = task.attach(streams()?);
        match attachment.wait().await?.as_str() {
            "exit" => exit.await.map(Some),
            "detached" => Ok(None),
            _ => {
                Err(Error::resource_exhausted("attachment", &id, "fell behind what the container writes: attach again"))
            }
        }
    });
    let passing = container.task();
    let pass = move |passed| match passed {
        Passed::Signal(signal) => passing.kill(signal, false),
        Passed::Size(rows, columns) => passing.resize(rows, columns),
    };
    let exit = tokio::select! {
        exit = attended(&signals, terminal, follow, pass) => exit?,
        detached = forward(pump) => { detached?; None }
    };
    drop(raw);
    match exit {
        Some(exit) => Ok(tell(&id, &exit)),
        None => {
            eprintln!("\ncoffer: detached from {id}");
            Ok(0)
        }
    }
}

/// A pipe for the keys: its read end goes to the container, its write end never blocks.
fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    let io = |e: nix::Error| Failure::io("a pipe", e);
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io)?;
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_WRONLY)).map_err(io)?;
    Ok((read, write))
}

/// Copies keys into the pipe until the keys that detach. Without a pipe it never returns.
async fn forward(pipe: Option<OwnedFd>) -> Result<(), Failure> {
    let io = |e: std::io::Error| Failure::io("standard input", e);
    let Some(pipe) = pipe else { return std::future::pending().await };
    let pipe = watched(pipe, Interest::WRITABLE).map_err(io)?;
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(io)?;
    let stdin = watched(stdin, Interest::READABLE).map_err(io)?;
    let mut keys = Keys::default();
    let mut buffer = [0; 4096];
    loop {
        // The terminal stays blocking for who shares it: we read only what is there, once for each time that it is.
        let mut ready = stdin.readable().await.map_err(io)?;
        let n = nix::unistd::read(ready.get_inner(), &mut buffer).map_err(|e| io(e.into()))?;
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

fn watched(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor from its beginning to its end.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

/// Looks for ctrl-p ctrl-q, which may come in two pieces.
#[derive(Default)]
struct Keys {
    held: bool,
}

impl Keys {
    /// What goes on to the container, and whether the user detaches.
    fn take(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(input.len() + 1);
        for &key in input {
            match (self.held, key) {
                (true, CTRL_Q) => return (out, true),
                (true, CTRL_P) => out.push(CTRL_P),
                (true, other) => {
                    self.held = false;
                    out.extend([CTRL_P, other]);
                }
                (false, CTRL_P) => self.held = true,
                (false, other) => out.push(other),
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_detach_however_they_come() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(keys.take(b"\x11more"), (vec![], true));
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"a\x10b\x11"), (b"a\x10b\x11".to_vec(), false));
        assert_eq!(keys.take(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.take(b"\x11"), (vec![], true));
    }
}
