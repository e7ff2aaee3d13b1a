//! The driver btrfs: the same trees, containers in them, and nothing that stays.

use std::{path::Path, process::Command};

use cofferdam_client::ImportOptions;
use cofferdam_integration::{Daemon, bounded, btrfs_disk, skipped, until, until_async};
use cofferdam_types::Code;

use crate::support::{
    tree::{assert_same, differences},
    world::{World, directory, listed, tool, umoci},
};

const ON: &str = "btrfs";

/// All subvolumes of the daemon's disk.
fn subvolumes(daemon: &Daemon) -> Vec<String> {
    let list = tool("btrfs", &["subvolume", "list", daemon.root().to_str().unwrap()]);
    list.lines().map(str::to_owned).collect()
}

pub fn import(world: &World, image: &str, driver: &str) -> cofferdam_client::Job {
    let listed = listed().into_iter().find(|other| other.name == image && other.kind == "oci-layout").unwrap();
    let options = ImportOptions { name: image.into(), driver: driver.into(), ..ImportOptions::default() };
    world.import_with(&options, directory(&listed.path))
}

/// `coffer run FLAGS busybox sh -c SCRIPT`: its status, and what it said.
pub fn run(daemon: &Daemon, driver: &str, flags: &[&str], script: &str) -> (i32, String) {
    let words =
        [&["run", "--snapshotter", driver], flags, &[cofferdam_integration::BUSYBOX, "sh", "-c", script]].concat();
    said(daemon, &words)
}

pub fn said(daemon: &Daemon, words: &[&str]) -> (i32, String) {
    let output = daemon.coffer(words);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

/// Imports each small layout into a driver; the trees are those of overlay.
pub async fn same_trees(world: &World, driver: &str) {
    let mut count = 0;
    // The large ones are compared with what another tool makes of them.
    let small = |name: &str| !name.starts_with("stack") && !name.starts_with("minbase");
    for image in listed().into_iter().filter(|image| image.kind == "oci-layout" && small(&image.name)) {
        let names = import(world, &image.name, driver).wait().await.unwrap();
        let found = world.container_tree(&names[0], driver).await;
        let other = world.container_tree(&names[0], "overlay").await;
        assert_eq!(differences(&found, &other), [""; 0], "{}", image.name);
        count += 1;
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn every_layout_becomes_the_tree_that_overlay_shows() {
    bounded(async {
        same_trees(&World::with(btrfs_disk(4096)).await, ON).await;
    });
}

#[test]
fn containers_go_on_while_the_daemon_is_away() {
    let daemon = btrfs_disk(1024);
    daemon.import_busybox();
    let (code, text) =
        run(&daemon, ON, &["--rm"], "echo hello > /file && cat /file && grep ' / ' /proc/self/mountinfo");
    assert!(code == 0 && text.starts_with("hello\n") && text.contains("btrfs"), "{text}");
    // What is in the trash goes in its time.
    let standing = || subvolumes(&daemon).iter().filter(|line| !line.contains("trash/")).count();
    let kept = standing();
    let (code, text) = run(&daemon, ON, &["-d", "--name", "box"], "echo mine > /file; exec sleep 1000");
    assert_eq!(code, 0, "{text}");
    until("it wrote", || (said(&daemon, &["exec", "box", "cat", "/file"]).1 == "mine\n").then_some(()));
    daemon.restart();
    let (code, text) = said(&daemon, &["exec", "box", "sh", "-c", "cat /file && echo more > /more && ls /more"]);
    assert_eq!((code, &*text), (0, "mine\n/more\n"));
    // In a user namespace ids are mapped, and stay what they were on disk.
    let (code, text) =
        run(&daemon, ON, &["--rm", "--userns", "0:100000:65536"], "touch /new && stat -c %u /new /bin /etc");
    assert_eq!((code, &*text), (0, "0\n0\n0\n"));
    assert_eq!(run(&daemon, ON, &["--rm", "--read-only"], "touch /new").0, 1);
    assert_eq!(standing(), kept + 1);
    assert_eq!(said(&daemon, &["rm", "-f", "box"]).0, 0);
    until("its subvolume goes", || (subvolumes(&daemon).len() == kept).then_some(()));
}

#[test]
fn a_container_has_as_much_room_as_it_was_given() {
    let daemon = btrfs_disk(1024);
    daemon.import_busybox();
    assert_eq!(run(&daemon, ON, &["--rm"], "true").0, 0);
    let write = "dd if=/dev/zero of=/file bs=1M count=32 conv=fsync";
    let limited = ["--rm", "--storage-opt", "size=8m"];
    let before = daemon.leftovers();
    let (code, text) = run(&daemon, ON, &limited, write);
    assert!(code == 125 && text.contains("quotas are off"), "{text}");
    let overlay =
        ["run", "--rm", "--snapshotter", "overlay", "--storage-opt", "size=8m", cofferdam_integration::BUSYBOX];
    let (code, text) = said(&daemon, &overlay);
    assert!(code == 125 && text.contains("use the driver btrfs"), "{text}");
    tool("btrfs", &["quota", "enable", daemon.root().to_str().unwrap()]);
    // What isn't counted yet can't be bounded.
    tool("btrfs", &["quota", "rescan", "-w", daemon.root().to_str().unwrap()]);
    let (code, text) = run(&daemon, ON, &limited, write);
    assert!(code == 1 && text.contains("quota exceeded"), "{code} {text}");
    assert_eq!(run(&daemon, ON, &["--rm"], write).0, 0, "one without a limit has none");
    daemon.settles(&before);
}

#[test]
fn what_a_crash_leaves_of_an_unpacking_is_swept() {
    bounded(async {
        let mut world = World::with(btrfs_disk(2048)).await;
        let dir = world.daemon.root().join("snapshots/btrfs");
        let job = import(&world, "stack", ON);
        until_async("it is at the second layer", || async {
            let trees = std::fs::read_dir(&dir).unwrap();
            (trees.filter(|entry| is_begun(&entry.as_ref().unwrap().path())).count() == 2).then_some(())
        })
        .await;
        world.daemon.kill9();
        drop(job);
        world.daemon.restart();
        world.connect().await;
        until("all is swept", || subvolumes(&world.daemon).is_empty().then_some(()));
        let names = import(&world, "stack", ON).wait().await.unwrap();
        assert_same("stack", &world.container_tree(&names[0], ON).await, &umoci("stack"));
    });
}

fn is_begun(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("fs")).is_ok_and(|mut tree| tree.next().is_some())
}

#[test]
fn a_root_elsewhere_says_why_not() {
    bounded(async {
        let world = World::start().await;
        let root = world.daemon.root();
        let kind = Command::new("stat").args(["-f", "-c", "%T"]).arg(&root).output().unwrap();
        if kind.stdout == b"btrfs\n" {
            return skipped("the daemon's root lies on btrfs");
        }
        let imported = import(&world, "busybox", ON).wait().await.unwrap_err();
        for error in [imported, world.ns.snapshots(ON).get("any").info().await.unwrap_err()] {
            assert_eq!(error.code, Code::Unimplemented, "{error}");
            assert!(error.message.contains("on btrfs"), "{error}");
        }
    });
}
