//! Running a foreign program to its end: what it inherits, how long it may take, how much it may say.
//!
//! It gets a cleared environment but for `PATH` and what the caller sets, a process group of its own, no descriptor but
//! its three streams, and SIGKILL when its caller dies.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, ExitStatus},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{process, spawn::spawn};

/// How much of what it says is kept; the rest is read and dropped, so that it can't block on a full pipe.
pub const MAX_OUTPUT: usize = 64 << 10;

/// The streams that it gets.
#[derive(Debug)]
pub enum Streams {
    /// Nothing to read; what it writes is captured.
    Captured,
    /// This to read; what it writes is captured.
    Input(File),
    /// This to read; what it writes to either stream is captured apart, and of the first so many bytes at most.
    Apart(File, usize),
    /// Those of the process that it is to make.
    Passed([OwnedFd; 3]),
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote: to both streams, or to the first where they were captured apart.
    pub output: Vec<u8>,
    /// What it wrote to the second, where they were captured apart.
    pub errors: Vec<u8>,
    /// Whether it wrote more than is kept of its output.
    pub cut: bool,
}

thread_local! {
    static GIVEN_UP: RefCell<Option<Arc<OwnedFd>>> = const { RefCell::new(None) };
}

/// Calls `f`; what it runs on this thread is killed, as one that takes too long, and what it waits for ([`readable`]) no longer
/// waited for, as soon as `given_up` can be read: whoever started this doesn't want it any more.
pub fn until<T>(given_up: Arc<OwnedFd>, f: impl FnOnce() -> T) -> T {
    let before = GIVEN_UP.replace(Some(given_up));
    let result = f();
    GIVEN_UP.set(before);
    result
}

/// Calls `f` to its end though that is so: it tidies up.
pub fn regardless<T>(f: impl FnOnce() -> T) -> T {
    let before = GIVEN_UP.take();
    let result = f();
    GIVEN_UP.set(before);
    result
}

/// Where a program finds others.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to be run: add arguments, variables and a directory, and give it to [`run`].
pub fn command(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command.env_clear().env("PATH", PATH).process_group(0);
    command
}

/// A pipe that is read from.
struct Captured {
    reader: Option<io::PipeReader>,
    bytes: Vec<u8>,
    most: usize,
    cut: bool,
}

impl Captured {
    fn new(most: usize) -> io::Result<(Captured, io::PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        // SAFETY: no memory is involved. The reading end is ours alone.
        if unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((Captured { reader: Some(reader), bytes: Vec::new(), most, cut: false }, writer))
    }

