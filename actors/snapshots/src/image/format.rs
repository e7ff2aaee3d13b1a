//! Structs of an EROFS image, as they lie in it.

use std::ffi::CString;

use nix::sys::stat::SFlag;

pub const BLOCK: usize = 4096;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Times of inodes are those of their last change of content.
const MTIME: u32 = 2;
const ENTRY: usize = 12;

/// The blocks of a directory, the last not filled up: in each first where its names lie and whose they are, then the names,
/// in order.
pub fn directory(entries: &[(CString, usize)], node: impl Fn(usize) -> (u64, u8)) -> impl Iterator<Item = Vec<u8>> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut room = BLOCK;
        let fits = |(name, _): &&(CString, usize)| {
            let left = room.checked_sub(ENTRY + name.as_bytes().len());
            room = left.unwrap_or(0);
            left.is_some()
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count());
        rest = later;
        let mut bytes = Vec::new();
        let mut offset = now.len() * ENTRY;
        for (name, child) in now {
            let (number, kind) = node(*child);
            bytes.extend(number.to_le_bytes());
            bytes.extend((offset as u16).to_le_bytes());
            bytes.extend([kind, 0]);
            offset += name.as_bytes().len();
        }
        now.iter().for_each(|(name, _)| bytes.extend_from_slice(name.as_bytes()));
        if !later.is_empty() {
            bytes.resize(BLOCK, 0);
        }
        Some(bytes).filter(|_| !now.is_empty())
    })
}

/// `struct erofs_super_block`. The root is the first inode.
pub fn superblock(inodes: u64, blocks: u32, first: u32) -> [u8; 128] {
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
pub fn device(number: u64) -> u32 {
    let (major, minor) = (libc::major(number), libc::minor(number));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// What directories say of an inode.
pub fn kind(mode: u16) -> u8 {
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
