//! User namespaces, from the option to the files on disk (TestUserNamespaces of the reference).

use std::os::unix::fs::MetadataExt as _;

use cofferdam_client::{Device, IdMap, Stdio};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, btrfs_disk, input, output, until};
use cofferdam_sys::{
    cgroup::{Cgroup, Layout},
    metrics::Metrics,
};

use crate::script;

const HOST: u32 = 100_000;

fn map() -> Vec<IdMap> {
    vec![IdMap { container: 0, host: HOST, size: 65_536 }]
}

/// Runs a script as user 1000 of a user namespace whose root file system can be written or not.
fn run(read_only: bool, line: &str) -> (u32, String) {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let result = bounded(async {
        let client = daemon.client().await;
        let mut request = script(&daemon, "box", line);
        request.container.options.userns = map();
        request.container.options.user = "1000:1000".into();
        request.container.options.read_only = read_only;
        let (stdout, said) = output();
        request.stdio = Stdio { stdout, ..Stdio::default() };
        let run = client.run(request).unwrap();
        let pid = run.started().await.unwrap();
        let owner = std::fs::metadata(format!("/proc/{pid}")).map(|meta| meta.uid());
        assert!(owner.is_err() || owner.is_ok_and(|uid| uid == HOST + 1000), "it runs as somebody of the host");
        let exit = run.wait().await.unwrap();
        run.container().remove(true).await.unwrap();
        (exit.status, said.text().await)
    });
    daemon.settles(&before);
    result
}

#[test]
fn a_writable_root_in_a_user_namespace() {
    let line = "touch /tmp/made /made 2>&1; stat -c %u /tmp/made /bin; echo again > /proc/self/fd/1; id -u; exit 7";
    let (status, said) = run(false, line);
    assert!(said.contains("/made: Permission denied") && said.ends_with("1000\n0\nagain\n1000\n"), "{said}");
    assert_eq!(status, 7);
}

#[test]
fn a_read_only_root_in_a_user_namespace() {
    let (status, said) = run(true, "touch /tmp/made 2>&1; echo x > /dev/shm/x && stat -c %u /dev/shm/x; exit 7");
    assert!(said.contains("Read-only file system") && said.ends_with("1000\n"), "{said}");
    assert_eq!(status, 7);
}

#[test]
fn what_was_written_in_a_user_namespace_is_root_on_disk_and_another_process_can_be_run() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let container = crate::with(&namespace, "box", "echo x > /made; exec sleep 1000", |c| c.options.userns = map());
        let task = container.create_task(Stdio::default(), false);
        let pid = task.start().await.unwrap();
        let (stdout, said) = output();
        let options = cofferdam_client::ProcessOptions {
            args: ["sh", "-c", "until test -e /made; do :; done; id -u; stat -c %u /made; echo y > /dev/stdout"]
                .map(str::to_owned)
                .into(),
            user: "1000:1000".into(),
            ..Default::default()
        };
        let exec = task.exec("", &options, Stdio { stdout, ..Stdio::default() });
        exec.start().await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 0);
        assert_eq!(said.text().await, "1000\n0\ny\n");
        // Seen through the container's root it is the mapped user's.
        assert_eq!(std::fs::metadata(format!("/proc/{pid}/root/made")).unwrap().uid(), HOST);
        task.kill(9, false).await.unwrap();
        task.wait().await.unwrap();
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

/// Whatever a driver shows of an image, its owners are those of the image inside, and what is written is so on disk.
#[test]
fn each_driver_gives_a_user_namespace_a_root_of_its_own() {
    for driver in ["overlay", "native", "btrfs", "erofs"] {
        let daemon = if driver == "btrfs" { btrfs_disk(512) } else { Daemon::start() };
        daemon.import_busybox();
        bounded(async {
            daemon.open().await.images().get(BUSYBOX).unpack("", driver).await.unwrap();
        });
        let before = daemon.leftovers();
        bounded(async {
            let namespace = daemon.open().await;
            let line = "stat -c %u:%g /bin/busybox /etc; mkdir /made && echo x > /made/f && chown 7:8 /made/f && stat -c %u:%g /made /made/f; \
                        exec sleep 1000";
            let container = crate::with(&namespace, "box", line, |c| {
                c.options.userns = map();
                c.driver = driver.into();
            });
            let (stdout, said) = output();
            let task = container.create_task(Stdio { stdout, ..Stdio::default() }, false);
            let pid = task.start().await.unwrap();
            let seen = std::path::PathBuf::from(format!("/proc/{pid}/root/made/f"));
            until(driver, || std::fs::metadata(&seen).is_ok_and(|meta| meta.uid() != HOST).then_some(()));
            assert_eq!(std::fs::metadata(&seen).unwrap().uid(), HOST + 7, "{driver}");
            let trees = std::fs::read_dir(daemon.root().join("snapshots").join(driver)).unwrap();
            let trees = trees.map(|entry| entry.unwrap().path().join("fs/made/f"));
            let owners: Vec<_> = trees.filter_map(|file| std::fs::metadata(file).ok()).collect();
            assert_eq!(owners.iter().map(|meta| (meta.uid(), meta.gid())).collect::<Vec<_>>(), [(7, 8)], "{driver}");
            said.contains("7:8\n").await;
            task.kill(9, false).await.unwrap();
            task.wait().await.unwrap();
            assert_eq!(said.text().await, "0:0\n0:0\n0:0\n7:8\n", "{driver}");
            container.remove(true).await.unwrap();
        });
        daemon.settles(&before);
    }
}

