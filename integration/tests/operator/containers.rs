//! What is done with containers that are there.

use std::process::Stdio;

use cofferdam_integration::{BUSYBOX, Daemon, until};

use crate::{Said, idle, json, ok, say, shell};

#[test]
fn a_container_from_run_to_rm() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    idle(&daemon, "box");
    let table = ok(&daemon, &["ps"]);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[0], row[1]), ("box", "docker.io/test/busybox:latest"), "{table}");
    assert!(table.contains("up "), "{table}");
    let listed = json(&daemon, &["ps"]);
    assert_eq!((listed[0]["id"].as_str(), listed.as_array().unwrap().len()), (Some("box"), 1), "{listed}");
    assert_eq!(ok(&daemon, &["ps", "-q"]), "box\n");

    let inspected = json(&daemon, &["inspect", "box"]);
    let pid = inspected["task"]["pid"].as_u64().unwrap();
    assert!(std::fs::exists(format!("/proc/{pid}")).unwrap(), "{inspected}");

    // Running, it is not removed; nothing happens to it.
    let said = say(&daemon, &["rm", "box"]);
    assert!(said.code != 0 && said.err.contains("running") && said.err.contains("stop it first"), "{said:?}");
    assert_eq!(ok(&daemon, &["kill", "--signal", "KILL", "box"]), "box\n");
    let said = say(&daemon, &["wait", "box"]);
    assert_eq!((said.code, said.out.as_str()), (137, "137\n"), "{said:?}");
    assert_eq!(ok(&daemon, &["ps", "-q"]), "");
    assert!(ok(&daemon, &["ps", "-a"]).contains("exited (137)"));
    assert_eq!(ok(&daemon, &["rm", "box"]), "box\n");
    assert_eq!(ok(&daemon, &["ps", "-aq"]), "");
    daemon.settles(&before);
}

#[test]
fn stop_asks_first_and_kills_in_the_end() {
    let daemon = Daemon::with_busybox();
    let script = |name: &str, script: &str| {
        assert_eq!(shell(&daemon, &["-d", "--name", name], script).code, 0);
        // Its trap must be set before it is asked.
        until("it is ready", || ok(&daemon, &["logs", name]).contains("ready").then_some(()));
    };
    script("polite", "trap 'echo bye; exit 3' TERM; echo ready; while :; do usleep 5000; done");
    script("deaf", "trap '' TERM; echo ready; while :; do usleep 5000; done");
    assert_eq!(ok(&daemon, &["stop", "polite"]), "polite\n");
    assert_eq!(say(&daemon, &["wait", "polite"]).code, 3);
    assert_eq!(ok(&daemon, &["logs", "polite"]), "ready\nbye\n");
    assert_eq!(ok(&daemon, &["stop", "-t", "0", "deaf"]), "deaf\n");
    assert_eq!(say(&daemon, &["wait", "deaf"]).code, 137);
    ok(&daemon, &["rm", "polite", "deaf"]);
}

#[test]
fn exec_is_a_command_beside_it() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    let said = say(
        &daemon,
        &["exec", "-e", "WHO=me", "-w", "/tmp", "-u", "app", "box", "sh", "-c", "echo $WHO $(pwd) $(id -u); exit 4"],
    );
    assert_eq!((said.code, said.out.as_str()), (4, "me /tmp 1000\n"), "{said:?}");
    let said = say(&daemon, &["exec", "box", "/no/such"]);
    assert_eq!((said.code, said.out.as_str()), (127, ""), "{said:?}");
    assert!(said.err.contains("/no/such"), "{said:?}");
    let said = say(&daemon, &["exec", "nobody", "true"]);
    assert!(said.code == 1 && said.err.contains("nobody") && said.err.contains("does not exist"), "{said:?}");
    ok(&daemon, &["exec", "-d", "box", "sh", "-c", "echo there > /tmp/made"]);
    until("it has run", || (say(&daemon, &["exec", "box", "cat", "/tmp/made"]).out == "there\n").then_some(()));
    ok(&daemon, &["rm", "-f", "box"]);
    let said = say(&daemon, &["exec", "box", "true"]);
    assert!(said.code == 1 && said.err.contains("does not exist"), "{said:?}");
}

#[test]
fn logs_follow_to_the_end() {
    let daemon = Daemon::with_busybox();
    assert_eq!(
        shell(&daemon, &["-d", "--name", "box"], "echo one; echo two >&2; read x < /dev/zero; sleep 1000").code,
        0
    );
    let follow =
        daemon.command().args(["logs", "-f", "box"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("both lines are there", || {
        let said = say(&daemon, &["logs", "box"]);
        (said.out == "one\n" && said.err == "two\n").then_some(())
    });
    ok(&daemon, &["kill", "box"]);
    let said = Said::from(follow.wait_with_output().unwrap());
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "one\n", "two\n"));
    let stamped = ok(&daemon, &["logs", "--timestamps", "box"]);
    assert!(stamped.ends_with("Z one\n") && stamped.starts_with("20"), "{stamped}");
    let lines = ok(&daemon, &["logs", "-o", "json", "box"]);
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((first["stream"].as_str(), first["text"].as_str()), (Some("stdout"), Some("one\n")), "{lines}");
    ok(&daemon, &["rm", "box"]);
}

#[test]
fn over_several_names_it_goes_on_after_one_that_fails() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "one");
    idle(&daemon, "two");
    let said = say(&daemon, &["rm", "-f", "one", "missing", "two"]);
    assert_eq!((said.code, said.out.as_str()), (1, "one\ntwo\n"), "{said:?}");
    assert!(said.err.contains("missing"), "{said:?}");
}

#[test]
fn namespaces_are_apart() {
    let daemon = Daemon::with_busybox();
    ok(&daemon, &["namespace", "create", "shop"]);
    assert!(ok(&daemon, &["namespace", "ls"]).contains("shop"));
    let said = say(&daemon, &["-n", "shop", "run", "--rm", "--pull", "never", BUSYBOX, "true"]);
    assert!(said.code == 125 && said.err.contains("is not here"), "{said:?}");
    assert_eq!(json(&daemon, &["-n", "shop", "image", "ls"]), serde_json::json!([]));
    let said = say(&daemon, &["-n", "nowhere", "ps"]);
    assert!(said.code == 1 && said.err.contains("coffer namespace create nowhere"), "{said:?}");
    let said = say(&daemon, &["namespace", "rm", daemon.namespace()]);
    assert!(said.code == 1 && said.err.contains("must be empty"), "{said:?}");
    ok(&daemon, &["namespace", "rm", "shop"]);
    assert!(!ok(&daemon, &["namespace", "ls"]).contains("shop"));
}

#[test]
fn events_are_a_line_each() {
    let daemon = Daemon::with_busybox();
    assert_eq!(shell(&daemon, &["--rm", "--name", "box"], "exit 5").code, 5);
    let mut follow = daemon
        .command()
        .args(["events", "--after", "0", "--filter", "event.container_id==box", "-o", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = std::io::BufReader::new(follow.stdout.take().unwrap());
    let mut topics = Vec::new();
    for line in std::io::BufRead::lines(out) {
        let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["topic"] == "/tasks/exit" {
            assert_eq!(event["event"]["exit_status"], 5, "{event}");
        }
        topics.push(event["topic"].as_str().unwrap().to_owned());
        if topics.last().unwrap() == "/tasks/delete" {
            break;
        }
    }
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    follow.kill().unwrap();
    follow.wait().unwrap();
}
