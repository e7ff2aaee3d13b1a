//! From a spec to the steps that make its container.

use std::{
    ffi::CString,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path},
};

use cofferdam_sys::{cgroup::Cgroup, fd, mount, userns::UserNamespace};
use cofferdam_types::{Error, Result};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};

use super::{
    ahead::Ahead,
    furnish,
    identity::{c_string, limits},
    mounts::{self, Wish},
    netdevices, nodes, properties,
    step::{Attributes, Make, Step, Target},
    user,
};
use crate::CreateRequest;

/// What a spec becomes, up to the streams of its first process.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// For clone3.
    pub flags: i32,
    /// A pid namespace to be born into.
    pub pid_namespace: Option<OwnedFd>,
    pub steps: Vec<Step>,
    /// Goes behind everything that makes files.
    late: Vec<Step>,
    /// The namespaces that another process of the container joins, through the pidfd of the first.
    pub join: i32,
}

/// `hooks`: there are some that run before the root is the root.
pub(super) fn plan(
    request: &CreateRequest<'_>,
    cgroup: &Cgroup,
    user: Option<&UserNamespace>,
    ahead: &Ahead,
    hooks: bool,
) -> Result<Plan> {
    let spec = request.spec;
    let nothing = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&nothing);
    let mut plan = Plan { steps: vec![Step::Undumpable], ..Plan::default() };
    // In a user namespace's container it must be that one's.
    let network = ahead.network().filter(|_| user.is_none());
    namespaces(spec, linux, cgroup, user, network, &mut plan)?;
    let steps = &mut plan.steps;
    if let Some(process) = spec.process() {
        steps.append(&mut properties::labels(process)?);
    }
    if hooks {
        steps.push(Step::Reach(place(request)?));
    }
    // From here on files of the host are out of reach.
    steps.extend(user.map(user::root));
    if let Some(name) = spec.hostname().as_ref().filter(|n| !n.is_empty()) {
        steps.push(Step::Hostname(c_string("hostname", name)?));
    }
    if let Some(name) = spec.domainname().as_ref().filter(|n| !n.is_empty()) {
        steps.push(Step::Domainname(c_string("domainname", name)?));
    }
    for (name, value) in linux.sysctl().iter().flatten() {
        let (path, value) = (c_string("linux.sysctl", &sysctl_path(name))?, c_string("linux.sysctl", value)?);
        steps.push(Step::Sysctl { name: name.clone(), path, value });
    }
    if user.is_some() {
        steps.push(Step::Early);
    }
    let root = root(request, user)?;
    let (mut inside, mut late) = (Vec::new(), Vec::new());
    let wish = Wish { request, cgroup, user, root: root.as_fd(), ahead };
    for mount in spec.mounts().iter().flatten() {
        mounts::mount(&wish, mount, &mut inside, &mut late)?;
    }
    let mut nodes = Vec::new();
    nodes::devices(request, linux, user, &mut nodes)?;
    furnish::furnish(&mut inside, nodes);
    steps.push(if hooks { Step::Place(root) } else { Step::Root(root) });
    steps.append(&mut inside);
    if let Some(process) = spec.process() {
        steps.push(Step::Directory(target(process.cwd(), Make::Directory)?));
    }
    if hooks {
        steps.extend([Step::Pause, Step::Pivot]);
    }
    plan.late = late;
    Ok(plan)
}

