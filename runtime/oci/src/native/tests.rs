//! Real containers: busybox in a directory, run as root with the features of the host's kernel.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use cofferdam_sys::{fd, process};
use cofferdam_types::{Code, Id, Mount, Namespace};
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec, Spec};
use serde_json::{Value, json};

use super::*;
use crate::Stdio;

/// A root file system with busybox in it, and a bundle directory.
struct Fixture {
    dir: tempfile::TempDir,
    id: Id,
    namespace: Namespace,
    native: Native,
    rootfs: Vec<Mount>,
    spec: Value,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

fn bind(source: &Path) -> Mount {
    Mount { kind: "bind".into(), source: source.to_str().unwrap().into(), options: vec!["rbind".into()] }
}

fn busybox(root: &Path) {
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "ls", "id", "true", "sleep", "stat", "stty", "hostname", "mkdir", "touch", "grep", "tty", "env",
        "readlink", "dd", "ps", "mount", "echo", "kill", "mknod", "pwd", "unshare", "test", "head", "wc"]
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        busybox(&root);
        std::fs::create_dir(dir.path().join("bundle")).unwrap();
        let id = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let rootfs = vec![bind(&root)];
        let spec = default_spec(&id);
        Fixture {
            rootfs,
            spec,
            id: Id::new(&id).unwrap(),
            namespace: Namespace::new("native-test").unwrap(),
            native: Native::new().unwrap(),
            dir,
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    fn parsed(&self) -> Spec {
        serde_json::from_value(self.spec.clone()).unwrap()
    }

    fn create(&self, stdio: Stdio<'_>) -> Result<Container> {
        let bundle = self.dir.path().join("bundle");
        let fd = fd::open_dir(&bundle).unwrap();
        self.native.create(&CreateRequest {
            id: &self.id,
            namespace: &self.namespace,
            bundle: fd.as_fd(),
            bundle_path: &bundle,
            spec: &self.parsed(),
            rootfs: &self.rootfs,
            stdio,
        })
    }

    fn args(&mut self, args: &[&str]) -> &mut Self {
        self.spec["process"]["args"] = json!(args);
        self
    }

    fn sh(&mut self, script: &str) -> &mut Self {
        self.args(&["/bin/sh", "-c", script])
    }

    /// Runs it to its end: (status, what it wrote to both streams).
    fn try_run(&self) -> Result<(u32, String)> {
        let null = File::open("/dev/null").unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: writer.as_fd(), stderr: writer.as_fd() };
        let mut container = self.create(stdio)?;
        let started = self.native.start(&mut container);
        drop(writer);
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        let exit = process::waitid(&container.init.pidfd, true).unwrap().unwrap();
        self.native.delete(&container).unwrap();
        started?;
        Ok((exit.status(), output))
    }

    fn run(&self) -> (u32, String) {
        self.try_run().unwrap()
    }

    /// What a script writes; it must succeed.
    fn output(&mut self, script: &str) -> String {
        let (status, output) = self.sh(script).run();
        assert_eq!(status, 0, "{output}");
        output
    }
}

impl Drop for Fixture {
    /// Nothing may be left, whatever a test did.
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left = table.contains(self.dir.path().to_str().unwrap());
        let path = format!("/cofferdam/{}/{}", self.namespace, self.id);
        let group = Cgroup::open(&self.native.layout, &path).is_ok();
        if !std::thread::panicking() {
            assert!(!left, "a mount is left");
            assert!(!group, "a cgroup is left");
        }
    }
}

fn default_spec(id: &str) -> Value {
    let caps = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_MKNOD"]);
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "hostname": "box",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/bin", "HOME=/"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]},
        ],
        "linux": {
            "cgroupsPath": format!("/cofferdam/native-test/{id}"),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/acpi", "/proc/scsi", "/sys/firmware", "/proc/nonexistent"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    })
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
    for line in [
        "FOO=b a r\n", "\n/made/for/it\n", "uid=1000 gid=1001 groups=5,7", "\n0027\n64\n128\n300\nbox\n/bin/sh\nx\n",
    ] {
        assert!(out.contains(line), "{line:?} is not in {out:?} ({expected:?})");
    }
    assert!(!out.contains("HOME=/\n"), "nothing of this process's environment: {out}");
}

