//! From create to delete: limits, exec, pausing, killing, and what a failure leaves behind.

use super::*;

#[test]
fn limits_are_set_and_changed() {
    let mut f = Fixture::new();
    f.spec["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20, "swap": 64 << 20, "reservation": 32 << 20},
        "pids": {"limit": 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"},
        "blockIO": {"throttleReadBpsDevice": [{"major": 254, "minor": 0, "rate": 1048576}]},
    });
    let out = f.output(
        "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes pids/pids.max cpu/cpu.shares \
         cpu/cpu.cfs_quota_us cpuset/cpuset.cpus blkio/blkio.throttle.read_bps_device; cat /proc/self/cgroup; mkdir memory/x 2>&1; true",
    );
    assert!(out.starts_with("67108864\n67108864\n20\n512\n50000\n0\n254:0 1048576\n"), "{out}");
    assert!(out.lines().filter(|l| l.contains("::") || l.contains(":memory:")).all(|l| l.ends_with(":/")), "{out}");
    assert!(out.contains("Read-only"), "{out}");
    let out = f
        .sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do sleep 1 & done; true")
        .run()
        .1;
    assert!(out.contains("can't fork"), "{out}");

    let null = File::open("/dev/null").unwrap();
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let container = f.create(stdio).unwrap();
    for (limit, swap) in [(128 << 20, 256 << 20), (16i64 << 20, 16 << 20), (-1, -1)] {
        let update: LinuxResources =
            serde_json::from_value(json!({"memory": {"limit": limit, "swap": swap}, "pids": {"limit": 7}})).unwrap();
        f.native.update(&container, &update).unwrap();
    }
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).unwrap();
    assert_eq!(read(&format!("pids{}/pids.max", container.cgroup)), "7\n");
    // Less than it uses is refused, where that is asked for.
    let update = json!({"memory": {"limit": 1, "checkBeforeUpdate": true}});
    let error = f.native.update(&container, &serde_json::from_value(update).unwrap()).unwrap_err();
    assert!(error.code == Code::FailedPrecondition && error.message.contains("in use"), "{error}");
    // What fails half-way changes nothing.
    let update = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 9}, "cpu": {"shares": 99, "cpus": "4000"}});
    let error = f.native.update(&container, &serde_json::from_value(update).unwrap()).unwrap_err();
    assert_eq!(error.code, cofferdam_types::Code::InvalidArgument, "{error}");
    assert_eq!(read(&format!("memory{}/memory.limit_in_bytes", container.cgroup)), "9223372036854771712\n");
    assert_eq!(read(&format!("cpu{}/cpu.shares", container.cgroup)), "512\n");
    assert_eq!(read(&format!("pids{}/pids.max", container.cgroup)), "7\n");
    f.native.delete(&container).unwrap();
    f.native.delete(&container).unwrap();
    assert_eq!(process::waitid(&container.init.pidfd, true).unwrap(), Some(process::Exit::Signal(9)));
}

#[test]
fn a_container_out_of_memory_is_counted() {
    let mut f = Fixture::new();
    f.spec["linux"]["resources"] = json!({"memory": {"limit": 8 << 20, "swap": 8 << 20}});
    f.sh("dd if=/dev/zero of=/dev/shm/x bs=1M count=32");
    let null = File::open("/dev/null").unwrap();
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let container = f.create(stdio).unwrap();
    f.native.start(&container).unwrap();
    process::waitid(&container.init.pidfd, true).unwrap();
    assert!(container.kept.cgroup.as_ref().unwrap().oom_kills().unwrap() > 0);
    f.native.delete(&container).unwrap();
}

