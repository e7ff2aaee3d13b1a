//! The same bundle through two drivers looks the same from inside, and its cgroups the same from outside.

use std::{collections::BTreeMap, path::Path};

use cofferdam_client::{ContainerRequest, Namespace, ProcessOptions, Stdio};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, output, program};
use cofferdam_sys::cgroup::Layout;
use serde_json::{Value, json};

/// What may differ: the other driver (empty: any), the bundle (empty: any), the section, how the lines begin, and why.
const ALLOWED: &[(&str, &str, &str, &str, &str)] = &[
    ("", "", "status", "SigIgn", "theirs leave two signals of the C library ignored where their caller does"),
    (
        "runc",
        "",
        "limits outside",
        "/sys/fs/cgroup/devices devices.list: c 10:200",
        "runc allows /dev/net/tun, until 1.2",
    ),
    ("runc", "", "cgroups", "/sys/fs/cgroup/unified", "ours shows the v2 hierarchy of a hybrid host as well"),
    ("runc", "", "mounts", "/sys/fs/cgroup", "... and the directory of all hierarchies is read-only if the mount is"),
    ("runc", "", "points", "/sys/fs/cgroup", "... and has the mode that it says, while runc's has 555"),
    (
        "runc",
        "",
        "limits",
        "Max open files",
        "Go raises the soft limit, and gives it to containers; ours is what programs expect",
    ),
    ("runc", "bare", "environment", "HOME=", "runc adds it; here who makes the spec says what is in it"),
    ("runc", "somebody", "status", "Umask", "runc gives the umask of the spec to the first process alone"),
    (
        "runc",
        "shared",
        "mounts",
        "/",
        "runc sets the propagation of the host's root in the new namespace, ours the root's own",
    ),
    ("crun", "", "devices", "/dev/core", "crun makes the link even where the kernel has no /proc/kcore"),
    ("crun", "", "mounts", "/sys in", "crun makes the mount of sysfs read-only, and not the file system"),
    (
        "crun",
        "",
        "mounts",
        "/proc/",
        "crun masks with the host's /dev/null, and its read-only paths lose nosuid and noexec",
    ),
    ("crun", "", "mounts", "/sys/firmware", "crun's empty directory is a file system that is not itself read-only"),
    ("crun", "", "process", "leads its", "one more process without a terminal is in nobody's session"),
];

/// A change of the default spec.
type Change = fn(&mut Value);

fn push(list: &mut Value, items: Value) {
    let items = items.as_array().unwrap().clone();
    match list {
        Value::Array(list) => list.extend(items),
        other => *other = items.into(),
    }
}

fn drop_namespaces(spec: &mut Value, kinds: &[&str]) {
    let all = spec["linux"]["namespaces"].as_array_mut().unwrap();
    all.retain(|n| !kinds.contains(&n["type"].as_str().unwrap()));
}

fn read_only(spec: &mut Value) {
    spec["root"]["readonly"] = json!(true);
}

fn terminal(spec: &mut Value) {
    spec["process"]["terminal"] = json!(true);
    spec["process"]["consoleSize"] = json!({"height": 33, "width": 99});
}

fn somebody(spec: &mut Value) {
    let process = &mut spec["process"];
    process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 1001, 7], "umask": 0o077});
    let caps = json!(["CAP_NET_BIND_SERVICE", "CAP_CHOWN", "CAP_SYS_CHROOT"]);
    process["capabilities"] = json!({"bounding": caps, "permitted": caps, "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"]});
    process["noNewPrivileges"] = json!(false);
    process["cwd"] = json!("/tmp");
    process["oomScoreAdj"] = json!(300);
    push(&mut process["env"], json!(["A=1", "EMPTY=", "A=2"]));
    process["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_NPROC", "soft": 500, "hard": 600}, {"type": "RLIMIT_STACK", "soft": 4194304, "hard": 8388608},
    ]);
}

/// What a spec may leave out is left out.
fn bare(spec: &mut Value) {
    let args = spec["process"]["args"].take();
    spec["process"] = json!({"user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin"]});
    for part in ["maskedPaths", "readonlyPaths", "seccomp", "resources"] {
        spec["linux"].as_object_mut().unwrap().remove(part);
    }
    spec.as_object_mut().unwrap().remove("hostname");
}

fn unconfined(spec: &mut Value) {
    spec["linux"].as_object_mut().unwrap().remove("seccomp");
    spec["process"]["noNewPrivileges"] = json!(false);
}

