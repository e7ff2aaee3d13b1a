//! Limits, figures and processes, of every runtime driver.

use cofferdam_client::{Container, Namespace, ProcessOptions, Status, Stdio, Subscription, Task};
use cofferdam_integration::{Daemon, bounded, until, until_async};
use cofferdam_sys::cgroup::{Cgroup, Layout};
use cofferdam_types::{Code, Event};
use serde_json::{Value, json};

use crate::with;

/// Each test is run with each.
const RUNTIMES: [&str; 2] = ["native", "runc"];

#[test]
fn limits_change_and_stay() {
    RUNTIMES.iter().for_each(|runtime| limits_change_and_stay_of(runtime));
}

#[test]
fn figures() {
    RUNTIMES.iter().for_each(|runtime| figures_of(runtime));
}

#[test]
fn out_of_memory() {
    RUNTIMES.iter().for_each(|runtime| out_of_memory_of(runtime));
}

#[test]
fn out_of_memory_while_the_daemon_is_away() {
    RUNTIMES.iter().for_each(|runtime| out_of_memory_while_the_daemon_is_away_of(runtime));
}

#[test]
fn processes() {
    RUNTIMES.iter().for_each(|runtime| processes_of(runtime));
}

const MIB: u64 = 1 << 20;
/// Takes memory until it is killed.
const GREEDY: &str = "exec tail /dev/zero";

fn bytes(value: Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Of memory, with or without a v1 controller of it.
fn limit(daemon: &Daemon, id: &str) -> u64 {
    let cgroup = Cgroup::open(&Layout::detect().unwrap(), &daemon.cgroup(id)).unwrap();
    cofferdam_sys::metrics::Metrics::read(&cgroup).unwrap().memory.expect("this host counts memory").limit
}

async fn spec(container: &Container) -> Value {
    serde_json::from_slice(&container.info().await.unwrap().spec.value).unwrap()
}

/// A container with so much memory, and no swap beside.
async fn small(namespace: &Namespace, runtime: &str, id: &str, memory: u64, script: &str) -> Container {
    let container = with(namespace, id, script, |c| {
        c.runtime = runtime.into();
        c.options.memory = memory;
    });
    let no_swap = bytes(json!({"memory": {"swap": memory, "limit": memory}}));
    container.update_resources(&no_swap).await.unwrap();
    container
}

fn limits_change_and_stay_of(runtime: &str) {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exec sleep 1000", |c| {
            c.runtime = runtime.into();
            c.options.memory = 32 * MIB;
        });
        let task = container.create_task(Stdio::default(), false);
        task.state().await.unwrap();
        assert_eq!(limit(&daemon, "box"), 32 * MIB);
        // Before the start as behind it.
        task.update(&bytes(json!({"memory": {"limit": 48 * MIB}}))).await.unwrap();
        assert_eq!(limit(&daemon, "box"), 48 * MIB);
        task.start().await.unwrap();
        task.update(&bytes(json!({"memory": {"limit": 64 * MIB}, "pids": {"limit": 50}}))).await.unwrap();
        assert_eq!(limit(&daemon, "box"), 64 * MIB);
        assert_eq!(task.metrics().await.unwrap().pids.unwrap().limit, 50);
        task.pause().await.unwrap();
        task.update(&bytes(json!({"pids": {"limit": 51}}))).await.unwrap();
        task.resume().await.unwrap();

        // What is refused changes nothing, on the host as on record.
        for (wrong, code) in [
            (json!({"memory": {"limit": 5}}), Code::InvalidArgument),
            (json!({"memory": {"limmit": 5}}), Code::InvalidArgument),
            (json!({}), Code::InvalidArgument),
        ] {
            let error = task.update(&bytes(wrong.clone())).await.unwrap_err();
            assert_eq!(error.code, code, "{wrong}: {error}");
        }
        assert!(task.update(b"{").await.is_err());
        let no_cpu = bytes(json!({"memory": {"limit": 40 * MIB}, "cpu": {"cpus": "4000"}}));
        task.update(&no_cpu).await.unwrap_err();
        assert_eq!(limit(&daemon, "box"), 64 * MIB);
        assert_eq!(task.metrics().await.unwrap().pids.unwrap().limit, 51);
        let resources = spec(&container).await["linux"]["resources"].clone();
        assert_eq!(resources["memory"]["limit"], 64 * MIB);
        assert_eq!((&resources["pids"]["limit"], &resources["cpu"]["cpus"]), (&json!(51), &Value::Null));

        // It ended: the record alone changes, and holds for the next task.
        task.kill(9, false).await.unwrap();
        task.wait().await.unwrap();
        task.update(&bytes(json!({"memory": {"limit": 72 * MIB}}))).await.unwrap();
        assert_eq!(task.state().await.unwrap().status, Status::Stopped);
        task.delete().await.unwrap();
        let gone = task.update(&bytes(json!({"memory": {"limit": 72 * MIB}}))).await.unwrap_err();
        assert_eq!(gone.code, Code::NotFound);
        container.update_resources(&bytes(json!({"pids": {"limit": 52}}))).await.unwrap();
        daemon.restart();
        let namespace = daemon.open().await;
        let container = namespace.containers().get("box");
        let task = container.create_task(Stdio::default(), false);
        assert_eq!(task.metrics().await.unwrap().pids.unwrap().limit, 52);
        assert_eq!(limit(&daemon, "box"), 72 * MIB);
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

