//! One daemon per state directory.

use std::{
    fs::{File, TryLockError},
    path::Path,
    time::{Duration, Instant},
};

use cofferdam_types::{Error, Result};

/// How long a predecessor that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(10);

/// Locks the directory for as long as the answer lives. Another daemon there, with another root, would take the shims
/// of this one for leftovers, and the socket.
pub fn claim(dir: &Path) -> Result<File> {
    let io = |what: &str, e: &std::io::Error| Error::io("directory", dir.display(), what, e);
    let file = File::open(dir).map_err(|e| io("can't be opened", &e))?;
    let end = Instant::now() + DYING;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(LOOK),
            Err(TryLockError::WouldBlock) => {
                let why =
                    "is the state directory of another daemon that runs: stop that one, or choose another --state";
                return Err(Error::failed_precondition("directory", dir.display(), why));
            }
            Err(TryLockError::Error(e)) => return Err(io("can't be locked", &e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_daemon_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = claim(dir.path()).unwrap();
        let error = claim(dir.path()).unwrap_err();
        assert!(error.message.contains("another daemon"), "{error}");
        // Who dies a little later than his successor comes is waited for.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(LOOK * 3);
                drop(held);
            });
            claim(dir.path()).unwrap();
        });
    }
}
