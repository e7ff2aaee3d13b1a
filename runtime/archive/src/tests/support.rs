//! A tar writer that writes whatever it is told, a root with canaries around it, and a comparison of trees.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use cofferdam_types::{Code, Result};

use crate::{Applied, ApplyOptions, apply, settle};

pub(super) const TIME: u64 = 1_600_000_000;

/// The full count, or that of every day.
pub(super) fn count(long: usize, short: usize) -> usize {
    if std::env::var_os("COFFERDAM_LONG").is_some() { long } else { short }
}

#[derive(Clone)]
pub(super) struct Tar {
    pub(super) bytes: Vec<u8>,
    pub(super) uid: u32,
}

impl Tar {
    pub(super) fn new() -> Tar {
        Tar { bytes: Vec::new(), uid: 0 }
    }

    /// A header with every field given.
    pub(super) fn raw(mut self, name: &[u8], flag: u8, link: &[u8], mode: u32, size: &[u8], data: &[u8]) -> Tar {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        block[108..115].copy_from_slice(format!("{:07o}", self.uid).as_bytes());
        block[116..123].copy_from_slice(format!("{:07o}", self.uid).as_bytes());
        block[124..124 + size.len()].copy_from_slice(size);
        block[136..147].copy_from_slice(format!("{TIME:011o}").as_bytes());
        block[156] = flag;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        self.sum(&mut block);
        self.bytes.extend_from_slice(&block);
        self.data(data)
    }

