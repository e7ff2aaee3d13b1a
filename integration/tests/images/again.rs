//! What the disk has lost or changed comes again from the registry, while everything else goes on.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cofferdam_integration::{Daemon, Registry, images, until};
use cofferdam_types::Digest;
use serde_json::Value;

use crate::support::craft::{Picture, Tar, arch, layout, sha, write};

/// Runs `coffer`, which must succeed; what it printed.
fn ok(daemon: &Daemon, args: &[&str]) -> String {
    let output = daemon.coffer(args);
    assert!(output.status.success(), "{args:?}: {output:?}\n{}", daemon.log());
    String::from_utf8(output.stdout).unwrap()
}

/// What a check finds: each fault, and how many are left.
fn faults(daemon: &Daemon, flags: &[&str]) -> (Vec<String>, usize) {
    let output = daemon.coffer(&[&["system", "check", "-o", "json"], flags].concat());
    let lines = String::from_utf8(output.stdout).unwrap();
    let found: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut names: Vec<_> = found.iter().map(|one| one["fault"].as_str().unwrap().to_owned()).collect();
    names.sort();
    let left = found.iter().filter(|one| one["repaired"] == false).count();
    assert_eq!(output.status.code(), Some(i32::from(left > 0)), "{lines}");
    (names, left)
}

/// Busybox, by a layer that no other image has, with three layers on it.
fn picture() -> Picture {
    let base = Tar::new().dir("srv", 0o755).file("srv/base", "base").open();
    let base = [base, fs::read(images().join("rootfs/busybox.tar")).unwrap()].concat();
    let layer = |tar: Tar| tar.end();
    Picture::of(vec![
        base,
        layer(Tar::new().file("srv/one", "one").file("srv/both", "lower")),
        layer(Tar::new().file("srv/two", "two").file("srv/both", "upper")),
        layer(Tar::new().file("srv/three", "three").file("srv/.wh.two", "")),
    ])
}

/// The trees of an image's layers, the lowest first, as the mounts of a view name them.
fn trees(daemon: &Daemon, driver: &str, picture: &Picture) -> Vec<PathBuf> {
    let config: Value = serde_json::from_slice(&picture.config).unwrap();
    let ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    let mut chain: Option<Digest> = None;
    let mut found = Vec::new();
    for id in ids {
        let id = id.as_str().unwrap().parse().unwrap();
        let top = Digest::chain(chain.as_ref(), &id);
        ok(daemon, &["snapshot", "view", "--snapshotter", driver, "look", &top.to_string()]);
        let mounts = ok(daemon, &["snapshot", "mounts", "--snapshotter", driver, "look", "-o", "json"]);
        ok(daemon, &["snapshot", "rm", "--snapshotter", driver, "look"]);
        // Of a stack the uppermost is named first; of one tree there is a bind.
        let mounts: Value = serde_json::from_str(&mounts).unwrap();
        let options = mounts[0]["options"].as_array().unwrap().iter().filter_map(Value::as_str);
        let lower = options.filter_map(|option| option.strip_prefix("lowerdir=")).next();
        let tree = lower.map_or_else(|| mounts[0]["source"].as_str().unwrap(), |all| all.split(':').next().unwrap());
        found.push(PathBuf::from(tree));
        chain = Some(top);
    }
    found
}

