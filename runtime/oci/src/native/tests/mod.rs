//! Real containers: busybox in a directory, run as root with the features of the host's kernel.

mod ahead;
mod attacks;
mod files;
mod hooks;
mod life;
mod mounts;
mod netdevices;
mod program;
mod properties;
mod user;

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

/// Puts a program there. Another process writes it: what a test beside this one clones meanwhile has our descriptors for
/// a moment, and a file that is open for writing can't be executed.
fn install(program: &Path, to: &Path) {
    let done = std::process::Command::new("install").args(["-m", "755"]).args([program, to]).status().unwrap();
    assert!(done.success());
}

fn busybox(root: &Path) {
    std::fs::create_dir_all(root.join("bin")).unwrap();
    install(Path::new("/bin/busybox"), &root.join("bin/busybox"));
    for name in [
        "sh", "cat", "ls", "id", "true", "sleep", "stat", "stty", "hostname", "mkdir", "touch", "grep", "tty", "env",
        "readlink", "dd", "ps", "mount", "echo", "kill", "mknod", "pwd", "unshare", "test", "head", "wc", "rm",
        "uname", "ionice", "awk", "sort",
    ] {
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
            filter: None,
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
        let container = self.create(stdio)?;
        let started = self.native.start(&container);
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
        let path = format!("/cofferdam-{}", self.id);
        let group = Cgroup::open(&self.native.layout, &path);
        let found = group.is_ok();
        if let Ok(group) = group {
            let _ = group.kill();
            let _ = group.remove();
        }
        if !std::thread::panicking() {
            assert!(!left, "a mount is left");
            assert!(!found, "a cgroup is left");
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
            "cgroupsPath": format!("/cofferdam-{id}"),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/acpi", "/proc/scsi", "/sys/firmware", "/proc/nonexistent"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    })
}

fn status_field(status: &str, field: &str) -> String {
    let line = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {status}")).trim().to_owned()
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
    let container = f.args(&["cat"]).create(stdio).unwrap();
    f.native.start(&container).unwrap();
    (container, hold)
}

fn exec(f: &Fixture, container: &Container, spec: Value) -> Result<(u32, String)> {
    let null = File::open("/dev/null").unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: writer.as_fd(), stderr: writer.as_fd() };
    let spec: ProcessSpec = serde_json::from_value(spec).unwrap();
    let process = f.native.exec(container, &ExecRequest { id: &f.id, process: &spec, stdio, group: None });
    drop(writer);
    let mut out = String::new();
    reader.read_to_string(&mut out).unwrap();
    let exit = process::waitid(&process?.pidfd, true).unwrap().unwrap();
    Ok((exit.status(), out))
}
