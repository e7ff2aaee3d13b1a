//! `coffer run`: each flag, by what the container sees of it.

use std::{fs, io::Write as _, process::Stdio};

use cofferdam_integration::{BUSYBOX, Daemon};

use crate::{Said, json, ok, say, shell};

#[test]
fn every_flag_is_seen_inside() {
    let daemon = Daemon::with_busybox();
    // The image's layers for the other driver stay, as those of the first do.
    assert_eq!(shell(&daemon, &["--rm", "--snapshotter", "native"], "true").code, 0);
    let before = daemon.leftovers();
    let host = daemon.path().join("shared");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("note"), "from the host\n").unwrap();
    let host = host.to_str().unwrap();
    let variables = daemon.path().join("variables");
    fs::write(&variables, "# a comment\nONE=1\nTWO=two words\n").unwrap();
    let (bind, read_only) = (format!("type=bind,src={host},dst=/mnt/it"), format!("type=bind,src={host},dst=/mnt,ro"));

    let cases: &[(&[&str], &str, &str)] = &[
        (&["-e", "A=b c", "--env", "EMPTY="], "echo \"$A|$EMPTY|${EMPTY-unset}\"", "b c||\n"),
        (&["--env-file", variables.to_str().unwrap()], "echo \"$ONE $TWO\"", "1 two words\n"),
        (&["-w", "/var/log"], "pwd", "/var/log\n"),
        (&["--workdir", "/made/for/it"], "pwd", "/made/for/it\n"),
        (&["-u", "app:staff"], "id -u; id -g", "1000\n50\n"),
        (&["--user", "12:34"], "id -u; id -g", "12\n34\n"),
        (&["--hostname", "ship"], "hostname", "ship\n"),
        (&["--mount", &bind], "cat /mnt/it/note; echo more > /mnt/it/made; cat /mnt/it/made", "from the host\nmore\n"),
        (&["--mount", &read_only], "cat /mnt/note; echo x > /mnt/other || echo no", "from the host\nno\n"),
        (
            &["--mount", "type=tmpfs,dst=/scratch,size=64k"],
            "stat -f -c %T /scratch; df /scratch | awk 'END {print $2}'",
            "tmpfs\n64\n",
        ),
        (&["--read-only"], "echo x > /etc/x || echo no", "no\n"),
        (&[], "echo x > /etc/x && echo yes", "yes\n"),
        (&["--net", "none"], "ip -o link | wc -l; cat /sys/class/net/lo/operstate > /dev/null && echo lo", "1\nlo\n"),
        (&["--ulimit", "nofile=100:200"], "ulimit -Sn; ulimit -Hn", "100\n200\n"),
        (&["--shm-size", "1m"], "df /dev/shm | awk 'END {print $2}'", "1024\n"),
        (&["--sysctl", "net.ipv4.ip_forward=1"], "cat /proc/sys/net/ipv4/ip_forward", "1\n"),
        (&["--cap-drop", "ALL"], "grep CapEff /proc/self/status", "CapEff:\t0000000000000000\n"),
        (&["--cap-drop", "ALL", "--cap-add", "CHOWN"], "grep CapEff /proc/self/status", "CapEff:\t0000000000000001\n"),
        (&["--seccomp", "unconfined"], "grep ^Seccomp: /proc/self/status", "Seccomp:\t0\n"),
        (&[], "grep ^Seccomp: /proc/self/status", "Seccomp:\t2\n"),
        (&["--allow-new-privileges"], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0\n"),
        (&[], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"),
        (&["--runtime", "runc"], "echo by runc", "by runc\n"),
        (&["--snapshotter", "native"], "grep ' / ' /proc/self/mountinfo | grep -c overlay", "0\n"),
        (&[], "grep ' / ' /proc/self/mountinfo | grep -c overlay", "1\n"),
    ];
    for (flags, script, expected) in cases {
        let said = shell(&daemon, &[&["--rm"], *flags].concat(), script);
        assert_eq!(said.out, *expected, "{flags:?} {script}: {said:?}");
    }
    assert_eq!(fs::read_to_string(format!("{host}/made")).unwrap(), "more\n");
    assert!(!fs::exists(format!("{host}/other")).unwrap());

    let said = say(&daemon, &["run", "--rm", "--entrypoint", "/bin/echo", BUSYBOX, "in its place"]);
    assert_eq!((said.code, said.out.as_str()), (0, "in its place\n"), "{said:?}");
    daemon.settles(&before);
}

#[test]
fn the_hosts_network_is_the_hosts() {
    let daemon = Daemon::with_busybox();
    let inside = shell(&daemon, &["--rm", "--net", "host"], "readlink /proc/self/ns/net");
    assert_eq!(inside.out.trim(), fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
}

/// A file of the container's own cgroup, wherever this host has that controller.
fn limit(daemon: &Daemon, name: &str, controller: &str, files: [&str; 2]) -> String {
    let pid = json(daemon, &["inspect", name])["task"]["pid"].as_u64().unwrap();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap(), fields.next().unwrap());
        let (root, file) = match controllers {
            "" => (String::new(), files[1]),
            _ if controllers.split(',').any(|c| c == controller) => (format!("/{controllers}"), files[0]),
            _ => continue,
        };
        for root in [format!("/sys/fs/cgroup{root}"), format!("/sys/fs/cgroup/{controller}")] {
            if let Ok(text) = fs::read_to_string(format!("{root}{path}/{file}")) {
                return text.trim().to_owned();
            }
        }
    }
    panic!("no {controller} in {groups}");
}

