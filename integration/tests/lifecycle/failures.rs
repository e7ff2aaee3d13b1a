//! What goes wrong has a name, and leaves nothing behind.

use std::time::{Duration, Instant};

use cofferdam_client::{ProcessOptions, Status, Stdio};
use cofferdam_integration::{Daemon, bounded, skipped, until, until_async};
use cofferdam_sys::cgroup::{Cgroup, Layout};
use cofferdam_types::Code;

use crate::{container, idle, named, script, with};

#[test]
fn a_name_in_use() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let namespace = daemon.open().await;
        let (container, task) = idle(&namespace, "box").await;
        let held = daemon.leftovers();
        let error = client.run(script(&daemon, "box", "exit 0")).unwrap().wait().await.unwrap_err();
        assert_eq!(named(&error), (Code::AlreadyExists, "container", "box"));
        // A run that fails undoes itself, not what was there.
        assert_eq!(task.state().await.unwrap().status, Status::Running);
        assert_eq!(daemon.leftovers().beyond(&held), Vec::<String>::new());
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

#[test]
fn a_running_container_is_removed_by_force_alone() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task) = idle(&namespace, "box").await;
        let (wait, removed) = (task.wait(), container.removed());
        assert_eq!(container.remove(false).await.unwrap_err().code, Code::FailedPrecondition);
        assert_eq!(task.state().await.unwrap().status, Status::Running);
        container.remove(true).await.unwrap();
        // Who waits is told.
        assert_eq!(wait.await.unwrap().status, 137);
        removed.await.unwrap();
        assert_eq!(container.info().await.unwrap_err().code, Code::NotFound);
        assert_eq!(container.remove(true).await.unwrap_err().code, Code::NotFound);
        container.removed().await.unwrap();
    });
    daemon.settles(&before);
}

#[test]
fn made_but_never_started() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let one = container(&namespace, "one", "exit 0");
        one.create_task(Stdio::default(), true).state().await.unwrap();
        one.remove(false).await.unwrap();
        let two = container(&namespace, "two", "exit 0");
        let task = two.create_task(Stdio::default(), false);
        task.state().await.unwrap();
        task.delete().await.unwrap();
        two.remove(false).await.unwrap();
        let three = container(&namespace, "three", "exit 0");
        three.info().await.unwrap();
        three.remove(false).await.unwrap();
        let four = container(&namespace, "four", "exit 0");
        let task = four.create_task(Stdio::default(), false);
        task.state().await.unwrap();
        task.kill(9, false).await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 137);
        assert_eq!(task.start().await.unwrap_err().code, Code::FailedPrecondition);
        four.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

#[test]
fn what_can_not_be_made() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let refused = async |name: &str, change: &dyn Fn(&mut cofferdam_client::RunRequest)| {
            let mut request = script(&daemon, name, "exit 0");
            request.log = true;
            change(&mut request);
            client.run(request).unwrap().wait().await.unwrap_err()
        };
        let image = refused("image", &|r| {
            r.image.reference = "test/nonsense:latest".into();
            r.pull = cofferdam_client::PullPolicy::Never;
        });
        assert_eq!(named(&image.await), (Code::NotFound, "image", "test/nonsense:latest"));
        let namespace = refused("namespace", &|r| r.namespace = "nowhere".into()).await;
        assert_eq!(named(&namespace), (Code::NotFound, "namespace", "nowhere"));
        let runtime = refused("runtime", &|r| r.container.runtime = "nonsense".into()).await;
        assert_eq!(named(&runtime), (Code::NotFound, "runtime", "nonsense"));
        let driver = refused("driver", &|r| r.container.driver = "nonsense".into()).await;
        assert_eq!(driver.code, Code::NotFound, "{driver}");
        let user = refused("user", &|r| r.container.options.user = "nobody-of-that-name".into()).await;
        assert!(user.message.contains("nobody-of-that-name") || user.id.contains("nobody-of-that-name"), "{user}");
        let id = refused("../up", &|_| ()).await;
        assert_eq!(id.code, Code::InvalidArgument, "{id}");
        let workdir = refused("relative", &|r| r.container.options.workdir = "relative".into()).await;
        assert_eq!(workdir.code, Code::InvalidArgument, "{workdir}");
    });
    daemon.settles(&before);
}

