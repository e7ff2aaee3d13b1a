//! What a daemon to itself takes: it is ended and started, or its shims are killed.

use std::{
    process::{Command, Stdio as Pipes},
    time::{Duration, Instant},
};

use cofferdam_client::{Container, ProcessOptions, Stdio, Task, is_lost};
use cofferdam_integration::{Daemon, binary, count, until, until_async};

use crate::{
    place::{end, runs},
    snapshots::{Mounted, drivers, write},
};

/// A container that sleeps until it is killed, its task and its pid.
async fn asleep(daemon: &Daemon, id: &str) -> (Container, Task, u32) {
    asleep_by(daemon, id, "native").await
}

async fn asleep_by(daemon: &Daemon, id: &str, runtime: &str) -> (Container, Task, u32) {
    let mut request = daemon.run(id, ["sleep", "1000"]);
    request.container.runtime = runtime.into();
    let run = daemon.client().await.run(request).unwrap();
    let pid = run.started().await.unwrap();
    let container = daemon.open().await.containers().get(id);
    let task = container.task();
    (container, task, pid)
}

/// Ends the daemon in one way or another while somebody waits, and goes on with the next one.
async fn restarted(daemon: &Daemon, stop: impl FnOnce()) {
    let (_, task, pid) = asleep(daemon, "box").await;
    let wait = task.wait();
    stop();
    let lost = wait.await.unwrap_err();
    assert!(is_lost(&lost), "{lost}");
    assert!(runs(pid), "the container needs no daemon");
    let took = daemon.restart();
    assert!(took < Duration::from_secs(2), "it serves after {took:?}");
    let container = daemon.open().await.containers().get("box");
    let task = container.task();
    let wait = task.wait();
    assert_eq!(task.state().await.unwrap().pid, pid);
    task.kill(9, false).await.unwrap();
    assert_eq!(wait.await.unwrap().status, 137);
    assert!(!runs(pid));
    container.remove(false).await.unwrap();
}

pub async fn daemon_restart(daemon: &Daemon) {
    restarted(daemon, || daemon.stop()).await;
}

pub async fn daemon_restart_with_running_shim(daemon: &Daemon) {
    restarted(daemon, || daemon.kill9()).await;
}

/// Of whichever runtime. Half of them are quick enough: the machine may be busy with something else.
pub async fn shim_sigkilled(daemon: &Daemon) {
    for runtime in ["native", "runc"] {
        let mut took = Vec::new();
        for _ in 0..count(100, 5) {
            took.push(killed_with_its_shim(daemon, runtime).await);
        }
        took.sort_unstable();
        let (half, slowest) = (took[took.len() / 2], took[took.len() - 1]);
        let many = took.len();
        println!(
            "long-run: killed shims, {runtime} | {many} containers ended, half within {half:.1?}, all within {slowest:.1?}"
        );
        assert!(half < Duration::from_millis(100), "{runtime}: {took:?}");
    }
}

/// How long it took, for all of the container.
async fn killed_with_its_shim(daemon: &Daemon, runtime: &str) -> Duration {
    let (container, task, _) = asleep_by(daemon, "box", runtime).await;
    // All of its cgroup: what the first process started, and what came beside it.
    let family =
        ProcessOptions { args: ["sh", "-c", "sleep 1000 & sleep 1000"].map(String::from).into(), ..Default::default() };
    task.exec("family", &family, Stdio::default()).start().await.unwrap();
    let pids = until_async("all run", async || Some(task.pids().await.unwrap()).filter(|pids| pids.len() >= 3)).await;
    let system = daemon.client().await.system();
    let shim = system.shims().all().await.unwrap().remove(0);
    let shim = system.shim(&shim.id).await.unwrap().pid;
    let wait = task.wait();
    task.state().await.unwrap();
    let killed = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim as i32), nix::sys::signal::SIGKILL).unwrap();
    until("the container's processes end", || (!pids.iter().any(|pid| runs(*pid))).then_some(()));
    let took = killed.elapsed();
    let exit = wait.await.unwrap();
    assert_eq!((exit.status, &*exit.reason), (137, "shim lost"));
    container.remove(false).await.unwrap();
    took
}

