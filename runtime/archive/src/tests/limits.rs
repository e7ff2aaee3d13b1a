//! A13, A14, A15: what an archive may cost, and what it may set.

use std::{
    io::Read,
    os::unix::fs::{FileTypeExt, MetadataExt},
    sync::atomic::{AtomicBool, Ordering},
};

use cofferdam_types::Code;

use super::support::{Jail, Tar, count, gzip, xattrs};
use crate::{ApplyOptions, Limits, apply};

fn limited(limits: Limits) -> ApplyOptions {
    ApplyOptions { limits, ..ApplyOptions::default() }
}

#[test]
fn a13_entries_depth_and_attributes_are_bounded() {
    let options = limited(Limits { max_entries: 100, ..Limits::default() });
    // Directories that are made along the way count.
    let tar = Tar::new().file(&("d/".repeat(101) + "f"), "").end();
    assert_eq!(Jail::new().apply_as(&tar, &options).unwrap_err().code, Code::ResourceExhausted);

    let jail = Jail::new();
    jail.refuses(Tar::new().named(&b"d/".repeat(100_000)), Code::ResourceExhausted);
    jail.refuses(Tar::new().named(&b"d/".repeat(257)), Code::ResourceExhausted);
    // Links make a path deeper than any entry says.
    let mut tar = Tar::new().dir(&"d/".repeat(200), 0o755).symlink(&"d/".repeat(200), "s");
    tar = tar.dir(&("s/".to_owned() + &"e/".repeat(100)), 0o755);
    jail.refuses(tar, Code::ResourceExhausted);

    let big = vec![b'x'; 10 << 20];
    Jail::new().refuses(Tar::new().pax(&[("SCHILY.xattr.user.big", &big)]).file("f", ""), Code::ResourceExhausted);
    let big = vec![b'x'; (64 << 10) + 1];
    Jail::new().refuses(Tar::new().pax(&[("SCHILY.xattr.user.big", &big)]).file("f", ""), Code::ResourceExhausted);

    let mut tar = Tar::new();
    for i in 0..1000 {
        tar = tar.dir(&format!("{}{i}", "n".repeat(200)), 0o755);
    }
    let options = limited(Limits { max_names: 100_000, ..Limits::default() });
    assert_eq!(Jail::new().apply_as(&tar.end(), &options).unwrap_err().code, Code::ResourceExhausted);
}

/// Files of size 0 without end, made up while they are read: some names again and again.
struct Crowd {
    left: usize,
    block: Vec<u8>,
}

/// So many names they have: each is a file, and a disk has only so many.
const NAMES: usize = 200_000;

impl Read for Crowd {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.block.is_empty() {
            self.block = match self.left.checked_sub(1) {
                Some(left) => Tar::new().file(&format!("d{}/f{}", left % 100, left % NAMES), "").bytes,
                None => return Ok(0),
            };
            self.left = self.left.saturating_sub(1);
        }
        let n = self.block.len().min(into.len());
        into[..n].copy_from_slice(&self.block[..n]);
        self.block.drain(..n);
        Ok(n)
    }
}

#[test]
fn a13_as_many_entries_as_may_be_and_no_more() {
    let most = count(Limits::default().max_entries as usize, 2000);
    // The directories that are made along the way count.
    let options = limited(Limits { max_entries: most as u64, ..Limits::default() });
    let go = AtomicBool::new(false);
    let applied = |entries: usize| {
        let jail = Jail::new();
        let root = std::fs::File::open(jail.root()).unwrap();
        let crowd = Crowd { left: entries, block: Vec::new() };
        apply(std::os::fd::AsFd::as_fd(&root), crowd, &options, &go).map(drop)
    };
    applied(most - 100).unwrap();
    assert_eq!(applied(most - 99).unwrap_err().code, Code::ResourceExhausted);
    println!("long-run: A13, entries of size 0 | {most} taken, and one more refused");
}

