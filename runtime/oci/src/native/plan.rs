//! From a spec to the steps that make its container.

use std::{
    ffi::CString,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path},
};

use cofferdam_sys::{
    cgroup::Cgroup,
    fd::{self, Scope},
    mount,
};
use cofferdam_types::{Error, Mount as RootMount, Result};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, Mount, Spec};

use super::{
    identity::c_string,
    step::{Attributes, Make, Step, Target},
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

/// Device nodes that every container has: name, major, minor.
const DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Symlinks that every container has.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

pub(super) fn plan(request: &CreateRequest<'_>, cgroup: &Cgroup) -> Result<Plan> {
    let spec = request.spec;
    let nothing = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&nothing);
    let mut plan = Plan { steps: vec![Step::Undumpable, Step::Gate], ..Plan::default() };
    // Before there is a network namespace: the other order costs 8 ms.
    plan.steps.extend(cgroup.tasks_v1()?.into_iter().map(Step::Join));
    namespaces(linux, &mut plan)?;
    let steps = &mut plan.steps;
    if let Some(name) = spec.hostname().as_ref().filter(|n| !n.is_empty()) {
        steps.push(Step::Hostname(c_string("hostname", name)?));
    }
    if let Some(name) = spec.domainname().as_ref().filter(|n| !n.is_empty()) {
        steps.push(Step::Domainname(c_string("domainname", name)?));
    }
    steps.push(Step::Root(root(request)?));
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mut late = Vec::new();
    for mount in mounts {
        self::mount(mount, request, cgroup, steps, &mut late)?;
    }
    devices(linux, mounts, steps)?;
    for (name, value) in linux.sysctl().iter().flatten() {
        let (path, value) = (c_string("linux.sysctl", &sysctl_path(name))?, c_string("linux.sysctl", value)?);
        steps.push(Step::Sysctl { name: name.clone(), path, value });
    }
    if let Some(process) = spec.process() {
        steps.push(Step::Directory(target(process.cwd(), Make::Directory)?));
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

fn namespaces(linux: &Linux, plan: &mut Plan) -> Result<()> {
    let mut late = 0;
    for namespace in linux.namespaces().iter().flatten() {
        let flag = namespace.typ() as i32;
        plan.join |= flag;
        if let Some(path) = namespace.path().as_ref().filter(|p| !p.as_os_str().is_empty()) {
            let fd = open_namespace(path, flag)?;
            if namespace.typ() == LinuxNamespaceType::Pid {
                plan.pid_namespace = Some(fd);
            } else {
                let what = format!("the {} namespace {}", namespace.typ(), path.display());
                plan.steps.push(Step::Enter { fd, flags: flag, what });
            }
            continue;
        }
        match namespace.typ() {
            // After the cgroups: the cgroup namespace's root is where its maker is, and joining v1 groups right after
            // making a network namespace takes the kernel 8 ms longer than the other way round.
            LinuxNamespaceType::Network | LinuxNamespaceType::Cgroup => late |= flag,
            _ => plan.flags |= flag,
        }
    }
    if late != 0 {
        plan.steps.push(Step::Unshare { flags: late });
    }
    if late & libc::CLONE_NEWNET != 0 {
        plan.steps.push(Step::Loopback);
    }
    Ok(())
}

fn open_namespace(path: &Path, flag: i32) -> Result<OwnedFd> {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    let fail = |e: &std::io::Error| Error::io("namespace", path.display(), "opening it", e);
    let fd: OwnedFd = std::fs::File::open(path).map_err(|e| fail(&e))?.into();
    // SAFETY: the call takes no memory.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    if fd::filesystem(&fd).map_err(|e| fail(&e))? != NSFS_MAGIC || kind != flag {
        return Err(Error::invalid("namespace", path.display(), "is not a namespace of that type"));
    }
    Ok(fd)
}

/// The root file system, detached.
fn root(request: &CreateRequest<'_>) -> Result<OwnedFd> {
    match request.rootfs {
        [] => {
            let path = request.spec.root().as_ref().map(|r| r.path().as_path());
            let path = path.ok_or_else(|| Error::invalid("spec", "root", "is missing"))?;
            let source = open_source(request, path)?;
            let fail = |what: &'static str| move |e: std::io::Error| Error::io("spec", "root.path", what, &e);
            let fd = mount::clone_tree(source, true).map_err(fail("open_tree"))?;
            mount::set_attributes(&fd, 0, 0, libc::MS_PRIVATE, true).map_err(fail("mount_setattr"))?;
            Ok(fd)
        }
        [one] => mount::detached(one),
        many => Err(Error::unimplemented(
            "container",
            request.id,
            format!("a root file system of {} mounts: give one (an overlay or a bind)", many.len()),
        )),
    }
}

/// A path of the host; a relative one starts at the bundle.
fn open_source(request: &CreateRequest<'_>, path: &Path) -> Result<OwnedFd> {
    let opened = if path.is_absolute() {
        fd::open_path(path)
    } else {
        fd::open(request.bundle, path, libc::O_PATH, 0, Scope::Beneath)
    };
    opened.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::not_found("mount", path.display(), "does not exist on the host: create it first")
        }
        _ => Error::io("mount", path.display(), "opening the source", &e),
    })
}

