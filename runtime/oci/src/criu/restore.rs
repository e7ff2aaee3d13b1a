//! A container of the native driver out of criu's images: cgroups, network and root are ours, the rest is criu's.

use std::{
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::Path,
};

use cofferdam_sys::{cgroup::Cgroup, process};
use cofferdam_types::{Error, Result};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{
    DEADLINE, DESCRIPTORS, IMAGES, NETWORK, WORK,
    dump::{binds, folder, has, normal},
    explained,
    rpc::{Inherit, Notify, Options, Request, Session, Surroundings, kind},
    verify,
};
use crate::{CreateRequest, Process, RestoreFrom, Stdio, native::sysctl_path};

const LOG: &str = "restore.log";

/// What a container can't have that is restored.
pub(crate) fn check(request: &CreateRequest<'_>) -> Result<()> {
    let refuse = |what: &str| {
        let why = format!("what is restored can't have {what}: leave it out");
        Err(Error::unimplemented("container", request.id, why))
    };
    if has(request.spec, LinuxNamespaceType::User) {
        return refuse("a user namespace");
    }
    if request.spec.linux().as_ref().is_some_and(|l| l.net_devices().as_ref().is_some_and(|d| !d.is_empty())) {
        return refuse("network devices of the host's");
    }
    if request.spec.hooks().is_some() {
        return refuse("hooks");
    }
    if request.spec.linux().as_ref().is_some_and(|l| l.intel_rdt().is_some()) {
        return refuse("a class of service (intelRdt)");
    }
    Ok(())
}

/// Restores into a cgroup that exists, with `root` mounted. `limits` is called when all is there and nothing has run.
pub(crate) fn restore(
    request: &CreateRequest<'_>,
    from: &RestoreFrom<'_>,
    cgroup: &Cgroup,
    root: &Path,
    mut limits: impl FnMut() -> Result<()>,
) -> Result<Process> {
    super::require(from.criu)?;
    let io = |what: &str, e: &std::io::Error| Error::io("container", request.id, what, e);
    let (images, work) = (folder(from.dir, IMAGES)?, folder(from.dir, WORK)?);
    let network = network(request.spec)?;
    let mut inherit = Vec::new();
    let mut held: Vec<OwnedFd> = Vec::new();
    if let Some(network) = network {
        tune(request.spec, &network)?;
        inherit.push(Inherit { key: NETWORK.into(), fd: network.as_raw_fd() });
        held.push(network);
    }
    if let Stdio::Fds { stdin, stdout, stderr } = request.stdio {
        let keys = std::fs::read(from.dir.join(IMAGES).join(DESCRIPTORS)).ok();
        let keys: Vec<String> = keys.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        for (key, fd) in keys.into_iter().zip([stdin, stdout, stderr]) {
            if key.is_empty() || inherit.iter().any(|known| known.key == key) {
                continue;
            }
            let fd = fd.try_clone_to_owned().map_err(|e| io("duplicating its streams", &e))?;
            inherit.push(Inherit { key, fd: fd.as_raw_fd() });
            held.push(fd);
        }
    }
    let options = Options {
        images_dir: images.as_raw_fd(),
        work_dir: Some(work.as_raw_fd()),
        root: Some(root.to_str().ok_or_else(|| Error::invalid("bundle", root.display(), "is not UTF-8"))?.to_owned()),
        ext_unix_sk: Some(from.unix_sockets),
        tcp_established: Some(from.tcp_established),
        evasive_devices: Some(true),
        file_locks: Some(true),
        log_file: Some(LOG.into()),
        notify_scripts: Some(true),
        restore_sibling: Some(true),
        inherit,
        cgroups_mode: Some(0),
        external: external(request.spec, cgroup, request.bundle_path),
        orphan_pts_master: Some(true),
        ..Options::default()
    };
    let inherited: Vec<RawFd> =
        held.iter().map(|fd| fd.as_raw_fd()).chain([images.as_raw_fd(), work.as_raw_fd()]).collect();
    let join = cgroup.entrances()?;
    let cgroup_namespace = has(request.spec, LinuxNamespaceType::Cgroup);
    let mut session =
        Session::start(from.criu, DEADLINE, &Surroundings { inherited: &inherited, join: &join, cgroup_namespace })?;
    let criu = session.pid();
    let mut console = None;
    let notified = |notify: &Notify, fd: Option<OwnedFd>| {
        match notify.script.as_deref() {
            Some("orphan-pts-master") => console = fd,
            // Everything is there, and stands still.
            Some("pre-resume") => {
                verify::verify(request.id, request.spec, &cgroup.pids()?, criu)?;
                verify::filters(request, &from.dir.join(IMAGES))?;
                limits()?;
            }
            _ => {}
        }
        Ok(())
    };
    let answer =
        session.ask(&Request { kind: kind::RESTORE, options: Some(options), notify_success: None }, notified)?;
    if !answer.success {
        let why = explained("restore", &from.dir.join(WORK).join(LOG), answer.message);
        return Err(Error::failed_precondition("container", request.id, why));
    }
    let pid = answer.restore.map(|restored| restored.pid);
    let pid = pid.ok_or_else(|| Error::internal("container", request.id, "criu doesn't say what it restored"))?;
    // A child of ours: it can't be somebody else's number before we reap it.
    let pidfd = process::pidfd_open(pid).map_err(|e| io("opening its pidfd", &e))?;
    session.finish()?;
    match (&request.stdio, &console) {
        (Stdio::Terminal { .. }, None) => {
            let why = "was checkpointed without a terminal: restore it without one";
            return Err(Error::failed_precondition("container", request.id, why));
        }
        (Stdio::Terminal { .. }, Some(console)) => {
            if let Some((rows, columns)) = request.stdio.size(request.spec.process().as_ref()) {
                cofferdam_sys::pty::resize(console, rows, columns)
                    .map_err(|e| io("setting the size of its terminal", &e))?;
            }
        }
        _ => console = None,
    }
    Ok(Process { pid, pidfd, console })
}