/// A group that hands controllers down takes no process any more: those in it are below.
#[test]
fn another_process_joins_where_the_first_one_went() {
    let mut f = Fixture::new();
    let (container, _hold) = sleeping(&mut f);
    let unified = Layout::detect().unwrap().hierarchies.into_iter().find(|h| h.unified).unwrap().root;
    let own = unified.join(container.cgroup.trim_start_matches('/'));
    let leaf = own.join("leaf");
    std::fs::create_dir(&leaf).unwrap();
    std::fs::write(leaf.join("cgroup.procs"), container.init.pid.to_string()).unwrap();
    let controllers = std::fs::read_to_string(own.join("cgroup.controllers")).unwrap();
    let one = controllers.split_whitespace().next().expect("v2 has a controller");
    std::fs::write(own.join("cgroup.subtree_control"), format!("+{one}")).unwrap();
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", "grep '^0::' /proc/self/cgroup"],
    });
    let (status, out) = exec(&f, &container, process).unwrap();
    // In its own cgroup namespace, whose root was the group then.
    assert_eq!((status, out.trim()), (0, "0::/leaf"));
    f.native.delete(&container).unwrap();
    process::waitid(&container.init.pidfd, true).unwrap();
    assert!(!own.exists());
}

/// Whoever is in a pid namespace can stop what is born into it, at any of its steps.
#[test]
fn a_child_that_stands_still_is_given_up_on_demand_and_at_the_deadline() {
    let mut f = Fixture::new();
    let (container, _hold) = sleeping(&mut f);
    let process = f.parsed().process().clone().unwrap();
    // It waits for a word that nobody says.
    let steps = [Step::Gate, Step::Pause];
    let place = Place { cgroup: f.native.cgroup(&container).unwrap(), neighbour: None, class: None };
    let init = Some(&container.init.pidfd);
    let mut child = launch::launch(&steps, 0, init, &place, &process, None).unwrap();
    child.wait_paused(&steps).unwrap();
    let (read, write) = std::io::pipe().unwrap();
    drop(write);
    let given_up = std::sync::Arc::new(OwnedFd::from(read));
    let error = cofferdam_sys::program::until(given_up, || child.wait_running(&steps, "")).unwrap_err();
    assert!(error.message.contains("given up"), "{error}");
    child.deadline = std::time::Duration::from_millis(20);
    let error = child.wait_running(&steps, "").unwrap_err();
    assert!(error.code == Code::DeadlineExceeded && error.message.contains("stood still"), "{error}");
    child.destroy();
    assert!(process::waitid(&child.child.pidfd, true).is_err(), "it is taken in");
    f.native.delete(&container).unwrap();
    process::waitid(&container.init.pidfd, true).unwrap();
    // A first process that is born so is waited for where that holds up nobody else.
    assert!(!f.native.is_slow(&f.parsed()));
    f.spec["linux"]["namespaces"][0]["path"] = json!(format!("/proc/{}/ns/pid", container.init.pid));
    assert!(f.native.is_slow(&f.parsed()));
}

/// Whoever may freeze a group on the host must not hold up what makes processes in it.
#[test]
fn a_child_that_is_frozen_is_not_waited_for_without_end() {
    let mut f = Fixture::new();
    let (container, _hold) = sleeping(&mut f);
    let process = f.parsed().process().clone().unwrap();
    let cgroup = f.native.cgroup(&container).unwrap();
    let place = Place { cgroup, neighbour: None, class: None };
    let steps = [Step::Gate, Step::Pause];
    let mut child = launch::launch(&steps, 0, Some(&container.init.pidfd), &place, &process, None).unwrap();
    child.wait_paused(&steps).unwrap();
    cgroup.freeze().unwrap();
    child.deadline = std::time::Duration::from_millis(20);
    let (over, done) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let destroys = scope.spawn(|| {
            child.destroy();
            over.send(()).unwrap();
        });
        let ends = done.recv_timeout(std::time::Duration::from_secs(10));
        cgroup.thaw().unwrap();
        destroys.join().unwrap();
        ends.expect("it is waited for without end");
    });
    // It is gone by now, or dies of what it was sent as soon as it goes on.
    if let Ok(end) = process::waitid(&child.child.pidfd, true) {
        assert_eq!(end, Some(process::Exit::Signal(9)));
    }
    f.native.delete(&container).unwrap();
    process::waitid(&container.init.pidfd, true).unwrap();
}

