//! fs-verity (kernel documentation, filesystems/fsverity.rst): a file that nobody changes any more, and of which the kernel
//! compares every block with a tree of hashes before it gives it out.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use cofferdam_types::{Error, Result};
use nix::errno::Errno;

use crate::filesystem::Kind;

mod call {
    /// `struct fsverity_enable_arg` of `linux/fsverity.h`: neither salt nor signature.
    #[derive(Default)]
    #[repr(C)]
    pub struct Enable {
        pub version: u32,
        pub hash: u32,
        pub block: u32,
        pub salt_size: u32,
        pub salt: u64,
        pub signature_size: u32,
        pub reserved: u32,
        pub signature: u64,
        pub more: [u64; 11],
    }

    nix::ioctl_write_ptr!(enable, b'f', 133, Enable);
}

/// `FS_VERITY_HASH_ALG_SHA256`.
const SHA256: u32 = 1;
/// Of every page size and block size that Linux has, one that is no larger than either.
const BLOCK: u32 = 4096;

/// Seals a file, which is open for reading, and for writing by nobody. Takes as long as reading it does. `unimplemented`, with the
/// reason, where the kernel or the file system can't. What there is to sync is up to the caller.
pub fn enable(file: &File) -> Result<()> {
    let request = call::Enable { version: 1, hash: SHA256, block: BLOCK, ..Default::default() };
    // SAFETY: the struct is the one that this call reads, and lives through it; its pointers are null, with sizes of 0.
    match unsafe { call::enable(file.as_raw_fd(), &request) } {
        Ok(_) => Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => Err(lacking(Kind::of(file.as_fd())?, |path| path.exists())),
        Err(e) => Err(Error::io("file", "", "seal a file by fs-verity", &e.into())),
    }
}

/// What is missing.
fn lacking(kind: Kind, exists: impl Fn(&Path) -> bool) -> Error {
    let features = match kind {
        Kind::Ext4 => "/sys/fs/ext4/features",
        Kind::F2fs => "/sys/fs/f2fs/features",
        Kind::Btrfs => "/sys/fs/btrfs/features",
        _ => {
            let why = "has no fs-verity, which ext4, f2fs and btrfs have: put the daemon's root on one of these";
            return Error::unimplemented("filesystem", kind, why);
        }
    };
    let why = if exists(&Path::new(features).join("verity")) {
        "was made without fs-verity: `tune2fs -O verity` turns it on (of ext4; of f2fs `mkfs.f2fs -O verity`)"
    } else {
        "has no fs-verity with this kernel: that takes one that was built with CONFIG_FS_VERITY"
    };
    Error::unimplemented("filesystem", kind, why)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::FileExt};

    use cofferdam_types::Code;

    use super::*;

    const _: () = assert!(size_of::<call::Enable>() == 128);

    #[test]
    fn what_is_missing_is_named() {
        let said = |kind, there| lacking(kind, |_| there).to_string();
        assert!(said(Kind::Ext4, false).contains("CONFIG_FS_VERITY"));
        assert!(said(Kind::Ext4, true).contains("tune2fs -O verity"));
        for there in [false, true] {
            assert!(
                said(Kind::Tmpfs, there).contains("tmpfs: has no fs-verity, which ext4"),
                "{}",
                said(Kind::Tmpfs, there)
            );
        }
    }

    /// Where the kernel has it, the file can't be written any more; elsewhere it is as it was.
    #[test]
    fn a_file_is_sealed_or_the_reason_is_told() {
        for place in ["/tmp", "/dev/shm"] {
            let dir = tempfile::tempdir_in(place).unwrap();
            let path = dir.path().join("file");
            fs::write(&path, vec![7; 10_000]).unwrap();
            let sealed = enable(&File::open(&path).unwrap());
            let written = File::options().append(true).open(&path).and_then(|mut file| file.write_all(b"x"));
            match sealed {
                Ok(()) => assert!(written.is_err()),
                Err(error) => {
                    assert_eq!((error.code, &*error.kind), (Code::Unimplemented, "filesystem"), "{error}");
                    assert!(error.message.contains("fs-verity"), "{error}");
                    written.unwrap();
                }
            }
            let mut first = [0; 1];
            File::open(&path).unwrap().read_exact_at(&mut first, 0).unwrap();
            assert_eq!(first, [7]);
        }
    }
}
