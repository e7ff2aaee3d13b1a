//! The daemon goes and comes back; containers don't notice.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use cofferdam_client::{Input, Output, ProcessOptions, Status, Stdio};
use cofferdam_integration::{Arrivals, Daemon, bounded, input, output, terminal, until, until_async, write};
use cofferdam_types::{Code, Timestamp};

use crate::{ends_when_told, exits, history, runs, send, shim_of, start, tell, until_ended};

#[test]
fn twenty_containers_are_found_again() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let mut client = daemon.client().await;
        let mut boxes = Vec::new();
        for n in 0..20 {
            let (request, file) = ends_when_told(&daemon, &format!("box{n}"));
            let (_, pid) = start(&client, request).await;
            boxes.push((format!("box{n}"), pid, file));
        }
        daemon.kill9();
        assert!(boxes.iter().all(|(_, pid, _)| runs(*pid)));
        let dead = Timestamp::now();
        for (n, (_, pid, file)) in boxes.iter().enumerate().take(10) {
            tell(file, 10 + n as u32);
            until_ended(*pid);
        }
        // The shim takes in what ended; the daemon is still away.
        until_async("the ends are on record", async || {
            boxes[..10].iter().all(|(id, ..)| is_recorded(&daemon, id)).then_some(())
        })
        .await;
        let gone = Timestamp::now();

        let began = Instant::now();
        let serves = daemon.restart();
        client = daemon.client().await;
        let containers = client.namespace(daemon.namespace()).containers();
        let asked: Vec<_> = boxes.iter().map(|(id, ..)| containers.get(id).task().state()).collect();
        for (n, state) in asked.into_iter().enumerate() {
            let state = state.await.unwrap();
            if n < 10 {
                let exit = state.exit.expect("it ended");
                assert_eq!((state.status, exit.status, &*exit.reason), (Status::Stopped, 10 + n as u32, ""));
                assert!(exit.at >= dead && exit.at <= gone, "{:?} is not within {dead:?} and {gone:?}", exit.at);
            } else {
                assert_eq!((state.status, state.pid), (Status::Running, boxes[n].1));
            }
        }
        println!("20 containers: serves after {serves:?}, all found after {:?}", began.elapsed());

        // And again, this time with waiters of the new daemon.
        daemon.kill9();
        tell(&boxes[10].2, 20);
        until_ended(boxes[10].1);
        daemon.restart();
        client = daemon.client().await;
        let containers = client.namespace(daemon.namespace()).containers();
        let waits: Vec<_> = boxes.iter().map(|(id, ..)| containers.get(id).task().wait()).collect();
        for (n, (_, _, file)) in boxes.iter().enumerate().skip(11) {
            tell(file, 10 + n as u32);
        }
        for (n, wait) in waits.into_iter().enumerate() {
            assert_eq!(wait.await.unwrap().status, 10 + n as u32);
        }
        for (id, ..) in &boxes {
            containers.get(id).remove(false).await.unwrap();
        }
        let exits = exits(&client, daemon.namespace()).await;
        let once = boxes.iter().enumerate().map(|(n, (id, ..))| (id.clone(), vec![10 + n as u32]));
        assert_eq!(exits, once.collect(), "each end is told once");
    });
    daemon.settles(&before);
}

/// Whether the shim has the container's end on record.
fn is_recorded(daemon: &Daemon, id: &str) -> bool {
    let Ok(shims) = std::fs::read_dir(daemon.state().join("shims")) else { return false };
    let name = cofferdam_wire::life::file_name(id, "");
    shims.flatten().any(|shim| {
        let Ok(dir) = std::fs::File::open(shim.path()) else { return false };
        cofferdam_wire::life::load(std::os::fd::AsFd::as_fd(&dir), &name).is_ok_and(|life| life.exited != Timestamp(0))
    })
}

