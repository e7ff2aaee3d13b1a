//! Limits: from `linux.resources` to the files of v1 and v2 cgroups.
//!
//! Each value goes to the v1 controller if the host has it, else to the v2 one; a limit for which there is neither is
//! an error, since a container without it would not be what was asked for.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    os::fd::BorrowedFd,
};

use cofferdam_sys::{cgroup::Cgroup, devices::Rule};
use cofferdam_types::{Code, Error, Result};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxPids, LinuxResources,
    LinuxThrottleDevice,
};

struct Writer<'c> {
    cgroup: &'c Cgroup,
    /// v2 controllers that this group has.
    unified: Vec<String>,
}

impl Writer<'_> {
    fn no_controller<T>(&self, controller: &str) -> Result<T> {
        Err(Error::unimplemented(
            "cgroup",
            self.cgroup.path(),
            format!("this host has no {controller} controller for the limit: leave the limit out or enable it"),
        ))
    }

    fn write(&self, dir: BorrowedFd<'_>, file: &str, value: &str) -> Result<()> {
        self.cgroup.write_at(dir, file, value).map_err(|e| match e.code {
            Code::NotFound => {
                let why = format!("this host has no {file}: leave the limit out, or enable the controller that has it");
                Error::unimplemented("cgroup", self.cgroup.path(), why)
            }
            _ => e,
        })?;
        #[cfg(test)]
        tests::written(file, value);
        Ok(())
    }

    /// Writes `v1` or `v2`, (file, value), as the host has it; `None` there: no such limit.
    fn set(&self, controller: &str, v1: Option<(&str, String)>, v2: Option<(&str, String)>) -> Result<()> {
        if let Some(dir) = self.cgroup.v1(controller) {
            let Some((file, value)) = v1 else { return self.no_controller(controller) };
            return self.write(dir, file, &value);
        }
        match (self.v2(controller), v2) {
            (Some(dir), Some((file, value))) => self.write(dir, file, &value),
            _ => self.no_controller(controller),
        }
    }

    fn v2(&self, controller: &str) -> Option<BorrowedFd<'_>> {
        self.cgroup.unified().filter(|_| self.unified.iter().any(|c| c == controller))
    }

    /// The same file name and value in both.
    fn same(&self, controller: &str, file: &str, value: impl Display) -> Result<()> {
        let value = value.to_string();
        self.set(controller, Some((file, value.clone())), Some((file, value)))
    }

    fn v1_only(&self, controller: &str, file: &str, value: impl Display) -> Result<()> {
        self.set(controller, Some((file, value.to_string())), None)
    }

    fn v2_only(&self, controller: &str, file: &str, value: impl Display) -> Result<()> {
        self.set(controller, None, Some((file, value.to_string())))
    }
}

/// Sets what `resources` names, in the order in which runc does; devices are [`devices`]. A number that is 0 where 0
/// can't be meant is as good as not there: specs are full of them.
pub(super) fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    let w = Writer { cgroup, unified: cgroup.controllers()? };
    if let Some(limit) = resources.pids().as_ref().map(LinuxPids::limit).filter(|limit| *limit != 0) {
        w.same("pids", "pids.max", or_max(limit))?;
    }
    if let Some(memory) = resources.memory() {
        self::memory(&w, memory)?;
    }
    if let Some(io) = resources.block_io() {
        block_io(&w, io)?;
    }
    if let Some(cpu) = resources.cpu() {
        self::cpu(&w, cpu)?;
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let (size, limit) = (page.page_size(), page.limit());
        let (v1, v2) = (format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.max"));
        w.set("hugetlb", Some((&v1, limit.to_string())), Some((&v2, or_max(limit))))?;
    }
    for (device, limit) in sorted(resources.rdma()) {
        let part = |name: &str, value: Option<u32>| value.map(|value| format!(" {name}={value}"));
        let parts = [part("hca_handle", limit.hca_handles()), part("hca_object", limit.hca_objects())];
        let text: String = parts.into_iter().flatten().collect();
        if !text.is_empty() {
            w.same("rdma", "rdma.max", format!("{device}{text}"))?;
        }
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id() {
            w.v1_only("net_cls", "net_cls.classid", class)?;
        }
        for interface in network.priorities().iter().flatten() {
            let text = format!("{} {}", interface.name(), interface.priority());
            w.v1_only("net_prio", "net_prio.ifpriomap", text)?;
        }
    }
    for (file, value) in sorted(resources.unified()) {
        let Some(dir) = cgroup.unified() else { return w.no_controller("v2") };
        w.write(dir, file, value)?;
    }
    Ok(())
}