fn mount(
    spec: &Mount,
    request: &CreateRequest<'_>,
    cgroup: &Cgroup,
    steps: &mut Vec<Step>,
    late: &mut Vec<Step>,
) -> Result<()> {
    let options = mount::Options::parse(spec.options().as_deref().unwrap_or_default())?;
    let kind = spec.typ().as_deref().unwrap_or("none");
    let context = |e: Error| e.context(format!("mount {}", spec.destination().display()));
    let mut target = target(spec.destination(), Make::Directory)?;
    if let Some(recursive) = options.bind.or_else(|| (kind == "bind").then_some(false)) {
        if let Some((key, _)) = options.data.first() {
            return Err(context(Error::unimplemented(
                "mount option",
                key,
                "a bind mount doesn't have it: leave it out",
            )));
        }
        let missing = || Error::invalid("mount", spec.destination().display(), "a bind mount needs a source");
        let source = open_source(request, spec.source().as_deref().ok_or_else(missing)?)?;
        let fail = |e: std::io::Error| context(Error::io("mount", "", "binding it", &e));
        if fd::file_type(&fd::stat(&source).map_err(fail)?) != libc::S_IFDIR {
            target.make = Make::File;
        }
        let mount = mount::clone_tree(source, recursive).map_err(fail)?;
        mount::apply_options(&mount, &options).map_err(fail)?;
        steps.push(Step::Attach { target, mount });
        return Ok(());
    }
    match kind {
        "cgroup" => return cgroups(&options, target, cgroup, steps, late).map_err(context),
        "proc" | "sysfs" | "mqueue" => {
            target.no_symlinks |= kind != "mqueue";
            let data = options.data.iter().map(|(key, value)| {
                let value = value.as_ref().map(|v| c_string("mounts", v)).transpose()?;
                Ok((c_string("mounts", key)?, value))
            });
            let attributes = Attributes {
                set: options.set | options.recursive_set,
                clear: 0,
                propagation: options.propagation.unwrap_or(0) & !libc::MS_REC,
                recursive: false,
            };
            let mut data = data.collect::<Result<Vec<_>>>()?;
            if attributes.set & libc::MOUNT_ATTR_RDONLY != 0 {
                // The file system too: a remount of the mount alone would not open it.
                data.push((c"ro".to_owned(), None));
            }
            steps.push(Step::Mount { target, kind: c_string("mounts", kind)?, data, attributes });
        }
        "none" => {
            return Err(context(Error::invalid("mount", kind, "has neither a type nor the option bind or rbind")));
        }
        _ => {
            let source = spec.source().as_ref().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            let mut options = spec.options().clone().unwrap_or_default();
            if kind == "tmpfs" {
                // Later mounts and devices lie in it: closed once they are there.
                let parsed = options.iter().rev().find(|o| *o == "ro" || *o == "rw");
                if parsed.is_some_and(|o| o == "ro") {
                    options.retain(|o| o != "ro");
                    late.push(read_only_later(&target));
                }
            }
            let mount = RootMount { kind: kind.to_owned(), source, options };
            steps.push(Step::Attach { target, mount: mount::detached(&mount).map_err(context)? });
        }
    }
    Ok(())
}

fn read_only_later(target: &Target) -> Step {
    let target = Target { path: target.path.clone(), make: target.make, no_symlinks: target.no_symlinks };
    Step::Change { target, attributes: Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() } }
}