fn status_field(status: &str, field: &str) -> String {
    let line = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {status}")).trim().to_owned()
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
    let script = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done; ls /sys/class/net; ps | wc -l";
    let host: Vec<String> = ["cgroup", "ipc", "mnt", "net", "pid", "uts"]
        .map(|n| std::fs::read_link(format!("/proc/thread-self/ns/{n}")).unwrap().to_str().unwrap().to_owned())
        .into();
    let out = f.output(script);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[..6].iter().zip(&host).all(|(a, b)| *a != b), "{out}");
    assert_eq!(lines[6], "lo");
    f.spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    f.spec["hostname"] = Value::Null;
    let out = f.output(script);
    for (index, (line, host)) in out.lines().zip(&host).enumerate() {
        assert_eq!(line == host, index != 2, "{out}");
    }
}

#[test]
fn namespaces_are_joined_by_path() {
    let f = Fixture::new();
    let mut f2 = Fixture::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (stdin, hold) = std::io::pipe().unwrap();
    let stdio = Stdio::Fds { stdin: stdin.as_fd(), stdout: writer.as_fd(), stderr: writer.as_fd() };
    let mut f = f;
    let mut container = f.args(&["cat"]).create(stdio).unwrap();
    f.native.start(&mut container).unwrap();
    let pid = container.init.pid;
    let path = |n: &str| format!("/proc/{pid}/ns/{n}");
    f2.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "cgroup"}, {"type": "pid", "path": path("pid")},
        {"type": "network", "path": path("net")}, {"type": "ipc", "path": path("ipc")}, {"type": "uts", "path": path("uts")}]);
    f2.spec["hostname"] = Value::Null;
    let out = f2.output("for n in ipc net pid uts; do readlink /proc/self/ns/$n; done; hostname; echo $$; ls /proc | grep -x 1");
    let expected: Vec<String> = ["ipc", "net", "pid", "uts"]
        .map(|n| std::fs::read_link(path(n)).unwrap().to_str().unwrap().to_owned())
        .into();
    assert!(out.starts_with(&expected.join("\n")), "{out}");
    assert!(out.ends_with("\nbox\n2\n1\n"), "{out}");
    f2.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network", "path": path("ipc")}]);
    assert_eq!(f2.try_run().unwrap_err().code, Code::InvalidArgument);
    f2.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network", "path": "/etc/passwd"}]);
    assert_eq!(f2.try_run().unwrap_err().code, Code::InvalidArgument);
    drop((hold, writer, stdin));
    reader.read_to_string(&mut String::new()).unwrap();
    process::waitid(&container.init.pidfd, true).unwrap();
    f.native.delete(&container).unwrap();
}

#[test]
fn paths_are_masked_and_read_only() {
    let mut f = Fixture::new();
    std::fs::write(f.root().join("secret"), "secret").unwrap();
    std::fs::create_dir(f.root().join("hidden")).unwrap();
    std::fs::write(f.root().join("hidden/file"), "secret").unwrap();
    std::os::unix::fs::symlink("/secret", f.root().join("link")).unwrap();
    f.spec["linux"]["maskedPaths"] = json!(["/link", "/hidden", "/proc/keys", "/sys/firmware", "/bin/none"]);
    f.spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/bin"]);
    let out = f.output(
        "cat /secret /proc/keys; ls /hidden /sys/firmware; touch /hidden/x 2>&1; touch /bin/x 2>&1; echo 1 2>&1 >/proc/sys/kernel/msgmax;
         stat -c '%t:%T' /secret; touch /x && echo writable",
    );
    assert!(!out.contains("\nsecret"), "{out}");
    assert_eq!(out.matches("Read-only file system").count(), 3, "{out}");
    assert!(out.ends_with("1:3\nwritable\n"), "{out}");
    f.spec["root"]["readonly"] = json!(true);
    let out = f.output("touch /y 2>&1; touch /dev/shm/z && echo ok; mount | grep ' / '");
    assert!(out.contains("Read-only file system") && out.contains("ok"), "{out}");
}

