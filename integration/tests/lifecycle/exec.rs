//! Other processes in a container.

use cofferdam_client::{Input, ProcessOptions, Status, Stdio};
use cofferdam_integration::{Daemon, bounded, output};
use cofferdam_types::Code;

use crate::{container, idle, named};

fn sh(script: &str) -> ProcessOptions {
    ProcessOptions { args: ["sh", "-c", script].map(String::from).into(), ..ProcessOptions::default() }
}

/// Far more than are kept with all that belongs to them.
#[test]
fn ends_are_known_until_the_task_is_deleted() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task) = idle(&namespace, "box").await;
        for n in 0..80 {
            let exec = task.exec(&format!("e{n}"), &sh(&format!("exit {n}")), Stdio::default());
            exec.start().await.unwrap();
            assert_eq!(exec.wait().await.unwrap().status, n);
        }
        assert!(container.info().await.unwrap().task.unwrap().execs.len() < 70, "they are not kept whole");
        for n in 0..80 {
            assert_eq!(task.process(&format!("e{n}")).wait().await.unwrap().status, n);
        }
        // Deleted is deleted, and so is one that another has the id of.
        assert_eq!(task.process("e0").delete().await.unwrap().status, 0);
        assert_eq!(task.process("e0").wait().await.unwrap_err().code, Code::NotFound);
        let again = task.exec("e1", &sh("exit 101"), Stdio::default());
        again.start().await.unwrap();
        assert_eq!(again.wait().await.unwrap().status, 101);
        again.delete().await.unwrap();
        assert_eq!(task.process("e1").wait().await.unwrap_err().code, Code::NotFound);
        container.remove(true).await.unwrap();
    });
}

/// A daemon that comes back knows what the shim keeps.
#[test]
fn of_the_last_ends_all_is_known_behind_a_restart_too() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let (_, task) = idle(&daemon.open().await, "box").await;
        let mut ends = Vec::new();
        for n in 0..70 {
            let exec = task.exec(&format!("e{n}"), &sh(&format!("exit {n}")), Stdio::default());
            exec.start().await.unwrap();
            ends.push(exec.wait().await.unwrap());
        }
        daemon.restart();
        let container = daemon.open().await.containers().get("box");
        let task = container.task();
        for (n, end) in ends.iter().enumerate().skip(6) {
            let state = task.process(&format!("e{n}")).state().await.unwrap();
            assert_eq!((state.status, state.exit.as_ref()), (Status::Stopped, Some(end)));
        }
        // What the daemon alone knew is in the journal of events.
        assert_eq!(task.process("e0").wait().await.unwrap_err().code, Code::NotFound);
        container.remove(true).await.unwrap();
    });
}

#[test]
fn ids_are_unique_until_deleted() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task) = idle(&namespace, "box").await;
        let first = task.exec("probe", &sh("exit 1"), Stdio::default());
        first.state().await.unwrap();
        let second = task.exec("probe", &sh("exit 2"), Stdio::default()).state().await.unwrap_err();
        assert_eq!(named(&second), (Code::AlreadyExists, "process", "probe"));
        // Its end would be taken for that of the container.
        let third = task.exec("box", &sh("exit 2"), Stdio::default()).state().await.unwrap_err();
        assert_eq!(named(&third), (Code::InvalidArgument, "process", "box"));
        // The refusal hurt nobody.
        first.start().await.unwrap();
        assert_eq!(first.wait().await.unwrap().status, 1);
        // Without an id the daemon finds one, and each is listed.
        for _ in 0..2 {
            let exec = task.exec("", &sh("exit 3"), Stdio::default());
            exec.start().await.unwrap();
            assert_eq!(exec.wait().await.unwrap().status, 3);
        }
        let execs = container.info().await.unwrap().task.unwrap().execs;
        assert_eq!(execs.len(), 3);
        assert!(execs.contains(&"probe".to_owned()));
        for id in &execs {
            task.process(id).delete().await.unwrap();
        }
        assert!(container.info().await.unwrap().task.unwrap().execs.is_empty());
        assert_eq!(task.process("probe").wait().await.unwrap_err().code, Code::NotFound);
        let again = task.exec("probe", &sh("exit 4"), Stdio::default());
        again.start().await.unwrap();
        assert_eq!(again.wait().await.unwrap().status, 4);
    });
}

#[test]
fn what_was_never_started_holds_no_shim_over_a_restart() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let (_, task) = idle(&daemon.open().await, "box").await;
        task.exec("never", &sh("exit 1"), Stdio::default()).state().await.unwrap();
        daemon.restart();
        let container = daemon.open().await.containers().get("box");
        assert_eq!(container.info().await.unwrap().task.unwrap().execs, ["never"]);
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

#[test]
fn a_command_that_is_not_there_is_told_to_the_starter_and_to_the_waiters() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (_, task) = idle(&namespace, "box").await;
        for (id, command, code, status) in
            [("a", "nonsense", Code::NotFound, 127), ("b", "/etc", Code::FailedPrecondition, 126)]
        {
            let options = ProcessOptions { args: vec![command.into()], ..ProcessOptions::default() };
            let exec = task.exec(id, &options, Stdio::default());
            let wait = exec.wait();
            let error = exec.start().await.unwrap_err();
            assert_eq!(error.code, code, "{error}");
            assert!(error.to_string().contains(command), "{error}");
            assert_eq!(wait.await.unwrap().status, status);
            exec.delete().await.unwrap();
        }
        assert_eq!(task.state().await.unwrap().status, Status::Running);
    });
}

