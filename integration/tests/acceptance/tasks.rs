//! A container's first process, and what is done with it as a whole.

use cofferdam_client::{FROM_NOW, Status, Stdio, Subscription};
use cofferdam_integration::until_async;
use cofferdam_types::{Code, Event, Timestamp};
use serde_json::{Value, json};

use crate::place::{Place, end, heard, runs, sh};

const MIB: u64 = 1 << 20;

pub async fn container_start(place: &Place) {
    let container = place.container("exit 7");
    let task = container.create_task(Stdio::default(), false);
    let wait = task.wait();
    let made = task.state().await.unwrap();
    assert_eq!(made.status, Status::Created);
    assert!(made.pid > 0, "{made:?}");
    assert_eq!(task.start().await.unwrap(), made.pid);
    let exit = wait.await.unwrap();
    assert_eq!(exit.status, 7);
    assert_eq!(task.delete().await.unwrap(), exit);
}

pub async fn container_no_binary_exists(place: &Place) {
    let container = place.with("", |request| request.options.args = vec!["nothing".into()]);
    let error = container.create_task(Stdio::default(), false).start().await.unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error}");
    assert!(error.to_string().contains("nothing"), "{error}");
}

/// Runs a script to its end: what it said.
async fn said(place: &Place, script: &str, change: impl FnOnce(&mut cofferdam_client::ContainerRequest)) -> String {
    let container = place.with(script, change);
    let (stdio, said) = heard();
    let task = container.create_task(stdio, false);
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().status, 0);
    said.text().await
}

pub async fn container_hostname(place: &Place) {
    let name = said(place, "hostname", |request| request.options.hostname = "chosen".into()).await;
    assert_eq!(name, "chosen\n");
}

pub async fn container_exited_at_set(place: &Place) {
    let container = place.container("exit 0");
    let task = container.create_task(Stdio::default(), false);
    let before = Timestamp::now();
    task.start().await.unwrap();
    let exit = task.wait().await.unwrap();
    let info = container.info().await.unwrap().task.unwrap();
    assert!(before <= info.started && info.started <= exit.at && exit.at <= Timestamp::now(), "{info:?}");
}

pub async fn container_username(place: &Place) {
    assert_eq!(said(place, "id -u", |request| request.options.user = "squid".into()).await, "31\n");
}

pub async fn container_user_id(place: &Place) {
    assert_eq!(said(place, "echo $(id -u):$(id -g)", |request| request.options.user = "3".into()).await, "3:4\n");
}

pub async fn wait_stopped_task(place: &Place) {
    let container = place.container("exit 7");
    let task = container.create_task(Stdio::default(), false);
    task.start().await.unwrap();
    let exit = task.wait().await.unwrap();
    assert_eq!(exit.status, 7);
    assert_eq!(task.wait().await.unwrap(), exit);
    assert_eq!(place.elsewhere().await.containers().get("box").task().wait().await.unwrap(), exit);
}

pub async fn task_force_delete(place: &Place) {
    let (container, task) = place.asleep().await;
    let error = task.delete().await.unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    let pid = task.state().await.unwrap().pid;
    assert!(runs(pid), "the refusal hurt nobody");
    container.remove(true).await.unwrap();
    assert!(!runs(pid));
}

pub async fn duplicate_task_create(place: &Place) {
    let (container, task) = place.asleep().await;
    let pid = task.state().await.unwrap().pid;
    let error = container.create_task(Stdio::default(), false).state().await.unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    let state = container.task().state().await.unwrap();
    assert_eq!((state.status, state.pid), (Status::Running, pid));
    end(&task).await;
    task.delete().await.unwrap();
    container.create_task(Stdio::default(), false).state().await.unwrap();
}

pub async fn container_pids(place: &Place) {
    let (_, task) = place.asleep().await;
    let pid = task.state().await.unwrap().pid;
    assert_eq!(task.pids().await.unwrap(), [pid]);
}

