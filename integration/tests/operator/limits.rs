//! Limits, and what is used of them.

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
