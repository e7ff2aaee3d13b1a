//! What a layer must keep, on random trees: applied to the one tree it makes the other, to the last attribute.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    os::{
        fd::AsFd as _,
        unix::{
            ffi::OsStringExt as _,
            fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink},
        },
    },
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use cofferdam_archive::{ApplyOptions, apply};
use cofferdam_sys::xattr;
use cofferdam_types::Mount;
use nix::{
    fcntl::AT_FDCWD,
    sys::{
        stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat},
        time::TimeSpec,
    },
};

use crate::create::{Trees, create};

/// xorshift64*: a sequence that a seed repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// All that there is to say of something in a tree.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    /// Of a directory none: it changes with each name in it, and alone it isn't worth an entry.
    time: Option<(i64, i64)>,
    bytes: Vec<u8>,
    attributes: Vec<(CString, Vec<u8>)>,
    /// The first name of the same file.
    same_as: Option<PathBuf>,
}

fn all(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                left.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

pub(crate) fn picture(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut first = BTreeMap::new();
    let see = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let bytes = match () {
            () if meta.is_file() => fs::read(&path).unwrap(),
            () if meta.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_vec(),
            () => Vec::new(),
        };
        let mut attributes = Vec::new();
        if meta.is_file() || meta.is_dir() {
            let file = fs::File::open(&path).unwrap();
            let mine =
                |name: &CString| name.as_bytes().starts_with(b"user.") || name.as_bytes() == b"security.capability";
            for name in xattr::list(&file).unwrap().into_iter().filter(mine) {
                let value = xattr::get(&file, &name).unwrap().unwrap();
                attributes.push((name, value));
            }
            attributes.sort();
        }
        let same_as = first.entry(meta.ino()).or_insert_with(|| name.clone()).clone();
        let seen = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            device: meta.rdev(),
            time: (!meta.is_dir()).then(|| (meta.mtime(), meta.mtime_nsec())),
            bytes,
            attributes,
            same_as: (same_as != name).then_some(same_as),
        };
        (name, seen)
    };
    all(root).into_iter().map(see).collect()
}

/// Names that a shell or a tar could stumble over, one that is longer than a header has room for, and one that is no UTF-8.
fn name(random: &mut Random) -> PathBuf {
    let long = "long-".repeat(30);
    let names: [&[u8]; 10] =
        [b"a", b"b", b"c", b"d", b"-rf", b" blank ", b"line\nend", b"\xff\xfe", b".hidden", long.as_bytes()];
    PathBuf::from(std::ffi::OsString::from_vec(random.of(&names).to_vec()))
}

