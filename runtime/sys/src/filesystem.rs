//! Which file system something lies on, by the number that statfs(2) has for it.

use std::{fmt, os::fd::BorrowedFd};

use cofferdam_types::{Error, Result};
use nix::sys::statfs::{self, FsType};

/// Those that differ in what they can do for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext2, ext3 and ext4, which have one number.
    Ext4,
    /// btrfs.
    Btrfs,
    /// XFS.
    Xfs,
    /// F2FS.
    F2fs,
    /// tmpfs.
    Tmpfs,
    /// Any other: its number.
    Other(FsType),
}

impl Kind {
    /// That which a descriptor lies on.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Kind> {
        let found = statfs::fstatfs(fd).map_err(|e| Error::io("filesystem", "", "look at a file system", &e.into()))?;
        Ok(match found.filesystem_type() {
            statfs::EXT4_SUPER_MAGIC => Kind::Ext4,
            statfs::BTRFS_SUPER_MAGIC => Kind::Btrfs,
            statfs::XFS_SUPER_MAGIC => Kind::Xfs,
            statfs::TMPFS_MAGIC => Kind::Tmpfs,
            statfs::F2FS_SUPER_MAGIC => Kind::F2fs,
            other => Kind::Other(other),
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Ext4 => f.write_str("ext4"),
            Kind::Btrfs => f.write_str("btrfs"),
            Kind::Xfs => f.write_str("xfs"),
            Kind::F2fs => f.write_str("f2fs"),
            Kind::Tmpfs => f.write_str("tmpfs"),
            Kind::Other(number) => write!(f, "{:#x}", number.0),
        }
    }
}
