//! All that can be seen of a directory tree, and in what two trees differ.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use cofferdam_types::{Algorithm, Digest};

/// Paths from the root (which is the empty path) to what is there.
pub type Tree = BTreeMap<PathBuf, Entry>;

/// What is at a path. Directory sizes and link counts are the file system's own business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path, in order, of the same file.
    pub first: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File { size: u64, content: Digest },
    Symlink(PathBuf),
    Fifo,
    Socket,
    Device { block: bool, number: (u32, u32) },
}

impl Kind {
    /// A file with these bytes.
    pub fn file(content: &[u8]) -> Kind {
        Kind::File { size: content.len() as u64, content: Digest::of(Algorithm::Blake3, content) }
    }
}

/// The tree at `root`, which stays on one file system.
pub fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    describe(root, Path::new(""), &mut found, &mut HashMap::new());
    found
}

fn describe(root: &Path, path: &Path, found: &mut Tree, files: &mut HashMap<(u64, u64), PathBuf>) {
    let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) };
    // The root itself may be named through /proc/self/fd, which is a link.
    let meta = if path.as_os_str().is_empty() { fs::metadata(&full) } else { fs::symlink_metadata(&full) };
    let meta = meta.unwrap_or_else(|e| panic!("{}: {e}", full.display()));
    let kind = meta.file_type();
    let device = || {
        let number = (nix::sys::stat::major(meta.rdev()) as u32, nix::sys::stat::minor(meta.rdev()) as u32);
        Kind::Device { block: kind.is_block_device(), number }
    };
    let what = match kind {
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => Kind::Symlink(fs::read_link(&full).unwrap()),
        kind if kind.is_fifo() => Kind::Fifo,
        kind if kind.is_socket() => Kind::Socket,
        kind if kind.is_file() => {
            let content = fs::read(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
            Kind::file(&content)
        }
        _ => device(),
    };
    let first = if kind.is_dir() {
        path.to_owned()
    } else {
        files.entry((meta.dev(), meta.ino())).or_insert_with(|| path.to_owned()).clone()
    };
    let entry = Entry {
        mode: if kind.is_symlink() { 0o777 } else { meta.mode() & 0o7777 },
        owner: (meta.uid(), meta.gid()),
        // A runtime makes mount points that are missing in the root, and that touches its time.
        mtime: if path.as_os_str().is_empty() { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) },
        xattrs: xattrs(&full, path.as_os_str().is_empty()),
        first,
        kind: what,
    };
    found.insert(path.to_owned(), entry);
    if !kind.is_dir() {
        return;
    }
    let mut names: Vec<_> = fs::read_dir(&full).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        describe(root, &path.join(name), found, files);
    }
}

/// What an image can have put there. Labels of the host's own security modules are none of that.
fn xattrs(path: &Path, follow: bool) -> BTreeMap<String, Vec<u8>> {
    let text = if follow { path.join(".") } else { path.to_owned() };
    let path = CString::new(text.as_os_str().as_bytes()).unwrap();
    let mut list = vec![0u8; 65536];
    // SAFETY: the kernel writes at most the length of the buffer.
    let n = unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    list.truncate(usize::try_from(n).unwrap_or(0));
    let names = list.split(|b| *b == 0).filter(|name| !name.is_empty() && *name != b"security.selinux");
    names
        .map(|name| {
            let key = CString::new(name).unwrap();
            let mut value = vec![0u8; 65536];
            // SAFETY: the kernel writes at most the length of the buffer.
            let n = unsafe { libc::lgetxattr(path.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
            value.truncate(usize::try_from(n).unwrap());
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

/// A directory that no layer names, and one in which such a one was made, may be as old as the unpacking. What layers
/// say of directories is whole seconds, which a moment of unpacking is not.
fn undated(entry: &Entry) -> bool {
    entry.kind == Kind::Directory && entry.mtime.1 != 0
}

fn same(ours: Option<&Entry>, theirs: Option<&Entry>) -> bool {
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return false };
    if undated(theirs) {
        return *theirs == Entry { mtime: theirs.mtime, ..ours.clone() };
    }
    ours == theirs
}

/// In what the trees differ, for people; empty where they are equal.
pub fn differences(ours: &Tree, theirs: &Tree) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let differ = paths.into_iter().filter(|path| !same(ours.get(*path), theirs.get(*path)));
    differ.map(|path| format!("/{}:\n  {:?}\n  {:?}", path.display(), ours.get(path), theirs.get(path))).collect()
}

/// Fails with what differs.
pub fn assert_same(what: &str, ours: &Tree, theirs: &Tree) {
    assert!(theirs.len() > 5, "{what}: hardly anything to compare with");
    let undated = theirs.values().filter(|entry| undated(entry)).count();
    assert!(undated < 20, "{what}: {undated} directories have no time that a layer gave them");
    let found = differences(ours, theirs);
    assert!(
        found.is_empty(),
        "{what}: {} differences (ours first):\n{}",
        found.len(),
        found[..found.len().min(20)].join("\n")
    );
}
