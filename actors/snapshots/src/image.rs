//! Writes a tree into a read-only EROFS image (kernel documentation, filesystems/erofs.rst; `fs/erofs/erofs_fs.h`): not
//! compressed, files in whole blocks and with their holes, all else beside the inodes where it fits.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStringExt, fs::FileExt},
    },
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat},
    unistd::{Whence, lseek64},
};

use crate::{
    copy::{errno, xattrs},
    walk::{Step, Visitor, file_type, walk},
};

const BLOCK: usize = 4096;
const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Times of inodes are those of their last change of content.
const MTIME: u32 = 2;
/// Inodes of 64 bytes are the only ones that keep times and whole ids.
const INODE: usize = 64;
/// What the number of an inode counts.
const SLOT: usize = 32;
const ENTRY: usize = 12;

/// Where in an image its tree lies. The root holds nothing else: who looks for the tree finds it only where the image is
/// mounted, and not an empty one where it isn't.
pub const TREE: &CStr = c"fs";

/// Writes the tree `root` into `image`, which is empty. The caller syncs.
pub fn write(root: BorrowedFd<'_>, image: &File) -> Result<(), Errno> {
    let mut writer = Writer { image, blocks: 1, nodes: Vec::new(), open: Vec::new(), linked: HashMap::new(), seen: 0 };
    let here = openat(root, c".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let stat = fstat(&here)?;
    writer.add(&stat, here.as_fd(), Content::Directory(vec![(TREE.to_owned(), 1)]))?;
    writer.nodes[0].attributes.clear();
    writer.nodes[0].links += 1;
    writer.open.push(0);
    writer.add(&stat, here.as_fd(), Content::Directory(vec![]))?;
    writer.open.push(1);
    walk(root, &mut writer)?;
    writer.finish()
}

enum Content {
    /// Names, and the nodes that have them.
    Directory(Vec<(CString, usize)>),
    /// A file's bytes, from this block on.
    Blocks(u32),
    /// The target of a link.
    Text(Vec<u8>),
    /// The number of a device, or none.
    Device(u32),
}

struct Node {
    mode: u16,
    owner: (u32, u32),
    mtime: (i64, i64),
    links: u32,
    size: u64,
    attributes: Vec<u8>,
    content: Content,
    /// Of a directory: the one that it lies in.
    parent: usize,
}

struct Writer<'i> {
    image: &'i File,
    /// How many are taken.
    blocks: u32,
    nodes: Vec<Node>,
    /// The directories on the way to where the walk is.
    open: Vec<usize>,
    linked: HashMap<(u64, u64), usize>,
    /// The directory that was seen last.
    seen: usize,
}

