//! What every runtime driver must do, ours and those of others alike, and each on every kind of cgroups that it works
//! with: hybrid or v1 as the host has them, and v2 alone.

use cofferdam_client::{ProcessOptions, Status, Stdio};
use cofferdam_integration::{Daemon, bounded, input, output, until_async};
use cofferdam_types::{Code, Timestamp};

use crate::{script, with};

/// A driver, and a host.
#[derive(Clone)]
struct On {
    runtime: String,
    unified: bool,
}

impl On {
    fn new(runtime: impl Into<String>, unified: bool) -> On {
        On { runtime: runtime.into(), unified }
    }

    fn daemon(&self) -> Daemon {
        if self.unified { Daemon::unified_with_busybox() } else { Daemon::with_busybox() }
    }

    fn runtime(&self) -> String {
        self.runtime.clone()
    }
}

/// What else is installed: youki, and what `COFFERDAM_RUNTIMES` names, by name or path and with colons between, each with `@v2`
/// behind it if it is for v2 alone.
fn others() -> Vec<On> {
    let named = std::env::var("COFFERDAM_RUNTIMES").unwrap_or_default();
    let mut all: Vec<String> = named.split(':').filter(|name| !name.is_empty()).map(String::from).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join("youki").is_file()) {
        all.push("youki".into());
    }
    let on = |name: String| match name.strip_suffix("@v2") {
        Some(name) => On::new(name, true),
        None => On::new(name, false),
    };
    all.into_iter().map(on).collect()
}

macro_rules! contract {
    ($driver:ident: $all:expr; $($name:ident)*) => {
        mod $driver {
            use super::*;
            $(#[test]
            fn $name() {
                for on in $all {
                    super::$name(on);
                }
            })*
        }
    };
}

contract! {
    native: [On::new("native", false)];
    states waiters exit_codes kills execs terminals pipes logs frozen removed_on_exit unstartable refused
}
contract! {
    runc: [On::new("runc", false)];
    states waiters exit_codes kills execs terminals pipes logs frozen removed_on_exit unstartable refused
}
contract! {
    // It refuses hybrid cgroups.
    crun: [On::new(cofferdam_integration::crun(), true)];
    states waiters exit_codes kills execs terminals pipes logs frozen removed_on_exit unstartable refused
}
contract! {
    other: others();
    states waiters exit_codes kills execs terminals pipes logs frozen removed_on_exit unstartable refused
}
// What has to do with cgroups.
contract! {
    native_on_v2: [On::new("native", true)];
    states kills execs frozen
}
contract! {
    runc_on_v2: [On::new("runc", true)];
    states kills execs frozen
}

fn states(on: On) {
    let daemon = on.daemon();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exec sleep 1000", |c| c.runtime = on.runtime());
        assert_eq!(container.info().await.unwrap().task, None);
        let missing = container.task().state().await.unwrap_err();
        assert_eq!((missing.code, &*missing.kind), (Code::NotFound, "task"));

        let task = container.create_task(Stdio::default(), false);
        let made = task.state().await.unwrap();
        assert_eq!((made.status, made.exit), (Status::Created, None));
        assert!(made.pid > 0, "it is there, held before its program");
        let twice = container.create_task(Stdio::default(), false).state().await.unwrap_err();
        assert_eq!(twice.code, Code::FailedPrecondition);

        let pid = task.start().await.unwrap();
        let runs = task.state().await.unwrap();
        assert_eq!((runs.status, runs.pid), (Status::Running, pid));
        let again = task.start().await.unwrap_err();
        assert_eq!(again.code, Code::FailedPrecondition);
        let busy = task.delete().await.unwrap_err();
        assert_eq!(busy.code, Code::FailedPrecondition);

        let asked = Timestamp::now();
        task.kill(9, false).await.unwrap();
        let exit = task.wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, ""));
        assert!(exit.at >= asked && exit.at <= Timestamp::now(), "{exit:?}");
        let ended = task.state().await.unwrap();
        assert_eq!((ended.status, ended.pid, ended.exit), (Status::Stopped, 0, Some(exit.clone())));
        let shown = container.info().await.unwrap().task.unwrap();
        assert_eq!((shown.status, shown.exit.as_ref()), (Status::Stopped, Some(&exit)));
        assert!(shown.created <= shown.started && shown.started <= exit.at, "{shown:?}");

        assert_eq!(task.delete().await.unwrap(), exit);
        assert_eq!(container.info().await.unwrap().task, None);
        // The container stays, and can run again.
        let second = container.create_task(Stdio::default(), false);
        second.start().await.unwrap();
        second.kill(9, false).await.unwrap();
        assert_eq!(second.wait().await.unwrap().status, 137);
        container.remove(false).await.unwrap();
        assert_eq!(container.info().await.unwrap_err().code, Code::NotFound);
    });
    daemon.settles(&before);
}

