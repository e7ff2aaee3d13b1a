//! One invocation of the binary: what it inherits, how long it may take, how much it may say.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use cofferdam_sys::process;
use cofferdam_types::{Error, Result};
use serde::Deserialize;

/// How much of what it says is kept; the rest is read and dropped, so that it can't block on a full pipe.
pub(super) const MAX_OUTPUT: usize = 64 << 10;

/// The streams that it gets.
pub(super) enum Streams {
    /// Nothing to read; what it writes is captured.
    Captured,
    /// This to read; what it writes is captured.
    Input(File),
    /// Those of the process that it is to make.
    Passed([OwnedFd; 3]),
}

/// One invocation.
pub(super) struct Invocation<'a> {
    pub binary: &'a Path,
    /// `--root`.
    pub root: &'a Path,
    /// Where it works and writes its log.
    pub bundle: &'a Path,
    /// Names the container in errors.
    pub id: &'a str,
    pub deadline: Duration,
}

/// A line of the log, as `--log-format json` has it.
#[derive(Deserialize)]
struct Line {
    level: String,
    msg: String,
}

impl Invocation<'_> {
    /// Runs `<binary> <global arguments> <args>` to its end and gives back its output. A failure has the last error
    /// that it logged as its text.
    pub fn run(&self, args: &[&str], streams: Streams) -> Result<Vec<u8>> {
        let what = args.first().copied().unwrap_or_default();
        let fail = |doing: &str, e: &io::Error| {
            Error::io("runtime", self.binary.display(), format!("{doing} for container {}", self.id), e)
        };
        let log = self.bundle.join("log.json");
        // Only what this invocation adds is its own.
        let before = std::fs::symlink_metadata(&log).map_or(0, |meta| meta.len());
        let mut command = Command::new(self.binary);
        command
            .arg("--root")
            .arg(self.root)
            .arg("--log")
            .arg(&log)
            .args(["--log-format", "json"])
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir(self.bundle)
            .process_group(0);
        let mut captured = None;
        match streams {
            Streams::Passed([stdin, stdout, stderr]) => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
            }
            other => {
                command.stdin(match other {
                    Streams::Input(file) => Stdio::from(file),
                    _ => Stdio::null(),
                });
                let (reader, writer) = io::pipe().map_err(|e| fail("making a pipe", &e))?;
                let copy = writer.try_clone().map_err(|e| fail("making a pipe", &e))?;
                command.stdout(writer).stderr(copy);
                captured = Some(reader);
            }
        }
        // SAFETY: the closure makes two system calls and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                // The caller's death ends it; what it made has its own parent by then.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // X1: nothing above its three streams, whatever the caller forgot to mark.
                if libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(|e| fail("starting it", &e))?;
        // Holds our copies of the streams: with them open no reader would see an end.
        drop(command);
        let mut output = Vec::new();
        let ended = self.wait(child.id() as i32, captured.as_mut(), &mut output);
        if !matches!(ended, Ok(true)) {
            // SAFETY: no memory is involved; the group is the child's own and the child is not reaped yet.
            unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
        }
        let status = child.wait().map_err(|e| fail("waiting for it", &e))?;
        if !ended.map_err(|e| fail("waiting for it", &e))? {
            let message = format!("`{what}` took longer than {:?} and was killed", self.deadline);
            return Err(Error::deadline_exceeded("container", self.id, message));
        }
        if status.success() {
            return Ok(output);
        }
        let text = last_error(&log, before)
            .or_else(|| Some(String::from_utf8_lossy(&output).trim().to_owned()).filter(|text| !text.is_empty()))
            .unwrap_or_else(|| status.to_string());
        Err(self.error(what, &text))
    }

    /// Waits for the end of the child and reads what it writes meanwhile; false when the deadline passes first.
    fn wait(&self, pid: i32, mut captured: Option<&mut io::PipeReader>, output: &mut Vec<u8>) -> io::Result<bool> {
        let pidfd = process::pidfd_open(pid)?;
        if let Some(reader) = &captured {
            // SAFETY: no memory is involved. The reading end is ours alone.
            if unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let end = Instant::now() + self.deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let interest = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // poll(2) passes over a negative descriptor.
            let pipe = captured.as_ref().map_or(-1, |reader| reader.as_raw_fd());
            let mut polled = [interest(pidfd.as_fd().as_raw_fd()), interest(pipe)];
            let timeout = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
            // SAFETY: the pointer is valid for the call and the length is that of the array.
            if unsafe { libc::poll(polled.as_mut_ptr(), 2, timeout) } < 0 {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
                continue;
            }
            if let Some(reader) = captured.as_deref_mut()
                && !drain(reader, output)?
            {
                captured = None;
            }
            if polled[0].revents != 0 {
                // What it wrote last was read above or is read here; who else still holds the pipe has no say.
                if let Some(reader) = captured.as_deref_mut() {
                    drain(reader, output)?;
                }
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    fn error(&self, what: &str, text: &str) -> Error {
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(4096).collect();
        let message = format!("{}: `{what}`: {clean}", self.binary.display());
        let has = |part: &str| clean.contains(part);
        let program = || clean.split('"').nth(1).unwrap_or_default().to_owned();
        // Of looking the program up, and of executing it.
        let command = has("exec: ") || has("exec /");
        if has("executable file not found") || (command && (has("no such file or directory") || has("not a directory")))
        {
            Error::not_found("command", program(), message)
        } else if command && UNUSABLE.iter().any(|why| has(why)) {
            Error::failed_precondition("command", program(), message)
        } else if has("does not exist") {
            Error::not_found("container", self.id, message)
        } else if has("already exists") {
            Error::already_exists("container", self.id, message)
        } else if has("not running") || has("not paused") || has("stopped") || has("already finished") {
            Error::failed_precondition("container", self.id, message)
        } else {
            Error::internal("container", self.id, message)
        }
    }
}

/// What the kernel says of a program that is there and can't be executed.
const UNUSABLE: [&str; 6] = [
    "permission denied",
    "exec format error",
    "too many levels of symbolic links",
    "is a directory",
    "text file busy",
    "operation not permitted",
];

/// Reads what is there; false at the end of the pipe.
fn drain(reader: &mut io::PipeReader, output: &mut Vec<u8>) -> io::Result<bool> {
    let mut block = [0; 4096];
    // A bound, so that a writer that never stops can't keep us from looking at the clock.
    for _ in 0..256 {
        match reader.read(&mut block) {
            Ok(0) => return Ok(false),
            Ok(n) => output.extend_from_slice(&block[..n.min(MAX_OUTPUT - output.len().min(MAX_OUTPUT))]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// The last error in the log from `start` on.
fn last_error(log: &PathBuf, start: u64) -> Option<String> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(log).ok()?;
    let length = file.metadata().ok().filter(|meta| meta.is_file())?.len();
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(MAX_OUTPUT as u64)))).ok()?;
    let mut text = Vec::new();
    file.take(MAX_OUTPUT as u64).read_to_end(&mut text).ok()?;
    let lines = text.split(|b| *b == b'\n').rev().filter_map(|line| serde_json::from_slice::<Line>(line).ok());
    lines.filter(|line| matches!(line.level.as_str(), "error" | "fatal" | "panic")).map(|line| line.msg).next()
}
