//! A meta.redb that the disk has altered, and the new one that is made from it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use cofferdam_events::Journal;
use cofferdam_integration::{BUSYBOX, Daemon, binary, until};

use crate::{Said, idle, json, ok, say};

const PAGE: usize = 4096;

/// Runs `cofferd --rebuild` on what a daemon left.
fn rebuild(daemon: &Daemon) -> Said {
    let mut command = Command::new(binary("cofferd"));
    command.arg("--rebuild").arg("--root").arg(daemon.root()).arg("--state").arg(daemon.state());
    command.output().unwrap().into()
}

/// Overwrites every leaf of the tables that holds this text. Says how many.
fn overwrite(daemon: &Daemon, text: &str) -> usize {
    let path = daemon.root().join("meta.redb");
    let mut bytes = fs::read(&path).unwrap();
    let mut hit = 0;
    for page in bytes.chunks_mut(PAGE).skip(1) {
        if page[0] == 1 && page.windows(text.len()).any(|window| window == text.as_bytes()) {
            page.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n * 31 % 251) as u8);
            hit += 1;
        }
    }
    fs::write(&path, bytes).unwrap();
    hit
}

fn list(daemon: &Daemon, noun: &str) -> Vec<String> {
    ok(daemon, &[noun, "ls", "-q"]).lines().map(String::from).collect()
}

/// Records enough for several pages of a table.
fn leases(daemon: &Daemon) {
    for n in 0..40 {
        let padding = format!("padding={}", "x".repeat(900));
        ok(daemon, &["lease", "create", &format!("lease-{n:02}"), "--label", &padding]);
    }
}

/// What was there before is there under another name, as it was.
fn kept(daemon: &Daemon, damaged: &[u8]) {
    let all = fs::read_dir(daemon.root()).unwrap().map(|entry| entry.unwrap());
    let mut kept = all.filter(|entry| entry.file_name().to_string_lossy().starts_with("meta.redb.damaged-"));
    assert!(kept.any(|entry| fs::read(entry.path()).unwrap() == damaged));
}

#[test]
fn what_is_readable_goes_on_and_so_do_containers_that_run() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    leases(&daemon);
    let shim = json(&daemon, &["shim", "ls"])[0]["id"].as_str().unwrap().to_owned();
    daemon.kill9();
    // A row of the tasks is on its own page, as is a lease with what lies beside it.
    assert!(overwrite(&daemon, &shim) > 0 && overwrite(&daemon, "lease-20") > 0);
    let damaged = fs::read(daemon.root().join("meta.redb")).unwrap();

    let said = rebuild(&daemon);
    assert_eq!(said.code, 0, "{said:?}");
    for line in ["rows were taken over", "1 tasks are on record again", "what was there before is"] {
        assert!(said.out.contains(line), "{line}: {said:?}");
    }
    kept(&daemon, &damaged);
    daemon.restart();
    assert_eq!(ok(&daemon, &["exec", "box", "echo", "up"]), "up\n");
    let leases = list(&daemon, "lease");
    assert!(!leases.contains(&"lease-20".to_owned()) && leases.len() > 20, "{leases:?}");
    assert_eq!(ok(&daemon, &["system", "check"]), "records and disk agree\n");
    assert_eq!(ok(&daemon, &["run", "--rm", BUSYBOX, "echo", "after"]), "after\n");
    ok(&daemon, &["rm", "-f", "box"]);
    assert_eq!(ok(&daemon, &["system", "check"]), "records and disk agree\n");
}

#[test]
fn a_container_whose_spec_is_lost_is_told_and_can_be_removed() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    daemon.kill9();
    assert!(overwrite(&daemon, "opencontainers/runtime-spec") > 0);
    let said = rebuild(&daemon);
    assert_eq!(said.code, 0, "{said:?}");
    daemon.restart();
    let checked = say(&daemon, &["system", "check"]);
    assert!(checked.code == 1 && checked.out.contains("has lost its spec"), "{checked:?}");
    ok(&daemon, &["rm", "-f", "box"]);
    assert_eq!(ok(&daemon, &["system", "check"]), "records and disk agree\n");
}

#[test]
fn of_tables_that_are_lost_whole_content_is_found_and_trees_are_put_aside() {
    let daemon = Daemon::with_busybox();
    ok(&daemon, &["snapshot", "prepare", "mine"]);
    let mounts = json(&daemon, &["snapshot", "mounts", "mine"]);
    let upper = mounts[0]["options"].as_array().unwrap().iter().find_map(|o| o.as_str()?.strip_prefix("upperdir="));
    let upper = upper.map_or_else(|| mounts[0]["source"].as_str().unwrap().to_owned(), str::to_owned);
    fs::write(std::path::Path::new(&upper).join("note"), "mine").unwrap();
    let blobs = list(&daemon, "content");
    daemon.stop();
    let tables = daemon.root().join("meta.redb");
    let lost = vec![0x5A; fs::metadata(&tables).unwrap().len() as usize];
    fs::write(&tables, &lost).unwrap();

    let said = rebuild(&daemon);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.out.contains(&format!("{} blobs that no record names are in namespace recovered now", blobs.len())),
        "{said:?}"
    );
    kept(&daemon, &lost);
    daemon.restart();
    let found = say(&daemon, &["--namespace", "recovered", "content", "ls", "-q"]);
    assert!(found.out.lines().eq(blobs.iter().map(String::as_str)), "{found:?}");
    let mut times = fs::read_dir(daemon.root().join("aside")).unwrap();
    let aside = times.next().unwrap().unwrap().path().join("snapshots/overlay");
    let note = fs::read_dir(aside).unwrap().map(|tree| tree.unwrap().path().join("fs/note")).find(|note| note.exists());
    assert_eq!(fs::read_to_string(note.unwrap()).unwrap(), "mine");
    // Nothing of it is collected: nobody knows what kept it.
    ok(&daemon, &["gc"]);
    assert_eq!(say(&daemon, &["--namespace", "recovered", "content", "ls", "-q"]).out, found.out);
    assert_eq!(ok(&daemon, &["system", "check"]), "records and disk agree\n");
}