fn sorted<V>(map: &Option<HashMap<String, V>>) -> BTreeMap<&String, &V> {
    map.iter().flatten().collect()
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

fn memory(w: &Writer<'_>, memory: &LinuxMemory) -> Result<()> {
    let [limit, swap, soft] =
        [memory.limit(), memory.swap(), memory.reservation()].map(|value| value.filter(|bytes| *bytes != 0));
    if let (Some(limit), Some(true)) = (limit, memory.check_before_update()) {
        let usage = match (w.cgroup.v1("memory"), w.cgroup.unified()) {
            (Some(dir), _) => w.cgroup.read_at(dir, "memory.usage_in_bytes")?,
            (None, Some(dir)) => w.cgroup.read_at(dir, "memory.current")?,
            (None, None) => String::new(),
        };
        if limit >= 0 && usage.trim().parse::<i64>().is_ok_and(|usage| usage > limit) {
            return Err(Error::failed_precondition(
                "cgroup",
                w.cgroup.path(),
                format!("{} bytes are in use, more than the new limit of {limit}", usage.trim()),
            ));
        }
    }
    if let Some(dir) = w.cgroup.v1("memory") {
        // Whoever has all the memory has all the swap, where it is counted.
        let counted = || w.cgroup.read_at(dir, "memory.memsw.limit_in_bytes").is_ok();
        let swap = swap.or_else(|| (limit == Some(-1) && counted()).then_some(-1));
        let limit = || limit.map_or(Ok(()), |l| w.v1_only("memory", "memory.limit_in_bytes", l));
        let swap_too = || swap.map_or(Ok(()), |s| w.v1_only("memory", "memory.memsw.limit_in_bytes", s));
        // The sum may never be below the limit: which of the two goes first depends on where they stand.
        match limit() {
            Ok(()) => swap_too()?,
            Err(first) if swap.is_some() => swap_too().and_then(|()| limit()).map_err(|_| first)?,
            Err(e) => return Err(e),
        }
    } else {
        if let Some(alone) = swap_alone(limit, swap)? {
            let accounted = w.v2("memory").is_none_or(|dir| w.cgroup.read_at(dir, "memory.swap.max").is_ok());
            // A kernel that counts no swap limits none.
            if accounted || alone >= 0 {
                w.v2_only("memory", "memory.swap.max", or_max(alone))?;
            }
        }
        if let Some(limit) = limit {
            w.v2_only("memory", "memory.max", or_max(limit))?;
        }
    }
    if let Some(soft) = soft {
        let v1 = ("memory.soft_limit_in_bytes", soft.to_string());
        w.set("memory", Some(v1), Some(("memory.low", or_max(soft))))?;
    }
    if let Some(swappiness) = memory.swappiness() {
        w.v1_only("memory", "memory.swappiness", swappiness)?;
    }
    if memory.disable_oom_killer() == Some(true) {
        w.v1_only("memory", "memory.oom_control", 1)?;
    }
    Ok(())
}

/// A spec limits memory and swap together, v2 swap alone.
fn swap_alone(limit: Option<i64>, swap: Option<i64>) -> Result<Option<i64>> {
    match (limit, swap) {
        // As on v1.
        (Some(-1), None) => Ok(Some(-1)),
        (_, None | Some(-1)) => Ok(swap),
        (Some(limit), Some(swap)) if (1..=swap).contains(&limit) => Ok(Some(swap - limit)),
        _ => {
            let why = "is memory and swap together: it takes a memory.limit, and is no less than that";
            Err(Error::invalid("spec", "linux.resources.memory.swap", why))
        }
    }
}

fn cpu(w: &Writer<'_>, cpu: &LinuxCpu) -> Result<()> {
    let idle = || cpu.idle().map_or(Ok(()), |idle| w.same("cpu", "cpu.idle", idle));
    // The kernel takes no weight for a group that is idle.
    let idle_last = cpu.idle().is_some_and(|idle| idle != 0);
    if !idle_last {
        idle()?;
    }
    if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
        // 2..262144 to 1..10000 in a straight line.
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        w.set("cpu", Some(("cpu.shares", shares.to_string())), Some(("cpu.weight", weight.to_string())))?;
    }
    if idle_last {
        idle()?;
    }
    let burst = || {
        let both = |burst: u64| (("cpu.cfs_burst_us", burst.to_string()), ("cpu.max.burst", burst.to_string()));
        cpu.burst().map(both).map_or(Ok(()), |(v1, v2)| w.set("cpu", Some(v1), Some(v2)))
    };
    // It may never be above the quota: which of the two goes first depends on where they stand.
    let early = burst();
    bandwidth(w, cpu.quota().filter(|q| *q != 0), cpu.period().filter(|p| *p != 0))?;
    if early.is_err() {
        burst()?;
    }
    if let Some(period) = cpu.realtime_period().filter(|p| *p != 0) {
        w.v1_only("cpu", "cpu.rt_period_us", period)?;
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|r| *r != 0) {
        w.v1_only("cpu", "cpu.rt_runtime_us", runtime)?;
    }
    if let Some(cpus) = cpu.cpus().as_ref().filter(|c| !c.is_empty()) {
        w.same("cpuset", "cpuset.cpus", cpus)?;
    }
    if let Some(mems) = cpu.mems().as_ref().filter(|m| !m.is_empty()) {
        w.same("cpuset", "cpuset.mems", mems)?;
    }
    Ok(())
}