#[test]
fn limits_are_set_in_the_cgroup() {
    let daemon = Daemon::with_busybox();
    let limits = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "20"];
    ok(&daemon, &[&["run", "-d", "--name", "small"], &limits[..], &[BUSYBOX, "sleep", "1000"]].concat());
    assert_eq!(limit(&daemon, "small", "memory", ["memory.limit_in_bytes", "memory.max"]), (64 << 20).to_string());
    assert_eq!(limit(&daemon, "small", "pids", ["pids.max", "pids.max"]), "20");
    let cpu = limit(&daemon, "small", "cpu", ["cpu.cfs_quota_us", "cpu.max"]);
    assert!(cpu.starts_with("50000"), "{cpu}");
    ok(&daemon, &["rm", "-f", "small"]);
}

/// What had to be made above the cgroup that was named goes with the container; what was there stays.
#[test]
fn a_cgroup_of_ones_own_leaves_nothing_above_it() {
    let daemon = Daemon::with_busybox();
    let layout = cofferdam_sys::cgroup::Layout::detect().unwrap();
    let top = format!("/cofferdam-test-{}-given", std::process::id());
    let there = |path: &str| layout.hierarchies.iter().any(|h| h.root.join(&path[1..]).exists());
    let path = format!("{top}/above/shared");
    for runtime in ["native", "runc"] {
        let flags = ["--rm", "--runtime", runtime, "--cgroup", &path];
        assert_eq!(shell(&daemon, &flags, "exit 3").code, 3, "{runtime}");
        let bad = say(&daemon, &[&["run"], &flags[..], &[BUSYBOX, "/no/such/program"]].concat());
        assert_eq!((bad.code, there(&top)), (127, false), "{runtime}: {bad:?}");
        let above = cofferdam_sys::cgroup::Cgroup::create(&layout, &top).unwrap();
        assert_eq!(shell(&daemon, &flags, "exit 4").code, 4, "{runtime}");
        let left = (there(&format!("{top}/above")), there(&top));
        above.remove().unwrap();
        assert_eq!(left, (false, true), "{runtime}");
    }
}