/// One that stands still would keep the other from being seen to begin.
#[test]
fn of_two_that_are_made_at_a_time_neither_has_the_others_control_socket() {
    let mut f = Fixture::new();
    let (container, _hold) = sleeping(&mut f);
    let process = f.parsed().process().clone().unwrap();
    let place = Place { cgroup: f.native.cgroup(&container).unwrap(), neighbour: None, class: None };
    let launch = |steps: &[Step]| launch::launch(steps, 0, None, &place, &process, None).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stand = scope.spawn(|| {
            let (steps, mut all) = ([Step::Gate, Step::Pause], Vec::new());
            while !over.load(Ordering::Relaxed) && all.len() < 500 {
                all.push(launch(&steps));
            }
            all
        });
        for _ in 0..100 {
            // Nothing to do: it ends.
            let steps = [Step::Gate];
            let mut child = launch(&steps);
            child.deadline = std::time::Duration::from_secs(5);
            let seen = child.wait_running(&steps, "");
            child.destroy();
            if seen.is_err() {
                over.store(true, Ordering::Relaxed);
            }
            seen.unwrap();
        }
        over.store(true, Ordering::Relaxed);
        stand.join().unwrap().iter().for_each(launch::Launched::destroy);
    });
    f.native.delete(&container).unwrap();
    process::waitid(&container.init.pidfd, true).unwrap();
}

#[test]
fn another_process_joins_everything() {
    let mut f = Fixture::new();
    f.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}],
    });
    let (container, hold) = sleeping(&mut f);
    let script = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup | grep -v ':/$'; hostname; id; pwd; ls /proc/self/fd; grep -E '^(Cap|NoNew|Seccomp:|Groups)' /proc/self/status; echo $FOO; exit 5";
    let process = json!({
        "user": {"uid": 7, "gid": 8, "additionalGids": [9]}, "cwd": "/bin", "env": ["PATH=/bin", "FOO=bar"],
        "args": ["sh", "-c", script], "noNewPrivileges": true, "capabilities": {"bounding": ["CAP_KILL"]},
    });
    let (status, out) = exec(&f, &container, process.clone()).unwrap();
    assert_eq!(status, 5, "{out}");
    let namespaces: String = ["cgroup", "ipc", "mnt", "net", "pid", "uts"]
        .map(|n| {
            std::fs::read_link(format!("/proc/{}/ns/{n}", container.init.pid)).unwrap().display().to_string() + "\n"
        })
        .concat();
    let out = out.strip_prefix(&namespaces).unwrap();
    assert!(out.starts_with("box\nuid=7 gid=8 groups=9\n/bin\n0\n1\n2\n3\nGroups:\t9"), "{out}");
    assert_eq!(status_field(out, "CapBnd"), "0000000000000020");
    assert_eq!((status_field(out, "CapEff"), status_field(out, "Seccomp")), ("0000000000000000".into(), "2".into()));
    let mut missing = process.clone();
    missing["args"] = json!(["nothing"]);
    assert_eq!(exec(&f, &container, missing).unwrap_err().code, Code::NotFound);
    let mut nowhere = process.clone();
    nowhere["cwd"] = json!("/nowhere");
    assert!(exec(&f, &container, nowhere).unwrap_err().message.contains("/nowhere"));

    let spec: ProcessSpec = serde_json::from_value({
        let mut p = process;
        p["args"] = json!(["sh", "-c", "tty; stty size; echo x > /dev/tty"]);
        p["terminal"] = json!(true);
        p
    })
    .unwrap();
    let stdio = Stdio::Terminal { rows: 11, cols: 22 };
    let mut terminal =
        f.native.exec(&container, &ExecRequest { id: &f.id, process: &spec, stdio, group: None }).unwrap();
    assert_eq!(read_terminal(terminal.console.take().unwrap()), "/dev/pts/0\n11 22\nx\n");
    process::waitid(&terminal.pidfd, true).unwrap();

    drop(hold);
    process::waitid(&container.init.pidfd, true).unwrap();
    let mut late = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/true"]});
    late["env"] = json!([]);
    assert_eq!(exec(&f, &container, late).unwrap_err().code, Code::FailedPrecondition);
    f.native.delete(&container).unwrap();
}

