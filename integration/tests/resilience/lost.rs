//! What is not lost though somebody can't be asked, is asked too late, or dies between two steps.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use cofferdam_client::{ContainerRequest, ProcessOptions, Status, Stdio};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, script, small_disk, until, until_async};
use cofferdam_sys::cgroup::{Cgroup, Layout};
use cofferdam_types::Code;
use nix::sys::signal::Signal;

use crate::{ends_when_told, faults::cramped, history, runs, send, shim_of, start, tell};

fn options(args: &[&str]) -> ProcessOptions {
    ProcessOptions { args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..ProcessOptions::default() }
}

/// Sets how many descriptors a process may have, of those that it could have.
fn limit(pid: u32, descriptors: Option<u64>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: prlimit(2) writes one limit, which lives across the call.
    let read = unsafe { libc::prlimit(pid as i32, libc::RLIMIT_NOFILE, std::ptr::null(), &mut limit) };
    nix::errno::Errno::result(read).unwrap();
    limit.rlim_cur = descriptors.unwrap_or(limit.rlim_max);
    // SAFETY: prlimit(2) reads one limit, which lives across the call.
    let set = unsafe { libc::prlimit(pid as i32, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) };
    nix::errno::Errno::result(set).unwrap();
}

/// A daemon that can't look for a shim doesn't take it for lost, and kills nobody.
#[test]
fn no_container_is_lost_whose_shim_cant_be_looked_for() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let mut boxes = Vec::new();
    bounded(async {
        let client = daemon.client().await;
        for n in 0..8 {
            let (request, file) = ends_when_told(&daemon, &format!("box{n}"));
            let (_, pid) = start(&client, request).await;
            boxes.push((format!("box{n}"), pid, file));
        }
    });
    let shims = daemon.state().join("shims");
    let ids: Vec<_> = fs::read_dir(&shims).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let away = daemon.path().join("away");
    fs::create_dir(&away).unwrap();
    daemon.kill9();
    // Whoever opens a link that leads to itself learns nothing of what was there.
    for id in &ids {
        std::os::unix::fs::symlink(id, away.join(id)).unwrap();
        exchange(&away.join(id), &shims.join(id));
    }
    daemon.restart();
    let told = || daemon.log().matches("its shim can't be looked for now").count();
    until("none can be looked for, again and again", || (told() >= 3 * boxes.len()).then_some(()));
    assert!(boxes.iter().all(|(_, pid, _)| runs(*pid)));
    bounded(async {
        let namespace = daemon.open().await;
        let tasks: Vec<_> = boxes.iter().map(|(id, ..)| namespace.containers().get(id).task()).collect();
        for task in &tasks {
            assert_eq!(task.state().await.unwrap_err().code, Code::Unavailable);
        }
        for id in &ids {
            exchange(&away.join(id), &shims.join(id));
        }
        for (n, ((id, pid, file), task)) in boxes.iter().zip(tasks).enumerate() {
            let state = until_async("it is found", async || task.state().await.ok()).await;
            assert_eq!((state.status, state.pid), (Status::Running, *pid), "{id}");
            tell(file, n as u32);
            assert_eq!(task.wait().await.unwrap().status, n as u32);
            namespace.containers().get(id).remove(false).await.unwrap();
        }
    });
    daemon.settles(&before);
}

/// At no moment is there nothing.
fn exchange(one: &Path, other: &Path) {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).unwrap();
}

/// A runtime that says when it has begun with a process that it is to run, and waits until it is told to go on.
fn hesitant(daemon: &Daemon) -> (String, [PathBuf; 2]) {
    let [runtime, mark, go] = ["runtime", "begun", "go"].map(|name| daemon.path().join(name));
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in *' exec '*) touch {mark}\n\
         while [ ! -e {go} ]; do sleep 0.01; done ;; esac\nexec runc \"$@\"\n",
        mark = mark.display(),
        go = go.display(),
    );
    script(&runtime, &text);
    (runtime.to_str().unwrap().to_owned(), [mark, go])
}