fn waiters(on: On) {
    let daemon = on.daemon();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exit 5", |c| c.runtime = on.runtime());
        let task = container.create_task(Stdio::default(), false);
        // Before the start, by several, on several connections.
        let early: Vec<_> = (0..5).map(|_| task.wait()).collect();
        task.state().await.unwrap();
        let other = daemon.open().await.containers().get("box").task();
        let elsewhere = other.wait();
        other.state().await.unwrap();
        task.start().await.unwrap();
        let exit = elsewhere.await.unwrap();
        assert_eq!(exit.status, 5);
        for wait in early {
            assert_eq!(wait.await.unwrap(), exit);
        }
        // After the end, until it is deleted.
        assert_eq!(task.wait().await.unwrap(), exit);
        assert_eq!(daemon.open().await.containers().get("box").task().wait().await.unwrap(), exit);
        task.delete().await.unwrap();
        assert_eq!(task.wait().await.unwrap_err().code, Code::NotFound);
    });
}

fn exit_codes(on: On) {
    let daemon = on.daemon();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        for code in [0, 1, 42, 255] {
            let mut request = script(&daemon, &format!("code{code}"), &format!("exit {code}"));
            request.container.runtime = on.runtime();
            request.container.remove_on_exit = true;
            let exit = client.run(request).unwrap().wait().await.unwrap();
            assert_eq!((exit.status, &*exit.reason), (code, ""));
        }
    });
    daemon.settles(&before);
}

fn kills(on: On) {
    let daemon = on.daemon();
    bounded(async {
        let namespace = daemon.open().await;
        // As the first of its pid namespace a process dies of nothing but SIGKILL that it has no handler for.
        let ready = "trap 'exit 7' TERM; trap 'exit 8' USR1; sleep 1000 & echo ready; wait";
        for (id, signal, status) in [("term", 15, 7), ("usr1", 10, 8), ("kill", 9, 137)] {
            let container = with(&namespace, id, ready, |c| c.runtime = on.runtime());
            let (stdout, arrivals) = output();
            let task = container.create_task(Stdio { stdout, ..Stdio::default() }, false);
            task.start().await.unwrap();
            arrivals.contains("ready").await;
            task.kill(signal, false).await.unwrap();
            assert_eq!(task.wait().await.unwrap().status, status, "signal {signal}");
            let late = task.kill(signal, false).await.unwrap_err();
            assert_eq!((late.code, &*late.kind), (Code::NotFound, "process"));
        }

        // Others die as they should, and `all` reaches every one.
        let container = with(&namespace, "all", "exec sleep 1000", |c| c.runtime = on.runtime());
        let task = container.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        let options = ProcessOptions { args: vec!["sleep".into(), "1000".into()], ..ProcessOptions::default() };
        let execs: Vec<_> = ["a", "b", "c"].map(|id| task.exec(id, &options, Stdio::default())).into();
        for exec in &execs {
            exec.start().await.unwrap();
        }
        for none in [1000, u32::MAX] {
            let error = task.kill(none, false).await.unwrap_err();
            assert_eq!((error.code, error.id), (Code::InvalidArgument, none.to_string()));
        }
        execs[0].kill(15, false).await.unwrap();
        assert_eq!(execs[0].wait().await.unwrap().status, 143);
        execs[1].kill(1, false).await.unwrap();
        assert_eq!(execs[1].wait().await.unwrap().status, 129);
        task.kill(15, true).await.unwrap();
        assert_eq!(execs[2].wait().await.unwrap().status, 143);
        // Of those that have no name too; and what is no signal goes to nobody.
        let more = task.exec("d", &options, Stdio::default());
        more.start().await.unwrap();
        for wrong in [65, 1000, u32::MAX] {
            let error = task.kill(wrong, true).await.unwrap_err();
            assert_eq!((error.code, &*error.kind), (Code::InvalidArgument, "signal"), "{error}");
        }
        task.kill(37, true).await.unwrap();
        assert_eq!(more.wait().await.unwrap().status, 128 + 37);
        assert_eq!(task.state().await.unwrap().status, Status::Running, "the first has no handler");
        task.kill(9, true).await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 137);
    });
}

