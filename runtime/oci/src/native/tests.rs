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
