//! Small disks, and neighbours who fill them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread::JoinHandle,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
};

use crate::{
    Daemon,
    platter::{Image, Platter},
};

/// Runs a tool that must succeed.
fn tool(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A daemon whose root lies on a small disk of its own. The daemon's end unmounts it, and its loop device ends with that.
pub fn small_disk(mib: usize, inodes: usize) -> Daemon {
    small_disk_with(mib, inodes, &[])
}

/// The same, with more flags of the daemon's.
pub fn small_disk_with(mib: usize, inodes: usize, flags: &'static [&'static str]) -> Daemon {
    on_disk(mib, "mkfs.ext4", &["-m", "0", "-N", &inodes.to_string()], flags)
}

/// The same on btrfs.
pub fn btrfs_disk(mib: usize) -> Daemon {
    on_disk(mib, "mkfs.btrfs", &[], &[])
}

fn on_disk(mib: usize, mkfs: &str, options: &[&str], flags: &'static [&'static str]) -> Daemon {
    let daemon = Daemon::with_flags(flags);
    daemon.stop();
    let image = daemon.path().join("disk");
    File::create(&image).expect("a file for the disk").set_len((mib << 20) as u64).expect("its size");
    fs::remove_dir_all(daemon.root()).expect("the root of before");
    fs::create_dir(daemon.root()).expect("a mount point");
    let (image, root) = (image.to_str().expect("UTF-8"), daemon.root());
    tool(mkfs, &[&["-q"], options, &[image]].concat());
    tool("mount", &["-o", "loop", image, root.to_str().expect("UTF-8")]);
    let _ = fs::remove_dir(root.join("lost+found"));
    daemon.restart();
    daemon.create_namespace();
    daemon
}

/// A daemon whose root lies on a disk, and both lose their power together.
pub struct Powered {
    /// Its end comes before the disk's.
    pub daemon: Daemon,
    /// The disk.
    pub platter: Platter,
    /// How many there were before, and the end of the last of them.
    cuts: u32,
    ending: Option<JoinHandle<()>>,
}

impl Powered {
    /// Starts one, with these flags, on a fresh file system.
    pub fn start(mib: usize, mkfs: &str, flags: &'static [&'static str]) -> Powered {
        let daemon = Daemon::with_flags(flags);
        daemon.stop();
        fs::remove_dir_all(daemon.root()).expect("the root of before");
        fs::create_dir(daemon.root()).expect("a mount point");
        let platter = Platter::serve(&daemon.path().join("platter"), Image::empty(mib));
        tool(mkfs, &["-q", platter.path().to_str().expect("UTF-8")]);
        mount(&platter, &daemon.root());
        let _ = fs::remove_dir(daemon.root().join("lost+found"));
        daemon.restart();
        daemon.create_namespace();
        Powered { daemon, platter, cuts: 0, ending: None }
    }

    /// Cuts the power, and starts again with this on the disk.
    pub fn cut(&mut self, image: Image) {
        self.daemon.power_off();
        // What ends with a reboot.
        let _ = fs::remove_dir_all(self.daemon.state());
        self.cuts += 1;
        let new = Platter::serve(&self.daemon.path().join(format!("platter{}", self.cuts)), image);
        mount(&new, &self.daemon.root());
        // The kernel takes its time to let go of a loop device: the next one doesn't wait for that.
        let old = std::mem::replace(&mut self.platter, new);
        self.ended();
        self.ending = Some(std::thread::spawn(|| drop(old)));
        self.daemon.restart();
    }

    /// Waits until the disk of before is gone.
    fn ended(&mut self) {
        if let Some(ending) = self.ending.take() {
            ending.join().expect("a disk ends");
        }
    }
}

impl Drop for Powered {
    fn drop(&mut self) {
        self.ended();
    }
}

/// A file system on a disk of its own, and nothing on that.
pub struct Mounted {
    /// The disk.
    pub platter: Platter,
    top: PathBuf,
}

impl Mounted {
    /// Makes both below a directory.
    pub fn start(dir: &Path, mib: usize, mkfs: &str) -> Mounted {
        let platter = Platter::serve(&dir.join("platter"), Image::empty(mib));
        tool(mkfs, &["-q", platter.path().to_str().expect("UTF-8")]);
        let top = dir.join("mounted");
        fs::create_dir(&top).expect("a mount point");
        mount(&platter, &top);
        Mounted { platter, top }
    }

    /// The same with what another disk has.
    pub fn of(dir: &Path, image: Image) -> Mounted {
        let platter = Platter::serve(&dir.join("platter"), image);
        let top = dir.join("mounted");
        fs::create_dir(&top).expect("a mount point");
        mount(&platter, &top);
        Mounted { platter, top }
    }

    /// Where it is mounted.
    pub fn top(&self) -> &Path {
        &self.top
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.top, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn mount(platter: &Platter, root: &Path) {
    let disk = platter.path();
    tool("mount", &["-o", "loop", disk.to_str().expect("UTF-8"), root.to_str().expect("UTF-8")]);
}

/// A daemon whose state lies on a small file system of its own, which its end unmounts.
pub fn small_state(mib: usize) -> Daemon {
    let daemon = Daemon::start();
    daemon.stop();
    let options = format!("size={mib}m,mode=711");
    tool("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", daemon.state().to_str().expect("UTF-8")]);
    daemon.restart();
    daemon
}

/// Takes all room of a disk but so much, with a file in its top directory that is to be removed.
pub fn fill(top: &Path, left: u64) -> PathBuf {
    let path = top.join("filler");
    let file = File::create(&path).expect("the filler");
    let (mut size, mut step) = (0, i64::MAX);
    loop {
        let stat = nix::sys::statvfs::statvfs(top).expect("how full it is");
        let free = (stat.blocks_available() * stat.fragment_size()).saturating_sub(left);
        // The file system needs some of what it calls free for itself: less and less is asked for until nothing is given.
        step = step.min(i64::try_from(free).expect("a small disk"));
        if step == 0 {
            return path;
        }
        match fallocate(&file, FallocateFlags::empty(), size, step) {
            Ok(()) => size += step,
            Err(Errno::ENOSPC) => step /= 2,
            Err(errno) => panic!("fallocate: {errno}"),
        }
    }
}