#[test]
fn a_run_reconnects_and_ends_with_the_containers_code() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let mut runs = Vec::new();
        for (n, (removed, early)) in
            [(false, false), (false, true), (true, false), (true, true)].into_iter().enumerate()
        {
            let (mut request, file) = ends_when_told(&daemon, &format!("run{n}"));
            request.container.remove_on_exit = removed;
            let (run, pid) = start(&client, request).await;
            runs.push((run, pid, file, early));
        }
        let waits = futures::future::join_all(runs.iter().map(|(run, ..)| run.wait()));
        let drill = async {
            until_async("they wait", async || Some(())).await;
            daemon.kill9();
            for (n, (_, pid, file, _)) in runs.iter().enumerate().filter(|(_, r)| r.3) {
                tell(file, 40 + n as u32);
                until_ended(*pid);
            }
            daemon.restart();
            for (n, (_, _, file, _)) in runs.iter().enumerate().filter(|(_, r)| !r.3) {
                tell(file, 40 + n as u32);
            }
        };
        let (exits, ()) = tokio::join!(waits, drill);
        for (n, exit) in exits.into_iter().enumerate() {
            let exit = exit.unwrap();
            assert_eq!((exit.status, &*exit.reason), (40 + n as u32, ""));
        }
        let containers = daemon.open().await.containers();
        let left: Vec<_> = containers.list::<&str>(&[]).all().await.unwrap().into_iter().map(|c| c.id).collect();
        assert_eq!(left, ["run0", "run1"]);
        for id in left {
            containers.get(&id).remove(false).await.unwrap();
        }
    });
    daemon.settles(&before);
}

#[test]
fn a_terminal_goes_on() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (keyboard, slave): (OwnedFd, OwnedFd) = terminal();
        let screen = Arrivals::new(keyboard.try_clone().unwrap());
        let mut request = daemon.run("shell", ["sh"]);
        request.container.options.terminal = true;
        request.stdio = Stdio {
            stdin: Input::Fd(slave.try_clone().unwrap()),
            stdout: Output::Fd(slave),
            stderr: Output::Null,
            size: (30, 100),
        };
        let (run, _) = start(&client, request).await;
        write(&keyboard, "echo be''fore\r");
        screen.contains("before\r\n").await;
        daemon.kill9();
        write(&keyboard, "stty size; echo mean''while\r");
        assert!(screen.contains("meanwhile\r\n").await.contains("30 100\r\n"));
        daemon.restart();
        // The client notices by itself; its window was turned while the daemon was away.
        run.resize(50, 132).await.unwrap();
        write(&keyboard, "stty size; echo af''ter\r");
        assert!(screen.contains("after\r\n").await.contains("50 132\r\n"));
        write(&keyboard, "exit 21\r");
        assert_eq!(run.wait().await.unwrap().status, 21);
    });
}

#[test]
fn execs_are_known_again() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (request, _file) = ends_when_told(&daemon, "box");
        let (run, _) = start(&client, request).await;
        let options = ProcessOptions {
            args: ["sh", "-c", "read code; exit $code"].map(String::from).into(),
            ..ProcessOptions::default()
        };
        let mut execs = Vec::new();
        for id in ["meanwhile", "after"] {
            let (stdin, file) = input();
            let exec = run.task().exec(id, &options, Stdio { stdin, ..Stdio::default() });
            execs.push((exec.start().await.unwrap(), file));
        }
        let made = run.task().exec("made", &options, Stdio::default());
        made.state().await.unwrap();
        daemon.kill9();
        tell(&execs[0].1, 5);
        until_ended(execs[0].0);
        daemon.restart();
        let container = daemon.open().await.containers().get("box");
        let task = container.task();
        assert_eq!(task.process("meanwhile").wait().await.unwrap().status, 5);
        let state = task.process("after").state().await.unwrap();
        assert_eq!((state.status, state.pid), (Status::Running, execs[1].0));
        let wait = task.process("after").wait();
        tell(&execs[1].1, 6);
        assert_eq!(wait.await.unwrap().status, 6);
        assert_eq!(task.process("made").state().await.unwrap().status, Status::Created);
        let mut known = container.info().await.unwrap().task.unwrap().execs;
        known.sort();
        assert_eq!(known, ["after", "made", "meanwhile"]);
        // A new one is an exec like any other.
        let (stdin, file) = input();
        let late = task.exec("late", &options, Stdio { stdin, ..Stdio::default() });
        late.start().await.unwrap();
        tell(&file, 7);
        assert_eq!(late.wait().await.unwrap().status, 7);
        // One that a daemon has told of, or was about to, is not told of again.
        daemon.kill9();
        daemon.restart();
        let told = each_has_its_end(&daemon, &[("meanwhile", 5), ("after", 6), ("late", 7)]).await;
        assert!(!told.starts.contains_key("made") && !told.ends.contains_key("made"), "{told:?}");
    });
}

