//! What goes, what stays and why, as an operator sees it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use cofferdam_integration::{BUSYBOX, Daemon, images, until};
use serde_json::Value;

use crate::{idle, json, ok, say};

/// Nothing happens by itself but for leases that end.
const STILL: &[&str] = &[
    "--gc",
    "startup_delay=0,schedule_delay=0,period=0,disk_pressure=0",
    "--gc=deletion_threshold=1000000,mutation_threshold=0",
];

fn import(daemon: &Daemon, name: &str) {
    let rootfs = images().join("rootfs/busybox");
    ok(daemon, &["image", "import", "--rootfs", rootfs.to_str().unwrap(), name]);
}

fn list(daemon: &Daemon, noun: &str) -> Vec<String> {
    ok(daemon, &[noun, "ls", "-q"]).lines().map(String::from).collect()
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// The chain of an explanation, a word for each step.
fn chain(answer: &Value) -> Vec<&str> {
    answer["chain"].as_array().unwrap().iter().map(|step| step["type"].as_str().unwrap()).collect()
}

#[test]
fn what_nothing_keeps_goes_by_itself() {
    let daemon = Daemon::with_flags(&["--gc", "startup_delay=0,schedule_delay=0"]);
    import(&daemon, BUSYBOX);
    let layer = list(&daemon, "snapshot").pop().unwrap();
    idle(&daemon, "box");
    ok(&daemon, &["snapshot", "prepare", "mine"]);
    ok(&daemon, &["image", "rm", BUSYBOX]);
    until("the blobs are gone", || list(&daemon, "content").is_empty().then_some(()));
    let blobs = daemon.root().join("content/blobs/sha256");
    until("their files too", || (files(&blobs) == 0).then_some(()));
    // The container lies on the layer still; what was made by hand stands.
    let kept = json(&daemon, &["explain", "snapshot", &layer]);
    assert_eq!(
        (&kept["stays"], &*chain(&kept)),
        (&Value::Bool(true), &["container", "snapshots/overlay", "snapshots/overlay"][..])
    );
    assert_eq!(ok(&daemon, &["exec", "box", "echo", "up"]), "up\n");
    ok(&daemon, &["rm", "-f", "box"]);
    until("the layer is gone", || (list(&daemon, "snapshot") == ["mine"]).then_some(()));
    // A restart finds nothing more, and loses nothing.
    daemon.restart();
    assert_eq!(list(&daemon, "snapshot"), ["mine"]);
}

#[test]
fn it_is_rehearsed_and_explained() {
    let daemon = Daemon::with_flags(STILL);
    import(&daemon, BUSYBOX);
    let none = json(&daemon, &["gc"]);
    assert_eq!((&none["blobs"], &none["snapshots"], &none["items"]), (&0.into(), &0.into(), &Value::Array(vec![])));
    let blobs = list(&daemon, "content");
    let layer = list(&daemon, "snapshot").pop().unwrap();
    let kept = json(&daemon, &["explain", "snapshot", &layer]);
    assert_eq!(chain(&kept), ["image", "content", "content", "snapshots/overlay"], "{kept}");
    let text = ok(&daemon, &["explain", "blob", &blobs[0]]);
    assert!(text.contains(&format!("  image docker.io/{BUSYBOX}")) && text.contains("what it stands for"), "{text}");
    let image = ok(&daemon, &["explain", "image", BUSYBOX]);
    assert!(image.contains("stays until it is removed") && image.contains("3 blobs and 1 snapshot"), "{image}");

    ok(&daemon, &["snapshot", "prepare", "mine"]);
    assert!(ok(&daemon, &["explain", "snapshot", "mine"]).contains("made by hand"));
    ok(&daemon, &["image", "rm", BUSYBOX]);
    let goes = ok(&daemon, &["explain", "blob", &blobs[0]]);
    assert!(goes.contains("goes with the next collection"), "{goes}");
    let rehearsed = json(&daemon, &["gc", "--dry-run"]);
    assert_eq!((&rehearsed["blobs"], &rehearsed["snapshots"]), (&3.into(), &1.into()), "{rehearsed}");
    assert!(rehearsed["items"].as_array().unwrap().len() == 4 && rehearsed["bytes"].as_u64() > Some(100_000));
    assert_eq!(list(&daemon, "content"), blobs, "nothing was removed");

    // A lease holds the manifest, and so all of it; and lets go when it ends, by itself.
    let manifest = blobs.iter().find(|blob| ok(&daemon, &["explain", "blob", blob]).contains("with it goes: 3 blobs"));
    ok(&daemon, &["lease", "create", "work"]);
    ok(&daemon, &["lease", "add", "work", manifest.unwrap()]);
    assert!(ok(&daemon, &["gc", "--dry-run"]).starts_with("0 blobs and 0 snapshots would go"));
    assert_eq!(chain(&json(&daemon, &["explain", "snapshot", &layer]))[0], "lease");
    let lease = ok(&daemon, &["explain", "lease", "work"]);
    assert!(lease.contains("stays until it is removed") && lease.contains("3 blobs and 1 snapshot"), "{lease}");
    ok(&daemon, &["lease", "renew", "work", "--expires", "1s"]);
    until("the lease and what it held are gone", || {
        (list(&daemon, "lease").is_empty() && list(&daemon, "content").is_empty()).then_some(())
    });
    assert_eq!(list(&daemon, "snapshot"), ["mine"]);

    // And by order; the sums are those of the rehearsal.
    import(&daemon, BUSYBOX);
    ok(&daemon, &["image", "rm", "--sync", BUSYBOX]);
    assert_eq!((list(&daemon, "content").len(), list(&daemon, "snapshot").len()), (0, 1));
    import(&daemon, BUSYBOX);
    ok(&daemon, &["image", "rm", BUSYBOX]);
    let done = json(&daemon, &["gc"]);
    for figure in ["blobs", "snapshots", "bytes"] {
        assert_eq!(done[figure], rehearsed[figure], "{figure}");
    }
    assert_eq!((list(&daemon, "content").len(), list(&daemon, "snapshot").len()), (0, 1));
    let said = say(&daemon, &["explain", "blob", &blobs[0]]);
    assert!(said.code == 1 && said.err.contains("does not exist in this namespace"), "{said:?}");
    let said = say(&daemon, &["explain", "task", "box"]);
    assert!(said.code != 0 && said.err.contains("give blob, snapshot, image, container or lease"), "{said:?}");
}

#[test]
fn images_come_and_go_while_it_collects() {
    let daemon = Daemon::with_flags(&["--gc", "schedule_delay=0,pause_threshold=0.5"]);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let collector = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                ok(&daemon, &["gc"]);
            }
        });
        let work = scope.spawn(|| {
            for round in 0..6 {
                import(&daemon, BUSYBOX);
                // The same layer under another name: it may be garbage just now.
                ok(&daemon, &["image", "rm", BUSYBOX]);
                import(&daemon, BUSYBOX);
                let said = say(&daemon, &["run", "--rm", BUSYBOX, "echo", "up"]);
                assert_eq!((said.code, &*said.out), (0, "up\n"), "round {round}: {said:?}");
                ok(&daemon, &["image", "rm", BUSYBOX]);
            }
        });
        let worked = work.join();
        over.store(true, Ordering::SeqCst);
        collector.join().unwrap();
        worked.unwrap();
    });
    ok(&daemon, &["gc"]);
    assert_eq!((list(&daemon, "content").len(), list(&daemon, "snapshot").len()), (0, 0));
}