fn execs(on: On) {
    let daemon = on.daemon();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exec sleep 1000", |c| {
            c.runtime = on.runtime();
            c.options.env = vec!["SHARED=container".into(), "MINE=container".into()];
        });
        let task = container.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        let (stdout, arrivals) = output();
        let options = ProcessOptions {
            args: ["sh", "-c", "echo $SHARED $MINE $(id -u):$(id -g) $PWD; exit 9"].map(String::from).into(),
            env: vec!["MINE=exec".into()],
            workdir: "/tmp".into(),
            user: "12:34".into(),
            ..ProcessOptions::default()
        };
        let exec = task.exec("probe", &options, Stdio { stdout, ..Stdio::default() });
        assert_eq!(exec.state().await.unwrap().status, Status::Created);
        let wait = exec.wait();
        exec.start().await.unwrap();
        assert_eq!(wait.await.unwrap().status, 9);
        assert_eq!(arrivals.text().await, "container exec 12:34 /tmp\n");
        assert_eq!(exec.delete().await.unwrap().status, 9);
        assert_eq!(task.process("probe").state().await.unwrap_err().code, Code::NotFound);
        task.kill(9, false).await.unwrap();
        task.wait().await.unwrap();
        let late = task.exec("late", &options, Stdio::default()).state().await.unwrap_err();
        assert_eq!(late.code, Code::FailedPrecondition);
    });
}

fn terminals(on: On) {
    let daemon = on.daemon();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "tty; stty size; read line; echo \"got $line\"; exit 3", |c| {
            c.runtime = on.runtime();
            c.options.terminal = true;
        });
        let ((stdin, feed), (stdout, screen)) = (input(), output());
        let task = container.create_task(Stdio { stdin, stdout, size: (30, 100), ..Stdio::default() }, false);
        let wait = task.wait();
        task.start().await.unwrap();
        let text = screen.contains("30 100\r\n").await;
        assert!(text.starts_with("/dev/pts/0\r\n") || text.starts_with("/dev/console\r\n"), "{text:?}");

        let (stdout, second) = output();
        let args = ["sh", "-c", "tty; stty size"].map(String::from).into();
        let options = ProcessOptions { args, terminal: true, ..ProcessOptions::default() };
        let exec = task.exec("probe", &options, Stdio { stdout, size: (7, 9), ..Stdio::default() });
        let ended = exec.wait();
        exec.start().await.unwrap();
        assert_eq!(ended.await.unwrap().status, 0);
        assert_eq!(second.text().await, "/dev/pts/1\r\n7 9\r\n");

        std::io::Write::write_all(&mut { feed }, b"this\r").unwrap();
        assert_eq!(wait.await.unwrap().status, 3);
        assert!(screen.text().await.ends_with("got this\r\n"));
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

fn pipes(on: On) {
    let daemon = on.daemon();
    bounded(async {
        let client = daemon.client().await;
        let (stdin, feed) = input();
        let ((stdout, out), (stderr, err)) = (output(), output());
        let mut request = script(&daemon, "cat", "cat; echo gone >&2; exit 4");
        request.container.runtime = on.runtime();
        request.stdio = Stdio { stdin, stdout, stderr, size: (0, 0) };
        let run = crate::start(&client, request).await;
        let text = "over and over\n".repeat(10_000);
        let copy = text.clone();
        std::thread::spawn(move || std::io::Write::write_all(&mut { feed }, copy.as_bytes()).unwrap());
        assert!(out.text().await == text);
        assert_eq!(err.text().await, "gone\n");
        assert_eq!(run.wait().await.unwrap().status, 4);
    });
}

