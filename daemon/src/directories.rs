//! The two directories that are a daemon's own: made, or found to be its own or nobody's. What is in another's directory
//! would be swept as what a crash left.

use std::{
    fs::{DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use cofferdam_types::{Error, Result};

use crate::config::SOCKET;

/// The file of the tables, in the root.
pub const TABLES: &str = "meta.redb";
/// What a root has as soon as a daemon has served there.
const OF_ROOT: [&str; 2] = ["content", "snapshots"];
/// What tells a state directory: a start makes some of it before anything else. It may have ended at any point.
const OF_STATE: [&str; 6] = ["netns", "shims", "spares", "tasks", "runc", SOCKET];
/// What a socket's path can have (unix(7)): one that is longer nobody finds.
const SUN_PATH: usize = 107;
/// Containers of other users go through it to their files; what is in it is for nobody else.
const MODE: u32 = 0o711;

/// The root directory, as it is before a daemon works there.
pub fn root(path: &Path) -> Result<Made> {
    let tables = path.join(TABLES).metadata().ok();
    let names = names(path)?;
    match (&tables, names.iter().any(|name| name != TABLES)) {
        (None, true) if OF_ROOT.iter().all(|own| names.iter().any(|name| name == own)) => {
            let why = "has no meta.redb beside what it told of: put meta.redb back from a copy, or make an empty file of that name and run \
                       cofferd --rebuild; for a new daemon give --root an empty directory";
            return Err(Error::data_loss("directory", path.display(), why));
        }
        (None, true) => return Err(foreign(path, "root", "--root")),
        (Some(meta), true) if meta.len() == 0 => {
            let why = "has an empty meta.redb beside what it told of: put meta.redb back from a copy, have cofferd --rebuild make one, or choose another --root";
            return Err(Error::data_loss("directory", path.display(), why));
        }
        _ => {}
    }
    place(path, path, "--root")
}

/// The state directory likewise; `root` may lie above it.
pub fn state(path: &Path, root: &Path) -> Result<Made> {
    let socket = path.join(SOCKET).as_os_str().len();
    if socket > SUN_PATH {
        let why = format!(
            "is too long: its socket's path has {socket} bytes, and {SUN_PATH} are possible; give --state another"
        );
        return Err(Error::invalid("directory", path.display(), why));
    }
    let names = names(path)?;
    if !names.is_empty() && !names.iter().any(|name| OF_STATE.contains(&name.as_str())) {
        return Err(foreign(path, "state", "--state"));
    }
    place(path, root, "--state")
}

fn foreign(path: &Path, what: &str, flag: &str) -> Error {
    let why = format!(
        "is not empty, and no {what} directory of a cofferd: give {flag} an empty directory, or one that is not there"
    );
    Error::failed_precondition("directory", path.display(), why)
}

/// What is in it, but for what a fresh file system has; nothing where it isn't there.
fn names(path: &Path) -> Result<Vec<String>> {
    let read = match std::fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.and_then(|all| all.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()),
    };
    let names = read.map_err(|e| Error::io("directory", path.display(), "can't be read", &e))?;
    let names = names.into_iter().map(|name| name.to_string_lossy().into_owned());
    Ok(names.filter(|name| name != "lost+found").collect())
}

/// Makes it where it isn't there, unless it lies in the root of another daemon than that of `own`.
fn place(path: &Path, own: &Path, flag: &str) -> Result<Made> {
    let fault = |e: std::io::Error| Error::io("directory", path.display(), "can't be made", &e);
    // The part of the way that is there, by its true names.
    let there = path.ancestors().find_map(|above| above.canonicalize().ok()).unwrap_or_default();
    let own = own.canonicalize().ok();
    for above in there.ancestors().filter(|above| Some(*above) != own.as_deref()) {
        if above.join(TABLES).exists() {
            let why = format!("lies in {}, the root directory of another daemon: give {flag} another", above.display());
            return Err(Error::failed_precondition("directory", path.display(), why));
        }
    }
    let missing: Vec<PathBuf> =
        path.ancestors().take_while(|above| above.symlink_metadata().is_err()).map(Path::to_owned).collect();
    let fresh = !missing.is_empty();
    let made = Made { dirs: missing, kept: false };
    DirBuilder::new().recursive(true).mode(MODE).create(path).map_err(fault)?;
    if !fresh {
        guarded(path, flag)?;
    }
    if fresh {
        // Whatever the umask says.
        std::fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(fault)?;
    } else if path.metadata().map_err(fault)?.mode() & 0o001 == 0 {
        tracing::warn!(path = %path.display(), "others can't pass through this directory: containers whose user is not root may not start (chmod o+x)");
    }
    Ok(made)
}

/// Refuses a directory that somebody else can put links into, in the place of files that are to be the daemon's (F4).
fn guarded(path: &Path, flag: &str) -> Result<()> {
    let meta = path.metadata().map_err(|e| Error::io("directory", path.display(), "can't be read", &e))?;
    let why = if meta.uid() != 0 {
        format!(
            "belongs to user {}, who could put links in the place of the daemon's files: chown it to root",
            meta.uid()
        )
    } else if meta.mode() & 0o002 != 0 || meta.mode() & 0o020 != 0 && meta.gid() != 0 {
        "can be written by others, who could put links in the place of the daemon's files: chmod go-w it".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::failed_precondition("directory", path.display(), format!("{why}, or give {flag} another")))
}

/// What was made for a directory. It goes again, unless it is kept or something is in it.
#[derive(Debug)]
pub struct Made {
    /// The innermost first.
    dirs: Vec<PathBuf>,
    kept: bool,
}

impl Made {
    /// It is in use now.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.kept {
            for dir in &self.dirs {
                let _ = std::fs::remove_dir(dir);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use cofferdam_types::Code;

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn what_is_somebody_elses_is_refused_and_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        fs::create_dir_all(theirs.join("trash")).unwrap();
        fs::set_permissions(&theirs, Permissions::from_mode(0o1777)).unwrap();
        for refused in [root(&theirs), state(&theirs, dir.path())] {
            let error = refused.unwrap_err();
            assert_eq!(error.code, Code::FailedPrecondition);
            assert!(error.message.contains("is not empty") && error.message.contains("--"), "{error}");
        }
        assert_eq!((mode(&theirs), theirs.join("trash").exists()), (0o1777, true));
        // A file is no directory.
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(root(&dir.path().join("file")).is_err());
        assert!(root(&dir.path().join("file/below")).is_err());
    }

    #[test]
    fn what_is_empty_or_ones_own_is_taken_with_the_mode_that_it_has() {
        let dir = tempfile::tempdir().unwrap();
        // A fresh file system that is mounted there.
        let disk = dir.path().join("disk");
        fs::create_dir_all(disk.join("lost+found")).unwrap();
        fs::set_permissions(&disk, Permissions::from_mode(0o750)).unwrap();
        root(&disk).unwrap().keep();
        state(&disk, dir.path()).unwrap().keep();
        assert_eq!(mode(&disk), 0o750);
        // After a crash of the first start.
        fs::write(disk.join(TABLES), "").unwrap();
        root(&disk).unwrap().keep();
        fs::write(disk.join(TABLES), "tables").unwrap();
        fs::create_dir(disk.join("content")).unwrap();
        root(&disk).unwrap().keep();
        let run = dir.path().join("run");
        fs::create_dir_all(run.join("netns")).unwrap();
        fs::write(run.join("notes"), "").unwrap();
        state(&run, &disk).unwrap().keep();
    }

    #[test]
    fn tables_that_were_emptied_are_no_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(TABLES), "").unwrap();
        fs::create_dir(dir.path().join("content")).unwrap();
        let error = root(dir.path()).unwrap_err();
        assert_eq!(error.code, Code::DataLoss);
        assert!(error.message.contains("put meta.redb back"), "{error}");
        // Nor are those that are gone, where a daemon's directories are.
        fs::remove_file(dir.path().join(TABLES)).unwrap();
        assert_eq!(root(dir.path()).unwrap_err().code, Code::FailedPrecondition);
        fs::create_dir(dir.path().join("snapshots")).unwrap();
        let error = root(dir.path()).unwrap_err();
        assert_eq!(error.code, Code::DataLoss);
        assert!(error.message.contains("make an empty file of that name and run cofferd --rebuild"), "{error}");
    }

    #[test]
    fn a_root_in_a_root_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(TABLES), "tables").unwrap();
        let (inner, link) = (dir.path().join("a/b"), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(dir.path(), link.path().join("way")).unwrap();
        for inner in [&inner, &link.path().join("way/a")] {
            assert!(root(inner).unwrap_err().message.contains("of another daemon"));
            assert!(state(inner, link.path()).unwrap_err().message.contains("of another daemon"));
        }
        assert!(!dir.path().join("a").exists());
        // In one's own it may be.
        state(&inner, dir.path()).unwrap().keep();
        assert_eq!(mode(&inner), 0o711);
    }

    #[test]
    fn a_socket_that_nobody_can_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(100));
        assert!(state(&long, dir.path()).unwrap_err().message.contains("is too long"));
        assert!(!long.exists());
    }

    #[test]
    fn what_was_made_in_vain_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        drop(root(&dir.path().join("a/b")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let made = root(&dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), "").unwrap();
        drop(made);
        assert!(dir.path().join("a/b/file").exists());
    }
}
