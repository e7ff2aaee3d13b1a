//! Subvolumes, snapshots and quotas of btrfs (btrfs(5), `linux/btrfs.h`), always in a held directory and by one name.

use std::{
    ffi::CStr,
    fs,
    io::{self, Error},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use crate::check;

/// The inode number of each subvolume's root: elsewhere on btrfs no directory has it.
pub const ROOT_INODE: u64 = 256;

use call::{Filesystem, Info, Limit, Lookup, Reference, References, Rescan, Time, Volume};

mod call {
    //! The calls, and the structs of `linux/btrfs.h` that they read and fill: plain numbers, for which zero is a value.
    #![allow(missing_docs)]

    /// `struct btrfs_ioctl_vol_args_v2`.
    #[repr(C)]
    pub struct Volume {
        pub fd: i64,
        pub transid: u64,
        pub flags: u64,
        pub unused: [u64; 4],
        pub name: [u8; 4040],
    }

    /// `struct btrfs_ioctl_get_subvol_info_args`.
    #[repr(C)]
    pub struct Info {
        pub id: u64,
        pub name: [u8; 256],
        pub parent: u64,
        pub directory: u64,
        pub generation: u64,
        pub flags: u64,
        pub uuids: [[u8; 16]; 3],
        pub transids: [u64; 4],
        pub changed: Time,
        pub made: Time,
        pub sent: Time,
        pub received: Time,
        pub reserved: [u64; 8],
    }

    /// `struct btrfs_ioctl_timespec`.
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub struct Time {
        pub seconds: u64,
        pub nanoseconds: u32,
    }

    /// `struct btrfs_ioctl_get_subvol_rootref_args`.
    #[repr(C)]
    pub struct References {
        pub least: u64,
        pub found: [Reference; 255],
        pub count: u8,
        pub align: [u8; 7],
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    pub struct Reference {
        pub subvolume: u64,
        pub directory: u64,
    }

    /// `struct btrfs_ioctl_ino_lookup_args`.
    #[repr(C)]
    pub struct Lookup {
        pub subvolume: u64,
        pub inode: u64,
        pub path: [u8; 4080],
    }

    /// `struct btrfs_ioctl_quota_rescan_args`; flags of 1: one runs.
    #[repr(C)]
    pub struct Rescan {
        pub flags: u64,
        pub progress: u64,
        pub reserved: [u64; 6],
    }

    /// `struct btrfs_ioctl_qgroup_limit_args`; a qgroup of 0 is that of the subvolume which is asked.
    #[repr(C)]
    pub struct Limit {
        pub qgroup: u64,
        pub flags: u64,
        pub most_referenced: u64,
        pub most_exclusive: u64,
        pub reserved: [u64; 2],
    }

    /// `struct btrfs_ioctl_fs_info_args`.
    #[repr(C)]
    pub struct Filesystem {
        pub devices: [u64; 2],
        pub id: [u8; 16],
        pub rest: [u8; 992],
    }

    const MAGIC: u8 = 0x94;
    nix::ioctl_write_ptr!(snap_create_v2, MAGIC, 23, Volume);
    nix::ioctl_write_ptr!(subvol_create_v2, MAGIC, 24, Volume);
    nix::ioctl_read!(subvol_getflags, MAGIC, 25, u64);
    nix::ioctl_write_ptr!(subvol_setflags, MAGIC, 26, u64);
    nix::ioctl_readwrite!(ino_lookup, MAGIC, 18, Lookup);
    nix::ioctl_read!(fs_info, MAGIC, 31, Filesystem);
    nix::ioctl_read!(qgroup_limit, MAGIC, 43, Limit);
    nix::ioctl_read!(quota_rescan_status, MAGIC, 45, Rescan);
    nix::ioctl_read!(get_subvol_info, MAGIC, 60, Info);
    nix::ioctl_readwrite!(get_subvol_rootref, MAGIC, 61, References);
    nix::ioctl_write_ptr!(snap_destroy_v2, MAGIC, 63, Volume);
}

const READ_ONLY: u64 = 1 << 1;
const MAX_EXCLUSIVE: u64 = 1 << 1;

/// A value of a struct that is plain numbers.
fn zeroed<T>() -> T {
    // SAFETY: only used for the structs of `call`, for all fields of which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn volume(name: &CStr, fd: i64, flags: u64) -> io::Result<Volume> {
    let mut volume = Volume { fd, flags, ..zeroed() };
    let bytes = name.to_bytes_with_nul();
    let place = volume.name.get_mut(..bytes.len()).ok_or_else(|| Error::from_raw_os_error(libc::ENAMETOOLONG))?;
    place.copy_from_slice(bytes);
    Ok(volume)
}

/// Whether `fd` lies on btrfs.
pub fn is(fd: impl AsFd) -> io::Result<bool> {
    Ok(nix::sys::statfs::fstatfs(fd)?.filesystem_type() == nix::sys::statfs::BTRFS_SUPER_MAGIC)
}

/// Makes an empty subvolume. Returns when it is durable.
pub fn create(at: impl AsFd, name: &CStr) -> io::Result<()> {
    let volume = volume(name, 0, 0)?;
    // SAFETY: the struct is the one that this call reads, and lives through it.
    unsafe { call::subvol_create_v2(at.as_fd().as_raw_fd(), &volume) }?;
    Ok(())
}

/// Makes a snapshot of the subvolume `source`, with all that was written to it so far. Returns when it is durable.
/// Subvolumes within it are left out: where they lie there is an empty directory.
pub fn snapshot(source: impl AsFd, at: impl AsFd, name: &CStr, readonly: bool) -> io::Result<()> {
    let flags = if readonly { READ_ONLY } else { 0 };
    let volume = volume(name, source.as_fd().as_raw_fd().into(), flags)?;
    // SAFETY: as above; the descriptor that the struct names is held through the call.
    unsafe { call::snap_create_v2(at.as_fd().as_raw_fd(), &volume) }?;
    Ok(())
}

fn flags(subvolume: BorrowedFd<'_>) -> io::Result<u64> {
    let mut flags = 0;
    // SAFETY: the call writes one number.
    unsafe { call::subvol_getflags(subvolume.as_raw_fd(), &mut flags) }?;
    Ok(flags)
}

/// Whether a subvolume is read-only.
pub fn is_readonly(subvolume: impl AsFd) -> io::Result<bool> {
    Ok(flags(subvolume.as_fd())? & READ_ONLY != 0)
}

/// Makes a subvolume writable.
pub fn make_writable(subvolume: impl AsFd) -> io::Result<()> {
    let flags = flags(subvolume.as_fd())? & !READ_ONLY;
    // SAFETY: the call reads one number.
    unsafe { call::subvol_setflags(subvolume.as_fd().as_raw_fd(), &flags) }?;
    Ok(())
}

fn info(subvolume: BorrowedFd<'_>) -> io::Result<Info> {
    let mut info: Info = zeroed();
    // SAFETY: the struct is the one that this call fills.
    unsafe { call::get_subvol_info(subvolume.as_raw_fd(), &mut info) }?;
    Ok(info)
}

/// Whether a subvolume began as a snapshot of another. Who has it can't change that, as he can its flags.
pub fn is_snapshot_of(subvolume: impl AsFd, source: impl AsFd) -> io::Result<bool> {
    let [_, parent, _] = info(subvolume.as_fd())?.uuids;
    let [own, _, _] = info(source.as_fd())?.uuids;
    Ok(parent == own)
}

/// When a subvolume was made, since 1970. What was changed in a snapshot has a later ctime.
pub fn made(subvolume: impl AsFd) -> io::Result<Duration> {
    let Time { seconds, nanoseconds } = info(subvolume.as_fd())?.made;
    Ok(Duration::new(seconds, nanoseconds))
}

/// The subvolumes right within one, whose root `subvolume` is; 255 of them at most.
fn within(subvolume: BorrowedFd<'_>) -> io::Result<Vec<Reference>> {
    let mut references: References = zeroed();
    // SAFETY: the struct is the one that this call reads and fills.
    match unsafe { call::get_subvol_rootref(subvolume.as_raw_fd(), &mut references) } {
        // There are more.
        Ok(_) | Err(nix::errno::Errno::EOVERFLOW) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(references.found[..usize::from(references.count)].to_vec())
}

/// The path of one of the subvolumes within `subvolume`, from its root. None: there are no such subvolumes.
pub fn holds_others(subvolume: impl AsFd) -> io::Result<Option<String>> {
    let subvolume = subvolume.as_fd();
    let Some(first) = within(subvolume)?.first().copied() else { return Ok(None) };
    let mut lookup = Lookup { subvolume: 0, inode: first.directory, ..zeroed() };
    // SAFETY: the struct is the one that this call reads and fills.
    unsafe { call::ino_lookup(subvolume.as_raw_fd(), &mut lookup) }?;
    let path = CStr::from_bytes_until_nul(&lookup.path).map_err(|_| Error::from_raw_os_error(libc::EIO))?;
    let found = info(open_inode(subvolume, first.subvolume, ROOT_INODE)?.as_fd())?;
    let name = CStr::from_bytes_until_nul(&found.name).map_err(|_| Error::from_raw_os_error(libc::EIO))?;
    // The directory's ends in a slash, but for the root's own, which is empty.
    Ok(Some(format!("/{}{}", path.to_string_lossy(), name.to_string_lossy())))
}

/// Opens a directory by its number, however deep it lies. `on` is any descriptor of the file system.
fn open_inode(on: BorrowedFd<'_>, subvolume: u64, inode: u64) -> io::Result<OwnedFd> {
    /// `struct file_handle` with `struct btrfs_fid` in its short form.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        inode: u64,
        subvolume: u64,
        generation: u32,
    }
    const WITHOUT_PARENT: i32 = 0x4d;
    // A generation of 0 is any.
    let mut handle = Handle { bytes: 20, kind: WITHOUT_PARENT, inode, subvolume, generation: 0 };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the handle has as many bytes as it says behind its head.
    let fd = unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, on.as_raw_fd(), std::ptr::from_mut(&mut handle).cast::<u8>(), flags)
    };
    // SAFETY: the kernel just gave us this descriptor.
    check(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn destroy_one(at: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let volume = volume(name, 0, 0)?;
    // SAFETY: the struct is the one that this call reads.
    unsafe { call::snap_destroy_v2(at.as_raw_fd(), &volume) }?;
    Ok(())
}

/// Removes the subvolume `name`, read-only or not, with all subvolumes that lie within it, however deep. Its space comes
/// back in the background.
pub fn destroy(at: impl AsFd, name: &CStr) -> io::Result<()> {
    let at = at.as_fd();
    match destroy_one(at, name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) => {}
        other => return other,
    }
    let root = open_directory(at, name)?;
    // What is removed in it is refused where its bound is reached. That there is none to lift is no error; what resists says so.
    let _ = limit_exclusive(at, &root, 0);
    // Those that are emptied, each within the one before it. Paths in them may be longer than a path can be.
    let mut chain = vec![info(root.as_fd())?.id];
    let mut emptied = None;
    while let Some(&outer) = chain.last() {
        let top = open_inode(root.as_fd(), outer, ROOT_INODE)?;
        let inner = within(top.as_fd())?;
        let Some(&first) = inner.first() else {
            emptied = chain.pop();
            continue;
        };
        if is_readonly(&top)? {
            make_writable(&top)?;
        }
        if !destroy_in(&open_inode(root.as_fd(), outer, first.directory)?)? {
            // It resists though nothing is in it any more.
            if emptied == Some(first.subvolume) {
                return Err(Error::from_raw_os_error(libc::ENOTEMPTY));
            }
            chain.push(first.subvolume);
        }
    }
    drop(root);
    destroy_one(at, name)
}

/// Removes the subvolumes right in a directory that hold no others; whether there were any.
fn destroy_in(dir: &OwnedFd) -> io::Result<bool> {
    use nix::{dir::Dir, fcntl::AtFlags, sys::stat::fstatat};
    let mut any = false;
    let mut entries = Dir::from_fd(open_directory(dir.as_fd(), c".")?)?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_ino != ROOT_INODE {
            continue;
        }
        match destroy_one(dir.as_fd(), name) {
            Ok(()) => any = true,
            Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(any)
}

fn open_directory(at: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    use nix::fcntl::OFlag;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::openat(at, name, flags, nix::sys::stat::Mode::empty())?)
}

/// The bytes that a subvolume shares with no other, as the file system counted them with its last commit; `None` where it
/// counts none (quotas are off) or isn't sure of its count.
pub fn exclusive(subvolume: impl AsFd) -> io::Result<Option<u64>> {
    let subvolume = subvolume.as_fd();
    let mut filesystem: Filesystem = zeroed();
    // SAFETY: the struct is the one that this call fills.
    unsafe { call::fs_info(subvolume.as_raw_fd(), &mut filesystem) }?;
    let hex: String = filesystem.id.iter().map(|byte| format!("{byte:02x}")).collect();
    let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    let groups = format!("/sys/fs/btrfs/{uuid}/qgroups");
    let number = |path: String| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if number(format!("{groups}/inconsistent")) != Some(0) {
        return Ok(None);
    }
    Ok(number(format!("{groups}/0_{}/exclusive", info(subvolume)?.id)))
}

/// Whether the file system is still counting what each subvolume has: a bound that is set meanwhile lets through what was not
/// counted yet.
pub fn counts_still(on: impl AsFd) -> io::Result<bool> {
    let mut rescan: Rescan = zeroed();
    // SAFETY: the struct is the one that this call fills.
    unsafe { call::quota_rescan_status(on.as_fd().as_raw_fd(), &mut rescan) }?;
    Ok(rescan.flags != 0)
}

/// Bounds the bytes that a subvolume may have for itself; 0 is no bound. `outside` is a directory of another one: where the bound
/// is reached, the call is refused in it, also the one that lifts the bound. `ENOTCONN`: quotas are off.
pub fn limit_exclusive(outside: impl AsFd, subvolume: impl AsFd, bytes: u64) -> io::Result<()> {
    let most_exclusive = if bytes == 0 { u64::MAX } else { bytes };
    let qgroup = info(subvolume.as_fd())?.id;
    let mut limit = Limit { qgroup, flags: MAX_EXCLUSIVE, most_exclusive, ..zeroed() };
    // SAFETY: the struct is the one that this call reads, whatever its number says.
    unsafe { call::qgroup_limit(outside.as_fd().as_raw_fd(), &mut limit) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structs_are_the_kernels() {
        assert_eq!((size_of::<Volume>(), size_of::<Lookup>(), size_of::<References>()), (4096, 4096, 4096));
        assert_eq!((size_of::<Info>(), size_of::<Limit>(), size_of::<Filesystem>()), (504, 48, 1024));
        assert_eq!(size_of::<Rescan>(), 64);
    }
}
