//! The news that a cgroup ran out of memory, as a descriptor that can be polled: an eventfd of `memory.oom_control` in
//! v1, an inotify watch of `memory.events` in v2.
//!
//! It says that there is something to be looked at, not what: [`Cgroup::oom_kills`] has the number of those who were
//! killed, which may come a moment later than the news.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use cofferdam_types::{Error, Result};

use crate::{
    cgroup::Cgroup,
    fd::{self, Scope},
};

/// See the module.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
}

impl OomWatch {
    /// Watches the group; `None` where the host counts no memory.
    pub fn new(cgroup: &Cgroup) -> Result<Option<OomWatch>> {
        if let Some(dir) = cgroup.v1("memory") {
            return OomWatch::v1(cgroup, dir).map(Some);
        }
        match cgroup.unified() {
            Some(dir) if cgroup.controllers()?.iter().any(|c| c == "memory") => {
                let watched = OomWatch::file(dir, "memory.events");
                watched.map(Some).map_err(|e| Error::io("cgroup", cgroup.path(), "watching memory.events", &e))
            }
            _ => Ok(None),
        }
    }

    fn v1(cgroup: &Cgroup, dir: BorrowedFd<'_>) -> Result<OomWatch> {
        let fail = |e: &io::Error| Error::io("cgroup", cgroup.path(), "watching memory.oom_control", e);
        let control = fd::open(dir, "memory.oom_control".as_ref(), libc::O_RDONLY, 0, Scope::Beneath);
        let control = control.map_err(|e| fail(&e))?;
        // SAFETY: eventfd(2) takes no pointers; the descriptor that it gives is nobody else's.
        let event = unsafe {
            let fd = crate::check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).into());
            OwnedFd::from_raw_fd(fd.map_err(|e| fail(&e))? as i32)
        };
        let order = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
        cgroup.write_at(dir, "cgroup.event_control", &order)?;
        Ok(OomWatch { fd: event })
    }

    /// Changes of any file of the directory.
    fn file(dir: BorrowedFd<'_>, name: &str) -> io::Result<OomWatch> {
        // SAFETY: inotify_init1(2) takes no pointers; the descriptor that it gives is nobody else's.
        let watch = unsafe {
            let fd = crate::check(libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK).into())?;
            OwnedFd::from_raw_fd(fd as i32)
        };
        let path = crate::c_string(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()).as_bytes())?;
        // SAFETY: the path is a C string that lives across the call.
        let added = unsafe { libc::inotify_add_watch(watch.as_raw_fd(), path.as_ptr(), libc::IN_MODIFY) };
        crate::check(added.into())?;
        Ok(OomWatch { fd: watch })
    }

    /// Takes the news in, so that the descriptor is ready again only when there are more.
    pub fn taken(&self) -> io::Result<()> {
        let mut buffer = [0; 512];
        loop {
            match nix::unistd::read(&self.fd, &mut buffer) {
                Ok(0) | Err(nix::Error::EAGAIN) => return Ok(()),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::os::fd::AsRawFd for OomWatch {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::cgroup::Layout;

    fn ready(watch: &OomWatch, millis: u16) -> bool {
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(millis)).unwrap() > 0
    }

    fn group(name: &str) -> Cgroup {
        let path = format!("/cofferdam-oom-{name}-{}", std::process::id());
        Cgroup::create(&Layout::detect().unwrap(), &path).unwrap()
    }

    /// This kernel's v2 hierarchy may have no memory controller: a file that changes in the same way stands for it.
    #[test]
    fn a_file_of_v2_tells_of_its_changes() {
        let cgroup = group("v2");
        if let Some(dir) = cgroup.unified() {
            let watch = OomWatch::file(dir, "cgroup.events").unwrap();
            assert!(!ready(&watch, 0));
            cgroup.freeze().unwrap();
            assert!(ready(&watch, 10_000));
            watch.taken().unwrap();
            assert!(!ready(&watch, 0));
            cgroup.thaw().unwrap();
            assert!(ready(&watch, 10_000));
        }
        cgroup.remove().unwrap();
    }

    #[test]
    fn a_group_that_runs_out_of_memory_tells() {
        let cgroup = group("v1");
        if let (Some(watch), Some(dir)) = (OomWatch::new(&cgroup).unwrap(), cgroup.v1("memory")) {
            assert!(!ready(&watch, 0));
            cgroup.write_at(dir, "memory.limit_in_bytes", "4194304").unwrap();
            let _ = cgroup.write_at(dir, "memory.memsw.limit_in_bytes", "4194304");
            let tasks = std::path::Path::new("/sys/fs/cgroup/memory").join(&cgroup.path()[1..]).join("cgroup.procs");
            let script = format!("echo 0 > {} && exec tail /dev/zero", tasks.display());
            let ended = std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
            assert!(ready(&watch, 10_000));
            watch.taken().unwrap();
            assert_eq!(cgroup.oom_kills().unwrap(), 1);
        }
        cgroup.remove().unwrap();
    }
}