/// What was made by hand is nobody's, and still no orphan.
pub async fn snapshots_outlive_the_daemon(daemon: &Daemon) {
    let mut mounts = Vec::new();
    for driver in drivers(&daemon.open().await) {
        driver.layer("base", "", |root| write(root, "base", "x", 0o644)).await;
        write(&driver.prepare("active", "base").await.unwrap().root(), "written", "y", 0o644);
        driver.view("view", "base").await.unwrap();
        for key in ["active", "view"] {
            let snapshot = driver.all.get(key);
            mounts.push((driver.name, key, snapshot.mounts().await.unwrap()));
        }
    }
    daemon.kill9();
    daemon.restart();
    let namespace = daemon.open().await;
    for (driver, key, before) in mounts {
        let all = namespace.snapshots(driver);
        let snapshot = all.get(key);
        let after = snapshot.mounts().await.unwrap();
        assert_eq!(after, before, "they are valid until it is removed");
        let mounted = Mounted::new(&after);
        assert!(mounted.root().join("base").exists());
        assert_eq!(mounted.root().join("written").exists(), key == "active", "{driver}");
        drop(mounted);
        snapshot.remove().await.unwrap();
    }
    for driver in drivers(&namespace) {
        driver.remove("base").await.unwrap();
    }
}

pub async fn new_errors_with_same_path_for_root_and_state(daemon: &Daemon) {
    let (both, link) = (daemon.path().join("both"), daemon.path().join("link"));
    let start = |root, state| {
        let mut command = Command::new(binary("cofferd"));
        command.arg("--root").arg(root).arg("--state").arg(state).arg("--shim").arg(binary("coffer-shim"));
        command.stdin(Pipes::null()).stdout(Pipes::null()).stderr(Pipes::piped());
        let mut child = command.spawn().unwrap();
        let ended = until("it ends", || child.try_wait().unwrap().map(|status| !status.success()));
        let said = child.wait_with_output().unwrap().stderr;
        assert!(ended && String::from_utf8_lossy(&said).contains("root and for the state"), "{said:?}");
    };
    start(&both, &both);
    assert!(!both.exists(), "nothing is made");
    // By another name it is the same all the same.
    std::fs::create_dir(&both).unwrap();
    std::os::unix::fs::symlink(&both, &link).unwrap();
    start(&both, &link);
    assert!(std::fs::read_dir(&both).unwrap().next().is_none());
}

/// This suite, with `--socket`: what can't be done there is left out, and it leaves the daemon as it was.
pub async fn against_a_daemon_that_already_runs(daemon: &Daemon) {
    let (kept, task, pid) = asleep(daemon, "kept").await;
    let run = |filter: &[&str]| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.arg("--socket").arg(daemon.socket()).args(filter).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        text
    };
    // All but what ends daemons, and what takes a criu of its.
    let said = run(&["--no-criu", "--skip", "daemons::", "--skip", "checkpoints::"]);
    for test in ["containers::new_container ", "tasks::", "execs::", "snapshots::", "streams::", "signals::"] {
        assert!(said.contains(test), "{test}: {said}");
    }
    assert!(said.contains(" 0 failed; 0 ignored"), "{said}");
    let said = run(&["daemons::"]);
    assert!(said.contains("daemons::daemon_restart") && said.contains(crate::WHY), "{said}");
    assert!(said.contains(" 0 passed; 0 failed; "), "{said}");

    assert_eq!(task.state().await.unwrap().pid, pid);
    let client = daemon.client().await;
    let names: Vec<_> = client.namespaces().list::<&str>(&[]).all().await.unwrap();
    let mut names: Vec<_> = names.into_iter().map(|info| info.name).collect();
    names.retain(|name| name != "default");
    assert_eq!(names, [daemon.namespace()]);
    end(&task).await;
    kept.remove(false).await.unwrap();
}
