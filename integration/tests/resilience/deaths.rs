//! Shims that are killed, stopped or never answer, and daemons that die between two steps: nothing of theirs stays.

use std::{
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use cofferdam_client::{ContainerRequest, Status, Stdio};
use cofferdam_integration::{BUSYBOX, DEADLINE, Daemon, binary, bounded, input, until, until_async};
use cofferdam_sys::cgroup::{Cgroup, Layout};
use cofferdam_types::Code;
use nix::sys::signal::Signal;

use crate::{ends_when_told, exits, runs, send, shim_of, start, tell, until_ended};

#[test]
fn a_second_daemon_on_the_state_directory_is_refused() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (request, file) = ends_when_told(&daemon, "box");
        let (run, pid) = start(&client, request).await;
        let log = daemon.path().join("other.log");
        let mut other = Command::new(binary("cofferd"))
            .args(["--root".into(), daemon.path().join("other"), "--state".into(), daemon.state()])
            .args(["--shim".into(), binary("coffer-shim")])
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let end = Instant::now() + DEADLINE;
        let status = loop {
            match other.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() > end => break None,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let _ = other.kill();
        let _ = other.wait();
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(status.is_some_and(|s| !s.success()) && text.contains("another daemon"), "{status:?}: {text}");
        // The socket is the first one's still.
        assert_eq!(daemon.client().await.system().status().await.unwrap().pid, daemon.pid());
        assert!(runs(pid));
        tell(&file, 6);
        assert_eq!(run.wait().await.unwrap().status, 6);
    });
}

/// The container is gone with the commit. That its snapshot's directory can't be thrown away now is no reason to keep
/// the rest, nor those who wait.
#[test]
fn a_removal_that_was_committed_is_finished() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let (mut request, file) = ends_when_told(&daemon, "brief");
        request.container.remove_on_exit = true;
        let (run, _) = start(&client, request).await;
        let system = client.system();
        until_async("snapshots are given up", async || {
            let status = system.status().await.unwrap();
            let actor = status.actors.into_iter().find(|actor| actor.name == "snapshots").unwrap();
            if actor.health == "up" {
                // It may have gone meanwhile by what was asked before.
                let crashed = system.crash("snapshots").await;
                assert!(crashed.is_ok() || crashed.is_err_and(|error| error.code == Code::Unavailable));
            }
            (actor.health == "failed").then_some(())
        })
        .await;
        tell(&file, 5);
        assert_eq!(run.wait().await.unwrap().status, 5);
        until("the rest is gone", || {
            let left = daemon.leftovers().beyond(&before);
            left.iter().all(|what| what.starts_with("snapshot")).then_some(())
        });
        daemon.restart();
    });
    daemon.settles(&before);
}

/// A runtime binary: `script` runs for every invocation, with `$0` for nothing and all arguments.
fn runtime(daemon: &Daemon, script: &str) -> String {
    let path = daemon.path().join("runtime");
    let mut file = std::fs::File::create(&path).unwrap();
    write!(file, "#!/bin/sh\n{script}\n").unwrap();
    drop(file);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn groups(path: &str) -> Vec<PathBuf> {
    let layout = Layout::detect().unwrap();
    layout.hierarchies.iter().map(|h| h.root.join(path.trim_start_matches('/'))).collect()
}

/// The cgroup that a container of the name would have.
async fn group_of(daemon: &Daemon, id: &str) -> String {
    let client = daemon.client().await;
    let (request, file) = ends_when_told(daemon, "first");
    let (run, _) = start(&client, request).await;
    let group = daemon.cgroup("first").replace("/first", &format!("/{id}"));
    tell(&file, 0);
    run.wait().await.unwrap();
    run.container().remove(false).await.unwrap();
    group
}

#[test]
fn a_shim_killed_while_it_makes_a_container_leaves_nothing() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let group = group_of(&daemon, "box").await;
        // As a driver that is in the middle of it: the cgroup is there, and so is a process in it.
        let make: String = groups(&group)
            .iter()
            .map(|dir| format!("mkdir -p {0}; echo $child > {0}/cgroup.procs || exit 1\n", dir.display()))
            .filter(|line| line.contains("unified") || line.contains("/pids/"))
            .collect();
        let pid = daemon.path().join("pid");
        let script = format!(
            "case \"$*\" in *create*) ;; *) exit 0;; esac\nsleep 1000 >&- 2>&- & child=$!\n{make}echo $child > {}\nkill -9 $PPID",
            pid.display()
        );
        let client = daemon.client().await;
        for removed in [true, false] {
            let mut request = daemon.run("box", ["true"]);
            request.container.runtime = runtime(&daemon, &script);
            request.container.remove_on_exit = removed;
            let error = client.run(request).unwrap().wait().await.unwrap_err();
            assert_eq!((error.code, &*error.kind), (Code::Unavailable, "shim"), "{error}");
            let child = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
            until_ended(child);
            std::fs::remove_file(&pid).unwrap();
        }
        assert!(groups(&group).iter().all(|dir| !dir.exists()));
        // The name is free.
        let mut request = daemon.run("box", ["sh", "-c", "exit 3"]);
        request.container.remove_on_exit = true;
        assert_eq!(client.run(request).unwrap().wait().await.unwrap().status, 3);
    });
    daemon.settles(&before);
}

