//! User namespaces: made with their id maps, or read.
//!
//! A namespace lives as long as its descriptor; who is to live in it joins by that. Making one takes a child for a moment,
//! since only a process can have one.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use crate::process::{self, Child};

/// A range of user or group ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first one inside.
    pub inside: u32,
    /// What that one is outside, in the namespace of this process.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// A user namespace and its maps.
#[derive(Debug)]
pub struct UserNamespace {
    fd: OwnedFd,
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl UserNamespace {
    /// Makes one with these maps. `EINVAL` if the ranges overlap or have no ids.
    pub fn create(uids: &[IdRange], gids: &[IdRange]) -> io::Result<UserNamespace> {
        let holder = Holder::new(None)?;
        let proc = |name: &str| format!("/proc/{}/{name}", holder.0.pid);
        fs::write(proc("uid_map"), text(uids))?;
        fs::write(proc("gid_map"), text(gids))?;
        let fd = fs::File::open(proc("ns/user"))?.into();
        Ok(UserNamespace { fd, uids: uids.to_vec(), gids: gids.to_vec() })
    }

    /// Reads the maps of one that exists.
    pub fn read(fd: OwnedFd) -> io::Result<UserNamespace> {
        let holder = Holder::new(Some(fd.as_fd()))?;
        let map = |name: &str| parse(&fs::read_to_string(format!("/proc/{}/{name}", holder.0.pid))?);
        let (uids, gids) = (map("uid_map")?, map("gid_map")?);
        Ok(UserNamespace { fd, uids, gids })
    }

    /// The user ids.
    pub fn uids(&self) -> &[IdRange] {
        &self.uids
    }

    /// The group ids.
    pub fn gids(&self) -> &[IdRange] {
        &self.gids
    }

    /// What user `id` is outside; `None` if the namespace doesn't have it.
    pub fn outer_uid(&self, id: u32) -> Option<u32> {
        outside(&self.uids, id)
    }

    /// What group `id` is outside.
    pub fn outer_gid(&self, id: u32) -> Option<u32> {
        outside(&self.gids, id)
    }
}

impl UserNamespace {
    /// User and group inside that own what nobody in particular owns: root, or the first that there is.
    pub fn root(&self) -> (u32, u32) {
        let first = |map: &[IdRange]| map.iter().map(|range| range.inside).min().unwrap_or(0);
        (first(&self.uids), first(&self.gids))
    }

    /// What these are outside.
    pub fn outer_root(&self) -> (u32, u32) {
        let (uid, gid) = self.root();
        (self.outer_uid(uid).unwrap_or(0), self.outer_gid(gid).unwrap_or(0))
    }
}

fn outside(map: &[IdRange], id: u32) -> Option<u32> {
    let range = map.iter().find(|range| id >= range.inside && id - range.inside < range.count)?;
    range.outside.checked_add(id - range.inside)
}

fn text(map: &[IdRange]) -> String {
    map.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count)).collect()
}

fn parse(text: &str) -> io::Result<Vec<IdRange>> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "is no id map");
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().map_err(|_| bad()));
        let mut next = || numbers.next().unwrap_or_else(|| Err(bad()));
        Ok(IdRange { inside: next()?, outside: next()?, count: next()? })
    };
    text.lines().map(line).collect()
}

/// A child that does nothing but be in a user namespace; it goes when this is dropped.
struct Holder(Child);

impl Holder {
    fn new(join: Option<BorrowedFd<'_>>) -> io::Result<Holder> {
        let flags = if join.is_some() { 0 } else { libc::CLONE_NEWUSER };
        // SAFETY: the child makes system calls alone and never returns.
        let Some(child) = (unsafe { process::clone3(flags, None) })? else { hold(join.map(|fd| fd.as_raw_fd())) };
        let holder = Holder(child);
        // It stops itself once it is where it should be; a join that fails ends it.
        match process::stopped(&holder.0.pidfd)? {
            true => Ok(holder),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it can't be joined")),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = process::pidfd_send_signal(&self.0.pidfd, libc::SIGKILL);
        let _ = process::waitid(&self.0.pidfd, true);
    }
}

fn hold(join: Option<i32>) -> ! {
    // SAFETY: system calls without memory.
    unsafe {
        // Nobody would wake it if the parent died now.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if let Some(fd) = join
            && libc::setns(fd, libc::CLONE_NEWUSER) != 0
        {
            libc::_exit(1);
        }
        loop {
            libc::syscall(libc::SYS_kill, libc::syscall(libc::SYS_getpid), libc::SIGSTOP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_the_maps_that_it_was_made_with() {
        let uids =
            [IdRange { inside: 0, outside: 100_000, count: 1000 }, IdRange { inside: 5000, outside: 1, count: 1 }];
        let gids = [IdRange { inside: 0, outside: 200_000, count: 10 }];
        let made = UserNamespace::create(&uids, &gids).unwrap();
        let read = UserNamespace::read(made.fd.try_clone().unwrap()).unwrap();
        assert_eq!((read.uids(), read.gids()), (&uids[..], &gids[..]));
        assert_eq!((read.outer_uid(999), read.outer_uid(1000), read.outer_uid(5000)), (Some(100_999), None, Some(1)));
        assert_eq!((read.outer_gid(9), read.outer_gid(10)), (Some(200_009), None));

        let twice = [IdRange { inside: 0, outside: 1, count: 2 }, IdRange { inside: 1, outside: 9, count: 2 }];
        assert_eq!(UserNamespace::create(&twice, &gids).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let net = fs::File::open("/proc/self/ns/net").unwrap();
        assert!(UserNamespace::read(net.into()).is_err());
    }
}