pub async fn container_metrics(place: &Place) {
    let other = place.with("exit 0", |request| request.id = "other".into());
    other.create_task(Stdio::default(), false).state().await.unwrap();
    let container = place.with("exit 0", |request| request.options.pids = 23);
    let task = container.create_task(Stdio::default(), false);
    // They are this container's and no other's.
    let pids = task.metrics().await.unwrap().pids.unwrap();
    assert!(pids.current >= 1 && pids.limit == 23, "{pids:?}");
    assert_eq!(other.task().metrics().await.unwrap().pids.unwrap().limit, 0);
}

pub async fn deleted_container_metrics(place: &Place) {
    let (container, task) = place.asleep().await;
    task.metrics().await.unwrap();
    end(&task).await;
    task.delete().await.unwrap();
    assert_eq!(task.metrics().await.unwrap_err().code, Code::NotFound);
    container.remove(false).await.unwrap();
    assert_eq!(task.metrics().await.unwrap_err().code, Code::NotFound);
}

pub async fn task_update(place: &Place) {
    let container = place.with("exec sleep 1000", |request| request.options.memory = 32 * MIB);
    let task = container.create_task(Stdio::default(), false);
    task.start().await.unwrap();
    // As it stands in the cgroup, of either version.
    let limit = async || {
        let (stdio, said) = heard();
        let files = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max 2>/dev/null; exit 0";
        let exec = task.exec("", &sh(files), stdio);
        exec.start().await.unwrap();
        exec.wait().await.unwrap();
        said.text().await
    };
    assert_eq!(limit().await, "33554432\n");
    let limits = json!({"memory": {"limit": 64 * MIB}}).to_string();
    task.update(limits.as_bytes()).await.unwrap();
    assert_eq!(limit().await, "67108864\n");
    assert_eq!(task.metrics().await.unwrap().memory.unwrap().limit, 64 * MIB);
}

async fn next(events: &mut Subscription) -> Event {
    events.next().await.unwrap().expect("no gap")
}

pub async fn oom_event(place: &Place) {
    let mut events = place.namespace.events().subscribe(FROM_NOW, &["topic==\"/tasks/oom\"", "topic==\"/tasks/exit\""]);
    let container = place.with("exec tail /dev/zero", |request| request.options.memory = 16 * MIB);
    // Nor swap beside it.
    let limits = json!({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}}).to_string();
    container.update_resources(limits.as_bytes()).await.unwrap();
    let task = container.create_task(Stdio::default(), false);
    task.start().await.unwrap();
    let exit = task.wait().await.unwrap();
    assert_eq!((exit.status, &*exit.reason), (137, "oom killed"));
    let (oom, end) = (next(&mut events).await, next(&mut events).await);
    assert_eq!((&*oom.topic, &*end.topic), ("/tasks/oom", "/tasks/exit"));
    for event in [oom, end] {
        assert_eq!((&event.payload["container_id"], &*event.namespace), (&Value::from("box"), place.name()));
    }
    assert_eq!(container.info().await.unwrap().task.unwrap().ooms, 1);
}

pub async fn pause_resume(place: &Place) {
    let mut events =
        place.namespace.events().subscribe(FROM_NOW, &["topic==\"/tasks/paused\"", "topic==\"/tasks/resumed\""]);
    let container = place.container("while :; do :; done");
    let task = container.create_task(Stdio::default(), false);
    task.start().await.unwrap();
    let used = async || task.metrics().await.unwrap().cpu.unwrap().usage;
    let first = used().await;
    until_async("it works", async || (used().await > first).then_some(())).await;
    task.pause().await.unwrap();
    assert_eq!(task.state().await.unwrap().status, Status::Paused);
    let still = used().await;
    for _ in 0..20 {
        assert_eq!(used().await, still, "it stands still");
    }
    task.resume().await.unwrap();
    assert_eq!(task.state().await.unwrap().status, Status::Running);
    until_async("it goes on", async || (used().await > still).then_some(())).await;
    assert_eq!(
        (next(&mut events).await.topic, next(&mut events).await.topic),
        ("/tasks/paused".into(), "/tasks/resumed".into())
    );
    end(&task).await;
}
