//! Properties of processes beyond rights and limits, and time.

use super::*;

#[test]
fn a_time_namespace_has_its_offsets() {
    let mut f = Fixture::new();
    f.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    f.spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 5, "nanosecs": 7}});
    let uptime = |text: &str| text.split('.').next().unwrap().parse::<u64>().unwrap();
    let (container, hold) = sleeping(&mut f);
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
        "args": ["sh", "-c", "cat /proc/uptime; cat /proc/self/timens_offsets; readlink /proc/self/ns/time"]});
    let (status, out) = exec(&f, &container, process.clone()).unwrap();
    assert_eq!(status, 0, "{out}");
    let host = uptime(&std::fs::read_to_string("/proc/uptime").unwrap());
    let inside = uptime(&out) - 1_000_000;
    assert!(inside <= host && host - inside < 60, "{out}");
    let words: Vec<&str> = out.split_whitespace().skip(2).collect();
    assert_eq!(words[..6], ["monotonic", "5", "7", "boottime", "1000000", "0"], "{out}");
    let own = std::fs::read_link(format!("/proc/{}/ns/time", container.init.pid)).unwrap();
    assert_eq!(words[6], own.to_str().unwrap());

    // By path.
    let mut other = Fixture::new();
    let path = format!("/proc/{}/ns/time", container.init.pid);
    other.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time", "path": path}));
    assert_eq!(other.output("readlink /proc/self/ns/time").trim(), own.to_str().unwrap());
    // In a user namespace.
    let map = json!([{"containerID": 0, "hostID": 300_000, "size": 65536}]);
    let mut user = Fixture::new();
    (user.spec["linux"]["uidMappings"], user.spec["linux"]["gidMappings"]) = (map.clone(), map);
    let namespaces = user.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.extend([json!({"type": "user"}), json!({"type": "time"})]);
    user.spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000}});
    assert!(uptime(&user.output("cat /proc/uptime")) > 1_000_000);
    // What no clock can be.
    user.spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": -1_000_000_000}});
    assert_eq!(user.try_run().unwrap_err().id, "linux.timeOffsets");
    user.spec["linux"]["timeOffsets"] = json!({"realtime": {"secs": 1}});
    assert_eq!(user.try_run().unwrap_err().id, "linux.timeOffsets");
    drop(hold);
    process::waitid(&container.init.pidfd, true).unwrap();
    f.native.delete(&container).unwrap();
}

#[test]
fn a_mount_namespace_is_joined_by_path_but_not_the_hosts() {
    let mut maker = std::process::Command::new("unshare");
    let mut maker = maker.args(["-m", "sleep", "1000"]).spawn().unwrap();
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let path = format!("/proc/{}/ns/mnt", maker.id());
    let other = loop {
        match std::fs::read_link(&path) {
            Ok(other) if other != own => break other,
            _ => std::thread::yield_now(),
        }
    };
    // Until the program runs, its mounts are still being changed.
    while std::fs::read(format!("/proc/{}/cmdline", maker.id())).unwrap() != b"sleep\x001000\0" {
        std::thread::yield_now();
    }
    let mut f = Fixture::new();
    f.spec["linux"]["namespaces"] = json!([{"type": "mount", "path": path}, {"type": "pid"}, {"type": "uts"},
        {"type": "ipc"}, {"type": "network"}, {"type": "cgroup"}]);
    assert_eq!(
        f.output("readlink /proc/self/ns/mnt; ls /bin/busybox; mount | grep -c /dev/shm"),
        format!("{}\n/bin/busybox\n1\n", other.display())
    );
    maker.kill().unwrap();
    maker.wait().unwrap();
    f.spec["linux"]["namespaces"][0]["path"] = json!("/proc/self/ns/mnt");
    let error = f.try_run().unwrap_err();
    assert_eq!((error.code, &*error.kind), (Code::InvalidArgument, "namespace"), "{error}");
}

#[test]
fn personality_and_scheduling_are_as_the_spec_says() {
    let mut f = Fixture::new();
    f.spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    f.spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
    f.spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    let line = "uname -m; cat /proc/self/personality; ionice -p $$; awk '{print $19, $41}' /proc/self/stat";
    let expected = "i686\n00000008\nidle\n7 3\n";
    assert_eq!(f.output(line), expected);
    // Every other process has the container's personality, and a place of its own.
    let (container, hold) = sleeping(&mut f);
    let mut process =
        json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", line]});
    assert_eq!(exec(&f, &container, process.clone()).unwrap(), (0, "i686\n00000008\nnone: prio 0\n0 0\n".into()));
    process["scheduler"] = json!({"policy": "SCHED_IDLE"});
    process["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    process["execCPUAffinity"] = json!({"initial": "0-1", "final": "1"});
    process["args"] = json!([
        "sh",
        "-c",
        "grep Cpus_allowed_list /proc/self/status; ionice -p $$; awk '{print $41}' /proc/self/stat"
    ]);
    assert_eq!(
        exec(&f, &container, process.clone()).unwrap(),
        (0, "Cpus_allowed_list:\t1\nbest-effort: prio 6\n5\n".into())
    );
    process["execCPUAffinity"] = json!({"final": "4000"});
    let error = exec(&f, &container, process.clone()).unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument, "{error}");
    process["execCPUAffinity"] = Value::Null;
    process["scheduler"] = json!({"policy": "SCHED_BATCH", "priority": 5});
    assert_eq!(exec(&f, &container, process).unwrap_err().id, "process.scheduler");
    drop(hold);
    process::waitid(&container.init.pidfd, true).unwrap();
    f.native.delete(&container).unwrap();
    f.spec["linux"]["personality"]["flags"] = json!(["ADDR_NO_RANDOMIZE"]);
    assert_eq!(f.try_run().unwrap_err().id, "linux.personality");
}

