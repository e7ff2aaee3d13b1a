//! The Linux part: namespaces, limits, devices, kernel parameters, and what is hidden of /proc and /sys.

use std::path::Path;

use cofferdam_types::{Error, Result};
use oci_spec::runtime::{
    Linux, LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemoryBuilder, LinuxNamespace, LinuxPidsBuilder,
    LinuxResources,
};

use super::{
    Options, Seccomp,
    check::{clean, shown, wrong},
    devices, namespaces,
};
use crate::{caps, seccomp};

/// Files of the kernel that tell of the host or change it (Docker's list of late 2026).
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// null, zero, full, random, urandom, tty, console, ptmx; `None`: every minor number (terminals).
const DEVICES: &[(i64, Option<i64>)] = &[
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Kernel parameters that belong to the IPC namespace.
const IPC_SYSCTLS: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

const CPU_PERIOD: u64 = 100_000;
/// The least memory that a container can be given.
pub const MIN_MEMORY: u64 = 1 << 20;
/// The kernel's limit of process ids.
pub const MAX_PIDS: u64 = 1 << 22;

/// The Linux part of a container's spec.
pub(super) fn linux(cgroup: &str, options: &Options, capabilities: caps::Set) -> Result<Linux> {
    let namespaces = namespaces::all(options).into_iter().map(|(kind, path)| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path.map(Into::into));
        namespace
    });
    let (nodes, rules): (Vec<_>, Vec<_>) = devices::all(options)?.into_iter().unzip();
    let mut resources = resources(options)?;
    resources.devices_mut().get_or_insert_default().extend(rules);
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces.collect()))
        .set_cgroups_path(Some(cgroup.into()))
        .set_resources(Some(resources))
        .set_devices(Some(nodes).filter(|nodes| !nodes.is_empty()))
        .set_uid_mappings(namespaces::mappings(options)?)
        .set_gid_mappings(namespaces::mappings(options)?)
        .set_sysctl(None)
        .set_seccomp(match (&options.seccomp_profile, options.seccomp) {
            (Some(_), Seccomp::Unconfined) => {
                return Err(wrong("seccomp_profile", "doesn't go with no filter at all: choose one"));
            }
            (Some(profile), _) if !seccomp::lets_start(profile) => {
                return Err(wrong("seccomp_profile", "doesn't allow execve, without which no program can start"));
            }
            (Some(profile), _) => Some(profile.clone()),
            (None, Seccomp::Default) => Some(seccomp::default_profile(capabilities, seccomp::NATIVE)),
            (None, Seccomp::Unconfined) => None,
        })
        .set_masked_paths(Some(masked()))
        .set_readonly_paths(Some(READONLY.iter().map(|p| (*p).to_owned()).collect()));
    if !options.sysctls.is_empty() {
        for (key, value) in &options.sysctls {
            sysctl(key, value, options)?;
        }
        linux.set_sysctl(Some(options.sysctls.clone().into_iter().collect()));
    }
    Ok(linux)
}

/// The fixed ones and, per processor, the counters that tell how hot the host runs (as Docker masks them).
fn masked() -> Vec<String> {
    let mut paths: Vec<String> = MASKED.iter().map(|p| (*p).to_owned()).collect();
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let throttle = cpus(&possible).map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"));
    paths.extend(throttle.filter(|path| Path::new(path).exists()));
    paths
}

/// Reads the kernel's `0-3,8`.
fn cpus(list: &str) -> impl Iterator<Item = u32> {
    list.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse::<u32>().ok()?.min(1 << 16))
        })
        .flatten()
}

/// P9: only what a namespace of the container has of its own.
fn sysctl(key: &str, value: &str, options: &Options) -> Result<()> {
    let plain = key
        .split('.')
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')));
    if !plain {
        return Err(wrong("sysctls", format!("have the name {}; names look like net.ipv4.ip_forward", shown(key))));
    }
    clean("sysctls", value).map_err(|e| e.context(key))?;
    let ipc = IPC_SYSCTLS.contains(&key) || key.starts_with("fs.mqueue.");
    if ipc && options.namespaces.contains_key("ipc") {
        return Err(wrong("sysctls", format!("have {key}, which in an ipc namespace of others would change theirs")));
    }
    if ipc || (key.starts_with("net.") && options.network.is_own()) {
        return Ok(());
    }
    Err(wrong(
        "sysctls",
        match key {
            "kernel.hostname" | "kernel.domainname" => format!("have {key}: use the option `hostname`"),
            _ if key.starts_with("net.") => {
                format!("have {key}, which in a network that isn't the container's own would change the host or others")
            }
            _ => format!("have {key}, which is not of a namespace and would change the host"),
        },
    ))
}

fn resources(options: &Options) -> Result<LinuxResources> {
    let internal = |e: oci_spec::OciSpecError| Error::internal("spec", "resources", e.to_string());
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(standard()));
    if let Some(bytes) = options.memory {
        let limit = i64::try_from(bytes).ok().filter(|_| bytes >= MIN_MEMORY).ok_or_else(|| {
            wrong("memory", format!("is {bytes} bytes: between {MIN_MEMORY} and {} are possible", i64::MAX))
        })?;
        resources.set_memory(Some(LinuxMemoryBuilder::default().limit(limit).build().map_err(internal)?));
    }
    if options.cpus.is_some() || options.cpu_shares.is_some() {
        let mut cpu = LinuxCpuBuilder::default();
        if let Some(cpus) = options.cpus {
            // The kernel's smallest quota is 1 ms.
            if !(0.01..=65_536.0).contains(&cpus) {
                return Err(wrong("cpus", format!("is {cpus}: between 0.01 and 65536 are possible")));
            }
            cpu = cpu.quota((cpus * CPU_PERIOD as f64).round() as i64).period(CPU_PERIOD);
        }
        if let Some(shares) = options.cpu_shares {
            if !(2..=262_144).contains(&shares) {
                return Err(wrong("cpu_shares", format!("is {shares}: between 2 and 262144 are possible")));
            }
            cpu = cpu.shares(shares);
        }
        resources.set_cpu(Some(cpu.build().map_err(internal)?));
    }
    if let Some(pids) = options.pids {
        if !(1..=MAX_PIDS).contains(&pids) {
            return Err(wrong("pids", format!("is {pids}: between 1 and {MAX_PIDS} are possible")));
        }
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(pids as i64).build().map_err(internal)?));
    }
    Ok(resources)
}

/// Nothing but the standard ones. Nodes of any device may be *made* (an unpacking tar does); they can't be opened.
fn standard() -> Vec<LinuxDeviceCgroup> {
    let rule = |allow, typ, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow).set_typ(typ).set_major(major).set_minor(minor).set_access(Some(access.to_owned()));
        rule
    };
    let mut rules = vec![
        rule(false, None, None, None, "rwm"),
        rule(true, Some(LinuxDeviceType::C), None, None, "m"),
        rule(true, Some(LinuxDeviceType::B), None, None, "m"),
    ];
    rules.extend(DEVICES.iter().map(|(a, b)| rule(true, Some(LinuxDeviceType::C), Some(*a), *b, "rwm")));
    rules
}

#[cfg(test)]
mod tests {
    #[test]
    fn processor_lists_are_read() {
        assert_eq!(super::cpus("0-2,5\n").collect::<Vec<_>>(), [0, 1, 2, 5]);
        assert_eq!(super::cpus("").count(), 0);
    }
}
