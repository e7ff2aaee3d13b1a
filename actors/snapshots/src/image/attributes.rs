//! Extended attributes in an image. They are read twice: for their length, on which it depends where inodes lie, and to be
//! written. Kept meanwhile they would fill the memory.

use std::{
    collections::HashMap,
    ffi::CStr,
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
};

use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    sys::stat::{FileStat, SFlag, fstat},
};

use super::{Content, Id, Node, Place};
use crate::{
    copy::{errno, hold, xattrs},
    walk::{Step, Visitor, file_type, walk},
};

pub const CHANGED: &str = "changed while it was put into the image of a layer: try again when nothing writes to it";

/// Those of a file, in the form that they have behind its inode; nothing for none.
pub fn read(fd: BorrowedFd<'_>, place: &mut Place) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    for name in xattrs::names(fd)? {
        // How btrfs is to store a file: of no meaning elsewhere.
        if name.to_bytes().starts_with(b"btrfs.") {
            continue;
        }
        let value = match xattrs::value(fd, &name) {
            // It was removed meanwhile.
            Err(Errno::ENODATA) => continue,
            other => other,
        };
        if let Err(e) = value.and_then(|value| encode(&mut bytes, &name, &value)) {
            let why = format!(
                "its extended attribute {} can't be put into the image of a layer: {}: remove it",
                name.to_string_lossy(),
                e.desc()
            );
            return Err(place.refuse(Error::failed_precondition, why));
        }
    }
    Ok(bytes)
}

/// Writes those of the tree `root` to where they have their room: `at` says it of a node. `pending` are the nodes that have
/// any.
pub fn write(
    root: BorrowedFd<'_>,
    image: &File,
    pending: HashMap<Id, usize>,
    nodes: &[Node],
    at: impl Fn(usize) -> u64,
) -> Result<()> {
    let mut again = Again { image, pending, nodes, at, place: Place::default() };
    fstat(root)
        .and_then(|stat| again.put(root, &stat))
        .and_then(|()| if again.pending.is_empty() { Ok(()) } else { walk(root, &mut again) })
        .map_err(|e| again.place.fault(e))?;
    match again.pending.into_values().min() {
        Some(gone) => Err(Error::failed_precondition("file", path(nodes, gone), CHANGED)),
        None => Ok(()),
    }
}

struct Again<'a, F> {
    image: &'a File,
    pending: HashMap<Id, usize>,
    nodes: &'a [Node],
    at: F,
    place: Place,
}

impl<F: Fn(usize) -> u64> Again<'_, F> {
    fn put(&mut self, fd: BorrowedFd<'_>, stat: &FileStat) -> Result<(), Errno> {
        let Some(node) = self.pending.remove(&(stat.st_dev, stat.st_ino)) else { return Ok(()) };
        let bytes = read(fd, &mut self.place)?;
        if bytes.len() != self.nodes[node].attributes {
            return Err(self.place.refuse(Error::failed_precondition, CHANGED));
        }
        self.image.write_all_at(&bytes, (self.at)(node)).map_err(errno)
    }
}

impl<F: Fn(usize) -> u64> Visitor for Again<'_, F> {
    fn visit(&mut self, at: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> Result<Step, Errno> {
        self.place.at(name);
        if self.pending.contains_key(&(stat.st_dev, stat.st_ino))
            && let Some((handle, stat)) = hold(at, name)?
        {
            self.put(handle.as_fd(), &stat)?;
        }
        Ok(if file_type(stat) == SFlag::S_IFDIR { Step::Enter } else { Step::Skip })
    }

    fn entered(&mut self, name: &CStr) -> Result<(), Errno> {
        self.place.down(name);
        Ok(())
    }

    fn leave(&mut self, _at: BorrowedFd<'_>) -> Result<(), Errno> {
        self.place.up();
        Ok(())
    }
}

/// Where a node was found, below the tree's root, which is the second.
fn path(nodes: &[Node], mut node: usize) -> String {
    let mut path = String::new();
    while node > 1 {
        let parent = nodes[node].parent;
        if let Content::Directory(entries) = &nodes[parent].content
            && let Some((name, _)) = entries.iter().find(|(_, child)| *child == node)
        {
            path = format!("/{}{path}", name.to_string_lossy());
        }
        node = parent;
    }
    path
}

