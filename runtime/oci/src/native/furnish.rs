//! What lies in a tmpfs that the container gets is put there out here, where it is a call or two: below a path of the
//! container each part would be looked up first, since an image may have a link there.
//!
//! All of it is for speed: what can't be done out here is left for the child, which can do all of it.

use std::{
    ffi::{CStr, OsStr},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use cofferdam_sys::{fd, mount};
use nix::{
    errno::Errno,
    sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, mkdirat, mknodat},
};

use super::step::{Make, Step, Target};

/// Puts mounts into the new file systems that lie above them, and makes places for those that the child makes; `nodes`,
/// the devices and links, come behind the mounts.
pub(super) fn furnish(steps: &mut Vec<Step>, nodes: Vec<Step>) {
    let mut done = vec![false; steps.len()];
    // Where a link of the image's may lead a mount, that may cover any that is there by then.
    let (mut mounted, mut sure): (Vec<usize>, usize) = (Vec::new(), 0);
    for at in 0..steps.len() {
        let Some(target) = target(&steps[at]) else { continue };
        let above = above(steps, &mounted, target).filter(|(above, _)| *above >= sure);
        let below = above.filter(|(_, path)| !path.is_empty());
        done[at] = above.is_some_and(|(above, path)| {
            fresh(&steps[above]).is_some_and(|above| put(&steps[at], above, path).unwrap_or(false))
        });
        if matches!(steps[at], Step::Attach { .. } | Step::Mount { .. }) {
            if !target.no_symlinks && !below.is_some_and(|(above, _)| has_no_links_out(&steps[above])) {
                sure = at;
            }
            mounted.push(at);
        }
    }
    let furnished = nodes_in(steps, &mounted, &nodes);
    let mut done = done.into_iter();
    steps.retain(|_| !done.next().unwrap_or(false));
    steps.extend(furnished);
    steps.extend(nodes);
}

/// Where a step's work is to be seen.
fn target(step: &Step) -> Option<&Target> {
    match step {
        Step::Attach { target, .. } | Step::Mount { target, .. } => Some(target),
        Step::Device { directory, .. } | Step::Symlink { directory, .. } => Some(directory),
        _ => None,
    }
}

/// The mount that `wanted` lies in or is, with the path below it: the latest of those above it, which covers the others.
fn above<'s>(steps: &[Step], mounted: &[usize], wanted: &'s Target) -> Option<(usize, &'s [u8])> {
    let wanted = wanted.path.to_bytes();
    mounted.iter().rev().find_map(|at| {
        let rest = wanted.strip_prefix(target(&steps[*at])?.path.to_bytes())?;
        (rest.is_empty() || rest[0] == b'/').then(|| (*at, rest.strip_prefix(b"/").unwrap_or(rest)))
    })
}

/// A new file system.
fn fresh(step: &Step) -> Option<BorrowedFd<'_>> {
    match step {
        Step::Attach { mount, fresh: true, .. } => Some(mount.as_fd()),
        _ => None,
    }
}

fn has_no_links_out(step: &Step) -> bool {
    fresh(step).is_some() || matches!(step, Step::Mount { kind, .. } if kind.as_c_str() == c"sysfs")
}

/// Does the step's work below `above`; `false` if the child has to do it.
fn put(step: &Step, above: BorrowedFd<'_>, path: &[u8]) -> nix::Result<bool> {
    match step {
        Step::Attach { target, mount, .. } if !path.is_empty() && target.make == Make::Directory => {
            directory(above, path)?;
            // Kernels before 6.15 refuse it: a mount goes into what is attached already.
            Ok(mount::attach_in(mount, above, Path::new(OsStr::from_bytes(path))).is_ok())
        }
        Step::Mount { .. } if !path.is_empty() => directory(above, path).map(|()| false),
        Step::Symlink { name, to, .. } if path.is_empty() => link(above, name, to).map(|()| true),
        _ => Ok(false),
    }
}

/// Makes a directory of one part, or of several where no link can be among them.
fn directory(above: BorrowedFd<'_>, path: &[u8]) -> nix::Result<()> {
    let mode = Mode::from_bits_truncate(0o755);
    let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
        None => return mkdirat(above, path, mode),
        Some(slash) => path.split_at(slash),
    };
    let parent = fd::open_no_symlinks(above, Path::new(OsStr::from_bytes(parent)), libc::O_PATH, 0);
    let parent = parent.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    mkdirat(parent, &name[1..], mode)
}

fn link(directory: BorrowedFd<'_>, name: &CStr, to: &CStr) -> nix::Result<()> {
    // SAFETY: the pointers are valid for the call.
    Errno::result(unsafe { libc::symlinkat(to.as_ptr(), directory.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// Makes the nodes and links if all of them lie in one new file system, and says by what the child knows it: an image's
/// link may have led another mount to its place.
fn nodes_in(steps: &[Step], mounted: &[usize], nodes: &[Step]) -> Option<Step> {
    let place = target(nodes.first()?)?;
    let (directory, rest) = above(steps, mounted, place)?;
    let directory = fresh(&steps[directory])?;
    let here = |step: &Step| target(step).is_some_and(|t| t.path == place.path);
    if !rest.is_empty() || !nodes.iter().all(here) {
        return None;
    }
    let made = nodes.iter().try_for_each(|step| match step {
        Step::Device { name, mode, device, uid: 0, gid: 0, .. } => {
            mknodat(directory, name.as_c_str(), SFlag::from_bits_truncate(*mode), Mode::empty(), *device)?;
            // The umask, which all threads share, has no part in it.
            let mode = Mode::from_bits_truncate(*mode);
            fchmodat(directory, name.as_c_str(), mode, FchmodatFlags::FollowSymlink)
        }
        Step::Symlink { name, to, .. } => link(directory, name, to),
        _ => Err(Errno::ENOTSUP),
    });
    let stat = fd::stat(directory).ok()?;
    let target = Target { path: place.path.clone(), make: place.make, no_symlinks: place.no_symlinks };
    let furnished = Step::Furnished { target, device: stat.st_dev, inode: stat.st_ino, steps: nodes.len() };
    made.is_ok().then_some(furnished)
}
