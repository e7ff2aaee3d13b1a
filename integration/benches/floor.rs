//! The floor under the life of a container: `floor DIRECTORY N SYNCS WHAT` does, in one small program, what the kernel has to do
//! for `/bin/true` in a container, with as many durable writes as the daemon makes for it (`figures` counts them). DIRECTORY is on
//! the disk that the store is on. One JSON line, in the form of `life`, under the name WHAT.

use std::{
    ffi::CString,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, clone, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::{chdir, execv, pivot_root, sethostname},
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [dir, count, syncs, what] = &arguments[..] else {
        eprintln!("usage: floor DIRECTORY N SYNCS WHAT (integration/benches/figures runs it)");
        return;
    };
    let [count, syncs] = [count, syncs].map(|number| number.parse::<usize>().expect("a number"));
    let dir = Path::new(dir).join(format!("floor-{}", std::process::id()));
    for sub in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(dir.join("lower").join(sub)).expect("a lower layer");
    }
    fs::create_dir(dir.join("root")).expect("a place for the root");
    fs::copy("/bin/busybox", dir.join("lower/bin/true")).expect("busybox, static");
    let table =
        File::options().create(true).truncate(true).write(true).open(dir.join("table")).expect("a file to sync");
    table.write_all_at(&[0; 64 << 10], 0).expect("room on the disk");
    let hierarchies = hierarchies();
    life(&dir, &table, syncs, &hierarchies);
    let mut samples: Vec<f64> = (0..count).map(|_| life(&dir, &table, syncs, &hierarchies)).collect();
    fs::remove_dir_all(&dir).expect("nothing in use");
    samples.sort_by(f64::total_cmp);
    let line = serde_json::json!({
        "peer": "floor", "what": what, "unit": "ms", "n": samples.len(),
        "min": samples[0], "median": samples[samples.len() / 2], "max": samples[samples.len() - 1], "samples": samples,
    });
    println!("{line}");
}

/// Where cgroups are made: each hierarchy that is mounted.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("procfs");
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|f| f.len() > 2 && matches!(f[2], "cgroup" | "cgroup2")).map(|f| f[1].into()).collect()
}

fn life(dir: &Path, table: &File, syncs: usize, hierarchies: &[PathBuf]) -> f64 {
    // Half of them before the process is there, and the rest behind its end.
    let before = syncs / 2;
    let durable = |times: usize| {
        for _ in 0..times {
            table.write_all_at(&[1; 4096], 0).expect("room on the disk");
            table.sync_data().expect("a disk");
        }
    };
    let groups: Vec<PathBuf> = hierarchies.iter().map(|at| at.join(format!("floor-{}", std::process::id()))).collect();
    let began = Instant::now();
    durable(before);
    for sub in ["upper", "work"] {
        fs::create_dir(dir.join(sub)).expect("a writable layer");
    }
    for group in &groups {
        fs::create_dir(group).expect("a cgroup");
        // In v1 a group has none at first.
        for cpuset in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read(group.with_file_name(cpuset)) {
                fs::write(group.join(cpuset), all).expect("its processors");
            }
        }
    }
    let flags =
        CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    let mut stack = vec![0; 256 << 10];
    // SAFETY: this program has one thread, and the child a copy of its memory and a stack of its own.
    let child = unsafe { clone(Box::new(|| inside(dir, &groups)), &mut stack, flags, Some(libc::SIGCHLD)) };
    let ended = waitpid(child.expect("a child"), None).expect("its end");
    assert!(matches!(ended, WaitStatus::Exited(_, 0)), "{ended:?}");
    for group in &groups {
        fs::remove_dir(group).expect("an empty cgroup");
    }
    for sub in ["upper", "work"] {
        fs::remove_dir_all(dir.join(sub)).expect("nothing in use");
    }
    durable(syncs - before);
    began.elapsed().as_secs_f64() * 1e3
}

/// The child: never returns, but for an error.
fn inside(dir: &Path, groups: &[PathBuf]) -> isize {
    for group in groups {
        fs::write(group.join("cgroup.procs"), "0").expect("its cgroup");
    }
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWCGROUP).expect("namespaces");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    let root = dir.join("root");
    let layers = ["lower", "upper", "work"].map(|part| format!("{part}dir={}", dir.join(part).display())).join(",");
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(&*layers)).expect("an overlay");
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let inner = |kind: &str, at: &str, flags: MsFlags, options: &str| {
        let at = root.join(at);
        let _ = fs::create_dir(&at);
        mount(Some(kind), &at, Some(kind), flags, Some(options)).unwrap_or_else(|e| panic!("{kind}: {e}"));
    };
    inner("proc", "proc", quiet, "");
    inner("tmpfs", "dev", MsFlags::MS_NOSUID, "mode=755");
    inner("devpts", "dev/pts", quiet, "newinstance,ptmxmode=0666,mode=0620");
    inner("tmpfs", "dev/shm", quiet, "mode=1777");
    inner("mqueue", "dev/mqueue", quiet, "");
    inner("sysfs", "sys", quiet | MsFlags::MS_RDONLY, "");
    chdir(&root).and_then(|()| pivot_root(".", ".")).and_then(|()| umount2(".", MntFlags::MNT_DETACH)).expect("a root");
    chdir("/").and_then(|()| sethostname("floor")).expect("a name");
    let program = CString::from(c"/bin/true");
    let error = execv(&program, &[&program]).expect_err("never returns");
    eprintln!("/bin/true: {error}");
    1
}
