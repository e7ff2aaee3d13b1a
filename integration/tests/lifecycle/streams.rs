//! Standard streams: descriptors of the client's, and byte streams for those who can pass none.

use std::{io::Write as _, time::Instant};

use cofferdam_client::{Input, Output, Receiver, Stdio, channel};
use cofferdam_integration::{Daemon, bounded, input, output, pipe};
use cofferdam_types::Code;

use crate::{script, start};

async fn all(mut receiver: Receiver) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(chunk) = receiver.next().await {
        bytes.extend(chunk);
    }
    bytes
}

#[test]
fn a_descriptor_is_the_processs_own() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let ((stdin, feed), (stdout, arrivals)) = (input(), output());
        let mut request = script(&daemon, "cat", "cat; echo end");
        request.stdio = Stdio { stdin, stdout, ..Stdio::default() };
        let run = start(&client, request).await;
        (&feed).write_all(b"straight through\n").unwrap();
        arrivals.contains("straight").await;
        // The end of the pipe is the end of the input: nobody else holds it.
        drop(feed);
        assert_eq!(arrivals.text().await, "straight through\nend\n");
        assert_eq!(run.wait().await.unwrap().status, 0);
    });
}

#[test]
fn a_file_takes_output_at_its_offset() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        for log in [false, true] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"before\n").unwrap();
            let mut request = script(&daemon, &format!("file-{log}"), "echo behind; cat");
            request.stdio.stdout = Output::Fd(file.try_clone().unwrap().into());
            request.stdio.stdin = Input::Fd(std::fs::File::open("/etc/hostname").unwrap().into());
            request.log = log;
            let run = client.run(request).unwrap();
            assert_eq!(run.wait().await.unwrap().status, 0);
            let hostname = std::fs::read_to_string("/etc/hostname").unwrap();
            let mut text = String::new();
            std::io::Seek::rewind(&mut file).unwrap();
            std::io::Read::read_to_string(&mut file, &mut text).unwrap();
            assert_eq!(text, format!("before\nbehind\n{hostname}"));
        }
    });
}

#[test]
fn streams_do_what_descriptors_do() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let ((out_sink, out), (err_sink, err)) = (channel(), channel());
        let mut request = script(&daemon, "cat", "cat; echo gone >&2; exit 4");
        request.stdio = Stdio {
            stdin: Input::Stream,
            stdout: Output::Stream(out_sink),
            stderr: Output::Stream(err_sink),
            size: (0, 0),
        };
        let run = start(&client, request).await;
        let text = "over and over\n".repeat(100_000);
        let stdin = run.task().stdin();
        let feed = async {
            stdin.write(text.as_bytes()).await.unwrap();
            stdin.end().await.unwrap();
        };
        let (out, err, ()) = tokio::join!(all(out), all(err), feed);
        assert!(out == text.as_bytes(), "{} of {}", out.len(), text.len());
        assert_eq!(err, b"gone\n");
        assert_eq!(run.wait().await.unwrap().status, 4);
    });
}

#[test]
fn an_input_is_closed_from_outside() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (stdout, arrivals) = output();
        let mut request = script(&daemon, "cat", "cat; echo end");
        request.stdio = Stdio { stdin: Input::Stream, stdout, ..Stdio::default() };
        let run = start(&client, request).await;
        run.task().stdin().write(b"one\n").await.unwrap();
        arrivals.contains("one").await;
        run.task().close_stdin().await.unwrap();
        assert_eq!(arrivals.text().await, "one\nend\n");
        assert_eq!(run.wait().await.unwrap().status, 0);
    });
}

#[test]
fn what_was_not_declared_a_stream_takes_no_input() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (_, task) = crate::idle(&namespace, "box").await;
        let error = task.stdin().write(b"x").await.err();
        // A write may be taken before it is known where it goes; the end of the stream tells.
        let error = match error {
            Some(error) => error,
            None => task.stdin().end().await.unwrap_err(),
        };
        assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    });
}

#[test]
fn ten_mebibytes_before_the_exit_all_arrive() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let flood = "yes 0123456789abcde | head -c 10485760";
        for log in [false, true] {
            let (stdout, arrivals) = output();
            let mut request = script(&daemon, &format!("flood-{log}"), flood);
            request.stdio.stdout = stdout;
            request.log = log;
            let run = client.run(request).unwrap();
            assert_eq!(run.wait().await.unwrap().status, 0);
            let bytes = arrivals.all().await;
            assert_eq!(bytes.len(), 10 << 20, "log {log}");
            assert!(bytes.chunks(16).all(|line| line == b"0123456789abcde\n"));
        }
        let (sink, receiver) = channel();
        let mut request = script(&daemon, "flood-stream", flood);
        request.stdio.stdout = Output::Stream(sink);
        let run = client.run(request).unwrap();
        let (bytes, exit) = tokio::join!(all(receiver), run.wait());
        assert_eq!(exit.unwrap().status, 0);
        assert_eq!(bytes.len(), 10 << 20);
    });
}

/// What stays behind in the background holds the output open: that delays neither the news of the end nor the removal.
#[test]
fn a_background_child_delays_nothing() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        for log in [false, true] {
            let (stdout, arrivals) = output();
            let (stdin, _feed) = input();
            let namespace = daemon.open().await;
            let (container, task) = crate::idle(&namespace, &format!("home-{log}")).await;
            let options = cofferdam_client::ProcessOptions {
                args: ["sh", "-c", "sleep 1000 & echo started; exit 3"].map(String::from).into(),
                ..Default::default()
            };
            let exec = task.exec("brief", &options, Stdio { stdin, stdout, ..Stdio::default() });
            let began = Instant::now();
            exec.start().await.unwrap();
            assert_eq!(exec.wait().await.unwrap().status, 3);
            arrivals.contains("started").await;
            exec.delete().await.unwrap();
            assert!(began.elapsed().as_secs() < 2, "{:?}", began.elapsed());
            container.remove(true).await.unwrap();

            // The same where the first process goes: its pid namespace goes with it.
            let (stdout, arrivals) = output();
            let mut request = script(&daemon, &format!("brief-{log}"), "sleep 1000 & echo started; exit 3");
            request.stdio.stdout = stdout;
            request.container.remove_on_exit = true;
            request.log = log;
            let began = Instant::now();
            let run = client.run(request).unwrap();
            assert_eq!(run.wait().await.unwrap().status, 3);
            assert_eq!(arrivals.text().await, "started\n");
            assert!(began.elapsed().as_secs() < 2, "{:?}", began.elapsed());
        }
    });
    daemon.settles(&before);
}

/// Somebody who holds the far end and doesn't read makes the process wait, as any pipe does; he doesn't keep it from
/// being killed and removed, nor the news of it for long.
#[test]
fn a_reader_that_sleeps_holds_up_no_end() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        for log in [false, true] {
            let (read, write) = pipe();
            let mut request = script(&daemon, &format!("yes-{log}"), "yes");
            request.stdio.stdout = Output::Fd(write);
            request.container.remove_on_exit = true;
            request.log = log;
            let run = start(&client, request).await;
            let began = Instant::now();
            run.kill(9).await.unwrap();
            assert_eq!(run.wait().await.unwrap().status, 137);
            assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
            drop(read);
        }
    });
    daemon.settles(&before);
}