/// The network namespace that it gets: a new one, or the one that the spec names. `None`: the host's.
fn network(spec: &Spec) -> Result<Option<OwnedFd>> {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
    let Some(network) = namespaces.iter().find(|n| n.typ() == LinuxNamespaceType::Network) else { return Ok(None) };
    if let Some(path) = network.path().as_ref().filter(|p| !p.as_os_str().is_empty()) {
        return crate::native::open_namespace(path, libc::CLONE_NEWNET).map(Some);
    }
    let made = cofferdam_sys::network::fresh();
    made.map(|made| Some(made.into())).map_err(|e| Error::io("namespace", "network", "making it", &e))
}

/// Sets the parameters of the network that the spec names: criu sets those of the namespaces that it makes, from its images.
fn tune(spec: &Spec, network: &OwnedFd) -> Result<()> {
    let all = spec.linux().as_ref().and_then(|l| l.sysctl().as_ref()).into_iter().flatten();
    let wanted: Vec<_> = all
        .map(|(name, value)| (name, sysctl_path(name), value))
        .filter(|(_, p, _)| p.starts_with("sys/net/"))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let fail = |what: &str, e: &std::io::Error| Error::io("spec", format!("sysctl {what}"), "can't be set", e);
    // A thread of its own, since the namespace is a thread's; it ends with it.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            process::setns(network, libc::CLONE_NEWNET).map_err(|e| fail("of the network", &e))?;
            wanted.iter().try_for_each(|(name, path, value)| {
                std::fs::write(format!("/proc/{path}"), value).map_err(|e| fail(name, &e))
            })
        });
        thread.join().unwrap_or_else(|_| Err(Error::internal("spec", "sysctl", "its thread panicked")))
    })
}

/// What takes the place of the mounts that the checkpoint left out: the container's own cgroups, and the host's files
/// that the spec names, where a relative one starts at the bundle.
fn external(spec: &Spec, cgroup: &Cgroup, bundle: &Path) -> Vec<String> {
    let groups = spec.mounts().iter().flatten().filter(|m| m.typ().as_deref() == Some("cgroup")).flat_map(|mount| {
        let base = normal(mount.destination());
        let parts: Vec<_> = cgroup.parts().collect();
        let single = parts.len() == 1 && parts[0].0.unified;
        let at = move |root: &Path| match root.file_name() {
            Some(name) if !single => base.join(name),
            _ => base.clone(),
        };
        let entry = |root: &Path| format!("mnt[{}]:{}{}", at(root).display(), root.display(), cgroup.path());
        parts.iter().map(|(hierarchy, _)| entry(&hierarchy.root)).collect::<Vec<_>>()
    });
    let binds = binds(spec).filter_map(|mount| {
        let source = bundle.join(mount.source().as_ref()?);
        Some(format!("mnt[{}]:{}", normal(mount.destination()).display(), source.display()))
    });
    groups.chain(binds).collect()
}
