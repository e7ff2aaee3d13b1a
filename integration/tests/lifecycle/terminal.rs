//! Terminals.

use std::os::fd::OwnedFd;

use cofferdam_client::{Input, Output, ProcessOptions, Stdio};
use cofferdam_integration::{Arrivals, Daemon, bounded, output, terminal, write};
use cofferdam_types::Code;

use crate::{script, start};

/// A terminal of ours as a process's streams: who sits at it, and what the process is given.
pub fn sit_down(size: (u16, u16)) -> (OwnedFd, Arrivals, Stdio) {
    let (master, slave) = terminal();
    let screen = Arrivals::new(master.try_clone().unwrap());
    let stdio =
        Stdio { stdin: Input::Fd(slave.try_clone().unwrap()), stdout: Output::Fd(slave), stderr: Output::Null, size };
    (master, screen, stdio)
}

#[test]
fn a_shell_at_a_terminal() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (keyboard, screen, stdio) = sit_down((30, 100));
        let mut request = daemon.run("shell", ["sh"]);
        request.container.options.terminal = true;
        request.stdio = stdio;
        let run = start(&client, request).await;
        // The container's terminal echoes; ours does not.
        write(&keyboard, "tty; stty size; echo st''ill\r");
        let text = screen.contains("still\r\n").await;
        assert!(text.contains("echo st''ill"), "{text:?}");
        assert!(text.contains("30 100\r\n"), "{text:?}");
        assert!(text.contains("/dev/pts/0\r\n") || text.contains("/dev/console\r\n"), "{text:?}");

        run.resize(50, 132).await.unwrap();
        write(&keyboard, "stty size; echo a''gain\r");
        assert!(screen.contains("again\r\n").await.contains("50 132\r\n"));

        // Control-C ends what runs in front, not the shell.
        write(&keyboard, "sh -c 'echo rea\"\"dy; exec sleep 1000'\r");
        screen.contains("ready\r\n").await;
        write(&keyboard, "\x03");
        write(&keyboard, "echo al''ive\r");
        screen.contains("alive\r\n").await;
        write(&keyboard, "exit 11\r");
        assert_eq!(run.wait().await.unwrap().status, 11);
        assert!(run.container().info().await.unwrap().task.unwrap().terminal);
    });
}

#[test]
fn the_default_size_is_24_by_80() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (_keyboard, screen, stdio) = sit_down((0, 0));
        let mut request = script(&daemon, "size", "stty size");
        request.container.options.terminal = true;
        request.stdio = stdio;
        let run = client.run(request).unwrap();
        assert_eq!(run.wait().await.unwrap().status, 0);
        screen.contains("24 80\r\n").await;
    });
}

#[test]
fn resizing_is_seen_by_the_process() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (_keyboard, screen, stdio) = sit_down((24, 80));
        let told = "trap 'stty size; exit 0' WINCH; echo ready; while :; do usleep 1000; done";
        let mut request = script(&daemon, "winch", told);
        request.container.options.terminal = true;
        request.stdio = stdio;
        let run = start(&client, request).await;
        screen.contains("ready").await;
        run.resize(33, 44).await.unwrap();
        assert_eq!(run.wait().await.unwrap().status, 0);
        screen.contains("33 44\r\n").await;
    });
}

#[test]
fn what_has_no_terminal_has_no_size() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (_, task) = crate::idle(&namespace, "box").await;
        assert_eq!(task.resize(1, 1).await.unwrap_err().code, Code::FailedPrecondition);
    });
}

#[test]
fn an_exec_at_a_terminal() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (_, task) = crate::idle(&namespace, "box").await;
        let (keyboard, screen, stdio) = sit_down((40, 90));
        let options = ProcessOptions { args: vec!["sh".into()], terminal: true, ..ProcessOptions::default() };
        let exec = task.exec("shell", &options, stdio);
        exec.start().await.unwrap();
        write(&keyboard, "stty size; tty && echo y''es\r");
        assert!(screen.contains("yes\r\n").await.contains("40 90\r\n"));
        exec.resize(41, 91).await.unwrap();
        write(&keyboard, "stty size; exit 3\r");
        screen.contains("41 91\r\n").await;
        assert_eq!(exec.wait().await.unwrap().status, 3);
    });
}

#[test]
fn flags_of_our_terminal_stay_as_they_are() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (_master, slave) = terminal();
        let flags = |fd: &OwnedFd| nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        let before = flags(&slave);
        let mut request = script(&daemon, "flags", "exec sleep 1000");
        request.container.options.terminal = true;
        request.stdio.stdin = Input::Fd(slave.try_clone().unwrap());
        request.stdio.stdout = Output::Fd(slave.try_clone().unwrap());
        let run = start(&client, request).await;
        assert_eq!(flags(&slave), before);
        run.kill(9).await.unwrap();
        run.wait().await.unwrap();
        assert_eq!(flags(&slave), before);
    });
}

#[test]
fn a_terminal_that_nobody_sits_at_can_be_attached_to() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let mut request = daemon.run("shell", ["sh"]);
        request.container.options.terminal = true;
        request.log = true;
        let run = start(&client, request).await;
        let (keyboard, screen, stdio) = sit_down((0, 0));
        let (stdout, second) = output();
        // The one who types comes last: what he types is seen by both.
        let watcher = run.task().attach(Stdio { stdout, ..Stdio::default() });
        let attachment = run.task().attach(stdio);
        let over = attachment.wait();
        let watched = watcher.wait();
        write(&keyboard, "echo he''re\r");
        screen.contains("here\r\n").await;
        second.contains("here\r\n").await;
        write(&keyboard, "exit 0\r");
        assert_eq!(run.wait().await.unwrap().status, 0);
        assert_eq!(over.await.unwrap(), "exit");
        assert_eq!(watched.await.unwrap(), "exit");
        let (out, _) = crate::log::read(&run.container(), false).await;
        assert!(String::from_utf8_lossy(&out).contains("here\r\n"));
    });
}

// The way in of a client that passes no descriptors: a stream, at the start and of who comes later.
#[test]
fn a_terminal_is_typed_at_through_a_stream() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (sink, mut screen) = cofferdam_client::channel();
        let mut request = daemon.run("shell", ["sh"]);
        request.container.options.terminal = true;
        request.stdio = Stdio { stdin: Input::Stream, stdout: Output::Stream(sink), ..Stdio::default() };
        let run = start(&client, request).await;
        let keyboard = run.task().stdin();
        keyboard.write(b"tty && echo he''re\r").await.unwrap();
        let mut text = String::new();
        while !text.contains("here\r\n") {
            text.push_str(std::str::from_utf8(&screen.next().await.expect("it goes on")).unwrap());
        }
        // The end of what was typed this way is none of the terminal: another comes and goes on.
        keyboard.end().await.unwrap();
        let later = daemon.open().await.containers().get("shell").task();
        assert_eq!(later.state().await.unwrap().status.as_str(), "running");
        let (stdout, second) = output();
        let _attachment = later.attach(Stdio { stdout, ..Stdio::default() });
        later.stdin().write(b"echo a''gain; exit 5\r").await.unwrap();
        second.contains("again\r\n").await;
        assert_eq!(run.wait().await.unwrap().status, 5);
        let error = later.stdin().end().await.unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    });
}