#[test]
fn the_exit_code_is_the_containers_own() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
    {
        // Its first process is spared its own signals: a child has them.
        let script = if script.starts_with("kill") { format!("sh -c '{script}'; exit $?") } else { script.into() };
        assert_eq!(shell(&daemon, &["--rm"], &script).code, code, "{script}");
    }
    for (args, code, words) in [
        (vec!["run", "--rm", BUSYBOX, "/no/such/program"], 127, ["/no/such/program", "not"]),
        (vec!["run", "--rm", BUSYBOX, "/etc"], 126, ["/etc", "directory"]),
        (vec!["run", "--rm", "--pull", "never", "no/such:image", "true"], 125, ["no/such:image", "is not here"]),
        (vec!["run", "--rm", "--user", "nobody-knows", BUSYBOX, "true"], 125, ["nobody-knows", "passwd"]),
        (vec!["run", "--rm", "--memory", "lots", BUSYBOX, "true"], 125, ["memory", "lots"]),
        (
            vec!["run", "--rm", "--mount", "type=bind,src=/no/such,dst=/x", BUSYBOX, "true"],
            125,
            ["/no/such", "create it first"],
        ),
        (vec!["run", "--rm", "--no-such-flag", BUSYBOX, "true"], 125, ["--no-such-flag", "--help"]),
        (vec!["run", "--rm", "--runtime", "magic", BUSYBOX, "true"], 125, ["magic", "native"]),
        (vec!["run", "--rm", "--name", "../up", BUSYBOX, "true"], 125, ["../up", "letters"]),
        (vec!["run"], 125, ["IMAGE", "--help"]),
    ] {
        let said = say(&daemon, &args);
        assert_eq!(said.code, code, "{args:?}: {said:?}");
        assert!(words.iter().all(|word| said.err.contains(word)), "{args:?}: {said:?} should say {words:?}");
        assert_eq!(said.out, "", "{args:?}");
    }
    daemon.settles(&before);
}