/// Whoever deletes it meanwhile would leave it running, with nobody to tell its end.
#[test]
fn a_process_that_is_being_started_is_killed_and_not_deleted() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let (runtime, [mark, go]) = hesitant(&daemon);
    bounded(async {
        let client = daemon.client().await;
        let mut request = daemon.run("box", ["sleep", "1000"]);
        request.container.runtime = runtime;
        let (run, _) = start(&client, request).await;
        for kill in [false, true] {
            let id = format!("exec-{kill}");
            let exec = run.task().exec(&id, &options(&["sleep", "1000"]), Stdio::default());
            exec.state().await.unwrap();
            let (started, ()) = tokio::join!(exec.start(), async {
                until_async("it is being started", async || mark.exists().then_some(())).await;
                let error = exec.delete().await.unwrap_err();
                assert_eq!(error.code, Code::FailedPrecondition, "{error}");
                assert!(error.message.contains("is being started"), "{error}");
                if kill {
                    exec.kill(9, false).await.unwrap();
                }
                fs::write(&go, "").unwrap();
            });
            started.unwrap();
            if !kill {
                assert_eq!(exec.state().await.unwrap().status, Status::Running);
                exec.kill(9, false).await.unwrap();
            }
            assert_eq!(exec.wait().await.unwrap().status, 137);
            assert_eq!(exec.delete().await.unwrap().status, 137);
            until_async("its end is told", async || {
                let ends = history(&client, daemon.namespace()).await.ends;
                ends.get(&id).map(|ends| assert_eq!(ends.len(), 1))
            })
            .await;
            [&mark, &go].into_iter().for_each(|file| fs::remove_file(file).unwrap());
        }
        run.container().remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

/// The removal was to tell it, with all else; where it can't, it is told all the same.
#[test]
fn an_end_is_told_though_its_shim_dies_under_a_removal_that_fails() {
    let daemon = small_disk(64, 4096);
    daemon.import_busybox();
    bounded(async {
        let room = cramped(&daemon).await;
        let container = room.run.container();
        let shim = shim_of(room.run.task().state().await.unwrap().pid);
        send(shim, Signal::SIGSTOP);
        let (removed, ()) = tokio::join!(container.remove(true), async {
            // The removal is asked for before the first of these, on the same connection and of the same actor, and is under way
            // before that one takes the second.
            for _ in 0..2 {
                room.client.system().shims().all().await.unwrap();
            }
            send(shim, Signal::SIGKILL);
        });
        assert_eq!(removed.unwrap_err().code, Code::ResourceExhausted);
        drop(room.neighbour);
        let told = room.events.subscribe(room.last, &["topic==\"/tasks/exit\""]).next().await.unwrap().expect("no gap");
        assert_eq!((&told.payload["exit_status"], &told.payload["reason"]), (&137.into(), &"shim lost".into()));
        container.remove(false).await.unwrap();
    });
}

/// One that could not be recorded is told by the daemon that comes next: what its shim says differs from what is on record.
#[test]
fn a_pause_is_told_though_the_daemon_dies_behind_it() {
    let daemon = small_disk(64, 4096);
    daemon.import_busybox();
    bounded(async {
        let room = cramped(&daemon).await;
        room.run.task().pause().await.unwrap();
        assert_eq!(room.events.last().await.unwrap(), room.last, "there was room");
        daemon.kill9();
        drop(room.neighbour);
        for _ in 0..2 {
            // The second has nothing to tell.
            daemon.restart();
            let namespace = daemon.open().await;
            let task = namespace.containers().get("box").task();
            assert_eq!(task.state().await.unwrap().status, Status::Paused);
        }
        let namespace = daemon.open().await;
        namespace.containers().get("box").task().resume().await.unwrap();
        let mut told =
            namespace.events().subscribe(room.last, &["topic==\"/tasks/paused\"", "topic==\"/tasks/resumed\""]);
        for topic in ["/tasks/paused", "/tasks/resumed"] {
            assert_eq!(told.next().await.unwrap().expect("no gap").topic, topic);
        }
        tell(&room.file, 7);
        assert_eq!(namespace.containers().get("box").task().wait().await.unwrap().status, 7);
        namespace.containers().get("box").remove(false).await.unwrap();
    });
}

/// Who asked for it was told that nobody knows; what came of it is told.
#[test]
fn a_pause_that_comes_late_is_told() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (run, pid) = start(&client, daemon.run("box", ["sleep", "1000"])).await;
        let events = client.namespace(daemon.namespace()).events();
        let last = events.last().await.unwrap();
        let shim = shim_of(pid);
        send(shim, Signal::SIGSTOP);
        assert_eq!(run.task().pause().await.unwrap_err().code, Code::Unavailable);
        send(shim, Signal::SIGCONT);
        let mut told = events.subscribe(last, &["topic==\"/tasks/paused\""]);
        told.next().await.unwrap().expect("no gap");
        // It may still be the shim's to say that it is there.
        let state = until_async("its shim is there", async || run.task().state().await.ok()).await;
        assert_eq!(state.status, Status::Paused);
        run.container().remove(true).await.unwrap();
    });
}