#[test]
fn a_memory_policy_is_set_or_its_absence_told() {
    let mut f = Fixture::new();
    f.spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    if Path::new("/sys/devices/system/node/node0").exists() && Path::new("/proc/self/numa_maps").exists() {
        assert!(f.output("cat /proc/self/numa_maps").lines().all(|line| line.contains("bind:0")));
        f.spec["linux"]["memoryPolicy"]["nodes"] = json!("4000");
        assert_eq!(f.try_run().unwrap_err().code, Code::InvalidArgument);
    } else {
        assert_eq!(f.try_run().unwrap_err().code, Code::FailedPrecondition);
    }
    f.spec["linux"]["memoryPolicy"]["nodes"] = json!("0-");
    assert_eq!(f.try_run().unwrap_err().id, "linux.memoryPolicy.nodes");
}

#[test]
fn inheritable_capabilities_are_those_of_the_spec() {
    let mut f = Fixture::new();
    f.spec["process"]["capabilities"]["inheritable"] = json!(["CAP_KILL", "CAP_CHOWN"]);
    let status = f.args(&["cat", "/proc/self/status"]).run().1;
    assert_eq!(status_field(&status, "CapInh"), format!("{:016x}", 1 | 1 << 5));
    assert_eq!(status_field(&status, "CapAmb"), "0000000000000000");
}

#[test]
fn labels_need_a_kernel_that_has_them() {
    let mut f = Fixture::new();
    for (field, value, there) in [
        ("apparmorProfile", "cofferdam-test", "/sys/module/apparmor/parameters/enabled"),
        ("selinuxLabel", "system_u:system_r:container_t:s0", "/sys/fs/selinux/enforce"),
    ] {
        f.spec["process"][field] = json!(value);
        let error = f.try_run().unwrap_err();
        if Path::new(there).exists() {
            // No policy of a host knows the name.
            assert_eq!(error.code, Code::FailedPrecondition, "{error}");
        } else {
            assert_eq!((error.code, error.id), (Code::Unimplemented, format!("process.{field}")));
        }
        f.spec["process"][field] = Value::Null;
    }
    f.spec["process"]["apparmorProfile"] = json!("unconfined");
    f.args(&["true"]).run();
}

/// What a spec has wrong is no defect of the daemon, and no reason to try again.
#[test]
fn what_a_spec_has_wrong_is_told_as_that() {
    let mount = |kind: &str, options: &[&str]| json!({"mounts": [{"destination": "/t", "type": kind, "source": kind, "options": options}]});
    let limits = |limits: Value| json!({"linux": {"resources": limits}});
    let throttle = json!([{"major": 4000, "minor": 1, "rate": 1048576}]);
    let map = |first: u32| {
        let map = json!([{"containerID": first, "hostID": 300_000, "size": 10}]);
        let all = ["pid", "mount", "ipc", "uts", "network", "cgroup", "user"].map(|kind| json!({"type": kind}));
        json!({"uidMappings": map, "gidMappings": map, "namespaces": all})
    };
    let user = |first: u32, more: Value| {
        let mut change = json!({"linux": map(first), "process": {"user": {"uid": first, "gid": first}}});
        change.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        change
    };
    let lower = std::env::temp_dir();
    let lower = format!("lowerdir={}", lower.display());
    for (change, code, said) in [
        (mount("tmpfs", &["foo=bar"]), Code::InvalidArgument, "foo=bar: tmpfs: Unknown parameter 'foo'"),
        (mount("tmpfs", &["size=abc"]), Code::InvalidArgument, "size=abc"),
        (user(0, mount("tmpfs", &["foo=bar"])), Code::InvalidArgument, "mounts /t: have options"),
        (mount("overlay", &[&lower]), Code::InvalidArgument, "overlay: "),
        (user(1, json!({"mounts": []})), Code::InvalidArgument, "have no id 0"),
        (limits(json!({"blockIO": {"throttleReadBpsDevice": throttle}})), Code::FailedPrecondition, "4000:1 1048576"),
        (limits(json!({"unified": {"memory.none": "1"}})), Code::Unimplemented, "no memory.none"),
        (
            limits(json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]})),
            Code::Unimplemented,
            "leave the limit out",
        ),
        (
            limits(json!({"memory": {"limit": 4096}})),
            Code::FailedPrecondition,
            "linux.resources.memory.limit: is too little",
        ),
    ] {
        let mut f = Fixture::new();
        for (part, value) in change.as_object().unwrap() {
            match (&mut f.spec[part], value) {
                (Value::Object(there), Value::Object(new)) => there.extend(new.clone()),
                (Value::Array(there), Value::Array(new)) => there.extend(new.clone()),
                (there, new) => *there = new.clone(),
            }
        }
        let error = f.try_run().expect_err(said);
        assert!(error.code == code && error.to_string().contains(said), "{change}: {error:?}");
    }
}
