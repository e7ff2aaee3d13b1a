//! A container of the native driver into criu's images. It goes on afterwards, or stays frozen, as it was.

use std::{
    collections::BTreeSet,
    fs::File,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use cofferdam_sys::{
    cgroup::{Cgroup, Layout},
    mountinfo::{self, Info},
};
use cofferdam_types::{Error, Result};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::{
    DEADLINE, DESCRIPTORS, IMAGES, NETWORK, WORK, explained,
    rpc::{Options, Request, Session, Surroundings, kind},
};
use crate::CheckpointRequest;

const LOG: &str = "dump.log";

pub(crate) fn dump(layout: &Layout, request: &CheckpointRequest) -> Result<()> {
    super::require(&request.criu)?;
    check(&request.id, &request.spec)?;
    let mounts = mounts_of(request.pid, &request.id)?;
    let streams = streams(request.pid, &request.id, &mounts)?;
    let (images, work) = (folder(&request.dir, IMAGES)?, folder(&request.dir, WORK)?);
    let text = serde_json::to_vec(&streams).map_err(|e| Error::internal("checkpoint", &request.id, e.to_string()))?;
    std::fs::write(request.dir.join(IMAGES).join(DESCRIPTORS), text)
        .map_err(|e| Error::io("checkpoint", &request.id, "noting its streams", &e))?;
    let mut external: BTreeSet<String> = streams.into_iter().filter(|key| !key.starts_with("pipe:")).collect();
    external.remove("");
    external.extend(foreign(&request.spec, &mounts).map(|point| format!("mnt[{point}]:{point}")));
    if has(&request.spec, LinuxNamespaceType::Network) {
        let namespace = std::fs::metadata(format!("/proc/{}/ns/net", request.pid))
            .map_err(|e| Error::io("container", &request.id, "looking at its network namespace", &e))?;
        external.insert(format!("net[{}]:{NETWORK}", namespace.ino()));
    }
    let options = Options {
        images_dir: images.as_raw_fd(),
        work_dir: Some(work.as_raw_fd()),
        pid: Some(request.pid),
        leave_running: Some(true),
        ext_unix_sk: Some(request.unix_sockets),
        tcp_established: Some(request.tcp_established),
        file_locks: Some(true),
        log_file: Some(LOG.into()),
        // Cgroups are made anew by who restores.
        cgroups_mode: Some(0),
        external: external.into_iter().collect(),
        freeze_cgroup: freezer(&Cgroup::open(layout, &request.cgroup)?),
        orphan_pts_master: Some(true),
        ..Options::default()
    };
    let inherited = [images.as_raw_fd(), work.as_raw_fd()];
    let mut session =
        Session::start(&request.criu, DEADLINE, &Surroundings { inherited: &inherited, ..Surroundings::default() })?;
    let ask = Request { kind: kind::DUMP, options: Some(options), notify_success: None };
    let answer = session.ask(&ask, |_, _| Ok(()))?;
    if !answer.success {
        let why = explained("checkpoint", &request.dir.join(WORK).join(LOG), answer.message);
        return Err(Error::failed_precondition("container", &request.id, why));
    }
    session.finish()
}

/// What no restore could honour.
fn check(id: &str, spec: &Spec) -> Result<()> {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
    let own = |kind| namespaces.iter().any(|n| n.typ() == kind && n.path().is_none());
    let refuse = |why: &str| Err(Error::unimplemented("container", id, format!("can't be checkpointed: {why}")));
    if !own(LinuxNamespaceType::Pid) || !own(LinuxNamespaceType::Mount) {
        return refuse("it has no pid and mount namespaces of its own, where its processes could be put again");
    }
    if namespaces.iter().any(|n| n.typ() == LinuxNamespaceType::User) {
        return refuse("it has a user namespace");
    }
    let others = [LinuxNamespaceType::Network, LinuxNamespaceType::Cgroup];
    if namespaces.iter().any(|n| n.path().is_some() && !others.contains(&n.typ())) {
        return refuse("it shares a namespace with others");
    }
    Ok(())
}

pub(super) fn has(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    spec.linux().as_ref().and_then(|l| l.namespaces().as_ref()).into_iter().flatten().any(|n| n.typ() == kind)
}

fn mounts_of(pid: i32, id: &str) -> Result<Vec<Info>> {
    std::fs::read(format!("/proc/{pid}/mountinfo"))
        .and_then(|table| mountinfo::parse(&table))
        .map_err(|e| Error::io("container", id, "reading its mounts", &e))
}

/// Mount points whose content is not the container's: cgroups, and what is bound from the host.
fn foreign<'a>(spec: &'a Spec, mounts: &'a [Info]) -> impl Iterator<Item = String> + 'a {
    let bound: BTreeSet<PathBuf> = binds(spec).map(|mount| normal(mount.destination())).collect();
    let foreign = move |info: &&Info| info.kind.starts_with("cgroup") || bound.contains(&info.point);
    mounts.iter().filter(foreign).map(|info| info.point.to_string_lossy().into_owned())
}

/// The bind mounts of a spec.
pub(super) fn binds(spec: &Spec) -> impl Iterator<Item = &Mount> {
    spec.mounts().iter().flatten().filter(|mount| {
        mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(|o| o == "bind" || o == "rbind")
    })
}

/// Without `.`, `..` and empty parts.
pub(super) fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            std::path::Component::Normal(part) => out.push(part),
            std::path::Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out
}

