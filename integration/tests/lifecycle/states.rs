//! What can be done to a container, and to an exec, in which state: the table, and the words.

use cofferdam_client::{CheckpointOptions, Container, Input, Namespace, Process, ProcessOptions, Stdio, Task};
use cofferdam_integration::{Daemon, bounded, criu};
use cofferdam_types::{Code, Result};

use crate::with;

/// Where a container or an exec is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Created,
    Running,
    Paused,
    Stopped,
}

use At::{Created, Paused, Running, Stopped};

impl At {
    fn word(self) -> &'static str {
        match self {
            Created => "is created",
            Running => "is running",
            Paused => "is paused",
            Stopped => "is stopped",
        }
    }
}

/// Made with a terminal, whose other end is dropped: nothing is to be read.
async fn container(namespace: &Namespace, id: &str, at: At) -> (Container, Task) {
    let container = with(namespace, id, "exec sleep 1000", |c| c.options.terminal = true);
    let task = container.create_task(Stdio::default(), true);
    task.state().await.unwrap();
    if at != Created {
        task.start().await.unwrap();
    }
    match at {
        Paused => task.pause().await.unwrap(),
        Stopped => {
            task.kill(9, false).await.unwrap();
            task.wait().await.unwrap();
        }
        _ => {}
    }
    (container, task)
}

pub fn sleep() -> ProcessOptions {
    ProcessOptions { args: ["sleep", "1000"].map(String::from).into(), terminal: true, ..ProcessOptions::default() }
}

/// In any other state than `allowed` it is refused with that state's name, and nothing happens.
fn judge(what: &str, at: At, allowed: &[At], answer: Result<()>) {
    match answer {
        Ok(()) => assert!(allowed.contains(&at), "{what} is done to what {}", at.word()),
        Err(error) if allowed.contains(&at) => panic!("{what} of what {}: {error}", at.word()),
        // An end is no state that one could have asked for in time.
        Err(error) if what == "kill" && at == Stopped => assert_eq!(error.code, Code::NotFound, "{error}"),
        Err(error) => {
            assert_eq!(error.code, Code::FailedPrecondition, "{what} of what {}: {error}", at.word());
            assert!(error.message.starts_with(at.word()), "{what} of what {}: {error}", at.word());
        }
    }
}

type Act = (&'static str, &'static [At], for<'a> fn(&'a Container, &'a Task) -> Answer<'a>);
type Answer<'a> = std::pin::Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

const LIMITS: &[u8] = br#"{"pids": {"limit": 50}}"#;

const ACTS: &[Act] = &[
    ("start", &[Created], |_, t| Box::pin(async { t.start().await.map(drop) })),
    ("state", &[Created, Running, Paused, Stopped], |_, t| Box::pin(async { t.state().await.map(drop) })),
    ("kill", &[Created, Running, Paused], |_, t| Box::pin(async { t.kill(10, false).await })),
    ("resize", &[Created, Running, Paused], |_, t| Box::pin(async { t.resize(3, 4).await })),
    ("close_stdin", &[Created, Running, Paused, Stopped], |_, t| Box::pin(async { t.close_stdin().await })),
    ("attach", &[Created, Running, Paused, Stopped], |_, t| {
        Box::pin(async { t.attach(Stdio::default()).made().await })
    }),
    ("delete", &[Created, Stopped], |_, t| Box::pin(async { t.delete().await.map(drop) })),
    ("exec", &[Created, Running, Paused], |_, t| {
        Box::pin(async { t.exec("", &sleep(), Stdio::default()).state().await.map(drop) })
    }),
    ("start an exec", &[Running], |_, t| {
        Box::pin(async { t.exec("", &sleep(), Stdio::default()).start().await.map(drop) })
    }),
    ("pause", &[Running], |_, t| Box::pin(async { t.pause().await })),
    ("resume", &[Paused], |_, t| Box::pin(async { t.resume().await })),
    ("checkpoint", &[Running, Paused], |_, t| {
        Box::pin(async {
            let name = cofferdam_client::random_id()?;
            let options = CheckpointOptions { name, leave_running: true, ..CheckpointOptions::default() };
            t.checkpoint(&options).wait().await.map(drop)
        })
    }),
    ("pids", &[Created, Running, Paused], |_, t| Box::pin(async { t.pids().await.map(drop) })),
    ("processes", &[Created, Running, Paused], |_, t| Box::pin(async { t.processes().await.map(drop) })),
    ("update", &[Created, Running, Paused, Stopped], |_, t| Box::pin(async { t.update(LIMITS).await })),
    ("metrics", &[Created, Running, Paused, Stopped], |_, t| Box::pin(async { t.metrics().await.map(drop) })),
    ("rename", &[Stopped], |c, _| Box::pin(async { c.rename("renamed").info().await.map(drop) })),
    ("remove", &[Created, Stopped], |c, _| Box::pin(async { c.remove(false).await })),
    ("label", &[Created, Running, Paused, Stopped], |c, _| {
        Box::pin(async { c.update(&Default::default(), &["labels"]).await.map(drop) })
    }),
];

