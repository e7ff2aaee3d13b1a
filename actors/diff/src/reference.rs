//! What containerd's tests of its archives and of its file system helpers verify of a comparison and its layer, each under
//! the name that it has there (docs/archives.md).

use std::{fs, os::fd::OwnedFd, path::Path, process::Command};

use cofferdam_snapshots::Changes;

use crate::{
    list::told,
    property::{copy, layer, picture, put},
};

fn shell(script: &str, dir: &Path) {
    let done = Command::new("sh").args(["-ec", script]).current_dir(dir).status().unwrap();
    assert!(done.success(), "{script}");
}

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

/// What a script makes, what another one makes of a copy of that, and the changes that are to be listed. The layer of the
/// two makes the second of the first.
fn check(base: &str, change: &str, changes: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::create_dir(&old).unwrap();
    shell(base, &old);
    copy(&old, &new);
    shell(change, &new);
    let trees = Changes { lower: Some(open(&old)), upper: open(&new), overlay: false };
    assert_eq!(told(&trees, 3), changes);
    let wanted = picture(&new);
    put(&old, &layer(&old, &new, false));
    assert_eq!(picture(&old), wanted);
}

macro_rules! tests {
    ($($name:ident: $base:expr, $change:expr, [$($told:literal),* $(,)?];)*) => {$(
        #[test]
        fn $name() {
            check($base, $change, &[$($told),*]);
        }
    )*};
}

/// A tree with something of each kind.
const BASE: &str = "mkdir -p etc usr/local/lib home/derek; printf '127.0.0.1 localhost' > etc/hosts; ln etc/hosts etc/hosts.allow; \
    printf '\\0\\0' > usr/local/lib/libnothing.so; chmod 755 usr/local/lib/libnothing.so; \
    ln -s libnothing.so usr/local/lib/libnothing.so.2; chmod 700 home/derek";

const ETC: &str = "mkdir etc; echo 10.0.0.1 > etc/hosts; echo PATH > etc/profile; echo PATH > etc/unchanged; echo sh > etc/unexpected";

/// Times with and without a fraction.
fn times(files: &str) -> String {
    let whole = "2020-01-01 00:00:00";
    let line = |line: &str| {
        let [name, text, nanoseconds]: [&str; 3] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        format!("printf {text} > {name}; touch -d '{whole}.{nanoseconds}' {name}")
    };
    files.split(", ").map(line).collect::<Vec<_>>().join("; ")
}

tests! {
    simple_diff: ETC,
        "echo 10.0.0.120 > etc/hosts; chmod 666 etc/profile; mkdir -m 700 root; echo x > root/.bashrc; rm etc/unexpected",
        ["C /etc", "C /etc/hosts", "C /etc/profile", "D /etc/unexpected", "A /root", "A /root/.bashrc"];
    empty_file_diff: "mkdir etc; touch -d '2020-01-01 00:00:00' etc/empty", ":", [];
    nested_deletion: "mkdir -p d0 d1/d2; echo x > d1/d2/f1", "rm -r d0 d1", ["D /d0", "D /d1"];
    directory_replace: "mkdir -p dir1/f2; echo x > dir1/f1; echo sh > dir1/f2/f3",
        "echo new > dir1/f11; rm -r dir1/f2; echo file > dir1/f2",
        ["C /dir1", "A /dir1/f11", "C /dir1/f2"];
    remove_directory_tree: "mkdir -p dir1/dir2/dir3; echo 1 > dir1/f1; echo 2 > dir1/dir2/f2", "rm -r dir1", ["D /dir1"];
    remove_directory_tree_with_dash:
        "mkdir -p dir1/dir2/dir3 dir1-before; echo 1 > dir1/f1; echo 2 > dir1/dir2/f2; echo 2 > dir1-before/f2",
        "rm -r dir1",
        ["D /dir1"];
    file_replace: "echo file > dir1", "rm dir1; mkdir -p dir1/dir2; echo too > dir1/dir2/f1",
        ["C /dir1", "A /dir1/dir2", "A /dir1/dir2/f1"];
    parent_directory_permission: "mkdir -m 700 dir1; mkdir -m 751 dir2; mkdir -m 777 dir3",
        "mkdir -m 700 dir1/d; touch dir1/d/f dir1/f dir2/f dir3/f",
        ["C /dir1", "A /dir1/d", "A /dir1/d/f", "A /dir1/f", "C /dir2", "A /dir2/f", "C /dir3", "A /dir3/f"];
    unchanged_parent: "mkdir -p dir1/dir2; echo 1 > dir1/dir2/f", "echo 2 > dir1/dir2/f2; chmod 700 dir1/dir2",
        ["C /dir1", "C /dir1/dir2", "A /dir1/dir2/f2"];
    lchtimes: "echo foo > foo; ln -s foo a; ln -s foo b; touch -hd @0 a; touch -hd @0.000000042 b", ":", [];
    base_directory_changes: ":",
        "mkdir etc; echo x > etc/hosts; echo x > etc/profile; mkdir -m 700 root; echo x > root/.bashrc",
        ["A /etc", "A /etc/hosts", "A /etc/profile", "A /root", "A /root/.bashrc"];
    diff_apply_basic: BASE,
        "mkdir newdir; echo 1 > etc/newfile; ln -s etc newlink; ln etc/newfile newdir/hard; mkdir -m 711 newdir/sub",
        ["C /etc", "A /etc/newfile", "A /newdir", "A /newdir/hard", "A /newdir/sub", "A /newlink"];
    diff_apply_deletion: BASE, "rm -r home usr/local; rm etc/hosts.allow etc/hosts",
        ["C /etc", "D /etc/hosts", "D /etc/hosts.allow", "D /home", "C /usr", "D /usr/local"];
    diff_apply_update: BASE, "echo other > etc/hosts; chmod 600 usr/local/lib/libnothing.so; chown 1000:1000 home/derek",
        ["C /etc", "C /etc/hosts", "C /etc/hosts.allow", "C /home", "C /home/derek", "C /usr", "C /usr/local",
         "C /usr/local/lib", "C /usr/local/lib/libnothing.so"];
    diff_apply_directory_permission: "mkdir -m 700 d1; mkdir -m 751 d2; mkdir -m 777 d3",
        "echo 1 > d1/f; mkdir -m 700 d1/d; echo 2 > d2/f; echo 3 > d3/f",
        ["C /d1", "A /d1/d", "A /d1/f", "C /d2", "A /d2/f", "C /d3", "A /d3/f"];
    diff_apply_parent_directory_permission: "mkdir -m 700 d1; mkdir -m 711 d2", "chmod 755 d1; mkdir -p d2/a/b",
        ["C /d1", "C /d2", "A /d2/a", "A /d2/a/b"];
    diff_apply_hardlink_unmodified: "echo 1 > f1; ln f1 f2", "echo 1 > other", ["A /other"];
    diff_apply_hardlink_before_unmodified: "echo 1 > f2; ln f2 f3", "ln f2 f1", ["A /f1", "C /f2", "C /f3"];
    diff_apply_hardlink_before_modified: "echo 1 > f2", "ln f2 f1; echo 2 > f2", ["A /f1", "C /f2"];
    symlinks_replaced_by_others: "mkdir d; ln -s d l; ln -s ../d d/up", "ln -sfn d/up l; ln -sfn /d d/up",
        ["C /d", "C /d/up", "C /l"];
    symlinks_replaced_by_absolute_ones: "ln -s etc l; mkdir etc", "ln -sfn /etc l", ["C /l"];
    symlinks_replaced_by_directories: "ln -s etc l; mkdir etc", "rm l; mkdir l; echo 1 > l/f", ["C /l", "A /l/f"];
    directories_replaced_by_symlinks: "mkdir -p d/e; echo 1 > d/e/f", "rm -r d; ln -s / d", ["C /d"];
    symlinks_to_nowhere: "ln -s no/where l", "ln -sfn ../../no/where l; ln -s l m", ["C /l", "A /m"];
}

