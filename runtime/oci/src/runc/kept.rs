//! What a binary keeps of a container, as far as it has to be known where the binary can't be asked.

use std::{io, path::Path, time::Duration};

use cofferdam_sys::process;
use serde::Deserialize;

use super::command::identity;

/// Its first process: the pid, and when it was started, in ticks since the host's start.
#[derive(Deserialize)]
struct First {
    #[serde(alias = "init_process_pid")]
    pid: i32,
    #[serde(alias = "init_process_start", alias = "process-start-time")]
    started: u64,
}

impl First {
    /// As runc and crun write it, each into a file of another name.
    fn read(kept: &Path) -> Option<First> {
        let files = ["state.json", "status"].into_iter().filter_map(|name| std::fs::read(kept.join(name)).ok());
        files.filter_map(|bytes| serde_json::from_slice(&bytes).ok()).find(|first: &First| first.pid > 0)
    }
}

/// Kills the first process of a container, by what a binary keeps of that in this directory, and waits for its end. For one
/// that lies in a group with others: there is nothing else to know it by. False if it is still there after that time.
pub fn kill_first(kept: &Path, patience: Duration) -> io::Result<bool> {
    let Some(first) = First::read(kept) else { return Ok(true) };
    // Held, the pid is nobody else's: another's that has it by now is another process.
    let held = match process::pidfd_open(first.pid) {
        // Gone, or its number is a thread's by now.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL | libc::ENOENT)) => return Ok(true),
        held => held?,
    };
    let now = std::fs::read_to_string(format!("/proc/{}/stat", first.pid));
    if now.ok().as_deref().and_then(identity).is_none_or(|(_, started)| started != first.started) {
        return Ok(true);
    }
    match process::pidfd_send_signal(&held, libc::SIGKILL) {
        Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(e),
        _ => process::ended_within(held, patience),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_process_is_known_by_its_pid_and_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let patience = Duration::from_secs(20);
        assert!(kill_first(dir.path(), patience).unwrap(), "nothing is kept");
        for (file, pid, start) in
            [("state.json", "init_process_pid", "init_process_start"), ("status", "pid", "process-start-time")]
        {
            let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            let own = child.id();
            let stat = std::fs::read_to_string(format!("/proc/{own}/stat")).unwrap();
            let (_, started) = identity(&stat).unwrap();
            let keep = |started: u64| {
                let kept = serde_json::json!({ "id": "box", pid: own, start: started, "rootless": false });
                std::fs::write(dir.path().join(file), kept.to_string()).unwrap();
            };
            keep(started + 1);
            assert!(kill_first(dir.path(), patience).unwrap());
            assert!(child.try_wait().unwrap().is_none(), "{file}: the number is another's");
            keep(started);
            assert!(kill_first(dir.path(), patience).unwrap());
            assert!(!child.wait().unwrap().success());
            std::fs::remove_file(dir.path().join(file)).unwrap();
        }
    }
}
