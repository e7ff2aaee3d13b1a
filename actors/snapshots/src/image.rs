//! Writes a tree into a read-only EROFS image (kernel documentation, filesystems/erofs.rst; `fs/erofs/erofs_fs.h`): not
//! compressed, files in whole blocks and with their holes, all else beside the inodes where it fits.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStringExt, fs::FileExt},
    },
};

use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::readlinkat,
    sys::stat::{FileStat, SFlag, fstat},
    unistd::{Whence, lseek64},
};

use crate::{
    copy::{errno, hold, open_file},
    walk::{Step, Visitor, file_type, walk},
};

const SUPERBLOCK: u64 = 1024;
/// Inodes of 64 bytes are the only ones that keep times and whole ids.
const INODE: usize = 64;
/// What the number of an inode counts.
const SLOT: usize = 32;
/// Up to which length the target of a link is kept, and put beside its inode.
const SHORT: usize = 255;
/// All attributes of one layer together.
const MOST_ATTRIBUTES: u64 = 1 << 30;
const TOO_MUCH: &str = "is where the extended attributes of a layer become more than 1 GiB: remove some";

/// Device and inode.
type Id = (u64, u64);

mod attributes;
mod format;
mod place;

use format::{BLOCK, device, directory, kind, superblock};
use place::Place;

/// Where in an image its tree lies. The root holds nothing else: who looks for the tree finds it only where the image is
/// mounted, and not an empty one where it isn't.
pub const TREE: &CStr = c"fs";

/// Writes the tree `root` into `image`, which is empty. The caller syncs.
pub fn write(root: BorrowedFd<'_>, image: &File) -> Result<()> {
    let mut writer = Writer::new(image);
    writer.take_in(root).map_err(|e| writer.place.fault(e))?;
    writer.finish(root)
}

enum Content {
    /// Names, and the nodes that have them.
    Directory(Vec<(CString, usize)>),
    /// The bytes of a file, or of the target of a link, from this block on.
    Blocks(u32),
    /// The target of a link that is short.
    Text(Vec<u8>),
    /// The number of a device, or none.
    Device(u32),
}

/// What is kept of a file until all of the tree was seen. With its name, where it lies, and its number if that is needed
/// to know it again, that is some 250 bytes: attributes are read again instead, and the target of a link is short.
struct Node {
    mode: u16,
    owner: (u32, u32),
    mtime: (i64, i64),
    links: u32,
    size: u64,
    /// How many bytes they have.
    attributes: usize,
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
    linked: HashMap<Id, usize>,
    /// The directory that was seen last.
    seen: usize,
    /// Those that have attributes.
    attributed: HashMap<Id, usize>,
    /// How many bytes of attributes there may still come.
    room: u64,
    place: Place,
}

/// What has been written of a tree, and what it was made of.
struct Inodes {
    nodes: Vec<Node>,
    /// Where each begins, counted from that of the root, and whether its content lies behind it.
    places: Vec<(usize, bool)>,
    /// The block that they begin in.
    first: u32,
}

