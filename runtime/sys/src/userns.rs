//! User namespaces: made with their id maps, or read.
//!
//! A namespace lives as long as its descriptor; who is to live in it joins by that. Making one takes a child for a moment,
//! since only a process can have one.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
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

/// The maps of a user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMaps {
    /// Of users.
    pub uids: Vec<IdRange>,
    /// Of groups.
    pub gids: Vec<IdRange>,
}

/// A user namespace and its maps.
#[derive(Debug)]
pub struct UserNamespace {
    fd: OwnedFd,
    maps: IdMaps,
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
        Ok(UserNamespace { fd, maps: IdMaps { uids: uids.to_vec(), gids: gids.to_vec() } })
    }

    /// Reads the maps of one that exists.
    pub fn read(fd: OwnedFd) -> io::Result<UserNamespace> {
        let holder = Holder::new(Some(fd.as_fd()))?;
        let maps = IdMaps::read(&format!("/proc/{}", holder.0.pid))?;
        Ok(UserNamespace { fd, maps })
    }

    /// The user ids.
    pub fn uids(&self) -> &[IdRange] {
        &self.maps.uids
    }

    /// The group ids.
    pub fn gids(&self) -> &[IdRange] {
        &self.maps.gids
    }

    /// What user `id` is outside; `None` if the namespace doesn't have it.
    pub fn outer_uid(&self, id: u32) -> Option<u32> {
        outside(&self.maps.uids, id)
    }

    /// What group `id` is outside.
    pub fn outer_gid(&self, id: u32) -> Option<u32> {
        outside(&self.maps.gids, id)
    }

    /// See [`IdMaps::root`].
    pub fn root(&self) -> (u32, u32) {
        self.maps.root()
    }

    /// See [`IdMaps::outer_root`].
    pub fn outer_root(&self) -> (u32, u32) {
        self.maps.outer_root()
    }
}

/// What the kernel shows for an id that has no name in a namespace.
const NOBODY: u32 = 65_534;
/// An attribute `security.capability`, by its version: where the namespace is the file system's own, and with its root's id.
const CAPABILITIES_2: (u32, usize) = (0x0200_0000, 20);
const CAPABILITIES_3: (u32, usize) = (0x0300_0000, 24);
const REVISION: u32 = 0xff00_0000;

impl IdMaps {
    /// Those of the namespace of a process, `/proc/<pid>`, where that is not the caller's own.
    pub fn of_process(process: BorrowedFd<'_>) -> io::Result<Option<IdMaps>> {
        let place = format!("/proc/self/fd/{}", process.as_raw_fd());
        let (own, other) = (fs::metadata("/proc/self/ns/user")?, fs::metadata(format!("{place}/ns/user"))?);
        if own.ino() == other.ino() {
            return Ok(None);
        }
        IdMaps::read(&place).map(Some)
    }

    fn read(process: &str) -> io::Result<IdMaps> {
        let map = |name: &str| parse(&fs::read_to_string(format!("{process}/{name}"))?);
        Ok(IdMaps { uids: map("uid_map")?, gids: map("gid_map")? })
    }

    /// What user and group inside are outside; `None` if the namespace doesn't have them.
    pub fn outer(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        outside(&self.uids, uid).zip(outside(&self.gids, gid))
    }

    /// What user and group outside are inside.
    pub fn inner(&self, uid: u32, gid: u32) -> (u32, u32) {
        (inside(&self.uids, uid).unwrap_or(NOBODY), inside(&self.gids, gid).unwrap_or(NOBODY))
    }

    /// An attribute `security.capability` that was read outside, as the namespace's root would.
    pub fn capability_inside(&self, value: &[u8]) -> Vec<u8> {
        let (magic, root) = (word(value, 0), word(value, CAPABILITIES_2.1));
        match (magic, root) {
            (Some(magic), Some(root))
                if (magic & REVISION, value.len()) == CAPABILITIES_3 && inside(&self.uids, root) == Some(0) =>
            {
                let magic = magic & !REVISION | CAPABILITIES_2.0;
                [&magic.to_le_bytes(), &value[4..CAPABILITIES_2.1]].concat()
            }
            _ => value.to_vec(),
        }
    }

