//! Hooks: when they run, where, as whom, and what becomes of a container whose hook fails.

use super::*;

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

fn log(f: &Fixture) -> PathBuf {
    f.dir.path().join("log")
}

/// A hook of the host's that runs a script, whose output goes to the log.
fn host(f: &Fixture, script: &str) -> Value {
    let script = format!("exec >> {}; {script}", log(f).display());
    json!({"path": "/bin/sh", "args": ["hook", "-c", script], "env": ["GIVEN=yes"]})
}

/// One of the container's own; its output goes to `/log` in there.
fn own(script: &str) -> Value {
    json!({"path": "/bin/busybox", "args": ["sh", "-c", format!("exec >> /log; {script}")], "env": ["PATH=/bin", "GIVEN=yes"]})
}

fn logged(f: &Fixture) -> Vec<String> {
    std::fs::read_to_string(log(f)).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn namespace(name: &str) -> String {
    std::fs::read_link(format!("/proc/thread-self/ns/{name}")).unwrap().to_str().unwrap().to_owned()
}

#[test]
fn each_hook_runs_in_its_place_with_the_state() {
    let mut f = Fixture::new();
    std::fs::write(f.root().join("log"), "").unwrap();
    f.spec["annotations"] = json!({"a": "b"});
    let rootfs = f.dir.path().join("bundle/rootfs");
    let say = |kind: &str| {
        format!("echo {kind} $0 $GIVEN; readlink /proc/self/ns/mnt; readlink /proc/self/ns/net; cat; echo")
    };
    let mut hooks = json!({});
    for kind in KINDS {
        hooks[kind] = json!([host(&f, &say(kind))]);
    }
    hooks["startContainer"] = json!([own(&say("startContainer"))]);
    let more = format!(
        "mkdir {0}/hooked && mount -t tmpfs none {0}/hooked && touch {0}/hooked/mark; echo second",
        rootfs.display()
    );
    hooks["createContainer"].as_array_mut().unwrap().push(host(&f, &more));
    f.spec["hooks"] = hooks;
    let bundle = f.dir.path().join("bundle");

    let null = File::open("/dev/null").unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: writer.as_fd(), stderr: writer.as_fd() };
    let container = f.sh("ls /hooked; cat /log; test -e /oldroot || pwd").create(stdio).unwrap();
    let (pid, made) = (container.init.pid, logged(&f));
    let own_mnt = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap().to_str().unwrap().to_owned();
    let own_net = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap().to_str().unwrap().to_owned();
    f.native.start(&container).unwrap();
    drop(writer);
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    process::waitid(&container.init.pidfd, true).unwrap();
    let started = logged(&f);
    f.native.delete(&container).unwrap();
    f.native.delete(&container).unwrap();
    let all = logged(&f);

    let check = |lines: &[String], kind: &str, status: &str, pid: Value, (mnt, net): (&str, &str)| {
        let name = if kind == "startContainer" { "sh" } else { "hook" };
        assert_eq!(lines[..3], [format!("{kind} {name} yes"), mnt.to_owned(), net.to_owned()], "{lines:?}");
        let state: Value = serde_json::from_str(&lines[3]).unwrap();
        let mut expected = json!({"ociVersion": "1.2.0", "id": f.id.as_str(), "status": status, "bundle": bundle, "annotations": {"a": "b"}});
        if !pid.is_null() {
            expected["pid"] = pid;
        }
        assert_eq!(state, expected);
    };
    let (mnt, net) = (namespace("mnt"), namespace("net"));
    let host = (&*mnt, &*net);
    check(&made[..4], "prestart", "creating", json!(pid), host);
    check(&made[4..8], "createRuntime", "creating", json!(pid), host);
    check(&made[8..12], "createContainer", "creating", json!(pid), (&own_mnt, &own_net));
    assert_eq!(made[12..], ["second"]);
    check(&started[13..], "poststart", "running", json!(pid), host);
    check(&all[17..], "poststop", "stopped", Value::Null, host);
    assert_eq!(all.len(), 21, "once only");
    // What a hook mounted in the root is there; the container's own hook ran before its program.
    let output: Vec<String> = output.lines().map(str::to_owned).collect();
    assert_eq!(output[0], "mark");
    check(&output[1..5], "startContainer", "created", json!(pid), (&own_mnt, &own_net));
    assert_eq!(output[5], "/");
}