/// Waits until each of these has been told of, once.
async fn each_has_its_end(daemon: &Daemon, ends: &[(&str, u32)]) -> crate::History {
    let client = daemon.client().await;
    let told = until_async("all are told of", async || {
        let told = history(&client, daemon.namespace()).await;
        ends.iter().all(|(id, _)| told.ends.contains_key(*id)).then_some(told)
    })
    .await;
    for (id, status) in ends {
        let statuses: Vec<_> = told.ends[*id].iter().map(|exit| exit.status).collect();
        assert_eq!((told.starts.get(*id), statuses), (Some(&1), vec![*status]), "{id}: {told:?}");
    }
    told
}

/// Whoever else dies: each exec that was told to have started is told to have ended, once.
#[test]
fn each_exec_has_its_end_whatever_is_killed() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let options = ProcessOptions { args: ["sleep", "1000"].map(String::from).into(), ..ProcessOptions::default() };
        let begin = async |id: &str| {
            let client = daemon.client().await;
            let (run, pid) = start(&client, daemon.run(id, ["sleep", "1000"])).await;
            let exec = run.task().exec(&format!("in-{id}"), &options, Stdio::default());
            exec.start().await.unwrap();
            let told = until_async("it is told of", async || {
                let told = history(&client, daemon.namespace()).await;
                told.starts.contains_key(&format!("in-{id}")).then_some(())
            });
            told.await;
            (run, pid)
        };
        // Its shim, under a daemon that looks on.
        let (_, pid) = begin("seen").await;
        send(shim_of(pid), nix::sys::signal::Signal::SIGKILL);
        each_has_its_end(&daemon, &[("seen", 137), ("in-seen", 137)]).await;
        // Its shim, and nobody looks.
        let (_, pid) = begin("unseen").await;
        let shim = shim_of(pid);
        daemon.kill9();
        send(shim, nix::sys::signal::Signal::SIGKILL);
        until_ended(shim);
        daemon.restart();
        each_has_its_end(&daemon, &[("unseen", 137), ("in-unseen", 137)]).await;
        // The same before the tables have any of it: who started it was told that it runs.
        for id in ["young", "younger", "youngest"] {
            let (run, pid) = start(&daemon.client().await, daemon.run(id, ["sleep", "1000"])).await;
            let (shim, exec) = (shim_of(pid), run.task().exec(&format!("in-{id}"), &options, Stdio::default()));
            exec.start().await.unwrap();
            daemon.kill9();
            send(shim, nix::sys::signal::Signal::SIGKILL);
            until_ended(shim);
            daemon.restart();
            each_has_its_end(&daemon, &[(id, 137), (&format!("in-{id}"), 137)]).await;
        }
        // The container, by force.
        let (run, _) = begin("removed").await;
        run.container().remove(true).await.unwrap();
        each_has_its_end(&daemon, &[("removed", 137), ("in-removed", 137)]).await;
        // With the end of the first process, and removed at once.
        let (run, _) = begin("killed").await;
        run.task().kill(9, true).await.unwrap();
        assert_eq!(run.wait().await.unwrap().status, 137);
        run.task().delete().await.unwrap();
        each_has_its_end(&daemon, &[("killed", 137), ("in-killed", 137)]).await;
        // One that is deleted as soon as its end is known, and the daemon killed.
        let (run, _) = begin("deleted").await;
        let exec = run.task().process("in-deleted");
        exec.kill(9, false).await.unwrap();
        exec.wait().await.unwrap();
        exec.delete().await.unwrap();
        daemon.kill9();
        daemon.restart();
        each_has_its_end(&daemon, &[("in-deleted", 137)]).await;
        // The same of some that end by themselves, and of one whose name is used again at once.
        let task = daemon.open().await.containers().get("deleted").task();
        let fives =
            ProcessOptions { args: ["sh", "-c", "exit 5"].map(String::from).into(), ..ProcessOptions::default() };
        for id in ["first", "again", "last", "again"] {
            let exec = task.exec(id, &fives, Stdio::default());
            exec.start().await.unwrap();
            assert_eq!(exec.wait().await.unwrap().status, 5);
            assert_eq!(exec.delete().await.unwrap().status, 5);
        }
        daemon.kill9();
        daemon.restart();
        let task = daemon.open().await.containers().get("deleted").task();
        for id in ["first", "again", "last"] {
            assert_eq!(task.process(id).state().await.unwrap_err().code, Code::NotFound, "{id} is deleted");
        }
        each_has_its_end(&daemon, &[("first", 5), ("last", 5)]).await;
        for id in ["seen", "unseen", "young", "younger", "youngest", "killed", "deleted"] {
            daemon.open().await.containers().get(id).remove(true).await.unwrap();
        }
        let told = history(&daemon.client().await, daemon.namespace()).await;
        for (id, starts) in &told.starts {
            let lives = if id == "again" { 2 } else { 1 };
            assert_eq!((*starts, told.ends.get(id).map(Vec::len)), (lives, Some(lives)), "{id}: {told:?}");
        }
    });
    daemon.settles(&before);
}

