//! What differs between file systems, as a list, as a layer, and as an image.

use std::{
    fs,
    process::{Command, Stdio},
};

use cofferdam_integration::{BUSYBOX, Daemon, btrfs_disk, until};
use cofferdam_types::{Algorithm, Digest};
use serde_json::json;

use crate::{Said, idle, json, ok, say, shell};

/// Runs a script where a snapshot is mounted by the descriptor that the daemon gives, in namespaces of its own.
fn within(daemon: &Daemon, namespaces: &str, driver: &str, key: &str, script: &str) -> Said {
    let target = tempfile::tempdir().unwrap();
    let coffer = cofferdam_integration::binary("coffer");
    let all = format!(
        "set -e\n'{}' snapshot mount --snapshotter {driver} {key} \"$1\"\ncd \"$1\"\n{script}",
        coffer.display()
    );
    let mut command = Command::new("unshare");
    command.env("COFFER_SOCKET", daemon.socket()).env("COFFER_NAMESPACE", daemon.namespace());
    command.args([namespaces, "sh", "-c", &all, "sh"]).arg(target.path()).output().unwrap().into()
}

#[test]
fn what_differs_between_snapshots_is_listed_and_makes_a_layer() {
    let daemon = btrfs_disk(512);
    let dir = tempfile::tempdir().unwrap();
    for driver in ["overlay", "native", "btrfs"] {
        let coffer = |args: &[&str]| ok(&daemon, &[args, &["--snapshotter", driver]].concat());
        let script = |key: &str, text: &str| {
            let said = within(&daemon, "-m", driver, key, text);
            assert_eq!(said.code, 0, "{driver}: {said:?}");
        };
        coffer(&["snapshot", "prepare", "one"]);
        script("one", "mkdir -p etc/d usr; echo 1 > etc/a; echo 2 > etc/d/b; echo 3 > usr/c; chmod 755 .");
        coffer(&["snapshot", "commit", "one", "base"]);
        coffer(&["snapshot", "prepare", "two", "base"]);
        script("two", "echo changed > etc/a; rm etc/d/b; rm -r usr; mkdir new; echo 4 > 'new/odd\nname'");
        let changes = "C /etc\nC /etc/a\nC /etc/d\nD /etc/d/b\nA /new\nA /new/odd\\nname\nD /usr\n";
        assert_eq!(coffer(&["diff", "--snapshot", "two"]), changes, "{driver}");
        coffer(&["snapshot", "commit", "two", "top"]);
        assert_eq!(coffer(&["diff", "--snapshot", "top", "base"]), changes, "{driver}: of what is committed too");
        coffer(&["snapshot", "prepare", "three", "top"]);
        script("three", "rm -r new; echo 5 > more");
        coffer(&["snapshot", "commit", "three", "last"]);
        // Beside another one than its parent, either way.
        assert_eq!(
            coffer(&["diff", "--snapshot", "last", "base"]),
            "C /etc\nC /etc/a\nC /etc/d\nD /etc/d/b\nA /more\nD /usr\n"
        );
        let back = json(&daemon, &["diff", "--snapshot", "base", "top", "--snapshotter", driver]);
        assert_eq!(back[0], json!({ "kind": "changed", "path": "/etc" }));
        assert_eq!(back.as_array().unwrap().last().unwrap(), &json!({ "kind": "added", "path": "/usr/c" }));
        coffer(&["snapshot", "view", "seen", "top"]);
        assert_eq!(coffer(&["diff", "--snapshot", "seen"]), "");

        // A layer of each kind says the same, and its tar is the same one.
        let mut tars = Vec::new();
        for compression in ["gzip", "zstd", "none"] {
            let file = dir.path().join(compression);
            let path = file.to_str().unwrap();
            let args = ["snapshot", "diff", "last", "base", "-c", compression];
            let said = json(&daemon, &[&args[..], &["-f", path, "--snapshotter", driver]].concat());
            let bytes = fs::read(&file).unwrap();
            assert_eq!(said["digest"], Digest::of(Algorithm::Sha256, &bytes).to_string());
            assert_eq!(said["size"], bytes.len());
            let digest = coffer(&[&args[..], &["-l", "mine=yes"]].concat());
            assert_eq!(said["digest"], digest.trim_end(), "what is stored is the same");
            // What is made by hand is not collected.
            ok(&daemon, &["gc"]);
            let stored = json(&daemon, &["content", "ls", "--filter", "labels.mine==yes"]);
            let stored = stored.as_array().unwrap().iter().find(|blob| blob["digest"] == said["digest"]).unwrap();
            assert_eq!(stored["labels"]["containerd.io/uncompressed"], said["diffId"]);
            let listed = Command::new("tar").arg("-tf").arg(&file).output().unwrap();
            tars.push((said["diffId"].clone(), String::from_utf8(listed.stdout).unwrap()));
        }
        assert_eq!(tars[0].1, "etc/a\netc/d/.wh.b\nmore\n.wh.usr\n", "{tars:?}");
        assert!(tars[0] == tars[2] && tars[0].0 == tars[1].0, "{tars:?}");
        coffer(&["snapshot", "rm", "seen", "last", "top", "base"]);
    }
    ok(&daemon, &["snapshot", "prepare", "left"]);
    let refused = say(&daemon, &["snapshot", "diff", "left", "--media-type", "application/x-tar+xz"]);
    assert!(refused.code == 1 && refused.err.contains("choose one of"), "{refused:?}");
    // What is no regular file is written into, and stays what it is.
    let node = dir.path().join("null");
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    nix::sys::stat::mknod(&node, kind, nix::sys::stat::Mode::S_IRWXU, nix::sys::stat::makedev(1, 3)).unwrap();
    let said = ok(&daemon, &["snapshot", "diff", "left", "-f", node.to_str().unwrap()]);
    assert!(said.starts_with("sha256:") && !node.metadata().unwrap().is_file(), "{said}");
    let refused = say(&daemon, &["snapshot", "diff", "none"]);
    assert!(refused.code == 1 && refused.err.contains("snapshot none"), "{refused:?}");
}

