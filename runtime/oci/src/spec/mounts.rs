//! The mounts: those that every container has, and those that a client asks for.

use std::path::{Path, PathBuf};

use cofferdam_types::Result;
use oci_spec::runtime::Mount as SpecMount;

use super::{
    Mount, Network, Options,
    check::{clean, path, shown, wrong},
    namespaces,
};

const SHM_SIZE: u64 = 64 << 20;

/// (target, type, source, options), in the order in which they are made.
const DEFAULT: &[(&str, &str, &str, &[&str])] = &[
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
];

/// Where the files lie by which a container knows names, and what they are called in its bundle.
pub const NAMES: [(&str, &str); 3] =
    [("/etc/resolv.conf", "resolv.conf"), ("/etc/hosts", "hosts"), ("/etc/hostname", "hostname")];

/// Whether [`NAMES`] are made for it: it is connected to something, or names were given.
pub fn makes_names(options: &Options) -> bool {
    !matches!(options.network, Network::None | Network::Host) || !options.names.is_empty()
}

/// Options that a mount of either kind may have.
const FLAGS: &[&str] = &[
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "relatime",
    "strictatime",
    "nodiratime",
    "nosymfollow",
];
const PROPAGATION: &[&str] =
    &["private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];
const TMPFS_KEYS: &[&str] = &["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"];

/// All mounts of a container.
pub(crate) fn all(options: &Options) -> Result<Vec<SpecMount>> {
    let mut mounts: Vec<SpecMount> = DEFAULT.iter().map(|(t, k, s, o)| mount(t, k, s, o.iter().copied())).collect();
    let shm = options.shm_size.unwrap_or(SHM_SIZE);
    if shm == 0 {
        return Err(wrong("shm_size", "is 0, which to a tmpfs means no limit: give a size in bytes"));
    }
    for place in mounts.iter_mut().filter(|m| m.destination() == Path::new("/dev/shm")) {
        place.options_mut().get_or_insert_default().push(format!("size={shm}"));
    }
    if !namespaces::has(&options.userns, 5) {
        // The group that terminals belong to is nobody there.
        for place in mounts.iter_mut().filter(|m| m.destination() == Path::new("/dev/pts")) {
            place.options_mut().get_or_insert_default().retain(|option| option != "gid=5");
        }
    }
    let host = |target: &str| mount(target, "bind", target, ["bind", "rprivate", "nosuid", "noexec", "nodev"]);
    let mut replace = |new: SpecMount| {
        for place in mounts.iter_mut().filter(|m| m.destination() == new.destination()) {
            *place = new.clone();
        }
    };
    if options.namespaces.get("ipc").is_some_and(|place| place == namespaces::HOST) {
        replace(host("/dev/shm"));
        // A mqueue file system shows the namespace of its maker anyway.
    }
    if options.network == Network::Host && !options.userns.is_empty() {
        // The kernel gives a sysfs only to whom the network belongs that it shows.
        replace(mount("/sys", "bind", "/sys", ["bind", "rprivate", "nosuid", "noexec", "nodev", "ro"]));
    }
    if makes_names(options) {
        // Of the bundle, where they are written when its task is made.
        for (target, file) in NAMES {
            mounts.push(mount(target, "bind", file, ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"]));
        }
    } else if options.network == Network::Host {
        // By the host's names. One that the host doesn't have has nothing to say.
        for file in ["/etc/resolv.conf", "/etc/hosts"].into_iter().filter(|f| Path::new(f).exists()) {
            mounts.push(mount(file, "bind", file, ["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"]));
        }
    }
    let mut seen: Vec<PathBuf> = Vec::new();
    for wish in &options.mounts {
        let new = wanted(wish)?;
        if seen.contains(new.destination()) {
            return Err(wrong("mounts", format!("have two for {}", new.destination().display())));
        }
        seen.push(new.destination().clone());
        // In place, so that what lies below a replaced one still comes after it.
        match mounts.iter_mut().find(|m| m.destination() == new.destination()) {
            Some(place) => *place = new,
            None => mounts.push(new),
        }
    }
    Ok(mounts)
}

fn wanted(wish: &Mount) -> Result<SpecMount> {
    match wish {
        Mount::Bind { source, target, options } => {
            let source = path("mounts", source).map_err(|e| e.context("source"))?;
            let mut list: Vec<&str> = Vec::new();
            for option in options {
                if !FLAGS.contains(&option.as_str())
                    && !PROPAGATION.contains(&option.as_str())
                    && !["bind", "rbind"].contains(&option.as_str())
                {
                    return Err(unknown(option));
                }
                list.push(option);
            }
            if !list.iter().any(|o| ["bind", "rbind"].contains(o)) {
                list.insert(0, "rbind");
            }
            if !list.iter().any(|o| PROPAGATION.contains(o)) {
                list.push("rprivate");
            }
            Ok(mount(&self::target(target)?, "bind", &source, list))
        }
        Mount::Tmpfs { target, options } => {
            let mut list = vec!["nosuid", "nodev", "noexec"];
            for option in options {
                let known = FLAGS.contains(&option.as_str())
                    || option.split_once('=').is_some_and(|(k, v)| TMPFS_KEYS.contains(&k) && tmpfs_takes(k, v));
                if !known {
                    return Err(unknown(option));
                }
                list.push(option);
            }
            Ok(mount(&self::target(target)?, "tmpfs", "tmpfs", list))
        }
    }
}

/// Whether a tmpfs takes this value: it would say no more than EINVAL.
fn tmpfs_takes(key: &str, value: &str) -> bool {
    match key {
        "mode" => value.bytes().all(|b| b.is_ascii_digit()) && u32::from_str_radix(value, 8).is_ok_and(|m| m <= 0o7777),
        "uid" | "gid" => {
            value.bytes().all(|b| b.is_ascii_digit()) && value.parse::<u32>().is_ok_and(|id| id != u32::MAX)
        }
        _ => {
            let unit = |c: char| "kKmMgGtTpPeE".contains(c) || c == '%' && key == "size";
            let number = value.strip_suffix(unit).unwrap_or(value);
            number.bytes().all(|b| b.is_ascii_digit()) && number.parse::<u64>().is_ok()
        }
    }
}

fn target(text: &str) -> Result<String> {
    let target = path("mounts", text).map_err(|e| e.context("target"))?;
    if target == "/" {
        return Err(wrong("mounts", "have the target `/`, which is the image's: give a directory below it"));
    }
    // What a runtime writes to there must be the kernel's (CVE-2019-16884, CVE-2025-52881).
    if target == "/proc" || target.starts_with("/proc/") {
        return Err(wrong("mounts", format!("have a target in /proc, which must be the kernel's own: {target}")));
    }
    Ok(target)
}

fn unknown(option: &str) -> cofferdam_types::Error {
    match clean("mounts", option) {
        Err(error) => error,
        Ok(_) => wrong(
            "mounts",
            format!("have the option {}, which is not known here, or has a value that it can't have", shown(option)),
        ),
    }
}

fn mount<'a>(target: &str, kind: &str, source: &str, options: impl IntoIterator<Item = &'a str>) -> SpecMount {
    let mut mount = SpecMount::default();
    mount
        .set_destination(target.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options.into_iter().map(str::to_owned).collect()));
    mount
}