#[test]
fn a14_what_an_image_may_set() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    let jail = Jail::new();
    let tar = Tar::new()
        .owner(1000)
        .file_mode("suid", "x", 0o6755)
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.kept", b"v"),
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.x", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"evil_t"),
            ("SCHILY.xattr.system.posix_acl_access", b"x"),
            ("SCHILY.xattrs.user.misspelt", b"x"),
        ])
        .file("cap", "x")
        .special("null", b'3', 0o666, 1, 3)
        .special("disk", b'4', 0o660, 8, 1)
        .special("fifo", b'6', 0o620, 0, 0)
        .dir("sticky", 0o1777);
    let applied = jail.apply(tar.clone()).unwrap();
    assert_eq!(applied.dropped_xattrs, 5);
    assert_eq!(jail.meta("suid").mode() & 0o7777, 0o6755);
    assert_eq!((jail.meta("suid").uid(), jail.meta("suid").gid()), (1000, 1000));
    let set = xattrs(&jail.root().join("cap"));
    assert_eq!(set.keys().map(String::as_str).collect::<Vec<_>>(), ["security.capability", "user.empty", "user.kept"]);
    assert_eq!(set["security.capability"], capability);
    let null = jail.meta("null");
    assert!(
        null.file_type().is_char_device()
            && null.rdev() == 0x103
            && null.mode() & 0o7777 == 0o666
            && null.uid() == 1000
    );
    assert!(jail.meta("disk").file_type().is_block_device() && jail.meta("disk").rdev() == 0x801);
    assert!(jail.meta("fifo").file_type().is_fifo() && jail.meta("fifo").mode() & 0o7777 == 0o620);
    assert_eq!(jail.meta("sticky").mode() & 0o7777, 0o1777);

    let options = ApplyOptions { devices: false, ..ApplyOptions::default() };
    assert_eq!(Jail::new().apply_as(&tar.end(), &options).unwrap_err().code, Code::InvalidArgument);
    let fifo = Tar::new().special("fifo", b'6', 0o620, 0, 0).end();
    Jail::new().apply_as(&fifo, &options).unwrap();
    // The kernel's whiteout would delete files of lower layers behind the back of the archive's own.
    Jail::new().refuses(Tar::new().special("wh", b'3', 0o644, 0, 0), Code::InvalidArgument);
    Jail::new().refuses(Tar::new().file("wh", "").patch(156, b"3"), Code::InvalidArgument);
}

#[test]
fn a15_bombs_are_refused() {
    let options = limited(Limits { ratio_free: 1 << 20, max_bytes: 64 << 20, ..Limits::default() });
    let zeros = "\0".repeat(8 << 20);
    let tar = Tar::new().file("zeros", &zeros).end();
    for bomb in [gzip(&tar), zstd::encode_all(&tar[..], 3).unwrap()] {
        assert_eq!(Jail::new().apply_as(&bomb, &options).unwrap_err().code, Code::ResourceExhausted);
    }
    // Members that are each below the bound for small streams.
    let members: Vec<u8> = tar.chunks(256 << 10).flat_map(gzip).collect();
    assert_eq!(Jail::new().apply_as(&members, &options).unwrap_err().code, Code::ResourceExhausted);
    // And plain size, be it in a file or behind the archive's end.
    let options = limited(Limits { max_bytes: 4 << 20, ..Limits::default() });
    assert_eq!(Jail::new().apply_as(&gzip(&tar), &options).unwrap_err().code, Code::ResourceExhausted);
    let padded = [Tar::new().file("f", "x").end(), vec![0; 5 << 20]].concat();
    assert_eq!(Jail::new().apply_as(&gzip(&padded), &options).unwrap_err().code, Code::ResourceExhausted);
    // A claimed size costs nothing before the bytes are there.
    let claim = Tar::new().raw(b"f", b'0', b"", 0o644, b"77777777777\0", b"x").end();
    assert_eq!(Jail::new().apply_as(&claim, &options).unwrap_err().code, Code::ResourceExhausted);
    let claim = Tar::new().raw(b"f", b'0', b"", 0o644, b"77777777777\0", b"x").end();
    assert_eq!(Jail::new().apply_as(&claim, &ApplyOptions::default()).unwrap_err().code, Code::DataLoss);
}

#[test]
fn a_cancelled_unpack_stops() {
    /// Gives one endless file and pulls the flag after a while.
    struct Endless<'a>(Vec<u8>, u64, &'a AtomicBool);
    impl Read for Endless<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            if self.1 == 0 {
                let n = self.0.len().min(into.len());
                into[..n].copy_from_slice(&self.0[..n]);
                self.0.drain(..n);
                self.1 = u64::from(self.0.is_empty());
                return Ok(n);
            }
            self.1 += 1;
            if self.1 == 100 {
                self.2.store(true, Ordering::Relaxed);
            }
            into.fill(0);
            Ok(into.len())
        }
    }
    let jail = Jail::new();
    let cancel = AtomicBool::new(false);
    let head = Tar::new().raw(b"f", b'0', b"", 0o644, b"77777777777\0", &[]).bytes;
    let root = std::fs::File::open(jail.root()).unwrap();
    let result = apply(std::os::fd::AsFd::as_fd(&root), Endless(head, 0, &cancel), &ApplyOptions::default(), &cancel);
    assert_eq!(result.unwrap_err().code, Code::Cancelled);
}