fn mounts(spec: &mut Value) {
    let host = spec["probe"].as_str().unwrap().to_owned();
    let file = format!("{host}/namespaces");
    push(
        &mut spec["mounts"],
        json!([
            {"destination": "/m/ro", "type": "bind", "source": host, "options": ["bind", "ro"]},
            {"destination": "/m/flags", "type": "bind", "source": host, "options": ["rbind", "nosuid", "nodev", "noexec", "noatime"]},
            {"destination": "/m/times", "type": "bind", "source": host, "options": ["bind", "nodiratime", "relatime"]},
            {"destination": "/m/slave", "type": "bind", "source": host, "options": ["rbind", "rslave"]},
            {"destination": "/m/shared", "type": "bind", "source": host, "options": ["rbind", "rshared"]},
            {"destination": "/m/unbindable", "type": "bind", "source": host, "options": ["rbind", "unbindable"]},
            {"destination": "/m/rro", "type": "bind", "source": host, "options": ["rbind", "rro"]},
            {"destination": "/m/a/deep/file", "type": "bind", "source": file, "options": ["bind", "ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": file, "options": ["bind"]},
            {"destination": "/m/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=1m", "mode=1750", "uid=3", "gid=4", "nr_inodes=100"]},
            {"destination": "/m/strict", "type": "tmpfs", "source": "name", "options": ["strictatime", "noexec", "ro"]},
            {"destination": "/m/none", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/m/proc", "type": "proc", "source": "proc", "options": ["ro", "nosuid"]},
        ]),
    );
}

fn devices(spec: &mut Value) {
    spec["linux"]["devices"] = json!([
        {"path": "/dev/sub/char", "type": "c", "major": 10, "minor": 229, "fileMode": 0o620, "uid": 7, "gid": 6},
        {"path": "/dev/block", "type": "b", "major": 7, "minor": 0, "fileMode": 0o600},
        {"path": "/dev/plain", "type": "c", "major": 1, "minor": 5},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o644},
    ]);
    push(
        &mut spec["linux"]["resources"]["devices"],
        json!([
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": true, "type": "b", "major": 7, "access": "rwm"},
            {"allow": false, "type": "c", "major": 1, "minor": 9, "access": "w"},
        ]),
    );
}

fn hidden(spec: &mut Value) {
    spec["linux"]["maskedPaths"] =
        json!(["/proc/keys", "/sys/firmware", "/etc/passwd", "/home", "/none", "/proc/timer_list"]);
    spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/proc/irq", "/var", "/etc/group", "/none"]);
}

fn parameters(spec: &mut Value) {
    spec["linux"]["sysctl"] = json!({"kernel.msgmax": "9000", "kernel.shmmni": "77", "net.ipv4.ip_forward": "1",
        "net.ipv4.ping_group_range": "0 100", "net.ipv4.ip_unprivileged_port_start": "0", "fs.mqueue.msg_max": "33"});
}

fn slave(spec: &mut Value) {
    spec["linux"]["rootfsPropagation"] = json!("rslave");
}

fn shared(spec: &mut Value) {
    spec["linux"]["rootfsPropagation"] = json!("shared");
}

/// Of namespaces it has nothing but its mounts.
fn at_home(spec: &mut Value) {
    drop_namespaces(spec, &["pid", "network", "ipc", "uts", "cgroup"]);
    spec.as_object_mut().unwrap().remove("hostname");
}

fn open_cgroup(spec: &mut Value) {
    drop_namespaces(spec, &["cgroup"]);
    for mount in spec["mounts"].as_array_mut().unwrap() {
        if mount["type"] == "cgroup" {
            mount["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
        }
    }
}

/// The v2 hierarchy by its own type: the container's own group.
fn own_group(spec: &mut Value) {
    push(
        &mut spec["mounts"],
        json!([
            {"destination": "/m/group", "type": "cgroup2", "source": "cgroup2", "options": ["rw", "nosuid", "nodev", "noexec"]},
            {"destination": "/m/closed", "type": "cgroup2", "source": "cgroup2", "options": ["ro", "nosuid", "nodev", "noexec"]},
        ]),
    );
}

fn limits(spec: &mut Value) {
    let resources = spec["linux"]["resources"].as_object_mut().unwrap();
    let more = json!({
        "memory": {"limit": 67108864, "reservation": 33554432, "swappiness": 10, "disableOOMKiller": true},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 99},
        "hugepageLimits": [],
    });
    resources.extend(more.as_object().unwrap().clone());
}

