//! Limits, and what is used of them.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use cofferdam_integration::{BUSYBOX, Daemon, until};

use crate::{idle, json, ok, say};

#[test]
fn limits_change_by_command() {
    let daemon = Daemon::with_busybox();
    ok(&daemon, &["run", "-d", "--name", "box", "-m", "32m", BUSYBOX, "sleep", "1000"]);
    assert_eq!(json(&daemon, &["stats", "--no-stream", "box"])["metrics"]["memory"]["limit"], 32 << 20);
    assert_eq!(ok(&daemon, &["update", "-m", "64m", "--pids-limit", "9", "box"]), "box\n");
    let now = json(&daemon, &["stats", "--no-stream", "box"]);
    assert_eq!((&now["metrics"]["memory"]["limit"], &now["metrics"]["pids"]["limit"]), (&(64 << 20).into(), &9.into()));
    let said = say(&daemon, &["update", "box"]);
    assert!(said.code != 0 && said.err.contains("nothing is to be changed"), "{said:?}");
    let said = say(&daemon, &["update", "-m", "1k", "box"]);
    assert!(said.code == 1 && said.err.contains("memory.limit"), "{said:?}");
    let said = say(&daemon, &["update", "-m", "64m", "nobody"]);
    assert!(said.code == 1 && said.err.contains("does not exist"), "{said:?}");
    let file = daemon.path().join("resources.json");
    std::fs::write(&file, r#"{"pids": {"limit": 12}}"#).unwrap();
    ok(&daemon, &["update", "--resources", file.to_str().unwrap(), "box"]);
    assert_eq!(json(&daemon, &["inspect", "box"])["spec"]["linux"]["resources"]["pids"]["limit"], 12);
    ok(&daemon, &["rm", "-f", "box"]);
}

#[test]
fn stats_and_top_show_what_runs() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "one");
    idle(&daemon, "two");
    let table = ok(&daemon, &["stats", "--no-stream"]);
    let rows: Vec<&str> = table.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(rows, ["CONTAINER", "one", "two"], "{table}");
    for column in ["CPU", "MEMORY", "PIDS", "READ", "WRITTEN"] {
        assert!(table.lines().next().unwrap().contains(column), "{column}: {table}");
    }
    let said = say(&daemon, &["stats", "--no-stream", "three"]);
    assert!(said.code == 1 && said.out.is_empty() && said.err.contains("does not exist"), "{said:?}");
    // What is missing keeps nothing from being shown, and is said once.
    let said = say(&daemon, &["stats", "--no-stream", "three", "one", "four", "two"]);
    let rows: Vec<&str> = said.out.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!((said.code, &*rows), (1, &["CONTAINER", "one", "two"][..]), "{said:?}");
    for missing in ["three", "four"] {
        assert_eq!(said.err.matches(missing).count(), 1, "{said:?}");
    }

    ok(&daemon, &["exec", "-d", "one", "sleep", "1001"]);
    let all = until("the exec is there", || {
        let all = json(&daemon, &["top", "one"]);
        all.as_array().unwrap().iter().any(|process| process["command"][1] == "1001").then_some(all)
    });
    let exec = all.as_array().unwrap().iter().find(|process| process["command"][1] == "1001").unwrap();
    let table = ok(&daemon, &["top", "one"]);
    assert!(table.contains(exec["exec"].as_str().unwrap()) && table.contains("sleep 1000"), "{table}");
    ok(&daemon, &["kill", "two"]);
    say(&daemon, &["wait", "two"]);
    let said = say(&daemon, &["top", "two"]);
    assert!(said.code == 1 && said.err.contains("is stopped"), "{said:?}");
    ok(&daemon, &["rm", "-f", "one", "two"]);
}

/// As at a terminal, look after look, until what is looked at has ended.
#[test]
fn stats_go_on_until_it_has_ended() {
    let daemon = Daemon::with_busybox();
    ok(&daemon, &["run", "-d", "--name", "busy", BUSYBOX, "sh", "-c", "while :; do :; done"]);
    let mut command = daemon.command();
    let mut child = command.args(["stats", "busy"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines =
        BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).filter(|line| !line.is_empty());
    for _ in 0..2 {
        let head = lines.next().unwrap();
        assert!(head.starts_with("CONTAINER"), "{head}");
        let row = lines.next().unwrap();
        let fields: Vec<&str> = row.split_whitespace().collect();
        let percent: f64 = fields[1].trim_end_matches('%').parse().unwrap_or_else(|e| panic!("{row}: {e}"));
        assert!(fields[0] == "busy" && percent > 0.0 && percent < 150.0, "{row}");
    }
    ok(&daemon, &["rm", "-f", "busy"]);
    assert!(lines.all(|line| line.starts_with("CONTAINER") || line.starts_with("busy")));
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_signal_reaches_the_first_process_or_all() {
    let daemon = Daemon::with_busybox();
    let script = "(trap 'echo the other hears' USR1; echo the other is there; while :; do sleep 0.05; done) & \
                  trap 'echo the first hears' USR1; echo the first is there; while :; do sleep 0.05; done";
    ok(&daemon, &["run", "-d", "--name", "box", BUSYBOX, "sh", "-c", script]);
    let logs = || ok(&daemon, &["logs", "box"]);
    let says = |what: &str| until(what, || logs().contains(what).then_some(()));
    says("the first is there");
    says("the other is there");
    ok(&daemon, &["kill", "-s", "USR1", "box"]);
    says("the first hears");
    assert!(!logs().contains("the other hears"), "{}", logs());
    ok(&daemon, &["kill", "--all", "-s", "USR1", "box"]);
    says("the other hears");
    assert_eq!(logs().matches("the first hears").count(), 2, "{}", logs());
    ok(&daemon, &["kill", "--all", "box"]);
    assert_eq!(say(&daemon, &["wait", "box"]).out.trim(), "137");
    ok(&daemon, &["rm", "box"]);
}
