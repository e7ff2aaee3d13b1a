//! Containers that are there: paused, resumed, restarted, renamed, labelled.

use cofferdam_integration::{BUSYBOX, Daemon, until};

use crate::{idle, json, ok, say, shell};

#[test]
fn paused_resumed_restarted_renamed_and_labelled() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    idle(&daemon, "box");
    assert_eq!(ok(&daemon, &["pause", "box"]), "box\n");
    assert!(ok(&daemon, &["ps"]).contains("paused"));
    let said = say(&daemon, &["pause", "box"]);
    assert!(said.code == 1 && said.err.contains("is paused"), "{said:?}");
    ok(&daemon, &["resume", "box"]);
    let said = say(&daemon, &["rename", "box", "case"]);
    assert!(said.code == 1 && said.err.contains("is running: stop it first"), "{said:?}");

    let pid = json(&daemon, &["inspect", "box"])["task"]["pid"].clone();
    assert_eq!(ok(&daemon, &["restart", "-t", "0", "box"]), "box\n");
    let again = json(&daemon, &["inspect", "box"])["task"].clone();
    assert_eq!(again["status"], "running");
    assert_ne!(again["pid"], pid);
    ok(&daemon, &["kill", "box"]);
    say(&daemon, &["wait", "box"]);
    assert_eq!(ok(&daemon, &["rename", "box", "case"]), "case\n");
    assert!(ok(&daemon, &["ps", "-a"]).contains("case"));
    // One that has ended is started again.
    assert_eq!(ok(&daemon, &["start", "case"]), "case\n");
    assert_eq!(ok(&daemon, &["ps", "-q"]), "case\n");
    let said = say(&daemon, &["start", "case"]);
    assert!(said.code == 1 && said.err.contains("is running"), "{said:?}");

    assert_eq!(ok(&daemon, &["container", "label", "case", "tier=db", "zone="]), "tier=db\n");
    assert_eq!(ok(&daemon, &["ps", "-q", "--filter", "labels.tier==db"]), "case\n");
    assert_eq!(ok(&daemon, &["container", "label", "case", "tier="]), "");
    ok(&daemon, &["rm", "-f", "case"]);

    // What it writes is kept as it was before, in one log.
    assert_eq!(shell(&daemon, &["-d", "--name", "talks"], "echo again; exit 2").code, 0);
    say(&daemon, &["wait", "talks"]);
    ok(&daemon, &["restart", "talks"]);
    assert_eq!(say(&daemon, &["wait", "talks"]).code, 2);
    assert_eq!(ok(&daemon, &["logs", "talks"]), "again\nagain\n");
    ok(&daemon, &["rm", "talks"]);
    ok(&daemon, &["run", "-d", "--rm", "--name", "gone", BUSYBOX, "sleep", "1000"]);
    let said = say(&daemon, &["restart", "gone"]);
    assert!(said.code == 1 && said.err.contains("--rm"), "{said:?}");
    ok(&daemon, &["kill", "gone"]);
    until("it is gone", || (ok(&daemon, &["ps", "-aq"]).is_empty()).then_some(()));
    daemon.settles(&before);
}

/// The kernel chooses the thread. That which starts programs has descriptors of its own.
#[test]
fn the_daemon_ends_by_a_signal_whichever_thread_that_comes_to() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    for name in ["cofferd", "spawner"] {
        let pid = daemon.pid();
        let mut tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
        let thread = tasks.find(|task| std::fs::read_to_string(task.join("comm")).unwrap().trim() == name).unwrap();
        let thread: u32 = thread.file_name().unwrap().to_str().unwrap().parse().unwrap();
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, libc::SIGTERM) }, 0);
        daemon.ends(name);
        daemon.restart();
    }
    assert_eq!(ok(&daemon, &["exec", "box", "echo", "here"]), "here\n");
    ok(&daemon, &["rm", "-f", "box"]);
}
