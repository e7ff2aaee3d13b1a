//! Records and disk that contradict each other.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cofferdam_integration::{BUSYBOX, Daemon, until};

use crate::{Said, ok, say};

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// The faults of a check, and how many of them are left.
fn faults(said: &Said) -> (Vec<String>, usize) {
    let found: Vec<serde_json::Value> = said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut names: Vec<_> = found.iter().map(|one| one["fault"].as_str().unwrap().to_owned()).collect();
    names.sort();
    (names, found.iter().filter(|one| one["repaired"] == false).count())
}

#[test]
fn what_the_disk_lost_is_found_put_right_and_brought_back() {
    let daemon = Daemon::with_busybox();
    let well = || assert_eq!(ok(&daemon, &["system", "check"]), "records and disk agree\n");
    assert_eq!(ok(&daemon, &["run", "--rm", BUSYBOX, "echo", "before"]), "before\n");
    well();

    let root = daemon.root();
    let blobs = root.join("content/blobs/sha256");
    let lost = entries(&blobs).len();
    entries(&blobs).iter().for_each(|blob| fs::remove_file(blob).unwrap());
    fs::write(blobs.join("0".repeat(64)), "of nobody").unwrap();
    fs::write(root.join("content/ingest/4711"), "of nobody").unwrap();
    let overlay = root.join("snapshots/overlay");
    ok(&daemon, &["snapshot", "prepare", "mine"]);
    fs::create_dir_all(overlay.join("4711/fs")).unwrap();
    fs::create_dir_all(root.join("logs").join(daemon.namespace()).join("gone")).unwrap();
    // The tree of the image's layer: the one that holds a shell.
    let tree = entries(&overlay).into_iter().find(|dir| dir.join("fs/bin").exists()).unwrap();
    fs::remove_dir_all(tree).unwrap();

    let said = say(&daemon, &["system", "check", "-o", "json"]);
    let mut expected = vec!["blob-missing"; lost];
    expected.extend(["blob-unrecorded", "ingest-unrecorded", "log-unrecorded", "snapshot-lost", "snapshot-unrecorded"]);
    assert_eq!(
        (said.code, faults(&said)),
        (1, (expected.iter().map(|f| f.to_string()).collect(), expected.len())),
        "{said:?}"
    );
    let said = say(&daemon, &["system", "check", "--repair", "-o", "json"]);
    assert_eq!((said.code, faults(&said).1), (0, 0), "{said:?}");
    well();
    assert!(ok(&daemon, &["snapshot", "ls", "-q"]).lines().eq(["mine"]), "what is fine stays");

    daemon.import_busybox();
    assert_eq!(ok(&daemon, &["run", "--rm", BUSYBOX, "echo", "after"]), "after\n");
    well();
}

/// A file that can't be removed is told, beside what was put right before it and behind it.
#[test]
fn what_cant_be_removed_hides_nothing_that_was_found() {
    let daemon = Daemon::with_busybox();
    let blobs = entries(&daemon.root().join("content/blobs/sha256"));
    blobs.iter().for_each(|blob| fs::remove_file(blob).unwrap());
    // It is no file.
    fs::create_dir(&blobs[0]).unwrap();
    let said = say(&daemon, &["system", "check", "--repair", "-o", "json"]);
    let mut expected = vec!["blob-damaged".to_owned()];
    expected.resize(blobs.len(), "blob-missing".to_owned());
    expected.push("blob-unrecorded".to_owned());
    assert_eq!((said.code, faults(&said)), (1, (expected, 1)), "{said:?}");
    fs::remove_dir(&blobs[0]).unwrap();
    assert_eq!(ok(&daemon, &["system", "check"]), "records and disk agree\n");
}

/// The trees of an image that have a shell, with all of its files, or that of a layer.
fn trees(driver: &Path) -> Vec<PathBuf> {
    entries(driver).into_iter().map(|dir| dir.join("fs")).filter(|tree| tree.join("bin").exists()).collect()
}