#[test]
fn devices_links_and_default_mounts_are_there() {
    let mut f = Fixture::new();
    f.spec["linux"]["devices"] = json!([{"path": "/dev/sub/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o620, "gid": 6}]);
    f.spec["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    let out = f.output(
        "for d in null zero full random urandom tty sub/fuse; do stat -c '%t:%T %a %u:%g' /dev/$d; done;
         for l in fd stdin stdout stderr core ptmx; do readlink /dev/$l; done;
         head -c 3 /dev/zero | wc -c; echo gone > /dev/null; mkdir /dev/shm/x; ls -d /dev/mqueue; ls /sys/fs/cgroup/memory | grep -c limit_in_bytes;
         cat /dev/sub/fuse 2>&1; mknod /dev/kmsg2 c 1 11; cat /dev/kmsg2 2>&1; true",
    );
    let expected = "1:3 666 0:0\n1:5 666 0:0\n1:7 666 0:0\n1:8 666 0:0\n1:9 666 0:0\n5:0 666 0:0\na:e5 620 0:6\n\
                    /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\n/proc/kcore\npts/ptmx\n3\n/dev/mqueue\n";
    assert!(out.starts_with(expected), "{out}");
    // P8: what isn't allowed is denied, also through a node that the container makes itself.
    assert_eq!(out.matches("Operation not permitted").count(), 2, "{out}");
}

#[test]
fn binds_tmpfs_and_propagation() {
    let mut f = Fixture::new();
    let host = f.dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "from the host\n").unwrap();
    let mounts = f.spec["mounts"].as_array_mut().unwrap();
    let file = host.join("file");
    std::fs::create_dir_all(f.dir.path().join("bundle/data")).unwrap();
    mounts.extend([
        json!({"destination": "/new/dir", "type": "bind", "source": host, "options": ["rbind", "ro"]}),
        json!({"destination": "/etc/new/file", "type": "bind", "source": file, "options": ["bind"]}),
        json!({"destination": "/relative", "source": "data", "options": ["bind", "rslave", "noexec"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "options": ["size=64k", "mode=1777", "ro"]}),
    ]);
    let out = f.output(
        "cat /new/dir/file; touch /new/dir/x 2>&1; cat /etc/new/file; echo more >> /etc/new/file; touch /relative/made; touch /tmp/x 2>&1; stat -c %a /tmp",
    );
    assert_eq!(out.matches("Read-only file system").count(), 2, "{out}");
    assert!(out.starts_with("from the host\n") && out.ends_with("1777\n"), "{out}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "from the host\nmore\n");
    assert!(f.dir.path().join("bundle/data/made").exists());
}

#[test]
fn targets_are_made_where_the_container_sees_them() {
    let mut f = Fixture::new();
    let canary = f.dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    for (link, to) in [
        ("abs", canary.to_str().unwrap()), ("up", "../../../../../../../../canary-up/deep"), ("chain", "/abs"), ("loop", "loop"),
    ] {
        std::os::unix::fs::symlink(to, f.root().join(link)).unwrap();
    }
    let host = f.dir.path().join("bundle").to_str().unwrap().to_owned();
    let mount = |to: &str| json!({"destination": to, "type": "bind", "source": host, "options": ["bind"]});
    let base = f.spec["mounts"].as_array().unwrap().clone();
    let with = |f: &mut Fixture, to: &str| {
        let mut all = base.clone();
        all.push(mount(to));
        f.spec["mounts"] = json!(all);
    };
    std::fs::write(f.dir.path().join("bundle/mark"), "").unwrap();
    for to in ["/chain/a/b", "/up/x", "/abs"] {
        with(&mut f, to);
        f.output(&format!("ls {to}/mark"));
    }
    assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 0, "something was made outside the root");
    assert!(f.root().join("canary-up/deep/x").is_dir());
    with(&mut f, "/loop/x");
    let error = f.try_run().unwrap_err();
    assert!(error.message.contains("mounting at /loop/x"), "{error}");
}

// X7: an image whose /proc, /sys or /dev is a symlink.
#[test]
fn x7_symlinks_in_place_of_system_directories_are_refused() {
    for name in ["proc", "sys", "dev"] {
        let f = Fixture::new();
        std::fs::create_dir(f.root().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", f.root().join(name)).unwrap();
        let error = f.try_run().unwrap_err();
        assert!(error.message.contains(&format!("at /{name}")), "{error}");
        assert_eq!(error.id, &*f.id);
    }
}

// X5: a working directory that leads out of the root through a descriptor of the host.
#[test]
fn x5_the_working_directory_is_inside_the_root() {
    let mut f = Fixture::new();
    for fd in 3..12 {
        f.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
        let error = f.sh("cat ../../../../etc/hostname").try_run().unwrap_err();
        assert!(error.message.contains("/proc/self/fd/"), "{error}");
    }
    std::os::unix::fs::symlink("/proc/self/fd/7/", f.root().join("innocent")).unwrap();
    f.spec["process"]["cwd"] = json!("/innocent");
    f.try_run().unwrap_err();
}

// X1: nothing above 2 gets in.
#[test]
fn x1_no_descriptor_leaks() {
    let mut f = Fixture::new();
    let inherited = File::open("/etc/passwd").unwrap();
    // SAFETY: clears CLOEXEC on a descriptor that this test owns.
    unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&inherited), libc::F_SETFD, 0) };
    // 3 is the directory that ls itself reads.
    assert_eq!(f.output("ls /proc/self/fd"), "0\n1\n2\n3\n");
    assert_eq!(f.output("ls /proc/1/fd; true"), "0\n1\n2\n");
}

#[test]
fn commands_that_cant_run_say_why() {
    let mut f = Fixture::new();
    std::fs::write(f.root().join("bin/plain"), "not a program").unwrap();
    std::fs::write(f.root().join("garbage"), "\u{1}").unwrap();
    std::fs::set_permissions(f.root().join("garbage"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
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
    let out = f.sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do sleep 1 & done; true").run().1;
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
    let mut container = f.create(stdio).unwrap();
    f.native.start(&mut container).unwrap();
    process::waitid(&container.init.pidfd, true).unwrap();
    assert!(container.kept.cgroup.as_ref().unwrap().oom_kills().unwrap() > 0);
    f.native.delete(&container).unwrap();
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
    f.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "80", "kernel/msgmax": "4242", "fs.mqueue.queues_max": "9"});
    let out = f.output("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/queues_max");
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
    f.native.start(&mut container).unwrap();
    let out = read_terminal(console);
    assert!(out.starts_with("/dev/pts/0\n30 101\n88:0\n/dev/pts/0\nx\n1000\n0\n1\n2\n3\n"), "{out}");
    process::waitid(&container.init.pidfd, true).unwrap();
    f.native.delete(&container).unwrap();
}

/// Until the last slave is closed, which reads as an error.
fn read_terminal(console: OwnedFd) -> String {
    let mut out = Vec::new();
    let mut file = File::from(console);
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = file.read(&mut buffer) {
        out.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8(out).unwrap().replace("\r\n", "\n")
}

/// A container that sleeps until its standard input is closed.
fn sleeping(f: &mut Fixture) -> (Container, std::io::PipeWriter) {
    let null = File::options().write(true).open("/dev/null").unwrap();
    let (stdin, hold) = std::io::pipe().unwrap();
    let stdio = Stdio::Fds { stdin: stdin.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let mut container = f.args(&["cat"]).create(stdio).unwrap();
    f.native.start(&mut container).unwrap();
    (container, hold)
}

fn exec(f: &Fixture, container: &Container, spec: Value) -> Result<(u32, String)> {
    let null = File::open("/dev/null").unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: writer.as_fd(), stderr: writer.as_fd() };
    let spec: ProcessSpec = serde_json::from_value(spec).unwrap();
    let process = f.native.exec(container, &ExecRequest { id: &f.id, process: &spec, stdio });
    drop(writer);
    let mut out = String::new();
    reader.read_to_string(&mut out).unwrap();
    let exit = process::waitid(&process?.pidfd, true).unwrap().unwrap();
    Ok((exit.status(), out))
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
        .map(|n| std::fs::read_link(format!("/proc/{}/ns/{n}", container.init.pid)).unwrap().display().to_string() + "\n")
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
    let mut terminal = f.native.exec(&container, &ExecRequest { id: &f.id, process: &spec, stdio }).unwrap();
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
fn an_overlay_of_two_layers_is_a_root() {
    let mut f = Fixture::new();
    let dir = |name: &str| {
        let path = f.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (middle, upper, work) = (dir("middle"), dir("upper"), dir("work"));
    std::fs::write(middle.join("file"), "middle\n").unwrap();
    std::fs::write(f.root().join("file"), "bottom\n").unwrap();
    let lower = format!("lowerdir={}:{}", middle.display(), f.root().display());
    let options = vec![lower, format!("upperdir={}", upper.display()), format!("workdir={}", work.display())];
    f.rootfs = vec![Mount { kind: "overlay".into(), source: "overlay".into(), options }];
    assert_eq!(f.output("cat /file; echo new > /file"), "middle\n");
    assert_eq!(std::fs::read_to_string(upper.join("file")).unwrap(), "new\n");
    f.rootfs.clear();
    f.spec["root"]["path"] = json!(f.root());
    assert_eq!(f.output("cat /file"), "bottom\n");
}

#[test]
fn nothing_is_left_of_a_create_that_fails() {
    let mut f = Fixture::new();
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    f.run();
    f.spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/x", "type": "bind", "source": "/nonexistent", "options": ["bind"]}));
    let error = f.try_run().unwrap_err();
    assert!(error.message.contains("/x") && error.id == "/nonexistent", "{error}");
    f.spec["mounts"].as_array_mut().unwrap().pop();
    f.spec["linux"]["resources"] = json!({"cpu": {"cpus": "99"}});
    assert!(f.try_run().unwrap_err().message.contains("cpuset.cpus"));
    f.spec["linux"]["resources"] = Value::Null;
    f.spec["process"]["cwd"] = json!("/bin/sh");
    assert!(f.try_run().unwrap_err().message.contains("/bin/sh"));
    let _ = count;
}