#[test]
fn pause_kill_and_delete() {
    let mut f = Fixture::new();
    let (container, _hold) = sleeping(&mut f);
    assert_eq!(f.native.pids(&container).unwrap(), [container.init.pid]);
    f.native.pause(&container).unwrap();
    f.native.resume(&container).unwrap();
    f.native.pause(&container).unwrap();
    // Whoever froze it: what is born there says nothing, and would be waited for.
    let more = exec(&f, &container, json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"]}));
    assert_eq!(more.unwrap_err().code, Code::FailedPrecondition);
    f.native.kill_all(&container).unwrap();
    assert_eq!(process::waitid(&container.init.pidfd, true).unwrap(), Some(process::Exit::Signal(9)));
    f.native.kill(&container, 9).unwrap();
    f.native.delete(&container).unwrap();

    let (container, _hold) = sleeping(&mut f);
    f.native.kill(&container, libc::SIGKILL).unwrap();
    assert_eq!(process::waitid(&container.init.pidfd, true).unwrap(), Some(process::Exit::Signal(9)));
    f.native.delete(&container).unwrap();
}

#[test]
fn nothing_is_left_of_a_create_that_fails() {
    let mut f = Fixture::new();
    f.run();
    f.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/x", "type": "bind", "source": "/nonexistent", "options": ["bind"]}));
    let error = f.try_run().unwrap_err();
    assert!(error.message.contains("create it first") && error.id == "/nonexistent", "{error}");
    f.spec["mounts"].as_array_mut().unwrap().pop();
    f.spec["linux"]["resources"] = json!({"cpu": {"cpus": "99"}});
    assert!(f.try_run().unwrap_err().message.contains("cpuset.cpus"));
    f.spec["linux"]["resources"] = Value::Null;
    f.spec["process"]["cwd"] = json!("/bin/sh");
    assert!(f.try_run().unwrap_err().message.contains("/bin/sh"));
}

#[test]
fn v2_alone_confines_kills_and_freezes() {
    let mut f = Fixture::new();
    f.native.layout.hierarchies.retain(|h| h.unified);
    if f.native.layout.hierarchies.is_empty() {
        return;
    }
    let out = f.output(
        "grep ^0: /proc/self/cgroup; ls /sys/fs/cgroup/cgroup.procs; echo x > /dev/null && mknod /dev/mem2 c 1 1 && cat /dev/mem2 2>&1; true",
    );
    assert_eq!(out, "0::/\n/sys/fs/cgroup/cgroup.procs\ncat: can't open '/dev/mem2': Operation not permitted\n");
    let (container, _hold) = sleeping(&mut f);
    f.native.pause(&container).unwrap();
    f.native.resume(&container).unwrap();
    let out = exec(
        &f,
        &container,
        json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["grep", "^0:", "/proc/self/cgroup"]}),
    );
    assert_eq!(out.unwrap(), (0, "0::/\n".into()));
    f.native.delete(&container).unwrap();
    process::waitid(&container.init.pidfd, true).unwrap();
    let controllers = std::fs::read_to_string(f.native.layout.hierarchies[0].root.join("cgroup.controllers")).unwrap();
    if !controllers.contains("memory") {
        f.spec["linux"]["resources"] = json!({"memory": {"limit": 1 << 20}});
        let error = f.try_run().unwrap_err();
        assert_eq!(error.code, Code::Unimplemented);
        assert!(error.message.contains("memory controller"), "{error}");
    }
}

