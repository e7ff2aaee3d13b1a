//! The operator's commands: `coffer` as a person or a script runs it.

mod audit;
mod check;
mod checkpoints;
mod containers;
mod content;
mod cp;
mod diffs;
mod files;
mod full;
mod gc;
mod grants;
mod images;
mod leases;
mod lifecycle;
mod limits;
mod logs;
mod objects;
mod output;
mod readme;
mod rebuild;
mod run;
mod silent;
mod snapshots;
mod terminal;
mod unreadable;

use std::process::Output;

use cofferdam_integration::{BUSYBOX, Daemon};
use serde_json::Value;

/// What a command of `coffer` came to.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        Said {
            code: output.status.code().expect("no signal ended it"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs it, whatever comes of it.
pub fn say(daemon: &Daemon, args: &[&str]) -> Said {
    daemon.coffer(args).into()
}

/// Runs it; it must succeed, and gives what it printed.
pub fn ok(daemon: &Daemon, args: &[&str]) -> String {
    let said = say(daemon, args);
    assert_eq!(said.code, 0, "{args:?}: {said:?}");
    said.out
}

/// The same for programs.
pub fn json(daemon: &Daemon, args: &[&str]) -> Value {
    let text = ok(daemon, &[args, &["-o", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// `coffer run FLAGS busybox sh -c SCRIPT`.
pub fn shell(daemon: &Daemon, flags: &[&str], script: &str) -> Said {
    say(daemon, &[&["run"], flags, &[BUSYBOX, "sh", "-c", script]].concat())
}

/// A container in the background that does nothing until it is killed.
pub fn idle(daemon: &Daemon, name: &str) {
    assert_eq!(ok(daemon, &["run", "-d", "--name", name, BUSYBOX, "sleep", "1000"]), format!("{name}\n"));
}
