//! The user namespace of a container, and what becomes of a process that is to live in one.
//!
//! Namespaces belong to the user namespace of who makes them, so the child that is cloned first only joins: what exists
//! already while it still has the rights of the host, then the user namespace. The process that it then clones, as a
//! brother, makes the rest in there and becomes the container's ([`Step::Born`]).

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use cofferdam_sys::{
    fd, mount,
    userns::{IdRange, UserNamespace},
};
use cofferdam_types::{Error, Result};
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Process};

use super::{plan, step::Step};
use crate::Stdio;

/// Makes or opens the user namespace that a spec asks for.
pub(super) fn namespace(linux: &Linux) -> Result<Option<UserNamespace>> {
    let asked = linux.namespaces().iter().flatten().find(|n| n.typ() == LinuxNamespaceType::User);
    let Some(asked) = asked else { return Ok(None) };
    let (uids, gids) = (ranges(linux.uid_mappings()), ranges(linux.gid_mappings()));
    let Some(path) = asked.path().as_ref().filter(|p| !p.as_os_str().is_empty()) else {
        return make(&uids, &gids).map(Some);
    };
    let opened = plan::open_namespace(path, libc::CLONE_NEWUSER)?;
    let joined = UserNamespace::read(opened).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidInput => {
            let why = "is the daemon's own, or one that it may not join: leave it out, or name another";
            Error::invalid("namespace", path.display(), why)
        }
        _ => Error::io("namespace", path.display(), "joining the user namespace", &e),
    })?;
    let other = |field: &str, wanted: &[IdRange], has: &[IdRange]| {
        if wanted.is_empty() || wanted == has {
            return Ok(());
        }
        let why = format!("isn't the map that {} has: leave it out", path.display());
        Err(Error::invalid("spec", format!("linux.{field}"), why))
    };
    other("uidMappings", &uids, joined.uids())?;
    other("gidMappings", &gids, joined.gids())?;
    Ok(Some(joined))
}

/// Makes a user namespace with these maps.
pub(super) fn make(uids: &[IdRange], gids: &[IdRange]) -> Result<UserNamespace> {
    UserNamespace::create(uids, gids).map_err(|e| match e.raw_os_error() {
        Some(libc::EINVAL) => Error::invalid(
            "spec",
            "linux.uidMappings",
            "or gidMappings: the kernel takes at most 340 ranges, which are not empty and don't overlap",
        ),
        Some(libc::ENOSPC) => Error::resource_exhausted(
            "namespace",
            "user",
            "the host has as many user namespaces as it allows (user.max_user_namespaces)",
        ),
        Some(libc::EPERM) => Error::failed_precondition(
            "namespace",
            "user",
            "this host doesn't let the daemon map these ids: are they its own (/proc/self/uid_map)?",
        ),
        _ => Error::io("namespace", "user", "making it", &e),
    })
}

/// The ranges of a spec.
pub(super) fn ranges(mappings: &Option<Vec<LinuxIdMapping>>) -> Vec<IdRange> {
    let range = |m: &LinuxIdMapping| IdRange { inside: m.container_id(), outside: m.host_id(), count: m.size() };
    mappings.iter().flatten().map(range).collect()
}

/// Becomes the namespace's root, in whose name the rest is set up: the ids of the host mean nothing inside.
pub(super) fn root(user: &UserNamespace) -> Step {
    let (uid, gid) = user.root();
    Step::Become { uid, gid }
}

/// Refuses a process whose ids the namespace doesn't have.
pub(super) fn check(process: &Process, user: &UserNamespace) -> Result<()> {
    let ids = process.user();
    let missing = |what: &str, id: u32| {
        let why = format!("{what} {id} is not one that the user namespace has: map it, or choose another");
        Err(Error::invalid("spec", "process.user", why))
    };
    if user.outer_uid(ids.uid()).is_none() {
        return missing("uid", ids.uid());
    }
    let groups = ids.additional_gids().iter().flatten().copied();
    match [ids.gid()].into_iter().chain(groups).find(|gid| user.outer_gid(*gid).is_none()) {
        Some(gid) => missing("gid", gid),
        None => Ok(()),
    }
}