#[test]
fn a_mount_that_the_daemon_gives_is_harmless_to_the_host() {
    let daemon = Daemon::with_busybox();
    let chain = ok(&daemon, &["snapshot", "unpack", BUSYBOX]);
    assert_eq!(ok(&daemon, &["snapshot", "unpack", BUSYBOX]), chain, "again there is nothing to do");
    ok(&daemon, &["snapshot", "prepare", "work", chain.trim_end()]);
    let mounted = ok(&daemon, &["snapshot", "mounts", "work", "/x"]);
    let script = format!("mkdir /x 2>/dev/null; {mounted} mknod /x/null c 1 3 && chmod 666 /x/null");
    let at = tempfile::tempdir().unwrap();
    let script = script.replace("/x", at.path().to_str().unwrap());
    assert!(Command::new("unshare").args(["-m", "sh", "-c", &script]).status().unwrap().success());
    let said =
        within(&daemon, "-Urm", "overlay", "work", "test -x bin/busybox; grep \" $1 \" /proc/self/mountinfo; cat null");
    assert!(said.code != 0 && said.err.contains("Permission denied"), "no device is used: {said:?}");
    assert!(said.out.contains("nosuid") && said.out.contains("nodev"), "{said:?}");
    let said = within(&daemon, "-Urm", "overlay", "work", "mount -o remount,bind,dev,suid \"$1\"");
    assert!(said.code != 0, "who isn't root on the host can't change that: {said:?}");
    ok(&daemon, &["snapshot", "view", "seen", chain.trim_end()]);
    let said = within(&daemon, "-Urm", "overlay", "seen", "test -x bin/busybox; touch new");
    assert!(said.code != 0 && said.err.contains("Read-only"), "{said:?}");
    let refused = say(&daemon, &["snapshot", "mount", chain.trim_end(), at.path().to_str().unwrap()]);
    assert!(refused.code == 1 && refused.err.contains("is committed: prepare or view one"), "{refused:?}");
}

#[test]
fn a_container_becomes_an_image() {
    let daemon = Daemon::with_busybox();
    let script = "echo kept > /etc/kept; rm /bin/ash; mkdir -p /d/sub; echo one > /d/sub/f";
    ok(&daemon, &["run", "-d", "--name", "box", BUSYBOX, "sh", "-c", &format!("{script}; exec sleep 1000")]);
    until("the files are there", || (say(&daemon, &["exec", "box", "test", "-e", "/d/sub/f"]).code == 0).then_some(()));
    let changed = ok(&daemon, &["diff", "box"]);
    let lines: Vec<&str> = changed.lines().collect();
    for line in ["C /bin", "D /bin/ash", "A /d", "A /d/sub/f", "C /etc", "A /etc/kept"] {
        assert!(lines.contains(&line), "{line}: {changed}");
    }
    let args = ["commit", "box", "local/kept:1", "-a", "Ann", "-m", "a note", "-c", "CMD [\"cat\", \"/etc/kept\"]"];
    let more = ["-c", "ENV NEW=\"1 2\"", "-c", "LABEL a=b", "-c", "WORKDIR /d", "-c", "USER 1000:10"];
    let name = "docker.io/local/kept:1";
    assert_eq!(ok(&daemon, &[&args[..], &more].concat()), format!("{name}\n"));
    assert_eq!(ok(&daemon, &["run", "--rm", "local/kept:1"]), "kept\n");
    let seen = ok(
        &daemon,
        &["run", "--rm", "local/kept:1", "sh", "-c", "pwd; id -u; id -g; echo $NEW; test -e /bin/ash || ls"],
    );
    assert_eq!(seen, "/d\n1000\n10\n1 2\nsub\n");
    let state = json(&daemon, &["inspect", "box"]);
    assert!(state.to_string().contains("\"running\""), "it goes on: {state}");
    let image = json(&daemon, &["image", "inspect", "local/kept:1"]);
    let base = json(&daemon, &["image", "inspect", BUSYBOX]);
    let history = &image["config"]["history"];
    assert_eq!(history.as_array().unwrap().last().unwrap()["comment"], "a note", "{image}");
    assert_eq!((&image["config"]["author"], &image["config"]["config"]["Labels"]["a"]), (&json!("Ann"), &json!("b")));
    let layers = |image: &serde_json::Value| image["layers"].as_array().unwrap().clone();
    assert_eq!(layers(&image)[..layers(&base).len()], layers(&base)[..]);
    assert_eq!(layers(&image).len(), layers(&base).len() + 1);
}