impl Writer<'_> {
    fn add(&mut self, stat: &FileStat, fd: BorrowedFd<'_>, content: Content) -> Result<usize, Errno> {
        let directory = matches!(content, Content::Directory(_));
        self.nodes.push(Node {
            mode: u16::try_from(stat.st_mode).map_err(|_| Errno::EINVAL)?,
            owner: (stat.st_uid, stat.st_gid),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            // Those of a directory are counted as its directories come.
            links: if directory { 2 } else { u32::try_from(stat.st_nlink).map_err(|_| Errno::EMLINK)? },
            size: u64::try_from(stat.st_size).map_err(|_| Errno::EINVAL)?,
            attributes: attributes(&xattrs::read(fd)?)?,
            content,
            parent: self.open.last().copied().unwrap_or(0),
        });
        Ok(self.nodes.len() - 1)
    }

    /// Takes room for so many bytes; gives its first block.
    fn take(&mut self, bytes: u64) -> Result<u32, Errno> {
        let first = self.blocks;
        let count = u32::try_from(bytes.div_ceil(BLOCK as u64)).map_err(|_| Errno::EFBIG)?;
        self.blocks = first.checked_add(count).ok_or(Errno::EFBIG)?;
        Ok(first)
    }

    fn copy(&mut self, mut from: File, size: u64) -> Result<u32, Errno> {
        let first = self.take(size)?;
        let (base, size) = (u64::from(first) * BLOCK as u64, i64::try_from(size).map_err(|_| Errno::EFBIG)?);
        let mut offset = 0;
        while offset < size {
            let start = match lseek64(&from, offset, Whence::SeekData) {
                Err(Errno::ENXIO) => break,
                other => other?,
            };
            let end = lseek64(&from, start, Whence::SeekHole)?.min(size);
            from.seek(SeekFrom::Start(start.unsigned_abs())).map_err(errno)?;
            let mut to = self.image;
            to.seek(SeekFrom::Start(base + start.unsigned_abs())).map_err(errno)?;
            let length = end.abs_diff(start);
            // Between two files this is copy_file_range(2), in the kernel.
            if io::copy(&mut (&from).take(length), &mut to).map_err(errno)? != length {
                return Err(Errno::EIO);
            }
            offset = end;
        }
        Ok(first)
    }

    fn finish(mut self) -> Result<(), Errno> {
        // Directories, whose size doesn't depend on where things lie, and then where each inode lies.
        let mut nodes = std::mem::take(&mut self.nodes);
        let mut blocks = Vec::with_capacity(nodes.len());
        for (index, node) in nodes.iter_mut().enumerate() {
            let parent = node.parent;
            if let Content::Directory(entries) = &mut node.content {
                entries.extend([(c".".to_owned(), index), (c"..".to_owned(), parent)]);
                entries.sort_unstable();
                node.size = directory(entries, |_| (0, 0)).len() as u64;
            }
        }
        let mut places = Vec::with_capacity(nodes.len());
        let mut end = 0_usize;
        for node in &nodes {
            let head = INODE + node.attributes.len();
            let beside = matches!(node.content, Content::Directory(_) | Content::Text(_));
            let size = usize::try_from(node.size).map_err(|_| Errno::EFBIG)?;
            // What lies beside an inode lies in the same block.
            let inline = beside && size > 0 && head + size <= BLOCK;
            let (whole, together) = if inline { (head + size, head + size) } else { (head, INODE) };
            let mut place = end.next_multiple_of(SLOT);
            if place % BLOCK + together > BLOCK {
                place = place.next_multiple_of(BLOCK);
            }
            end = place + whole;
            places.push((place, inline));
            blocks.push(match node.content {
                Content::Blocks(first) => first,
                Content::Device(number) => number,
                _ if inline || size == 0 => 0,
                _ => self.take(node.size)?,
            });
        }
        let first = self.take(end as u64)?;
        let number = |node: usize| places[node].0 / SLOT;
        let mut inodes = vec![0_u8; end.next_multiple_of(BLOCK)];
        for (index, node) in nodes.iter().enumerate() {
            let ((place, inline), block) = (places[index], blocks[index]);
            let mut bytes = node.inode(inline, block, index)?;
            let text = match &node.content {
                Content::Directory(entries) => {
                    directory(entries, |child| (number(child) as u64, kind(nodes[child].mode)))
                }
                Content::Text(text) => text.clone(),
                Content::Blocks(_) | Content::Device(_) => Vec::new(),
            };
            if inline {
                bytes.extend_from_slice(&text);
            } else if !text.is_empty() {
                self.image.write_all_at(&text, u64::from(block) * BLOCK as u64).map_err(errno)?;
            }
            inodes[place..place + bytes.len()].copy_from_slice(&bytes);
        }
        self.image.write_all_at(&inodes, u64::from(first) * BLOCK as u64).map_err(errno)?;
        let superblock = superblock(nodes.len() as u64, self.blocks, first);
        self.image.write_all_at(&superblock, SUPERBLOCK).map_err(errno)?;
        self.image.set_len(u64::from(self.blocks) * BLOCK as u64).map_err(errno)
    }
}

