//! Project quotas (quotactl(2), `struct fsxattr` of `linux/fs.h`): files carry the number of a project, what is made in a directory
//! has that of the directory, and what a project's files take together can be bounded.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use cofferdam_types::{Error, Result};
use nix::errno::Errno;

use crate::{check, filesystem::Kind};

mod call {
    /// `struct fsxattr`.
    #[derive(Default)]
    #[repr(C)]
    pub struct Attributes {
        pub flags: u32,
        pub extent: u32,
        pub extents: u32,
        pub project: u32,
        pub cow_extent: u32,
        pub unused: [u8; 8],
    }

    nix::ioctl_read!(get, b'X', 31, Attributes);
    nix::ioctl_write_ptr!(set, b'X', 32, Attributes);
}

/// `FS_XFLAG_PROJINHERIT`: what is made in a directory is of its project.
const INHERIT: u32 = 0x200;
/// `PRJQUOTA` of `linux/quota.h`.
const OF_PROJECTS: libc::c_int = 2;
/// What limits are counted in (`QIF_DQBLKSIZE`).
const BLOCK: u64 = 1024;

/// What the file system knows of a project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Project {
    /// The most bytes that its files may take; 0: there is no bound.
    pub limit: u64,
    /// How many they take.
    pub bytes: u64,
    /// How many files there are, whatever they are.
    pub inodes: u64,
}

fn quotactl(on: BorrowedFd<'_>, command: libc::c_int, project: u32, data: &mut libc::dqblk) -> Result<(), Errno> {
    let command = (command << 8) | OF_PROJECTS;
    // SAFETY: `struct if_dqblk` is what both commands read or fill, and it lives through the call.
    let done =
        unsafe { libc::syscall(libc::SYS_quotactl_fd, on.as_raw_fd(), command, project, std::ptr::from_mut(data)) };
    check(done).map(drop).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
}

fn blank() -> libc::dqblk {
    // SAFETY: plain numbers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// What the file system that `on` lies on knows of a project. `unimplemented`, with the reason, where it counts none.
pub fn project(on: BorrowedFd<'_>, project: u32) -> Result<Project> {
    let mut known = blank();
    match quotactl(on, libc::Q_GETQUOTA, project, &mut known) {
        Ok(()) => Ok(Project {
            limit: known.dqb_bhardlimit.saturating_mul(BLOCK),
            bytes: known.dqb_curspace,
            inodes: known.dqb_curinodes,
        }),
        // XFS has none of which nothing is known.
        Err(Errno::ENOENT) => Ok(Project::default()),
        Err(e) => Err(fault(on, e, "ask how much a project has")),
    }
}

/// Bounds the bytes that a project's files may take; 0 is no bound.
pub fn limit(on: BorrowedFd<'_>, project: u32, bytes: u64) -> Result<()> {
    let mut wanted = libc::dqblk { dqb_bhardlimit: bytes.div_ceil(BLOCK), dqb_valid: libc::QIF_BLIMITS, ..blank() };
    quotactl(on, libc::Q_SETQUOTA, project, &mut wanted).map_err(|e| fault(on, e, "bound what a project may have"))
}

fn fault(on: BorrowedFd<'_>, error: Errno, what: &str) -> Error {
    match error {
        Errno::ENOSYS | Errno::ESRCH | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOTTY => {
            Kind::of(on).map_or_else(|e| e, lacking)
        }
        e => Error::io("filesystem", "", what, &e.into()),
    }
}

/// What is missing.
fn lacking(kind: Kind) -> Error {
    let why = match kind {
        Kind::Ext4 => {
            "has no project quotas on: that takes a kernel with CONFIG_QUOTA and CONFIG_QFMT_V2, `tune2fs -O project,quota` \
             while it isn't mounted, and the mount option prjquota"
        }
        Kind::Xfs => {
            "has no project quotas on: that takes a kernel with CONFIG_XFS_QUOTA, and the mount option prjquota"
        }
        Kind::F2fs => {
            "has no project quotas on: that takes a kernel with CONFIG_QUOTA and CONFIG_QFMT_V2, `mkfs.f2fs -O extra_attr,project_quota,quota`, \
             and the mount option prjquota"
        }
        Kind::Btrfs => "has no project quotas, but quotas of its own: use the driver btrfs, and turn them on",
        _ => "has no project quotas, which ext4, xfs and f2fs have: put the daemon's root on one of these",
    };
    Error::unimplemented("filesystem", kind, why)
}

/// The project of a file or directory; 0 is none.
pub fn project_of(file: impl AsFd) -> Result<u32, Errno> {
    attributes(file.as_fd()).map(|found| found.project)
}

fn attributes(file: BorrowedFd<'_>) -> Result<call::Attributes, Errno> {
    let mut found = call::Attributes::default();
    // SAFETY: the struct is the one that this call fills, and lives through it.
    match unsafe { call::get(file.as_raw_fd(), &mut found) } {
        Ok(_) => Ok(found),
        // Of a file system that knows no projects everything is of none.
        Err(Errno::ENOTTY | Errno::EOPNOTSUPP) => Ok(call::Attributes::default()),
        Err(e) => Err(e),
    }
}

/// Makes a file or directory one of a project's; with 0 one of none's. What is made in a directory from then on is too.
pub fn assign(file: impl AsFd, directory: bool, project: u32) -> Result<(), Errno> {
    let found = attributes(file.as_fd())?;
    let inherit = if directory && project != 0 { INHERIT } else { 0 };
    let wanted = call::Attributes { flags: found.flags & !INHERIT | inherit, project, ..found };
    // SAFETY: the struct is the one that this call reads, and lives through it.
    unsafe { call::set(file.as_fd().as_raw_fd(), &wanted) }.map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use cofferdam_types::Code;

    use super::*;

    const _: () = assert!(size_of::<call::Attributes>() == 28 && size_of::<libc::dqblk>() == 72);

    #[test]
    fn what_is_missing_is_named() {
        for (kind, word) in
            [(Kind::Ext4, "CONFIG_QFMT_V2"), (Kind::Xfs, "CONFIG_XFS_QUOTA"), (Kind::Tmpfs, "which ext4")]
        {
            let error = lacking(kind);
            assert!(error.code == Code::Unimplemented && error.message.contains(word), "{error}");
        }
        let memory = File::open("/dev/shm").unwrap();
        for refused in [project(memory.as_fd(), 5).map(drop), limit(memory.as_fd(), 5, 1 << 20)] {
            let error = refused.unwrap_err();
            assert_eq!((error.code, error.id.as_str()), (Code::Unimplemented, "tmpfs"), "{error}");
        }
        assert_eq!(project_of(&memory), Ok(0));
    }
}
