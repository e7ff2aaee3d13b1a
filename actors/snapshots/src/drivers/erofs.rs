//! Each committed layer is one read-only EROFS image, which the daemon keeps mounted beside it; overlayfs stacks them.
//!
//! `fs` and `work` are those of overlayfs while a snapshot is written. A commit makes `image` of `fs`, mounts it on `layer`,
//! and then `fs` goes. The tree is `layer/fs`: one that isn't mounted is missing, and can't be taken for an empty one.

use std::{
    ffi::CStr,
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use cofferdam_sys::{filesystem::Kind, mount, verity};
use cofferdam_types::{Code, Error, Mount, Result};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    mount::{MntFlags, umount2},
    sys::stat::{Mode, fstat, fstatat, mkdirat},
    unistd::{UnlinkatFlags, fsync, unlinkat},
};

use super::{Access, Driver, Overlay, Trees};
use crate::{image, walk::open_dir};

/// The driver of images. It stacks as overlay does.
pub struct Erofs(Overlay);

const IMAGE: &CStr = c"image";
const UNFINISHED: &CStr = c"image.new";
const LAYER: &CStr = c"layer";

impl Erofs {
    /// A driver for the running kernel.
    pub fn detect() -> Erofs {
        Erofs(Overlay::detect())
    }
}

impl Driver for Erofs {
    fn name(&self) -> &'static str {
        "erofs"
    }

    fn detached(&self) -> bool {
        true
    }

    fn scratch(&self) -> bool {
        true
    }

    fn fits(&self, dir: BorrowedFd<'_>) -> Result<()> {
        if Kind::of(dir)? == Kind::Tmpfs {
            let why = "mounts layers from files, and the daemon's root lies on tmpfs, which has no blocks: use another driver";
            return Err(Error::unimplemented("driver", self.name(), why));
        }
        mount::Filesystem::open("erofs").map(drop).map_err(|e| match e.code {
            Code::Unimplemented => {
                Error::unimplemented("driver", self.name(), "this kernel has no EROFS: use another driver")
            }
            _ => e,
        })
    }

    fn make(&self, own: BorrowedFd<'_>, parent: Option<BorrowedFd<'_>>) -> Result<()> {
        self.0.make(own, parent)
    }

    fn open(&self, own: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        match open_dir(own, LAYER) {
            Err(Errno::ENOENT) => open_dir(own, c"fs"),
            layer => open_dir(layer?.as_fd(), image::TREE),
        }
    }

    fn holds(&self, own: BorrowedFd<'_>) -> bool {
        // Whatever keeps it from being looked at, it isn't gone for that.
        !matches!(fstatat(own, IMAGE, AtFlags::AT_SYMLINK_NOFOLLOW), Err(Errno::ENOENT))
    }

    fn seal(&self, own: BorrowedFd<'_>, verity: bool) -> Result<()> {
        self.settle(own, false)?;
        let failed = failed("write the image of a layer");
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let image = File::from(openat(own, UNFINISHED, flags, Mode::S_IRUSR).map_err(&failed)?);
        image::write(open_dir(own, c"fs").map_err(&failed)?.as_fd(), &image)?;
        fsync(&image).map_err(&failed)?;
        // Who has it open to write keeps it from being sealed.
        drop(image);
        if verity {
            let image = open_image(own, UNFINISHED).map_err(&failed)?;
            verity::enable(&image).map_err(|e| refused(self.name(), e))?;
            fsync(&image).map_err(&failed)?;
        }
        let keep = || -> Result<(), Errno> {
            renameat(own, UNFINISHED, own, IMAGE)?;
            fsync(own)
        };
        keep().map_err(&failed)?;
        attach(own)
    }

    fn settle(&self, own: BorrowedFd<'_>, committed: bool) -> Result<&'static [&'static CStr]> {
        if committed {
            attach(own)?;
            return Ok(&[c"fs", c"work"]);
        }
        self.release(own)?;
        for (name, how) in [
            (LAYER, UnlinkatFlags::RemoveDir),
            (IMAGE, UnlinkatFlags::NoRemoveDir),
            (UNFINISHED, UnlinkatFlags::NoRemoveDir),
        ] {
            match unlinkat(own, name, how) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => return Err(failed("remove the image of a layer")(e)),
            }
        }
        Ok(&[])
    }

    fn attaches(&self) -> bool {
        true
    }

    fn release(&self, own: BorrowedFd<'_>) -> Result<()> {
        let path = format!("/proc/self/fd/{}/layer", own.as_raw_fd());
        match umount2(path.as_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It isn't mounted, or isn't there.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(e) => Err(failed("unmount the image of a layer")(e)),
        }
    }

    fn mounts(&self, access: Access, trees: Trees<'_>) -> Vec<Mount> {
        self.0.stack(access, trees, |id| format!("{}/{id}/layer/fs", trees.base))
    }
}

fn open_image(own: BorrowedFd<'_>, name: &CStr) -> Result<File, Errno> {
    openat(own, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()).map(File::from)
}

/// Why a layer can't have fs-verity.
fn refused(driver: &'static str, error: Error) -> Error {
    match error.code {
        Code::Unimplemented => {
            let why = format!("commits nothing while the daemon runs with --verity: {} {}", error.id, error.message);
            Error::unimplemented("driver", driver, why)
        }
        _ => error,
    }
}

fn is_mounted(own: BorrowedFd<'_>, layer: &OwnedFd) -> Result<bool, Errno> {
    Ok(fstat(layer)?.st_dev != fstat(own)?.st_dev)
}

/// Mounts the image, unless it is.
fn attach(own: BorrowedFd<'_>) -> Result<()> {
    let look = || -> Result<(OwnedFd, bool), Errno> {
        match mkdirat(own, LAYER, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e),
        }
        let layer = open_dir(own, LAYER)?;
        let there = is_mounted(own, &layer)?;
        Ok((layer, there))
    };
    let (layer, there) = look().map_err(failed("look at the mount of a layer"))?;
    if there {
        return Ok(());
    }
    let image = open_image(own, IMAGE).map_err(failed("open the image of a layer"))?;
    let source = format!("/proc/self/fd/{}", image.as_raw_fd());
    // Its name is what the host's table of mounts shows; an option has no room for a long one.
    let named = std::fs::read_link(&source).ok().and_then(|path| path.into_os_string().into_string().ok());
    let source = named.filter(|path| path.len() < 256).unwrap_or(source);
    let mounted =
        mount::detached(&Mount { kind: "erofs".into(), source, options: vec!["ro".into()] }).map_err(|e| {
            e.context("a layer is mounted from its image, which takes Linux 6.12 with EROFS_FS_BACKED_BY_FILE")
        })?;
    mount::attach(&mounted, &layer).map_err(|e| Error::io("snapshot", "", "mount the image of a layer", &e))
}

fn failed(what: &'static str) -> impl Fn(Errno) -> Error {
    move |error| Error::io("snapshot", "", what, &error.into())
}
