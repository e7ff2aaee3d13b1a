//! Linux as this project needs it, in small safe functions: mounts, cgroups, clone3, pidfds, xattrs, openat2.
//!
//! The functions nearest to the kernel return [`std::io::Result`], so that a caller sees the errno and names the thing
//! itself; mounts and cgroups, where the kernel says more than an errno, return [`cofferdam_types::Result`].
//! Needs Linux 5.12 (mount_setattr(2)); overlays of many layers need 6.8 (`lowerdir+`), and
//! overlays of idmapped layers 6.15.

pub mod btrfs;
pub mod cgroup;
pub mod devices;
pub mod fd;
pub mod filesystem;
pub mod handover;
pub mod memory;
pub mod metrics;
pub mod mount;
pub mod mountinfo;
pub mod netdev;
pub mod network;
pub mod oom;
pub mod process;
pub mod procfs;
pub mod program;
pub mod pty;
pub mod quota;
pub mod spawn;
pub mod userns;
pub mod verity;
pub mod xattr;

pub(crate) fn check(result: libc::c_long) -> std::io::Result<libc::c_long> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

/// The C string of `text`, or `EINVAL` if it holds a NUL.
pub(crate) fn c_string(text: &[u8]) -> std::io::Result<std::ffi::CString> {
    std::ffi::CString::new(text).map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))
}
