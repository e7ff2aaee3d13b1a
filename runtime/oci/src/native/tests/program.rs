//! What the program finds: its arguments, rights, namespaces, terminal.

use super::*;

#[test]
fn of_several_values_of_a_variable_the_last_counts() {
    let mut f = Fixture::new();
    f.spec["process"]["env"] = json!(["PATH=/bin", "A=1", "B=x", "AB=2", "A=", "A=3"]);
    assert_eq!(f.args(&["env"]).run().1, "PATH=/bin\nB=x\nAB=2\nA=3\n");
}

#[test]
fn a_container_runs_and_its_status_comes_back() {
    let mut f = Fixture::new();
    assert_eq!(f.args(&["true"]).run(), (0, String::new()));
    assert_eq!(f.sh("echo $0 $FOO; exit 7").run(), (7, "/bin/sh\n".into()));
    assert_eq!(f.sh("kill -9 $$; echo alive").run(), (0, "alive\n".into()), "pid 1 is immune to its own signals");
}

#[test]
fn arguments_environment_directory_user_and_limits_are_as_the_spec_says() {
    let mut f = Fixture::new();
    f.spec["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 0o27});
    f.spec["process"]["env"] = json!(["PATH=/bin", "FOO=b a r"]);
    f.spec["process"]["cwd"] = json!("/made/for/it");
    f.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}]);
    f.spec["process"]["oomScoreAdj"] = json!(300);
    let out = f.output(
        "env; pwd; id; umask; ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj; hostname; echo $0; echo x > /dev/stdout",
    );
    let expected = "FOO=b a r\nHOME=/made/for/it\n";
    for line in
        ["FOO=b a r\n", "\n/made/for/it\n", "uid=1000 gid=1001 groups=5,7", "\n0027\n64\n128\n300\nbox\n/bin/sh\nx\n"]
    {
        assert!(out.contains(line), "{line:?} is not in {out:?} ({expected:?})");
    }
    assert!(!out.contains("HOME=/\n"), "nothing of this process's environment: {out}");
}

// P1, P2 and P10 of the negative tests.
#[test]
fn capabilities_and_privileges_are_as_the_spec_says() {
    let mut f = Fixture::new();
    let wanted = format!("{:016x}", 1u64 | 1 << 5 | 1 << 7 | 1 << 6 | 1 << 27);
    // Not through a shell: it ignores signals of its own.
    let status = f.args(&["cat", "/proc/self/status"]).run().1;
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status_field(&status, set), wanted);
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status_field(&status, set), "0000000000000000");
    }
    assert_eq!((status_field(&status, "NoNewPrivs"), status_field(&status, "Groups")), ("1".into(), String::new()));
    assert_eq!(status_field(&status, "SigIgn"), "0000000000000000");
    assert_eq!(status_field(&status, "SigBlk"), "0000000000000000");

    // A user other than root has none once it has executed a program, but for the ambient ones.
    f.spec["process"]["user"]["uid"] = json!(1000);
    let status = f.output("cat /proc/self/status");
    assert_eq!(status_field(&status, "CapEff"), "0000000000000000");
    assert_eq!(status_field(&status, "CapBnd"), wanted);
    f.spec["process"]["capabilities"]["ambient"] = json!(["CAP_KILL"]);
    f.spec["process"]["noNewPrivileges"] = json!(false);
    let status = f.output("cat /proc/self/status");
    assert_eq!(status_field(&status, "CapEff"), "0000000000000020");
    assert_eq!(status_field(&status, "CapAmb"), "0000000000000020");
    assert_eq!(status_field(&status, "NoNewPrivs"), "0");

    f.spec["process"]["capabilities"] = Value::Null;
    assert_eq!(status_field(&f.output("cat /proc/self/status"), "CapBnd"), "0000000000000000");
}

#[test]
fn every_namespace_is_its_own_or_the_hosts() {
    let mut f = Fixture::new();
    let script = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done; ls /sys/class/net; cat /sys/class/net/lo/flags";
    let host: Vec<String> = ["cgroup", "ipc", "mnt", "net", "pid", "uts"]
        .map(|n| std::fs::read_link(format!("/proc/thread-self/ns/{n}")).unwrap().to_str().unwrap().to_owned())
        .into();
    let out = f.output(script);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[..6].iter().zip(&host).all(|(a, b)| *a != b), "{out}");
    assert_eq!(lines[6..], ["lo", "0x9"], "the loopback interface is there, and up");
    f.spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    f.spec["hostname"] = Value::Null;
    let out = f.output(script);
    for (index, (line, host)) in out.lines().zip(&host).enumerate() {
        assert_eq!(line == host, index != 2, "{out}");
    }
}

#[test]
fn host_and_domain_name_are_its_own() {
    let mut f = Fixture::new();
    f.spec["domainname"] = json!("yard.example");
    let before = std::fs::read("/proc/sys/kernel/domainname").unwrap();
    assert_eq!(f.output("hostname; cat /proc/sys/kernel/domainname"), "box\nyard.example\n");
    assert_eq!(std::fs::read("/proc/sys/kernel/domainname").unwrap(), before);
}