impl Visitor for Writer<'_> {
    fn visit(&mut self, at: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> Result<Step, Errno> {
        let known = self.linked.get(&(stat.st_dev, stat.st_ino)).copied();
        let here = self.open.last().copied().unwrap_or(0);
        let (node, step) = match (known, file_type(stat)) {
            (Some(node), _) => (node, Step::Skip),
            (None, kind) => {
                let fd = openat(at, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
                let content = match kind {
                    SFlag::S_IFDIR => Content::Directory(vec![]),
                    SFlag::S_IFREG => {
                        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                        let file = File::from(openat(at, name, flags, Mode::empty())?);
                        Content::Blocks(self.copy(file, stat.st_size.unsigned_abs())?)
                    }
                    SFlag::S_IFLNK => Content::Text(readlinkat(at, name)?.into_vec()),
                    _ => Content::Device(device(stat.st_rdev)),
                };
                let node = self.add(stat, fd.as_fd(), content)?;
                if kind == SFlag::S_IFDIR {
                    self.nodes[here].links += 1;
                    self.seen = node;
                    (node, Step::Enter)
                } else {
                    if stat.st_nlink > 1 {
                        self.linked.insert((stat.st_dev, stat.st_ino), node);
                    }
                    (node, Step::Skip)
                }
            }
        };
        match &mut self.nodes[here].content {
            Content::Directory(entries) => entries.push((name.to_owned(), node)),
            _ => return Err(Errno::ENOTDIR),
        }
        Ok(step)
    }

    fn entered(&mut self, _name: &CStr) -> Result<(), Errno> {
        self.open.push(self.seen);
        Ok(())
    }

    fn leave(&mut self, _at: BorrowedFd<'_>) -> Result<(), Errno> {
        self.open.pop();
        Ok(())
    }
}

impl Node {
    /// `struct erofs_inode_extended` with its attributes.
    fn inode(&self, inline: bool, block: u32, index: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::with_capacity(INODE + self.attributes.len());
        let format = 1 | if inline { 2 << 1 } else { 0 };
        let words = match self.attributes.len() {
            0 => 0,
            length => 1 + (length - 12) / 4,
        };
        let size = if matches!(self.content, Content::Device(_)) { 0 } else { self.size };
        for half in [format, u16::try_from(words).map_err(|_| Errno::E2BIG)?, self.mode, 0] {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend(size.to_le_bytes());
        let serial = u32::try_from(index + 1).map_err(|_| Errno::EOVERFLOW)?;
        for word in [block, serial, self.owner.0, self.owner.1] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.mtime.0.to_le_bytes());
        bytes.extend(u32::try_from(self.mtime.1).unwrap_or(0).to_le_bytes());
        bytes.extend(self.links.to_le_bytes());
        bytes.resize(INODE, 0);
        bytes.extend_from_slice(&self.attributes);
        Ok(bytes)
    }
}

/// The blocks of a directory: in each first where its names lie and whose they are, then the names, in order.
fn directory(entries: &[(CString, usize)], node: impl Fn(usize) -> (u64, u8)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let mut room = BLOCK;
        let mut count = 0;
        for (name, _) in rest {
            let need = ENTRY + name.as_bytes().len();
            if need > room {
                break;
            }
            (room, count) = (room - need, count + 1);
        }
        let (now, later) = rest.split_at(count);
        rest = later;
        let mut offset = now.len() * ENTRY;
        for (name, child) in now {
            let (number, kind) = node(*child);
            bytes.extend(number.to_le_bytes());
            bytes.extend((offset as u16).to_le_bytes());
            bytes.extend([kind, 0]);
            offset += name.as_bytes().len();
        }
        now.iter().for_each(|(name, _)| bytes.extend_from_slice(name.as_bytes()));
    }
    bytes
}

