//! The examples of the client library, each run against a daemon: what they say they do.

use std::{cell::RefCell, rc::Rc};

use cofferdam_client::{Code, GrantOptions, Stdio};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, until_async};

use crate::{container, grants::talking, idle};

#[path = "../../../cli/client/examples/deadline.rs"]
mod deadline;
#[path = "../../../cli/client/examples/follow.rs"]
mod follow;
#[path = "../../../cli/client/examples/grant.rs"]
mod grant;
#[path = "../../../cli/client/examples/run.rs"]
mod run;

#[test]
fn a_run_with_streams() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let text = run::example(&daemon.socket(), daemon.namespace(), BUSYBOX, "hello\n").await.unwrap();
        assert_eq!(text, "HELLO\n");
        let left = daemon.open().await.containers().list::<&str>(&[]).all().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn a_grant_and_what_it_refuses() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        talking(&operator, "web", "").await;
        talking(&operator, "another", "").await;
        let (text, codes) = grant::example(&daemon.socket(), daemon.namespace(), "web").await.unwrap();
        assert_eq!((&*text, codes), ("I am web\n", [Code::Denied, Code::NotFound, Code::Revoked]));
    });
}

// The saved capability is the token: the handle is found again by it, and nothing is read twice.
#[test]
fn a_log_that_is_followed_across_the_daemons_restart() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        // It goes on when its input says so: before the daemon is killed, and after.
        let (stdin, mut typing) = cofferdam_integration::input();
        let made = container(&operator, "web", "for n in 1 2 3; do read line; echo $line; done");
        let task = made.create_task(Stdio { stdin, ..Stdio::default() }, true);
        task.start().await.unwrap();
        let options = GrantOptions { facets: vec!["logs".into()], ..GrantOptions::default() };
        let token = operator.grants().create(&options).save(None).await.unwrap();

        let heard = Rc::new(RefCell::new(String::new()));
        let take = {
            let heard = heard.clone();
            move |bytes: &[u8]| {
                heard.borrow_mut().push_str(std::str::from_utf8(bytes).unwrap());
                Ok(())
            }
        };
        let socket = daemon.socket();
        let follows = follow::example(&socket, &token, "web", take);
        let speaks = async {
            use std::io::Write as _;
            for (n, line) in ["one\n", "two\n", "three\n"].into_iter().enumerate() {
                typing.write_all(line.as_bytes()).unwrap();
                let so_far: String = ["one\n", "two\n", "three\n"][..=n].concat();
                until_async("it is heard", async || (*heard.borrow() == so_far).then_some(())).await;
                if n < 2 {
                    daemon.kill9();
                    daemon.restart();
                }
            }
        };
        let (followed, ()) = tokio::join!(follows, speaks);
        followed.unwrap();
        assert_eq!(*heard.borrow(), "one\ntwo\nthree\n");
    });
}

#[test]
fn a_deadline_and_a_wait_that_is_let_go_of() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let (_, task) = idle(&operator, "web").await;
        let (error, stored, exit) = deadline::example(&daemon.socket(), daemon.namespace(), "web").await.unwrap();
        assert_eq!((error.code, stored, exit), (Code::DeadlineExceeded, 5, None), "{error}");
        assert_eq!(task.state().await.unwrap().status.as_str(), "running", "it ends calls and not containers");
        let left = operator.content().ingests::<&str>(&[]).all().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    });
}
