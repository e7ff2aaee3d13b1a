//! Limits: from `linux.resources` to the files of v1 and v2 cgroups.
//!
//! Each value goes to the v1 controller if the host has it, else to the v2 one; a limit for which there is neither is
//! an error, since a container without it would not be what was asked for.

use std::fmt::Display;

use cofferdam_sys::{cgroup::Cgroup, devices::Rule};
use cofferdam_types::{Error, Result};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources, LinuxThrottleDevice,
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

    /// Writes `v1` or `v2`, (file, value), as the host has it; `None` there: no such limit.
    fn set(&self, controller: &str, v1: Option<(&str, String)>, v2: Option<(&str, String)>) -> Result<()> {
        if let Some(dir) = self.cgroup.v1(controller) {
            let Some((file, value)) = v1 else { return self.no_controller(controller) };
            return self.cgroup.write_at(dir, file, &value);
        }
        match (self.cgroup.unified(), v2) {
            (Some(dir), Some((file, value))) if self.unified.iter().any(|c| c == controller) => {
                self.cgroup.write_at(dir, file, &value)
            }
            _ => self.no_controller(controller),
        }
    }

    /// The same file name and value in both.
    fn same(&self, controller: &str, file: &str, value: impl Display) -> Result<()> {
        let value = value.to_string();
        self.set(controller, Some((file, value.clone())), Some((file, value)))
    }

    fn v1_only(&self, controller: &str, file: &str, value: impl Display) -> Result<()> {
        self.set(controller, Some((file, value.to_string())), None)
    }
}