fn bandwidth(w: &Writer<'_>, quota: Option<i64>, period: Option<u64>) -> Result<()> {
    if w.cgroup.v1("cpu").is_some() {
        if let Some(period) = period {
            w.v1_only("cpu", "cpu.cfs_period_us", period)?;
        }
        return quota.map_or(Ok(()), |quota| w.v1_only("cpu", "cpu.cfs_quota_us", quota));
    }
    if quota.is_none() && period.is_none() {
        return Ok(());
    }
    // v2 has one file for both: what isn't named stays.
    let now = w.v2("cpu").and_then(|dir| w.cgroup.read_at(dir, "cpu.max").ok()).unwrap_or_default();
    let mut now = now.split_whitespace();
    let (old_quota, old_period) = (now.next().unwrap_or("max"), now.next().unwrap_or("100000"));
    let quota = quota.map_or_else(|| old_quota.to_owned(), or_max);
    let period = period.map_or_else(|| old_period.to_owned(), |period| period.to_string());
    w.v2_only("cpu", "cpu.max", format!("{quota} {period}"))
}

/// 10..1000 to 1..10000, as every other runtime does.
fn io_weight(weight: u16) -> u32 {
    1 + (u32::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

fn block_io(w: &Writer<'_>, io: &LinuxBlockIo) -> Result<()> {
    // v2 calls the controller io.
    let v1 = w.cgroup.v1("blkio");
    let set = |v1_file: (&str, String), v2_file: (&str, String)| match v1 {
        Some(dir) => w.write(dir, v1_file.0, &v1_file.1),
        None => w.set("io", None, Some(v2_file)),
    };
    // Which scheduler reads it depends on the kernel.
    let read = |file: &str| v1.or_else(|| w.v2("io")).and_then(|dir| w.cgroup.read_at(dir, file).ok());
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        if read(if v1.is_some() { "blkio.bfq.weight" } else { "io.bfq.weight" }).is_some() {
            set(("blkio.bfq.weight", weight.to_string()), ("io.bfq.weight", weight.to_string()))?;
        } else {
            set(("blkio.weight", weight.to_string()), ("io.weight", io_weight(weight).to_string()))?;
        }
    }
    if let Some(weight) = io.leaf_weight().filter(|weight| *weight != 0) {
        leaf(w, "blkio.leaf_weight", weight)?;
    }
    for device in io.weight_device().iter().flatten() {
        let name = format!("{}:{}", device.major(), device.minor());
        if let Some(weight) = device.weight() {
            let text = format!("{name} {weight}");
            // Before Linux 5.4 bfq had one weight for all devices, and its file showed a number alone.
            let by_device = |shown: String| v1.is_some() || shown.trim().parse::<u64>().is_err();
            if read(if v1.is_some() { "blkio.bfq.weight_device" } else { "io.bfq.weight" }).is_some_and(by_device) {
                set(("blkio.bfq.weight_device", text.clone()), ("io.bfq.weight", text))?;
            } else {
                let plain = if weight == 0 { "default".to_owned() } else { io_weight(weight).to_string() };
                set(("blkio.weight_device", text), ("io.weight", format!("{name} {plain}")))?;
            }
        }
        if let Some(weight) = device.leaf_weight() {
            leaf(w, "blkio.leaf_weight_device", format!("{name} {weight}"))?;
        }
    }
    let throttle = |list: &Option<Vec<LinuxThrottleDevice>>, v1: &str, key: &str| {
        list.iter().flatten().try_for_each(|d| {
            let device = format!("{}:{}", d.major(), d.minor());
            set((v1, format!("{device} {}", d.rate())), ("io.max", format!("{device} {key}={}", d.rate())))
        })
    };
    throttle(io.throttle_read_bps_device(), "blkio.throttle.read_bps_device", "rbps")?;
    throttle(io.throttle_write_bps_device(), "blkio.throttle.write_bps_device", "wbps")?;
    throttle(io.throttle_read_iops_device(), "blkio.throttle.read_iops_device", "riops")?;
    throttle(io.throttle_write_iops_device(), "blkio.throttle.write_iops_device", "wiops")
}

/// What the scheduler cfq had, and no kernel since 5.0.
fn leaf(w: &Writer<'_>, file: &str, value: impl Display) -> Result<()> {
    match w.cgroup.v1("blkio") {
        Some(dir) if w.cgroup.read_at(dir, file).is_ok() => w.v1_only("blkio", file, value),
        _ => Err(Error::unimplemented(
            "spec",
            "linux.resources.blockIO.leafWeight",
            "this kernel doesn't have it: leave it out",
        )),
    }
}

const fn allow(kind: char, major: Option<u32>, minor: Option<u32>, open: bool) -> Rule {
    Rule { allow: true, kind, major, minor, read: open, write: open, mknod: true }
}

/// What every container may use: the nodes that it is given, terminals, and making nodes that it then can't open.
const ALWAYS: &[Rule] = &[
    allow('c', None, None, false),
    allow('b', None, None, false),
    allow('c', Some(1), Some(3), true),
    allow('c', Some(1), Some(5), true),
    allow('c', Some(1), Some(7), true),
    allow('c', Some(1), Some(8), true),
    allow('c', Some(1), Some(9), true),
    allow('c', Some(5), Some(0), true),
    allow('c', Some(5), Some(2), true),
    allow('c', Some(136), None, true),
];

/// Reads a rule of a spec.
fn rule(spec: &LinuxDeviceCgroup) -> Result<Rule> {
    let bad = |why: &str| Error::invalid("spec", "linux.resources.devices", why);
    let kind = match spec.typ() {
        None | Some(LinuxDeviceType::A) => 'a',
        Some(LinuxDeviceType::B) => 'b',
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => 'c',
        Some(LinuxDeviceType::P) => return Err(bad("a pipe is no device: leave the rule out")),
    };
    let number = |n: Option<i64>| match n {
        None | Some(-1) => Ok(None),
        Some(n) => u32::try_from(n).map(Some).map_err(|_| bad("a device number is out of range")),
    };
    let access = spec.access().as_deref().filter(|a| !a.is_empty()).unwrap_or("rwm");
    if !access.chars().all(|c| "rwm".contains(c)) {
        return Err(bad("access is made of r, w and m"));
    }
    Ok(Rule {
        allow: spec.allow(),
        kind,
        major: number(spec.major())?,
        minor: number(spec.minor())?,
        read: access.contains('r'),
        write: access.contains('w'),
        mknod: access.contains('m'),
    })
}

/// Adds a rule, unless it has been said and nothing was denied since: each is a write for every container.
fn add(rules: &mut Vec<Rule>, rule: Rule) {
    let mut since = rules.iter().rev().take_while(|earlier| earlier.allow);
    if !rule.allow || !since.any(|earlier| *earlier == rule) {
        rules.push(rule);
    }
}

/// The rules from nothing allowed: those of the spec, then what every container has.
pub(super) fn rules(resources: Option<&LinuxResources>) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for spec in resources.and_then(|r| r.devices().as_ref()).into_iter().flatten() {
        let rule = rule(spec)?;
        if rule.is_everything() {
            rules.clear();
        }
        // A rule for all kinds is one for each; v1 has no other way to say it with numbers.
        let kinds: &[char] = if rule.kind == 'a' && !rule.is_everything() { &['b', 'c'] } else { &[rule.kind] };
        kinds.iter().for_each(|kind| add(&mut rules, Rule { kind: *kind, ..rule }));
    }
    ALWAYS.iter().for_each(|rule| add(&mut rules, *rule));
    Ok(rules)
}

/// Confines the group to its devices: nothing that isn't named is allowed.
pub(super) fn devices(cgroup: &Cgroup, resources: Option<&LinuxResources>) -> Result<()> {
    let rules = rules(resources)?;
    if let Some(dir) = cgroup.v1("devices") {
        // A new group has what the one above it has.
        if rules.first().is_none_or(|rule| rule.allow || !rule.is_everything()) {
            cgroup.write_at(dir, "devices.deny", "a")?;
        }
        return rules.chunk_by(|one, next| one.allow == next.allow).try_for_each(|alike| {
            let file = if alike[0].allow { "devices.allow" } else { "devices.deny" };
            let text = |rule: &Rule| if rule.is_everything() { "a".into() } else { rule.to_string() };
            cgroup.write_each_at(dir, file, alike.iter().map(text))
        });
    }
    let Some(dir) = cgroup.unified() else {
        return Err(Error::unimplemented("cgroup", cgroup.path(), "this host has no way to confine devices"));
    };
    cofferdam_sys::devices::confine(dir, &rules)
        .map_err(|e| Error::io("cgroup", cgroup.path(), "loading the BPF program that confines its devices", &e))
}

#[cfg(test)]
mod against;
#[cfg(test)]
mod tests;
