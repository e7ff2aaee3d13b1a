//! What the driver writes into a v2 group against what runc writes: runc's own code, built from Debian's package of it,
//! asked beside ours about the same spec. Neither needs a host with v2 controllers.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use cofferdam_sys::cgroup::{Cgroup, Hierarchy, Layout};
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::{
    apply,
    tests::{BY_DEVICE, Write, recorded},
};
use crate::{native::check_resources, update::Update};

const SOURCES: &str = "/usr/share/gocode/src/github.com/opencontainers/runc";

/// The program that writes as runc does.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

/// Where it was built before, Go finds that out at once.
fn build() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let peers = exe.ancestors().nth(3).unwrap().join("peers");
    let (source, program) = (peers.join("runc-limits.d"), peers.join("runc-limits"));
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("main.go"), include_str!("runc/main.go")).unwrap();
    let update = fs::read(format!("{SOURCES}/update.go")).expect("runc's sources: run deploy/setup");
    fs::write(source.join("update.go"), update).unwrap();
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(&source)
        // What Debian's packages put there: nothing is fetched.
        .envs([("GO111MODULE", "off"), ("GOFLAGS", ""), ("GOPATH", "/usr/share/gocode"), ("CGO_ENABLED", "0")])
        .env("GOCACHE", peers.join("cache"))
        .status();
    assert!(built.expect("go: run deploy/setup").success());
    program
}

/// What the kernel shows at first in a v2 group of a host with all controllers.
const FILES: &[(&str, &str)] = &[
    ("cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma"),
    ("memory.current", "10"),
    ("memory.max", "max"),
    ("memory.swap.max", "max"),
    ("memory.low", "0"),
    ("memory.high", "max"),
    ("memory.oom.group", "0"),
    ("cpu.weight", "100"),
    ("cpu.idle", "0"),
    ("cpu.max", "max 100000"),
    ("cpu.max.burst", "0"),
    ("cpuset.cpus", ""),
    ("cpuset.mems", ""),
    ("pids.max", "max"),
    ("io.max", ""),
    ("io.weight", "default 100"),
    ("hugetlb.2MB.max", "max"),
    ("hugetlb.1GB.max", "max"),
    ("rdma.max", ""),
    ("cgroup.max.depth", "max"),
];
const BFQ: (&str, &str) = ("io.bfq.weight", "default 100");

/// Such a group, as a directory of plain files.
fn group(root: &Path, bfq: bool) -> PathBuf {
    let dir = root.join(if bfq { "bfq" } else { "plain" });
    fs::create_dir_all(&dir).unwrap();
    show(&dir, bfq, |_| true);
    dir
}

fn show(dir: &Path, bfq: bool, wanted: impl Fn(&str) -> bool) {
    for (file, shown) in FILES.iter().chain(bfq.then_some(&BFQ)).filter(|(file, _)| wanted(file)) {
        fs::write(dir.join(file), format!("{shown}\n")).unwrap();
    }
}

/// What came of a step: what was written, and whether it was refused.
#[derive(Debug, PartialEq)]
struct Step {
    refused: bool,
    writes: Vec<Write>,
}

#[derive(Clone)]
struct Case {
    bfq: bool,
    create: Value,
    updates: Vec<Value>,
}

impl Case {
    fn of(create: Value) -> Case {
        Case { bfq: false, create, updates: Vec::new() }
    }
}

