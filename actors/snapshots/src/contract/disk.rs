//! A file system of its own, in a file.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

/// Mounted until it is dropped.
pub struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// An empty btrfs.
    pub fn btrfs() -> Disk {
        Disk::made_by("mkfs.btrfs", &[], "loop").unwrap()
    }

    /// An empty ext4.
    pub fn ext4() -> Disk {
        Disk::made_by("mkfs.ext4", &[], "loop").unwrap()
    }

    /// An empty ext4 with fs-verity and project quotas, where this kernel mounts such a one.
    pub fn ext4_with_all() -> Option<Disk> {
        Disk::made_by("mkfs.ext4", &["-O", "verity,project,quota"], "loop,prjquota")
    }

    /// None: it can't be mounted.
    fn made_by(program: &str, features: &[&str], options: &str) -> Option<Disk> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        let place = dir.path().join("disk");
        std::fs::create_dir(&place).unwrap();
        let features: Vec<&Path> = features.iter().map(Path::new).collect();
        tool(program, &[&features[..], &["-q".as_ref(), &image]].concat());
        let mounted = Command::new("mount").args(["-o", options]).arg(image).arg(place).output().unwrap();
        mounted.status.success().then(|| Disk { dir })
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Turns quotas on.
    pub fn count(&self) {
        tool("btrfs", &["quota".as_ref(), "enable".as_ref(), &self.path()]);
        tool("btrfs", &["quota".as_ref(), "rescan".as_ref(), "-w".as_ref(), &self.path()]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Threads of the test that end just now may still hold something open on it.
        nix::mount::umount2(&self.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

fn tool(program: &str, args: &[&Path]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