/// Where the first process's streams lead, as criu names what it is handed again at the restore. Empty: into the
/// container itself.
fn streams(pid: i32, id: &str, mounts: &[Info]) -> Result<Vec<String>> {
    (0..3).map(|fd| stream(pid, fd, id, mounts)).collect()
}

fn stream(pid: i32, fd: i32, id: &str, mounts: &[Info]) -> Result<String> {
    let io = |e: std::io::Error| Error::io("container", id, format!("looking at its descriptor {fd}"), &e);
    let path = format!("/proc/{pid}/fd/{fd}");
    let target = match std::fs::read_link(&path) {
        Ok(target) => target.to_string_lossy().into_owned(),
        // It closed it.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(e) => return Err(io(e)),
    };
    if target.starts_with("pipe:") {
        return Ok(target);
    }
    if !target.starts_with('/') {
        let why = format!("can't be checkpointed: its descriptor {fd} is {target}; start it with files or pipes");
        return Err(Error::failed_precondition("container", id, why));
    }
    let mount = mountinfo::id_of_fd(pid, fd).map_err(io)?;
    let mount = mount.ok_or_else(|| Error::internal("container", id, "its descriptor has no mount"))?;
    if mounts.iter().any(|info| info.id == mount) {
        return Ok(String::new());
    }
    let meta = std::fs::metadata(&path).map_err(io)?;
    if meta.file_type().is_char_device() && matches!(libc::major(meta.rdev()), 4 | 5 | 136..=143) {
        return Ok(format!("tty[{:x}:{:x}]", meta.rdev(), meta.dev()));
    }
    Ok(format!("file[{mount:x}:{:x}]", meta.ino()))
}

/// The directory by which the driver freezes it.
fn freezer(cgroup: &Cgroup) -> Option<String> {
    let part = cgroup
        .parts()
        .find(|(hierarchy, _)| hierarchy.unified)
        .or_else(|| cgroup.parts().find(|(hierarchy, _)| hierarchy.controllers.iter().any(|c| c == "freezer")));
    part.map(|(hierarchy, _)| format!("{}{}", hierarchy.root.display(), cgroup.path()))
}

/// A directory of the checkpoint, made if it is missing.
pub(super) fn folder(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(name);
    let fail = |e: std::io::Error| Error::io("checkpoint", path.display(), "opening its directory", &e);
    match std::fs::create_dir(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(fail(e)),
        _ => {}
    }
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    File::options().read(true).custom_flags(flags).open(&path).map_err(fail)
}
