//! Leases as an operator has them: what is made under one is its own.

use std::fs;

use cofferdam_integration::{BUSYBOX, Daemon, images, until};
use cofferdam_types::{Algorithm, Digest};
use serde_json::json as value;

use crate::{json, ok, say};

/// What a lease holds, a line each.
fn held(daemon: &Daemon, lease: &str) -> Vec<String> {
    let list = json(daemon, &["lease", "resources", lease]);
    let line =
        |entry: &serde_json::Value| format!("{} {}", entry["type"].as_str().unwrap(), entry["id"].as_str().unwrap());
    list.as_array().unwrap().iter().map(line).collect()
}

#[test]
fn a_lease_from_create_to_rm() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "bytes").unwrap();
    let file = path.to_str().unwrap();
    let digest = Digest::of(Algorithm::Sha256, b"bytes").to_string();

    assert_eq!(ok(&daemon, &["lease", "create", "work", "-l", "job=ci", "--expires", "1h"]), "work\n");
    let chosen = ok(&daemon, &["lease", "create"]);
    assert_eq!(chosen.trim().len(), 16, "{chosen}");
    let refused = say(&daemon, &["lease", "create", "work"]);
    assert_eq!((refused.code, refused.err.contains("choose another id")), (1, true), "{refused:?}");
    let refused = say(&daemon, &["lease", "create", "--expires", "soon"]);
    assert!(refused.code != 0 && refused.err.contains("90s"), "{refused:?}");
    assert_eq!(ok(&daemon, &["lease", "ls", "-q", "--filter", "labels.job==ci"]), "work\n");
    let info = &json(&daemon, &["lease", "ls", "--filter", "id==work"])[0];
    assert!(info["labels"] == value!({ "job": "ci" }) && info["expires"] != info["created"], "{info}");
    assert_eq!(ok(&daemon, &["lease", "renew", "work"]), "-\n");

    // Made under it: held, whether it was there or not. Made beside it: not.
    ok(&daemon, &["content", "ingest", "r", file]);
    assert!(held(&daemon, "work").is_empty());
    ok(&daemon, &["content", "ingest", "r", file, "--lease", "work"]);
    ok(&daemon, &["snapshot", "prepare", "one", "--lease", "work"]);
    assert_eq!(held(&daemon, "work"), [format!("content {digest}"), "snapshots/overlay one".into()]);
    ok(&daemon, &["snapshot", "commit", "one", "base", "--lease", "work"]);
    ok(&daemon, &["snapshot", "view", "seen", "base", "--lease", "work"]);
    ok(&daemon, &["snapshot", "view", "other", "base"]);
    assert_eq!(held(&daemon, "work")[1..], ["snapshots/overlay base", "snapshots/overlay seen"]);

    // By hand, whether it exists or not.
    ok(&daemon, &["lease", "add", chosen.trim(), &digest, "overlay/base", "native/none"]);
    ok(&daemon, &["lease", "drop", chosen.trim(), "native/none", &digest]);
    assert_eq!(held(&daemon, chosen.trim()), ["snapshots/overlay base"]);
    let refused = say(&daemon, &["lease", "drop", chosen.trim(), &digest]);
    assert!(refused.code == 1 && refused.err.contains("is not held by lease"), "{refused:?}");
    let refused = say(&daemon, &["lease", "add", chosen.trim(), "base"]);
    assert!(refused.code != 0 && refused.err.contains("SNAPSHOTTER/KEY"), "{refused:?}");

    assert_eq!(ok(&daemon, &["lease", "rm", "work", chosen.trim()]).lines().count(), 2);
    assert_eq!(json(&daemon, &["lease", "ls"]), value!([]));
    let gone = say(&daemon, &["snapshot", "prepare", "two", "--lease", "work"]);
    assert_eq!((gone.code, &*gone.err), (1, "coffer: lease work: does not exist\n"));
}

#[test]
fn an_image_that_is_imported_under_a_lease_is_held_with_its_layers() {
    let daemon = Daemon::start();
    ok(&daemon, &["lease", "create", "work"]);
    let rootfs = images().join("rootfs/busybox");
    ok(&daemon, &["image", "import", "--rootfs", "--lease", "work", rootfs.to_str().unwrap(), BUSYBOX]);
    let all = held(&daemon, "work");
    let blobs = ok(&daemon, &["content", "ls", "-q"]);
    for digest in blobs.lines() {
        assert!(all.contains(&format!("content {digest}")), "{digest}: {all:?}");
    }
    assert!(all.iter().any(|line| line.starts_with("snapshots/overlay sha256:")), "{all:?}");
    // What has ended takes nothing more.
    ok(&daemon, &["lease", "renew", "work", "--expires", "1s"]);
    until("the lease has ended", || {
        let said = say(&daemon, &["snapshot", "prepare", "late", "--lease", "work"]);
        // It is collected soon after, maybe with the snapshot.
        say(&daemon, &["snapshot", "rm", "late"]);
        let ended = said.err == "coffer: lease work: has ended: renew it, or take another\n";
        (ended || said.err == "coffer: lease work: does not exist\n").then_some(())
    });
}