#[test]
fn a_hook_that_fails_ends_the_container() {
    for (index, kind) in KINDS.iter().enumerate() {
        let mut f = Fixture::new();
        std::fs::write(f.root().join("log"), "").unwrap();
        let fails = if *kind == "startContainer" { own("exit 3") } else { host(&f, "echo why >&2; exit 3") };
        let never = if *kind == "startContainer" { own("echo never") } else { host(&f, "echo never") };
        f.spec["hooks"] = json!({*kind: [fails, never]});
        if *kind != "poststop" {
            f.spec["hooks"]["poststop"] = json!([host(&f, "exit 1"), host(&f, "echo stopped")]);
        }
        let null = File::options().write(true).open("/dev/null").unwrap();
        let (stdin, _hold) = std::io::pipe().unwrap();
        let stdio = Stdio::Fds { stdin: stdin.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
        let made = f.args(&["cat"]).create(stdio);
        let error = match made {
            Err(error) => error,
            Ok(container) => {
                assert!(index > 2, "{kind} comes before the container is made");
                let started = f.native.start(&container);
                if *kind == "poststop" {
                    f.native.kill(&container, 9).unwrap();
                }
                // It would wait for its input for ever.
                assert_eq!(process::waitid(&container.init.pidfd, true).unwrap().unwrap().status(), 137);
                f.native.delete(&container).unwrap();
                if *kind == "poststop" {
                    started.unwrap();
                    assert_eq!(logged(&f), ["never"], "the others run all the same");
                    continue;
                }
                started.unwrap_err()
            }
        };
        assert_eq!((error.code, &*error.kind), (Code::FailedPrecondition, "hook"), "{error}");
        assert!(error.message.contains(kind) && error.message.contains('3'), "{error}");
        let end = if *kind == "startContainer" { "status 3" } else { "exit status: 3: why" };
        assert!(error.message.ends_with(end), "{error}");
        assert_eq!(logged(&f), ["stopped"], "{kind}");
        assert_eq!(std::fs::read_to_string(f.root().join("log")).unwrap(), "");
    }
}

#[test]
fn a_hook_that_hangs_is_killed_in_time() {
    for kind in ["createRuntime", "startContainer"] {
        let mut f = Fixture::new();
        let mut hangs = json!({"path": "/bin/sh", "args": ["sh", "-c", "while :; do sleep 1000; done"], "timeout": 1});
        hangs["env"] = json!(["PATH=/bin"]);
        f.spec["hooks"] = json!({kind: [hangs]});
        let began = std::time::Instant::now();
        let error = f.try_run().unwrap_err();
        assert_eq!((error.code, &*error.kind), (Code::DeadlineExceeded, "hook"), "{error}");
        assert!(began.elapsed() < std::time::Duration::from_secs(20));
    }
}

#[test]
fn a_hook_that_is_not_there_is_named() {
    for kind in ["prestart", "createContainer", "startContainer", "poststart"] {
        let mut f = Fixture::new();
        f.spec["hooks"] = json!({kind: [{"path": "/bin/nowhere-to-be-found"}]});
        let error = f.try_run().unwrap_err();
        assert_eq!((error.code, &*error.kind), (Code::FailedPrecondition, "hook"), "{error}");
        assert!(error.id.contains("nowhere-to-be-found") && error.message.contains(kind), "{error}");
    }
    // Nor is there anything behind the end of one that said nothing.
    let mut f = Fixture::new();
    f.spec["hooks"] = json!({"prestart": [{"path": "/bin/false"}]});
    assert!(f.try_run().unwrap_err().message.ends_with("exit status: 1"));
}

// A container's own hook has no more rights than its program.
#[test]
fn a_containers_own_hook_is_as_its_program() {
    let mut f = Fixture::new();
    std::fs::write(f.root().join("log"), "").unwrap();
    std::fs::set_permissions(f.root().join("log"), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    f.spec["process"]["user"] = json!({"uid": 1000, "gid": 1001});
    f.spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
    f.spec["hooks"] = json!({"startContainer": [own("id; mkdir /tmp/x 2>&1; grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; cat /proc/self/cgroup")]});
    let out = f.output("cat /log; grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; cat /proc/self/cgroup");
    let (first, second) = out.split_once("not supported\n").unwrap_or_else(|| panic!("{out}"));
    assert!(first.starts_with("uid=1000 gid=1001"), "{out}");
    let half = second.len() / 2;
    assert_eq!(second[..half], second[half..], "{out}");
}

#[test]
fn hooks_and_a_user_namespace_go_together() {
    let mut f = Fixture::new();
    let map = json!([{"containerID": 0, "hostID": 300_000, "size": 65536}]);
    (f.spec["linux"]["uidMappings"], f.spec["linux"]["gidMappings"]) = (map.clone(), map);
    f.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    std::fs::write(log(&f), "").unwrap();
    std::fs::set_permissions(log(&f), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::set_permissions(f.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let rootfs = f.dir.path().join("bundle/rootfs");
    f.spec["hooks"] = json!({
        "createRuntime": [host(&f, "id -u")],
        "createContainer": [host(&f, &format!("id -u; stat -c %u {}/bin", rootfs.display()))],
    });
    assert_eq!(f.output("id -u; stat -c %u /bin /dev/null"), "0\n0\n0\n");
    assert_eq!(logged(&f), ["0", "0", "0"]);
}