fn figures_of(runtime: &str) {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep 1000";
        let container = with(&namespace, "box", script, |c| {
            c.runtime = runtime.into();
            c.options.memory = 32 * MIB;
            c.options.pids = 20;
        });
        let missing = container.task().metrics().await.unwrap_err();
        assert_eq!((missing.code, &*missing.kind), (Code::NotFound, "task"));
        let task = container.create_task(Stdio::default(), false);
        let made = task.metrics().await.unwrap();
        let memory = made.memory.expect("this host counts memory");
        assert_eq!(memory.limit, 32 * MIB);
        assert!(!memory.stat.is_empty() && memory.usage > 0 && memory.peak >= memory.usage, "{memory:?}");
        let pids = made.pids.unwrap();
        assert!(pids.current >= 1 && pids.limit == 20, "it is there, held before its program: {pids:?}");
        task.start().await.unwrap();
        until_async("it has used a millisecond", async || {
            let cpu = task.metrics().await.unwrap().cpu.unwrap();
            (cpu.usage > made.cpu.as_ref().unwrap().usage + 1_000_000).then_some(())
        })
        .await;
        task.kill(9, false).await.unwrap();
        task.wait().await.unwrap();
        // What it used is known until it is deleted.
        assert!(task.metrics().await.unwrap().cpu.unwrap().usage > 1_000_000);
        task.delete().await.unwrap();
        let gone = task.metrics().await.unwrap_err();
        assert_eq!((gone.code, &*gone.kind), (Code::NotFound, "task"));
    });
}

async fn next_of(events: &mut Subscription, topics: &[&str]) -> Event {
    loop {
        let event = events.next().await.unwrap().expect("no gap");
        if topics.contains(&event.topic.as_str()) {
            return event;
        }
    }
}

fn out_of_memory_of(runtime: &str) {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let mut events = namespace.events().subscribe(cofferdam_client::FROM_NOW, &[] as &[&str]);
        let greedy = small(&namespace, runtime, "greedy", 16 * MIB, GREEDY).await;
        let task = greedy.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        let exit = task.wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, "oom killed"));
        let shown = greedy.info().await.unwrap().task.unwrap();
        assert!(shown.ooms == 1 && shown.oomed <= exit.at && shown.oomed >= shown.started, "{shown:?}");
        let event = next_of(&mut events, &["/tasks/oom", "/tasks/exit"]).await;
        assert_eq!((event.topic.as_str(), &event.payload["container_id"]), ("/tasks/oom", &json!("greedy")));
        assert_eq!(next_of(&mut events, &["/tasks/oom", "/tasks/exit"]).await.topic, "/tasks/exit");
        greedy.remove(false).await.unwrap();

        // A child that dies of it is told of at once; its parent's end is another matter.
        let parent = small(&namespace, runtime, "parent", 16 * MIB, "tail /dev/zero; echo $?; exec sleep 1000").await;
        let task = parent.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        let event = next_of(&mut events, &["/tasks/oom", "/tasks/exit"]).await;
        assert_eq!((event.topic.as_str(), &event.payload["container_id"]), ("/tasks/oom", &json!("parent")));
        assert_eq!(task.metrics().await.unwrap().memory.unwrap().oom_kills, 1);
        task.kill(9, false).await.unwrap();
        let exit = task.wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, ""));
        assert_eq!(parent.info().await.unwrap().task.unwrap().ooms, 1);
        parent.remove(false).await.unwrap();

        // An exec that dies of it takes nobody along, and says why.
        let host = small(&namespace, runtime, "host", 16 * MIB, "exec sleep 1000").await;
        let task = host.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        let options = ProcessOptions { args: ["tail", "/dev/zero"].map(String::from).into(), ..Default::default() };
        let exec = task.exec("hungry", &options, Stdio::default());
        exec.start().await.unwrap();
        let exit = exec.wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, "oom killed"));
        assert_eq!(task.state().await.unwrap().status, Status::Running);
        host.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