#[test]
fn a_container_that_is_never_started_leaves_nothing() {
    let f = Fixture::new();
    let null = File::open("/dev/null").unwrap();
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let container = f.create(stdio).unwrap();
    let again = f.create(stdio).unwrap_err();
    assert_eq!(again.code, Code::AlreadyExists);
    let spec: ProcessSpec =
        serde_json::from_value(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"]})).unwrap();
    let early = f.native.exec(&container, &ExecRequest { id: &f.id, process: &spec, stdio, group: None });
    assert_eq!(early.unwrap_err().code, Code::FailedPrecondition);
    f.native.kill(&container, libc::SIGKILL).unwrap();
    process::waitid(&container.init.pidfd, true).unwrap();
    assert_eq!(f.native.start(&container).unwrap_err().code, Code::Unavailable);
    assert_eq!(f.native.start(&container).unwrap_err().code, Code::FailedPrecondition);
    f.native.delete(&container).unwrap();
}

/// The child of a clone may find any lock taken: it must need none.
#[test]
fn containers_are_made_while_other_threads_allocate() {
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::black_box((0..100).map(|n| vec![0u8; n * 100]).collect::<Vec<_>>());
                }
            });
        }
        let runs: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..10 {
                        assert_eq!(Fixture::new().run(), (0, String::new()));
                    }
                })
            })
            .collect();
        let failed = runs.into_iter().filter_map(|run| run.join().err()).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0);
    });
}

#[test]
fn nothing_stays_open_in_this_process() {
    // Other tests open descriptors meanwhile: only those on this fixture's directory and cgroup count.
    let mut f = Fixture::new();
    f.run();
    f.args(&["missing"]).try_run().unwrap_err();
    f.spec["process"]["cwd"] = json!("/bin/sh");
    f.try_run().unwrap_err();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let Ok(to) = std::fs::read_link(entry.unwrap().path()) else { continue };
        let to = to.display().to_string();
        assert!(!to.contains(f.dir.path().to_str().unwrap()) && !to.ends_with(&format!("cofferdam-{}", f.id)), "{to}");
    }
}

/// What our own generator makes, with every option that needs a driver's help.
#[test]
fn a_generated_spec_runs() {
    use crate::spec::{Network, Options, generate};
    let mut f = Fixture::new();
    let image: oci_spec::image::ImageConfiguration = serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh", "-c", "id; pwd; grep -E '^(Seccomp:|NoNew|CapEff)' /proc/self/status; ls /sys/class/net | wc -l"]},
    }))
    .unwrap();
    let root = fd::open_dir(&f.root()).unwrap();
    for (network, uid) in [(Network::None, "0"), (Network::Host, "1000")] {
        let options = Options {
            user: Some(uid.into()),
            cwd: Some("/srv/app".into()),
            network,
            memory: Some(64 << 20),
            pids: Some(50),
            readonly: uid != "0",
            ..Options::default()
        };
        let spec = generate(&format!("/cofferdam-{}", f.id), &f.id, &image, &options, |user| {
            crate::users::resolve(&root, user)
        })
        .unwrap();
        f.spec = serde_json::to_value(&spec).unwrap();
        let path = f.spec["linux"]["cgroupsPath"].as_str().unwrap_or_default().to_owned();
        f.spec["linux"]["cgroupsPath"] = json!(format!("/cofferdam-{}", f.id));
        assert!(path.starts_with('/'), "{path}");
        let (status, out) = f.run();
        assert_eq!(status, 0, "{out}");
        assert!(out.starts_with(&format!("uid={uid} ")) && out.contains("\n/srv/app\n"), "{out}");
        assert_eq!((status_field(&out, "Seccomp").as_str(), status_field(&out, "NoNewPrivs").as_str()), ("2", "1"));
    }
}
