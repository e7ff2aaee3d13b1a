//! Exit, end of output and deletion are three facts: who reads late gets every byte that was written before the exit, and
//! nobody else waits for him.
//!
//! What is written here fits into all that lies between a process and a reader that has not begun (his own pipe, the
//! shim's ring, what it has read, the pipe it reads from), and not into less. A pipe holds half as much as it could where it
//! is written in pieces that don't fill its pages, as those of a terminal are on a busy machine.

use std::{fs::File, io::Read as _, os::fd::OwnedFd, process::Stdio as Pipes};

use cofferdam_client::{Output, ProcessOptions, Stdio, channel};
use cofferdam_integration::{Daemon, bounded, pipe, until};
use cofferdam_types::Code;

use crate::{log::read, script, shims::descriptors, start};

/// 168,894 bytes.
const PIPED: &str = "seq 30000";
/// 93,894 bytes, since a terminal puts a carriage return before each line feed.
const TYPED: &str = "seq 15000";

fn lines(last: u32, end: &str) -> Vec<u8> {
    (1..=last).flat_map(|n| format!("{n}{end}").into_bytes()).collect()
}

/// Everything, now.
fn all(read: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(read).read_to_end(&mut bytes).unwrap();
    bytes
}

fn same(got: &[u8], last: u32, end: &str) {
    let wanted = lines(last, end);
    assert!(got == wanted, "{} bytes of {}", got.len(), wanted.len());
}

/// The next end of a task that is told.
async fn told(events: &mut cofferdam_client::Subscription, id: &str) {
    loop {
        let event = events.next().await.unwrap().expect("no gap");
        if event.topic == "/tasks/exit" && event.payload["container_id"] == id {
            return;
        }
    }
}

#[test]
fn a_late_reader_gets_all_and_the_exit_and_the_log_dont_wait_for_him() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let namespace = client.namespace(daemon.namespace());
        let mut events = namespace.events().subscribe(cofferdam_client::FROM_NOW, &[] as &[&str]);
        for (id, runtime) in [("native", "native"), ("foreign", "runc")] {
            let (late, stdout) = pipe();
            let mut request = script(&daemon, id, PIPED);
            request.container.runtime = runtime.into();
            (request.log, request.stdio.stdout) = (true, Output::Fd(stdout));
            let run = start(&client, request).await;
            assert_eq!(run.wait().await.unwrap().status, 0);
            told(&mut events, id).await;
            let (out, _) = read(&run.container(), false).await;
            same(&out, 30_000, "\n");
            // Followed, it has an end as well.
            let (out, _) = read(&run.container(), true).await;
            same(&out, 30_000, "\n");
            same(&all(late), 30_000, "\n");
            run.container().remove(false).await.unwrap();
        }
    });
    daemon.settles(&before);
}

#[test]
fn what_goes_with_its_end_goes_at_once_and_a_late_reader_gets_all() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        for terminal in [false, true] {
            let (late, stdout) = pipe();
            let mut request = script(&daemon, "brief", if terminal { TYPED } else { PIPED });
            (request.container.options.terminal, request.log) = (terminal, !terminal);
            (request.container.remove_on_exit, request.stdio.stdout) = (true, Output::Fd(stdout));
            let run = start(&client, request).await;
            assert_eq!(run.wait().await.unwrap().status, 0);
            assert_eq!(run.container().info().await.unwrap_err().code, Code::NotFound);
            // Another of its name is another matter.
            let (container, _task) = crate::idle(&client.namespace(daemon.namespace()), "brief").await;
            if terminal {
                same(&all(late), 15_000, "\r\n")
            } else {
                same(&all(late), 30_000, "\n")
            }
            container.remove(true).await.unwrap();
        }
    });
    daemon.settles(&before);
}

#[test]
fn a_restart_of_the_daemon_is_nothing_to_a_late_reader() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let (late, stdout) = pipe();
        let mut request = script(&daemon, "brief", PIPED);
        (request.log, request.container.remove_on_exit) = (true, true);
        request.stdio.stdout = Output::Fd(stdout);
        let run = start(&client, request).await;
        assert_eq!(run.wait().await.unwrap().status, 0);
        drop((run, client));
        daemon.kill9();
        daemon.restart();
        same(&all(late), 30_000, "\n");
    });
    daemon.settles(&before);
}