/// No limit is a limit too.
fn no_limits(spec: &mut Value) {
    let resources = spec["linux"]["resources"].as_object_mut().unwrap();
    let more = json!({"memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": 0}});
    resources.extend(more.as_object().unwrap().clone());
}

const BUNDLES: &[(&str, Change)] = &[
    ("default", |_| {}),
    ("read-only", read_only),
    ("terminal", terminal),
    ("somebody", somebody),
    ("bare", bare),
    ("unconfined", unconfined),
    ("mounts", mounts),
    ("devices", devices),
    ("hidden", hidden),
    ("parameters", parameters),
    ("slave", slave),
    ("shared", shared),
    ("at home", at_home),
    ("open cgroup", open_cgroup),
    ("own group", own_group),
    ("limits", limits),
    ("no limits", no_limits),
];

/// What was seen: a section's lines.
type Seen = BTreeMap<String, Vec<String>>;

/// Runs the probe as the first process and as one more, under one driver.
async fn look(daemon: &Daemon, namespace: &Namespace, spec: &Value, runtime: &str) -> Seen {
    let image = namespace.images().get(BUSYBOX);
    let request = ContainerRequest { id: "box".into(), runtime: runtime.into(), ..ContainerRequest::default() };
    let container = namespace.containers().create_from_spec(Some(&image), &request, &serde_json::to_vec(spec).unwrap());
    let (stdout, first) = output();
    let stdio = Stdio { stdout, ..Stdio::default() };
    let task = container.create_task(stdio, false);
    let started = task.start().await;
    started.unwrap_or_else(|e| panic!("{runtime}: {e}"));
    let text = first.contains("[end]").await;
    let mut seen = Seen::new();
    read("first", &text, &mut seen);
    let terminal = spec["process"]["terminal"] == true;
    let options = ProcessOptions {
        args: ["sh", "/probe/probe.sh", "more"].map(String::from).into(),
        terminal,
        ..ProcessOptions::default()
    };
    let (stdout, second) = output();
    let exec = task.exec("more", &options, Stdio { stdout, ..Stdio::default() });
    let ended = exec.wait();
    exec.start().await.unwrap();
    ended.await.unwrap();
    read("more", &second.text().await, &mut seen);
    seen.insert("limits outside".into(), outside(&daemon.cgroup("box")));
    task.kill(9, true).await.unwrap();
    task.wait().await.unwrap();
    container.remove(true).await.unwrap();
    seen
}

fn read(who: &str, text: &str, seen: &mut Seen) {
    let mut section = String::new();
    for line in text.replace("\r\n", "\n").lines() {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) => section = format!("{who}: {name}"),
            None => seen.entry(section.clone()).or_default().push(line.to_owned()),
        }
    }
    if let Some(mounts) = seen.get_mut(&format!("{who}: mounts")) {
        *mounts = plain_mounts(mounts);
    }
}

/// Without what is chosen by the kernel, or by the daemon: numbers, and the layers of the root.
fn plain_mounts(lines: &[String]) -> Vec<String> {
    let fields = |line: &String| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let points: BTreeMap<_, _> = lines.iter().map(fields).map(|f| (f[0].clone(), f[4].clone())).collect();
    let mut plain: Vec<String> = lines
        .iter()
        .map(fields)
        .map(|f| {
            let dash = f.iter().position(|field| field == "-").unwrap();
            let peers: Vec<&str> = f[6..dash].iter().map(|tag| tag.split(':').next().unwrap()).collect();
            let options = if f[dash + 1] == "overlay" { "..." } else { f[dash + 3].as_str() };
            let above = points.get(&f[1]).map_or("-", |point| point.as_str());
            format!("{} in {above}: {} of {} {} {peers:?} ({options})", f[4], f[3], f[dash + 1], f[5])
        })
        .collect();
    plain.sort();
    plain
}

/// Every file of its cgroups that says what is allowed, not what happens.
fn outside(group: &str) -> Vec<String> {
    const NOT: &[&str] = &[
        "stat",
        "usage",
        "current",
        "peak",
        "events",
        "pressure",
        "failcnt",
        "procs",
        "tasks",
        "threads",
        "time",
        "numa",
        "recursive",
        "serviced",
        "service_bytes",
        "rsvd",
        "kmem",
        "effective",
        "acct",
        "controllers",
        "reset",
    ];
    let mut lines = Vec::new();
    for hierarchy in Layout::detect().unwrap().hierarchies {
        let dir = hierarchy.root.join(group.trim_start_matches('/'));
        for file in std::fs::read_dir(&dir).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            let name = file.file_name().unwrap().to_str().unwrap();
            if file.is_dir() || NOT.iter().any(|part| name.contains(part)) {
                continue;
            }
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            lines.extend(text.lines().map(|line| format!("{} {name}: {line}", hierarchy.root.display())));
        }
    }
    lines.sort();
    lines
}