#[test]
fn a_daemon_that_runs_is_left_alone() {
    let daemon = Daemon::start();
    let before = fs::read_dir(daemon.root()).unwrap().count();
    let said = rebuild(&daemon);
    assert!(said.code == 1 && said.err.contains("another daemon"), "{said:?}");
    until("there is a reserve", || daemon.root().join("reserve").exists().then_some(()));
    assert!(fs::read_dir(daemon.root()).unwrap().count() <= before + 1);
    ok(&daemon, &["ps"]);
}

#[test]
fn what_is_readable_is_served_and_nothing_is_written() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    leases(&daemon);
    let shim = json(&daemon, &["shim", "ls"])[0]["id"].as_str().unwrap().to_owned();
    let blobs = list(&daemon, "content");
    daemon.kill9();
    assert!(overwrite(&daemon, &shim) > 0 && overwrite(&daemon, "lease-20") > 0);
    let tables = daemon.root().join("meta.redb");
    let damaged = fs::read(&tables).unwrap();
    // What such a start must not take for what a crash left.
    let orphan = daemon.root().join("snapshots/overlay/4711/fs");
    fs::create_dir_all(&orphan).unwrap();

    daemon.restart();
    let said = say(&daemon, &["system", "status"]);
    assert!(said.code == 1 && said.out.contains("degraded") && said.out.contains("cofferd --rebuild"), "{said:?}");
    assert_eq!(list(&daemon, "content"), blobs);
    assert!(list(&daemon, "image").iter().any(|name| name.contains("busybox")));
    let left = list(&daemon, "lease").len();
    assert!((20..40).contains(&left), "{left}");
    assert_eq!(json(&daemon, &["inspect", "box"])["id"], "box");
    let said = say(&daemon, &["system", "check"]);
    assert!(said.code == 1 && said.out.contains("meta.redb is damaged"), "{said:?}");
    for write in [
        &["lease", "create", "one-more"][..],
        &["snapshot", "prepare", "mine"],
        &["image", "rm", BUSYBOX],
        &["rm", "-f", "box"],
        &["run", "--rm", BUSYBOX, "true"],
        &["gc"],
        &["system", "check", "--repair"],
    ] {
        let said = say(&daemon, write);
        assert!(said.code != 0 && said.err.contains("cofferd --rebuild"), "{write:?}: {said:?}");
    }
    // An actor that starts again reads the same.
    ok(&daemon, &["system", "crash", "metadata"]);
    until("it is read again", || {
        let said = say(&daemon, &["lease", "ls", "-q"]);
        (said.code == 0 && said.out.lines().count() == left).then_some(())
    });
    daemon.stop();
    assert!(fs::read(&tables).unwrap() == damaged && orphan.exists(), "something was written");
    assert_eq!(rebuild(&daemon).code, 0);
    daemon.restart();
    assert_eq!(ok(&daemon, &["exec", "box", "echo", "up"]), "up\n");
    assert_eq!(ok(&daemon, &["system", "check"]), "records and disk agree\n");
}

/// The number of the event that tells that a namespace was made.
fn made(daemon: &Daemon, name: &str) -> u64 {
    let filter = ["--filter", "topic==\"/namespaces/create\""];
    let mut follow = daemon
        .command()
        .args(["--namespace", name, "events", "--after", "0", "-o", "json"])
        .args(filter)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let events = lines.map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
    let number = events.filter_map(|event| event["sequence"].as_u64()).next().unwrap();
    follow.kill().unwrap();
    follow.wait().unwrap();
    number
}

/// The tables are those of an earlier commit: where the head of the last one is altered the one before is taken over.
#[test]
fn events_are_numbered_behind_those_that_were_told() {
    let daemon = Daemon::start();
    ok(&daemon, &["namespace", "create", "early"]);
    daemon.stop();
    let tables = daemon.root().join("meta.redb");
    let earlier = fs::read(&tables).unwrap();
    daemon.restart();
    for name in ["one", "two", "three"] {
        ok(&daemon, &["namespace", "create", name]);
    }
    let told = made(&daemon, "three");
    let highest = || Journal::highest(fs::File::open(daemon.root().join("events")).unwrap().into()).unwrap();
    until("the journal has it", || (highest() >= told).then_some(()));
    daemon.stop();
    fs::write(&tables, earlier).unwrap();
    assert_eq!(rebuild(&daemon).code, 0);
    daemon.restart();
    ok(&daemon, &["namespace", "create", "late"]);
    let late = made(&daemon, "late");
    assert!(late > told, "{late} was told as another's number: {told}");
}