/// The end of a first process is that of all that it left, also where that can't be killed at once.
#[test]
fn what_a_first_process_left_is_killed_though_its_shim_is_short_of_descriptors() {
    for runtime in ["native", "runc"] {
        left_is_killed(runtime);
    }
}

fn left_is_killed(runtime: &str) {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let (mut request, file) = ends_when_told(&daemon, "box");
        request.container.runtime = runtime.into();
        let script = "sleep 1000 & read code; exit $code";
        request.container.options.args = ["sh", "-c", script].map(String::from).into();
        // Nothing of the kernel's ends the other.
        request.container.options.namespaces = vec![("pid".into(), "host".into())];
        let (run, pid) = start(&client, request).await;
        let shim = shim_of(pid);
        let others = async || {
            let pids = run.task().pids().await.unwrap();
            (pids.len() == 2).then_some(pids)
        };
        let pids = until_async("both run", others).await;
        limit(shim, Some(3));
        tell(&file, 5);
        // For as long as that takes: it is tried again and again.
        let tried = || logs(&daemon.state().join("shims")).matches("left can't be killed").count();
        until("it can't be killed", || (tried() > 8).then_some(()));
        assert!(pids.iter().any(|pid| runs(*pid)));
        let mut wait = std::pin::pin!(run.wait());
        let early = tokio::time::timeout(Duration::from_millis(100), &mut wait).await;
        assert!(early.is_err(), "{early:?}");
        limit(shim, None);
        assert_eq!(wait.await.unwrap().status, 5);
        assert!(pids.iter().all(|pid| !runs(*pid)));
        run.container().remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

/// What shims have complained of.
fn logs(shims: &Path) -> String {
    let all = fs::read_dir(shims).unwrap().filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("log")).ok());
    all.collect()
}

/// Of a container that could not be made nothing runs on in a group that others have, and that is there still.
#[test]
fn what_was_begun_in_a_group_that_was_there_goes_alone() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let runtime = daemon.path().join("runtime");
    let text = "#!/bin/sh\ncase \" $* \" in *' create '*) runc \"$@\"; exec sleep 1000 ;; esac\nexec runc \"$@\"\n";
    script(&runtime, text);
    bounded(async {
        let namespace = daemon.open().await;
        let layout = Layout::detect().unwrap();
        let cgroup = format!("/given-{}", daemon.pid());
        let group = Cgroup::create(&layout, &cgroup).unwrap();
        let mut request = ContainerRequest { id: "box".into(), ..ContainerRequest::default() };
        request.runtime = runtime.to_str().unwrap().into();
        request.options.cgroup = cgroup.clone();
        request.options.args = ["sleep", "1000"].map(String::from).into();
        let container = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
        container.info().await.unwrap();
        let task = container.create_task(Stdio::default(), false);
        let (made, ()) = tokio::join!(task.state(), async {
            until_async("it is made", async || (!group.pids().unwrap().is_empty() && is_kept(&daemon)).then_some(()))
                .await;
            let shims = cofferdam_integration::processes(&daemon.state());
            shims
                .iter()
                .filter(|(_, name)| name == "coffer-shim")
                .for_each(|(pid, _)| send(*pid as u32, Signal::SIGKILL));
        });
        let error = made.unwrap_err();
        assert_eq!((error.code, &*error.kind), (Code::Unavailable, "shim"), "{error}");
        assert!(Cgroup::exists(&layout, &cgroup).unwrap(), "it is somebody's");
        assert_eq!(group.pids().unwrap(), Vec::<i32>::new());
        container.remove(false).await.unwrap();
        group.remove().unwrap();
    });
    daemon.settles(&before);
}

/// Whether a runtime has written down what it made.
fn is_kept(daemon: &Daemon) -> bool {
    daemon.state().join("runc").join(daemon.namespace()).join("box/state.json").exists()
}
