//! One output of a process: read by the shim, written to the log and to every sink.
//!
//! The log comes first and may make the process wait. At an exit [`Output::drain`] takes in what the process had
//! written, so that no output comes after the news of its end; a descendant that keeps the pipe open delays nothing.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    rc::Rc,
};

use cofferdam_log::{Stream, Writer};
use cofferdam_types::{Error, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

use crate::sink::{Sink, watch};

/// Where the log goes, and as which stream.
#[derive(Clone)]
pub struct Log {
    /// Of the whole container.
    pub writer: Rc<RefCell<Writer>>,
    /// Which of its streams.
    pub stream: Stream,
}

struct State {
    source: AsyncFd<OwnedFd>,
    log: Option<Log>,
    sinks: RefCell<Vec<Sink>>,
    ended: Cell<bool>,
    /// A drain wants a fresh look at the source.
    probe: Notify,
    /// The source had nothing more, at a look that began behind the probe.
    empty: Notify,
}

/// See the module.
#[derive(Clone)]
pub struct Output(Rc<State>);

impl Output {
    /// Reads `source`, which must be non-blocking, until its end.
    pub fn new(source: OwnedFd, interest: Interest, log: Option<Log>, sinks: Vec<Sink>) -> Result<Output> {
        let source = watch(source, interest).map_err(|e| Error::io("output", "", "can't be watched", &e))?;
        let state = Rc::new(State {
            source,
            log,
            sinks: RefCell::new(sinks),
            ended: Cell::new(false),
            probe: Notify::new(),
            empty: Notify::new(),
        });
        tokio::task::spawn_local(pump(state.clone()));
        Ok(Output(state))
    }

    /// The descriptor that it reads (a terminal's master is written to as well).
    pub fn source(&self) -> &AsyncFd<OwnedFd> {
        &self.0.source
    }

    /// Follows from here on.
    pub fn attach(&self, sink: Sink) {
        if self.0.ended.get() {
            sink.end("exit");
        } else {
            self.0.sinks.borrow_mut().push(sink);
        }
    }

    /// Waits until all that was written so far has reached log and sinks.
    pub async fn drain(&self) {
        if !self.0.ended.get() {
            let empty = self.0.empty.notified();
            self.0.probe.notify_one();
            empty.await;
        }
        let sinks: Vec<Sink> = self.0.sinks.borrow().clone();
        for sink in sinks {
            sink.flushed().await;
        }
    }

    /// The process is gone: what its descendants may still write interests the log alone.
    pub fn close(&self) {
        for sink in self.0.sinks.borrow_mut().drain(..) {
            sink.end("exit");
        }
    }
}

/// What is read at once.
const BUFFER: usize = 16 << 10;

async fn pump(state: Rc<State>) {
    let mut buffer = Vec::new();
    loop {
        buffer.resize(BUFFER, 0);
        match nix::unistd::read(state.source.get_ref(), &mut buffer) {
            Ok(n) if n > 0 => deliver(&state, &buffer[..n]).await,
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => {
                state.empty.notify_waiters();
                // A process that is silent costs no memory.
                buffer = Vec::new();
                tokio::select! {
                    ready = state.source.ready(Interest::READABLE) => match ready {
                        // Only the read above says whether there is something: ask again next time.
                        Ok(mut guard) => guard.clear_ready(),
                        Err(_) => break,
                    },
                    () = state.probe.notified() => {}
                }
            }
            // End of file; a terminal says EIO when the last process has closed it.
            _ => break,
        }
    }
    if let Some(log) = &state.log {
        log.writer.borrow_mut().end(log.stream);
    }
    state.ended.set(true);
    state.empty.notify_waiters();
    for sink in state.sinks.borrow_mut().drain(..) {
        sink.end("exit");
    }
}

async fn deliver(state: &State, bytes: &[u8]) {
    if let Some(log) = &state.log {
        log.writer.borrow_mut().write(log.stream, bytes);
    }
    let sinks: Vec<Sink> = state.sinks.borrow().clone();
    let mut lost = false;
    for sink in &sinks {
        lost |= !sink.push(bytes).await;
    }
    if lost {
        let mut left = state.sinks.borrow_mut();
        left.retain(|sink| !sink.is_over());
    }
}

/// Makes our end of a pipe non-blocking. It is our own opening: the process's end keeps its flags.
pub fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