#[test]
fn what_is_committed_of_a_container_without_changes_has_no_layer_more() {
    let daemon = Daemon::with_busybox();
    assert_eq!(shell(&daemon, &["--name", "same"], "true").code, 0);
    let layers = |name: &str| json(&daemon, &["image", "inspect", name])["layers"].as_array().unwrap().len();
    let listed = ok(&daemon, &["diff", "same"]);
    for compression in ["zstd", "none"] {
        ok(&daemon, &["commit", "same", "same:1", "--compression", compression, "--change", "USER 7"]);
        assert_eq!(layers("same:1"), layers(BUSYBOX) + usize::from(!listed.is_empty()), "{listed}");
        assert_eq!(ok(&daemon, &["run", "--rm", "same:1", "id", "-u"]), "7\n", "the name stands for the last one");
    }
    for (args, why) in [
        (&["commit", "none", "x"][..], "container none"),
        (&["commit", "same", "UPPER"], "UPPER"),
        (&["commit", "same", "x", "--compression", "xz"], "is not one of gzip, zstd and none"),
        (&["commit", "same", "x", "--change", "WORKDIR here"], "is not an absolute path"),
    ] {
        let refused = say(&daemon, args);
        assert!(refused.code == 1 && refused.err.contains(why), "{args:?}: {refused:?}");
    }
    let refused = say(&daemon, &["commit", "same", "x", "--change", "RUN make"]);
    assert!(refused.code == 1 && refused.err.contains("can't be changed"), "{refused:?}");
    assert!(!ok(&daemon, &["image", "ls"]).contains("/x:"), "nothing is left of them");
}

#[test]
fn a_container_stands_still_while_it_is_compared_unless_it_may_not() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    ok(&daemon, &["exec", "box", "sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=64 2>/dev/null"]);
    let paused = || json(&daemon, &["ps", "-a"]).to_string().contains("\"paused\"");
    for (flags, expected) in [(&[][..], true), (&["--no-pause"], false)] {
        let mut commit = daemon.command();
        let commit = commit.args(["commit", "box", "still:1"]).args(flags).stdout(Stdio::null()).stderr(Stdio::null());
        let mut commit = commit.spawn().unwrap();
        let mut seen = false;
        while commit.try_wait().unwrap().is_none() {
            seen |= paused();
        }
        assert!(commit.wait().unwrap().success());
        assert_eq!(seen, expected, "{flags:?}");
        assert!(!paused());
    }
    // Who was paused before stays so.
    ok(&daemon, &["pause", "box"]);
    ok(&daemon, &["commit", "box", "still:2"]);
    assert!(paused());
}

#[test]
fn labels_of_a_namespace_are_set_and_removed() {
    let daemon = Daemon::start();
    ok(&daemon, &["namespace", "create", "shop", "-l", "tier=db", "-l", "old=yes"]);
    assert_eq!(ok(&daemon, &["namespace", "label", "shop", "old=", "new=1"]), "new=1\ntier=db\n");
    assert_eq!(json(&daemon, &["namespace", "label", "shop", "new=2"]), json!({ "new": "2", "tier": "db" }));
    let long = format!("long={}", "x".repeat(4096));
    let refused = say(&daemon, &["namespace", "label", "shop", &long]);
    assert!(refused.code == 1 && refused.err.contains("4096"), "{refused:?}");
    let refused = say(&daemon, &["namespace", "label", "none", "a=b"]);
    assert!(refused.code == 1 && refused.err.contains("coffer namespace create none"), "{refused:?}");
    ok(&daemon, &["-n", "shop", "snapshot", "prepare", "by-hand"]);
    let refused = say(&daemon, &["namespace", "rm", "shop"]);
    assert!(refused.code == 1 && refused.err.contains("snapshots"), "{refused:?}");
    ok(&daemon, &["-n", "shop", "snapshot", "rm", "by-hand"]);
    ok(&daemon, &["namespace", "rm", "shop"]);
}