#[test]
fn cgroups_without_a_container_are_swept_and_are_in_nobodys_way() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let (ghost, empty) = (group_of(&daemon, "ghost").await, group_of(&daemon, "empty").await);
        daemon.kill9();
        let layout = Layout::detect().unwrap();
        let group = Cgroup::create(&layout, &ghost).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        group.add(child.id() as i32).unwrap();
        daemon.restart();
        // Ours to reap, so that it shows how it ended.
        let ended = until("what a lost container ran is killed", || child.try_wait().unwrap());
        assert!(!ended.success());
        until("its cgroup is gone", || groups(&ghost).iter().all(|dir| !dir.exists()).then_some(()));
        // One that comes later: the next container of the name takes its place.
        Cgroup::create(&layout, &empty).unwrap();
        let mut request = daemon.run("empty", ["sh", "-c", "exit 4"]);
        request.container.remove_on_exit = true;
        assert_eq!(daemon.client().await.run(request).unwrap().wait().await.unwrap().status, 4);
    });
    daemon.settles(&before);
}

#[test]
fn a_container_that_was_to_go_with_a_task_that_never_came_goes() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        for (id, remove_on_exit) in [("goes", true), ("stays", false)] {
            let request = ContainerRequest { id: id.into(), remove_on_exit, ..ContainerRequest::default() };
            namespace.containers().create(&namespace.images().get(BUSYBOX), &request).info().await.unwrap();
        }
        // A client of a crashed actor is there still, and goes on.
        crash(&daemon, "tasks").await;
        namespace.containers().get("goes").info().await.unwrap();
        daemon.restart();
        let containers = daemon.open().await.containers();
        match containers.get("goes").removed().await {
            Ok(()) => {}
            Err(error) => assert_eq!(error.code, Code::NotFound),
        }
        containers.get("stays").remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

async fn crash(daemon: &Daemon, actor: &str) {
    let system = daemon.client().await.system();
    system.crash(actor).await.unwrap();
    until_async("it is back", async || {
        let status = system.status().await.unwrap();
        status.actors.iter().any(|a| a.name == actor && a.health == "up" && a.restarts > 0).then_some(())
    })
    .await;
}

/// A socket that takes a client in and says nothing; with its fall the connection is lost.
struct Deaf {
    path: PathBuf,
    _listener: UnixListener,
}

impl Deaf {
    fn listen(daemon: &Daemon) -> Deaf {
        let path = daemon.path().join("front.sock");
        let _ = std::fs::remove_file(&path);
        let _listener = UnixListener::bind(&path).unwrap();
        Deaf { path, _listener }
    }

    /// From now on the daemon is found there.
    fn gives_way(self, daemon: &Daemon) {
        std::fs::remove_file(&self.path).unwrap();
        std::os::unix::fs::symlink(daemon.socket(), &self.path).unwrap();
    }
}

#[test]
fn a_run_that_the_daemon_never_heard_of_is_asked_for_again() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        for (id, there) in [("none", false), ("half", true)] {
            for given in [false, true] {
                let deaf = Deaf::listen(&daemon);
                let client = cofferdam_client::Client::connect(&deaf.path).await.unwrap();
                let mut request = daemon.run(id, ["sh", "-c", "exit 7"]);
                request.container.remove_on_exit = !there;
                let (stdin, _feed) = input();
                if given {
                    request.stdio.stdin = stdin;
                }
                let run = client.run(request).unwrap();
                if there {
                    // As if the daemon had died between the container and its task.
                    let namespace = daemon.open().await;
                    let request = ContainerRequest {
                        id: id.into(),
                        options: cofferdam_client::ContainerOptions {
                            args: ["sh", "-c", "exit 8"].map(String::from).into(),
                            ..Default::default()
                        },
                        ..Default::default()
                    };
                    namespace.containers().create(&namespace.images().get(BUSYBOX), &request).info().await.unwrap();
                }
                deaf.gives_way(&daemon);
                let containers = daemon.open().await.containers();
                if given {
                    let error = run.wait().await.unwrap_err();
                    assert_eq!(error.code, Code::Cancelled, "{error}");
                    assert_eq!(containers.get(id).info().await.unwrap_err().code, Code::NotFound);
                } else {
                    assert_eq!(run.wait().await.unwrap().status, if there { 8 } else { 7 });
                    if there {
                        containers.get(id).remove(false).await.unwrap();
                    }
                }
            }
        }
    });
    daemon.settles(&before);
}