/// Sets what `resources` names; devices are [`devices`].
pub(super) fn apply(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    let w = Writer { cgroup, unified: cgroup.controllers()? };
    if let Some(memory) = resources.memory() {
        self::memory(&w, memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        self::cpu(&w, cpu)?;
    }
    if let Some(pids) = resources.pids() {
        let limit = if pids.limit() > 0 { pids.limit().to_string() } else { "max".into() };
        w.same("pids", "pids.max", limit)?;
    }
    if let Some(io) = resources.block_io() {
        block_io(&w, io)?;
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let (size, limit) = (page.page_size(), page.limit());
        let (v1, v2) = (format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.max"));
        w.set("hugetlb", Some((&v1, limit.to_string())), Some((&v2, or_max(limit))))?;
    }
    for (device, limit) in resources.rdma().iter().flatten() {
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
    for (file, value) in resources.unified().iter().flatten() {
        let Some(dir) = cgroup.unified() else { return w.no_controller("v2") };
        cgroup.write_at(dir, file, value)?;
    }
    Ok(())
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

fn memory(w: &Writer<'_>, memory: &LinuxMemory) -> Result<()> {
    if let (Some(limit), Some(true)) = (memory.limit(), memory.check_before_update()) {
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
    if w.cgroup.v1("memory").is_some() {
        let limit = || memory.limit().map_or(Ok(()), |l| w.v1_only("memory", "memory.limit_in_bytes", l));
        let swap = || memory.swap().map_or(Ok(()), |s| w.v1_only("memory", "memory.memsw.limit_in_bytes", s));
        // The sum may never be below the limit: which of the two goes first depends on where they stand.
        match limit() {
            Ok(()) => swap()?,
            Err(first) if memory.swap().is_some() => swap().and_then(|()| limit()).map_err(|_| first)?,
            Err(e) => return Err(e),
        }
    } else {
        if let Some(limit) = memory.limit() {
            w.set("memory", None, Some(("memory.max", or_max(limit))))?;
        }
        if let Some(swap) = memory.swap() {
            // v2 counts swap alone.
            let alone = match memory.limit() {
                _ if swap <= 0 => swap,
                Some(limit) if (1..=swap).contains(&limit) => swap - limit,
                _ => {
                    let why = "is memory and swap together: it takes a memory.limit, and is no less than that";
                    return Err(Error::invalid("spec", "linux.resources.memory.swap", why));
                }
            };
            w.set("memory", None, Some(("memory.swap.max", or_max(alone))))?;
        }
    }
    if let Some(soft) = memory.reservation() {
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

fn cpu(w: &Writer<'_>, cpu: &LinuxCpu) -> Result<()> {
    if let Some(idle) = cpu.idle() {
        w.same("cpu", "cpu.idle", idle)?;
    }
    if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
        // 2..262144 to 1..10000, as every other runtime does.
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        w.set("cpu", Some(("cpu.shares", shares.to_string())), Some(("cpu.weight", weight.to_string())))?;
    }
    let period = cpu.period().filter(|p| *p != 0);
    let quota = cpu.quota().filter(|q| *q != 0);
    if w.cgroup.v1("cpu").is_some() {
        if let Some(period) = period {
            w.v1_only("cpu", "cpu.cfs_period_us", period)?;
        }
        if let Some(quota) = quota {
            w.v1_only("cpu", "cpu.cfs_quota_us", quota)?;
        }
    } else if period.is_some() || quota.is_some() {
        let quota = quota.map_or_else(|| "max".into(), or_max);
        w.set("cpu", None, Some(("cpu.max", format!("{quota} {}", period.unwrap_or(100_000)))))?;
    }
    if let Some(burst) = cpu.burst() {
        w.set("cpu", Some(("cpu.cfs_burst_us", burst.to_string())), Some(("cpu.max.burst", burst.to_string())))?;
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

/// 10..1000 to 1..10000, as every other runtime does.
fn io_weight(weight: u16) -> u32 {
    1 + (u32::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

fn block_io(w: &Writer<'_>, io: &LinuxBlockIo) -> Result<()> {
    // v2 calls the controller io.
    let set = |v1: (&str, String), v2: (&str, String)| match w.cgroup.v1("blkio") {
        Some(dir) => w.cgroup.write_at(dir, v1.0, &v1.1),
        None => w.set("io", None, Some(v2)),
    };
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        // Which scheduler reads it depends on the kernel.
        set(("blkio.bfq.weight", weight.to_string()), ("io.bfq.weight", weight.to_string()))
            .or_else(|_| set(("blkio.weight", weight.to_string()), ("io.weight", io_weight(weight).to_string())))?;
    }
    if let Some(weight) = io.leaf_weight().filter(|weight| *weight != 0) {
        leaf(w, "blkio.leaf_weight", weight)?;
    }
    for device in io.weight_device().iter().flatten() {
        let name = format!("{}:{}", device.major(), device.minor());
        if let Some(weight) = device.weight() {
            let text = format!("{name} {weight}");
            set(("blkio.bfq.weight_device", text.clone()), ("io.bfq.weight", text.clone()))
                .or_else(|_| set(("blkio.weight_device", text.clone()), ("io.weight", text)))?;
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
mod tests {
    use super::*;

    // P8: what nobody allows is denied, whatever the spec leaves out.
    #[test]
    fn p8_devices_are_denied_by_default() {
        assert_eq!(rules(None).unwrap(), ALWAYS);
        let resources: LinuxResources = serde_json::from_value(serde_json::json!({"devices": [
            {"allow": true, "type": "c", "major": 9, "minor": 9},
            {"allow": false, "access": "rwm"},
            {"allow": true, "access": "r", "major": 10, "minor": -1},
        ]}))
        .unwrap();
        let text: Vec<String> = rules(Some(&resources)).unwrap().iter().take(4).map(Rule::to_string).collect();
        assert_eq!(text, ["a *:* rwm", "b 10:* r", "c 10:* r", "c *:* m"]);
        for bad in [r#"{"allow": true, "access": "x"}"#, r#"{"allow": true, "major": 4294967296}"#] {
            assert!(rule(&serde_json::from_str(bad).unwrap()).is_err(), "{bad}");
        }
    }

    /// A directory of plain files takes what a v2 group of a host with all controllers would.
    #[test]
    fn limits_are_written_as_v2_has_them() {
        use cofferdam_sys::cgroup::{Hierarchy, Layout};
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("g");
        std::fs::create_dir(&group).unwrap();
        std::fs::write(group.join("cgroup.controllers"), "cpuset cpu io memory pids hugetlb\n").unwrap();
        let files = [
            ("memory.max", "1000"),
            ("memory.swap.max", "500"),
            ("memory.low", "10"),
            ("cpu.weight", "39"),
            ("cpu.max", "50000 100000"),
            ("cpuset.cpus", "0-1"),
            ("pids.max", "max"),
            ("io.max", "8:0 rbps=5"),
            ("hugetlb.2MB.max", "7"),
            ("memory.oom.group", "1"),
        ];
        for (file, _) in files {
            std::fs::write(group.join(file), "").unwrap();
        }
        let hierarchy = Hierarchy { root: dir.path().to_owned(), controllers: Vec::new(), unified: true };
        let cgroup = Cgroup::open(&Layout { hierarchies: vec![hierarchy] }, "/g").unwrap();
        let resources = serde_json::json!({
            "memory": {"limit": 1000, "swap": 1500, "reservation": 10},
            "cpu": {"shares": 1024, "quota": 50000, "cpus": "0-1"},
            "pids": {"limit": -1},
            "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 7}],
            "unified": {"memory.oom.group": "1"},
        });
        apply(&cgroup, &serde_json::from_value(resources).unwrap()).unwrap();
        for (file, value) in files {
            assert_eq!(std::fs::read_to_string(group.join(file)).unwrap(), value, "{file}");
        }
        // The values that runc's conversions give (libcontainer/cgroups: fs2, and ConvertCPUSharesToCgroupV2Value,
        // ConvertBlkIOToIOWeightValue, ConvertMemorySwapToCgroupV2Value of its utils).
        for file in ["io.weight", "cpu.max.burst", "cpu.idle", "cpuset.mems"] {
            std::fs::write(group.join(file), "").unwrap();
        }
        for (resources, file, expected) in [
            (serde_json::json!({"memory": {"limit": -1}}), "memory.max", "max"),
            (serde_json::json!({"memory": {"swap": -1}}), "memory.swap.max", "max"),
            (serde_json::json!({"memory": {"limit": 7, "swap": 7}}), "memory.swap.max", "0"),
            (serde_json::json!({"memory": {"reservation": -1}}), "memory.low", "max"),
            (serde_json::json!({"cpu": {"shares": 2}}), "cpu.weight", "1"),
            (serde_json::json!({"cpu": {"shares": 262_144}}), "cpu.weight", "10000"),
            (serde_json::json!({"cpu": {"quota": -1}}), "cpu.max", "max 100000"),
            (serde_json::json!({"cpu": {"period": 5000}}), "cpu.max", "max 5000"),
            (serde_json::json!({"cpu": {"quota": 20_000, "period": 40_000}}), "cpu.max", "20000 40000"),
            (serde_json::json!({"cpu": {"burst": 77}}), "cpu.max.burst", "77"),
            (serde_json::json!({"cpu": {"idle": 1}}), "cpu.idle", "1"),
            (serde_json::json!({"cpu": {"mems": "0"}}), "cpuset.mems", "0"),
            (serde_json::json!({"pids": {"limit": 99}}), "pids.max", "99"),
            (serde_json::json!({"blockIO": {"weight": 10}}), "io.weight", "1"),
            (serde_json::json!({"blockIO": {"weight": 500}}), "io.weight", "4950"),
            (serde_json::json!({"blockIO": {"weight": 1000}}), "io.weight", "10000"),
            (
                serde_json::json!({"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 1, "rate": 9}]}}),
                "io.max",
                "8:1 wiops=9",
            ),
            (serde_json::json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}), "hugetlb.2MB.max", "0"),
        ] {
            std::fs::write(group.join(file), "").unwrap();
            apply(&cgroup, &serde_json::from_value(resources.clone()).unwrap()).unwrap();
            assert_eq!(std::fs::read_to_string(group.join(file)).unwrap(), expected, "{resources}");
        }
        for nonsense in
            [serde_json::json!({"memory": {"swap": 5}}), serde_json::json!({"memory": {"limit": 6, "swap": 5}})]
        {
            let error = apply(&cgroup, &serde_json::from_value(nonsense).unwrap()).unwrap_err();
            assert_eq!(error.code, cofferdam_types::Code::InvalidArgument, "{error}");
        }
        for v1_only in
            [serde_json::json!({"memory": {"swappiness": 5}}), serde_json::json!({"cpu": {"realtimeRuntime": 5}})]
        {
            let error = apply(&cgroup, &serde_json::from_value(v1_only).unwrap()).unwrap_err();
            assert_eq!(error.code, cofferdam_types::Code::Unimplemented);
        }
    }

    /// Directories of plain files take what hosts with controllers that this one lacks would.
    #[test]
    fn what_few_hosts_have_is_written_where_it_is_and_refused_elsewhere() {
        use cofferdam_sys::cgroup::{Hierarchy, Layout};
        let dir = tempfile::tempdir().unwrap();
        let group = |name: &str, controllers: &[&str], files: &[&str]| {
            let root = dir.path().join(name);
            std::fs::create_dir_all(root.join("g")).unwrap();
            for file in files {
                std::fs::write(root.join("g").join(file), "").unwrap();
            }
            Hierarchy { root, controllers: controllers.iter().map(|c| (*c).to_owned()).collect(), unified: false }
        };
        let written =
            |hierarchy: &Hierarchy, file: &str| std::fs::read_to_string(hierarchy.root.join("g").join(file)).unwrap();
        let net = group("net", &["net_cls", "net_prio"], &["net_cls.classid", "net_prio.ifpriomap"]);
        let rdma = group("rdma", &["rdma"], &["rdma.max"]);
        let blkio =
            group("blkio", &["blkio"], &["blkio.bfq.weight_device", "blkio.leaf_weight", "blkio.leaf_weight_device"]);
        let resources = serde_json::json!({
            "network": {"classID": 1_048_577, "priorities": [{"name": "eth0", "priority": 5}]},
            "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10_000}},
            "blockIO": {"leafWeight": 10, "weightDevice": [{"major": 8, "minor": 0, "weight": 500, "leafWeight": 300}]},
        });
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        let layout = Layout { hierarchies: vec![net.clone(), rdma.clone(), blkio.clone()] };
        apply(&Cgroup::open(&layout, "/g").unwrap(), &resources).unwrap();
        assert_eq!((&*written(&net, "net_cls.classid"), &*written(&net, "net_prio.ifpriomap")), ("1048577", "eth0 5"));
        assert_eq!(written(&rdma, "rdma.max"), "mlx5_1 hca_handle=3 hca_object=10000");
        assert_eq!(written(&blkio, "blkio.bfq.weight_device"), "8:0 500");
        assert_eq!(
            (&*written(&blkio, "blkio.leaf_weight"), &*written(&blkio, "blkio.leaf_weight_device")),
            ("10", "8:0 300")
        );

        // A host with none of them.
        let bare = Layout { hierarchies: vec![group("bare", &["pids"], &[])] };
        for alone in [
            serde_json::json!({"network": {"classID": 1}}),
            serde_json::json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}),
            serde_json::json!({"blockIO": {"leafWeight": 10}}),
            serde_json::json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 500}]}}),
        ] {
            let resources = serde_json::from_value(alone).unwrap();
            let error = apply(&Cgroup::open(&bare, "/g").unwrap(), &resources).unwrap_err();
            assert_eq!(error.code, cofferdam_types::Code::Unimplemented, "{error}");
        }
    }
}