/// Gives the process its pipes, as the root inside can't: it has no rights over what is the host's.
pub(super) fn own_pipes(process: &Process, stdio: &Stdio<'_>, user: &UserNamespace) -> Result<()> {
    let Stdio::Fds { stdin, stdout, stderr } = stdio else { return Ok(()) };
    let Some(owner) = user.outer_uid(process.user().uid()) else { return Ok(()) };
    for stream in [stdin, stdout, stderr] {
        let fail = |e: &std::io::Error| Error::io("process", "", "giving it its standard streams", e);
        // Only pipes: a program that reopens /dev/stdout needs it, and a file is somebody's.
        if fd::file_type(&fd::stat(stream).map_err(|e| fail(&e))?) == libc::S_IFIFO {
            nix::unistd::fchown(stream, Some(Uid::from_raw(owner)), None).map_err(|e| fail(&e.into()))?;
        }
    }
    Ok(())
}

/// Device nodes that are made out here, each to be mounted in its place: nobody can make one in a user namespace. They
/// lie on a file system of their own, which goes with the last of these mounts.
pub(super) struct Nodes<'a> {
    user: &'a UserNamespace,
    tree: OwnedFd,
    next: usize,
}

impl<'a> Nodes<'a> {
    pub fn new(user: &'a UserNamespace) -> Result<Nodes<'a>> {
        Ok(Nodes { user, tree: mount::Filesystem::open("tmpfs")?.mount(0)?, next: 0 })
    }

    /// One more, as a detached mount.
    pub fn make(&mut self, mode: u32, device: u64, owner: (u32, u32)) -> Result<OwnedFd> {
        use nix::{fcntl::AtFlags, sys::stat, unistd};
        let (Some(uid), Some(gid)) = (self.user.outer_uid(owner.0), self.user.outer_gid(owner.1)) else {
            let why = format!("owner {}:{} is not one that the user namespace has", owner.0, owner.1);
            return Err(Error::invalid("spec", "linux.devices", why));
        };
        let name = self.next.to_string();
        self.next += 1;
        let made = (|| {
            let (kind, permissions) = (stat::SFlag::from_bits_truncate(mode), stat::Mode::from_bits_truncate(mode));
            stat::mknodat(&self.tree, name.as_str(), kind, stat::Mode::empty(), device)?;
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            unistd::fchownat(&self.tree, name.as_str(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            stat::fchmodat(&self.tree, name.as_str(), permissions, stat::FchmodatFlags::FollowSymlink)?;
            mount::clone_tree(fd::open_no_symlinks(&self.tree, name.as_ref(), libc::O_PATH, 0)?, false)
        })();
        made.map_err(|e: std::io::Error| match e.raw_os_error() {
            Some(libc::EINVAL) => {
                let why = "this kernel can't bind device nodes for a user namespace (Linux 6.15 can)";
                Error::unimplemented("spec", "linux.namespaces user", why)
            }
            _ => Error::io("spec", "linux.devices", "making a node", &e),
        })
    }
}

/// The namespace of a process.
pub(super) fn duplicate(user: &UserNamespace) -> Result<OwnedFd> {
    user.as_fd().try_clone_to_owned().map_err(|e| Error::io("namespace", "user", "duplicating it", &e))
}

/// Whether a namespace is one that this process lives in, or the host's first one.
pub(super) fn is_own(namespace: &OwnedFd, name: &str) -> bool {
    let place = |fd: &OwnedFd| fd::stat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    ["thread-self", "1"].iter().any(|process| {
        let own = File::open(format!("/proc/{process}/ns/{name}"));
        own.is_ok_and(|own| place(&own.into()) == place(namespace))
    })
}
