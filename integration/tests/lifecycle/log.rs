//! What is kept of a container's output.

use std::{cell::RefCell, rc::Rc};

use cofferdam_client::{Container, LogStream, Stdio};
use cofferdam_integration::{Daemon, bounded, output};
use cofferdam_types::Timestamp;

use crate::{script, start, with};

/// A log as it came.
#[derive(Default)]
pub struct Kept {
    /// Each record's time, stream and bytes.
    pub records: Vec<(Timestamp, LogStream, Vec<u8>)>,
}

impl Kept {
    fn of(&self, stream: LogStream) -> Vec<u8> {
        self.records.iter().filter(|(_, of, _)| *of == stream).flat_map(|(.., bytes)| bytes.clone()).collect()
    }
}

/// Reads a log whole.
pub async fn records(container: &Container, follow: bool) -> Kept {
    let kept = Rc::new(RefCell::new(Kept::default()));
    let into = kept.clone();
    let read = container.logs(follow, move |record| {
        into.borrow_mut().records.push((record.time, record.stream, record.bytes.to_vec()));
        Ok(())
    });
    read.await.unwrap();
    kept.take()
}

/// Stdout and stderr of a log.
pub async fn read(container: &Container, follow: bool) -> (Vec<u8>, Vec<u8>) {
    let kept = records(container, follow).await;
    (kept.of(LogStream::Stdout), kept.of(LogStream::Stderr))
}

#[test]
fn order_and_times_are_kept() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let began = Timestamp::now();
        let talk = "for n in 1 2 3 4 5; do echo out $n; usleep 5000; echo err $n >&2; usleep 5000; done";
        let mut request = script(&daemon, "talk", talk);
        request.log = true;
        let run = client.run(request).unwrap();
        let exit = run.wait().await.unwrap();
        let kept = records(&run.container(), false).await;
        let expected: Vec<u8> = (1..=5).flat_map(|n| format!("out {n}\nerr {n}\n").into_bytes()).collect();
        let all: Vec<u8> = kept.records.iter().flat_map(|(.., bytes)| bytes.clone()).collect();
        assert_eq!(String::from_utf8(all).unwrap(), String::from_utf8(expected).unwrap());
        let times: Vec<Timestamp> = kept.records.iter().map(|(time, ..)| *time).collect();
        assert!(times.is_sorted() && times[0] >= began && times[times.len() - 1] <= exit.at, "{times:?} {exit:?}");
    });
}

#[test]
fn a_followed_log_ends_with_the_task() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (stdin, feed) = cofferdam_integration::input();
        let mut request = script(&daemon, "echo", "echo first; cat; echo last >&2");
        request.stdio.stdin = stdin;
        request.log = true;
        let run = start(&client, request).await;
        // From another connection; what was there and what comes.
        let elsewhere = daemon.open().await.containers().get("echo");
        let (told, mut heard) = tokio::sync::mpsc::channel(16);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let into = seen.clone();
        let follow = elsewhere.logs(true, move |record| {
            into.borrow_mut().extend(record.bytes);
            told.try_send(()).unwrap();
            Ok(())
        });
        let feed = async move {
            heard.recv().await.unwrap();
            std::io::Write::write_all(&mut { &feed }, b"second\n").unwrap();
            heard.recv().await.unwrap();
            drop(feed);
            while heard.recv().await.is_some() {}
        };
        let (done, ()) = tokio::join!(follow, feed);
        done.unwrap();
        assert_eq!(String::from_utf8_lossy(&seen.borrow()), "first\nsecond\nlast\n");
        assert_eq!(run.wait().await.unwrap().status, 0);
    });
}

#[test]
fn who_follows_before_there_is_a_task_has_what_it_writes() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "later", "echo hi", |_| ());
        container.info().await.unwrap();
        let begin = async {
            let task = container.create_task(Stdio::default(), true);
            task.start().await.unwrap();
            assert_eq!(task.wait().await.unwrap().status, 0);
            task
        };
        let ((out, _), task) = tokio::join!(read(&container, true), begin);
        assert_eq!(String::from_utf8_lossy(&out), "hi\n");
        // One that was there and is no more is not waited for by who has seen it; and a container's end is that of its log.
        task.delete().await.unwrap();
        let remove = async { container.remove(false).await.unwrap() };
        let ((out, _), ()) = tokio::join!(read(&container, true), remove);
        assert!(out.is_empty() || out == b"hi\n");
    });
}

#[test]
fn a_mebibyte_is_intact() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let mut request = script(&daemon, "much", "seq 1 200000");
        request.log = true;
        let run = client.run(request).unwrap();
        assert_eq!(run.wait().await.unwrap().status, 0);
        let (out, err) = read(&run.container(), false).await;
        let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
        assert!(expected.len() > 1 << 20);
        assert!(out == expected.as_bytes(), "{} bytes of {}", out.len(), expected.len());
        assert!(err.is_empty());
        // And followed from its beginning it is the same.
        assert!(read(&run.container(), true).await.0 == expected.as_bytes());
    });
}

#[test]
fn it_is_read_until_the_container_is_removed() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let mut request = script(&daemon, "short", "echo here");
        request.log = true;
        let run = client.run(request).unwrap();
        run.wait().await.unwrap();
        run.task().delete().await.unwrap();
        assert_eq!(read(&run.container(), false).await.0, b"here\n");
        run.container().remove(false).await.unwrap();
        let gone = run.container().logs(false, |_| Ok(())).await.unwrap_err();
        assert_eq!(gone.code, cofferdam_types::Code::NotFound);
    });
    daemon.settles(&before);
}

#[test]
fn what_is_logged_is_passed_on_too() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let ((stdout, out), (stderr, err)) = (output(), output());
        let mut request = script(&daemon, "both", "seq 1 50000; echo done >&2");
        request.stdio.stdout = stdout;
        request.stdio.stderr = stderr;
        request.log = true;
        let run = client.run(request).unwrap();
        assert_eq!(run.wait().await.unwrap().status, 0);
        let expected: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
        assert!(out.text().await == expected);
        assert_eq!(err.text().await, "done\n");
        let (kept, errors) = read(&run.container(), false).await;
        assert!(kept == expected.as_bytes() && errors == b"done\n");
    });
}

#[test]
fn ten_mebibytes_before_the_exit_are_all_kept() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let mut request = script(&daemon, "flood", "yes 0123456789abcde | head -c 10485760");
        request.log = true;
        let run = client.run(request).unwrap();
        assert_eq!(run.wait().await.unwrap().status, 0);
        // Not followed: with the exit everything is there.
        let (out, _) = read(&run.container(), false).await;
        assert_eq!(out.len(), 10 << 20);
        assert!(out.chunks(16).all(|line| line == b"0123456789abcde\n"));
    });
}