/// `struct erofs_xattr_ibody_header` and the entries behind it; nothing for none.
fn attributes(all: &[(CString, Vec<u8>)]) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    for (name, value) in all {
        let (index, name) = match name.to_bytes() {
            b"system.posix_acl_access" => (2, &b""[..]),
            b"system.posix_acl_default" => (3, &b""[..]),
            name => [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
                .into_iter()
                .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
                .ok_or(Errno::ENOTSUP)?,
        };
        if bytes.is_empty() {
            bytes.resize(12, 0);
        }
        bytes.extend([u8::try_from(name.len()).map_err(|_| Errno::ERANGE)?, index]);
        // The largest value that Linux has, 64 KiB, doesn't go in here.
        bytes.extend(u16::try_from(value.len()).map_err(|_| Errno::E2BIG)?.to_le_bytes());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    Ok(bytes)
}

/// `struct erofs_super_block`. The root is the first inode.
fn superblock(inodes: u64, blocks: u32, first: u32) -> [u8; 128] {
    let mut bytes = [0; 128];
    let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    set(0, &MAGIC.to_le_bytes());
    set(8, &MTIME.to_le_bytes());
    set(12, &[BLOCK.trailing_zeros() as u8]);
    set(16, &inodes.to_le_bytes());
    set(36, &blocks.to_le_bytes());
    set(40, &first.to_le_bytes());
    bytes
}

/// A device's number as the kernel keeps it in 32 bits.
fn device(number: u64) -> u32 {
    let (major, minor) = (libc::major(number), libc::minor(number));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// What directories say of an inode.
fn kind(mode: u16) -> u8 {
    match SFlag::from_bits_truncate(u32::from(mode) & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => 1,
        SFlag::S_IFDIR => 2,
        SFlag::S_IFCHR => 3,
        SFlag::S_IFBLK => 4,
        SFlag::S_IFIFO => 5,
        SFlag::S_IFSOCK => 6,
        SFlag::S_IFLNK => 7,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs,
        os::{
            fd::AsRawFd,
            unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
        },
        path::Path,
    };

    use cofferdam_types::Mount;
    use nix::sys::stat::mknodat;

    use super::*;

    /// All that can be seen of a tree.
    fn seen(root: &Path, path: &str, found: &mut BTreeMap<String, String>) {
        let full = root.join(path);
        let meta = fs::symlink_metadata(&full).unwrap();
        let fd = openat(nix::fcntl::AT_FDCWD, &full, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty()).unwrap();
        let mut attributes = xattrs::read(fd.as_fd()).unwrap();
        attributes.sort();
        let kind = meta.file_type();
        let content = if kind.is_file() {
            fs::read(&full).unwrap()
        } else if kind.is_symlink() {
            fs::read_link(&full).unwrap().into_os_string().into_vec()
        } else {
            Vec::new()
        };
        let size = if kind.is_dir() { 0 } else { meta.len() };
        let links = if kind.is_char_device() || kind.is_dir() { 0 } else { meta.nlink() };
        let all = (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec(), links, meta.rdev(), size);
        let digest = cofferdam_types::Digest::of(cofferdam_types::Algorithm::Blake3, &content);
        found.insert(path.to_owned(), format!("{all:?} {digest} {attributes:?}"));
        if kind.is_dir() {
            for entry in fs::read_dir(&full).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                seen(root, &format!("{path}/{name}"), found);
            }
        }
    }

    fn mounted(image: &File) -> std::os::fd::OwnedFd {
        let source = format!("/proc/self/fd/{}", image.as_raw_fd());
        let options = vec!["ro".into()];
        let all = cofferdam_sys::mount::detached(&Mount { kind: "erofs".into(), source, options }).unwrap();
        assert_eq!(crate::walk::names(all.as_fd()).unwrap(), [TREE.to_owned()]);
        crate::walk::open_dir(all.as_fd(), TREE).unwrap()
    }

    #[test]
    fn everything_about_a_tree_is_in_its_image() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("d/e/f")).unwrap();
        fs::create_dir(tree.join("many")).unwrap();
        for n in 0..700 {
            fs::write(tree.join(format!("many/{n}-{}", "x".repeat(n % 200))), n.to_string()).unwrap();
        }
        fs::create_dir(tree.join("long")).unwrap();
        for n in 0..20 {
            fs::write(tree.join(format!("long/{n:0>255}")), vec![7; n * 1000]).unwrap();
        }
        let sparse = File::create(tree.join("d/sparse")).unwrap();
        sparse.write_at(b"end", 64 << 20).unwrap();
        for size in [0, 1, 4095, 4096, 4097, 100_000] {
            fs::write(tree.join(format!("d/{size}")), vec![9; size]).unwrap();
        }
        fs::hard_link(tree.join("d/4097"), tree.join("again")).unwrap();
        fs::hard_link(tree.join("d/4097"), tree.join("d/e/again")).unwrap();
        for length in [1, 100, 2000, 4000, 4095] {
            symlink("t".repeat(length), tree.join(format!("link-{length}"))).unwrap();
        }
        let root = File::open(&tree).unwrap();
        let mknod =
            |name: &CStr, kind, number| mknodat(&root, name, kind, Mode::from_bits_truncate(0o640), number).unwrap();
        mknod(c"fifo", SFlag::S_IFIFO, 0);
        mknod(c"socket", SFlag::S_IFSOCK, 0);
        mknod(c"whiteout", SFlag::S_IFCHR, 0);
        mknod(c"device", SFlag::S_IFBLK, libc::makedev(0xabc, 0x12345));
        chown(tree.join("d/1"), Some(70_000), Some(4_000_000_000)).unwrap();
        fs::set_permissions(tree.join("d/1"), fs::Permissions::from_mode(0o6751)).unwrap();
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o1711)).unwrap();
        for (path, name, value) in [
            ("d/e", c"trusted.overlay.opaque", &b"y"[..]),
            ("d/1", c"user.a", b"value"),
            ("d/1", c"user.empty", b""),
            ("d/4096", c"security.capability", &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("link-100", c"trusted.l", b"x"),
            ("d/100000", c"user.big", &[5; 3000]),
        ] {
            let path = CString::new(tree.join(path).to_str().unwrap()).unwrap();
            // SAFETY: both strings end in NUL and the value has as many bytes as it says.
            let rc = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
            assert_eq!(rc, 0, "{name:?}");
        }
        let early = std::time::UNIX_EPOCH - std::time::Duration::new(1_000_000, 5);
        File::open(tree.join("d/e/f")).unwrap().set_modified(early).unwrap();

        let image = File::options().create_new(true).read(true).write(true).open(dir.path().join("image")).unwrap();
        write(root.as_fd(), &image).unwrap();
        assert!(image.metadata().unwrap().blocks() < 16_384, "holes are kept");
        drop(image);
        let image = File::open(dir.path().join("image")).unwrap();
        let mount = mounted(&image);
        let (mut want, mut have) = (BTreeMap::new(), BTreeMap::new());
        seen(&tree, ".", &mut want);
        seen(Path::new(&format!("/proc/self/fd/{}", mount.as_raw_fd())), ".", &mut have);
        assert_eq!(want.keys().collect::<Vec<_>>(), have.keys().collect::<Vec<_>>());
        for (path, what) in &want {
            assert_eq!(Some(what), have.get(path), "{path}");
        }
        let top = format!("/proc/self/fd/{}", mount.as_raw_fd());
        let ino = |path: &str| fs::symlink_metadata(format!("{top}/{path}")).unwrap().ino();
        assert_eq!((ino("again"), ino("d/e/again")), (ino("d/4097"), ino("d/4097")));
    }

    #[test]
    fn an_empty_tree_has_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let image = File::options().create_new(true).read(true).write(true).open(dir.path().join("image")).unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        write(File::open(dir.path().join("tree")).unwrap().as_fd(), &image).unwrap();
        drop(image);
        let mount = mounted(&File::open(dir.path().join("image")).unwrap());
        assert_eq!(fs::read_dir(format!("/proc/self/fd/{}", mount.as_raw_fd())).unwrap().count(), 0);
    }
}