/// `/sys/fs/cgroup` as the host has it, but for each hierarchy the container's own group alone.
fn cgroups(
    options: &mount::Options,
    target: Target,
    cgroup: &Cgroup,
    steps: &mut Vec<Step>,
    late: &mut Vec<Step>,
) -> Result<()> {
    let fail = |e: std::io::Error| Error::io("cgroup", cgroup.path(), "binding it", &e);
    let bind = |dir| {
        let mount = mount::clone_tree(dir, false).map_err(fail)?;
        mount::set_attributes(&mount, 0, 0, libc::MS_PRIVATE, false).map_err(fail)?;
        mount::set_attributes(&mount, options.set, options.clear, 0, false).map_err(fail)?;
        Ok::<_, Error>(mount)
    };
    let parts: Vec<_> = cgroup.parts().collect();
    if let [(hierarchy, dir)] = parts[..]
        && hierarchy.unified
    {
        steps.push(Step::Attach { target, mount: bind(dir)? });
        return Ok(());
    }
    let base = target.path.to_string_lossy().into_owned();
    let tmpfs = RootMount { kind: "tmpfs".into(), source: "tmpfs".into(), options: vec!["mode=755".into()] };
    let mount = mount::detached(&tmpfs)?;
    mount::set_attributes(&mount, options.set & !libc::MOUNT_ATTR_RDONLY, 0, 0, false).map_err(fail)?;
    if options.set & libc::MOUNT_ATTR_RDONLY != 0 {
        late.push(read_only_later(&target));
    }
    steps.push(Step::Attach { target, mount });
    for (hierarchy, dir) in parts {
        let name = hierarchy.root.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let place = |name: &str| self::target(Path::new(&format!("{base}/{name}")), Make::Directory);
        steps.push(Step::Attach { target: place(&name)?, mount: bind(dir)? });
        if hierarchy.controllers.len() > 1 {
            for controller in hierarchy.controllers.iter().filter(|c| **c != name) {
                let directory = self::target(Path::new(&base), Make::Directory)?;
                let (link, to) = (c_string("cgroup", controller)?, c_string("cgroup", &name)?);
                steps.push(Step::Symlink { directory, name: link, to });
            }
        }
    }
    Ok(())
}

fn devices(linux: &Linux, mounts: &[Mount], steps: &mut Vec<Step>) -> Result<()> {
    // A /dev that comes from the host has its nodes; making or changing them there would reach the host.
    let is_bind = |m: &Mount| {
        m.typ().as_deref() == Some("bind") || m.options().iter().flatten().any(|o| o == "bind" || o == "rbind")
    };
    if mounts.iter().any(|m| m.destination() == Path::new("/dev") && is_bind(m)) {
        return Ok(());
    }
    let dev = || target(Path::new("/dev"), Make::Directory);
    for (name, major, minor) in DEVICES {
        steps.push(Step::Device {
            directory: dev()?,
            name: c_string("devices", name)?,
            mode: libc::S_IFCHR | 0o666,
            device: libc::makedev(*major, *minor),
            uid: 0,
            gid: 0,
        });
    }
    for device in linux.devices().iter().flatten() {
        if !DEVICES.iter().any(|(name, ..)| device.path() == &Path::new("/dev").join(name)) {
            steps.push(self::device(device)?);
        }
    }
    for (name, to) in LINKS {
        if *to == "/proc/kcore" && !Path::new(to).exists() {
            continue;
        }
        let (name, to) = (c_string("devices", name)?, c_string("devices", to)?);
        steps.push(Step::Symlink { directory: dev()?, name, to });
    }
    Ok(())
}

fn device(spec: &LinuxDevice) -> Result<Step> {
    let bad = |why: &str| Error::invalid("spec", format!("linux.devices {}", spec.path().display()), why);
    let kind = match spec.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(bad("needs a type: c, b or p")),
    };
    let number = |n: i64| u32::try_from(n).map_err(|_| bad("has a device number out of range"));
    let (parent, name) = (spec.path().parent(), spec.path().file_name());
    let (Some(parent), Some(name)) = (parent, name) else { return Err(bad("is not a path of a device")) };
    let device = if kind == libc::S_IFIFO { 0 } else { libc::makedev(number(spec.major())?, number(spec.minor())?) };
    Ok(Step::Device {
        directory: target(parent, Make::Directory)?,
        name: CString::new(name.as_bytes()).map_err(|_| bad("holds a NUL byte"))?,
        mode: kind | spec.file_mode().unwrap_or(0o666) & 0o7777,
        device,
        uid: spec.uid().unwrap_or(0),
        gid: spec.gid().unwrap_or(0),
    })
}

/// `net.ipv4.ip_forward` and `net/ipv4/ip_forward` are the same.
pub(super) fn sysctl_path(name: &str) -> String {
    format!("sys/{}", name.replace('.', "/"))
}

fn target(path: &Path, make: Make) -> Result<Target> {
    let path = normal(path)?;
    let no_symlinks = matches!(path.to_bytes(), b"/dev" | b"/proc" | b"/sys");
    Ok(Target { path, make, no_symlinks })
}

/// An absolute path without `.`, `..` and empty parts. `..` is resolved by name, as the reference does.
fn normal(path: &Path) -> Result<CString> {
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
