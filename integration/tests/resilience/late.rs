//! What takes its time: starts and deletions that meet, hooks behind the end, shims that stand still meanwhile.

use std::time::{Duration, Instant};

use cofferdam_client::{Container, ContainerRequest, Namespace, Status, Stdio};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, script, until_async};
use cofferdam_types::Code;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{runs, send, shim_of, start};

/// A container of a raw spec: what `script` makes, and `hooks`. Of the options it has the cgroup that is named there.
pub async fn hooked(namespace: &Namespace, request: &ContainerRequest, script: &str, hooks: Value) -> Container {
    let mut model = ContainerRequest { id: "model".into(), ..ContainerRequest::default() };
    model.options.cgroup = request.options.cgroup.clone();
    model.options.args = ["sh", "-c", script].map(String::from).into();
    let image = namespace.images().get(BUSYBOX);
    let model = namespace.containers().create(&image, &model);
    let mut spec: Value = serde_json::from_slice(&model.info().await.unwrap().spec.value).unwrap();
    model.remove(false).await.unwrap();
    if request.options.cgroup.is_empty() {
        spec["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    }
    spec["hooks"] = hooks;
    let request = ContainerRequest { options: Default::default(), ..request.clone() };
    namespace.containers().create_from_spec(Some(&image), &request, &serde_json::to_vec(&spec).unwrap())
}

/// A hook of the host's shell.
pub fn hook(script: &str) -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}])
}

/// In one burst: whoever deletes without force doesn't kill what somebody else has just started.
#[test]
fn a_deletion_beside_a_start_kills_nothing() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        for runtime in ["native", "runc"] {
            for task_alone in [true, false] {
                let mut request = ContainerRequest { id: "box".into(), runtime: runtime.into(), ..Default::default() };
                request.options.args = ["sleep", "1000"].map(String::from).into();
                let container = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
                let task = container.create_task(Stdio::default(), false);
                task.state().await.unwrap();
                let (started, deleted) = tokio::join!(task.start(), async {
                    if task_alone { task.delete().await.map(drop) } else { container.remove(false).await }
                });
                let (pid, error) = (started.unwrap(), deleted.unwrap_err());
                assert_eq!(error.code, Code::FailedPrecondition, "{runtime}: {error}");
                assert!(error.message.starts_with("is running"), "{runtime}: {error}");
                let state = task.state().await.unwrap();
                assert_eq!((state.status, state.pid), (Status::Running, pid));
                assert!(runs(pid));
                container.remove(true).await.unwrap();
            }
        }
    });
    daemon.settles(&before);
}

/// `poststop` has the time that it is said to have, and so has a foreign runtime for its deletion.
#[test]
fn what_comes_behind_the_end_has_its_time() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let runtime = daemon.path().join("slow");
    script(&runtime, "#!/bin/sh\ncase \" $* \" in *' delete '*) sleep 6 ;; esac\nexec runc \"$@\"\n");
    bounded(async {
        let namespace = daemon.open().await;
        let all = ["ended", "ended-removed", "forced", "foreign"].map(async |id| {
            let mark = daemon.path().join(id);
            let mut request = ContainerRequest { id: id.into(), ..ContainerRequest::default() };
            if id == "foreign" {
                request.runtime = runtime.to_str().unwrap().into();
            }
            let slow = if id == "foreign" { "" } else { "sleep 6; " };
            let hooks = json!({"poststop": hook(&format!("{slow}touch {}", mark.display()))});
            (id, mark, request, hooks)
        });
        let mut ready = Vec::new();
        for one in all {
            let (id, mark, request, hooks) = one.await;
            let script = if id == "forced" { "exec sleep 1000" } else { "exit 3" };
            let container = hooked(&namespace, &request, script, hooks).await;
            let task = container.create_task(Stdio::default(), false);
            task.start().await.unwrap();
            if id != "forced" {
                assert_eq!(task.wait().await.unwrap().status, 3);
            }
            ready.push((id, mark, container));
        }
        let went = ready.into_iter().map(async |(id, mark, container)| {
            let began = Instant::now();
            match id {
                "ended" | "foreign" => assert_eq!(container.task().delete().await.unwrap().status, 3, "{id}"),
                _ => container.remove(id == "forced").await.unwrap(),
            }
            assert!(mark.exists(), "{id}: what was to run did not, after {:?}", began.elapsed());
            if matches!(id, "ended" | "foreign") {
                container.remove(false).await.unwrap();
            }
        });
        futures::future::join_all(went).await;
    });
    assert!(!daemon.log().contains("doesn't delete it"), "{}", daemon.log());
    daemon.settles(&before);
}

