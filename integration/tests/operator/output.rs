//! What becomes of a container's output that can't be written where `coffer` was to write it.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    process::Stdio,
};

use cofferdam_integration::{BUSYBOX, Daemon, until};

use crate::{Said, ok};

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn onto(daemon: &Daemon, out: impl Into<Stdio>, args: &[&str]) -> Said {
    Said::from(
        daemon.command().args(args).stdout(out).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap(),
    )
}

#[test]
fn what_cant_be_written_is_said_and_the_container_goes_on() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    for (flags, code, ends) in [(&[][..], 0, 125), (&[], 3, 3), (&["-t"], 0, 125)] {
        let script = format!("echo one; echo two; exit {code}");
        let args = [&["run", "--name", "box"], flags, &[BUSYBOX, "sh", "-c", &script]].concat();
        let said = onto(&daemon, full(), &args);
        assert_eq!(said.code, ends, "{said:?}");
        assert_eq!(said.err.matches("standard output: ").count(), 1, "{said:?}");
        assert!(said.err.contains("not shown; it goes on"), "{said:?}");
        assert_eq!(ok(&daemon, &["logs", "box"]).split_whitespace().collect::<Vec<_>>(), ["one", "two"]);
        ok(&daemon, &["rm", "box"]);
    }
    // What has the descriptor itself has heard of it.
    let said = onto(&daemon, full(), &["run", "--rm", BUSYBOX, "sh", "-c", "echo one || exit 7"]);
    assert_eq!(said.code, 7, "{said:?}");
    daemon.settles(&before);
}

#[test]
fn with_its_reader_coffer_goes_and_the_container_stays() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let head = |args: &[&str]| {
        let mut command = daemon.command();
        let mut program = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 2];
        program.stdout.take().unwrap().read_exact(&mut first).unwrap();
        assert_eq!(first, *b"y\n");
        until("it ends", || program.try_wait().unwrap());
        let said = Said::from(program.wait_with_output().unwrap());
        assert_eq!((said.code, said.err.as_str()), (141, ""), "{args:?}: {said:?}");
    };
    // Not so fast that who attaches falls behind before its first line is read.
    head(&["run", "--name", "box", BUSYBOX, "sh", "-c", "while echo y; do usleep 1000; done"]);
    head(&["attach", "--no-stdin", "box"]);
    head(&["run", "--rm", "--log-driver", "local", "--name", "goes", BUSYBOX, "sh", "-c", "echo y; cat /dev/zero"]);
    assert_eq!(ok(&daemon, &["ps", "-q"]), "box\ngoes\n");
    ok(&daemon, &["kill", "box", "goes"]);
    until("--rm holds", || (ok(&daemon, &["ps", "-aq"]) == "box\n").then_some(()));
    ok(&daemon, &["rm", "-f", "box"]);
    // What has the pipe itself ends by itself, and that is its own end.
    let mut command = daemon.command();
    command.args(["run", "--rm", BUSYBOX, "sh", "-c", "yes; exit 5"]);
    let mut program = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(program.stdout.take());
    assert_eq!(until("it ends", || program.try_wait().unwrap()).code(), Some(5));
    daemon.settles(&before);
}

#[test]
fn all_of_it_arrives_in_a_pipe_and_in_a_file() {
    let daemon = Daemon::with_busybox();
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    let said = onto(&daemon, Stdio::piped(), &["run", "--name", "pipe", BUSYBOX, "seq", "100000"]);
    assert!(said.code == 0 && said.out == expected, "{} bytes", said.out.len());
    // Both streams in one file.
    let mut file = tempfile::tempfile().unwrap();
    let script = "seq 1000; seq 1001 2000 >&2; exit 4";
    let mut command = daemon.command();
    command.args(["run", "--name", "file", BUSYBOX, "sh", "-c", script]);
    command.stdout(file.try_clone().unwrap()).stderr(file.try_clone().unwrap());
    assert_eq!(command.status().unwrap().code(), Some(4));
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let mut numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=2000).collect::<Vec<_>>());
    ok(&daemon, &["rm", "pipe", "file"]);
}