fn place(random: &mut Random, root: &Path) -> PathBuf {
    let mut dirs: Vec<PathBuf> = all(root).into_iter().filter(|p| fs::symlink_metadata(p).unwrap().is_dir()).collect();
    dirs.push(root.to_owned());
    random.of(&dirs).clone()
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Mode, owner, time and attributes by chance.
fn dress(random: &mut Random, path: &Path) {
    let meta = fs::symlink_metadata(path).unwrap();
    let (uid, gid) = (*random.of(&[0, 1, 1000, 4_000_000]), *random.of(&[0, 5, 100_000]));
    lchown(path, Some(uid), Some(gid)).unwrap();
    if meta.is_file() || meta.is_dir() {
        let file = fs::File::open(path).unwrap();
        if random.below(3) == 0 {
            let value = vec![random.below(256) as u8; random.below(40) as usize];
            let key = if random.below(2) == 0 { c"user.note" } else { c"user.odd key" };
            xattr::set(&file, key, &value).unwrap();
        }
        if meta.is_file() && random.below(4) == 0 {
            // cap_net_raw, version 2.
            let value = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            xattr::set(&file, c"security.capability", &value).unwrap();
        }
    }
    if !meta.is_symlink() {
        let mode = *random.of(&[0o644, 0o4755, 0o2711, 0o1777, 0o000, 0o700]);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let seconds = *random.of(&[0, 1, 1_500_000_000, 1_500_000_001, 9_000_000_000]);
    let time = TimeSpec::new(seconds, *random.of(&[0, 1, 500_000_000, 999_999_999]));
    utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

fn step(random: &mut Random, root: &Path) {
    let path = place(random, root).join(name(random));
    let there = all(root);
    match random.below(12) {
        0 | 1 => remove(&path),
        2 if !there.is_empty() => {
            let path = random.of(&there);
            dress(random, path);
            return;
        }
        // The same directory again, which hides what was in it.
        3 => {
            let dirs: Vec<_> = there.iter().filter(|p| fs::symlink_metadata(p).unwrap().is_dir()).collect();
            if let Some(dir) = (!dirs.is_empty()).then(|| random.of(&dirs)) {
                fs::remove_dir_all(dir).unwrap();
                fs::create_dir(dir).unwrap();
                dress(random, dir);
            }
            return;
        }
        4 => {
            let files: Vec<_> = there.iter().filter(|p| !fs::symlink_metadata(p).unwrap().is_dir()).collect();
            let free = fs::symlink_metadata(&path).is_err();
            if let Some(from) = (free && !files.is_empty()).then(|| random.of(&files)) {
                nix::unistd::linkat(AT_FDCWD, from.as_path(), AT_FDCWD, &path, nix::fcntl::AtFlags::empty()).unwrap();
            }
            return;
        }
        kind => {
            remove(&path);
            match kind {
                5 => symlink(
                    random.of(&["a", "/etc/passwd", "../..", "no\nwhere", "./a//b/", &"far/".repeat(60)]),
                    &path,
                )
                .unwrap(),
                6 => {
                    let kind = *random.of(&[SFlag::S_IFIFO, SFlag::S_IFCHR, SFlag::S_IFBLK]);
                    mknod(&path, kind, Mode::S_IRUSR, if kind == SFlag::S_IFIFO { 0 } else { 0x103 }).unwrap();
                }
                7 | 8 => fs::create_dir(&path).unwrap(),
                _ => fs::write(&path, vec![random.below(4) as u8; random.below(3000) as usize]).unwrap(),
            }
        }
    }
    if fs::symlink_metadata(&path).is_ok() {
        dress(random, &path);
    }
}

fn grow(seed: u64, steps: u64, root: &Path) {
    let mut random = Random(seed | 1);
    for _ in 0..steps {
        step(&mut random, root);
    }
}

pub(crate) fn layer(lower: &Path, upper: &Path, overlay: bool) -> Vec<u8> {
    let (lower, upper) = (fs::File::open(lower).unwrap(), fs::File::open(upper).unwrap());
    let mut out = Vec::new();
    create(&Trees { lower: Some(lower.as_fd()), upper: upper.as_fd(), overlay }, &mut out, &|| Ok(())).unwrap();
    out
}

pub(crate) fn put(root: &Path, tar: &[u8]) {
    let root = fs::File::open(root).unwrap();
    apply(root.as_fd(), tar, &ApplyOptions::default(), &AtomicBool::new(false)).unwrap();
}

pub(crate) fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").args(["-a", "--"]).args([from, to]).status().unwrap();
    assert!(copied.success());
}

fn seed() -> u64 {
    std::env::var("COFFERDAM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_260_101)
}

#[test]
fn so_it_is_with_what_overlayfs_keeps_of_changes() {
    for seed in seed()..seed() + 20 {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["old", "upper", "work"] {
            fs::create_dir(at(name)).unwrap();
        }
        grow(seed, 40, &at("old"));
        copy(&at("old"), &at("kept"));
        let option = |key: &str, name: &str| format!("{key}={}", at(name).display());
        let options = vec![option("lowerdir", "old"), option("upperdir", "upper"), option("workdir", "work")];
        let mount = Mount { kind: "overlay".into(), source: "overlay".into(), options };
        let mount = cofferdam_sys::mount::detached(&mount).unwrap();
        let whole = PathBuf::from(format!("/proc/self/fd/{}/.", std::os::fd::AsRawFd::as_raw_fd(&mount)));
        grow(seed ^ 0x5eed, 25, &whole);
        put(&at("kept"), &layer(&at("old"), &at("upper"), true));
        assert_eq!(picture(&at("kept")), picture(&whole), "COFFERDAM_SEED={seed}");
        assert_eq!(layer(&at("kept"), &whole, false), vec![0; 1024], "COFFERDAM_SEED={seed}");
    }
}

#[test]
fn what_was_compared_and_is_applied_is_the_same_tree() {
    for seed in seed()..seed() + 30 {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("old")).unwrap();
        grow(seed, 40, &at("old"));
        copy(&at("old"), &at("new"));
        grow(seed ^ 0x5eed, 25, &at("new"));
        let tar = layer(&at("old"), &at("new"), false);
        let wanted = picture(&at("new"));
        put(&at("old"), &tar);
        assert_eq!(picture(&at("old")), wanted, "COFFERDAM_SEED={seed}");
        // There is nothing left to say.
        assert_eq!(layer(&at("old"), &at("new"), false), vec![0; 1024], "COFFERDAM_SEED={seed}");
    }
}
