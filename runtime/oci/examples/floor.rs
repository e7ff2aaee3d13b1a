//! Times the native driver: `cargo run --profile ci -p cofferdam-oci --example floor -- [runs]` (as root).
//!
//! Makes, starts, awaits and removes a busybox `true` in an overlay with every namespace, the usual mounts and cgroups,
//! and prints the 10th, 50th and 90th percentile of each part.

use std::{
    fs::File,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use cofferdam_oci::{CreateRequest, ExecRequest, Runtime, Stdio, native::Native};
use cofferdam_sys::cgroup;
use cofferdam_types::{Error, Id, Mount, Namespace, Result};
use oci_spec::runtime::{Process, Spec};

fn io(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::io("floor", "", what, &e)
}

fn main() -> Result<()> {
    let runs: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100);
    // On the disk that a snapshot would be on, not on a tmpfs.
    let dir = std::env::current_dir().map_err(io("current_dir"))?.join(format!("floor-{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(io("mkdir"))?;
    let done = measure(&dir, runs);
    std::fs::remove_dir_all(&dir).map_err(io("rmdir"))?;
    done
}

fn measure(dir: &std::path::Path, runs: usize) -> Result<()> {
    let lower = dir.join("lower");
    for sub in ["lower/bin", "lower/proc", "lower/dev", "lower/sys", "upper", "work", "bundle"] {
        std::fs::create_dir_all(dir.join(sub)).map_err(io("mkdir"))?;
    }
    std::fs::copy("/bin/busybox", lower.join("bin/true")).map_err(io("copying /bin/busybox"))?;
    let spec: Spec = serde_json::from_str(SPEC).map_err(|e| Error::internal("floor", "", e.to_string()))?;
    let rootfs = [Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options: ["lower", "upper", "work"].map(|d| format!("{d}dir={}", dir.join(d).display())).into(),
    }];
    let native = Native::new()?;
    let namespace = Namespace::new("floor")?;
    let bundle_path = dir.join("bundle");
    let bundle = File::open(&bundle_path).map_err(io("open"))?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(io("open"))?;
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let mut times: [Vec<Duration>; 5] = Default::default();
    for run in 0..runs {
        let id = Id::new(format!("floor-{}-{run}", std::process::id()))?;
        let begin = Instant::now();
        let container = native.create(&CreateRequest {
            id: &id,
            namespace: &namespace,
            bundle: bundle.as_fd(),
            bundle_path: &bundle_path,
            spec: &spec,
            rootfs: &rootfs,
            stdio,
            filter: None,
        })?;
        let created = Instant::now();
        native.start(&container)?;
        let started = Instant::now();
        cofferdam_sys::process::waitid(&container.init.pidfd, true).map_err(io("waitid"))?;
        let ended = Instant::now();
        native.delete(&container)?;
        let deleted = Instant::now();
        let parts = [created - begin, started - created, ended - started, deleted - ended, deleted - begin];
        times.iter_mut().zip(parts).for_each(|(list, time)| list.push(time));
    }
    for (name, list) in ["create", "start", "run", "delete", "total"].into_iter().zip(&mut times) {
        print(name, list);
    }
    execs(&native, &namespace, &bundle, &bundle_path, &spec, &rootfs, runs)
}

/// Times one more process in a container that runs.
fn execs(
    native: &Native,
    namespace: &Namespace,
    bundle: &File,
    bundle_path: &std::path::Path,
    spec: &Spec,
    rootfs: &[Mount],
    runs: usize,
) -> Result<()> {
    let (stdin, hold) = std::io::pipe().map_err(io("pipe"))?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(io("open"))?;
    let mut spec = spec.clone();
    let process = spec.process().clone().unwrap_or_default();
    // The file is busybox, which goes by the name in argv[0].
    let mut sleeper: Process = process.clone();
    sleeper.set_args(Some(vec!["cat".into()])).set_env(Some(vec!["PATH=/bin".into()]));
    std::os::unix::fs::symlink("true", bundle_path.join("../lower/bin/cat")).map_err(io("symlink"))?;
    spec.set_process(Some(sleeper));
    let id = Id::new(format!("floor-{}-exec", std::process::id()))?;
    let stdio = Stdio::Fds { stdin: stdin.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let bundle = bundle.as_fd();
    let request = CreateRequest { id: &id, namespace, bundle, bundle_path, spec: &spec, rootfs, stdio, filter: None };
    let container = native.create(&request)?;
    native.start(&container)?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..runs {
        let begin = Instant::now();
        let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
        let child = native.exec(&container, &ExecRequest { id: &id, process: &process, stdio, group: None })?;
        times[0].push(begin.elapsed());
        cofferdam_sys::process::waitid(&child.pidfd, true).map_err(io("waitid"))?;
        times[1].push(begin.elapsed());
    }
    print("exec", &mut times[0]);
    print("exec+wait", &mut times[1]);
    drop(hold);
    cofferdam_sys::process::waitid(&container.init.pidfd, true).map_err(io("waitid"))?;
    native.delete(&container)?;
    cgroup::prune_above(&cgroup::Layout::detect()?, &container.cgroup, 0)
}

fn print(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).map_or(0, Duration::as_micros);
    println!("{name:10} p10 {:6} us   p50 {:6} us   p90 {:6} us", at(10), at(50), at(90));
}

const SPEC: &str = r#"{
  "ociVersion": "1.2.0", "root": {"path": "rootfs"}, "hostname": "floor",
  "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/", "noNewPrivileges": true,
    "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL"]}},
  "mounts": [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]}
  ],
  "linux": {
    "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}, {"type": "cgroup"}],
    "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
      "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/scsi"],
    "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
  }
}"#;
