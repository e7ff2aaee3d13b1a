//! Calls for a container that are sent before its making is answered: its task is made beside the commit of its record.

use cofferdam_client::Stdio;
use cofferdam_integration::{Daemon, bounded};
use cofferdam_types::Code;

use crate::{container, named, with};

#[test]
fn each_is_answered_with_what_became_of_the_commit() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        // More than a label may have, which only the transaction finds.
        let wrong = with(&namespace, "wrong", "exit 0", |c| {
            c.labels.insert("long".into(), "x".repeat(5000));
        });
        let task = wrong.create_task(Stdio::default(), true);
        let (started, exit, info, removed) = (task.start(), task.wait(), wrong.info(), wrong.remove(false));
        let (started, exit, info, removed) = futures::join!(started, exit, info, removed);
        for error in [started.map(drop), exit.map(drop), info.map(drop), removed] {
            let error = error.unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument, "{error}");
            assert!(error.to_string().contains("label"), "{error}");
        }
        assert!(namespace.containers().list::<&str>(&[]).all().await.unwrap().is_empty());
    });
    daemon.settles(&before);
}

#[test]
fn a_second_one_of_a_name_does_nothing_to_the_first() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let first = container(&namespace, "box", "echo first; exit 3");
        first.info().await.unwrap();
        let second = container(&namespace, "box", "echo second; exit 4");
        let task = second.create_task(Stdio::default(), true);
        let error = task.start().await.unwrap_err();
        assert_eq!(named(&error), (Code::AlreadyExists, "container", "box"), "{error}");
        assert_eq!(first.task().state().await.unwrap_err().code, Code::NotFound);

        // Many of them at once: one is made, and each of the others is told so.
        let all = (0..16).map(|n| {
            let one = container(&namespace, "race", &format!("exit {}", 20 + n));
            let task = one.create_task(Stdio::default(), false);
            let (started, exit) = (task.start(), task.wait());
            async move {
                let outcome = futures::join!(started, exit);
                drop((one, task));
                (20 + n, outcome)
            }
        });
        let mut made = 0;
        for (code, outcome) in futures::future::join_all(all).await {
            match outcome {
                (Ok(_), exit) => {
                    assert_eq!(exit.unwrap().status, code);
                    made += 1;
                }
                (Err(error), _) => assert_eq!(named(&error), (Code::AlreadyExists, "container", "race"), "{error}"),
            }
        }
        assert_eq!(made, 1);
        let task = first.create_task(Stdio::default(), false);
        let (started, exit) = (task.start(), task.wait());
        started.await.unwrap();
        assert_eq!(exit.await.unwrap().status, 3);
        first.remove(false).await.unwrap();
        namespace.containers().get("race").remove(false).await.unwrap();
    });
    daemon.settles(&before);
}
