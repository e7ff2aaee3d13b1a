//! A runtime that hangs, or takes its time: whoever has nothing to do with it does not notice.

use cofferdam_client::{ContainerRequest, Namespace, Status, Stdio, Task};
use cofferdam_integration::{Daemon, bounded, input, output, script as install, until_async};
use cofferdam_types::Code;

use crate::with;

/// It hangs at what the container's id says.
const WRAPPER: &str = r#"#!/bin/sh
verb=none
for word; do
    case $word in create | start | pause | exec | delete | kill) verb=$word; break ;; esac
done
case "$*" in
    *-hang-$verb*) exec sleep 1000 ;;
    *) exec runc "$@" ;;
esac
"#;

fn wrapper(daemon: &Daemon) -> String {
    let path = daemon.path().join("runtime");
    install(&path, WRAPPER);
    path.to_str().unwrap().to_owned()
}

fn in_pod(runtime: &str) -> impl FnOnce(&mut ContainerRequest) {
    let runtime = runtime.to_owned();
    move |request| {
        request.group = "pod".into();
        request.runtime = runtime;
    }
}

/// That one echoes, is followed, signalled and told of, and another can come beside it.
async fn goes_on(namespace: &Namespace, runtime: &str, echo: &mut std::fs::File, task: &Task, n: u32) {
    use std::io::Write as _;
    let (stdout, arrivals) = output();
    let _attached = task.attach(Stdio { stdout, ..Stdio::default() });
    assert_eq!(task.state().await.unwrap().status, Status::Running);
    // Again and again: he who follows gets what comes from then on.
    let feed = &*echo;
    until_async("it echoes", async || {
        let mut feed = feed;
        feed.write_all(b"hello\n").unwrap();
        String::from_utf8_lossy(&arrivals.so_far()).contains("hello").then_some(())
    })
    .await;
    let other = with(namespace, &format!("other{n}"), "exit 3", in_pod(runtime));
    let brief = other.create_task(Stdio::default(), false);
    brief.start().await.unwrap();
    assert_eq!(brief.wait().await.unwrap().status, 3);
    other.remove(false).await.unwrap();
}

