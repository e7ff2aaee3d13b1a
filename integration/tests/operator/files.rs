//! F1 and F4 of the catalogue, of a whole daemon: what it makes is for nobody else, whatever the umask it was started with, and no link that
//! somebody has put in its way is followed.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use cofferdam_integration::{BUSYBOX, Daemon, binary, until};
use nix::sys::stat::{Mode, umask};

use crate::{idle, ok};

/// All that is in a directory, but for what layers and containers have in theirs, which have the modes that these gave them.
fn everything(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut to_see = vec![dir.to_owned()];
    while let Some(path) = to_see.pop() {
        let tree =
            path.parent().and_then(Path::parent).and_then(Path::parent).is_some_and(|at| at.ends_with("snapshots"))
                && ["fs", "work", "layer"].iter().any(|name| path.ends_with(name));
        // What is being deleted is as it was, behind a door that is shut.
        if tree || path.parent().is_some_and(|parent| parent.ends_with("trash")) {
            continue;
        }
        if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            // What goes meanwhile has no modes.
            to_see.extend(fs::read_dir(&path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())));
        }
        all.push(path);
    }
    all
}

/// What gives others more than it may: they pass through the root and the state directory, and connect.
fn open_to_others(daemon: &Daemon) -> Vec<String> {
    let (root, state) = (daemon.root(), daemon.state());
    let bundles = state.join("tasks");
    let mut wrong = Vec::new();
    for path in everything(&root).into_iter().chain(everything(&state)) {
        let Ok(meta) = path.symlink_metadata() else { continue };
        let kind = meta.file_type();
        // A link has no mode of its own, and a pinned namespace is no file.
        if kind.is_symlink() || path.parent().is_some_and(|parent| parent.ends_with("netns")) {
            continue;
        }
        let may = if path == state.join("cofferd.sock") {
            0o660
        } else if path == root || path == state {
            0o711
        } else if kind.is_dir() || kind.is_socket() {
            0o700
        } else if path.starts_with(&bundles) {
            // Users in the container read them, by mounts of their own.
            0o644
        } else {
            0o600
        };
        let mode = meta.mode() & 0o7777;
        if mode & !may != 0 || meta.uid() != 0 {
            wrong.push(format!("{} has {mode:o}, of {may:o}", path.display()));
        }
    }
    wrong
}

#[test]
fn f1_what_the_daemon_makes_is_for_nobody_else_whatever_the_umask() {
    for mask in [0o000, 0o022, 0o077] {
        let before = umask(Mode::from_bits_truncate(mask));
        let daemon = Daemon::with_busybox();
        umask(before);
        // One of each kind of thing: containers that log, run and have ended, a spare shim, snapshots of drivers.
        ok(&daemon, &["run", "-d", "--name", "logs", BUSYBOX, "sh", "-c", "echo line; sleep 1000"]);
        idle(&daemon, "box");
        assert_eq!(ok(&daemon, &["run", "--name", "ended", BUSYBOX, "echo", "x"]), "x\n");
        ok(&daemon, &["exec", "box", "true"]);
        for driver in ["native", "erofs"] {
            ok(&daemon, &["snapshot", "prepare", "--snapshotter", driver, "work"]);
            ok(&daemon, &["snapshot", "commit", "--snapshotter", driver, "work", "kept"]);
        }
        until("the log has its line", || ok(&daemon, &["logs", "logs"]).contains("line").then_some(()));
        let seen = everything(&daemon.root()).len() + everything(&daemon.state()).len();
        assert!(seen > 30, "{seen}");
        for expected in ["output.log", "shim.sock", "meta.redb", "image"] {
            let there = |dir: &Path| everything(dir).iter().any(|path| path.ends_with(expected));
            assert!(there(&daemon.root()) || there(&daemon.state()), "{expected} isn't looked at");
        }
        assert_eq!(open_to_others(&daemon), [""; 0], "with umask {mask:03o}");
        // So it is after a crash, under the other extreme.
        let before = umask(Mode::from_bits_truncate(0o777 & !mask));
        daemon.restart();
        umask(before);
        ok(&daemon, &["exec", "box", "true"]);
        ok(&daemon, &["run", "-d", "--name", "later", BUSYBOX, "sh", "-c", "echo line; sleep 1000"]);
        until("the log has its line", || ok(&daemon, &["logs", "later"]).contains("line").then_some(()));
        assert_eq!(open_to_others(&daemon), [""; 0], "with umask {mask:03o}, started again");
        // To the main socket gets who is in the group of its directory, and nobody else.
        let socket = daemon.socket().symlink_metadata().unwrap();
        assert_eq!((socket.mode() & 0o7777, socket.uid(), socket.gid()), (0o660, 0, 0));
    }
}

#[test]
fn f4_links_in_the_place_of_a_socket_or_a_directory_are_not_followed() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    let state = daemon.state();
    let theirs = daemon.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o755)).unwrap();
    let precious = theirs.join("precious");
    fs::write(&precious, "precious").unwrap();
    let was = precious.metadata().unwrap();
    // The socket's own place and the name that it has before, by a link to a file, to a directory, and to nothing.
    for target in [precious.clone(), theirs.clone(), theirs.join("nothing")] {
        daemon.stop();
        for name in ["cofferd.sock", ".cofferd.sock.new"] {
            let place = state.join(name);
            let _ = fs::remove_file(&place);
            symlink(&target, &place).unwrap();
        }
        daemon.restart();
        let socket = daemon.socket().symlink_metadata().unwrap();
        assert!(socket.file_type().is_socket() && socket.mode() & 0o7777 == 0o660);
        assert!(state.join(".cofferd.sock.new").symlink_metadata().is_err());
        assert_eq!(ok(&daemon, &["exec", "box", "echo", "here"]), "here\n");
        assert!(theirs.join("nothing").symlink_metadata().is_err());
    }
    let is = precious.metadata().unwrap();
    assert_eq!((is.mode(), is.uid(), is.ino(), is.mtime()), (was.mode(), was.uid(), was.ino(), was.mtime()));
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");

    ok(&daemon, &["rm", "-f", "box"]);
}

#[test]
fn f4_a_directory_that_others_can_write_to_is_refused() {
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    let refused = |root: &Path, state: &Path| {
        let mut command = Command::new(binary("cofferd"));
        command.arg("--root").arg(root).arg("--state").arg(state).arg("--shim").arg(binary("coffer-shim"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let (fine, theirs) = (dir.path().join("fine"), dir.path().join("theirs"));
    for (mode, owner, word) in [
        (0o777, 0, "can be written by others"),
        (0o1777, 0, "can be written by others"),
        (0o775, 12, "can be written by others"),
        (0o700, 1000, "belongs to user 1000"),
    ] {
        fs::create_dir(&theirs).unwrap();
        let (uid, gid) = if mode & 0o020 != 0 { (0, owner) } else { (owner, 0) };
        chown(&theirs, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&theirs, fs::Permissions::from_mode(mode)).unwrap();
        for (root, state) in [(&theirs, &fine), (&fine, &theirs)] {
            let said = refused(root, state);
            assert!(said.contains(word) && said.contains("theirs"), "{mode:o}: {said}");
            // And nothing is left behind.
            assert!(!fine.exists() && fs::read_dir(&theirs).unwrap().count() == 0, "{mode:o}");
        }
        fs::remove_dir(&theirs).unwrap();
    }
}