#[test]
fn a_layer_that_the_disk_changed_is_found_and_unpacked_again() {
    for driver in ["overlay", "native"] {
        let daemon = Daemon::with_flags(&["--scrub", "1"]);
        daemon.import_busybox();
        let well = || assert_eq!(ok(&daemon, &["system", "check"]), "records and disk agree\n");
        let run = |name: &str| {
            ok(&daemon, &["run", "-d", "--snapshotter", driver, "--name", name, BUSYBOX, "sleep", "1000"]);
        };
        let passwd = |name: &str| ok(&daemon, &["exec", name, "cat", "/etc/passwd"]);
        let trees = || trees(&daemon.root().join("snapshots").join(driver));
        ok(&daemon, &["snapshot", "unpack", "--snapshotter", driver, BUSYBOX]);
        let layer = trees().remove(0);
        run("old");
        let right = passwd("old");
        let wrong = right.replacen("root", "toor", 1);
        fs::write(layer.join("etc/passwd"), &wrong).unwrap();
        fs::write(layer.join("bin/nobodys"), "of nobody").unwrap();
        let said = until("it is found", || {
            let said = say(&daemon, &["system", "check", "-o", "json"]);
            (said.code == 1).then_some(said)
        });
        assert_eq!(faults(&said), (vec!["snapshot-damaged".to_owned()], 1), "{said:?}");

        let said = say(&daemon, &["system", "check", "--repair", "-o", "json"]);
        assert_eq!((said.code, faults(&said)), (0, (vec!["snapshot-damaged".to_owned()], 0)), "{said:?}");
        well();
        run("new");
        assert_eq!(passwd("new"), right);
        // Who lies on the old tree keeps what he saw, whoever serves.
        let seen = if driver == "overlay" { &wrong } else { &right };
        assert_eq!(passwd("old"), *seen);
        daemon.restart();
        assert_eq!((passwd("old"), passwd("new")), (seen.clone(), right.clone()));
        well();
        // It is of its image still.
        ok(&daemon, &["commit", "old", "of-old:latest"]);
        ok(&daemon, &["image", "rm", "of-old:latest"]);
        ok(&daemon, &["rm", "-f", "old"]);
        until("the old tree is gone with the last who lay on it", || (!layer.exists()).then_some(()));
        assert_eq!(passwd("new"), right);
        ok(&daemon, &["rm", "-f", "new"]);
        until("the layer is left", || (trees().len() == 1).then_some(()));

        // One that is gone as a whole.
        fs::remove_dir_all(trees().remove(0).parent().unwrap()).unwrap();
        let said = say(&daemon, &["system", "check", "-o", "json"]);
        assert_eq!((said.code, faults(&said)), (1, (vec!["snapshot-lost".to_owned()], 1)), "{said:?}");
        let said = say(&daemon, &["system", "check", "--repair", "-o", "json"]);
        assert_eq!((said.code, faults(&said)), (0, (vec!["snapshot-lost".to_owned()], 0)), "{said:?}");
        well();
        run("last");
        assert_eq!(passwd("last"), right);
    }
}

#[test]
fn bytes_that_the_disk_changed_are_found_in_the_background() {
    let daemon = Daemon::with_flags(&["--scrub", "1"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "right").unwrap();
    let file = file.to_str().unwrap();
    let digest = ok(&daemon, &["content", "ingest", "first", file]);
    let (_, hex) = digest.trim().split_once(':').unwrap();
    fs::write(daemon.root().join("content/blobs/sha256").join(hex), "wrong").unwrap();
    let said = until("it is found", || {
        let said = say(&daemon, &["system", "check", "-o", "json"]);
        (said.code == 1).then_some(said)
    });
    assert_eq!(faults(&said), (vec!["blob-damaged".to_owned()], 1), "{said:?}");
    assert_eq!(ok(&daemon, &["content", "ingest", "again", file]), digest);
    assert_eq!(ok(&daemon, &["content", "get", digest.trim()]), "right");
    assert_eq!(ok(&daemon, &["system", "check"]), "records and disk agree\n");
}
