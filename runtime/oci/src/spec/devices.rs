//! Devices of the host in a container: their nodes, and the right to open them.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use cofferdam_types::Result;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::{
    Device, Options,
    check::{path, shown, wrong},
};

/// Every device with its rule.
pub(super) fn all(options: &Options) -> Result<Vec<(LinuxDevice, LinuxDeviceCgroup)>> {
    let mut all: Vec<(LinuxDevice, LinuxDeviceCgroup)> = Vec::new();
    for wish in &options.devices {
        let new = device(wish)?;
        if all.iter().any(|(other, _)| other.path() == new.0.path()) {
            return Err(wrong("devices", format!("have two for {}", new.0.path().display())));
        }
        all.push(new);
    }
    Ok(all)
}

fn device(wish: &Device) -> Result<(LinuxDevice, LinuxDeviceCgroup)> {
    let source = path("devices", &wish.source)?;
    let target = if wish.target.is_empty() { source.clone() } else { path("devices", &wish.target)? };
    if !target.starts_with("/dev/") {
        return Err(wrong("devices", format!("have a place outside /dev: {target}")));
    }
    let access = if wish.access.is_empty() { "rwm" } else { &wish.access };
    let twice = |c: char| access.matches(c).count() > 1;
    if !access.chars().all(|c| "rwm".contains(c) && !twice(c)) {
        return Err(wrong("devices", format!("have the access {}: it is made of r, w and m", shown(access))));
    }
    let meta = std::fs::metadata(&source)
        .map_err(|e| wrong("devices", format!("have {source}, which the host doesn't have: {e}")))?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Err(wrong("devices", format!("have {source}, which is no device"))),
    };
    let (major, minor) = (libc::major(meta.rdev()).into(), libc::minor(meta.rdev()).into());
    let (mut device, mut rule) = (LinuxDevice::default(), LinuxDeviceCgroup::default());
    device
        .set_path(target.into())
        .set_typ(kind)
        .set_major(major)
        .set_minor(minor)
        .set_file_mode(Some(meta.mode() & 0o777))
        .set_uid(Some(meta.uid()))
        .set_gid(Some(meta.gid()));
    rule.set_allow(true)
        .set_typ(Some(kind))
        .set_major(Some(major))
        .set_minor(Some(minor))
        .set_access(Some(access.to_owned()));
    Ok((device, rule))
}
