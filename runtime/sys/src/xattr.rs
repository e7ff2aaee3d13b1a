//! Extended attributes of open files.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, AsRawFd},
};

use crate::check;

/// The value of attribute `name`, or `None` if there is none (or the file system has none at all).
pub fn get(fd: impl AsFd, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let fd = fd.as_fd().as_raw_fd();
    let mut value = vec![0u8; 256];
    loop {
        // SAFETY: the buffer is valid for its length.
        let got = unsafe { libc::fgetxattr(fd, name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        match check(got as libc::c_long) {
            Ok(len) => {
                value.truncate(len as usize);
                return Ok(Some(value));
            }
            Err(e) => match e.raw_os_error() {
                Some(libc::ENODATA | libc::ENOTSUP) => return Ok(None),
                // XATTR_SIZE_MAX is 64 KiB.
                Some(libc::ERANGE) if value.len() < 65_536 => value.resize(65_536, 0),
                _ => return Err(e),
            },
        }
    }
}

/// Sets attribute `name`.
pub fn set(fd: impl AsFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: the pointers are valid for the call.
    check(
        unsafe { libc::fsetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }.into(),
    )
    .map(drop)
}

/// Removes attribute `name`; one that isn't there is no error.
pub fn remove(fd: impl AsFd, name: &CStr) -> io::Result<()> {
    // SAFETY: the pointer is valid for the call.
    match check(unsafe { libc::fremovexattr(fd.as_fd().as_raw_fd(), name.as_ptr()) }.into()) {
        Err(e) if e.raw_os_error() != Some(libc::ENODATA) => Err(e),
        _ => Ok(()),
    }
}

/// The names of all attributes.
pub fn list(fd: impl AsFd) -> io::Result<Vec<CString>> {
    let fd = fd.as_fd().as_raw_fd();
    // XATTR_LIST_MAX: more can't be listed.
    let mut names = vec![0u8; 4096];
    loop {
        // SAFETY: the buffer is valid for its length.
        let got = unsafe { libc::flistxattr(fd, names.as_mut_ptr().cast(), names.len()) };
        match check(got as libc::c_long) {
            Ok(len) => {
                names.truncate(len as usize);
                break;
            }
            Err(e) => match e.raw_os_error() {
                Some(libc::ENOTSUP) => return Ok(Vec::new()),
                Some(libc::ERANGE) if names.len() < 65_536 => names.resize(65_536, 0),
                _ => return Err(e),
            },
        }
    }
    Ok(names.split(|b| *b == 0).filter(|n| !n.is_empty()).filter_map(|n| CString::new(n).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        assert_eq!(get(&file, c"user.none").unwrap(), None);
        for value in [&b""[..], b"short", &[7; 2000]] {
            set(&file, c"user.test", value).unwrap();
            assert_eq!(get(&file, c"user.test").unwrap().as_deref(), Some(value));
        }
        assert!(list(&file).unwrap().contains(&c"user.test".to_owned()));
        remove(&file, c"user.test").unwrap();
        remove(&file, c"user.test").unwrap();
        assert_eq!(get(&file, c"user.test").unwrap(), None);
    }
}