    /// Reads what is there.
    fn drain(&mut self) -> io::Result<()> {
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let mut block = [0; 4096];
        // A bound, so that a writer that never stops can't keep us from looking at the clock.
        for _ in 0..256 {
            match reader.read(&mut block) {
                Ok(0) => {
                    self.reader = None;
                    return Ok(());
                }
                Ok(n) => {
                    let room = self.most.saturating_sub(self.bytes.len());
                    self.cut |= n > room;
                    self.bytes.extend_from_slice(&block[..n.min(room)]);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Runs it to its end. `None`: it took longer than `deadline`, and was killed with all of its process group.
pub fn run(mut command: Command, streams: Streams, deadline: Duration) -> io::Result<Option<Ended>> {
    let mut captured: Vec<Captured> = Vec::new();
    let streams: [OwnedFd; 3] = match streams {
        Streams::Passed(streams) => streams,
        Streams::Apart(stdin, most) => {
            let (out, to) = Captured::new(most)?;
            let (err, errors) = Captured::new(MAX_OUTPUT)?;
            captured.extend([out, err]);
            [stdin.into(), to.into(), errors.into()]
        }
        other => {
            let stdin = match other {
                Streams::Input(file) => file,
                _ => File::open("/dev/null")?,
            };
            let (both, to) = Captured::new(MAX_OUTPUT)?;
            captured.push(both);
            [stdin.into(), to.try_clone()?.into(), to.into()]
        }
    };
    let caller = process::pidfd_open(std::process::id() as i32)?;
    let [stdin, stdout, stderr] = &streams;
    let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), caller.as_fd()];
    let mut child = spawn(fds, move |[stdin, stdout, stderr, caller]| {
        command.stdin(stdin.try_clone()?).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let caller = caller.as_raw_fd();
        // SAFETY: the closure makes three system calls and allocates nothing. The number is that of a descriptor which is open
        // until the program has begun.
        unsafe {
            command.pre_exec(move || {
                // The caller's death ends it; what it made has its own parent by then.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // One that was dead before that tells nobody. Its number may be none in a namespace that a hook has entered.
                let mut ended = libc::pollfd { fd: caller, events: libc::POLLIN, revents: 0 };
                if libc::poll(&mut ended, 1, 0) != 0 {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                // X1: nothing above its three streams, whatever the caller forgot to mark.
                if libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        Ok(command)
    })?;
    // With our copies open no reader would see an end.
    drop(streams);
    let ended = wait(child.id() as i32, &mut captured, deadline);
    if !matches!(ended, Ok(true)) {
        // SAFETY: no memory is involved; the group is the child's own and the child is not reaped yet.
        unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
    }
    let status = child.wait()?;
    if !ended? {
        return Ok(None);
    }
    let cut = captured.first().is_some_and(|first| first.cut);
    let mut texts = captured.into_iter().map(|captured| captured.bytes);
    let (output, errors) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
    Ok(Some(Ended { status, output, errors, cut }))
}

/// Waits for the end of the child and reads what it writes meanwhile; false when the deadline passes first. An error where
/// it was given up.
fn wait(pid: i32, captured: &mut [Captured], deadline: Duration) -> io::Result<bool> {
    let pidfd = process::pidfd_open(pid)?;
    let end = Instant::now() + deadline;
    loop {
        let pipes = captured.iter().map(|c| c.reader.as_ref().map_or(-1, |reader| reader.as_raw_fd()));
        let fds: Vec<_> = std::iter::once(pidfd.as_raw_fd()).chain(pipes).collect();
        let (ended, given_up) = poll(&fds, end)?;
        // What it wrote last is read here; who else still holds the pipe has no say.
        captured.iter_mut().try_for_each(Captured::drain)?;
        if ended {
            return Ok(true);
        }
        if given_up {
            return Err(lost());
        }
        if Instant::now() >= end {
            return Ok(false);
        }
    }
}

/// Waits until this can be read; false when the deadline passes first. An error where it was given up.
pub fn readable(fd: BorrowedFd<'_>, deadline: Duration) -> io::Result<bool> {
    match poll(&[fd.as_raw_fd()], Instant::now() + deadline)? {
        (false, true) => Err(lost()),
        (readable, _) => Ok(readable),
    }
}

fn lost() -> io::Error {
    io::Error::other("it was given up, since the process or the container is killed or removed")
}

/// Waits until one of these can be read, until `end`, or until this is given up: whether the first can be read, and whether
/// that is so.
fn poll(fds: &[RawFd], end: Instant) -> io::Result<(bool, bool)> {
    let given_up = GIVEN_UP.with_borrow(Clone::clone);
    // poll(2) passes over a negative descriptor.
    let given_up = given_up.as_ref().map_or(-1, |fd| fd.as_raw_fd());
    let all = std::iter::once(given_up).chain(fds.iter().copied());
    let mut polled: Vec<_> = all.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
        // SAFETY: the pointer is valid for the call and the length is that of the array.
        if unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) } >= 0 {
            return Ok((polled.get(1).is_some_and(|first| first.revents != 0), polled[0].revents != 0));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use super::*;

    fn shell(script: &str) -> Command {
        let mut shell = command(Path::new("/bin/sh"));
        shell.args(["-c", script]);
        shell
    }

    #[test]
    fn streams_are_captured_together_or_apart() {
        let both = run(shell("echo out; echo err >&2; exit 3"), Streams::Captured, Duration::from_secs(20));
        let both = both.unwrap().unwrap();
        assert_eq!((both.status.code(), &*both.output, &*both.errors), (Some(3), &b"out\nerr\n"[..], &b""[..]));
        let mut input = tempfile::tempfile().unwrap();
        input.write_all(b"given").unwrap();
        input.rewind().unwrap();
        let apart = run(shell("cat; echo err >&2"), Streams::Apart(input, 3), Duration::from_secs(20));
        let apart = apart.unwrap().unwrap();
        assert_eq!((&*apart.output, &*apart.errors, apart.cut), (&b"giv"[..], &b"err\n"[..], true));
    }

    #[test]
    fn one_that_hangs_is_given_up_on_demand() {
        let (read, write) = std::io::pipe().unwrap();
        let given_up = Arc::new(OwnedFd::from(read));
        let hangs = std::thread::spawn(move || {
            until(given_up, || run(shell("exec sleep 1000"), Streams::Captured, Duration::from_secs(1000)))
        });
        drop(write);
        let error = hangs.join().unwrap().unwrap_err();
        assert!(error.to_string().contains("given up"), "{error}");
        // Others go on.
        assert!(run(shell("true"), Streams::Captured, Duration::from_secs(20)).unwrap().is_some());
    }

    #[test]
    fn what_can_be_read_is_waited_for_until_a_deadline_or_until_it_is_given_up() {
        let (never, mut hold) = std::io::pipe().unwrap();
        assert!(!readable(never.as_fd(), Duration::from_millis(1)).unwrap());
        let (read, write) = std::io::pipe().unwrap();
        drop(write);
        let ask = || until(Arc::new(read.try_clone().unwrap().into()), || readable(never.as_fd(), Duration::MAX / 4));
        assert!(ask().unwrap_err().to_string().contains("given up"));
        // What is there is there.
        hold.write_all(b"x").unwrap();
        assert!(ask().unwrap());
    }

    #[test]
    fn one_that_hangs_dies_with_its_children() {
        let began = Instant::now();
        // Its child would hold the pipe open for as long as it lived.
        let dir = tempfile::tempdir().unwrap();
        let mut hangs = shell("sleep 1000 & echo $! > pid; wait");
        hangs.current_dir(&dir);
        assert!(run(hangs, Streams::Captured, Duration::from_millis(500)).unwrap().is_none());
        assert!(began.elapsed() < Duration::from_secs(20));
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        let lives = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while lives() {
            assert!(Instant::now() < end, "its child lives");
            std::thread::yield_now();
        }
    }
}
