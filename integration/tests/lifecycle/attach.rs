//! Several clients on one process.

use std::time::Duration;

use cofferdam_client::{Input, Output, Stdio};
use cofferdam_integration::{Arrivals, Daemon, bounded, input, output, pipe, until_async};
use cofferdam_types::Code;

use crate::{script, start};

fn out(stdout: Output) -> Stdio {
    Stdio { stdout, ..Stdio::default() }
}

/// Who has said something may have said it before anybody was attached: it is said again until it is heard.
async fn heard(feed: &std::fs::File, line: &str, arrivals: &Arrivals) {
    until_async("what is written arrives", async || {
        std::io::Write::write_all(&mut { feed }, format!("{line}\n").as_bytes()).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        String::from_utf8_lossy(&arrivals.so_far()).contains(line).then_some(())
    })
    .await;
}

#[test]
fn each_sees_what_comes_and_one_that_is_slow_is_detached_alone() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (stdin, feed) = input();
        // 32 KiB for each line of input.
        let talk = "echo early; while read go; do yes 0123456789abcde | head -c 32768; echo step $go; done; echo end";
        let mut request = script(&daemon, "talk", talk);
        request.stdio.stdin = stdin;
        request.log = true;
        let run = start(&client, request).await;
        let task = run.task();
        let (first, second) = (output(), output());
        let one = task.attach(out(first.0));
        let elsewhere = daemon.open().await.containers().get("talk").task();
        let two = elsewhere.attach(out(second.0));
        // Nobody reads this one: it has the pipe and what the shim holds for it, and no more.
        let (unread, write) = pipe();
        let slow = task.attach(out(Output::Fd(write)));
        let (over, one_over, two_over) = (slow.wait(), one.wait(), two.wait());
        heard(&feed, "first", &first.1).await;
        heard(&feed, "second", &second.1).await;

        for step in 0..20 {
            std::io::Write::write_all(&mut &feed, format!("{step}\n").as_bytes()).unwrap();
            first.1.contains(&format!("step {step}\n")).await;
            second.1.contains(&format!("step {step}\n")).await;
        }
        assert_eq!(over.await.unwrap(), "overflow");
        // It is let go of at once: behind what it could hold its pipe ends, although it is still not read by then.
        let held = Arrivals::new(unread).all().await;
        assert!(!held.is_empty() && held.len() <= 64 << 10, "{}", held.len());
        drop(feed);
        assert_eq!(run.wait().await.unwrap().status, 0);
        assert_eq!((one_over.await.unwrap(), two_over.await.unwrap()), ("exit".into(), "exit".into()));
        drop((one, two, slow));

        // From where they came in on they have what the log has.
        let (kept, _) = crate::log::read(&run.container(), false).await;
        assert!(kept.starts_with(b"early\n") && kept.ends_with(b"step 19\nend\n"));
        for arrivals in [first.1, second.1] {
            let bytes = arrivals.all().await;
            assert!(bytes.len() > 20 * 32768 && kept.ends_with(&bytes), "{} of {}", bytes.len(), kept.len());
        }
    });
}

#[test]
fn who_follows_no_output_is_told_of_the_end_all_the_same() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let mut request = script(&daemon, "reads", "read line");
        let (stdin, feed) = input();
        request.stdio.stdin = stdin;
        request.log = true;
        let run = start(&client, request).await;
        let nothing = run.task().attach(Stdio::default());
        nothing.made().await.unwrap();
        let over = nothing.wait();
        drop(feed);
        assert_eq!(run.wait().await.unwrap().status, 1);
        assert_eq!(over.await.unwrap(), "exit");
        // And whoever comes later.
        assert_eq!(run.task().attach(Stdio::default()).wait().await.unwrap(), "exit");
    });
}

#[test]
fn letting_go_detaches() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (stdin, feed) = input();
        let mut request = script(&daemon, "cat", "cat");
        request.stdio.stdin = stdin;
        request.log = true;
        let run = start(&client, request).await;
        let (stdout, arrivals) = output();
        let attachment = run.task().attach(out(stdout));
        heard(&feed, "seen", &arrivals).await;
        drop(attachment);
        // The end of the stream: nobody holds its other end any more.
        assert!(arrivals.text().await.starts_with("seen\n"));
        // A connection that breaks is let go of as well.
        let (stdout, arrivals) = output();
        let other = daemon.client().await;
        let held = other.namespace(daemon.namespace()).containers().get("cat").task();
        let attachment = held.attach(out(stdout));
        heard(&feed, "again", &arrivals).await;
        drop((attachment, held, other));
        assert!(arrivals.text().await.starts_with("again\n"));
        // The process goes on.
        std::io::Write::write_all(&mut &feed, b"last\n").unwrap();
        drop(feed);
        assert_eq!(run.wait().await.unwrap().status, 0);
        assert!(crate::log::read(&run.container(), false).await.0.ends_with(b"again\nlast\n"));
    });
}

#[test]
fn input_can_be_fed_later() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let mut request = script(&daemon, "cat", "cat");
        request.stdio.stdin = Input::Stream;
        request.log = true;
        let run = start(&client, request).await;
        let ((stdin, feed), (stdout, arrivals)) = (input(), output());
        let attachment = run.task().attach(Stdio { stdin, stdout, ..Stdio::default() });
        // Its own input: what is written before it is attached waits in the pipe.
        std::io::Write::write_all(&mut &feed, b"late but there\n").unwrap();
        arrivals.contains("late but there").await;
        run.task().close_stdin().await.unwrap();
        assert_eq!(run.wait().await.unwrap().status, 0);
        drop(attachment);
    });
}

#[test]
fn pipes_that_were_handed_over_can_not_be_shared() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let (_, task) = crate::idle(&namespace, "box").await;
        let (stdout, _arrivals) = output();
        let error = task.attach(out(stdout)).wait().await.unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
    });
}

#[test]
fn an_ended_process_has_nothing_more_to_say() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let mut request = script(&daemon, "brief", "echo said");
        request.log = true;
        let run = client.run(request).unwrap();
        run.wait().await.unwrap();
        let (stdout, arrivals) = output();
        assert_eq!(run.task().attach(out(stdout)).wait().await.unwrap(), "exit");
        assert_eq!(arrivals.text().await, "");
    });
}

/// What they hold is the shim's memory, which has a bound.
#[test]
fn so_many_are_attached_to_one_process_and_no_more() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let mut request = script(&daemon, "talk", "exec sleep 1000");
        request.log = true;
        let run = start(&client, request).await;
        let mut attached: Vec<_> = (0..64).map(|_| run.task().attach(Stdio::default())).collect();
        // Answered behind all of them, on their connection.
        let error = run.task().attach(Stdio::default()).wait().await.unwrap_err();
        assert_eq!((error.code, &*error.kind), (Code::ResourceExhausted, "process"), "{error}");
        attached.pop();
        until_async("there is room again", async || match run.task().attach(Stdio::default()).made().await {
            Ok(()) => Some(()),
            Err(error) => {
                assert_eq!(error.code, Code::ResourceExhausted, "{error}");
                None
            }
        })
        .await;
        run.container().remove(true).await.unwrap();
    });
}
