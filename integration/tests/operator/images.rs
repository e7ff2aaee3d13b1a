//! Images, blobs, snapshots and the daemon itself.

use std::process::Stdio;

use cofferdam_integration::{BUSYBOX, Daemon, images};
use serde_json::Value;

use crate::{Said, idle, json, ok, say};

#[test]
fn an_image_from_import_to_rm() {
    let daemon = Daemon::start();
    let archive = images().join("archive/stack.oci.tar");
    assert_eq!(
        ok(&daemon, &["image", "import", archive.to_str().unwrap(), "shop/stack:1"]),
        "docker.io/shop/stack:1\n"
    );
    let listed = json(&daemon, &["image", "ls"]);
    assert_eq!(listed[0]["name"], "docker.io/shop/stack:1", "{listed}");
    assert!(ok(&daemon, &["image", "ls"]).contains("shop/stack:1"));

    let shown = json(&daemon, &["image", "inspect", "shop/stack:1"]);
    let layers = shown["layers"].as_array().unwrap();
    assert!((6..=10).contains(&layers.len()), "{shown}");
    let blobs = json(&daemon, &["content", "ls"]);
    let digests: Vec<&str> = blobs.as_array().unwrap().iter().map(|blob| blob["digest"].as_str().unwrap()).collect();
    assert_eq!(digests.len(), layers.len() + 2, "layers, configuration and manifest: {digests:?}");
    // A blob comes out as it went in.
    let manifest = shown["manifest"]["digest"].as_str().unwrap();
    let bytes = ok(&daemon, &["content", "get", manifest]);
    let document: Value = serde_json::from_str(&bytes).unwrap();
    assert_eq!(document["layers"].as_array().unwrap().len(), layers.len());

    let snapshots = json(&daemon, &["snapshot", "ls"]);
    assert_eq!(snapshots.as_array().unwrap().len(), layers.len(), "{snapshots}");
    assert_eq!(ok(&daemon, &["image", "rm", "shop/stack:1"]), "shop/stack:1\n");
    assert_eq!(json(&daemon, &["image", "ls"]), serde_json::json!([]));
    let said = say(&daemon, &["image", "rm", "shop/stack:1"]);
    assert!(said.code == 1 && said.err.contains("is not here"), "{said:?}");
}

#[test]
fn an_archive_can_come_from_standard_input() {
    let daemon = Daemon::start();
    let archive = std::fs::File::open(images().join("archive/busybox.docker.tar")).unwrap();
    let said = Said::from(daemon.command().args(["image", "import", "-", "piped"]).stdin(archive).output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (0, "docker.io/library/piped:latest\n"), "{said:?}");
    assert_eq!(ok(&daemon, &["run", "--rm", "piped", "echo", "it runs"]), "it runs\n");
}

