//! Snapshots that are made by hand, and mounted as the command says.

use std::{path::Path, process::Command};

use cofferdam_integration::{Daemon, btrfs_disk, until};

use crate::{Said, idle, json, ok, say};

/// Mounts a snapshot as `coffer snapshot mounts` says, where nobody else sees it, and runs a script in it.
fn within(daemon: &Daemon, driver: &str, key: &str, target: &Path, script: &str) -> Said {
    let mount = ok(daemon, &["snapshot", "mounts", "--snapshotter", driver, key, target.to_str().unwrap()]);
    let all = format!("set -e\n{mount}cd \"$1\"\n{script}");
    Command::new("unshare").args(["-m", "sh", "-c", &all, "sh"]).arg(target).output().unwrap().into()
}

#[test]
fn a_snapshot_from_prepare_to_rm() {
    let daemon = btrfs_disk(512);
    let dir = tempfile::Builder::new().prefix("it's a target ").tempdir().unwrap();
    for driver in ["overlay", "native", "btrfs"] {
        let coffer = |args: &[&str]| ok(&daemon, &[args, &["--snapshotter", driver]].concat());
        let all = |args: &[&str]| json(&daemon, &[args, &["--snapshotter", driver]].concat());
        let script = |key: &str, script: &str| within(&daemon, driver, key, dir.path(), script);

        assert_eq!(coffer(&["snapshot", "prepare", "one"]), "one\n");
        let wrote = script("one", "echo first > file; mkdir dir");
        assert_eq!(wrote.code, 0, "{wrote:?}");
        assert_eq!(coffer(&["snapshot", "commit", "-l", "tier=db", "one", "base"]), "base\n");
        assert_eq!(coffer(&["snapshot", "prepare", "two", "base", "--label", "step=2"]), "two\n");
        let wrote = script("two", "cat file; echo second > dir/file");
        assert_eq!((wrote.code, &*wrote.out), (0, "first\n"), "{wrote:?}");
        assert_eq!(coffer(&["snapshot", "commit", "two", "top"]), "top\n");
        assert_eq!(coffer(&["snapshot", "view", "seen", "top"]), "seen\n");
        let read = script("seen", "cat file dir/file; touch new");
        assert!(read.code != 0 && read.out == "first\nsecond\n" && read.err.contains("Read-only"), "{read:?}");

        assert_eq!(coffer(&["snapshot", "tree"]).lines().count(), 4);
        let tree = all(&["snapshot", "tree"]);
        for (n, key) in ["base", "top", "seen"].into_iter().enumerate() {
            assert!(tree[n]["key"] == key && tree[n]["depth"] == n, "{tree}");
        }

        let info = all(&["snapshot", "info", "base"]);
        assert!(info["kind"] == "committed" && info["labels"]["tier"] == "db", "{info}");
        assert_eq!(coffer(&["snapshot", "label", "base", "tier=", "old=yes"]), "old=yes\n");
        assert_eq!(coffer(&["snapshot", "ls", "-q", "--filter", "labels.old==yes"]), "base\n");
        let usage = all(&["snapshot", "usage", "base", "seen"]);
        assert!(usage[0]["inodes"] == 3 && usage[1]["size"] == 0, "{usage}");
        assert_eq!(coffer(&["snapshot", "usage"]).lines().count(), 4);
        let mounts = all(&["snapshot", "mounts", "seen"]);
        assert_eq!(mounts[0]["type"], if driver == "overlay" { "overlay" } else { "bind" }, "{mounts}");

        let refused = say(&daemon, &["snapshot", "rm", "base", "--snapshotter", driver]);
        let why = "coffer: snapshot base: cannot remove snapshot with child: remove top first\n";
        assert_eq!((refused.code, &*refused.err), (1, why));
        let refused = say(&daemon, &["snapshot", "mounts", "base", "--snapshotter", driver]);
        assert!(refused.code == 1 && refused.err.contains("prepare or view one on top of it"), "{refused:?}");
        assert_eq!(coffer(&["snapshot", "rm", "seen", "top", "base"]), "seen\ntop\nbase\n");
        assert_eq!(all(&["snapshot", "ls"]), serde_json::json!([]));
    }
}

#[test]
fn a_limit_is_set_where_the_driver_can_keep_it() {
    let daemon = btrfs_disk(512);
    let limit = |driver: &str| say(&daemon, &["snapshot", "limit", "--snapshotter", driver, "work", "8m"]);
    for driver in ["overlay", "btrfs"] {
        ok(&daemon, &["snapshot", "prepare", "--snapshotter", driver, "work"]);
    }
    let refused = limit("overlay");
    assert!(refused.code == 1 && refused.err.contains("use the driver btrfs,"), "{refused:?}");
    let refused = limit("btrfs");
    assert!(refused.code == 1 && refused.err.contains("quotas are off"), "{refused:?}");
    let root = daemon.root();
    assert!(Command::new("btrfs").args(["quota", "enable"]).arg(&root).status().unwrap().success());
    // While what there is is being counted it is refused.
    until("it is counted", || {
        let said = limit("btrfs");
        assert!(said.code == 0 || said.err.contains("btrfs still counts what there is"), "{said:?}");
        (said.code == 0).then_some(())
    });
    let dir = tempfile::tempdir().unwrap();
    let script = "dd if=/dev/zero of=a bs=1M count=4 && dd if=/dev/zero of=b bs=1M count=16";
    let wrote = within(&daemon, "btrfs", "work", dir.path(), script);
    assert!(wrote.code != 0 && wrote.err.contains("quota exceeded"), "{wrote:?}");
}

#[test]
fn the_root_of_a_container_is_not_touched_by_hand() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    for args in [&["snapshot", "rm", "box"][..], &["snapshot", "commit", "box", "mine"]] {
        let refused = say(&daemon, args);
        let why = "coffer: snapshot box: is the root of container box, and goes with that: remove the container\n";
        assert_eq!((refused.code, &*refused.err), (1, why), "{args:?}");
    }
    // Nor mounted a second time while it runs, by whatever daemon; afterwards it is.
    for state in ["running", "paused"] {
        let refused = say(&daemon, &["snapshot", "mounts", "box"]);
        let why = format!("coffer: snapshot box: is mounted by container box, which is {state}: ");
        assert!(refused.code == 1 && refused.err.starts_with(&why), "{refused:?}");
        daemon.kill9();
        daemon.restart();
        if state == "running" {
            ok(&daemon, &["pause", "box"]);
        }
    }
    ok(&daemon, &["resume", "box"]);
    ok(&daemon, &["kill", "box"]);
    assert_eq!(say(&daemon, &["wait", "box"]).code, 137);
    let seen = within(&daemon, "overlay", "box", Path::new("/mnt"), "ls bin/sh");
    assert_eq!((seen.code, &*seen.out), (0, "bin/sh\n"), "{seen:?}");
    ok(&daemon, &["rm", "-f", "box"]);
    assert_eq!(say(&daemon, &["snapshot", "info", "box"]).code, 1, "it went with the container");
}
