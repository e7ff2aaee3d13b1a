//! Where a process reads and writes: descriptors of yours, or streams.

use std::{
    cell::RefCell,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use cofferdam_types::{Error, Result};
use cofferdam_wire::{
    common_capnp::{byte_stream, input, output, stdio},
    connect::CHUNK,
    error::{from_rpc, to_rpc},
    fdstream::Fds,
};
use tokio::sync::mpsc;

use crate::connect::Link;

/// How many chunks wait in a [`channel`] before its writer has to.
const CHUNKS: usize = 4;

/// Where a process reads its standard input from.
#[derive(Debug, Default)]
pub enum Input {
    /// /dev/null.
    #[default]
    Null,
    /// A pipe, socket, terminal or file of yours.
    Fd(OwnedFd),
    /// What is written to [`crate::Process::stdin`].
    Stream,
    /// A FIFO of the daemon's host, by its absolute path: needs the `host` right. It is held open for writing too, until
    /// [`crate::Process::close_stdin`].
    Fifo(String),
    /// A file of the daemon's host, by its absolute path: needs the `host` right.
    File(String),
}

/// Where what a process writes goes.
#[derive(Default)]
pub enum Output {
    /// Nowhere.
    #[default]
    Null,
    /// A pipe, socket, terminal or file of yours.
    Fd(OwnedFd),
    /// A [`channel`]. If it falls 64 KiB behind it is detached; the process goes on.
    Stream(Sink),
    /// A FIFO of the daemon's host, by its absolute path: needs the `host` right. Nobody has to read it yet.
    Fifo(String),
    /// A file of the daemon's host, by its absolute path, which is appended to: needs the `host` right.
    File(String),
}

/// The three streams of a process.
#[derive(Default)]
pub struct Stdio {
    /// What it reads.
    pub stdin: Input,
    /// What it writes.
    pub stdout: Output,
    /// Its errors; unused with a terminal.
    pub stderr: Output,
    /// Rows and columns of its terminal, if it has one; 0 is 24 by 80.
    pub size: (u16, u16),
}

impl Stdio {
    /// The descriptors 0, 1 and 2 of this process; without `stdin` the input is null.
    pub fn inherit(stdin: bool) -> Result<Stdio> {
        let dup = |fd: std::os::fd::BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(|e| Error::io("fd", "", "can't be duplicated", &e))
        };
        Ok(Stdio {
            stdin: if stdin { Input::Fd(dup(std::io::stdin().as_fd())?) } else { Input::Null },
            stdout: Output::Fd(dup(std::io::stdout().as_fd())?),
            stderr: Output::Fd(dup(std::io::stderr().as_fd())?),
            size: (0, 0),
        })
    }

    /// Whether nothing of it is anybody's.
    pub(crate) fn is_null(&self) -> bool {
        matches!((&self.stdin, &self.stdout, &self.stderr), (Input::Null, Output::Null, Output::Null))
    }

    /// Fills the struct; the message must be sent at once, since its descriptors go with the next byte.
    pub(crate) fn fill(self, mut builder: stdio::Builder<'_>, fds: &Fds) {
        builder.set_rows(self.size.0);
        builder.set_columns(self.size.1);
        let mut stdin: input::Builder<'_> = builder.reborrow().init_stdin();
        match self.stdin {
            Input::Null => stdin.set_null(()),
            Input::Fd(fd) => stdin.set_fd(fds.push(fd)),
            Input::Stream => stdin.set_stream(()),
            Input::Fifo(path) => stdin.set_fifo(&path),
            Input::File(path) => stdin.set_file(&path),
        }
        self.stdout.fill(builder.reborrow().init_stdout(), fds);
        self.stderr.fill(builder.init_stderr(), fds);
    }
}

impl Output {
    fn fill(self, mut builder: output::Builder<'_>, fds: &Fds) {
        match self {
            Output::Null => builder.set_null(()),
            Output::Fd(fd) => builder.set_fd(fds.push(fd)),
            Output::Stream(sink) => builder.set_stream(sink.client),
            Output::Fifo(path) => builder.set_fifo(&path),
            Output::File(path) => builder.set_file(&path),
        }
    }
}

/// A way for bytes to go: to the daemon ([`crate::Process::stdin`]), or from it into a [`Receiver`].
#[derive(Clone)]
pub struct Sink {
    pub(crate) _link: Option<Rc<Link>>,
    pub(crate) client: byte_stream::Client,
}

impl Sink {
    pub(crate) fn new(link: &Rc<Link>, client: byte_stream::Client) -> Sink {
        Sink { _link: Some(link.clone()), client }
    }

    /// Writes. Returns when there is room for more, which is sooner than the bytes are where they belong.
    pub async fn write(&self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(CHUNK) {
            let mut request = self.client.write_request();
            request.get().set_chunk(chunk);
            request.send().await.map_err(from_rpc)?;
        }
        Ok(())
    }

    /// No more bytes; returns when all are where they belong.
    pub async fn end(&self) -> Result<()> {
        self.client.end_request().send().promise.await.map_err(from_rpc)?;
        Ok(())
    }
}

/// Where bytes arrive.
pub struct Receiver(mpsc::Receiver<Vec<u8>>);

impl Receiver {
    /// The next chunk; `None` at the end.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        self.0.recv().await
    }
}

struct Arrivals(RefCell<Option<mpsc::Sender<Vec<u8>>>>);

impl byte_stream::Server for Arrivals {
    async fn write(self: Rc<Self>, params: byte_stream::WriteParams) -> capnp::Result<()> {
        let chunk = params.get()?.get_chunk()?.to_vec();
        let closed = || to_rpc(Error::failed_precondition("stream", "", "has ended"));
        let sender = self.0.borrow().clone().ok_or_else(closed)?;
        sender.send(chunk).await.map_err(|_| closed())
    }

    async fn end(self: Rc<Self>, _: byte_stream::EndParams, _: byte_stream::EndResults) -> capnp::Result<()> {
        self.0.borrow_mut().take();
        Ok(())
    }
}

/// A sink and where its bytes arrive, for who can't or won't pass descriptors.
pub fn channel() -> (Sink, Receiver) {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let client = capnp_rpc::new_client(Arrivals(RefCell::new(Some(sender))));
    (Sink { _link: None, client }, Receiver(receiver))
}
