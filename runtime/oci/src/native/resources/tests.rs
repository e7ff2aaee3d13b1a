use std::{cell::RefCell, path::PathBuf};

use super::*;

thread_local! {
    /// A directory of plain files that is to look like a group, and what was written there.
    static GROUP: RefCell<Option<(PathBuf, Vec<Write>)>> = const { RefCell::new(None) };
}

pub(super) type Write = (String, String);

/// What lies in these is set by device, and each line apart.
pub(super) const BY_DEVICE: &[&str] = &["io.max", "io.weight", "io.bfq.weight", "rdma.max"];

/// The kernel shows a file's last value and nothing of the one before; a plain file keeps the end of a longer one.
pub(super) fn written(file: &str, value: &str) {
    GROUP.with_borrow_mut(|group| {
        if let Some((dir, writes)) = group {
            let shown = if BY_DEVICE.contains(&file) { String::new() } else { format!("{value}\n") };
            std::fs::write(dir.join(file), shown).unwrap();
            writes.push((file.to_owned(), value.to_owned()));
        }
    });
}

/// What `call` writes into the group in `dir`, in order.
pub(super) fn recorded<T>(dir: PathBuf, call: impl FnOnce() -> T) -> (T, Vec<Write>) {
    GROUP.set(Some((dir, Vec::new())));
    let answer = call();
    (answer, GROUP.take().unwrap().1)
}

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
    for nonsense in [serde_json::json!({"memory": {"swap": 5}}), serde_json::json!({"memory": {"limit": 6, "swap": 5}})]
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

/// Directories of plain files take what a v2 group would, where what stands there counts.
#[test]
fn what_stands_there_counts() {
    use cofferdam_sys::cgroup::{Hierarchy, Layout};
    let dir = tempfile::tempdir().unwrap();
    let group = dir.path().join("g");
    std::fs::create_dir(&group).unwrap();
    std::fs::write(group.join("cgroup.controllers"), "cpu memory\n").unwrap();
    let hierarchy = Hierarchy { root: dir.path().to_owned(), controllers: Vec::new(), unified: true };
    let cgroup = Cgroup::open(&Layout { hierarchies: vec![hierarchy] }, "/g").unwrap();
    let apply = |resources: serde_json::Value| {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        let (answer, writes) = recorded(group.clone(), || apply(&cgroup, &resources));
        answer.map(|()| writes.into_iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>())
    };
    for file in ["memory.max", "cpu.weight", "cpu.idle", "cpu.max"] {
        std::fs::write(group.join(file), "").unwrap();
    }
    // A kernel that counts no swap limits none, and can't be asked to.
    assert_eq!(apply(serde_json::json!({"memory": {"limit": -1}})).unwrap(), ["memory.max=max"]);
    assert!(apply(serde_json::json!({"memory": {"limit": 7, "swap": 7}})).is_err());
    // An idle group has no weight: it gets one before it is idle, or once it isn't any more.
    let idle = apply(serde_json::json!({"cpu": {"shares": 2, "idle": 1}})).unwrap();
    assert_eq!(idle, ["cpu.weight=1", "cpu.idle=1"]);
    let idle = apply(serde_json::json!({"cpu": {"shares": 2, "idle": 0}})).unwrap();
    assert_eq!(idle, ["cpu.idle=0", "cpu.weight=1"]);
    // A burst that isn't taken before the quota is tried after it: here it never is.
    let error = apply(serde_json::json!({"cpu": {"burst": 5, "quota": 1000}})).unwrap_err();
    assert!(error.message.contains("cpu.max.burst"), "{error}");
    assert_eq!(std::fs::read_to_string(group.join("cpu.max")).unwrap(), "1000 100000\n");
    // One of the two changes; the other stays.
    assert_eq!(apply(serde_json::json!({"cpu": {"period": 5000}})).unwrap(), ["cpu.max=1000 5000"]);
    assert_eq!(apply(serde_json::json!({"cpu": {"quota": -1}})).unwrap(), ["cpu.max=max 5000"]);
}

#[test]
fn all_memory_is_given_although_swap_was_limited() {
    use cofferdam_sys::cgroup::{Cgroup, Layout};
    let layout = Layout::detect().unwrap();
    let cgroup = Cgroup::create(&layout, &format!("/cofferdam-swap-{}", std::process::id())).unwrap();
    let limit = |text: &str| apply(&cgroup, &serde_json::from_str(text).unwrap());
    let done = match cgroup.v1("memory") {
        Some(dir) if cgroup.read_at(dir, "memory.memsw.limit_in_bytes").is_ok() => {
            limit(r#"{"memory": {"limit": 67108864, "swap": 134217728}}"#)
                .and_then(|()| limit(r#"{"memory": {"limit": -1}}"#))
                .and_then(|()| cgroup.read_at(dir, "memory.memsw.limit_in_bytes"))
        }
        _ => Ok("9223372036854771712".to_owned()),
    };
    cgroup.remove().unwrap();
    assert!(done.unwrap().trim().parse::<i64>().unwrap() > 1 << 60);
}