#[test]
fn namespaces_are_joined_by_path() {
    let f = Fixture::new();
    let mut f2 = Fixture::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (stdin, hold) = std::io::pipe().unwrap();
    let stdio = Stdio::Fds { stdin: stdin.as_fd(), stdout: writer.as_fd(), stderr: writer.as_fd() };
    let mut f = f;
    let container = f.args(&["cat"]).create(stdio).unwrap();
    f.native.start(&container).unwrap();
    let pid = container.init.pid;
    let path = |n: &str| format!("/proc/{pid}/ns/{n}");
    f2.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "cgroup"}, {"type": "pid", "path": path("pid")},
        {"type": "network", "path": path("net")}, {"type": "ipc", "path": path("ipc")}, {"type": "uts", "path": path("uts")}]);
    f2.spec["hostname"] = Value::Null;
    let out = f2.output(
        "for n in ipc net pid uts; do readlink /proc/self/ns/$n; done; hostname; echo $$; ls /proc | grep -x 1",
    );
    let expected: Vec<String> =
        ["ipc", "net", "pid", "uts"].map(|n| std::fs::read_link(path(n)).unwrap().to_str().unwrap().to_owned()).into();
    assert!(out.starts_with(&expected.join("\n")), "{out}");
    assert!(out.ends_with("\nbox\n2\n1\n"), "{out}");
    f2.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network", "path": path("ipc")}]);
    assert_eq!(f2.try_run().unwrap_err().code, Code::InvalidArgument);
    // A FIFO that nobody writes to is one of those that are none, and not waited for.
    let fifo = f2.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for none in ["/etc/passwd", "/etc/passwd/net", fifo.to_str().unwrap()] {
        for kind in ["network", "user", "pid"] {
            f2.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": kind, "path": none}]);
            let error = f2.try_run().unwrap_err();
            assert_eq!((error.code, error.id.as_str()), (Code::InvalidArgument, none), "{kind}: {error}");
        }
    }
    drop((hold, writer, stdin));
    reader.read_to_string(&mut String::new()).unwrap();
    process::waitid(&container.init.pidfd, true).unwrap();
    f.native.delete(&container).unwrap();
}

#[test]
fn commands_that_cant_run_say_why() {
    let mut f = Fixture::new();
    std::fs::write(f.root().join("bin/plain"), "not a program").unwrap();
    std::fs::write(f.root().join("bytes"), "\u{1}").unwrap();
    install(&f.root().join("bytes"), &f.root().join("garbage"));
    for (command, code, word) in [
        ("missing", Code::NotFound, "no such file"),
        ("/bin/missing", Code::NotFound, "no such file"),
        ("/bin", Code::FailedPrecondition, "permission denied"),
        ("/bin/plain", Code::FailedPrecondition, "permission denied"),
        ("plain", Code::FailedPrecondition, "permission denied"),
        ("/garbage", Code::FailedPrecondition, "exec format"),
    ] {
        let error = f.args(&[command]).try_run().unwrap_err();
        assert_eq!((error.code, &*error.kind, error.id.as_str()), (code, "command", command), "{error}");
        assert!(error.message.contains(word), "{error}");
    }
    assert_eq!(f.args(&[]).try_run().unwrap_err().code, Code::InvalidArgument);
}

#[test]
fn seccomp_denies_what_the_profile_says() {
    let mut f = Fixture::new();
    f.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    });
    for no_new_privileges in [true, false] {
        f.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        f.spec["process"]["user"]["uid"] = json!(1000);
        let (status, out) = f.sh("mkdir /dev/shm/x").run();
        assert!(status != 0 && out.contains("not supported"), "{out}");
        assert_eq!(status_field(&f.output("cat /proc/self/status"), "Seccomp"), "2");
    }
}

#[test]
fn kernel_parameters_are_the_containers_own() {
    let mut f = Fixture::new();
    f.spec["linux"]["sysctl"] =
        json!({"net.ipv4.ip_unprivileged_port_start": "80", "kernel/msgmax": "4242", "fs.mqueue.queues_max": "9"});
    let out = f.output(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/queues_max",
    );
    assert_eq!(out, "80\n4242\n9\n");
    assert_ne!(std::fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(), "4242\n");
}

#[test]
fn a_terminal_has_a_size_and_is_the_console() {
    let mut f = Fixture::new();
    f.spec["process"]["terminal"] = json!(true);
    f.spec["process"]["user"]["uid"] = json!(1000);
    f.sh("tty; stty size; stat -c '%t:%T' /dev/console; readlink /proc/self/fd/2; echo x > /dev/tty; stat -c %u /dev/pts/0; ls -1 /proc/self/fd");
    let mut container = f.create(Stdio::Terminal { rows: 30, cols: 101 }).unwrap();
    let console = container.init.console.take().unwrap();
    assert_eq!(cofferdam_sys::pty::size(&console).unwrap(), (30, 101));
    f.native.start(&container).unwrap();
    let out = read_terminal(console);
    assert!(out.starts_with("/dev/pts/0\n30 101\n88:0\n/dev/pts/0\nx\n1000\n0\n1\n2\n3\n"), "{out}");
    process::waitid(&container.init.pidfd, true).unwrap();
    f.native.delete(&container).unwrap();
}

#[test]
fn a_terminal_without_a_size_has_the_specs() {
    for (size, text) in [(json!({"height": 31, "width": 102}), "31 102"), (Value::Null, "24 80")] {
        let mut f = Fixture::new();
        f.spec["process"]["terminal"] = json!(true);
        if !size.is_null() {
            f.spec["process"]["consoleSize"] = size;
        }
        f.sh("stty size");
        let mut container = f.create(Stdio::Terminal { rows: 0, cols: 0 }).unwrap();
        let console = container.init.console.take().unwrap();
        f.native.start(&container).unwrap();
        assert_eq!(read_terminal(console).trim(), text);
        process::waitid(&container.init.pidfd, true).unwrap();
        f.native.delete(&container).unwrap();
    }
}

#[test]
fn the_streams_and_the_spec_must_agree_about_a_terminal() {
    let mut f = Fixture::new();
    f.spec["process"]["terminal"] = json!(true);
    assert_eq!(f.try_run().unwrap_err().id, "process.terminal");
}
