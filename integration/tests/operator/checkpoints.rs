//! What runs in a container becomes an image, a file, and a container again.

use cofferdam_integration::{BUSYBOX, Daemon, criu, until};

use crate::{json, ok, say};

const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";

/// The numbers in a container's log, once there are a few.
fn counted(daemon: &Daemon, name: &str) -> Vec<u64> {
    let seen = || ok(daemon, &["logs", name]).lines().filter_map(|line| line.parse().ok()).collect::<Vec<u64>>();
    until("it counts", || Some(seen()).filter(|numbers| numbers.len() >= 3))
}

#[test]
fn checkpointed_exported_imported_and_restored() {
    let daemon = Daemon::with_flags(Box::leak(Box::new(["--criu", criu()])));
    daemon.import_busybox();
    let before = daemon.leftovers();
    ok(&daemon, &["run", "-d", "--name", "box", "--read-only", BUSYBOX, "sh", "-c", COUNT]);
    counted(&daemon, "box");

    // It goes on, beside what is made of it.
    let beside = json(&daemon, &["checkpoint", "--leave-running", "box", "test/beside"]);
    assert_eq!(beside.to_string(), r#"["docker.io/test/beside:latest"]"#);
    let said = say(&daemon, &["checkpoint", "box", "test/beside"]);
    assert!(said.code == 1 && said.err.contains("is there already: choose another name"), "{said:?}");
    assert_eq!(json(&daemon, &["inspect", "box"])["task"]["status"], "running");
    assert_eq!(ok(&daemon, &["run", "--checkpoint", "-d", "--name", "twin", "test/beside"]), "twin\n");
    counted(&daemon, "twin");
    ok(&daemon, &["rm", "-f", "twin"]);

    // It ends, and goes on from a file.
    assert_eq!(ok(&daemon, &["checkpoint", "box", "test/checkpoint"]), "docker.io/test/checkpoint:latest\n");
    assert_eq!(say(&daemon, &["wait", "box"]).code, 137);
    let last = *counted(&daemon, "box").last().unwrap();
    ok(&daemon, &["rm", "box"]);
    let file = daemon.path().join("archive");
    let file = file.to_str().unwrap();
    ok(&daemon, &["image", "export", "test/checkpoint", file]);
    let said = say(&daemon, &["image", "export", "test/checkpoint", file]);
    assert!(said.code == 1 && said.err.contains("File exists"), "{said:?}");
    let said = say(&daemon, &["image", "export", "test/none", &format!("{file}.none")]);
    assert!(said.code == 1 && said.err.contains("test/none"), "{said:?}");
    assert!(!std::fs::exists(format!("{file}.none")).unwrap());
    ok(&daemon, &["image", "rm", "test/checkpoint", "test/beside"]);
    assert_eq!(ok(&daemon, &["image", "import", file, "back"]), "docker.io/library/back:latest\n");
    std::fs::remove_file(file).unwrap();
    ok(&daemon, &["restore", "-d", "--name", "again", "back"]);
    assert_eq!(counted(&daemon, "again")[..3], [last + 1, last + 2, last + 3]);
    // An ordinary image like any other, too.
    assert!(ok(&daemon, &["image", "ls"]).contains("library/back:latest"));
    ok(&daemon, &["rm", "-f", "again"]);

    // What can't be is said, and leaves nothing.
    let said = say(&daemon, &["checkpoint", "again", "x/y"]);
    assert!(said.code == 1 && said.err.contains("again: does not exist"), "{said:?}");
    let said = say(&daemon, &["restore", "--name", "wrong", BUSYBOX]);
    assert!(said.code == 125 && said.err.contains("no checkpoint"), "{said:?}");
    let said = say(&daemon, &["run", "--checkpoint", "-t", "-d", "--name", "wrong", "back"]);
    assert!(said.code == 125 && said.err.contains("without a terminal"), "{said:?}");
    let said = say(&daemon, &["restore", "back", "ls"]);
    assert!(said.code == 125 && said.err.contains("one argument too many"), "{said:?}");
    assert_eq!(ok(&daemon, &["ps", "-aq"]), "");
    daemon.settles(&before);
}