/// Files and directories that can't be removed as long as this lives.
struct Nailed(Vec<PathBuf>);

impl Nailed {
    fn down(paths: Vec<PathBuf>) -> Nailed {
        chattr("+i", &paths);
        Nailed(paths)
    }
}

impl Drop for Nailed {
    fn drop(&mut self) {
        chattr("-i", &self.0);
    }
}

fn chattr(how: &str, paths: &[PathBuf]) {
    let status = Command::new("chattr").arg(how).args(paths).status().unwrap();
    assert!(status.success() || thread::panicking(), "chattr {how}: the file system of the test has no such flag");
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_collection_that_ends_between_its_commit_and_the_files_is_finished() {
    let daemon = Daemon::with_flags(STILL);
    let blobs = daemon.root().join("content/blobs/sha256");
    let overlay = daemon.root().join("snapshots/overlay");
    let faults = |flags: &[&str]| {
        let said = say(&daemon, &[&["system", "check", "-o", "json"], flags].concat());
        let found = said.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut names: Vec<_> = found.map(|one| one["fault"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let unrecorded = ["blob-unrecorded", "blob-unrecorded", "blob-unrecorded", "snapshot-unrecorded"];
    // Finished by the next start, or by a check.
    for by_check in [false, true] {
        import(&daemon, BUSYBOX);
        assert_eq!(ok(&daemon, &["run", "--rm", BUSYBOX, "echo", "up"]), "up\n");
        let layer: Vec<_> = entries(&overlay).into_iter().filter(|dir| dir.join("fs/bin").exists()).collect();
        let all = [entries(&blobs), layer].concat();
        assert_eq!(all.len(), 4);
        ok(&daemon, &["image", "rm", BUSYBOX]);
        let nailed = Nailed::down(all.clone());
        let done = json(&daemon, &["gc"]);
        assert_eq!((&done["blobs"], &done["snapshots"]), (&3.into(), &1.into()), "the records are gone");
        daemon.kill9();
        assert!(all.iter().all(|path| path.exists()), "the bytes are not");
        // What can't be removed keeps no start from serving, and is told.
        daemon.restart();
        until("all of it is told", || (faults(&[]) == unrecorded).then_some(()));
        drop(nailed);
        match by_check {
            true => assert_eq!(faults(&["--repair"]), unrecorded),
            false => drop(daemon.restart()),
        }
        until("it is gone", || all.iter().all(|path| !path.exists()).then_some(()));
        assert_eq!(faults(&[]), <[&str; 0]>::default());
    }
}

#[test]
fn every_byte_has_an_owner() {
    let daemon = Daemon::with_flags(STILL);
    import(&daemon, BUSYBOX);
    ok(
        &daemon,
        &["run", "-d", "--name", "box", BUSYBOX, "sh", "-c", "head -c 2000000 /dev/zero >/f; echo log; sleep 1000"],
    );
    until("it has written", || (ok(&daemon, &["logs", "box"]) == "log\n").then_some(()));
    ok(&daemon, &["snapshot", "prepare", "mine"]);
    ok(&daemon, &["image", "import", "--rootfs", images().join("rootfs/busybox").to_str().unwrap(), "other:1"]);
    let owner = |usage: &Value, kind: &str| -> Value {
        let owners = usage["owners"].as_array().unwrap();
        owners.iter().find(|owner| owner["type"] == kind).cloned().unwrap_or_default()
    };
    // Events come to rest within seconds.
    let same = |what: &str| {
        until(what, || {
            let du = Command::new("du").args(["-s", "-B1"]).arg(daemon.root()).output().unwrap();
            let du: u64 = String::from_utf8(du.stdout).unwrap().split_whitespace().next()?.parse().ok()?;
            let usage = json(&daemon, &["system", "df"]);
            let alone = usage["owners"].as_array().unwrap().iter().map(|owner| owner["alone"].as_u64().unwrap());
            let areas = usage["areas"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap());
            let sum = alone.chain(areas).sum::<u64>() + usage["shared"].as_u64().unwrap();
            assert_eq!(usage["total"], sum);
            (sum == du).then_some(usage)
        })
    };
    let usage = same("the sums are what du says");
    let container = owner(&usage, "container");
    assert!(container["id"] == "box" && container["alone"].as_u64() > Some(2_000_000), "{usage}");
    assert!(container["shared"].as_u64() > Some(500_000), "the layer is the images' too: {usage}");
    assert!(owner(&usage, "hand")["alone"].as_u64() > Some(0), "{usage}");
    assert_eq!(owner(&usage, "nothing"), Value::Null);
    ok(&daemon, &["rm", "-f", "box"]);
    ok(&daemon, &["image", "rm", BUSYBOX, "other:1"]);
    let usage = same("so they are when nothing keeps it");
    assert!(owner(&usage, "nothing")["alone"].as_u64() > Some(500_000), "{usage}");
    ok(&daemon, &["gc"]);
    let usage = same("and when that is gone");
    assert_eq!(owner(&usage, "nothing"), Value::Null, "{usage}");
    assert!(ok(&daemon, &["system", "df"]).contains("made by hand"));
}