#[test]
fn an_orderly_stop_removes_nothing() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (request, file) = ends_when_told(&daemon, "runs");
        let (_, pid) = start(&client, request).await;
        let namespace = daemon.open().await;
        let made = crate::start(&client, daemon.run("ended", ["true"])).await.0;
        assert_eq!(made.wait().await.unwrap().status, 0);
        let there = daemon.leftovers();
        daemon.stop();
        assert!(!daemon.socket().exists() || std::os::unix::net::UnixStream::connect(daemon.socket()).is_err());
        assert!(runs(pid));
        let after = daemon.leftovers();
        assert_eq!((there.beyond(&after), after.beyond(&there)), (vec![], vec![]));
        drop((client, namespace));
        daemon.restart();
        let containers = daemon.open().await.containers();
        assert_eq!(containers.get("runs").task().state().await.unwrap().pid, pid);
        assert_eq!(containers.get("ended").task().state().await.unwrap().exit.unwrap().status, 0);
        tell(&file, 3);
        assert_eq!(containers.get("runs").task().wait().await.unwrap().status, 3);
    });
}

#[test]
fn a_log_goes_on() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (stdin, feed) = input();
        let (stdout, seen) = output();
        let mut request = daemon.run("talk", ["cat"]);
        request.stdio = Stdio { stdin, stdout, ..Stdio::default() };
        request.log = true;
        let (run, _) = start(&client, request).await;
        for (n, word) in ["before", "meanwhile", "after"].into_iter().enumerate() {
            match n {
                1 => daemon.kill9(),
                2 => drop(daemon.restart()),
                _ => {}
            }
            std::io::Write::write_all(&mut &feed, format!("{word}\n").as_bytes()).unwrap();
            seen.contains(word).await;
        }
        drop(feed);
        assert_eq!(run.wait().await.unwrap().status, 0);
        let kept = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let into = kept.clone();
        let logs = run.container().logs(true, move |record| {
            into.borrow_mut().extend(record.bytes);
            Ok(())
        });
        logs.await.unwrap();
        assert_eq!(String::from_utf8_lossy(&kept.borrow()), "before\nmeanwhile\nafter\n");
    });
}

#[test]
fn what_ended_meanwhile_and_was_to_go_goes() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let (mut request, file) = ends_when_told(&daemon, "brief");
        request.container.remove_on_exit = true;
        request.log = true;
        let (_, pid) = start(&client, request).await;
        // Nobody waits for it.
        drop(client);
        daemon.kill9();
        tell(&file, 9);
        until_ended(pid);
        daemon.restart();
        let client = daemon.client().await;
        let container = client.namespace(daemon.namespace()).containers().get("brief");
        match container.removed().await {
            Ok(()) => {}
            Err(error) => assert_eq!(error.code, Code::NotFound),
        }
        let told = exits(&client, daemon.namespace()).await;
        assert_eq!(told, BTreeMap::from([("brief".to_owned(), vec![9])]));
    });
    daemon.settles(&before);
}

