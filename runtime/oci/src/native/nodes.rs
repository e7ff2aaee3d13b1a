//! Device nodes and the links beside them.

use std::{
    ffi::{CString, OsStr},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use cofferdam_sys::userns::UserNamespace;
use cofferdam_types::{Error, Result};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Mount};

use super::{
    identity::c_string,
    plan,
    step::{Make, Step},
    user::Nodes,
};
use crate::CreateRequest;

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

/// The steps that make every node and link of `/dev`.
pub(super) fn devices(
    request: &CreateRequest<'_>,
    linux: &Linux,
    user: Option<&UserNamespace>,
    steps: &mut Vec<Step>,
) -> Result<()> {
    // A /dev that comes from the host has its nodes; making or changing them there would reach the host.
    let is_bind = |m: &Mount| {
        m.typ().as_deref() == Some("bind") || m.options().iter().flatten().any(|o| o == "bind" || o == "rbind")
    };
    let mounts = || request.spec.mounts().iter().flatten();
    if mounts().any(|m| m.destination() == Path::new("/dev") && is_bind(m)) {
        return Ok(());
    }
    // What is mounted at a device's place is there in place of it, as with runc.
    let taken = |path: &Path| mounts().any(|m| m.destination() == path);
    let dev = || plan::target(Path::new("/dev"), Make::Directory);
    let mut nodes = Vec::new();
    for (name, major, minor) in DEVICES.iter().filter(|(name, ..)| !taken(&Path::new("/dev").join(name))) {
        nodes.push(Step::Device {
            directory: dev()?,
            name: c_string("devices", name)?,
            mode: libc::S_IFCHR | 0o666,
            device: libc::makedev(*major, *minor),
            uid: 0,
            gid: 0,
        });
    }
    for device in linux.devices().iter().flatten() {
        let standard = DEVICES.iter().any(|(name, ..)| device.path() == &Path::new("/dev").join(name));
        if !standard && !taken(device.path()) {
            nodes.push(self::device(device)?);
        }
    }
    match user {
        None => steps.append(&mut nodes),
        Some(user) => {
            let mut outside = Nodes::new(user)?;
            for node in nodes {
                steps.push(bound(node, &mut outside)?);
            }
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

/// A node that is made out here and bound in its place, for a user namespace, where nobody can make one.
fn bound(node: Step, outside: &mut Nodes<'_>) -> Result<Step> {
    let Step::Device { directory, name, mode, device, uid, gid } = node else { return Ok(node) };
    if mode & libc::S_IFMT == libc::S_IFIFO {
        // Anybody can make a pipe.
        return Ok(Step::Device { directory, name, mode, device, uid, gid });
    }
    let path = [directory.path.to_bytes(), name.to_bytes()].join(&b'/');
    let target = plan::target(Path::new(OsStr::from_bytes(&path)), Make::File)?;
    Ok(Step::Attach { target, mount: outside.make(mode, device, (uid, gid))?, fresh: false })
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
        directory: plan::target(parent, Make::Directory)?,
        name: CString::new(name.as_bytes()).map_err(|_| bad("holds a NUL byte"))?,
        mode: kind | spec.file_mode().unwrap_or(0o666) & 0o7777,
        device,
        uid: spec.uid().unwrap_or(0),
        gid: spec.gid().unwrap_or(0),
    })
}