#[test]
fn a_runtime_that_hangs_holds_up_its_own_container_alone() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let runtime = wrapper(&daemon);
    bounded(async {
        let namespace = daemon.open().await;
        let echo = with(&namespace, "echo", "exec cat", in_pod("native"));
        let (stdin, mut feed) = input();
        let task = echo.create_task(Stdio { stdin, ..Stdio::default() }, true);
        task.start().await.unwrap();

        // A start: the container can be killed meanwhile, as any that was made.
        let hangs = with(&namespace, "x-hang-start", "exec sleep 1000", in_pod(&runtime));
        let hung = hangs.create_task(Stdio::default(), false);
        hung.state().await.unwrap();
        let starting = tokio::task::spawn_local({
            let hung = hung.clone();
            async move { hung.start().await }
        });
        until_async("it starts", async || {
            // The state is the daemon's: the shim has it before.
            hangs_at(&daemon, "x-hang-start").then_some(())
        })
        .await;
        goes_on(&namespace, &runtime, &mut feed, &task, 0).await;
        hung.kill(9, false).await.unwrap();
        assert_eq!(hung.wait().await.unwrap().status, 137);
        hangs.remove(true).await.unwrap();
        assert!(starting.await.unwrap().is_err());
        assert!(!hangs_at(&daemon, "x-hang-start"), "it was given up");

        // A removal under a start.
        let hangs = with(&namespace, "y-hang-start", "exec sleep 1000", in_pod(&runtime));
        let hung = hangs.create_task(Stdio::default(), false);
        hung.state().await.unwrap();
        let starting = tokio::task::spawn_local({
            let hung = hung.clone();
            async move { hung.start().await }
        });
        until_async("it starts", async || hangs_at(&daemon, "y-hang-start").then_some(())).await;
        hangs.remove(true).await.unwrap();
        assert!(starting.await.unwrap().is_err());
        goes_on(&namespace, &runtime, &mut feed, &task, 1).await;

        // An exec.
        let hangs = with(&namespace, "z-hang-exec", "exec sleep 1000", in_pod(&runtime));
        let hung = hangs.create_task(Stdio::default(), false);
        hung.start().await.unwrap();
        let exec = hung.exec("more", &crate::states::sleep(), Stdio::default());
        exec.state().await.unwrap();
        let starting = tokio::task::spawn_local(async move { exec.start().await });
        until_async("it is run", async || hangs_at(&daemon, "z-hang-exec").then_some(())).await;
        goes_on(&namespace, &runtime, &mut feed, &task, 2).await;
        assert!(!hung.pids().await.unwrap().is_empty());
        hangs.remove(true).await.unwrap();
        assert!(starting.await.unwrap().is_err());

        // A creation: there is a record of it, and nothing else.
        let hangs = with(&namespace, "v-hang-create", "exec sleep 1000", in_pod(&runtime));
        let hung = hangs.create_task(Stdio::default(), false);
        let making = tokio::task::spawn_local(async move { hung.state().await });
        until_async("it is made", async || hangs_at(&daemon, "v-hang-create").then_some(())).await;
        goes_on(&namespace, &runtime, &mut feed, &task, 3).await;
        hangs.remove(true).await.unwrap();
        assert!(making.await.unwrap().is_err());
        assert!(!hangs_at(&daemon, "v-hang-create"), "it was given up");

        // A freeze.
        let hangs = with(&namespace, "w-hang-pause", "exec sleep 1000", in_pod(&runtime));
        let hung = hangs.create_task(Stdio::default(), false);
        hung.start().await.unwrap();
        let pausing = tokio::task::spawn_local(async move { hung.pause().await });
        until_async("it is frozen", async || hangs_at(&daemon, "w-hang-pause").then_some(())).await;
        goes_on(&namespace, &runtime, &mut feed, &task, 4).await;
        hangs.remove(true).await.unwrap();
        assert!(pausing.await.unwrap().is_err());
        assert!(!hangs_at(&daemon, "w-hang-pause"), "it was given up");

        assert_eq!(task.state().await.unwrap().status, Status::Running, "the shim is the same");
        echo.remove(true).await.unwrap();
        assert_eq!(echo.info().await.unwrap_err().code, Code::NotFound);
    });
    daemon.settles(&before);
}

/// Whether an invocation of the runtime hangs: it is a `sleep` with the words of the runtime in front of it no more, so its
/// bundle tells.
fn hangs_at(daemon: &Daemon, id: &str) -> bool {
    let bundle = daemon.state().join("tasks").join(daemon.namespace()).join(id);
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let command = std::fs::read(path.join("cmdline")).ok()?;
        let cwd = std::fs::read_link(path.join("cwd")).ok()?;
        (command.starts_with(b"sleep\x001000\0") && cwd == bundle).then_some(())
    });
    all.count() > 0
}

/// What ends before its start is answered has a start and an end that are told.
#[test]
fn an_end_before_the_answer_to_the_start_is_told() {
    let daemon = Daemon::with_busybox();
    let runtime = daemon.path().join("slow");
    install(&runtime, "#!/bin/sh\nrunc \"$@\" || exit\ncase \" $* \" in *' start '*) sleep 0.5 ;; esac\n");
    bounded(async {
        let namespace = daemon.open().await;
        let mut events = namespace.events().subscribe(cofferdam_client::FROM_NOW, &["topic~=\"/tasks/(start|exit)\""]);
        let brief =
            with(&namespace, "brief", "exit 3", |request| request.runtime = runtime.to_str().unwrap().to_owned());
        let task = brief.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 3);
        for topic in ["/tasks/start", "/tasks/exit"] {
            let event = events.next().await.unwrap().expect("no gap");
            assert_eq!((&*event.topic, &event.payload["container_id"]), (topic, &"brief".into()));
        }
        brief.remove(false).await.unwrap();
    });
}
