//! criu, the program that checkpoints and restores processes: found, asked for its version, and what it says when
//! something goes wrong.

mod rpc;

pub(crate) mod dump;
pub(crate) mod restore;
mod verify;

use std::{
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use cofferdam_types::{Error, Result};

use self::rpc::{Request, Session, Surroundings, kind};

/// The first version that has all that is asked of it here, and that kernels of today let work.
const OLDEST: (i32, i32) = (4, 0);
/// How long it may take to say its version.
const GREETING: Duration = Duration::from_secs(10);
/// How long it may take to checkpoint or to restore: memory goes through a disk.
pub const DEADLINE: Duration = Duration::from_secs(600);
/// In a checkpoint: its images, and what criu writes besides.
pub const IMAGES: &str = "images";
/// See [`IMAGES`].
pub const WORK: &str = "work";
/// In the images: where the first process's streams led, as runc keeps it too.
pub(crate) const DESCRIPTORS: &str = "descriptors.json";
/// The key of the network namespace, which is made here and not by criu.
const NETWORK: &str = "extRootNetNS";

fn absent(criu: &Path) -> Error {
    let why = "is not installed: install criu 4.0 or newer, or name it with cofferd --criu";
    Error::failed_precondition("criu", criu.display(), why)
}

/// Fails unless this is a criu that can be worked with.
pub fn require(criu: &Path) -> Result<()> {
    if !criu.is_absolute() {
        return Err(absent(criu));
    }
    let mut session = Session::start(criu, GREETING, &Surroundings::default())?;
    let answer = session.ask(&Request { kind: kind::VERSION, options: None, notify_success: None }, |_, _| Ok(()))?;
    let version = answer.version.filter(|_| answer.success).ok_or_else(|| {
        Error::failed_precondition("criu", criu.display(), "doesn't say its version: install criu 4.0 or newer")
    })?;
    if (version.major, version.minor) < OLDEST {
        let (major, minor) = (version.major, version.minor);
        let why = format!("is criu {major}.{minor}, which is too old: install {}.{} or newer", OLDEST.0, OLDEST.1);
        return Err(Error::failed_precondition("criu", criu.display(), why));
    }
    session.finish()
}

/// How much of criu's log is looked at for its errors, and how much of it is told.
const TAIL: u64 = 64 << 10;
const TOLD: usize = 1024;
/// In an error that is none: it can't raise its own limit in some places, and goes on without.
const HARMLESS: &str = "RLIMIT_NOFILE";

/// A failure as criu's own log explains it.
fn explained(what: &str, log: &Path, said: Option<String>) -> String {
    let mut lines = errors(log);
    lines.extend(said.filter(|said| !said.contains(HARMLESS)));
    if lines.is_empty() {
        lines.push("it doesn't say why".into());
    }
    let text: String = lines.join("; ").chars().map(|c| if c.is_control() { ' ' } else { c }).take(TOLD).collect();
    format!("criu can't {what} it: {text}")
}

/// The first errors in a log, without times and places in criu's source.
pub(crate) fn errors(log: &Path) -> Vec<String> {
    let Ok(mut file) = std::fs::File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(log) else {
        return Vec::new();
    };
    let length = file.metadata().map_or(0, |meta| meta.len());
    let mut bytes = Vec::new();
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(TAIL)));
    let _ = file.take(TAIL).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().filter(|line| line.contains("Error (") && !line.contains(HARMLESS));
    lines.filter_map(|line| line.split_once("): ")).map(|(_, said)| said.trim().to_owned()).take(3).collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

    use cofferdam_types::Code;

    use super::*;

    /// A program that takes one request over its socket and answers with these bytes.
    fn fake(dir: &Path, answer: &str) -> PathBuf {
        let path = dir.join("criu");
        let script = format!(
            "#!/usr/bin/python3\nimport socket, sys\ns = socket.socket(fileno=int(sys.argv[2]))\ns.recv(4096)\n\
             s.send(bytes.fromhex({answer:?}))\n"
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_criu_that_is_absent_wrong_or_too_old_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: &Path, word: &str| {
            let error = require(path).unwrap_err();
            assert_eq!(error.code, Code::FailedPrecondition, "{error}");
            assert!(error.message.contains(word), "{error}");
        };
        refused(&dir.path().join("nothing"), "install criu");
        refused(Path::new("criu"), "install criu");
        refused(Path::new("/bin/true"), "is it criu");
        refused(&fake(dir.path(), "ff"), "is it criu");
        // VERSION, success, 3.17.
        refused(&fake(dir.path(), "080a1001520408031011"), "3.17, which is too old");
        refused(&fake(dir.path(), "080a1000"), "doesn't say its version");
        require(&fake(dir.path(), "080a1001520408041002")).unwrap();
    }

    #[test]
    fn its_log_is_told_without_places() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "(00.01) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self\n\
                    (00.02) Warn  (criu/x.c:1): no matter\n\
                    (00.03) Error (criu/files-reg.c:1790): Can't lookup mount=27\n";
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(errors(file.path()), ["Can't lookup mount=27"]);
        let told = explained("checkpoint", file.path(), Some("also\nthis".into()));
        assert_eq!(told, "criu can't checkpoint it: Can't lookup mount=27; also this");
        assert!(explained("restore", Path::new("/nonexistent"), None).contains("doesn't say why"));
    }
}