/// What comes last, once the terminal is in place: hiding, and closing for writing.
pub(super) fn seal(spec: &Spec, plan: &mut Plan) -> Result<()> {
    let steps = &mut plan.steps;
    steps.append(&mut plan.late);
    let nothing = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&nothing);
    for path in linux.readonly_paths().iter().flatten() {
        steps.push(Step::ReadOnly(normal(Path::new(path))?));
    }
    for path in linux.masked_paths().iter().flatten() {
        steps.push(Step::Mask(normal(Path::new(path))?));
    }
    let read_only = spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false);
    let (propagation, recursive) = match linux.rootfs_propagation().as_deref() {
        None | Some("" | "private" | "rprivate") => (0, false),
        Some("slave") => (libc::MS_SLAVE, false),
        Some("rslave") => (libc::MS_SLAVE, true),
        Some("shared") => (libc::MS_SHARED, false),
        Some("rshared") => (libc::MS_SHARED, true),
        Some("unbindable") => (libc::MS_UNBINDABLE, false),
        Some("runbindable") => (libc::MS_UNBINDABLE, true),
        Some(other) => return Err(Error::invalid("spec", "linux.rootfsPropagation", format!("{other:?} is unknown"))),
    };
    let root = || Target { path: c"/".to_owned(), make: Make::Directory, no_symlinks: true };
    if propagation != 0 {
        let attributes = Attributes { propagation, recursive, ..Attributes::default() };
        steps.push(Step::Change { target: root(), attributes });
    }
    if read_only {
        let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
        steps.push(Step::Change { target: root(), attributes });
    }
    Ok(())
}

/// Joins and makes namespaces, and joins the cgroups of v1.
fn namespaces(
    spec: &Spec,
    linux: &Linux,
    cgroup: &Cgroup,
    user: Option<&UserNamespace>,
    mut network: Option<OwnedFd>,
    plan: &mut Plan,
) -> Result<()> {
    let (mut enter, mut late, mut time) = (Vec::new(), 0, None);
    for namespace in linux.namespaces().iter().flatten() {
        let flag = namespace.typ() as i32;
        plan.join |= flag;
        if namespace.typ() == LinuxNamespaceType::User {
            continue;
        }
        if let Some(path) = namespace.path().as_ref().filter(|p| !p.as_os_str().is_empty()) {
            let fd = open_namespace(path, flag)?;
            if namespace.typ() == LinuxNamespaceType::Mount && user::is_own(&fd, "mnt") {
                let why = "is the host's, whose root would become the container's: leave out the path";
                return Err(Error::invalid("namespace", path.display(), why));
            }
            if namespace.typ() == LinuxNamespaceType::Pid {
                plan.pid_namespace = Some(fd);
            } else {
                let what = format!("the {} namespace {}", namespace.typ(), path.display());
                enter.push(Step::Enter { fd, flags: flag, what });
            }
            continue;
        }
        match namespace.typ() {
            LinuxNamespaceType::Network if let Some(fd) = network.take() => {
                enter.push(Step::Enter { fd, flags: flag, what: "the network namespace made ahead".into() });
            }
            LinuxNamespaceType::Time => time = Some(Step::Time(properties::time_offsets(linux)?)),
            // After the cgroups: the cgroup namespace's root is where its maker is, and joining v1 groups right after
            // making a network namespace takes the kernel 8 ms longer than the other way round.
            LinuxNamespaceType::Network | LinuxNamespaceType::Cgroup => late |= flag,
            _ => plan.flags |= flag,
        }
    }
    let groups = cgroup.tasks_v1()?.into_iter().map(Step::Join);
    let steps = &mut plan.steps;
    match user {
        None => {
            steps.push(Step::Gate);
            steps.extend(groups);
            steps.append(&mut enter);
        }
        Some(user) => {
            steps.append(&mut enter);
            if let Some(process) = spec.process() {
                steps.push(Step::Raise(limits(process)?));
            }
            let what = "the user namespace".to_owned();
            steps.push(Step::Enter { fd: user::duplicate(user)?, flags: libc::CLONE_NEWUSER, what });
            let fail = |e: std::io::Error| Error::io("cgroup", cgroup.path(), "duplicating it", &e);
            let unified = cgroup.unified().map(|dir| dir.try_clone_to_owned()).transpose().map_err(fail)?;
            steps.push(Step::Born { flags: std::mem::take(&mut plan.flags), cgroup: unified });
            steps.push(Step::Gate);
            steps.extend(groups);
        }
    }
    steps.extend(time);
    if late != 0 {
        steps.push(Step::Unshare { flags: late });
    }
    if late & libc::CLONE_NEWNET != 0 {
        steps.push(Step::Loopback);
    }
    if netdevices::any(linux) {
        steps.push(Step::Pause);
    }
    Ok(())
}