#[test]
fn both_streams_are_apart_and_input_goes_in() {
    let daemon = Daemon::with_busybox();
    let Said { code, out, err } = shell(&daemon, &["--rm"], "echo out; echo err >&2");
    assert_eq!((code, out.as_str(), err.as_str()), (0, "out\n", "err\n"));

    let mut child = daemon
        .command()
        .args(["run", "--rm", "-i", BUSYBOX, "sh", "-c", "wc -c; echo done"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let feed = std::thread::spawn(move || input.write_all(&vec![b'x'; 3 << 20]));
    let said = Said::from(child.wait_with_output().unwrap());
    feed.join().unwrap().unwrap();
    assert_eq!((said.code, said.out.as_str()), (0, "3145728\ndone\n"));

    // Without -i there is nothing to read.
    assert_eq!(shell(&daemon, &["--rm"], "cat; echo end").out, "end\n");
}

#[test]
fn a_name_is_taken_once_and_free_again_after_its_removal() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    assert_eq!(shell(&daemon, &["--name", "one"], "echo first").out, "first\n");
    let said = shell(&daemon, &["--name", "one"], "echo second");
    assert_eq!((said.code, said.out.as_str()), (125, ""), "{said:?}");
    assert!(said.err.contains("one") && said.err.contains("is there already"), "{said:?}");
    assert_eq!(ok(&daemon, &["logs", "one"]), "first\n");
    assert_eq!(ok(&daemon, &["rm", "one"]), "one\n");
    assert_eq!(shell(&daemon, &["--name", "one", "--rm"], "echo third").out, "third\n");
    daemon.settles(&before);
}

#[test]
fn a_signal_is_passed_on() {
    let daemon = Daemon::with_busybox();
    let script = "trap 'echo asked; exit 9' TERM; echo ready > /ready/now; while :; do usleep 5000; done";
    let ready = daemon.path().join("ready");
    fs::create_dir(&ready).unwrap();
    let mount = format!("type=bind,src={},dst=/ready", ready.display());
    let child = daemon
        .command()
        .args(["run", "--rm", "--mount", &mount, BUSYBOX, "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    cofferdam_integration::until("the trap is set", || ready.join("now").exists().then_some(()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM).unwrap();
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (9, "asked\n"), "{said:?}");
}

#[test]
fn what_cant_be_done_is_said_in_words() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    for (flags, words) in [
        (vec!["--platform", "linux/arm64"], vec![BUSYBOX, "linux/arm64", "it has linux/amd64"]),
        (vec!["--platform", "foo"], vec!["platform foo", "os/arch"]),
        (vec!["--mount", "type=bind,src=/etc/passwd,dst=/etc"], vec!["/etc", "a file on a file"]),
        (vec!["--mount", "type=bind,src=/etc,dst=/etc/passwd"], vec!["/etc/passwd", "on a directory"]),
        (vec!["-w", "/etc/passwd"], vec!["/etc/passwd", "is not a directory in the container"]),
        (vec!["-w", "/etc/passwd/below"], vec!["/etc/passwd/below", "is not a directory in the container"]),
        (vec!["--ulimit", "nofile=99999999999"], vec!["nofile 99999999999", "at most"]),
        (vec!["--sysctl", "net.ipv4.nosuch=1"], vec!["sysctl net.ipv4.nosuch", "is not a parameter"]),
        (vec!["--sysctl", "net.ipv4.ip_forward=x"], vec!["sysctl net.ipv4.ip_forward", "refuses that value"]),
        (vec!["--runtime", "/bin/true"], vec!["runtime /bin/true", "is not a runc-compatible runtime"]),
        (vec!["--shm-size", "0"], vec!["--shm-size", "over 0"]),
        (vec!["--mount", "type=tmpfs,dst=/x,size=0"], vec!["--mount", "over 0"]),
        (vec!["-l", "a"], vec!["--label", "KEY=VALUE"]),
        (vec!["--annotation", "a"], vec!["--annotation", "KEY=VALUE"]),
        (vec!["-it"], vec!["-i and -t", "terminal"]),
    ] {
        let said = shell(&daemon, &[&["--rm"], &flags[..]].concat(), "true");
        assert_eq!((said.code, said.out.as_str()), (125, ""), "{flags:?}: {said:?}");
        assert!(words.iter().all(|word| said.err.contains(word)), "{flags:?}: {said:?} should say {words:?}");
        let vague = ["internal", "sys.net", "Invalid argument", "os error", "not permitted"];
        assert!(vague.iter().all(|word| !said.err.contains(word)), "{flags:?}: {said:?}");
    }
    daemon.settles(&before);
}

#[test]
fn no_limit_is_a_limit_of_zero_and_a_terminal_needs_nobody_at_it() {
    let daemon = Daemon::with_busybox();
    let said = shell(&daemon, &["--rm", "-m", "0", "--cpus", "0", "--pids-limit", "0"], "echo all");
    assert_eq!((said.code, said.out.as_str()), (0, "all\n"), "{said:?}");
    let most = shell(&daemon, &["--rm", "--ulimit", "nofile=unlimited"], "ulimit -Hn");
    assert!(most.code == 0 && most.out.trim().parse::<u64>().unwrap() > 1024, "{most:?}");
    let said = shell(&daemon, &["--rm", "-t"], "tty");
    assert_eq!((said.code, said.out.as_str()), (0, "/dev/pts/0\r\n"), "{said:?}");
    let said = say(&daemon, &["exec", "-it", "nobody", "true"]);
    assert!(said.code == 1 && said.err.contains("terminal"), "{said:?}");
}

#[test]
fn a_part_of_the_daemon_that_is_down_is_waited_for() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    for actor in ["tasks", "images", "snapshots", "metadata"] {
        // From time to time it stays down for longer: long enough for a program to start meanwhile.
        for _ in 0..4 {
            cofferdam_integration::until("it can be crashed", || {
                (say(&daemon, &["system", "crash", actor]).code == 0).then_some(())
            });
        }
        let said = shell(&daemon, &["--rm", "--name", "same"], "echo ran");
        assert_eq!((said.code, said.out.as_str()), (0, "ran\n"), "{actor}: {said:?}\n{}", daemon.log());
        let said = shell(&daemon, &["-d", "--name", "kept"], "true");
        assert_eq!(said.code, 0, "{actor}: {said:?}");
        ok(&daemon, &["rm", "-f", "kept"]);
    }
    daemon.settles(&before);
}