/// The lines of one that the other doesn't have, or has not as often.
fn beyond<'l>(lines: &'l [String], other: &[String]) -> Vec<&'l String> {
    let mut other: Vec<&String> = other.iter().collect();
    let mut rest = Vec::new();
    for line in lines {
        match other.iter().position(|there| *there == line) {
            Some(at) => drop(other.swap_remove(at)),
            None => rest.push(line),
        }
    }
    rest
}

fn compare(driver: &str, bundle: &str, native: &Seen, other: &Seen) -> Vec<String> {
    let mut found = Vec::new();
    let sections: std::collections::BTreeSet<_> = native.keys().chain(other.keys()).collect();
    let none = Vec::new();
    for section in sections {
        let (a, b) = (native.get(section).unwrap_or(&none), other.get(section).unwrap_or(&none));
        let allowed = |line: &str| {
            let mut all = ALLOWED.iter();
            all.any(|(with, of, part, start, _)| {
                let here = driver.ends_with(with) && (of.is_empty() || *of == bundle);
                here && section.ends_with(part) && line.starts_with(start)
            })
        };
        for (who, lines) in [("native", beyond(a, b)), ("other", beyond(b, a))] {
            let lines = lines.into_iter().filter(|line| !allowed(line));
            found.extend(lines.map(|line| format!("{bundle}: {section}: {who} has {line}")));
        }
    }
    found
}

/// The directory of the probe, to be mounted.
fn probe() -> tempfile::TempDir {
    let dir = program("probe", include_str!("probe.c"));
    std::fs::write(dir.path().join("probe.sh"), include_str!("probe.sh")).unwrap();
    let ours =
        std::fs::read_dir("/proc/self/ns").unwrap().map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap());
    let text: Vec<String> = ours.map(|link| link.to_str().unwrap().to_owned()).collect();
    std::fs::write(dir.path().join("namespaces"), text.join("\n")).unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

/// The default spec, with the probe as its program.
async fn base(namespace: &Namespace, probe: &Path) -> Value {
    let image = namespace.images().get(BUSYBOX);
    let mut request = ContainerRequest { id: "model".into(), ..ContainerRequest::default() };
    request.options.args = ["sh", "-c", "sh /probe/probe.sh; exec sleep 1000"].map(String::from).into();
    request.options.hostname = "box".into();
    let container = namespace.containers().create(&image, &request);
    let mut spec: Value = serde_json::from_slice(&container.info().await.unwrap().spec.value).unwrap();
    container.remove(false).await.unwrap();
    let mount = json!([{"destination": "/probe", "type": "bind", "source": probe, "options": ["rbind", "ro"]}]);
    push(&mut spec["mounts"], mount);
    spec["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    // For those of the changes that mount it once more; no property of a spec.
    spec["probe"] = json!(probe);
    spec
}

fn same(daemon: Daemon, other: &str, bundles: &[(&str, Change)]) {
    let before = daemon.leftovers();
    let dir = probe();
    bounded(async {
        let namespace = daemon.open().await;
        let base = base(&namespace, dir.path()).await;
        let mut differences = Vec::new();
        for (bundle, change) in bundles {
            let mut spec = base.clone();
            change(&mut spec);
            let native = look(&daemon, &namespace, &spec, "native").await;
            assert!(native.len() > 20, "the probe sees nothing: {native:#?}");
            let theirs = look(&daemon, &namespace, &spec, other).await;
            differences.extend(compare(other, bundle, &native, &theirs));
        }
        assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    });
    daemon.settles(&before);
}

#[test]
fn native_and_runc_make_the_same_of_a_bundle() {
    same(Daemon::with_busybox(), "runc", BUNDLES);
}

/// Where there is nothing but cgroup v2.
#[test]
fn native_and_runc_make_the_same_of_a_bundle_on_v2() {
    same(Daemon::unified_with_busybox(), "runc", &BUNDLES[..1]);
}

#[test]
fn native_and_crun_make_the_same_of_a_bundle_on_v2() {
    same(Daemon::unified_with_busybox(), &cofferdam_integration::crun(), &BUNDLES[..1]);
}