/// Puts one more behind those that are there, as entries behind a `struct erofs_xattr_ibody_header`.
fn encode(bytes: &mut Vec<u8>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    let (index, name) = match name.to_bytes() {
        b"system.posix_acl_access" => (2, &b""[..]),
        b"system.posix_acl_default" => (3, &b""[..]),
        name => [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
            .into_iter()
            .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
            .ok_or(Errno::ENOTSUP)?,
    };
    let name_length = u8::try_from(name.len()).map_err(|_| Errno::ERANGE)?;
    // The largest value that Linux has, 64 KiB, doesn't go in here.
    let length = u16::try_from(value.len()).map_err(|_| Errno::E2BIG)?;
    if bytes.is_empty() {
        bytes.resize(12, 0);
    }
    bytes.extend([name_length, index]);
    bytes.extend(length.to_le_bytes());
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use cofferdam_sys::xattr;
    use cofferdam_types::Code;

    use super::*;
    use crate::{
        contract::Disk,
        image::{MOST_ATTRIBUTES, Writer},
    };

    /// A tree with attributes, and a writer that has seen it and has room for so many bytes of them.
    fn attributed<'i>(dir: &Path, image: &'i File, room: u64) -> (File, Writer<'i>, Result<(), Errno>) {
        let tree = dir.join("tree");
        fs::create_dir_all(tree.join("d/e")).unwrap();
        for name in ["d/e/f", "d/g"] {
            let file = File::create(tree.join(name)).unwrap();
            xattr::set(&file, c"user.a", &[7; 1000]).unwrap();
        }
        let root = File::open(tree).unwrap();
        let mut writer = Writer { room, ..Writer::new(image) };
        let taken = writer.take_in(root.as_fd());
        (root, writer, taken)
    }

    #[test]
    fn attributes_are_not_kept_and_one_that_changed_meanwhile_is_told() {
        for (path, change) in [
            ("/d/e/f", |tree| {
                let file = File::open(tree.join("d/e/f")).unwrap();
                xattr::set(&file, c"user.b", b"").unwrap();
            }),
            ("/d/g", |tree| fs::remove_file(tree.join("d/g")).unwrap()),
            ("/d/e/f", |tree| fs::remove_dir_all(tree.join("d/e")).unwrap()),
        ] as [(&str, fn(&Path)); 3]
        {
            let (dir, image) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
            let (root, writer, taken) = attributed(dir.path(), &image, MOST_ATTRIBUTES);
            taken.unwrap();
            change(&dir.path().join("tree"));
            let error = writer.finish(root.as_fd()).unwrap_err();
            assert_eq!((error.code, error.id.as_str()), (Code::FailedPrecondition, path), "{error}");
        }
        // What only lies elsewhere by now is found again.
        let (dir, image) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
        let (root, writer, taken) = attributed(dir.path(), &image, MOST_ATTRIBUTES);
        taken.unwrap();
        fs::rename(dir.path().join("tree/d/e"), dir.path().join("tree/other")).unwrap();
        writer.finish(root.as_fd()).unwrap();
    }

    /// As a root on btrfs has it: there `btrfs.compression` would fail each commit.
    #[test]
    fn what_only_btrfs_knows_is_left_out_and_what_has_no_place_is_named() {
        let disk = Disk::btrfs();
        let (dir, image) = (tempfile::tempdir_in(disk.path()).unwrap(), tempfile::tempfile().unwrap());
        fs::create_dir(dir.path().join("tree")).unwrap();
        let file = File::create(dir.path().join("tree/compressed")).unwrap();
        xattr::set(&file, c"btrfs.compression", b"zstd").unwrap();
        xattr::set(&file, c"user.kept", b"x").unwrap();
        drop(file);
        let (root, writer, taken) = attributed(dir.path(), &image, MOST_ATTRIBUTES);
        taken.unwrap();
        writer.finish(root.as_fd()).unwrap();

        let (dir, image) = (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempfile().unwrap());
        let file = dir.path().join("tree/d/large");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        xattr::set(File::create(file).unwrap(), c"user.large", &[0; 65_536]).unwrap();
        let (_root, mut writer, taken) = attributed(dir.path(), &image, MOST_ATTRIBUTES);
        let error = writer.place.fault(taken.unwrap_err());
        assert_eq!((error.code, error.id.as_str()), (Code::FailedPrecondition, "/d/large"), "{error}");
        assert!(error.message.contains("user.large"), "{error}");
        let unknown = encode(&mut Vec::new(), c"other.name", b"");
        assert_eq!(unknown.unwrap_err(), Errno::ENOTSUP);
    }

    #[test]
    fn attributes_have_a_bound() {
        let (dir, image) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
        let (_root, mut writer, taken) = attributed(dir.path(), &image, 1500);
        let error = writer.place.fault(taken.unwrap_err());
        assert_eq!(error.code, Code::ResourceExhausted, "{error}");
        assert!(["/d/e/f", "/d/g"].contains(&error.id.as_str()), "{error}");
    }
}