#[test]
fn update_with_same_time() {
    // Equal in size and in a time that has a fraction counts as the same, in one that has none the bytes do.
    let old = "modified-time 1 5, no-change 1 5, same-time 1 5, truncated-1 1 0, truncated-2 1 0, truncated-3 1 5";
    let new = "modified-time 2 6, no-change 1 5, same-time 2 5, truncated-1 1 5, truncated-2 2 0, truncated-3 1 0";
    let nano = |text: &str| text.replace(" 5", " 000000005").replace(" 6", " 000000006").replace(" 0,", " 000000000,");
    let dir = tempfile::tempdir().unwrap();
    for (name, files) in [("old", old), ("new", new)] {
        fs::create_dir(dir.path().join(name)).unwrap();
        shell(&times(&nano(files)), &dir.path().join(name));
    }
    let open = |name: &str| open(&dir.path().join(name));
    let trees = Changes { lower: Some(open("old")), upper: open("new"), overlay: false };
    assert_eq!(told(&trees, 100), ["C /modified-time", "C /truncated-1", "C /truncated-2", "C /truncated-3"]);
}

#[test]
fn relative_symlinks() {
    for links in [
        "ln -s ../other home/derek/other; ln -s ../../etc home/derek/etc; ln -s up/../../other home/derek/updown",
        "ln -s ../../../breakout home/derek/breakout",
        "ln -s ../../breakout breakout",
        "ln -s etc/../../upandout breakout",
        "ln -s derek/../../../downandout home/breakout",
        "ln -s /etc localetc",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (made, nothing) = (dir.path().join("made"), dir.path().join("nothing"));
        fs::create_dir(&made).unwrap();
        fs::create_dir(&nothing).unwrap();
        shell(&format!("{BASE}; {links}"), &made);
        put(&nothing, &layer(&nothing, &made, false));
        assert_eq!(picture(&nothing), picture(&made), "{links}");
    }
}

#[test]
fn base_diff() {
    // Another program makes the same tree of the layer.
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["made", "nothing", "other"] {
        fs::create_dir(at(name)).unwrap();
    }
    shell(BASE, &at("made"));
    fs::write(at("layer"), layer(&at("nothing"), &at("made"), false)).unwrap();
    shell("tar -xpf ../layer", &at("other"));
    assert_eq!(picture(&at("other")), picture(&at("made")));
}

#[test]
fn diff_tar_empty_diff() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::create_dir(&old).unwrap();
    shell(BASE, &old);
    copy(&old, &new);
    assert_eq!(layer(&old, &new, false), vec![0; 1024]);
}

#[test]
fn diff_tar_parent_inclusion() {
    // What is as it was isn't written. Parents that a layer doesn't name keep mode and owner when it is applied.
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::create_dir(&old).unwrap();
    shell("mkdir -m 700 d1; mkdir -m 711 d2; chown 7:8 d2", &old);
    copy(&old, &new);
    shell("mkdir d1/d; echo 1 > d2/f", &new);
    let tar = layer(&old, &new, false);
    let mut archive = tar::Archive::new(&*tar);
    let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
    assert_eq!(names, [Path::new("d1/d"), Path::new("d2/f")]);
    put(&old, &tar);
    assert_eq!(picture(&old), picture(&new));
}
