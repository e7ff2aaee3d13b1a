//! Bulk bytes between the client's streams and descriptors of ours.

use std::{cell::RefCell, os::fd::OwnedFd, rc::Rc};

use capnp::capability::Promise;
use cofferdam_types::{Error, Result};
use cofferdam_wire::{
    common_capnp::byte_stream,
    connect::CHUNK,
    error::{from_rpc, to_rpc},
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{Interest, unix::AsyncFd};

use super::meter::Meter;

/// Makes a pipe of which we keep one end, non-blocking: `(read, write)`. `ours` says which.
pub fn pipe(ours: End) -> Result<(OwnedFd, OwnedFd)> {
    let os = |e: nix::Error| Error::io("pipe", "", "can't be made", &e.into());
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(os)?;
    nonblocking(if ours == End::Read { &read } else { &write })?;
    Ok((read, write))
}

/// Makes an opening of ours non-blocking.
pub fn nonblocking(fd: &OwnedFd) -> Result<()> {
    let os = |e: nix::Error| Error::io("fd", "", "can't be set up", &e.into());
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL).map_err(os)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop).map_err(os)
}

fn watch(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and the same for as long as the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Which end of a pipe is ours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// We read.
    Read,
    /// We write.
    Write,
}

/// How much of a pipe is read at once: all that one has.
const BLOCK: usize = 64 << 10;

thread_local! {
    /// What is read comes here, and goes into a message at once: who waits keeps nothing.
    static SPACE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads a pipe to its end and writes it into the client's stream. The stream's window bounds what is under way, and `meter` what
/// all of the connection's have that the client has not read.
pub async fn pump(meter: &Rc<Meter>, from: OwnedFd, to: byte_stream::Client) -> Result<()> {
    let os = |e: std::io::Error| Error::io("pipe", "", "can't be read", &e);
    let from = watch(from, Interest::READABLE).map_err(os)?;
    loop {
        let mut ready = from.readable().await.map_err(os)?;
        let room = meter.room(BLOCK).await;
        let read = SPACE.with_borrow_mut(|space| {
            space.resize(BLOCK, 0);
            ready.try_io(|fd| {
                let n = nix::unistd::read(fd, space)?;
                let mut request = to.write_request();
                request.get().set_chunk(&space[..n]);
                Ok((n > 0).then_some(request))
            })
        });
        match read {
            // Nothing is there yet after all.
            Err(_) => {}
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(read) => match read.map_err(os)? {
                Some(request) => room.send(request).await?,
                None => break,
            },
        }
    }
    to.end_request().send().promise.await.map_err(from_rpc)?;
    Ok(())
}

/// A stream whose bytes go into a pipe of ours. The pipe's far end decides the pace.
pub struct PipeSink {
    pipe: Rc<RefCell<Option<Rc<AsyncFd<OwnedFd>>>>>,
    /// What `end` waits for, behind the closing of the pipe.
    then: RefCell<Option<Promise<(), capnp::Error>>>,
}

impl PipeSink {
    /// Writes into `pipe`, our non-blocking end; `end` closes it and then waits for `then`.
    pub fn new(pipe: OwnedFd, then: Option<Promise<(), capnp::Error>>) -> Result<PipeSink> {
        let pipe = watch(pipe, Interest::WRITABLE).map_err(|e| Error::io("pipe", "", "can't be written", &e))?;
        Ok(PipeSink { pipe: Rc::new(RefCell::new(Some(Rc::new(pipe)))), then: RefCell::new(then) })
    }

    /// What `end` waits for.
    pub fn then(self, then: Promise<(), capnp::Error>) -> PipeSink {
        self.then.replace(Some(then));
        self
    }

    /// Closes the pipe, for as long as there is the sink: who holds that may keep it, and write and end nothing.
    pub fn closer(&self) -> impl FnOnce() + use<> {
        let pipe = Rc::downgrade(&self.pipe);
        move || drop(pipe.upgrade().and_then(|pipe| pipe.take()))
    }

    /// Why nobody reads any more. A stream ends with its first error: `end` could not say it any more.
    async fn unread(&self, why: String) -> capnp::Error {
        let then = self.then.borrow_mut().take();
        let outcome = match then {
            Some(then) => then.await,
            None => Ok(()),
        };
        let plain = || to_rpc(Error::failed_precondition("stream", "", why));
        outcome.err().unwrap_or_else(plain)
    }
}

impl byte_stream::Server for PipeSink {
    async fn write(self: Rc<Self>, params: byte_stream::WriteParams) -> capnp::Result<()> {
        let pipe = self.pipe.borrow().clone();
        let Some(pipe) = pipe else { return Err(self.unread("has ended".into()).await) };
        let mut chunk = params.get()?.get_chunk()?;
        if chunk.len() > CHUNK {
            return Err(to_rpc(Error::invalid("chunk", "", format!("has more than {CHUNK} bytes"))));
        }
        while !chunk.is_empty() {
            let written = pipe.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, chunk)?)).await;
            match written {
                Ok(n) => chunk = &chunk[n..],
                Err(error) => return Err(self.unread(format!("nobody reads it: {error}")).await),
            }
        }
        Ok(())
    }

    async fn end(self: Rc<Self>, _: byte_stream::EndParams, _: byte_stream::EndResults) -> capnp::Result<()> {
        self.pipe.borrow_mut().take();
        let then = self.then.borrow_mut().take();
        match then {
            Some(then) => then.await,
            None => Ok(()),
        }
    }
}
