//! User namespaces, and ids of mounts.

use std::os::unix::fs::MetadataExt;

use super::*;

const HOST: u32 = 300_000;

/// A container whose ids 0 to 65535 are [`HOST`] and up outside.
fn mapped() -> Fixture {
    let mut f = Fixture::new();
    let map = json!([{"containerID": 0, "hostID": HOST, "size": 65536}]);
    f.spec["linux"]["uidMappings"] = map.clone();
    f.spec["linux"]["gidMappings"] = map;
    f.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    f
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

#[test]
fn root_of_a_user_namespace_is_nobody_outside_and_files_are_its_own() {
    let mut f = mapped();
    let caps = json!(["CAP_SYS_ADMIN"]);
    f.spec["process"]["capabilities"] = json!({"bounding": caps, "effective": caps, "permitted": caps});
    f.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}]);
    f.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "80"});
    f.spec["linux"]["devices"] =
        json!([{"path": "/dev/sub/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o620, "gid": 6}]);
    let out = f.output(
        "id -u; id -g; cat /proc/self/uid_map; stat -c %u:%g /bin/busybox /dev /dev/shm /dev/null /dev/sub/fuse; echo x > /made;
         stat -c %u /made; echo gone > /dev/null; head -c 3 /dev/zero | wc -c; hostname; hostname other; hostname; ulimit -n;
         cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /sys/class/net/lo/flags; ls -d /dev/mqueue /sys/fs/cgroup;
         cat /proc/keys; echo 1 2>&1 > /proc/sys/kernel/msgmax; mknod /x c 1 3 2>&1; true",
    );
    let map: Vec<&str> = out.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", &HOST.to_string(), "65536"]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..2], ["0", "0"], "{out}");
    assert_eq!(lines[3..9], ["0:0", "0:0", "0:0", "0:0", "0:6", "0"], "{out}");
    assert_eq!(
        lines[9..18],
        [
            "3",
            "box",
            "other",
            "64",
            "80",
            "0x9",
            "/dev/mqueue",
            "/sys/fs/cgroup",
            "/bin/sh: can't create /proc/sys/kernel/msgmax: Read-only file system"
        ],
        "{out}"
    );
    assert!(lines[18].contains("Operation not permitted"), "a node can be made: {out}");
    // On disk there is no trace of the map: the snapshot fits any other.
    assert_eq!(owner(&f.root().join("made")), (0, 0));
    assert_eq!(owner(&f.root().join("bin/busybox")), (0, 0));
}

#[test]
fn another_user_of_a_user_namespace_may_reopen_its_pipes() {
    let mut f = mapped();
    f.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [5]});
    let out = f.output("id; echo again > /proc/self/fd/1; echo on > /dev/stdout; exit 0");
    assert!(out.starts_with("uid=1000 gid=1000 groups=5") && out.ends_with("again\non\n"), "{out}");
    f.spec["process"]["user"] = json!({"uid": 65536, "gid": 0});
    assert_eq!(f.try_run().unwrap_err().id, "process.user");
    f.spec["process"]["user"] = json!({"uid": 0, "gid": 0, "additionalGids": [70000]});
    assert_eq!(f.try_run().unwrap_err().id, "process.user");
}

#[test]
fn every_namespace_belongs_to_the_user_namespace() {
    let mut f = mapped();
    let caps = json!(["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_CHROOT"]);
    f.spec["process"]["capabilities"] = json!({"bounding": caps, "effective": caps, "permitted": caps});
    let (container, hold) = sleeping(&mut f);
    // What root inside may do shows whose they are; outside it may nothing.
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        "args": ["sh", "-c", "mount -t tmpfs none /dev/shm && hostname x && hostname && id -u && readlink /proc/self/ns/user && cat /proc/self/fd/0 && echo x >/proc/self/fd/1"]});
    let (status, out) = exec(&f, &container, process.clone()).unwrap();
    let user = std::fs::read_link(format!("/proc/{}/ns/user", container.init.pid)).unwrap();
    assert_eq!((status, out), (0, format!("x\n0\n{}\nx\n", user.to_str().unwrap())));
    assert_ne!(user, std::fs::read_link("/proc/self/ns/user").unwrap());
    let status = std::fs::read_to_string(format!("/proc/{}/status", container.init.pid)).unwrap();
    assert_eq!(status_field(&status, "Uid"), [HOST; 4].map(|id| id.to_string()).join("\t"));
    // A terminal, and an id that isn't there.
    let mut bad = process;
    bad["user"]["uid"] = json!(70_000);
    assert_eq!(exec(&f, &container, bad).unwrap_err().id, "process.user");
    drop(hold);
    process::waitid(&container.init.pidfd, true).unwrap();
    f.native.delete(&container).unwrap();
}

