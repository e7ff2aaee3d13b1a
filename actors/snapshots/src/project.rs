//! A bound on what a snapshot's directory may have for itself, on a file system that knows projects but no trees: the directory
//! becomes a project, with all that is in it and comes into it, and the project gets the bound.

use std::{
    ffi::CStr,
    os::fd::{AsFd, BorrowedFd},
    sync::{Mutex, PoisonError},
};

use cofferdam_sys::quota;
use cofferdam_types::{Code, Error, Result};
use nix::{
    errno::Errno,
    sys::stat::{FileStat, SFlag},
};

use crate::{
    copy::{errno, hold, open_file},
    walk::{Step, Visitor, file_type, open_dir, walk},
};

/// Numbers of ours: behind those that others give, which begin at 1.
const OURS: std::ops::Range<u32> = 0x6000_0000..0x7000_0000;
/// So many are looked at for one that is free.
const LOOKS: u32 = 4096;

/// Held by who looks for a number, until it is taken.
static CHOOSING: Mutex<()> = Mutex::new(());

/// Bounds what the directory `own` of a snapshot may have, beside what it has of its parent by sharing; 0 is no bound. The
/// caller syncs.
pub fn limit(own: BorrowedFd<'_>, driver: &'static str, id: u64, bytes: u64) -> Result<()> {
    let _choosing = CHOOSING.lock().unwrap_or_else(PoisonError::into_inner);
    bound(own, id, bytes).map_err(|e| match e.code {
        Code::Unimplemented => {
            let why = format!("bounds what is written into a snapshot by project quotas, and {} {}", e.id, e.message);
            Error::unimplemented("driver", driver, why)
        }
        _ => e,
    })
}

fn bound(own: BorrowedFd<'_>, id: u64, bytes: u64) -> Result<()> {
    let project = quota::project_of(own).map_err(failed)?;
    if OURS.contains(&project) {
        return quota::limit(own, project, bytes);
    }
    let free = free(own, id)?;
    let around = open_dir(own, c"..").and_then(quota::project_of).map_err(failed)?;
    if around != 0 {
        let why = format!(
            "can't be bounded: the daemon's root is of project {around}, and what is a snapshot's would not count there any more \
             (chattr -p 0 takes it out)"
        );
        return Err(Error::failed_precondition("snapshot", id, why));
    }
    if bytes == 0 {
        return Ok(());
    }
    // The number is taken with this.
    quota::limit(own, free, bytes)?;
    let made = assign(own, free);
    if made.is_err() {
        // What comes next would count for a project that nobody bounds.
        let _ = assign(own, 0);
        let _ = quota::limit(own, free, 0);
    }
    made.map_err(|e| match e {
        Errno::EDQUOT | Errno::ENOSPC => {
            Error::failed_precondition("snapshot", id, format!("has more than {bytes} bytes already: allow it more"))
        }
        e => failed(e),
    })
}

/// Gives up the number and the bound of a directory that goes: what is still in it takes nobody's room.
pub fn forget(own: BorrowedFd<'_>) {
    let Ok(project) = quota::project_of(own) else { return };
    if OURS.contains(&project)
        && let Err(error) = quota::limit(own, project, 0)
    {
        tracing::warn!(project, %error, "the bound of a project that is of no more use stays");
    }
}

/// A number that nobody has: it has no bound and no files.
fn free(own: BorrowedFd<'_>, id: u64) -> Result<u32> {
    let count = u64::from(OURS.end - OURS.start);
    for look in 0..u64::from(LOOKS) {
        // PANIC: a remainder of a `u32` is one.
        let number = OURS.start + u32::try_from((id + look) % count).unwrap_or_default();
        if quota::project(own, number)? == quota::Project::default() {
            return Ok(number);
        }
    }
    let why = "finds no number for its project: others have used those from 0x60000000 on";
    Err(Error::resource_exhausted("snapshot", id, why))
}

/// The directory first: from then on what is made in it is of the project by itself.
fn assign(own: BorrowedFd<'_>, project: u32) -> Result<(), Errno> {
    quota::assign(own, true, project)?;
    walk(own, &mut Assign(project))
}

struct Assign(u32);

impl Visitor for Assign {
    fn visit(&mut self, at: BorrowedFd<'_>, name: &CStr, _stat: &FileStat) -> Result<Step, Errno> {
        let Some((handle, stat)) = hold(at, name)? else { return Ok(Step::Skip) };
        match file_type(&stat) {
            SFlag::S_IFREG => quota::assign(open_file(&handle)?, false, self.0).map(|()| Step::Skip),
            SFlag::S_IFDIR => {
                let flags = libc::O_RDONLY | libc::O_DIRECTORY;
                let dir = cofferdam_sys::fd::reopen(&handle, flags).map_err(errno)?;
                quota::assign(dir.as_fd(), true, self.0).map(|()| Step::Enter)
            }
            // Of links, pipes and devices it can't be said. They take no blocks.
            _ => Ok(Step::Skip),
        }
    }
}

fn failed(e: Errno) -> Error {
    Error::io("snapshot", "", "make a directory a project", &e.into())
}