fn logs(on: On) {
    let daemon = on.daemon();
    bounded(async {
        let client = daemon.client().await;
        let mut request = script(&daemon, "talk", "echo one; echo two >&2; echo three");
        request.container.runtime = on.runtime();
        request.log = true;
        let run = client.run(request).unwrap();
        run.wait().await.unwrap();
        let (out, err) = crate::log::read(&run.container(), false).await;
        assert_eq!((&*out, &*err), (&b"one\nthree\n"[..], &b"two\n"[..]));
    });
}

fn frozen(on: On) {
    let daemon = on.daemon();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let script = "n=0; while :; do n=$((n+1)); echo tick $n; usleep 2000; done";
        let container = with(&namespace, "clock", script, |c| c.runtime = on.runtime());
        let (stdout, arrivals) = output();
        let task = container.create_task(Stdio { stdout, ..Stdio::default() }, false);
        let pid = task.start().await.unwrap();
        arrivals.contains("tick 3\n").await;
        // The shell, and what it runs at the moment.
        let pids = task.pids().await.unwrap();
        assert!(pids.contains(&pid) && pids.len() <= 2, "{pids:?}");

        assert_eq!(task.resume().await.unwrap_err().code, Code::FailedPrecondition);
        task.pause().await.unwrap();
        assert_eq!(task.state().await.unwrap().status, Status::Paused);
        assert_eq!(task.pause().await.unwrap_err().code, Code::FailedPrecondition);
        // What it wrote before is on its way to us at most; then there is silence.
        let mut last = arrivals.so_far().len();
        for _ in 0..5 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            let now = arrivals.so_far().len();
            if now == last {
                break;
            }
            last = now;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!(arrivals.so_far().len(), last, "it ticks although it is frozen");
        task.resume().await.unwrap();
        assert_eq!(task.state().await.unwrap().status, Status::Running);
        until_async("it ticks again", async || (arrivals.so_far().len() > last).then_some(())).await;

        // Each of a frozen one can be killed, by the driver's freezer whichever that is: one alone, and the first with all.
        let sleeps = ["sleep", "1000"].map(String::from).into();
        let exec = task.exec("", &ProcessOptions { args: sleeps, ..ProcessOptions::default() }, Stdio::default());
        exec.start().await.unwrap();
        task.pause().await.unwrap();
        exec.kill(9, false).await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 137);
        assert_eq!(task.state().await.unwrap().status, Status::Paused);
        task.kill(9, false).await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 137);
        task.delete().await.unwrap();
        // Or removed.
        let task = container.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        task.pause().await.unwrap();
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

fn removed_on_exit(on: On) {
    let daemon = on.daemon();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        for n in 0..3 {
            let mut request = script(&daemon, &format!("brief{n}"), "echo hello > /file; exit 6");
            request.container.runtime = on.runtime();
            request.container.remove_on_exit = true;
            request.log = true;
            let run = client.run(request).unwrap();
            assert_eq!(run.wait().await.unwrap().status, 6);
            assert!(run.container().info().await.is_err_and(|e| e.code == Code::NotFound));
        }
        assert!(daemon.open().await.containers().list::<&str>(&[]).all().await.unwrap().is_empty());
    });
    daemon.settles(&before);
}

fn unstartable(on: On) {
    let daemon = on.daemon();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        for (id, command, code) in [
            ("missing", "/bin/nonsense", Code::NotFound),
            ("unknown", "nonsense", Code::NotFound),
            ("directory", "/etc", Code::FailedPrecondition),
        ] {
            let mut request = daemon.run(id, [command]);
            request.container.runtime = on.runtime();
            request.log = true;
            let run = client.run(request).unwrap();
            let error = run.wait().await.unwrap_err();
            assert_eq!(error.code, code, "{command}: {error}");
            assert!(error.to_string().contains(command), "{error}");
            assert_eq!(run.container().info().await.unwrap_err().code, Code::NotFound, "{command}");
        }
    });
    daemon.settles(&before);
}

/// A spec that the host can't honour is an error of the one who asked, and nothing of it stays.
fn refused(on: On) {
    let daemon = on.daemon();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exit 0", |c| {
            c.runtime = on.runtime();
            c.options.sysctls = [("net.nonsense".to_owned(), "1".to_owned())].into();
        });
        let task = container.create_task(Stdio::default(), false);
        let error = task.state().await.unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
        assert_eq!(container.info().await.unwrap().task, None);
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}
