//! One invocation of the binary, and what its errors mean.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::AsRawFd,
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use cofferdam_sys::{process, program};
use cofferdam_types::{Error, Result};
use serde::Deserialize;

pub(super) use program::{MAX_OUTPUT, Streams};

/// One invocation.
pub(super) struct Invocation<'a> {
    pub binary: &'a Path,
    /// `--root`.
    pub root: &'a Path,
    /// Arguments of ours in front of the command.
    pub global: &'a [&'a OsStr],
    /// What it starts with instead of the caller's own `oom_score_adj`.
    pub oom_score: Option<i32>,
    /// Where it works and writes its log.
    pub bundle: &'a Path,
    /// Names the container in errors.
    pub id: &'a str,
    pub deadline: Duration,
    /// The criu that it is to find: it looks by name.
    pub criu: Option<&'a Path>,
    /// It makes a container: see [`await_maker`].
    pub makes: bool,
}

/// A line of the log, as `--log-format json` has it.
#[derive(Deserialize)]
struct Line {
    level: String,
    msg: String,
}

fn start_with_score(command: &mut Command, score: i32) {
    let score = score.to_string();
    // SAFETY: the closure makes three system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file < 0 || libc::write(file, score.as_ptr().cast(), score.len()) < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::close(file);
            Ok(())
        });
    }
}

/// The runtime that is making a container, in the bundle, for as long as it is at it: the line that the kernel gives of it in
/// `/proc/self/stat`, which has its pid and, since a pid is another's in time, when it was started.
pub(super) const MAKER: &str = "maker.stat";

fn note_maker(command: &mut Command, bundle: &Path) -> io::Result<()> {
    let path = bundle.join(MAKER);
    let _ = std::fs::remove_file(&path);
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    // SAFETY: the closure makes four system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let stat = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            let mut line = [0_u8; 1024];
            let read = if stat < 0 { -1 } else { libc::read(stat, line.as_mut_ptr().cast(), line.len()) };
            if read <= 0 || libc::write(file.as_raw_fd(), line.as_ptr().cast(), read as usize) != read {
                return Err(io::Error::last_os_error());
            }
            libc::close(stat);
            Ok(())
        });
    }
    Ok(())
}

/// The pid of a process, and when it was started, in ticks since the host's start.
pub(super) fn identity(stat: &str) -> Option<(i32, u64)> {
    // Its name is in brackets, and may hold any.
    let (pid, rest) = (stat.split_once(' ')?.0, stat.rsplit_once(") ")?.1);
    Some((pid.parse().ok()?, rest.split(' ').nth(STARTED)?.parse().ok()?))
}

/// Which field behind the name says when it was started.
const STARTED: usize = 19;

/// Whether a runtime may be making a container in this bundle.
pub fn has_maker(bundle: &Path) -> bool {
    bundle.join(MAKER).exists()
}

/// Waits for the end of the runtime that was making a container in this bundle when its shim died. It dies with the shim,
/// but a moment later, and may have made a cgroup in that moment. False if it is still there after that time.
pub fn await_maker(bundle: &Path, patience: Duration) -> io::Result<bool> {
    let path = bundle.join(MAKER);
    match std::fs::read(&path) {
        Ok(bytes) => {
            // Without that it had not begun.
            let Some((pid, started)) = std::str::from_utf8(&bytes).ok().and_then(identity) else { return Ok(true) };
            let gone = match process::pidfd_open(pid) {
                Ok(held) => {
                    // Held, the pid is nobody else's: another's that has it by now is another process.
                    let now = std::fs::read_to_string(format!("/proc/{pid}/stat"));
                    match now.ok().as_deref().and_then(identity) {
                        Some((_, other)) if other != started => true,
                        _ => process::ended_within(held, patience)?,
                    }
                }
                // Gone, or its number is a thread's by now.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => true,
                Err(e) => return Err(e),
            };
            if gone {
                std::fs::remove_file(path)?;
            }
            Ok(gone)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
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
        let mut command = program::command(self.binary);
        command.arg("--root").arg(self.root).arg("--log").arg(&log).args(["--log-format", "json"]);
        command.args(self.global).args(args).current_dir(self.bundle);
        if let Some(score) = self.oom_score {
            start_with_score(&mut command, score);
        }
        if let Some(dir) = self.criu.and_then(Path::parent) {
            command.env("PATH", format!("{}:{}", dir.display(), program::PATH));
        }
        if self.makes {
            note_maker(&mut command, self.bundle).map_err(|e| fail("noting that it begins", &e))?;
        }
        let ended = program::run(command, streams, self.deadline);
        if self.makes {
            let _ = std::fs::remove_file(self.bundle.join(MAKER));
        }
        let Some(ended) = ended.map_err(|e| fail("running it", &e))? else {
            let message = format!("`{what}` took longer than {:?} and was killed", self.deadline);
            return Err(Error::deadline_exceeded("container", self.id, message));
        };
        let output = ended.output;
        if ended.status.success() {
            return Ok(output);
        }
        let said = last_error(&log, before)
            .or_else(|| Some(String::from_utf8_lossy(&output).trim().to_owned()).filter(|text| !text.is_empty()));
        // One that says why it doesn't make or start a container has not broken down: it is the spec, or the host.
        let refuses = matches!(what, "create" | "start") && ended.status.code() == Some(1) && said.is_some();
        Err(self.error(what, &said.unwrap_or_else(|| ended.status.to_string()), refuses))
    }

    fn error(&self, what: &str, text: &str, refuses: bool) -> Error {
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(4096).collect();
        let message = format!("{}: `{what}`: {clean}", self.binary.display());
        let has = |part: &str| clean.contains(part);
        let program = || clean.split(['"', '`']).nth(1).unwrap_or_default().to_owned();
        // Of looking the program up, and of executing it.
        let command = has("exec: ") || has("exec /") || has("open executable");
        if (has("executable file") && has("not found"))
            || (command && (has("no such file or directory") || has("not a directory")))
        {
            Error::not_found("command", program(), message)
        } else if command && UNUSABLE.iter().any(|why| clean.to_lowercase().contains(why)) {
            Error::failed_precondition("command", program(), message)
        } else if has("does not exist") {
            Error::not_found("container", self.id, message)
        } else if has("already exists") {
            Error::already_exists("container", self.id, message)
        } else if has("not running") || has("not paused") || has("stopped") || has("already finished") {
            Error::failed_precondition("container", self.id, message)
        } else if refuses && FULL.iter().any(|why| has(why)) {
            Error::resource_exhausted("container", self.id, message)
        } else if refuses {
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

/// What the kernel says where there is no room for something.
const FULL: [&str; 4] =
    ["no space left on device", "cannot allocate memory", "too many open files", "resource temporarily unavailable"];

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