impl<'i> Writer<'i> {
    fn new(image: &'i File) -> Writer<'i> {
        Writer {
            image,
            blocks: 1,
            nodes: Vec::new(),
            open: Vec::new(),
            linked: HashMap::new(),
            seen: 0,
            attributed: HashMap::new(),
            room: MOST_ATTRIBUTES,
            place: Place::default(),
        }
    }

    fn take_in(&mut self, root: BorrowedFd<'_>) -> Result<(), Errno> {
        self.begin(root)?;
        walk(root, self)
    }

    /// The image's own root, and the tree's in it.
    fn begin(&mut self, root: BorrowedFd<'_>) -> Result<(), Errno> {
        let stat = fstat(root)?;
        self.nodes.push(Node {
            mode: u16::try_from(stat.st_mode).map_err(|_| Errno::EINVAL)?,
            owner: (stat.st_uid, stat.st_gid),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            links: 3,
            size: 0,
            attributes: 0,
            content: Content::Directory(vec![(TREE.to_owned(), 1)]),
            parent: 0,
        });
        self.open.push(0);
        let tree = self.add(&stat, root, Content::Directory(vec![]), 0)?;
        self.open.push(tree);
        Ok(())
    }

    /// The size is that of the content, which may have changed since it was looked at.
    fn add(&mut self, stat: &FileStat, fd: BorrowedFd<'_>, content: Content, size: u64) -> Result<usize, Errno> {
        let directory = matches!(content, Content::Directory(_));
        let attributes = attributes::read(fd, &mut self.place)?.len();
        if attributes > 0 {
            let id = (stat.st_dev, stat.st_ino);
            let left = self.room.checked_sub(attributes as u64);
            self.room = left.ok_or_else(|| self.place.refuse(Error::resource_exhausted, TOO_MUCH))?;
            if self.attributed.insert(id, self.nodes.len()).is_some() {
                return Err(self.place.refuse(Error::failed_precondition, attributes::CHANGED));
            }
        }
        self.nodes.push(Node {
            mode: u16::try_from(stat.st_mode).map_err(|_| Errno::EINVAL)?,
            owner: (stat.st_uid, stat.st_gid),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            // Those of a directory are counted as its directories come.
            links: if directory { 2 } else { u32::try_from(stat.st_nlink).map_err(|_| Errno::EMLINK)? },
            size,
            attributes,
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

    /// The target of a link: at once into a block if it is a long one.
    fn text(&mut self, text: Vec<u8>) -> Result<(Content, u64), Errno> {
        let size = text.len() as u64;
        if text.len() <= SHORT {
            return Ok((Content::Text(text), size));
        }
        let block = self.take(size)?;
        self.image.write_all_at(&text, u64::from(block) * BLOCK as u64).map_err(errno)?;
        Ok((Content::Blocks(block), size))
    }

    fn copy(&mut self, mut from: File, size: u64) -> Result<u32, Errno> {
        let first = self.take(size)?;
        let (base, size) = (u64::from(first) * BLOCK as u64, i64::try_from(size).map_err(|_| Errno::EFBIG)?);
        let mut offset = 0;
        while offset < size {
            let start = match lseek64(&from, offset, Whence::SeekData) {
                Err(Errno::ENXIO) => break,
                // It grew: what is there has no room.
                Ok(start) if start >= size => break,
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

    fn finish(mut self, root: BorrowedFd<'_>) -> Result<()> {
        let failed = |error| Place::default().fault(error);
        let Inodes { nodes, places, first } = self.inodes().map_err(failed)?;
        let base = u64::from(first) * BLOCK as u64;
        attributes::write(root, self.image, std::mem::take(&mut self.attributed), &nodes, |node| {
            base + (places[node].0 + INODE) as u64
        })?;
        let superblock = superblock(nodes.len() as u64, self.blocks, first);
        self.image
            .write_all_at(&superblock, SUPERBLOCK)
            .and_then(|()| self.image.set_len(u64::from(self.blocks) * BLOCK as u64))
            .map_err(|e| failed(errno(e)))
    }

    /// Writes all but the attributes.
    fn inodes(&mut self) -> Result<Inodes, Errno> {
        // Directories, whose size doesn't depend on where things lie, and then where each inode lies.
        let mut nodes = std::mem::take(&mut self.nodes);
        let mut blocks = Vec::with_capacity(nodes.len());
        for (index, node) in nodes.iter_mut().enumerate() {
            let parent = node.parent;
            if let Content::Directory(entries) = &mut node.content {
                entries.extend([(c".".to_owned(), index), (c"..".to_owned(), parent)]);
                entries.sort_unstable();
                node.size = directory(entries, |_| (0, 0)).map(|block| block.len() as u64).sum();
            }
        }
        let mut places = Vec::with_capacity(nodes.len());
        let mut end = 0_usize;
        for node in &nodes {
            let head = INODE + node.attributes;
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
        let mut image = self.image;
        image.seek(SeekFrom::Start(u64::from(first) * BLOCK as u64)).map_err(errno)?;
        let mut inodes = BufWriter::with_capacity(64 * BLOCK, image);
        let mut at = 0;
        for (index, node) in nodes.iter().enumerate() {
            let ((place, inline), block) = (places[index], blocks[index]);
            zeros(&mut inodes, place - at).map_err(errno)?;
            inodes.write_all(&node.inode(inline, block, index)?).map_err(errno)?;
            zeros(&mut inodes, node.attributes).map_err(errno)?;
            at = place + INODE + node.attributes;
            let mut beside = |bytes: &[u8], n: usize| {
                if inline {
                    at += bytes.len();
                    inodes.write_all(bytes)
                } else {
                    self.image.write_all_at(bytes, (u64::from(block) + n as u64) * BLOCK as u64)
                }
            };
            match &node.content {
                Content::Directory(entries) => {
                    directory(entries, |child| (number(child) as u64, kind(nodes[child].mode)))
                        .enumerate()
                        .try_for_each(|(n, bytes)| beside(&bytes, n))
                }
                Content::Text(text) => beside(text, 0),
                Content::Blocks(_) | Content::Device(_) => Ok(()),
            }
            .map_err(errno)?;
        }
        inodes.flush().map_err(errno)?;
        drop(inodes);
        Ok(Inodes { nodes, places, first })
    }
}

fn zeros(out: &mut impl Write, count: usize) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(count as u64), out).map(drop)
}

impl Visitor for Writer<'_> {
    fn visit(&mut self, at: BorrowedFd<'_>, name: &CStr, _stat: &FileStat) -> Result<Step, Errno> {
        self.place.at(name);
        let Some((handle, stat)) = hold(at, name)? else { return Ok(Step::Skip) };
        let known = self.linked.get(&(stat.st_dev, stat.st_ino)).copied();
        let here = self.open.last().copied().unwrap_or(0);
        let (node, step) = match (known, file_type(&stat)) {
            (Some(node), _) => (node, Step::Skip),
            (None, kind) => {
                let (content, size) = match kind {
                    SFlag::S_IFDIR => (Content::Directory(vec![]), 0),
                    SFlag::S_IFREG => {
                        let size = stat.st_size.unsigned_abs();
                        (Content::Blocks(self.copy(open_file(&handle)?, size)?), size)
                    }
                    SFlag::S_IFLNK => self.text(readlinkat(&handle, "")?.into_vec())?,
                    _ => (Content::Device(device(stat.st_rdev)), 0),
                };
                let node = self.add(&stat, handle.as_fd(), content, size)?;
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

    fn entered(&mut self, name: &CStr) -> Result<(), Errno> {
        self.open.push(self.seen);
        self.place.down(name);
        Ok(())
    }

    fn leave(&mut self, _at: BorrowedFd<'_>) -> Result<(), Errno> {
        self.open.pop();
        self.place.up();
        Ok(())
    }
}

impl Node {
    /// `struct erofs_inode_extended`, behind which its attributes go.
    fn inode(&self, inline: bool, block: u32, index: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::with_capacity(INODE);
        let format = 1 | if inline { 2 << 1 } else { 0 };
        let words = match self.attributes {
            0 => 0,
            length => 1 + (length - 12) / 4,
        };
        for half in [format, u16::try_from(words).map_err(|_| Errno::E2BIG)?, self.mode, 0] {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend(self.size.to_le_bytes());
        let serial = u32::try_from(index + 1).map_err(|_| Errno::EOVERFLOW)?;
        for word in [block, serial, self.owner.0, self.owner.1] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.mtime.0.to_le_bytes());
        bytes.extend(u32::try_from(self.mtime.1).unwrap_or(0).to_le_bytes());
        bytes.extend(self.links.to_le_bytes());
        bytes.resize(INODE, 0);
        Ok(bytes)
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
    use nix::{
        fcntl::{OFlag, openat},
        sys::stat::{Mode, mknodat},
    };

    use super::*;
    use crate::copy::xattrs;

    /// All that can be seen of a tree.
    fn seen(root: &Path, path: &str, found: &mut BTreeMap<String, String>) {
        let full = root.join(path);
        let meta = fs::symlink_metadata(&full).unwrap();
        let fd = openat(nix::fcntl::AT_FDCWD, &full, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty()).unwrap();
        let mut names = xattrs::names(fd.as_fd()).unwrap();
        names.sort();
        let value = |name: &CString| xattrs::value(fd.as_fd(), name).unwrap();
        let attributes: Vec<_> = names.iter().map(|name| (name, value(name))).collect();
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

    /// Those of procfs say 64 bytes, however long they are.
    #[test]
    fn a_link_is_as_long_as_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let target = File::create(dir.path().join("t".repeat(150))).unwrap();
        let image = File::options().create_new(true).read(true).write(true).open(dir.path().join("image")).unwrap();
        let root = File::open("/proc/self/fd").unwrap();
        let mut writer = Writer::new(&image);
        writer.begin(root.as_fd()).unwrap();
        let name = target.as_raw_fd().to_string();
        let stat = fstat(&target).unwrap();
        writer.visit(root.as_fd(), &CString::new(name.as_str()).unwrap(), &stat).unwrap();
        writer.finish(root.as_fd()).unwrap();
        drop(image);
        let mount = mounted(&File::open(dir.path().join("image")).unwrap());
        let link = fs::read_link(format!("/proc/self/fd/{}/{name}", mount.as_raw_fd())).unwrap();
        assert_eq!(link, fs::read_link(format!("/proc/self/fd/{name}")).unwrap());
    }

    /// The walk saw regular files where by now there are other things. A FIFO that is opened would block for ever.
    #[test]
    fn what_changed_under_the_walk_is_taken_in_as_what_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let root = File::open(&tree).unwrap();
        mknodat(&root, c"fifo", SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap();
        mknodat(&root, c"null", SFlag::S_IFCHR, Mode::S_IRWXU, libc::makedev(1, 3)).unwrap();
        symlink("nowhere", tree.join("link")).unwrap();
        // With this one open nobody blocks at it.
        let _kept = File::options().read(true).write(true).open(tree.join("fifo")).unwrap();
        let stale = fstat(File::open(dir.path().join("file")).unwrap()).unwrap();
        let image = File::options().create_new(true).read(true).write(true).open(dir.path().join("image")).unwrap();
        let mut writer = Writer::new(&image);
        writer.begin(root.as_fd()).unwrap();
        for name in [c"fifo", c"null", c"link", c"gone"] {
            writer.visit(root.as_fd(), name, &stale).unwrap();
        }
        writer.finish(root.as_fd()).unwrap();
        drop(image);
        let mount = mounted(&File::open(dir.path().join("image")).unwrap());
        let top = format!("/proc/self/fd/{}", mount.as_raw_fd());
        let kind = |name: &str| fs::symlink_metadata(format!("{top}/{name}")).unwrap().file_type();
        assert!(kind("fifo").is_fifo() && kind("null").is_char_device() && kind("link").is_symlink());
        assert_eq!(fs::read_dir(&top).unwrap().count(), 3);
    }

    #[test]
    fn a_file_that_grew_stays_within_its_room() {
        let (grown, image) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        grown.write_at(b"later", 1 << 20).unwrap();
        let mut writer = Writer::new(&image);
        writer.copy(grown, BLOCK as u64).unwrap();
        assert_eq!((writer.blocks, image.metadata().unwrap().len()), (2, 0));
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