/// Though he is there still. Who reads however slowly is another matter (runtime/shim/src/output.rs).
#[test]
fn who_takes_nothing_is_waited_for_as_long_as_the_daemon_was_told() {
    let daemon = Daemon::with_flags(&["--drain-timeout", "1"]);
    daemon.import_busybox();
    let before = daemon.leftovers();
    let part = |late: OwnedFd| {
        let (got, wanted) = (all(late), lines(30_000, "\n"));
        assert!(!got.is_empty() && got.len() < wanted.len() && wanted.starts_with(&got), "{} bytes", got.len());
    };
    bounded(async {
        let client = daemon.client().await;
        let (late, stdout) = pipe();
        let mut request = script(&daemon, "brief", PIPED);
        (request.container.remove_on_exit, request.stdio.stdout) = (true, Output::Fd(stdout));
        request.log = true;
        let run = start(&client, request).await;
        assert_eq!(run.wait().await.unwrap().status, 0);
        drop(run);
        daemon.settles(&before);
        part(late);

        // Nor does what was run in a container keep its terminal open in the shim.
        let (container, task) = crate::idle(&daemon.open().await, "box").await;
        let (late, stdout) = pipe();
        let args = ["sh", "-c", TYPED].map(String::from).into();
        let options = ProcessOptions { args, terminal: true, ..ProcessOptions::default() };
        let exec = task.exec("talks", &options, Stdio { stdout: Output::Fd(stdout), ..Stdio::default() });
        exec.start().await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 0);
        let shim = crate::shims::of(&daemon);
        let terminals = || descriptors(shim).iter().filter(|(_, to)| to.ends_with("ptmx")).count();
        assert_eq!(terminals(), 1);
        exec.delete().await.unwrap();
        until("it is closed", || (terminals() == 0).then_some(()));
        drop(late);
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

/// One that never reads keeps a shim, for as long as he is there, and nothing else.
#[test]
fn who_leaves_without_reading_leaves_nothing() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        for group in ["", "pod"] {
            let (late, stdout) = pipe();
            let container = crate::with(&namespace, "box", PIPED, |c| c.group = group.into());
            let task = container.create_task(Stdio { stdout: Output::Fd(stdout), ..Stdio::default() }, true);
            task.start().await.unwrap();
            assert_eq!(task.wait().await.unwrap().status, 0);
            container.remove(false).await.unwrap();
            drop(late);
        }
    });
    daemon.settles(&before);
}

#[test]
fn a_late_reader_of_a_terminal_or_of_an_exec_gets_all() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (late, stdout) = pipe();
        let mut request = script(&daemon, "typed", TYPED);
        request.container.options.terminal = true;
        request.stdio.stdout = Output::Fd(stdout);
        let run = start(&client, request).await;
        assert_eq!(run.wait().await.unwrap().status, 0);
        same(&all(late), 15_000, "\r\n");

        let namespace = daemon.open().await;
        let (_container, task) = crate::idle(&namespace, "box").await;
        let (late, stdout) = pipe();
        let args = ["sh", "-c", TYPED].map(String::from).into();
        let options = ProcessOptions { args, terminal: true, ..ProcessOptions::default() };
        let exec = task.exec("typed", &options, Stdio { stdout: Output::Fd(stdout), ..Stdio::default() });
        exec.start().await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 0);
        // Forgotten before it is read.
        exec.delete().await.unwrap();
        same(&all(late), 15_000, "\r\n");
    });
}

#[test]
fn a_stream_that_is_read_late_has_all() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (sink, mut receiver) = channel();
        let mut request = script(&daemon, "stream", "seq 300000");
        (request.log, request.container.remove_on_exit) = (true, true);
        request.stdio.stdout = Output::Stream(sink);
        let run = start(&client, request).await;
        let mut got = Vec::new();
        while let Some(chunk) = receiver.next().await {
            got.extend(chunk);
        }
        same(&got, 300_000, "\n");
        assert_eq!(run.wait().await.unwrap().status, 0);
    });
}

/// What stays behind it may write on: that is in the log, and keeps nobody.
#[test]
fn a_child_that_stays_holds_up_neither_exit_nor_removal() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task) = crate::idle(&namespace, "box").await;
        let (late, stdout) = pipe();
        let args = ["sh", "-c", "sleep 1000 & seq 15000"].map(String::from).into();
        let options = ProcessOptions { args, terminal: true, ..ProcessOptions::default() };
        let exec = task.exec("parent", &options, Stdio { stdout: Output::Fd(stdout), ..Stdio::default() });
        exec.start().await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 0);
        // It has an end, though the child has the terminal still.
        same(&all(late), 15_000, "\r\n");
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

#[test]
fn coffer_shows_all_to_who_reads_late() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let mut events = namespace.events().subscribe(cofferdam_client::FROM_NOW, &[] as &[&str]);
        let image = cofferdam_integration::BUSYBOX;
        for (id, flags) in [("kept", &[][..]), ("brief", &["--rm", "--log-driver", "local"])] {
            let mut command = daemon.command();
            command.args(["run", "--name", id]).args(flags).args([image, "sh", "-c", PIPED]).stdout(Pipes::piped());
            let mut coffer = command.spawn().unwrap();
            let late = coffer.stdout.take().unwrap();
            told(&mut events, id).await;
            same(&all(late.into()), 30_000, "\n");
            assert_eq!(coffer.wait().unwrap().code(), Some(0));
        }
        namespace.containers().get("kept").remove(false).await.unwrap();
        assert_eq!(namespace.containers().get("brief").info().await.unwrap_err().code, Code::NotFound);
    });
    daemon.settles(&before);
}