pub(crate) fn open_namespace(path: &Path, flag: i32) -> Result<OwnedFd> {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    let fail = |e: std::io::Error| match e.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            let why = "the daemon may not open it: name another, or start the daemon with more rights (CAP_SYS_PTRACE)";
            Error::failed_precondition("namespace", path.display(), why)
        }
        Some(libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG) => {
            Error::invalid("namespace", path.display(), format!("is no path of a file: {e}"))
        }
        _ => Error::io("namespace", path.display(), "opening it", &e),
    };
    let other = || Error::invalid("namespace", path.display(), "is not a namespace of that type");
    // As O_PATH first: opening a FIFO may never end, and opening a device would already do something.
    let found = fd::open_path(path).map_err(fail)?;
    if fd::filesystem(&found).map_err(fail)? != NSFS_MAGIC {
        return Err(other());
    }
    let fd = fd::reopen(&found, libc::O_RDONLY).map_err(fail)?;
    // SAFETY: the call takes no memory.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    if kind == flag { Ok(fd) } else { Err(other()) }
}

/// Where hooks find the root file system: `root.path` in the bundle, made if it is missing.
fn place(request: &CreateRequest<'_>) -> Result<CString> {
    let named = request.spec.root().as_ref().map(|root| root.path().clone());
    let path = request.bundle_path.join(named.unwrap_or_else(|| "rootfs".into()));
    std::fs::create_dir_all(&path).map_err(|e| Error::io("bundle", path.display(), "making the directory", &e))?;
    c_string("root.path", &path.to_string_lossy())
}

/// The root file system, detached.
fn root(request: &CreateRequest<'_>, user: Option<&UserNamespace>) -> Result<OwnedFd> {
    match request.rootfs {
        [] => {
            let path = request.spec.root().as_ref().map(|r| r.path().as_path());
            let path = path.ok_or_else(|| Error::invalid("spec", "root", "is missing"))?;
            let source = mounts::open_source(request, path)?;
            let fail = |what: &'static str| move |e: std::io::Error| Error::io("spec", "root.path", what, &e);
            let fd = mount::clone_tree(source, true).map_err(fail("open_tree"))?;
            mount::set_attributes(&fd, 0, 0, libc::MS_PRIVATE, true).map_err(fail("mount_setattr"))?;
            Ok(fd)
        }
        [_] if user.is_some_and(|user| user.outer_uid(0).is_none() || user.outer_gid(0).is_none()) => {
            let why = "and gidMappings have no id 0, to which what is in the root file system belongs: map it as well";
            Err(Error::invalid("spec", "linux.uidMappings", why))
        }
        [one] => mount::detached_in(&mounts::labelled_root(request.spec, one), user),
        many => Err(Error::unimplemented(
            "container",
            request.id,
            format!("a root file system of {} mounts: give one (an overlay or a bind)", many.len()),
        )),
    }
}

/// `net.ipv4.ip_forward` and `net/ipv4/ip_forward` are the same.
pub(crate) fn sysctl_path(name: &str) -> String {
    format!("sys/{}", name.replace('.', "/"))
}

pub(super) fn target(path: &Path, make: Make) -> Result<Target> {
    let path = normal(path)?;
    let no_symlinks = matches!(path.to_bytes(), b"/dev" | b"/proc" | b"/sys");
    Ok(Target { path, make, no_symlinks })
}

/// An absolute path without `.`, `..` and empty parts. `..` is resolved by name, as the reference does.
pub(super) fn normal(path: &Path) -> Result<CString> {
    let bad = |why: &str| Error::invalid("path", path.display(), why);
    if !path.is_absolute() {
        return Err(bad("must be absolute: it is a place in the container"));
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.as_bytes()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    let joined = [b"/", parts.join(&b'/').as_slice()].concat();
    CString::new(joined).map_err(|_| bad("holds a NUL byte"))
}