/// SIGKILL of a shim: nobody is left who could report an end, so the daemon ends what it was the parent of.
#[test]
fn a_lost_shim_takes_its_container_along() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let namespace = daemon.open().await;
        // With the host's pid namespace nothing of the kernel's would end it either.
        for namespaces in [vec![], vec![("pid".to_owned(), "host".to_owned())]] {
            let container =
                with(&namespace, "box", "sleep 1000 & sleep 1000 & wait", |c| c.options.namespaces = namespaces);
            let task = container.create_task(Stdio::default(), true);
            let pid = task.start().await.unwrap();
            let shim = parent(pid);
            let path = daemon.cgroup("box");
            let wait = task.wait();
            task.state().await.unwrap();
            let began = Instant::now();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::SIGKILL).unwrap();
            let exit = wait.await.unwrap();
            let told = began.elapsed();
            assert_eq!((exit.status, &*exit.reason), (137, "shim lost"));
            let layout = Layout::detect().unwrap();
            until_async("the cgroup is empty", async || {
                let pids = Cgroup::open(&layout, &path).map_or_else(|_| Vec::new(), |group| group.pids().unwrap());
                pids.is_empty().then_some(())
            })
            .await;
            println!("shim lost: told after {told:?}, empty after {:?}", began.elapsed());
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            let state = task.state().await.unwrap();
            assert_eq!((state.status, state.exit), (Status::Stopped, Some(exit.clone())));
            assert_eq!(task.kill(9, false).await.unwrap_err().code, Code::NotFound);
            assert_eq!(task.delete().await.unwrap(), exit);
            container.remove(false).await.unwrap();
        }
        // With removal on exit nothing of it stays.
        let mut request = script(&daemon, "brief", "exec sleep 1000");
        request.container.remove_on_exit = true;
        let run = crate::start(&client, request).await;
        let pid = run.task().state().await.unwrap().pid;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(parent(pid)), nix::sys::signal::SIGKILL).unwrap();
        let exit = run.wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, "shim lost"));
    });
    daemon.settles(&before);
}

/// One that outlives the first process has an end as well, whoever is there to tell it.
#[test]
fn an_exec_that_outlives_the_first_process_ends_with_the_shim() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let layout = Layout::detect().unwrap();
    // A process that can't die for a while: in a v1 freezer of somebody else's.
    let Some(freezer) = layout.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == "freezer")) else {
        return skipped("there is no v1 freezer");
    };
    let freezer = Freezer(freezer.root.join(format!("cofferdam-test-{}", std::process::id())));
    std::fs::create_dir(&freezer.0).unwrap();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exec sleep 1000", |c| {
            c.options.namespaces = vec![("pid".into(), "host".into())];
        });
        let task = container.create_task(Stdio::default(), false);
        let shim = parent(task.start().await.unwrap());
        let sleep = ProcessOptions { args: ["sleep", "1000"].map(String::from).into(), ..ProcessOptions::default() };
        let exec = task.exec("late", &sleep, Stdio::default());
        let pid = exec.start().await.unwrap();
        std::fs::write(freezer.0.join("cgroup.procs"), pid.to_string()).unwrap();
        freezer.set("FROZEN");
        let mut wait = std::pin::pin!(exec.wait());
        task.kill(9, false).await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 137);
        let early = tokio::time::timeout(Duration::from_millis(100), &mut wait).await;
        assert!(early.is_err(), "{early:?}");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::SIGKILL).unwrap();
        freezer.set("THAWED");
        let exit = wait.await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, "shim lost"));
        let mut events = namespace.events().subscribe(0, &["topic==\"/tasks/exit\""]);
        while events.next().await.unwrap().expect("no gap").payload["id"] != "late" {}
        // It is deleted as any other, though nobody is left who had it.
        assert_eq!(exec.delete().await.unwrap(), exit);
        assert_eq!(exec.delete().await.unwrap_err().code, Code::NotFound);
        container.remove(false).await.unwrap();
    });
    drop(freezer);
    daemon.settles(&before);
}

struct Freezer(std::path::PathBuf);

impl Freezer {
    fn set(&self, state: &str) {
        until("it stands still, or goes on", || {
            std::fs::write(self.0.join("freezer.state"), state).unwrap();
            (std::fs::read_to_string(self.0.join("freezer.state")).unwrap().trim() == state).then_some(())
        });
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
        // What was in it may be on its way out.
        until("it can be removed", || std::fs::remove_dir(&self.0).is_ok().then_some(()));
    }
}

fn parent(pid: u32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}