#[test]
fn an_unknown_user_is_refused() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (_, task) = idle(&namespace, "box").await;
        let options = ProcessOptions { user: "nobody-of-that-name".into(), ..sh("true") };
        let error = task.exec("", &options, Stdio::default()).start().await.unwrap_err();
        assert!(error.to_string().contains("nobody-of-that-name"), "{error}");
        assert!(matches!(error.code, Code::NotFound | Code::InvalidArgument), "{error:?}");
    });
}

#[test]
fn names_of_users_come_from_the_container() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let container = container(&namespace, "box", "echo tester:x:77:88::/:/bin/sh >> /etc/passwd; exec sleep 1000");
        let task = container.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        let identity = async |user: &str| {
            let (stdout, arrivals) = output();
            let options = ProcessOptions { user: user.into(), ..sh("id -u; id -g") };
            let exec = task.exec("", &options, Stdio { stdout, ..Stdio::default() });
            exec.start().await.unwrap();
            assert_eq!(exec.wait().await.unwrap().status, 0);
            arrivals.text().await
        };
        // The line is the container's own work: it may not have come to it yet.
        cofferdam_integration::until_async("the user is there", async || {
            let there = task.exec("", &sh("grep -q tester /etc/passwd"), Stdio::default());
            there.start().await.unwrap();
            (there.wait().await.unwrap().status == 0).then_some(())
        })
        .await;
        assert_eq!(identity("tester").await, "77\n88\n");
        assert_eq!(identity("").await, "0\n0\n");
    });
}

#[test]
fn a_stopped_container_runs_nothing() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task) = idle(&namespace, "box").await;
        let pending = task.exec("pending", &sh("exit 0"), Stdio::default());
        let running = task.exec("running", &sh("exec sleep 1000"), Stdio::default());
        pending.state().await.unwrap();
        running.start().await.unwrap();
        task.kill(9, false).await.unwrap();
        task.wait().await.unwrap();
        // It goes with the first process of its pid namespace.
        assert_eq!(running.wait().await.unwrap().status, 137);
        let late = task.exec("late", &sh("exit 0"), Stdio::default()).state().await.unwrap_err();
        assert_eq!(late.code, Code::FailedPrecondition);
        let started = pending.start().await.unwrap_err();
        assert!(matches!(started.code, Code::FailedPrecondition | Code::NotFound), "{started:?}");
        container.remove(false).await.unwrap();
    });
}

#[test]
fn only_the_last_ends_are_kept_of_what_nobody_deletes() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task) = idle(&namespace, "box").await;
        let run = async |name: &str, args: &[&str]| {
            let args = args.iter().map(|arg| (*arg).to_owned()).collect();
            let exec = task.exec(name, &ProcessOptions { args, ..ProcessOptions::default() }, Stdio::default());
            let _ = exec.start().await;
            exec.wait().await.unwrap().status
        };
        let busy = task.exec("busy", &sh("exec sleep 1000"), Stdio::default());
        busy.start().await.unwrap();
        for n in 0..70 {
            assert_eq!(run(&format!("x{n}"), &["/no/such/program"]).await, 127);
        }
        assert_eq!(run("last", &["true"]).await, 0);
        let execs = container.info().await.unwrap().task.unwrap().execs;
        assert!(execs.len() <= 66 && execs.contains(&"busy".to_owned()), "{}: {execs:?}", execs.len());
        assert!(execs.contains(&"last".to_owned()) && !execs.contains(&"x0".to_owned()), "{execs:?}");
        container.remove(true).await.unwrap();
    });
}

#[test]
fn a_running_exec_is_not_deleted() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (_, task) = idle(&namespace, "box").await;
        let exec = task.exec("busy", &sh("exec sleep 1000"), Stdio::default());
        exec.start().await.unwrap();
        assert_eq!(exec.delete().await.unwrap_err().code, Code::FailedPrecondition);
        exec.kill(9, false).await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 137);
        assert_eq!(exec.kill(9, false).await.unwrap_err().code, Code::NotFound);
        exec.delete().await.unwrap();
    });
}

#[test]
fn input_ends_where_it_is_closed() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (_, task) = idle(&namespace, "box").await;
        let (stdout, arrivals) = output();
        let stdio = Stdio { stdin: Input::Stream, stdout, ..Stdio::default() };
        let exec = task.exec("cat", &sh("cat; exit 5"), stdio);
        exec.start().await.unwrap();
        exec.stdin().write(b"through\n").await.unwrap();
        arrivals.contains("through").await;
        exec.close_stdin().await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 5);
    });
}

#[test]
fn capabilities_are_the_containers_but_for_what_is_changed() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (_, task) = idle(&namespace, "box").await;
        let effective = async |add: &[&str], drop: &[&str]| {
            let (stdout, arrivals) = output();
            let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
            let options =
                ProcessOptions { cap_add: names(add), cap_drop: names(drop), ..sh("grep CapEff /proc/self/status") };
            let exec = task.exec("", &options, Stdio { stdout, ..Stdio::default() });
            exec.start().await.unwrap();
            assert_eq!(exec.wait().await.unwrap().status, 0);
            u64::from_str_radix(arrivals.text().await.split_whitespace().last().unwrap(), 16).unwrap()
        };
        let own = effective(&[], &[]).await;
        let (net_admin, kill) = (1 << 12, 1 << 5);
        assert!(own & net_admin == 0 && own & kill != 0, "{own:x}");
        assert_eq!(effective(&["NET_ADMIN"], &["cap_kill"]).await, own & !kill | net_admin);
        assert_eq!(effective(&[], &["ALL"]).await, 0);
        let options = ProcessOptions { cap_add: vec!["NONSENSE".into()], ..sh("true") };
        let error = task.exec("", &options, Stdio::default()).state().await.unwrap_err();
        assert_eq!((error.code, &*error.id), (Code::InvalidArgument, "NONSENSE"), "{error}");
    });
}