#[test]
fn an_archive_goes_from_one_daemon_to_another_by_a_pipe() {
    let (from, to) = (Daemon::with_busybox(), Daemon::start());
    let mut export = from.command();
    export.args(["image", "export", BUSYBOX, "-"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut export = export.spawn().unwrap();
    let archive = export.stdout.take().unwrap();
    let said = Said::from(to.command().args(["image", "import", "-", "piped"]).stdin(archive).output().unwrap());
    assert!(export.wait().unwrap().success());
    assert_eq!((said.code, said.out.as_str()), (0, "docker.io/library/piped:latest\n"), "{said:?}");
    let digest = |daemon: &Daemon, name: &str| json(daemon, &["image", "inspect", name])["manifest"]["digest"].clone();
    assert_eq!(digest(&to, "piped"), digest(&from, BUSYBOX));
    assert_eq!(ok(&to, &["run", "--rm", "piped", "echo", "it runs"]), "it runs\n");
}

#[test]
fn errors_say_what_is_wrong() {
    let daemon = Daemon::start();
    let archive = images().join("archive/stack.oci.tar");
    let not_an_archive = daemon.path().join("text");
    std::fs::write(&not_an_archive, "no archive\n".repeat(100)).unwrap();
    let (long, tag) = ("a".repeat(300), format!("x:{}", "t".repeat(300)));
    let absent = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    for (args, words) in [
        (vec!["image", "import", "/no/such/file"], vec!["/no/such/file", "No such file"]),
        (vec!["image", "import", not_an_archive.to_str().unwrap()], vec!["archive"]),
        (vec!["image", "pull", "127.0.0.1:1/nothing"], vec!["127.0.0.1:1"]),
        (vec!["image", "pull", "UPPER/case"], vec!["UPPER/case"]),
        (vec!["image", "pull", &long], vec!["a repository name of 308 characters, which may have 255"]),
        (vec!["run", &long], vec!["which may have 255"]),
        (vec!["run", "--pull", "never", &long], vec!["which may have 255"]),
        (vec!["run", "--pull", "never", "UPPER"], vec!["must be lowercase"]),
        (vec!["image", "import", archive.to_str().unwrap(), &long], vec!["which may have 255"]),
        (vec!["image", "import", "--rootfs", "/etc", &tag], vec!["the tag has 300 characters, and may have 128"]),
        (vec!["content", "get", absent], vec![absent, "is not in this namespace"]),
        (vec!["content", "get", "sha256:short"], vec!["sha256:short"]),
        (vec!["frobnicate"], vec!["frobnicate", "coffer help"]),
        (vec!["system", "crash", "nosuch"], vec!["nosuch", "there are metadata, grants, audit, events", "tasks"]),
        (vec!["--socket", "", "ps"], vec!["--socket is empty"]),
        (vec!["--socket", "/tmp", "ps"], vec!["/tmp", "is no socket"]),
        (vec!["inspect", "nobody"], vec!["nobody", "does not exist"]),
    ] {
        let said = say(&daemon, &args);
        assert!(said.code != 0 && said.out.is_empty(), "{args:?}: {said:?}");
        assert!(words.iter().all(|word| said.err.contains(word)), "{args:?}: {said:?} should say {words:?}");
    }
    assert!(!daemon.log().contains("is crashed on demand"), "{}", daemon.log());
    // A daemon that is not there is told apart, and what to do.
    let said = Said::from(daemon.command().args(["--socket", "/no/such.sock", "ps"]).output().unwrap());
    assert!(said.code != 0 && said.err.contains("/no/such.sock") && said.err.contains("cofferd"), "{said:?}");
}

#[test]
fn of_several_names_each_is_looked_at() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    let key = json(&daemon, &["snapshot", "ls"])[0]["key"].as_str().unwrap().to_owned();
    for (command, there) in [
        (&["inspect"][..], "box"),
        (&["image", "inspect"], BUSYBOX),
        (&["snapshot", "info"], &key),
        (&["snapshot", "usage"], &key),
        (&["pause"], "box"),
        (&["resume"], "box"),
        (&["update", "--pids-limit", "100"], "box"),
        (&["kill"], "box"),
        (&["stop"], "box"),
        (&["wait"], "box"),
        (&["restart"], "box"),
        (&["rm", "-f"], "box"),
        (&["image", "rm"], BUSYBOX),
    ] {
        let said = say(&daemon, &[command, &["missing", there, "gone"]].concat());
        assert!(said.code == 1 && !said.out.is_empty(), "{command:?}: {said:?}");
        assert!(["missing", "gone"].iter().all(|name| said.err.contains(name)), "{command:?}: {said:?}");
        assert_eq!(said.err.lines().count(), 2, "{command:?}: {said:?}");
    }
}

#[test]
fn the_daemon_says_how_it_is() {
    let daemon = Daemon::start();
    let status = json(&daemon, &["system", "status"]);
    assert_eq!(status["pid"].as_u64(), Some(u64::from(daemon.pid())), "{status}");
    let version = json(&daemon, &["version"]);
    assert!(version.to_string().contains(env!("CARGO_PKG_VERSION")), "{version}");
    ok(&daemon, &["system", "crash", "images"]);
    cofferdam_integration::until("it is up again", || {
        // While an actor is down the daemon is degraded, which is an exit code of its own.
        let status: Value = serde_json::from_str(&say(&daemon, &["system", "status", "-o", "json"]).out).unwrap();
        let actors = status["actors"].as_array().unwrap();
        let images = actors.iter().find(|actor| actor["name"] == "images").unwrap().clone();
        (images["health"] == "up" && images["restarts"] == 1).then_some(())
    });
}

#[test]
fn without_a_terminal_progress_is_a_beginning_and_an_end() {
    let daemon = Daemon::start();
    let archive = images().join("archive/stack.oci.tar");
    let said = say(&daemon, &["image", "import", archive.to_str().unwrap(), "shop/stack:1"]);
    assert_eq!(said.code, 0, "{said:?}");
    let mut last = std::collections::BTreeMap::<&str, Vec<&str>>::new();
    for line in said.err.lines() {
        let (name, phase) = line.rsplit_once(": ").unwrap_or_else(|| panic!("{line:?}"));
        last.entry(name).or_default().push(phase.split_once(' ').map_or(phase, |(phase, _)| phase));
    }
    assert!(last.len() > 6, "{said:?}");
    for (name, phases) in last {
        assert!(phases.len() <= 2 && phases.last() == Some(&"done"), "{name}: {phases:?}");
    }
}

#[test]
fn a_daemon_that_is_not_root_says_so() {
    use std::os::unix::process::CommandExt as _;
    let daemon = Daemon::start();
    let root = daemon.path().join("another");
    std::fs::create_dir(&root).unwrap();
    std::os::unix::fs::chown(&root, Some(65_534), Some(65_534)).unwrap();
    // Where everybody may execute it.
    let program = daemon.path().join("program");
    std::fs::copy(cofferdam_integration::binary("cofferd"), &program).unwrap();
    // One that starts all the same would go on.
    let mut command = std::process::Command::new("timeout");
    command
        .arg("20")
        .arg(&program)
        .arg("--root")
        .arg(root.join("root"))
        .arg("--state")
        .arg(root.join("state"))
        .arg("--shim")
        .arg(&program);
    let said = Said::from(command.uid(65_534).gid(65_534).output().unwrap());
    assert!(said.code == 1 && said.err.contains("user 65534") && said.err.contains("must be root"), "{said:?}");
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "it made nothing");
}
