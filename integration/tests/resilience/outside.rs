//! What is done to a daemon from outside, and ends nothing: to its log, its directories, its process.

use std::{fs, os::unix::fs::symlink, process::Command};

use cofferdam_integration::{Daemon, binary, bounded, until};
use cofferdam_types::Code;
use nix::sys::signal::Signal;

use crate::{ends_when_told, runs, send, shim_of, start, tell};

#[test]
fn a_log_that_takes_nothing_ends_no_daemon() {
    let daemon = Daemon::with_busybox();
    daemon.stop();
    let log = daemon.path().join("log");
    fs::remove_file(&log).unwrap();
    symlink("/dev/full", &log).unwrap();
    daemon.restart();
    let pid = daemon.pid();
    bounded(async {
        let client = daemon.client().await;
        // It has much to say of this, twice from the panic itself.
        client.system().crash("diff").await.unwrap();
        let exit = client.run(daemon.run("box", ["sh", "-c", "exit 3"])).unwrap().wait().await.unwrap();
        assert_eq!(exit.status, 3);
        assert!(runs(pid));
    });
}

#[test]
fn signals_that_order_nothing_end_nothing() {
    let daemon = Daemon::with_busybox();
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM] {
        send(daemon.pid(), signal);
    }
    bounded(async {
        let client = daemon.client().await;
        let (request, file) = ends_when_told(&daemon, "box");
        let (run, pid) = start(&client, request).await;
        assert!(runs(daemon.pid()));
        // What it starts dies of them as everybody does.
        let status = fs::read_to_string(format!("/proc/{}/status", shim_of(pid))).unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
        assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 1, 0, "SIGHUP");
        tell(&file, 4);
        assert_eq!(run.wait().await.unwrap().status, 4);
    });
    daemon.stop();
}

#[test]
fn a_directory_of_the_state_that_is_gone_is_made_again() {
    let daemon = Daemon::with_busybox();
    fs::remove_dir_all(daemon.state().join("shims")).unwrap();
    bounded(async {
        let client = daemon.client().await;
        let exit = client.run(daemon.run("box", ["sh", "-c", "exit 6"])).unwrap().wait().await.unwrap();
        assert_eq!(exit.status, 6);
    });
}

#[test]
fn a_state_whose_socket_nobody_could_reach_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("s".repeat(100));
    let mut command = Command::new(binary("cofferd"));
    command.arg("--root").arg(dir.path().join("root")).arg("--state").arg(&state);
    let said = command.arg("--shim").arg(binary("coffer-shim")).output().unwrap();
    let text = String::from_utf8(said.stderr).unwrap();
    assert!(!said.status.success() && text.contains("is too long"), "{text}");
    assert!(!state.exists(), "nothing is made");
}

/// Children of a process that ended and were not taken in.
fn zombies(parent: u32) -> Vec<String> {
    let stats =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    let of = format!(") Z {parent} ");
    stats.filter(|stat| stat.contains(&of)).collect()
}

#[test]
fn shims_of_an_actor_that_crashed_are_taken_in() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (request, file) = ends_when_told(&daemon, "box");
        let (run, pid) = start(&client, request).await;
        let shim = shim_of(pid);
        let spares = || fs::read_dir(daemon.state().join("spares")).unwrap().count();
        until("a shim is made ahead", || (spares() > 0).then_some(()));
        client.system().crash("tasks").await.unwrap();
        // It is back when it answers.
        while let Err(error) = run.container().task().state().await {
            assert_eq!(error.code, Code::Unavailable, "{error}");
        }
        tell(&file, 0);
        assert_eq!(run.wait().await.unwrap().status, 0);
        run.container().remove(true).await.unwrap();
        until("its shim has ended", || (!runs(shim)).then_some(()));
    });
    until("nobody is left to be taken in", || zombies(daemon.pid()).is_empty().then_some(()));
}