    fn sum(&self, block: &mut [u8; 512]) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }

    /// Changes the last header.
    pub(super) fn patch(mut self, at: usize, bytes: &[u8]) -> Tar {
        let start = self.bytes.len() - 512;
        let mut block: [u8; 512] = self.bytes[start..].try_into().unwrap();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        self.sum(&mut block);
        self.bytes[start..].copy_from_slice(&block);
        self
    }

    pub(super) fn data(mut self, data: &[u8]) -> Tar {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    fn entry(self, name: &[u8], flag: u8, link: &[u8], mode: u32, data: &[u8]) -> Tar {
        let size = format!("{:011o}\0", data.len());
        let long = |tar: Tar, flag, text: &[u8]| {
            let body = [text, b"\0"].concat();
            tar.raw(b"././@LongLink", flag, b"", 0, format!("{:011o}\0", body.len()).as_bytes(), &body)
        };
        let tar = if name.len() > 99 { long(self, b'L', name) } else { self };
        let tar = if link.len() > 99 { long(tar, b'K', link) } else { tar };
        tar.raw(&name[..name.len().min(99)], flag, &link[..link.len().min(99)], mode, size.as_bytes(), data)
    }

    pub(super) fn file(self, name: &str, data: &str) -> Tar {
        self.entry(name.as_bytes(), b'0', b"", 0o644, data.as_bytes())
    }

    pub(super) fn file_mode(self, name: &str, data: &str, mode: u32) -> Tar {
        self.entry(name.as_bytes(), b'0', b"", mode, data.as_bytes())
    }

    pub(super) fn named(self, name: &[u8]) -> Tar {
        self.entry(name, b'0', b"", 0o644, b"x")
    }

    pub(super) fn dir(self, name: &str, mode: u32) -> Tar {
        self.entry(name.as_bytes(), b'5', b"", mode, b"")
    }

    pub(super) fn symlink(self, target: &str, name: &str) -> Tar {
        self.entry(name.as_bytes(), b'2', target.as_bytes(), 0o777, b"")
    }

    pub(super) fn link(self, target: &str, name: &str) -> Tar {
        self.entry(name.as_bytes(), b'1', target.as_bytes(), 0o644, b"")
    }

    pub(super) fn special(self, name: &str, flag: u8, mode: u32, major: u32, minor: u32) -> Tar {
        self.entry(name.as_bytes(), flag, b"", mode, b"")
            .patch(329, format!("{major:07o}\0").as_bytes())
            .patch(337, format!("{minor:07o}\0").as_bytes())
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.pax_body(b'x', &body)
    }

    pub(super) fn pax_body(self, flag: u8, body: &[u8]) -> Tar {
        self.raw(b"pax", flag, b"", 0o644, format!("{:011o}\0", body.len()).as_bytes(), body)
    }

    pub(super) fn owner(mut self, uid: u32) -> Tar {
        self.uid = uid;
        self
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

pub(super) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A root, and beside it (and at the absolute place that its links name) what must not change.
pub(super) struct Jail {
    pub(super) dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Jail {
    pub(super) fn new() -> Jail {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root")).unwrap();
        fs::create_dir_all(dir.path().join("outside/sub")).unwrap();
        fs::write(dir.path().join("outside/canary"), "alive").unwrap();
        fs::write(dir.path().join("outside/sub/canary"), "alive").unwrap();
        let before = snapshot(&dir.path().join("outside"));
        Jail { dir, before }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(super) fn outside(&self) -> String {
        self.dir.path().join("outside").to_str().unwrap().to_owned()
    }

    pub(super) fn apply(&self, tar: Tar) -> Result<Applied> {
        self.apply_as(&tar.end(), &ApplyOptions::default())
    }

    pub(super) fn apply_as(&self, bytes: &[u8], options: &ApplyOptions) -> Result<Applied> {
        let applied = apply_to(&self.root(), bytes, options);
        self.unharmed();
        applied
    }

    pub(super) fn refuses(&self, tar: Tar, code: Code) {
        match self.apply(tar) {
            Err(error) if error.code == code => {}
            other => panic!("expected {code:?}, got {other:?}"),
        }
    }

    /// Nothing outside the root changed: not content, owner, mode, time, link count or attributes.
    pub(super) fn unharmed(&self) {
        assert_eq!(snapshot(&self.dir.path().join("outside")), self.before);
        let mut names: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["outside", "root"]);
    }

    pub(super) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(super) fn meta(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(super) fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.root().join(path)).is_ok()
    }

    pub(super) fn same(&self, one: &str, other: &str) {
        assert_eq!(self.meta(one).ino(), self.meta(other).ino(), "{one} and {other}");
    }

    pub(super) fn write(&self, path: &str, data: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
}

pub(super) fn apply_to(root: &Path, bytes: &[u8], options: &ApplyOptions) -> Result<Applied> {
    apply(File::open(root).unwrap().as_fd(), bytes, options, &AtomicBool::new(false))
}

pub(super) fn settle_on(layer: &Path, parents: &[PathBuf], applied: &Applied) -> Result<()> {
    let parents: Vec<File> = parents.iter().map(|path| File::open(path).unwrap()).collect();
    let parents: Vec<_> = parents.iter().map(AsFd::as_fd).collect();
    settle(File::open(layer).unwrap().as_fd(), &parents, applied, &AtomicBool::new(false))
}

/// All that there is to know of a tree but directory sizes and the times of directories that nobody set.
pub(super) fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    describe(root, root, &mut found);
    found
}

fn describe(root: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            let time = if meta.mtime() == TIME.cast_signed() { "set" } else { "any" };
            format!("dir {time}")
        } else if kind.is_symlink() {
            format!("link {} {}", fs::read_link(&path).unwrap().display(), meta.mtime())
        } else if kind.is_file() {
            let mut data = fs::read(&path).unwrap();
            data.truncate(64);
            format!("file {} {} {:?}", meta.mtime(), meta.size(), String::from_utf8_lossy(&data))
        } else {
            format!("special {} {:x} {}", kind.is_fifo(), meta.rdev(), meta.mtime())
        };
        let what = format!("{what} {:o} {}:{} {:?}", meta.mode(), meta.uid(), meta.gid(), xattrs(&path));
        found.insert(path.strip_prefix(root).unwrap().to_owned(), what);
        if kind.is_dir() {
            describe(root, &path, found);
        }
    }
}

pub(super) fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut list = vec![0u8; 65536];
    // SAFETY: the kernel writes at most the length of the buffer.
    let n = unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    list.truncate(usize::try_from(n).unwrap_or(0));
    let names = list.split(|b| *b == 0).filter(|name| !name.is_empty());
    names
        .filter(|name| *name != b"security.selinux" && !name.starts_with(b"trusted.overlay."))
        .map(|name| {
            let c = std::ffi::CString::new(name).unwrap();
            let mut value = vec![0u8; 65536];
            // SAFETY: the kernel writes at most the length of the buffer.
            let n = unsafe { libc::lgetxattr(path.as_ptr(), c.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
            value.truncate(usize::try_from(n).unwrap());
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The differences of two trees, empty if there are none.
pub(super) fn differences(one: &Path, other: &Path) -> Vec<String> {
    let (one, other) = (snapshot(one), snapshot(other));
    let keys: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
    keys.into_iter()
        .filter(|key| one.get(*key) != other.get(*key))
        .map(|key| format!("{}: {:?} against {:?}", key.display(), one.get(key), other.get(key)))
        .collect()
}