/// A start that its shim doesn't answer has a deadline; what the shim does of it later is what happened.
#[test]
fn a_start_that_is_not_answered_has_a_deadline() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let namespace = daemon.open().await;
        let mut request = ContainerRequest { id: "box".into(), ..ContainerRequest::default() };
        request.options.args = ["sleep", "1000"].map(String::from).into();
        let container = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
        let task = container.create_task(Stdio::default(), false);
        let shim = shim_of(task.state().await.unwrap().pid);
        send(shim, Signal::SIGSTOP);
        let began = Instant::now();
        let error = task.start().await.unwrap_err();
        assert_eq!((error.code, &*error.kind, &*error.id), (Code::DeadlineExceeded, "task", "box"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
        // It is alone in that: others start.
        let (other, _) = start(&client, daemon.run("other", ["true"])).await;
        assert_eq!(other.wait().await.unwrap().status, 0);
        other.container().remove(false).await.unwrap();
        // Whether it runs nobody knows.
        assert_eq!(task.delete().await.unwrap_err().code, Code::Unavailable);
        send(shim, Signal::SIGCONT);
        let state =
            until_async("it runs", async || task.state().await.ok().filter(|state| state.status == Status::Running))
                .await;
        assert!(runs(state.pid));
        until_async("that is recorded", async || {
            let info = container.info().await.unwrap();
            info.task.filter(|task| task.pid == state.pid)
        })
        .await;
        let error = task.start().await.unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition, "{error}");

        // An exec is started in time or not, as well.
        let options =
            cofferdam_client::ProcessOptions { args: ["sleep", "1000"].map(String::from).into(), ..Default::default() };
        let exec = task.exec("more", &options, Stdio::default());
        exec.state().await.unwrap();
        send(shim, Signal::SIGSTOP);
        assert_eq!(exec.start().await.unwrap_err().code, Code::DeadlineExceeded);
        send(shim, Signal::SIGCONT);
        until_async("the exec runs", async || exec.state().await.ok().filter(|state| state.status == Status::Running))
            .await;
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

/// So has a change of limits; what the shim does of it later is on record as well as in force.
#[test]
fn limits_that_change_late_are_on_record_then() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (run, pid) = start(&client, daemon.run("box", ["sleep", "1000"])).await;
        let shim = shim_of(pid);
        // While its shim stands still nobody says what the limits are, but a list says when its record was changed.
        let changed = async || {
            let all = client.namespace(daemon.namespace()).containers().list::<&str>(&[]).all().await.unwrap();
            all.iter().find(|info| info.id == "box").unwrap().updated
        };
        let before = changed().await;
        send(shim, Signal::SIGSTOP);
        let error = run.task().update(br#"{"pids": {"limit": 50}}"#).await.unwrap_err();
        assert_eq!((error.code, &*error.kind), (Code::DeadlineExceeded, "shim"), "{error}");
        let recorded = async || {
            let spec: Value = serde_json::from_slice(&run.container().info().await.ok()?.spec.value).unwrap();
            spec.pointer("/linux/resources/pids/limit").and_then(Value::as_i64)
        };
        assert_eq!(changed().await, before, "nobody knows yet that it will be in force");
        send(shim, Signal::SIGCONT);
        until_async("it is on record", async || (recorded().await == Some(50)).then_some(())).await;
        assert_ne!(changed().await, before);
        assert_eq!(run.task().metrics().await.unwrap().pids.unwrap().limit, 50);
        run.container().remove(true).await.unwrap();
    });
}

/// Nor does a checkpoint wait for ever; the container goes on, and there is no image.
#[test]
fn a_checkpoint_that_is_not_answered_has_a_deadline() {
    let daemon = Daemon::with_flags(Box::leak(Box::new(["--criu", cofferdam_integration::criu()])));
    daemon.import_busybox();
    bounded(async {
        let client = daemon.client().await;
        let namespace = daemon.open().await;
        let (run, pid) = start(&client, daemon.run("box", ["sleep", "1000"])).await;
        let shim = shim_of(pid);
        send(shim, Signal::SIGSTOP);
        let options = cofferdam_client::CheckpointOptions { name: "cp".into(), ..Default::default() };
        let began = Instant::now();
        let error = run.task().checkpoint(&options).wait().await.unwrap_err();
        assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        send(shim, Signal::SIGCONT);
        let state = until_async("it answers, and runs", async || {
            run.task().state().await.ok().filter(|state| state.status == Status::Running)
        })
        .await;
        assert_eq!(state.pid, pid);
        assert_eq!(namespace.images().get("cp").info().await.unwrap_err().code, Code::NotFound);
        run.container().remove(true).await.unwrap();
    });
}

/// What is stored is not taken back because nobody can say whether the container ended behind it.
#[test]
fn a_checkpoint_whose_container_can_not_be_ended_is_kept() {
    let daemon = Daemon::with_flags(Box::leak(Box::new(["--criu", cofferdam_integration::criu()])));
    daemon.import_busybox();
    bounded(async {
        let client = daemon.client().await;
        // Enough to be stored for a while.
        let script = "dd if=/dev/urandom of=/dev/shm/much bs=1M count=56; echo there > /ready; exec sleep 1000";
        let (run, pid) = start(&client, daemon.run("box", ["sh", "-c", script])).await;
        let ready = format!("/proc/{pid}/root/ready");
        until_async("it has much", async || std::fs::read(&ready).is_ok_and(|text| !text.is_empty()).then_some(()))
            .await;
        let shim = shim_of(pid);
        let options = cofferdam_client::CheckpointOptions { name: "test/cp:1".into(), ..Default::default() };
        let job = run.task().checkpoint(&options);
        // It has been written, and the shim is asked for nothing until it is to end.
        until_async("it is being stored", async || (!job.info().await.unwrap().items.is_empty()).then_some(())).await;
        send(shim, Signal::SIGSTOP);
        let error = job.wait().await.unwrap_err();
        assert!(error.message.contains("is stored, but it could not be ended"), "{error}");
        let name = "docker.io/test/cp:1";
        assert_eq!(daemon.open().await.images().get(name).info().await.unwrap().name, name);
        send(shim, Signal::SIGCONT);
        until_async("its shim answers", async || run.task().pids().await.map(drop).or_else(ended).ok()).await;
        run.container().remove(true).await.unwrap();
    });
}

/// That it has ended is an answer.
fn ended(error: cofferdam_types::Error) -> cofferdam_types::Result<()> {
    if error.code == Code::FailedPrecondition { Ok(()) } else { Err(error) }
}
