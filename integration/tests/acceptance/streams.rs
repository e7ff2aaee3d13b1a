//! What processes read and write.

use std::{fs::File, io::Write as _, os::fd::OwnedFd};

use cofferdam_client::{Input, Output, Status, Stdio, channel};
use cofferdam_integration::{Arrivals, input, output, terminal, write};

use crate::place::{Place, heard, sh};

pub async fn container_output(place: &Place) {
    let container = place.with("", |request| request.options.args = ["echo", "kingkoye"].map(String::from).into());
    let (stdio, said) = heard();
    let task = container.create_task(stdio, false);
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().status, 0);
    assert_eq!(said.text().await, "kingkoye\n");
}

/// The daemon's side holds a FIFO open: that its writer goes is no end yet.
pub async fn container_close_io(place: &Place) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stdin");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let container = place.container("exec cat");
    let (stdout, said) = output();
    let stdin = Input::Fifo(path.to_str().unwrap().into());
    let task = container.create_task(Stdio { stdin, stdout, ..Stdio::default() }, false);
    task.start().await.unwrap();
    let mut writer = File::options().write(true).open(&path).unwrap();
    writer.write_all(b"hello\n").unwrap();
    drop(writer);
    said.contains("hello\n").await;
    assert_eq!(task.state().await.unwrap().status, Status::Running);
    task.close_stdin().await.unwrap();
    assert_eq!(task.wait().await.unwrap().status, 0);
    assert_eq!(said.text().await, "hello\n");
}

pub async fn container_attach(place: &Place) {
    let container = place.container("exec cat");
    let (sink, mut first) = channel();
    let stdio = Stdio { stdin: Input::Stream, stdout: Output::Stream(sink), ..Stdio::default() };
    let task = container.create_task(stdio, true);
    task.start().await.unwrap();
    task.stdin().write(b"before\n").await.unwrap();
    assert_eq!(first.next().await.unwrap(), b"before\n");

    let loaded = place.elsewhere().await.containers().get("box").task();
    let ((stdin, mut feed), (stdout, said)) = (input(), output());
    let attachment = loaded.attach(Stdio { stdin, stdout, ..Stdio::default() });
    let over = attachment.wait();
    feed.write_all(b"after\n").unwrap();
    assert_eq!(said.contains("after\n").await, "after\n");
    assert_eq!(first.next().await.unwrap(), b"after\n");
    loaded.close_stdin().await.unwrap();
    assert_eq!(loaded.wait().await.unwrap().status, 0);
    assert_eq!(over.await.unwrap(), "exit");
}

/// A terminal of ours as a process's streams: who sits at it, and what the process is given.
fn sit_down(size: (u16, u16)) -> (OwnedFd, Arrivals, Stdio) {
    let (master, slave) = terminal();
    let screen = Arrivals::new(master.try_clone().unwrap());
    let stdin = Input::Fd(slave.try_clone().unwrap());
    (master, screen, Stdio { stdin, stdout: Output::Fd(slave), stderr: Output::Null, size })
}

pub async fn container_attach_process(place: &Place) {
    let (_, task) = place.asleep().await;
    let mut options = sh("stty -echo; echo ready; exec cat");
    options.terminal = true;
    let (keyboard, screen, stdio) = sit_down((0, 0));
    let exec = task.exec("probe", &options, stdio);
    exec.start().await.unwrap();
    screen.contains("ready\r\n").await;
    write(&keyboard, "before\r");
    screen.contains("before\r\n").await;

    let loaded = place.elsewhere().await.containers().get("box").task().process("probe");
    let ((stdin, mut feed), (stdout, said)) = (input(), output());
    let attachment = loaded.attach(Stdio { stdin, stdout, ..Stdio::default() });
    let over = attachment.wait();
    feed.write_all(b"after\r").unwrap();
    assert_eq!(said.contains("after\r\n").await, "after\r\n");
    screen.contains("after\r\n").await;
    // The end of the input, as a terminal has it.
    feed.write_all(b"\x04").unwrap();
    assert_eq!(loaded.wait().await.unwrap().status, 0);
    assert_eq!(over.await.unwrap(), "exit");
}

pub async fn task_resize(place: &Place) {
    let container = place.with("stty size", |request| request.options.terminal = true);
    let (_keyboard, screen, stdio) = sit_down((24, 80));
    let task = container.create_task(stdio, false);
    assert_eq!(task.state().await.unwrap().status, Status::Created);
    task.resize(50, 120).await.unwrap();
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().status, 0);
    screen.contains("50 120\r\n").await;
}

pub async fn terminal_io(place: &Place) {
    let container = place.with("exec sh", |request| request.options.terminal = true);
    let (keyboard, screen, stdio) = sit_down((30, 100));
    let task = container.create_task(stdio, false);
    task.start().await.unwrap();
    write(&keyboard, "test -t 0 && test -t 1 && test -t 2 && stty size && echo st''ill\r");
    let text = screen.contains("still\r\n").await;
    // What is typed is echoed by the container's terminal; ours is silent.
    assert!(text.contains("st''ill\r\n") && text.contains("30 100\r\n"), "{text:?}");
    // Control-C ends what runs in front, and not the shell.
    write(&keyboard, "sh -c 'echo rea\"\"dy; exec sleep 1000'\r");
    screen.contains("ready\r\n").await;
    write(&keyboard, "\x03");
    write(&keyboard, "echo al''ive\r");
    screen.contains("alive\r\n").await;
    write(&keyboard, "exit 11\r");
    assert_eq!(task.wait().await.unwrap().status, 11);
}