#[test]
fn a_container_of_somebody_elses_is_not_taken_for_ours() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let request = ContainerRequest { id: "box".into(), ..ContainerRequest::default() };
        namespace.containers().create(&namespace.images().get(BUSYBOX), &request).info().await.unwrap();
        let deaf = Deaf::listen(&daemon);
        let client = cofferdam_client::Client::connect(&deaf.path).await.unwrap();
        let run = client.run(daemon.run("box", ["true"])).unwrap();
        deaf.gives_way(&daemon);
        assert_eq!(run.wait().await.unwrap_err().code, Code::AlreadyExists);
        let info = namespace.containers().get("box").info().await.unwrap();
        assert!(info.task.is_none());
    });
}

/// `coffer run` has its streams again.
#[test]
fn coffer_run_waits_a_restart_out_from_the_first_moment() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let deaf = Deaf::listen(&daemon);
    let child = daemon
        .command()
        .env("COFFER_SOCKET", &deaf.path)
        .args(["run", "--rm", BUSYBOX, "sh", "-c", "echo here; exit 9"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (stream, _) = deaf._listener.accept().unwrap();
    daemon.restart();
    deaf.gives_way(&daemon);
    drop(stream);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(9), &b"here\n"[..]));
    daemon.settles(&before);
}

#[test]
fn a_shim_that_was_silent_at_the_start_is_found_when_it_goes_on() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let (request, file) = ends_when_told(&daemon, "box");
        let (_, pid) = start(&client, request).await;
        let shim = shim_of(pid);
        send(shim, Signal::SIGSTOP);
        daemon.restart();
        let containers = daemon.open().await.containers();
        let task = containers.get("box").task();
        let asked = Instant::now();
        let error = task.kill(9, false).await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "{error}");
        assert!(asked.elapsed() < Duration::from_secs(8));
        let asked = Instant::now();
        assert_eq!(containers.get("box").remove(false).await.unwrap_err().code, Code::Unavailable);
        assert!(asked.elapsed() < Duration::from_secs(1), "it is known by now");
        // It is not left out of a list, nor does it hide the others.
        let listed = containers.list::<&str>(&[]).all().await.unwrap();
        assert_eq!(listed.len(), 1);
        let wait = containers.get("box").task();
        send(shim, Signal::SIGCONT);
        let state = until_async("it is found", async || containers.get("box").task().state().await.ok()).await;
        assert_eq!((state.status, state.pid), (Status::Running, pid));
        tell(&file, 3);
        assert_eq!(wait.wait().await.unwrap_or(containers.get("box").task().wait().await.unwrap()).status, 3);
        containers.get("box").remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

#[test]
fn a_stopped_shim_is_removed_by_force() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        for (id, restarted) in [("now", false), ("later", true)] {
            let (request, _file) = ends_when_told(&daemon, id);
            let (_, pid) = start(&client, request).await;
            let shim = shim_of(pid);
            send(shim, Signal::SIGSTOP);
            if restarted {
                daemon.restart();
            }
            let container = daemon.open().await.containers().get(id);
            let began = Instant::now();
            container.remove(true).await.unwrap();
            assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
            until_ended(pid);
            until_ended(shim);
        }
        let told = exits(&daemon.client().await, daemon.namespace()).await;
        assert_eq!(told, [("later".to_owned(), vec![137]), ("now".to_owned(), vec![137])].into());
    });
    daemon.settles(&before);
}