/// What runc does. Its program changes nothing: one group does for all.
fn runc(cases: &[Case]) -> Vec<Vec<Step>> {
    let root = tempfile::tempdir().unwrap();
    let groups = [false, true].map(|bfq| group(root.path(), bfq));
    let text: Vec<Value> = cases
        .iter()
        .map(|case| {
            json!({
                "dir": groups[usize::from(case.bfq)],
                "spec": {"ociVersion": "1.0.2", "linux": {"resources": case.create}},
                "update": case.updates,
            })
        })
        .collect();
    let mut child =
        Command::new(program()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(&text).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    let all: Vec<Vec<Value>> = serde_json::from_slice(&output.stdout).expect("what the program says");
    let step = |step: Value| Step {
        refused: step["error"] != "",
        writes: step["writes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|w| (w["file"].as_str().unwrap().to_owned(), w["value"].as_str().unwrap().trim_end().to_owned()))
            .collect(),
    };
    all.into_iter().map(|steps| steps.into_iter().map(step).collect()).collect()
}

/// What the native driver does, in groups that look anew for each case.
struct Native {
    _root: tempfile::TempDir,
    groups: [(PathBuf, Cgroup); 2],
}

impl Native {
    fn new() -> Native {
        let root = tempfile::tempdir().unwrap();
        let groups = [false, true].map(|bfq| {
            let dir = group(root.path(), bfq);
            let hierarchy = Hierarchy { root: root.path().to_owned(), controllers: Vec::new(), unified: true };
            let path = format!("/{}", dir.file_name().unwrap().display());
            (dir, Cgroup::open(&Layout { hierarchies: vec![hierarchy] }, &path).unwrap())
        });
        Native { _root: root, groups }
    }

    fn steps(&self, case: &Case) -> Vec<Step> {
        let (dir, cgroup) = &self.groups[usize::from(case.bfq)];
        let set = |resources: cofferdam_types::Result<LinuxResources>| {
            let set = |resources: LinuxResources| check_resources(&resources).and_then(|()| apply(cgroup, &resources));
            let (answer, writes) = recorded(dir.clone(), || resources.and_then(set));
            Step { refused: answer.is_err(), writes }
        };
        let mut steps = vec![set(Ok(serde_json::from_value(case.create.clone()).unwrap()))];
        for update in &case.updates {
            steps.push(set(Update::read(update.to_string().as_bytes()).map(|update| update.resources)));
        }
        show(dir, case.bfq, |file| steps.iter().flat_map(|step| &step.writes).any(|(written, _)| written == file));
        steps
    }
}

/// Each of the first with each of the second, the fields of both in one object.
fn with(first: &[Value], second: &[Value]) -> Vec<Value> {
    let mut all = Vec::new();
    for a in first {
        for b in second {
            let mut both = a.as_object().unwrap().clone();
            both.extend(b.as_object().unwrap().clone());
            all.push(Value::Object(both));
        }
    }
    all
}

/// The field with each value, and left out.
fn field(name: &str, values: &[Value]) -> Vec<Value> {
    values.iter().map(|value| json!({ name: value })).chain([json!({})]).collect()
}

fn numbers(name: &str, values: &[i64]) -> Vec<Value> {
    field(name, &values.iter().map(|n| json!(n)).collect::<Vec<_>>())
}

/// Several devices, and one of them twice.
fn rates() -> Value {
    json!([
        {"major": 8, "minor": 0, "rate": 1_048_576}, {"major": 8, "minor": 16, "rate": 1}, {"major": 259, "minor": 3, "rate": 7},
        {"major": 8, "minor": 0, "rate": u64::MAX},
    ])
}

fn matrix() -> Vec<Case> {
    const MIB: i64 = 1 << 20;
    let mut all = Vec::new();
    let memory = with(&numbers("limit", &[-1, 0, MIB, i64::MAX]), &numbers("swap", &[-1, 0, 1, MIB, 2 * MIB]));
    for memory in with(&memory, &numbers("reservation", &[-1, 0, 1, MIB])) {
        all.push(Case::of(json!({ "memory": memory })));
    }
    let cpu = with(&numbers("shares", &[0, 2, 3, 1024, 262_144]), &numbers("quota", &[-5, -1, 0, 1000, 250_000]));
    let cpu = with(&cpu, &numbers("period", &[0, 1000, 100_000, 1_000_000]));
    for cpu in with(&cpu, &[json!({}), json!({"cpus": "0-1,3"}), json!({"cpus": "", "mems": "0"})]) {
        all.push(Case::of(json!({ "cpu": cpu })));
    }
    for pids in [-1, 0, 1, 99, 4_194_304] {
        all.push(Case::of(json!({"pids": {"limit": pids}})));
    }
    for weight in [0, 10, 11, 100, 500, 999, 1000] {
        let create = json!({"blockIO": {"weight": weight, "weightDevice": []}});
        all.extend([false, true].map(|bfq| Case { bfq, ..Case::of(create.clone()) }));
        let devices = json!([{"major": 8, "minor": 0, "weight": 10}, {"major": 259, "minor": 1, "weight": 1000}]);
        all.push(Case { bfq: true, ..Case::of(json!({"blockIO": {"weight": weight, "weightDevice": devices}})) });
    }
    let throttles =
        ["throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice"];
    for throttle in throttles {
        all.push(Case::of(json!({"blockIO": {throttle: rates()}})));
    }
    let every: serde_json::Map<String, Value> = throttles.iter().map(|name| ((*name).to_owned(), rates())).collect();
    all.push(Case::of(json!({ "blockIO": every })));
    for limit in [0, 1, 2 * MIB, i64::MAX] {
        let pages = json!([{"pageSize": "2MB", "limit": limit}, {"pageSize": "1GB", "limit": 1 << 30}]);
        all.push(Case::of(json!({ "hugepageLimits": pages })));
    }
    for device in [json!({"hcaHandles": 3}), json!({"hcaObjects": 0}), json!({"hcaHandles": 1, "hcaObjects": u32::MAX})]
    {
        all.push(Case::of(json!({"rdma": {"mlx5_1": device}})));
    }
    for (file, value) in
        [("memory.high", "max"), ("memory.oom.group", "1"), ("cpu.weight", "7"), ("io.max", "8:0 rbps=1")]
    {
        all.push(Case::of(json!({"unified": {file: value}})));
    }
    all.push(Case::of(json!({"unified": {"no.such.file": "1"}})));
    all.push(Case::of(json!({"unified": {"a/b": "1"}})));
    // All of it, for the order.
    all.push(Case::of(json!({
        "pids": {"limit": 7},
        "memory": {"limit": MIB, "swap": 2 * MIB, "reservation": 5},
        "blockIO": {"weight": 300, "throttleReadBpsDevice": rates(), "throttleWriteIOPSDevice": rates()},
        "cpu": {"shares": 512, "quota": 5000, "period": 10_000, "cpus": "0", "mems": "0"},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "rdma": {"mlx5_1": {"hcaHandles": 3}},
        "unified": {"memory.max": "5"},
    })));
    all
}

#[test]
fn v2_limits_are_what_runc_writes() {
    let (cases, native) = (matrix(), Native::new());
    let expected = runc(&cases);
    assert_eq!(expected.len(), cases.len());
    let mut written = 0;
    for (case, expected) in cases.iter().zip(expected) {
        assert_eq!(native.steps(case), expected, "{} bfq={}", case.create, case.bfq);
        written += expected[0].writes.len();
    }
    assert!(written > 500, "{written}");
}

/// What stands in the group after all steps: the last value of each file, or of each device in it.
fn standing(steps: &[Step]) -> BTreeMap<(String, String), String> {
    let mut all = BTreeMap::new();
    for (file, value) in steps.iter().flat_map(|step| &step.writes) {
        let key = if BY_DEVICE.contains(&file.as_str()) { value.split(['=']).next().unwrap() } else { "" };
        all.insert((file.clone(), key.to_owned()), value.clone());
    }
    all
}

// runc writes what it knows of the container again; ours writes what changes. What stands in the end is the same.
#[test]
fn a_change_of_v2_limits_leaves_what_runcs_leaves() {
    const MIB: i64 = 1 << 20;
    let before = [
        json!({}),
        json!({
            "pids": {"limit": 7},
            "memory": {"limit": 4 * MIB, "swap": 6 * MIB, "reservation": MIB},
            "cpu": {"shares": 512, "quota": 5000, "period": 10_000, "cpus": "0-1", "mems": "0"},
            "blockIO": {"weight": 300, "throttleReadBpsDevice": rates()},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
            "unified": {"memory.high": "max"},
        }),
        json!({"cpu": {"quota": 5000}}),
        json!({"cpu": {"period": 20_000}}),
        json!({"memory": {"limit": 4 * MIB, "swap": -1}}),
    ];
    let changes = [
        vec![json!({"memory": {"limit": 8 * MIB}})],
        vec![json!({"memory": {"limit": -1}})],
        vec![json!({"memory": {"swap": -1}})],
        vec![json!({"memory": {"swap": 9 * MIB}})],
        vec![
            json!({"memory": {"limit": 8 * MIB, "swap": 8 * MIB}}),
            json!({"memory": {"limit": 2 * MIB, "swap": 9 * MIB}}),
        ],
        vec![json!({"memory": {"limit": 8 * MIB, "swap": 7 * MIB}})],
        vec![json!({"memory": {"reservation": 3}}), json!({"memory": {"reservation": -1}})],
        vec![json!({"cpu": {"period": 50_000}})],
        vec![json!({"cpu": {"quota": 3000}}), json!({"cpu": {"period": 30_000}}), json!({"cpu": {"quota": -1}})],
        vec![json!({"cpu": {"quota": 4000, "period": 8000}})],
        vec![json!({"cpu": {"shares": 2}}), json!({"cpu": {"shares": 0, "cpus": "1"}}), json!({"cpu": {"mems": "0"}})],
        vec![json!({"pids": {"limit": 9}}), json!({"pids": {"limit": -1}})],
        vec![json!({"blockIO": {"weight": 10}}), json!({"blockIO": {"weight": 0}})],
        vec![json!({"unified": {"memory.oom.group": "1"}})],
    ];
    let cases: Vec<Case> = before
        .iter()
        .flat_map(|create| changes.iter().map(|updates| Case { updates: updates.clone(), ..Case::of(create.clone()) }))
        .collect();
    let native = Native::new();
    for (case, expected) in cases.iter().zip(runc(&cases)) {
        let ours = native.steps(case);
        let refused = |steps: &[Step]| steps.iter().map(|step| step.refused).collect::<Vec<_>>();
        let what = format!("{} {:?}", case.create, case.updates);
        assert_eq!(refused(&ours), refused(&expected), "{what}");
        assert_eq!(standing(&ours), standing(&expected), "{what}");
    }
}

// Each of these is a row of docs/drivers.md.
#[test]
fn where_v2_limits_differ_from_runcs_is_known() {
    const REFUSED: &str = "refused";
    let device = json!([{"major": 8, "minor": 0, "weight": 500}]);
    let differences = [
        // Fields that runc has learned since.
        (json!({"cpu": {"idle": 1}}), "", "cpu.idle=1"),
        (json!({"cpu": {"burst": 5, "quota": 1000}}), "cpu.max=1000 100000", "cpu.max.burst=5 cpu.max=1000 100000"),
        (json!({"memory": {"limit": 5, "checkBeforeUpdate": true}}), "memory.max=5", REFUSED),
        // What runc leaves out without a word.
        (json!({"blockIO": {"weightDevice": device}}), "", "io.weight=8:0 4950"),
        (json!({"memory": {"swappiness": 5}}), "", REFUSED),
        (json!({"memory": {"disableOOMKiller": true}}), "", REFUSED),
        (json!({"memory": {"kernel": 5}}), "", REFUSED),
        (json!({"cpu": {"realtimeRuntime": 5}}), "", REFUSED),
        (json!({"cpu": {"realtimePeriod": 5}}), "", REFUSED),
        (json!({"blockIO": {"leafWeight": 10}}), "", REFUSED),
        (json!({"network": {"classID": 1}}), "", REFUSED),
        // What the kernel refuses, without saying which field it was.
        (json!({"memory": {"limit": -2}}), "memory.max=-2", REFUSED),
        (json!({"pids": {"limit": -2}}), "pids.max=-2", REFUSED),
        (json!({"blockIO": {"weight": 9}}), "io.weight=18633074821928830", REFUSED),
        (json!({"blockIO": {"weight": 1001}}), "io.weight=10010", REFUSED),
        // What v1 takes as its least and its most.
        (json!({"cpu": {"shares": 1}}), "cpu.weight=70369281052672", "cpu.weight=1"),
        (json!({"cpu": {"shares": 1_000_000}}), "cpu.weight=38144", "cpu.weight=10000"),
        // A device without a limit.
        (json!({"rdma": {"mlx5_1": {}}}), "rdma.max=mlx5_1", ""),
        // A group's structure is no limit.
        (json!({"unified": {"cgroup.max.depth": "1"}}), "cgroup.max.depth=1", REFUSED),
    ];
    let cases: Vec<Case> = differences.iter().map(|(resources, ..)| Case::of(resources.clone())).collect();
    let native = Native::new();
    let shown = |step: &Step| match step.refused {
        true => REFUSED.to_owned(),
        false => step.writes.iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>().join(" "),
    };
    for (n, ((resources, runcs, ours), said)) in differences.iter().zip(runc(&cases)).enumerate() {
        assert_eq!(shown(&said[0]), *runcs, "runc: {resources}");
        assert_eq!(shown(&native.steps(&cases[n])[0]), *ours, "native: {resources}");
    }
}
