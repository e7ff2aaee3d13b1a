//! Archives with so many entries that small files are filled by another thread.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use super::support::{Jail, TIME, Tar};
use crate::ApplyOptions;

const MANY: usize = 1000;

/// Of sizes on both sides of what counts as small.
fn content(n: usize) -> String {
    let size = [0, 1, 511, 16 << 10, (16 << 10) + 1, 70_000][n % 6];
    format!("{n}-").chars().cycle().take(size).collect()
}

#[test]
fn each_of_many_files_is_as_its_last_entry_says() {
    let mut tar = Tar::new();
    for n in 0..MANY {
        if n % 7 == 0 {
            tar = tar.pax(&[("SCHILY.xattr.user.n", n.to_string().as_bytes()), ("SCHILY.xattr.trusted.n", b"x")]);
        }
        tar = tar.owner((n % 3) as u32).file_mode(&format!("d{}/f{n}", n % 5), &content(n), 0o4755);
    }
    for n in (0..MANY).step_by(10) {
        tar = tar.link(&format!("d{}/f{n}", n % 5), &format!("linked{n}"));
        tar = tar.file(&format!("d{}/f{n}", n % 5), "the last one");
    }
    let tar = tar.end();
    for options in [ApplyOptions::default(), ApplyOptions { flush: true, ..ApplyOptions::detached() }] {
        let jail = Jail::new();
        let applied = jail.apply_as(&tar, &options).unwrap();
        assert_eq!(applied.dropped_xattrs, MANY.div_ceil(7) as u64);
        for n in 0..MANY {
            let replaced = n % 10 == 0;
            let path = if replaced { format!("linked{n}") } else { format!("d{}/f{n}", n % 5) };
            let meta = jail.meta(&path);
            assert!(jail.read(&path) == content(n), "{path}");
            assert_eq!((meta.permissions().mode() & 0o7777, meta.uid()), (0o4755, (n % 3) as u32), "{path}");
            assert_eq!(meta.mtime(), TIME.cast_signed(), "{path}");
            assert_eq!(super::support::xattrs(&jail.root().join(&path)).contains_key("user.n"), n % 7 == 0, "{path}");
            if replaced {
                assert_eq!(jail.read(&format!("d{}/f{n}", n % 5)), "the last one");
            }
        }
    }
}

#[test]
fn what_one_of_many_files_fails_of_is_told() {
    // Each is the last of its batch, or far from the end, or all but the last.
    for bad in [300, MANY - 40, MANY - 1] {
        let jail = Jail::new();
        let mut tar = Tar::new();
        for n in 0..MANY {
            if n == bad {
                // No file system takes it.
                tar = tar.pax(&[("SCHILY.xattr.security.capability", b"bad")]);
            }
            tar = tar.file(&format!("f{n}"), "x");
        }
        let error = jail.apply(tar).unwrap_err();
        assert!(error.to_string().contains(&format!("f{bad}")), "{error}");
        // Nobody writes any more.
        fs::remove_dir_all(jail.root()).unwrap();
    }
}

#[test]
fn what_was_unpacked_before_an_error_is_whole() {
    for at in [700, MANY] {
        let jail = Jail::new();
        let files =
            |tar: Tar, from: usize, to: usize| (from..to).fold(tar, |tar, n| tar.file(&format!("f{n}"), &content(n)));
        let tar = files(Tar::new(), 0, at).link("nothing", "hard");
        jail.apply(files(tar, at, MANY)).unwrap_err();
        for n in 0..at {
            assert!(jail.read(&format!("f{n}")) == content(n), "f{n} of {at}");
        }
        assert!(!jail.has(&format!("f{at}")));
    }
}