#[test]
fn a_directory_takes_the_place_of_an_image() {
    let daemon = Daemon::start();
    let before = daemon.leftovers();
    let dir = daemon.path().join("system");
    let mut copy = std::process::Command::new("cp");
    copy.arg("-a").arg(cofferdam_integration::images().join("rootfs/busybox")).arg(&dir);
    assert!(copy.status().unwrap().success());
    let root = dir.to_str().unwrap();
    let said = say(&daemon, &["run", "--rm", "--rootfs", root, "-u", "app", "sh", "-c", "id -un; exit 7"]);
    assert_eq!((said.code, &*said.out), (7, "app\n"), "{said:?}");
    // From where coffer was called.
    let mut relative = daemon.command();
    relative.current_dir(daemon.path()).args(["run", "--name", "box", "--rootfs", "system", "touch", "/made"]);
    let said = Said::from(relative.output().unwrap());
    assert_eq!(said.code, 0, "{said:?}");
    assert!(dir.join("made").is_file());
    assert_eq!(json(&daemon, &["inspect", "box"])["rootfs"], root);
    assert!(ok(&daemon, &["ps", "-a"]).contains(root), "it stands where an image would");

    // Files go in and out of it when it has ended, too.
    let note = daemon.path().join("note");
    fs::write(&note, "hello\n").unwrap();
    ok(&daemon, &["cp", note.to_str().unwrap(), "box:/etc/note"]);
    assert_eq!(fs::read_to_string(dir.join("etc/note")).unwrap(), "hello\n");
    ok(&daemon, &["rm", "box"]);
    assert!(dir.join("made").is_file() && dir.join("bin/busybox").is_file());

    for (args, words) in [
        (["--rootfs", "/nonexistent/root", "true"], "make it first"),
        (["--rootfs", root, "--pull=never"], "leave out --pull"),
        (["--rootfs", root, "--rm"], "say what to run"),
    ] {
        let said = say(&daemon, &[&["run"], &args[..]].concat());
        assert!(said.code == 125 && said.err.contains(words), "{args:?}: {said:?}");
    }
    daemon.settles(&before);
}

/// The process that a container's first one is a child of.
pub fn shim_of(daemon: &Daemon, name: &str) -> u64 {
    let pid = json(daemon, &["inspect", name])["task"]["pid"].as_u64().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

#[test]
fn containers_of_one_group_share_a_shim_and_others_do_not() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    for (name, group) in [("a", "pod"), ("b", "pod"), ("c", "other"), ("d", ""), ("e", "")] {
        let group: &[&str] = if group.is_empty() { &[] } else { &["--group", group] };
        ok(&daemon, &[&["run", "-d", "--name", name], group, &[BUSYBOX, "sleep", "1000"]].concat());
    }
    let shims = ["a", "b", "c", "d", "e"].map(|name| shim_of(&daemon, name));
    assert_eq!(shims[0], shims[1], "{shims:?}");
    assert_eq!(std::collections::BTreeSet::from(shims).len(), 4, "{shims:?}");
    let held: Vec<_> = json(&daemon, &["shim", "ls"])
        .as_array()
        .unwrap()
        .iter()
        .map(|shim| (shim["group"].as_str().unwrap().to_owned(), shim["containers"].as_array().unwrap().len()))
        .filter(|(_, containers)| *containers > 0)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    assert_eq!(held, [(String::new(), 1), ("other".into(), 1), ("pod".into(), 2)]);
    // One that goes leaves the shim to the other.
    ok(&daemon, &["rm", "-f", "a"]);
    assert_eq!((ok(&daemon, &["exec", "b", "echo", "here"]).as_str(), shim_of(&daemon, "b")), ("here\n", shims[0]));
    ok(&daemon, &["rm", "-f", "b", "c", "d", "e"]);
    daemon.settles(&before);
}
