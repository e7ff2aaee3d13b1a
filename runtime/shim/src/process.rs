//! One process of a container: its life, its streams, those who wait for it.

mod attached;
mod given;

pub use self::attached::Attachment;

use std::{
    cell::{Cell, RefCell},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use cofferdam_log::Writer;
use cofferdam_oci as oci;
use cofferdam_sys::process::{self as sys, Exit};
use cofferdam_types::{Error, Result, Timestamp};
use cofferdam_wire::{convert::Life, life};
use nix::{
    fcntl::OFlag,
    sys::{
        socket::{MsgFlags, recv},
        stat::SFlag,
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{Notify, futures::OwnedNotified},
    task::JoinHandle,
};

use crate::{
    output::{Log, Output, nonblocking},
    sink::{Sink, duplicate, kind, reopen, watch},
    stdio::{Feed, Relay, pipe},
};

/// How long the news of an exit waits for clients that read: most have all of the output by then, and both are one piece of
/// news.
const MOMENT: Duration = Duration::from_millis(10);
/// The first and the longest pause between two attempts to write a record that there was no room for.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Code(u32),
    /// By this signal.
    Signal(u32),
}

impl std::convert::From<Exit> for End {
    fn from(exit: Exit) -> End {
        match exit {
            Exit::Code(code) => End::Code(code as u32),
            Exit::Signal(signal) => End::Signal(signal as u32),
        }
    }
}

/// Takes in a child of ours that has ended.
pub fn take(pidfd: &OwnedFd) -> std::io::Result<End> {
    let ended = sys::waitid(pidfd, false)?.map(End::from);
    ended.ok_or_else(|| std::io::Error::from_raw_os_error(libc::ECHILD))
}

/// See the module.
pub struct Process {
    life: RefCell<Life>,
    /// The life record's file.
    record: String,
    dir: Rc<OwnedFd>,
    pidfd: RefCell<Option<OwnedFd>>,
    outputs: RefCell<Vec<Output>>,
    terminal: bool,
    /// The write end of its standard input, where that is a pipe of ours.
    stdin: RefCell<Option<Rc<AsyncFd<OwnedFd>>>>,
    /// Keeps the FIFO that is its standard input from ending with a writer.
    held: RefCell<Option<OwnedFd>>,
    /// Copies the starting client's input into the terminal, or into the pipe.
    feeder: Cell<Option<JoinHandle<()>>>,
    /// Where its maker hears of it.
    given: RefCell<Vec<Sink>>,
    /// How many follow it.
    followed: Rc<Cell<usize>>,
    reported: Cell<bool>,
    /// It was reaped, and its end is yet to be told.
    taken_in: Cell<bool>,
    /// Its record is nobody's any more: another container may get one of that name.
    sealed: Cell<bool>,
    /// Its record is older than its life: it is written again and again.
    unsaved: Cell<bool>,
    /// Somebody had it killed.
    doomed: Cell<bool>,
    changed: Notify,
    /// Its standard input was closed.
    input_over: Arc<Notify>,
}

impl Process {
    /// A process that has not been made yet. Its record is on disk when this returns.
    pub fn new(dir: Rc<OwnedFd>, record: String, id: &str, grant: &str, terminal: bool) -> Result<Rc<Process>> {
        let (id, grant, created) = (id.to_owned(), grant.to_owned(), Timestamp::now());
        let process = Process {
            life: RefCell::new(Life { id, grant, created, ..Life::default() }),
            record,
            dir,
            pidfd: RefCell::new(None),
            outputs: RefCell::default(),
            terminal,
            stdin: RefCell::new(None),
            held: RefCell::new(None),
            feeder: Cell::new(None),
            given: RefCell::default(),
            followed: Rc::default(),
            reported: Cell::new(false),
            taken_in: Cell::new(false),
            sealed: Cell::new(false),
            unsaved: Cell::new(false),
            doomed: Cell::new(false),
            changed: Notify::new(),
            input_over: Arc::default(),
        };
        process.save()?;
        Ok(Rc::new(process))
    }

    /// It is deleted, and its end is kept; or that no more.
    pub fn set_deleted(&self, deleted: bool) {
        self.life.borrow_mut().deleted = deleted;
    }

    /// What it is called in an error: the first one has no name but its container's.
    fn name(&self) -> String {
        let id = self.life.borrow().id.clone();
        if id.is_empty() { self.record.trim_end_matches(".life").to_owned() } else { id }
    }

    /// Its life so far.
    pub fn life(&self) -> Life {
        self.life.borrow().clone()
    }

    /// It was made by a driver: takes its descriptors over. Runs before the reaper can see its end.
    pub fn made(
        &self,
        made: &oci::Process,
        relays: Vec<Relay>,
        feed: Feed,
        log: Option<&Rc<RefCell<Writer>>>,
    ) -> Result<()> {
        self.life.borrow_mut().pid = made.pid as u32;
        *self.pidfd.borrow_mut() = Some(duplicate(&made.pidfd)?);
        self.save()?;
        for relay in relays {
            let (source, interest) = match (relay.source, &made.console) {
                (Some(source), _) => (source, Interest::READABLE),
                (None, Some(console)) => {
                    let console = duplicate(console)?;
                    nonblocking(&console).map_err(|e| Error::io("terminal", "", "can't be set up", &e))?;
                    (console, Interest::READABLE | Interest::WRITABLE)
                }
                (None, None) => return Err(Error::internal("terminal", "", "the driver gave none")),
            };
            let log = log.map(|writer| Log { writer: writer.clone(), stream: relay.stream });
            self.outputs.borrow_mut().push(Output::new(source, interest, log, relay.sink.into_iter().collect())?);
        }
        match feed {
            Feed::Terminal(source, hold) => {
                *self.held.borrow_mut() = hold;
                self.feeder.set(Some(self.feed_from(source, None)?));
            }
            // It was taken when the process was asked for.
            Feed::None | Feed::Pipe(_) | Feed::Held(_) | Feed::Through(..) => {}
        }
        Ok(())
    }

    /// Takes over what feeds it, where that can be written to, and closed, before there is a process. A terminal is none
    /// before.
    pub fn feed(self: &Rc<Self>, feed: &mut Feed) -> Result<()> {
        match std::mem::replace(feed, Feed::None) {
            Feed::Pipe(write) => {
                let fd = watch(write, Interest::WRITABLE)
                    .map_err(|e| Error::io("stdin", self.name(), "can't be watched", &e))?;
                *self.stdin.borrow_mut() = Some(Rc::new(fd));
            }
            Feed::Held(hold) => *self.held.borrow_mut() = Some(hold),
            Feed::Through(write, source) => self.feed_through(write, source)?,
            later => *feed = later,
        }
        Ok(())
    }

    /// Whether it is to have a terminal, and has none yet.
    pub fn waits_for_terminal(&self) -> bool {
        self.terminal && self.outputs.borrow().is_empty()
    }

    /// It runs.
    pub fn started(&self) -> Result<()> {
        self.life.borrow_mut().started = Timestamp::now();
        // What is not on record has not started: it can be tried again.
        self.save().inspect_err(|_| self.life.borrow_mut().started = Timestamp(0))
    }

    /// Whether it is this child of ours, which has ended.
    pub fn is(&self, pid: i32) -> bool {
        self.alive() && !self.taken_in.get() && self.life.borrow().pid == pid as u32
    }

    /// Takes it in, now that it has ended, by its pidfd.
    pub fn reap(&self) -> std::io::Result<End> {
        match &*self.pidfd.borrow() {
            Some(pidfd) => take(pidfd),
            None => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Looks whether it has ended and can be taken in.
    pub fn has_ended(&self) -> bool {
        let gone = self.pidfd.borrow().as_ref().is_some_and(|pidfd| !sys::is_alive(pidfd));
        gone && self.alive() && !self.taken_in.get()
    }

    /// It was reaped; its end is told later.
    pub fn taken_in(&self) {
        self.taken_in.set(true);
        *self.pidfd.borrow_mut() = None;
    }

    /// It ended: on disk first, then to everybody. What it wrote before is in the log by then, and on its way to those who
    /// follow it: the end of that is another piece of news.
    pub fn exited(self: &Rc<Self>, end: End, reason: &str) {
        let outputs = self.outputs.borrow().clone();
        outputs.iter().for_each(Output::finish);
        let delivered = outputs.iter().all(Output::is_delivered);
        self.note(|life| {
            life.exited = Timestamp::now();
            (life.status, life.signal) = match end {
                End::Code(code) => (code, 0),
                End::Signal(signal) => (128 + signal, signal),
            };
            life.reason = reason.to_owned();
            if delivered {
                life.output_end = life.exited;
            }
        });
        *self.pidfd.borrow_mut() = None;
        self.close_stdin();
        if delivered {
            self.report();
            return;
        }
        let process = self.clone();
        tokio::task::spawn_local(async move {
            let mut delivered = Box::pin(futures::future::join_all(outputs.iter().map(Output::delivered)));
            let in_time = tokio::time::timeout(MOMENT, &mut delivered).await.is_ok();
            if !in_time {
                process.report();
                delivered.await;
            }
            process.note(|life| life.output_end = Timestamp::now());
            process.report();
        });
    }

    /// Nobody else has a use for it any more: who follows its output and takes nothing for so long loses the rest.
    pub fn drain(&self, limit: Duration) {
        for output in self.outputs.borrow().iter().filter(|output| !output.is_delivered()) {
            tokio::task::spawn_local(output.clone().drain(limit));
        }
    }

    /// Waits until what it wrote before its end has arrived where it goes, or can't any more.
    pub async fn delivered(&self) {
        loop {
            let changed = self.changed.notified();
            if self.life.borrow().output_end != Timestamp(0) {
                return;
            }
            changed.await;
        }
    }

    /// The container ran out of memory, so often by now.
    pub fn out_of_memory(self: &Rc<Self>, ooms: u64) {
        self.note(|life| {
            life.oomed = Timestamp::now();
            life.ooms = ooms;
        });
        self.changed.notify_waiters();
    }

    /// Waits until it ran out of memory another number of times than `seen`.
    pub async fn ooms(&self, seen: u64) -> Life {
        loop {
            let changed = self.changed.notified();
            if self.life.borrow().ooms != seen {
                return self.life();
            }
            changed.await;
        }
    }

    /// Changes its life: on disk before anybody hears of it, if the disk takes it. Otherwise it is told from memory until
    /// there is room.
    fn note(self: &Rc<Self>, change: impl FnOnce(&mut Life)) {
        change(&mut self.life.borrow_mut());
        if let Err(error) = self.save() {
            crate::complain(error);
            self.save_later();
        }
    }

    fn save_later(self: &Rc<Self>) {
        if self.unsaved.replace(true) {
            return;
        }
        let process = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            let mut pause = AGAIN.0;
            loop {
                tokio::time::sleep(pause).await;
                let Some(process) = process.upgrade().filter(|process| process.unsaved.get()) else { return };
                if process.save().is_ok() {
                    return;
                }
                pause = (pause * 2).min(AGAIN.1);
            }
        });
    }

    /// It is being killed by somebody's order.
    pub fn doom(&self) {
        self.doomed.set(true);
    }

    /// Whether its end is somebody's order.
    pub fn is_doomed(&self) -> bool {
        self.doomed.get()
    }

    fn report(&self) {
        if let Some(feeder) = self.feeder.take() {
            feeder.abort();
        }
        self.reported.set(true);
        self.changed.notify_waiters();
    }

    /// Whether it runs, or was made to run.
    pub fn alive(&self) -> bool {
        let life = self.life.borrow();
        life.pid != 0 && life.exited == Timestamp(0)
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Life {
        loop {
            let changed = self.changed.notified();
            if self.reported.get() {
                return self.life();
            }
            changed.await;
        }
    }

    /// Sends a signal, through its pidfd: the pid can't have been given to another process.
    pub fn kill(&self, signal: i32) -> Result<()> {
        let gone = || Error::not_found("process", self.name(), "has ended");
        let pidfd = self.pidfd.borrow();
        let pidfd = pidfd.as_ref().ok_or_else(gone)?;
        // SAFETY: pidfd_send_signal(2) with a null siginfo; the descriptor is ours.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0, 0) };
        match nix::errno::Errno::result(sent) {
            Ok(_) => {
                if signal == libc::SIGKILL {
                    self.doom();
                }
                Ok(())
            }
            Err(nix::Error::ESRCH) => Err(gone()),
            Err(nix::Error::EINVAL) => {
                Err(Error::invalid("signal", signal, "is not a signal; kill -l lists those that are"))
            }
            Err(e) => Err(Error::io("process", self.name(), "can't be signalled", &e.into())),
        }
    }

    /// Changes the terminal's size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let outputs = self.outputs.borrow();
        let console = outputs
            .first()
            .filter(|_| self.terminal)
            .ok_or_else(|| Error::failed_precondition("process", self.name(), "has no terminal to resize"))?;
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize, which lives across the call (ioctl_tty(2)).
        let done = unsafe { libc::ioctl(console.source().get_ref().as_raw_fd(), libc::TIOCSWINSZ, &size) };
        nix::errno::Errno::result(done)
            .map(drop)
            .map_err(|e| Error::io("terminal", self.name(), "can't be resized", &e.into()))
    }

    /// Ends its standard input, where that is a pipe of ours. Those who feed it stop: they hold the pipe too. A FIFO
    /// ends with its last writer from now on.
    pub fn close_stdin(&self) {
        *self.stdin.borrow_mut() = None;
        *self.held.borrow_mut() = None;
        self.input_over.notify_waiters();
    }

    /// The write end of its standard input. A terminal gets one when it is asked for: what is written there is typed, until
    /// the input is closed.
    pub fn stdin(&self) -> Result<Rc<AsyncFd<OwnedFd>>> {
        if let Some(pipe) = &*self.stdin.borrow() {
            return Ok(pipe.clone());
        }
        if !self.terminal || self.outputs.borrow().is_empty() {
            // Who attaches can tell this kind from all else that may be wrong.
            let why = "is none that can be written to: it was not declared as a stream, or it is closed";
            return Err(Error::failed_precondition("stdin", self.name(), why));
        }
        let (read, write) = pipe()?;
        nonblocking(&write).map_err(|e| Error::io("stdin", self.name(), "can't be set up", &e))?;
        let pipe =
            watch(write, Interest::WRITABLE).map_err(|e| Error::io("stdin", self.name(), "can't be watched", &e))?;
        let pipe = Rc::new(pipe);
        let over = self.input_over.clone().notified_owned();
        // It ends with the input: nobody else holds it.
        drop(self.feed_from(read, Some(over))?);
        self.stdin.replace(Some(pipe.clone()));
        Ok(pipe)
    }

    /// What ends a client's input: a pipe's end, and not that of a terminal.
    fn over(&self) -> Option<OwnedNotified> {
        (!self.terminal).then(|| self.input_over.clone().notified_owned())
    }

    /// Copies a client's descriptor into the process's terminal or pipe.
    fn feed_from(&self, source: OwnedFd, over: Option<OwnedNotified>) -> Result<JoinHandle<()>> {
        let to =
            if self.terminal { Into::Terminal(self.outputs.borrow()[0].clone()) } else { Into::Pipe(self.stdin()?) };
        let from = From::new(source)?;
        Ok(tokio::task::spawn_local(async move {
            let copy = async {
                let mut buffer = vec![0; 4 << 10];
                while let Ok(n) = from.read(&mut buffer).await {
                    if n == 0 || to.write(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            };
            match over {
                Some(over) => tokio::select! {
                    () = copy => {}
                    () = over => {}
                },
                None => copy.await,
            }
        }))
    }

    fn save(&self) -> Result<()> {
        if self.sealed.get() {
            return Ok(());
        }
        // SAFETY: the directory is held open by `self.dir`.
        let dir = unsafe { BorrowedFd::borrow_raw(self.dir.as_raw_fd()) };
        life::store(dir, &self.record, &self.life.borrow())?;
        self.unsaved.set(false);
        Ok(())
    }

    /// Its container is deleted: its record stays as it is.
    pub fn seal(&self) {
        self.sealed.set(true);
        self.unsaved.set(false);
    }

    /// Removes its record.
    pub fn forget(&self) {
        self.seal();
        let _ = nix::unistd::unlinkat(&*self.dir, self.record.as_str(), nix::unistd::UnlinkatFlags::NoRemoveDir);
    }
}

enum From {
    Reopened(AsyncFd<OwnedFd>),
    Socket(AsyncFd<OwnedFd>),
    File(OwnedFd),
}

impl From {
    fn new(fd: OwnedFd) -> Result<From> {
        let os = |e: std::io::Error| Error::io("fd", "", "can't be read from", &e);
        Ok(match kind(&fd)? {
            SFlag::S_IFSOCK => From::Socket(watch(fd, Interest::READABLE).map_err(os)?),
            SFlag::S_IFIFO | SFlag::S_IFCHR => {
                let fresh = reopen(&fd, OFlag::O_RDONLY).map_err(os)?;
                watch(fresh, Interest::READABLE).map_or(From::File(fd), From::Reopened)
            }
            SFlag::S_IFREG => From::File(fd),
            _ => return Err(Error::invalid("fd", "", "can't be an input: give a pipe, socket, terminal or file")),
        })
    }

    async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            From::Reopened(fd) => fd.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?)).await,
            From::Socket(fd) => {
                fd.async_io(Interest::READABLE, |fd| Ok(recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)).await
            }
            From::File(fd) => Ok(nix::unistd::read(fd, buffer)?),
        }
    }
}

enum Into {
    Terminal(Output),
    Pipe(Rc<AsyncFd<OwnedFd>>),
}

impl Into {
    async fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Into::Terminal(output) => write_all(output.source(), bytes).await,
            Into::Pipe(pipe) => write_all(pipe, bytes).await,
        }
    }
}

/// Writes all of it, waiting for room.
pub async fn write_all(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = fd.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await?;
        bytes = &bytes[n..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_process_or_its_container() {
        let dir = tempfile::tempdir().unwrap();
        for (record, id, name) in [("box.life", "", "box"), ("box@more.life", "more", "more")] {
            let here = Rc::new(std::fs::File::open(dir.path()).unwrap().into());
            let process = Process::new(here, record.into(), id, "", false).unwrap();
            assert_eq!(process.resize(1, 1).unwrap_err().id, name);
            assert_eq!(process.stdin().unwrap_err().id, name);
        }
    }
}