#[test]
fn a_user_namespace_is_joined_by_path() {
    let mut first = mapped();
    let (container, hold) = sleeping(&mut first);
    let path = |name: &str| format!("/proc/{}/ns/{name}", container.init.pid);
    let mut f = Fixture::new();
    f.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "user", "path": path("user")}, {"type": "pid"},
        {"type": "network", "path": path("net")}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"}]);
    let out =
        f.output("id -u; readlink /proc/self/ns/user; readlink /proc/self/ns/net; stat -c %u /bin; echo x > /made");
    let link = |name: &str| std::fs::read_link(path(name)).unwrap().to_str().unwrap().to_owned();
    assert_eq!(out, format!("0\n{}\n{}\n0\n", link("user"), link("net")));
    assert_eq!(owner(&f.root().join("made")), (0, 0));
    // A map that it doesn't have, and a pid namespace that is there along with it.
    f.spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 5, "size": 65536}]);
    assert_eq!(f.try_run().unwrap_err().id, "linux.uidMappings");
    f.spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": HOST, "size": 65536}]);
    f.spec["linux"]["namespaces"][2]["path"] = json!(path("pid"));
    assert_eq!(
        f.output("echo $$; ls /proc | grep -x 1; readlink /proc/self/ns/pid"),
        format!("3\n1\n{}\n", link("pid"))
    );
    for wrong in [path("net"), "/proc/self/ns/user".to_owned()] {
        f.spec["linux"]["namespaces"][1]["path"] = json!(wrong);
        assert_eq!(f.try_run().unwrap_err().code, Code::InvalidArgument);
    }
    drop(hold);
    process::waitid(&container.init.pidfd, true).unwrap();
    first.native.delete(&container).unwrap();
}

#[test]
fn a_terminal_of_a_user_namespace_belongs_to_its_user() {
    let mut f = mapped();
    f.spec["process"]["terminal"] = json!(true);
    f.spec["process"]["user"]["uid"] = json!(1000);
    f.sh("tty; stat -c '%t:%T' /dev/console; stat -c %u /dev/pts/0; echo x > /dev/tty");
    let mut container = f.create(Stdio::Terminal { rows: 30, cols: 101 }).unwrap();
    let console = container.init.console.take().unwrap();
    f.native.start(&container).unwrap();
    assert_eq!(read_terminal(console), "/dev/pts/0\n88:0\n1000\nx\n");
    process::waitid(&container.init.pidfd, true).unwrap();
    f.native.delete(&container).unwrap();
}

#[test]
fn an_overlay_has_the_ids_of_the_namespace_and_keeps_its_own_on_disk() {
    let mut f = mapped();
    let caps = json!(["CAP_DAC_OVERRIDE"]);
    f.spec["process"]["capabilities"] = json!({"bounding": caps, "effective": caps, "permitted": caps});
    let place = |name: &str| {
        let path = f.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let (lower, upper, work) = (place("lower"), place("tree/fs"), place("tree/work"));
    std::fs::write(lower.join("of1000"), "old\n").unwrap();
    std::os::unix::fs::chown(lower.join("of1000"), Some(1000), Some(1001)).unwrap();
    let option = |key: &str, path: &Path| format!("{key}={}", path.display());
    f.rootfs = vec![Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("lowerdir={}:{}", lower.display(), f.root().display()),
            option("upperdir", &upper),
            option("workdir", &work),
        ],
    }];
    let out = f.output("stat -c %u:%g /of1000 /bin/busybox; echo new >> /of1000; stat -c %u:%g /of1000; mkdir /made; rm -r /bin/env; cat /of1000");
    assert_eq!(out, "1000:1001\n0:0\n1000:1001\nold\nnew\n");
    assert_eq!((owner(&upper.join("of1000")), owner(&upper.join("made"))), ((1000, 1001), (0, 0)));
    assert_eq!(std::fs::read_to_string(lower.join("of1000")).unwrap(), "old\n");
    f.spec["root"]["readonly"] = json!(true);
    assert!(f.output("touch /made/x 2>&1; true").contains("Read-only"));
}

#[test]
fn maps_that_cant_be_are_refused() {
    let mut f = mapped();
    f.spec["linux"]["uidMappings"] =
        json!([{"containerID": 0, "hostID": 1, "size": 10}, {"containerID": 5, "hostID": 100, "size": 10}]);
    let error = f.try_run().unwrap_err();
    assert_eq!((error.code, error.id.as_str()), (Code::InvalidArgument, "linux.uidMappings"));
    let mut f = mapped();
    f.rootfs = vec![Mount { kind: "bind".into(), source: "/proc/self".into(), options: vec![] }];
    let error = f.try_run().unwrap_err();
    assert_eq!(error.code, Code::Unimplemented, "{error}");
}