    /// One that the namespace's root would set, as it is set outside.
    pub fn capability_outside(&self, value: &[u8]) -> Vec<u8> {
        match (word(value, 0), outside(&self.uids, 0)) {
            (Some(magic), Some(root)) if (magic & REVISION, value.len()) == CAPABILITIES_2 => {
                let magic = magic & !REVISION | CAPABILITIES_3.0;
                [&magic.to_le_bytes(), &value[4..], &root.to_le_bytes()].concat()
            }
            _ => value.to_vec(),
        }
    }

    /// User and group inside that own what nobody in particular owns: root, or the first that there is.
    pub fn root(&self) -> (u32, u32) {
        let first = |map: &[IdRange]| map.iter().map(|range| range.inside).min().unwrap_or(0);
        (first(&self.uids), first(&self.gids))
    }

    /// What these are outside.
    pub fn outer_root(&self) -> (u32, u32) {
        let (uid, gid) = self.root();
        self.outer(uid, gid).unwrap_or((0, 0))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn inside(map: &[IdRange], id: u32) -> Option<u32> {
    let range = map.iter().find(|range| id >= range.outside && id - range.outside < range.count)?;
    range.inside.checked_add(id - range.outside)
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
        // With the caller's own descriptors: it would have to close copies of them, which may take any time (`spawn`).
        let flags = libc::CLONE_FILES | if join.is_some() { 0 } else { libc::CLONE_NEWUSER };
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
        let maps = read.maps;
        assert_eq!((maps.outer(5000, 9), maps.outer(5000, 10)), (Some((1, 200_009)), None));
        assert_eq!((maps.inner(100_999, 200_000), maps.inner(0, 200_010)), ((999, 0), (NOBODY, NOBODY)));

        let twice = [IdRange { inside: 0, outside: 1, count: 2 }, IdRange { inside: 1, outside: 9, count: 2 }];
        assert_eq!(UserNamespace::create(&twice, &gids).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let net = fs::File::open("/proc/self/ns/net").unwrap();
        assert!(UserNamespace::read(net.into()).is_err());
    }

    #[test]
    fn a_process_has_maps_where_it_is_elsewhere() {
        let maps = IdMaps {
            uids: vec![IdRange { inside: 0, outside: 100_000, count: 9 }],
            gids: vec![IdRange { inside: 0, outside: 1, count: 9 }],
        };
        let holder = UserNamespace::create(&maps.uids, &maps.gids).unwrap();
        let within = Holder::new(Some(holder.as_fd())).unwrap();
        for (pid, expected) in [(within.0.pid, Some(maps)), (std::process::id() as i32, None)] {
            let process = fs::File::open(format!("/proc/{pid}")).unwrap();
            assert_eq!(IdMaps::of_process(process.as_fd()).unwrap(), expected);
        }
    }

    #[test]
    fn a_programs_capabilities_are_those_of_root_in_the_namespace() {
        let maps = IdMaps { uids: vec![IdRange { inside: 0, outside: 0x0403_0201, count: 9 }], gids: Vec::new() };
        let within = [&[1, 0, 0, 2][..], &[7; 16]].concat();
        let without = [&[1, 0, 0, 3][..], &[7; 16], &[1, 2, 3, 4]].concat();
        assert_eq!(maps.capability_outside(&within), without);
        assert_eq!(maps.capability_inside(&without), within);
        // Of another root, or nothing that the kernel made.
        let other = [&[1, 0, 0, 3][..], &[7; 16], &[0, 2, 3, 4]].concat();
        for odd in [&other[..], &[], &[2], &[1, 0, 0, 3], &[9; 20]] {
            assert_eq!((maps.capability_inside(odd), maps.capability_outside(odd)), (odd.to_vec(), odd.to_vec()));
        }
    }
}
