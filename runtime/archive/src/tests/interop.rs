//! What the system's `tar` makes, applied, is the tree that it was made of.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use cofferdam_types::{Algorithm, Code, Digest};

use super::support::{Jail, TIME, Tar, apply_to, differences, gzip, snapshot};
use crate::ApplyOptions;

fn run(program: &str, args: &[&str], dir: &Path) {
    let output = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn set_xattr(path: &Path, name: &std::ffi::CStr, value: &[u8]) {
    crate::at::set_xattr(fs::File::open(path).unwrap(), name, value).unwrap();
}

/// A tree with one of everything.
pub(super) fn everything(root: &Path) {
    let long = "long-".repeat(30);
    fs::create_dir_all(root.join("a/b").join(&long)).unwrap();
    fs::write(root.join("a/file"), "content").unwrap();
    fs::write(root.join("a/empty"), "").unwrap();
    fs::write(root.join("big"), vec![7u8; 3_000_001]).unwrap();
    fs::write(root.join("a/b").join(&long).join("deep"), "deep").unwrap();
    fs::hard_link(root.join("a/file"), root.join("hard")).unwrap();
    fs::hard_link(root.join("a/b").join(&long).join("deep"), root.join("hard-long")).unwrap();
    symlink("a/file", root.join("soft")).unwrap();
    symlink(format!("/{long}/{long}"), root.join("soft-long")).unwrap();
    symlink("a/file", root.join("soft2")).unwrap();
    fs::hard_link(root.join("soft2"), root.join("hard-to-soft")).unwrap();
    run("mknod", &["pipe", "p"], root);
    run("mknod", &["null", "c", "1", "3"], root);
    run("chmod", &["6755", "a/file"], root);
    run("chown", &["1234:2345", "a/file", "a/b", "pipe"], root);
    run("chown", &["-h", "3:4", "soft"], root);
    set_xattr(&root.join("a/file"), c"user.colour", b"red\0=\n");
    set_xattr(&root.join("a/b"), c"user.dir", b"yes");
    set_xattr(&root.join("big"), c"security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    run("chmod", &["0500", "a"], root);
    run("sh", &["-c", &format!("find . -exec touch -h -d @{TIME} {{}} +")], root);
}

#[test]
fn archives_of_gnu_tar() {
    let jail = Jail::new();
    let source = jail.root();
    everything(&source);
    let dir = tempfile::tempdir().unwrap();
    for (format, xattrs) in [("gnu", false), ("posix", true), ("oldgnu", false)] {
        let file = dir.path().join(format!("{format}.tar"));
        let mut args = vec!["-cf", file.to_str().unwrap(), "--numeric-owner", "-H", format, "."];
        if xattrs {
            args.extend(["--xattrs", "--xattrs-include=*"]);
        }
        run("tar", &args, &source);
        let tar = fs::read(&file).unwrap();
        for bytes in [tar.clone(), gzip(&tar)] {
            let target = tempfile::tempdir().unwrap();
            let applied = apply_to(target.path(), &bytes, &ApplyOptions::default()).unwrap();
            assert_eq!(applied.diff_id, Digest::of(Algorithm::Sha256, &tar));
            assert!(applied.implicit_parents.is_empty() && applied.lower_links.is_empty());
            let differ = differences(&source, target.path());
            match format {
                "posix" => assert!(differ.is_empty(), "{differ:#?}"),
                // These forms carry no attributes.
                _ => assert!(differ.iter().all(|d| d.contains("user.") || d.contains("security.cap")), "{differ:#?}"),
            }
            assert_eq!(fs::metadata(target.path().join("hard")).unwrap().nlink(), 2);
            assert_eq!(fs::symlink_metadata(target.path().join("hard-to-soft")).unwrap().nlink(), 2);
            // The same once more changes nothing: everything is replaced by itself.
            let before = snapshot(target.path());
            apply_to(target.path(), &bytes, &ApplyOptions::default()).unwrap();
            assert_eq!(snapshot(target.path()), before);
        }
    }
}

#[test]
fn archives_with_sub_second_times() {
    let jail = Jail::new();
    fs::write(jail.root().join("f"), "x").unwrap();
    run("touch", &["-d", "2001-02-03 04:05:06.123456789 UTC", "f"], &jail.root());
    let file = jail.dir.path().join("root/../outside/../t.tar");
    run("tar", &["-cf", file.to_str().unwrap(), "-H", "posix", "."], &jail.root());
    let target = tempfile::tempdir().unwrap();
    apply_to(target.path(), &fs::read(&file).unwrap(), &ApplyOptions::default()).unwrap();
    assert_eq!(fs::metadata(target.path().join("f")).unwrap().mtime_nsec(), 123_456_789);
}

#[test]
fn sparse_archives_of_gnu_tar() {
    let source = tempfile::tempdir().unwrap();
    let file = fs::File::create(source.path().join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"x", 10 << 20).unwrap();
    for format in [
        &["-H", "gnu"][..],
        &["-H", "posix"],
        &["-H", "posix", "--sparse-version=0.0"],
        &["-H", "posix", "--sparse-version=0.1"],
    ] {
        let archive = tempfile::tempdir().unwrap();
        let path = archive.path().join("t.tar");
        let args = [&["-S", "-cf", path.to_str().unwrap()], format, &["sparse"]].concat();
        run("tar", &args, source.path());
        let target = tempfile::tempdir().unwrap();
        let error = apply_to(target.path(), &fs::read(&path).unwrap(), &ApplyOptions::default()).unwrap_err();
        assert_eq!(error.code, Code::Unimplemented);
    }
}

/// A file gets its directory's group where that has the set-group-id bit, or where the file system is mounted so: entries
/// that say otherwise are believed.
#[test]
fn owners_are_what_the_archive_says_whatever_a_directory_hands_down() {
    for (root_mode, root_group) in [(0o755, 0), (0o2755, 7), (0o755, 7)] {
        let jail = Jail::new();
        std::os::unix::fs::chown(jail.root(), None, Some(root_group)).unwrap();
        fs::set_permissions(jail.root(), fs::Permissions::from_mode(root_mode)).unwrap();
        let tar = Tar::new()
            .file("first", "x")
            .owner(5)
            .dir("theirs", 0o2755)
            .file("theirs/own", "x")
            .owner(0)
            .file("theirs/root", "x")
            .symlink("x", "theirs/soft")
            .special("theirs/pipe", b'6', 0o644, 0, 0)
            .dir("theirs/dir", 0o755)
            .file("theirs/dir/root", "x")
            .dir("theirs", 0o755)
            .file("theirs/last", "x");
        jail.apply_as(&tar.end(), &ApplyOptions::detached()).unwrap();
        let owner = |path| (jail.meta(path).uid(), jail.meta(path).gid());
        for path in ["first", "theirs", "theirs/root", "theirs/soft", "theirs/pipe", "theirs/dir", "theirs/dir/root"] {
            assert_eq!(owner(path), (0, 0), "{path} below {root_mode:o} of group {root_group}");
        }
        assert_eq!((owner("theirs/own"), owner("theirs/last")), ((5, 5), (0, 0)));
    }
}