#[test]
fn each_method_in_each_state() {
    let daemon = Daemon::with_flags(Box::leak(Box::new(["--criu", criu()])));
    daemon.import_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        for (what, allowed, act) in ACTS {
            for at in [Created, Running, Paused, Stopped] {
                let (box_, task) = container(&namespace, "box", at).await;
                judge(what, at, allowed, act(&box_, &task).await);
                for id in ["box", "renamed"] {
                    let _ = namespace.containers().get(id).remove(true).await;
                }
            }
        }
        // Without a task each is told that there is none; without a container, that.
        let box_ = with(&namespace, "box", "true", |_| {});
        box_.info().await.unwrap();
        for (what, _, act) in ACTS.iter().filter(|(what, ..)| !["rename", "remove", "label"].contains(what)) {
            let error = act(&box_, &box_.task()).await.unwrap_err();
            assert_eq!((error.code, &*error.kind), (Code::NotFound, "task"), "{what}: {error}");
        }
        let gone = namespace.containers().get("gone");
        for (what, _, act) in ACTS {
            let error = act(&gone, &gone.task()).await.unwrap_err();
            assert_eq!((error.code, &*error.kind), (Code::NotFound, "container"), "{what}: {error}");
        }
    });
}

/// An exec in a container that runs.
async fn exec(task: &Task, at: At) -> Process {
    let exec = task.exec("probe", &sleep(), Stdio::default());
    exec.state().await.unwrap();
    if at != Created {
        exec.start().await.unwrap();
    }
    if at == Stopped {
        exec.kill(9, false).await.unwrap();
        exec.wait().await.unwrap();
    }
    exec
}

type ExecAct = (&'static str, &'static [At], for<'a> fn(&'a Process) -> Answer<'a>);

const EXEC_ACTS: &[ExecAct] = &[
    ("start", &[Created], |p| Box::pin(async { p.start().await.map(drop) })),
    ("state", &[Created, Running, Stopped], |p| Box::pin(async { p.state().await.map(drop) })),
    ("kill", &[Running], |p| Box::pin(async { p.kill(10, false).await })),
    ("resize", &[Running], |p| Box::pin(async { p.resize(3, 4).await })),
    ("attach", &[Running, Stopped], |p| Box::pin(async { p.attach(Stdio::default()).made().await })),
    ("stdin", &[Running], |p| Box::pin(async { p.stdin().end().await })),
    ("close_stdin", &[Created, Running, Stopped], |p| Box::pin(async { p.close_stdin().await })),
    ("delete", &[Created, Stopped], |p| Box::pin(async { p.delete().await.map(drop) })),
];

#[test]
fn what_ended_before_its_start_says_so() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let (_container, task) = container(&daemon.open().await, "early", Created).await;
        task.kill(9, false).await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 137);
        let error = task.start().await.unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition, "{error}");
        assert!(error.message.contains("is stopped: it ended with status 137 before it was started"), "{error}");
        task.delete().await.unwrap();
        let error = task.delete().await.unwrap_err();
        assert!(error.code == Code::NotFound && error.message.contains("or was deleted"), "{error}");
    });
}

#[test]
fn each_method_of_an_exec_in_each_state() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        for (what, allowed, act) in EXEC_ACTS {
            for at in [Created, Running, Stopped] {
                let (box_, task) = container(&namespace, "box", Running).await;
                let exec = exec(&task, at).await;
                judge(what, at, allowed, act(&exec).await);
                box_.remove(true).await.unwrap();
            }
        }
        let (box_, task) = container(&namespace, "box", Running).await;
        for (what, _, act) in EXEC_ACTS {
            let error = act(&task.process("nobody")).await.unwrap_err();
            assert_eq!((error.code, &*error.kind), (Code::NotFound, "process"), "{what}: {error}");
        }
        box_.remove(true).await.unwrap();
    });
}

/// What is a pipe is there before the process is.
#[test]
fn the_input_of_an_exec_is_written_and_closed_before_its_start() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (box_, task) = container(&namespace, "box", Running).await;
        for (text, close) in [("", true), ("given before\n", false)] {
            let (stdout, arrivals) = cofferdam_integration::output();
            let options = ProcessOptions { args: vec!["cat".into()], ..ProcessOptions::default() };
            let stdio = Stdio { stdin: Input::Stream, stdout, ..Stdio::default() };
            let exec = task.exec("cat", &options, stdio);
            if close {
                exec.close_stdin().await.unwrap();
                let closed = exec.stdin().end().await.unwrap_err();
                assert_eq!(closed.code, Code::FailedPrecondition, "{closed}");
            } else {
                let stdin = exec.stdin();
                stdin.write(text.as_bytes()).await.unwrap();
                stdin.end().await.unwrap();
            }
            exec.start().await.unwrap();
            assert_eq!(exec.wait().await.unwrap().status, 0);
            assert_eq!(arrivals.text().await, text);
            exec.delete().await.unwrap();
        }
        box_.remove(true).await.unwrap();
    });
}

#[test]
fn of_many_deletions_at_once_each_gives_the_exit_or_finds_nothing() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let container = crate::container(&namespace, "box", "exit 7");
        for _ in 0..5 {
            let task = container.create_task(Stdio::default(), false);
            task.start().await.unwrap();
            let exit = task.wait().await.unwrap();
            let mut all = Vec::new();
            for _ in 0..8 {
                all.push(daemon.open().await.containers().get("box").task());
            }
            let deleted = futures::future::join_all(all.iter().map(|task| task.delete())).await;
            assert!(deleted.iter().any(Result::is_ok), "{deleted:?}");
            for deleted in deleted {
                match deleted {
                    Ok(told) => assert_eq!(told, exit),
                    Err(error) => assert_eq!(error.code, Code::NotFound, "{error}"),
                }
            }
            // However often it is said.
            assert_eq!(task.delete().await.unwrap_err().code, Code::NotFound);
        }
        container.remove(false).await.unwrap();
        assert_eq!(container.remove(true).await.unwrap_err().code, Code::NotFound);
    });
    daemon.settles(&before);
}