#[test]
fn options_that_reach_the_host_work() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let line = "cat /proc/self/oom_score_adj; head -c 2 /dev/nothing | wc -c; (echo x > /dev/nothing) 2>&1; \
                    readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts; read -r end";
        let mut request = script(&daemon, "box", line);
        let options = &mut request.container.options;
        options.oom_score_adj = 300;
        // One that no container has anyhow.
        options.devices = vec![Device {
            host_path: "/dev/cpu_dma_latency".into(),
            target: "/dev/nothing".into(),
            access: "r".into(),
        }];
        options.namespaces = vec![("ipc".into(), "host".into()), ("uts".into(), "/proc/self/ns/uts".into())];
        options.cgroup = "/cofferdam-chosen".into();
        let (stdout, said) = output();
        let (stdin, end) = input();
        request.stdio = Stdio { stdin, stdout, ..Stdio::default() };
        let run = client.run(request).unwrap();
        let pid = run.started().await.unwrap();
        // As the host sees it, in each hierarchy.
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let there = groups.lines().filter(|line| line.ends_with(":/cofferdam-chosen")).count();
        assert_eq!(there, Layout::detect().unwrap().hierarchies.len(), "{groups}");
        drop(end);
        run.wait().await.unwrap();
        let [ipc, uts] = ["ipc", "uts"].map(|kind| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap());
        let said = said.text().await;
        let lines: Vec<_> = said.lines().collect();
        let [adjusted, read, refused, its_ipc, its_uts] = lines[..] else { panic!("{said}") };
        assert_eq!((adjusted, read), ("300", "2"));
        assert!(refused.contains("/dev/nothing: Operation not permitted"), "it may be read alone: {said}");
        assert_eq!([its_ipc, its_uts].map(std::path::Path::new), [&*ipc, &*uts]);
        run.container().remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

// P7: the container's cgroup holds its processes and its limits, and it can't reach them.
#[test]
fn p7_limits_hold_in_a_user_namespace() {
    const MEMORY: u64 = 32 << 20;
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let make = |id: &str, script: &str| {
            let container = crate::with(&namespace, id, script, |c| {
                c.options.userns = map();
                c.options.memory = MEMORY;
                c.options.pids = 12;
            });
            let (stdout, said) = output();
            let task = container.create_task(Stdio { stdout, ..Stdio::default() }, false);
            (container, task, said)
        };
        // As root of the namespace it can't raise them, nor leave.
        let script = "for f in $(find /sys/fs/cgroup -name pids.max -o -name memory.limit_in_bytes -o -name memory.max \
                      -o -name cgroup.procs); do (echo 1 > $f) 2>/dev/null && echo written $f; done; \
                      sh -c 'n=0; while test $n -lt 30; do sleep 1000 & n=$((n + 1)); done' 2>/dev/null; echo forked; exec sleep 1000";
        let (container, task, said) = make("box", script);
        let pid = task.start().await.unwrap() as i32;
        let said = said.contains("forked\n").await;
        assert!(!said.contains("written"), "{said}");

        let layout = Layout::detect().unwrap();
        let cgroup = Cgroup::open(&layout, &daemon.cgroup("box")).unwrap();
        let found = Metrics::read(&cgroup).unwrap();
        let (memory, pids) = (found.memory.expect("this host counts memory"), found.pids.expect("and processes"));
        assert_eq!((memory.limit, pids.limit), (MEMORY, 12));
        assert_eq!(pids.current, 11, "as many as were allowed beside the one that made them");
        assert!(cgroup.pids().unwrap().contains(&pid));
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let own = groups.lines().filter(|line| line.ends_with(&format!(":{}", daemon.cgroup("box")))).count();
        assert_eq!(own, layout.hierarchies.len(), "in each hierarchy: {groups}");
        task.kill(9, true).await.unwrap();
        task.wait().await.unwrap();
        container.remove(false).await.unwrap();

        let (container, task, _said) = make("greedy", "exec tail /dev/zero");
        task.start().await.unwrap();
        let exit = task.wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, "oom killed"));
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}