#[test]
fn a_shim_that_was_lost_meanwhile() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let (request, _file) = ends_when_told(&daemon, "box");
        let (_, pid) = start(&client, request).await;
        daemon.kill9();
        send(shim_of(pid), nix::sys::signal::Signal::SIGKILL);
        let began = Instant::now();
        daemon.restart();
        let container = daemon.open().await.containers().get("box");
        let exit = container.task().wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, "shim lost"));
        until_ended(pid);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

/// Before its shim has answered nobody knows which there are.
#[test]
fn a_signal_for_an_exec_waits_until_its_shim_is_found() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (request, _file) = ends_when_told(&daemon, "box");
        let (run, pid) = start(&client, request).await;
        let sleep = ProcessOptions { args: ["sleep", "1000"].map(String::from).into(), ..ProcessOptions::default() };
        run.task().exec("made", &sleep, Stdio::default()).state().await.unwrap();
        let shim = shim_of(pid);
        send(shim, nix::sys::signal::Signal::SIGSTOP);
        daemon.restart();
        let task = daemon.open().await.containers().get("box").task();
        let mut kill = std::pin::pin!(async { task.process("made").kill(9, false).await });
        let early = tokio::time::timeout(Duration::from_millis(200), &mut kill).await;
        send(shim, nix::sys::signal::Signal::SIGCONT);
        assert!(early.is_err(), "{early:?}");
        let error = kill.await.unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition, "{error}");
        assert!(error.message.contains("is not there yet"), "{error}");
    });
}

#[test]
fn what_was_frozen_stays_frozen() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (request, file) = ends_when_told(&daemon, "box");
        let (run, pid) = start(&client, request).await;
        run.task().pause().await.unwrap();
        daemon.restart();
        let task = daemon.open().await.containers().get("box").task();
        let state = task.state().await.unwrap();
        assert_eq!((state.status, state.pid), (Status::Paused, pid));
        tell(&file, 2);
        task.resume().await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 2);
    });
}

/// What a daemon that died was making, and has no record of, may be made still, by its paths and under its name.
#[test]
fn what_a_lost_daemon_was_making_does_nothing_to_the_next_of_its_name() {
    // Its socket has to be its own: whose a socket is says who listened on it.
    const LISTENS: &str = "import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind('shim.sock')
s.listen()
os.dup2(s.fileno(), 0)
os.execve(sys.argv[1], ['coffer-shim'], {})";
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    daemon.kill9();
    let shim = daemon.state().join("shims/0123456789abcdef");
    std::fs::create_dir_all(daemon.state().join("tasks").join(daemon.namespace()).join("box")).unwrap();
    std::fs::create_dir_all(&shim).unwrap();
    std::fs::write(shim.join("box.life"), "").unwrap();
    let program = daemon.program("coffer-shim");
    let mut child = std::process::Command::new("python3");
    let mut child = child.args(["-c", LISTENS]).arg(&program).current_dir(&shim).env_clear().spawn().unwrap();
    let is_shim = || std::fs::read_link(format!("/proc/{}/exe", child.id())).is_ok_and(|exe| exe == program);
    until("the shim runs", || is_shim().then_some(()));
    // What it holds it is asked to delete. It answers nothing before it is killed, which it is after some seconds.
    send(child.id(), nix::sys::signal::Signal::SIGSTOP);
    daemon.restart();
    bounded(async {
        let run = start(&daemon.client().await, daemon.run("box", ["true"])).await.0;
        assert!(!shim.exists(), "it was there when the next one was made");
        assert_eq!(run.wait().await.unwrap().status, 0);
        run.container().remove(false).await.unwrap();
    });
    child.wait().unwrap();
    daemon.settles(&before);
}