fn out_of_memory_while_the_daemon_is_away_of(runtime: &str) {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        // It waits for a file of the host's, as it were: nothing happens before the daemon is gone.
        let script = "until [ -e /go ]; do usleep 2000; done";
        let ends = small(&namespace, runtime, "ends", 16 * MIB, &format!("{script}; {GREEDY}")).await;
        let stays =
            small(&namespace, runtime, "stays", 16 * MIB, &format!("{script}; tail /dev/zero; exec sleep 1000")).await;
        let start = async |container: &Container| -> (Task, u32) {
            let task = container.create_task(Stdio::default(), false);
            let pid = task.start().await.unwrap();
            (task, pid)
        };
        let (_, first) = start(&ends).await;
        let (_, second) = start(&stays).await;
        let cgroup = daemon.cgroup("stays");
        let mut roots = Vec::new();
        for pid in [first, second] {
            roots.push(std::fs::File::open(format!("/proc/{pid}/root")).unwrap());
        }
        let sequence =
            namespace.events().subscribe(0, &["topic==\"/tasks/start\""]).next().await.unwrap().unwrap().sequence;
        daemon.kill9();
        for root in &roots {
            use std::os::fd::AsRawFd as _;
            std::fs::write(format!("/proc/self/fd/{}/go", root.as_raw_fd()), "").unwrap();
        }
        let cgroup = Cgroup::open(&Layout::detect().unwrap(), &cgroup).unwrap();
        until("both ran out of memory", || {
            (cgroup.oom_kills().unwrap() == 1 && !std::fs::exists(format!("/proc/{first}")).unwrap()).then_some(())
        });
        daemon.restart();
        let namespace = daemon.open().await;
        let mut events = namespace.events().subscribe(sequence, &["topic==\"/tasks/oom\""]);
        let mut told: Vec<Value> = Vec::new();
        for _ in 0..2 {
            told.push(events.next().await.unwrap().unwrap().payload["container_id"].clone());
        }
        told.sort_by_key(Value::to_string);
        assert_eq!(told, ["ends", "stays"]);
        let exit = namespace.containers().get("ends").task().wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, "oom killed"));
        let stays = namespace.containers().get("stays").info().await.unwrap().task.unwrap();
        assert_eq!((stays.status, stays.ooms), (Status::Running, 1));

        // Found again, it is still watched; what was told is not told anew.
        let task = namespace.containers().get("stays").task();
        let options = ProcessOptions { args: ["tail", "/dev/zero"].map(String::from).into(), ..Default::default() };
        task.exec("hungry", &options, Stdio::default()).start().await.unwrap();
        let again = events.next().await.unwrap().unwrap().payload;
        assert_eq!((&again["container_id"], &again["count"]), (&json!("stays"), &json!(2)));
        for id in ["ends", "stays"] {
            namespace.containers().get(id).remove(true).await.unwrap();
        }
    });
}

fn processes_of(runtime: &str) {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "sleep 1001 & exec sleep 1000", |c| c.runtime = runtime.into());
        let task = container.create_task(Stdio::default(), false);
        let pid = task.start().await.unwrap();
        let options = ProcessOptions {
            args: ["sh", "-c", "sleep 1003 & exec sleep 1002"].map(String::from).into(),
            user: "7:8".into(),
            ..Default::default()
        };
        let exec = task.exec("probe", &options, Stdio::default());
        let exec_pid = exec.start().await.unwrap();
        let all = until_async("all four are there", async || {
            let all = task.processes().await.unwrap();
            let sleeps = all.iter().filter(|process| process.command[0] == "sleep").count();
            (sleeps == 4).then_some(all)
        })
        .await;
        let find = |seconds: &str| all.iter().find(|process| process.command[1] == seconds).unwrap();
        let first = find("1000");
        assert_eq!((first.pid, first.inner_pid, first.first, first.exec.as_str()), (pid, 1, true, ""));
        let child = find("1001");
        assert_eq!((child.parent, child.first, child.exec.as_str(), child.uid), (pid, false, "", 0));
        let probe = find("1002");
        assert_eq!((probe.pid, probe.exec.as_str(), probe.uid, probe.parent), (exec_pid, "probe", 7, 0));
        assert_eq!((find("1003").exec.as_str(), find("1003").parent), ("", exec_pid));
        let mut pids = task.pids().await.unwrap();
        pids.sort_unstable();
        let mut listed: Vec<u32> = all.iter().map(|process| process.pid).collect();
        listed.sort_unstable();
        assert_eq!(pids, listed);
        exec.kill(9, false).await.unwrap();
        exec.wait().await.unwrap();
        assert!(task.processes().await.unwrap().iter().all(|process| process.exec.is_empty()));
        task.kill(9, false).await.unwrap();
        task.wait().await.unwrap();
        let over = task.processes().await.unwrap_err();
        assert_eq!(over.code, Code::FailedPrecondition, "{over}");
        assert!(over.message.contains("is stopped"), "{over}");
    });
}