fn lose_or_change(driver: &str) {
    let registry = Registry::start(&[], &["busybox"]);
    let (layouts, picture) = (tempfile::tempdir().unwrap(), picture());
    let mut target = serde_json::json!(picture.target());
    target["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "latest"});
    target["platform"] = serde_json::json!({"os": "linux", "architecture": arch()});
    write(&layout(&serde_json::json!([target]), &picture.blobs()), &layouts.path().join("oci/layered"));
    registry.push(layouts.path(), &["layered"]);
    let (layered, other) = (registry.reference("layered"), registry.reference("busybox"));

    let daemon = Daemon::with_flags(&["--scrub", "1"]);
    let pull = || ok(&daemon, &["image", "pull", "--snapshotter", driver, &layered]);
    pull();
    ok(
        &daemon,
        &["run", "-d", "--name", "other", "--snapshotter", driver, &other, "sh", "-c", "echo first; exec sleep 1000"],
    );
    let running = || {
        let inspected: Value = serde_json::from_str(&ok(&daemon, &["inspect", "other", "-o", "json"])).unwrap();
        (inspected["task"]["pid"].clone(), inspected["task"]["status"].clone())
    };
    let begun = running();
    let goes_on = || {
        assert_eq!(running(), begun);
        assert_eq!(ok(&daemon, &["exec", "other", "echo", "here"]), "here\n");
        assert_eq!(ok(&daemon, &["logs", "other"]), "first\n");
    };
    let script = "cat /srv/one /srv/both /srv/three; ls /srv; ls /bin/busybox";
    let shown =
        || ok(&daemon, &["run", "--rm", "--pull", "never", "--snapshotter", driver, &layered, "/bin/sh", "-c", script]);
    let right = shown();
    assert!(right.starts_with("oneupperthree") && !right.contains("two"), "{right}");

    // A tree that was changed, with its blob as it should be; a blob that was changed; and one that is gone with its tree, on
    // which the others lie.
    let (trees, blobs) = (trees(&daemon, driver, &picture), daemon.root().join("content/blobs/sha256"));
    let blob = |layer: usize| blobs.join(sha(&picture.layers[layer]).hex());
    fs::write(trees[1].join("srv/one"), "wrong").unwrap();
    let told = |fault: &str| {
        until("it is found", || faults(&daemon, &[]).0.iter().any(|found| found == fault).then_some(()));
    };
    told("snapshot-damaged");
    replace(&blob(2));
    told("blob-damaged");
    fs::remove_file(blob(0)).unwrap();
    fs::remove_dir_all(trees[0].parent().unwrap()).unwrap();
    goes_on();

    // What can be told is; what can be put right without the registry is, and the rest is not hidden.
    let expected = ["blob-damaged", "blob-missing", "snapshot-damaged", "snapshot-lost"].map(str::to_owned);
    assert_eq!(faults(&daemon, &[]), (expected.to_vec(), 4));
    let (found, left) = faults(&daemon, &["--repair"]);
    assert!(found == expected && left > 0, "{found:?}, {left} left");
    goes_on();
    let blind = daemon.coffer(&["run", "--rm", "--pull", "never", "--snapshotter", driver, &layered, "true"]);
    assert!(driver != "overlay" || !blind.status.success(), "{blind:?}");

    // The next pull brings what is missing, and nothing else, and all of the image is there again.
    let before = registry.served().len();
    pull();
    let fetched = registry.served()[before..].to_vec();
    let wanted = [0, 2].map(|layer| sha(&picture.layers[layer]).to_string());
    assert!(wanted.iter().all(|blob| fetched.contains(blob)), "{fetched:?}");
    for here in [1, 3] {
        assert!(!fetched.contains(&sha(&picture.layers[here]).to_string()), "{fetched:?}");
    }
    assert_eq!(ok(&daemon, &["system", "check"]), "records and disk agree\n");
    assert_eq!(shown(), right);
    goes_on();
    daemon.restart();
    goes_on();
    assert_eq!(shown(), right);
    ok(&daemon, &["rm", "-f", "other"]);
}

/// The same length, other bytes.
fn replace(blob: &Path) {
    let length = fs::metadata(blob).unwrap().len();
    fs::write(blob, vec![7; usize::try_from(length).unwrap()]).unwrap();
}

#[test]
fn what_the_disk_lost_is_fetched_again_while_others_run() {
    lose_or_change("overlay");
}

#[test]
fn what_the_disk_lost_is_fetched_again_with_a_driver_that_copies() {
    lose_or_change("native");
}
