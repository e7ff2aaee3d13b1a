//! `coffer logs`, and the streams of `coffer run`.

use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};

use cofferdam_integration::{BUSYBOX, Daemon, until};
use cofferdam_types::Timestamp;

use crate::{json, ok, say, shell};

#[test]
fn what_is_asked_for_is_shown() {
    let daemon = Daemon::with_busybox();
    let flags =
        ["-d", "--name", "box", "--log-driver", "json-file", "--log-opt", "max-size=1m", "--log-opt", "max-file=3"];
    let said = shell(&daemon, &flags, "seq 1 5; echo oops >&2; until [ -e /go ]; do usleep 20000; done; echo last");
    assert_eq!(said.code, 0, "{said:?}");
    until("the first lines are there", || (say(&daemon, &["logs", "box"]).err == "oops\n").then_some(()));
    assert_eq!(ok(&daemon, &["logs", "--tail", "2", "--stream", "stdout", "box"]), "4\n5\n");
    assert_eq!(ok(&daemon, &["logs", "--since", "1h", "--stream", "stdout", "box"]), "1\n2\n3\n4\n5\n");
    assert_eq!(ok(&daemon, &["logs", "--until", "1h", "box"]), "");
    let now = Timestamp::now().to_rfc3339();
    ok(&daemon, &["exec", "box", "touch", "/go"]);
    assert_eq!(ok(&daemon, &["logs", "-f", "--since", &now, "box"]), "last\n");
    let said = say(&daemon, &["logs", "--stream", "stderr", "-o", "json", "box"]);
    let line: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((line["stream"].as_str(), line["text"].as_str()), (Some("stderr"), Some("oops\n")), "{said:?}");
    let info = json(&daemon, &["inspect", "box"]);
    assert_eq!((info["logDriver"].as_str(), info["logOptions"]["max-file"].as_str()), (Some("json-file"), Some("3")));
    ok(&daemon, &["rm", "box"]);
    for (flags, named) in [
        (vec!["logs", "--since", "soon", "box"], "--since"),
        (vec!["logs", "--stream", "both", "box"], "--stream"),
        (vec!["run", "--null-io", "-i", BUSYBOX, "true"], "--interactive"),
        (vec!["run", "--null-io", "--log-driver", "cri", BUSYBOX, "true"], "--log-driver"),
        (vec!["run", "-i", "--stdin", "file:///x", BUSYBOX, "true"], "--stdin"),
        (vec!["run", "--stdout", "/x", BUSYBOX, "true"], "file:///PATH"),
        (vec!["run", "--log-driver", "syslog", BUSYBOX, "true"], "json-file"),
    ] {
        let said = say(&daemon, &flags);
        assert!(said.code != 0 && said.err.contains(named), "{flags:?}: {said:?}");
    }
}

#[test]
fn streams_of_the_host_and_no_streams_at_all() {
    let daemon = Daemon::with_busybox();
    let dir = tempfile::tempdir().unwrap();
    let (out, fifo) = (dir.path().join("out"), dir.path().join("fifo"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (to, from) = (format!("--stdout=file://{}", out.display()), format!("--stdin=fifo://{}", fifo.display()));
    let said = shell(&daemon, &["-d", "--name", "box", &to, &from], "read x; echo heard $x; echo oops >&2");
    assert_eq!(said.code, 0, "{said:?}");
    let mut feed = std::fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
    feed.write_all(b"you\n").unwrap();
    assert_eq!(ok(&daemon, &["wait", "box"]), "0\n");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "heard you\n");
    let said = say(&daemon, &["logs", "box"]);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("heard you\n", "oops\n"));
    ok(&daemon, &["rm", "box"]);
    // In the foreground the rest is coffer's own.
    let said = shell(&daemon, &["--rm", &to], "echo more; echo oops >&2; exit 4");
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (4, "", "oops\n"), "{said:?}");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "heard you\nmore\n");

    let script =
        "cat; echo nowhere; for n in 0 1 2; do [ $(readlink /proc/$$/fd/$n) = /dev/null ] || exit 6; done; exit 5";
    let said = shell(&daemon, &["--name", "null", "--null-io"], script);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (5, "", ""), "{said:?}");
    assert_eq!(ok(&daemon, &["logs", "null"]), "");
    ok(&daemon, &["rm", "null"]);
}
