//! What /proc says about a process.

use std::{
    fs::File,
    io::{self, Read as _},
};

use cofferdam_types::Timestamp;

/// What is read of a process's arguments, which it can make as long as it likes.
const COMMAND: u64 = 4 << 10;
/// linux/sched.h: it is on its way out.
const PF_EXITING: u64 = 4;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// In the reader's pid namespace.
    pub pid: i32,
    /// In its own.
    pub inner_pid: i32,
    /// In the reader's; 0 where it isn't seen from there.
    pub parent: i32,
    /// Who it runs as, for the file system.
    pub uid: u32,
    /// As ps(1) has it.
    pub state: char,
    /// When it was made.
    pub started: Timestamp,
    /// Nanoseconds of processor time.
    pub cpu: u64,
    /// Bytes.
    pub resident: u64,
    /// Its arguments, cut off where they are long; its name alone if it has none.
    pub command: Vec<String>,
}

fn text(pid: i32, file: &str, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{file}"))?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The fields of `stat` from the third on, and the name.
fn stat(pid: i32) -> io::Result<(String, Vec<String>)> {
    let bytes = text(pid, "stat", 4 << 10)?;
    let line = String::from_utf8_lossy(&bytes);
    // The name may hold anything, a parenthesis too.
    let parts = line.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    let (name, rest) = parts.ok_or(io::ErrorKind::InvalidData)?;
    Ok((name.to_owned(), rest.split_whitespace().map(str::to_owned).collect()))
}

fn field(fields: &[String], number: usize) -> u64 {
    // proc_pid_stat(5) counts from 1, and the first two are not here.
    fields.get(number - 3).and_then(|field| field.parse().ok()).unwrap_or_default()
}

/// Whether it is about to end.
pub fn is_exiting(pid: i32) -> bool {
    stat(pid).is_ok_and(|(_, fields)| field(&fields, 9) & PF_EXITING != 0)
}

/// Reads what is known of it; `NotFound` if it has ended.
pub fn process(pid: i32) -> io::Result<Process> {
    let (name, fields) = stat(pid)?;
    let status = text(pid, "status", 16 << 10)?;
    let status = String::from_utf8_lossy(&status);
    let line = |key: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        found.map(|words| words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).unwrap_or_default()
    };
    let number = |words: &[String], at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let mut command: Vec<String> = text(pid, "cmdline", COMMAND)
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    // Each ends with a NUL.
    if command.last().is_some_and(String::is_empty) {
        command.pop();
    }
    if command.is_empty() {
        command.push(format!("[{name}]"));
    }
    let inner = line("NSpid");
    Ok(Process {
        pid,
        inner_pid: inner.last().and_then(|pid| pid.parse().ok()).unwrap_or(pid),
        parent: field(&fields, 4) as i32,
        uid: number(&line("Uid"), 1).unwrap_or_default() as u32,
        state: fields.first().and_then(|state| state.chars().next()).unwrap_or('?'),
        started: started(field(&fields, 22)),
        cpu: (field(&fields, 14) + field(&fields, 15)) * NANOS / ticks(),
        resident: number(&line("VmRSS"), 0).unwrap_or_default() << 10,
        command,
    })
}

const NANOS: u64 = 1_000_000_000;

fn ticks() -> u64 {
    // SAFETY: sysconf(3) takes no pointers.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// A time in ticks since boot.
fn started(since_boot: u64) -> Timestamp {
    let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    let now = Timestamp::now().0;
    let boot = boot.map_or(now, |boot| boot.as_nanos() as u64);
    Timestamp(now.saturating_sub(boot).saturating_add(since_boot * (NANOS / ticks())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_as_proc_says() {
        // It waits for a line that never comes.
        let mut command = std::process::Command::new("sh");
        let mut child = command.args(["-c", "read x", "a (b) c"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        // Between fork and exec it is still this program.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while process(pid).unwrap().command[0] != "sh" {
            assert!(std::time::Instant::now() < end);
            std::thread::yield_now();
        }
        let seen = process(pid).unwrap();
        assert_eq!(seen.command, ["sh", "-c", "read x", "a (b) c"]);
        assert_eq!((seen.pid, seen.inner_pid, seen.parent), (pid, pid, std::process::id() as i32));
        assert_eq!(seen.uid, nix::unistd::geteuid().as_raw());
        let age = Timestamp::now().0.abs_diff(seen.started.0);
        assert!(age < 60 * NANOS, "{seen:?}");
        assert!(!is_exiting(pid));
        child.kill().unwrap();
        // A zombie has no arguments left.
        while process(pid).unwrap().state != 'Z' {
            assert!(std::time::Instant::now() < end + std::time::Duration::from_secs(10));
            std::thread::yield_now();
        }
        assert_eq!(process(pid).unwrap().command, ["[sh]"]);
        assert!(is_exiting(pid));
        child.wait().unwrap();
        assert_eq!(process(pid).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