#[test]
fn a_stopped_shim_keeps_nobody_waiting() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let (request, file) = ends_when_told(&daemon, "box");
        let (run, pid) = start(&daemon.client().await, request).await;
        let (request, others_file) = ends_when_told(&daemon, "other");
        let (other, _) = start(&daemon.client().await, request).await;
        let shim = shim_of(pid);
        send(shim, Signal::SIGSTOP);
        let container = daemon.open().await.containers().get("box");
        let task = container.task();
        let options = cofferdam_client::ProcessOptions { args: vec!["true".into()], ..Default::default() };
        let exec = task.exec("more", &options, Stdio::default());
        let began = Instant::now();
        let blocked = async { tokio::join!(task.kill(10, false), task.pause(), task.pids(), exec.start()) };
        // What goes on with other containers is over before they are told.
        let others = async {
            let exec = other.task().exec("more", &options, Stdio::default());
            exec.start().await.unwrap();
            assert_eq!(exec.wait().await.unwrap().status, 0);
            assert!(!other.task().pids().await.unwrap().is_empty());
            tell(&others_file, 4);
            assert_eq!(other.wait().await.unwrap().status, 4);
            let (request, file) = ends_when_told(&daemon, "new");
            let (new, _) = start(&daemon.client().await, request).await;
            tell(&file, 5);
            assert_eq!(new.wait().await.unwrap().status, 5);
        };
        let mut blocked = std::pin::pin!(blocked);
        tokio::select! {
            biased;
            _ = &mut blocked => panic!("the others had to wait"),
            () = others => {}
        }
        let (killed, paused, pids, started) = blocked.await;
        for error in [killed.unwrap_err(), paused.unwrap_err(), pids.unwrap_err(), started.unwrap_err()] {
            assert_eq!(error.code, Code::Unavailable, "{error}");
            assert!(error.message.contains("doesn't answer"), "{error}");
        }
        // Who comes now is told at once.
        assert_eq!(container.info().await.unwrap_err().code, Code::Unavailable);
        assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
        send(shim, Signal::SIGCONT);
        until_async("it answers", async || task.pids().await.ok()).await;
        // It may have done now what it was asked for.
        if task.state().await.unwrap().status == Status::Paused {
            task.resume().await.unwrap();
        }
        tell(&file, 3);
        assert_eq!(run.wait().await.unwrap().status, 3);
    });
}

#[test]
fn a_shim_that_dies_of_a_start_ends_the_run() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let real = "/usr/sbin/runc";
        if !std::path::Path::new(real).is_file() {
            panic!("{real} is not there: run deploy/setup");
        }
        let mut request = daemon.run("box", ["true"]);
        let script = format!("case \"$*\" in *\" start \"*) kill -9 $PPID;; *) exec {real} \"$@\";; esac");
        request.container.runtime = runtime(&daemon, &script);
        request.container.remove_on_exit = true;
        let exit = client.run(request).unwrap().wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, "shim lost"));
        let told = exits(&daemon.client().await, daemon.namespace()).await;
        assert_eq!(told, [("box".to_owned(), vec![137])].into());
        let mut request = daemon.run("box", ["sh", "-c", "exit 2"]);
        request.container.runtime = "runc".into();
        request.container.remove_on_exit = true;
        assert_eq!(client.run(request).unwrap().wait().await.unwrap().status, 2);
    });
    daemon.settles(&before);
}

/// Never started, and ended all the same.
#[test]
fn what_was_never_started_and_lost_its_shim() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let request = ContainerRequest { id: "box".into(), ..ContainerRequest::default() };
        let container = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
        let task = container.create_task(Stdio::default(), false);
        let pid = task.state().await.unwrap().pid;
        send(shim_of(pid), Signal::SIGKILL);
        let exit = task.wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, "shim lost"));
        container.remove(false).await.unwrap();
        assert_eq!(exits(&daemon.client().await, daemon.namespace()).await, [("box".to_owned(), vec![137])].into());
    });
    daemon.settles(&before);
}

/// Asked for in one burst with the rest a start may come behind all that: it is told of the shim, not of a name that nobody has.
#[test]
fn a_start_that_comes_too_late_is_told_of_the_shim() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let mut request = daemon.run("late", ["true"]).container;
        request.remove_on_exit = true;
        let container = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
        let task = container.create_task(Stdio::default(), false);
        let pid = task.state().await.unwrap().pid;
        let removed = container.removed();
        send(shim_of(pid), Signal::SIGKILL);
        removed.await.unwrap();
        let error = task.start().await.unwrap_err();
        assert_eq!((error.code, &*error.kind), (Code::Unavailable, "shim"), "{error}");
        let exit = task.wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, "shim lost"));
        // Another one of that name has nothing of it.
        let container = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
        container.info().await.unwrap();
        assert_eq!(container.task().start().await.unwrap_err().code, Code::NotFound);
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}
