//! The daemon, and coffer itself.

use serde_json::json;

use crate::{
    args::{Command, Positional, Times, switch},
    commands,
    cx::{Cx, Table, line},
    failure::Failure,
    help,
    units::{counted, show_span},
};

/// `coffer system status`.
pub static STATUS: Command = Command {
    path: &["system", "status"],
    about: "show how the daemon is",
    positionals: &[],
    flags: &[],
    notes: "exit code: 0 if it is ready, 1 if it is degraded or not there",
    failure: 1,
    action: |cx| Box::pin(status(cx)),
};

async fn status(cx: Cx) -> Result<i32, Failure> {
    let status = cx.client().await?.system().status().await?;
    if cx.json {
        cx.document(&status)?;
    } else {
        let up = show_span(cofferdam_types::Timestamp::now().seconds().saturating_sub(status.started.seconds()));
        line(&format!("cofferd {}: {} for {up}, pid {}", status.version, status.state, status.pid))?;
        line(&format!("root {}, state {}, cgroups {}", status.root, status.state_dir, status.cgroups))?;
        line(&format!("{}\n", counted(status.connections.into(), "connection")))?;
        let mut table = Table::new(&["ACTOR", "HEALTH", "RESTARTS", "WAITING", "WHY"]);
        for actor in &status.actors {
            let (restarts, waiting) = (actor.restarts.to_string(), actor.waiting.to_string());
            table.row([actor.name.clone(), actor.health.clone(), restarts, waiting, actor.why.clone()]);
        }
        table.print()?;
    }
    Ok(i32::from(status.state != "ready"))
}

/// `coffer system check`.
pub static CHECK: Command = Command {
    path: &["system", "check"],
    about: "compare the records with each other and with what is on disk",
    positionals: &[],
    flags: &[switch("repair", None, "remove what no record names, and drop records that have lost their bytes")],
    notes: "A line for each contradiction; with -o json a JSON object on each line. The daemon serves meanwhile. What a\n\
            record names and is there is never removed.\n\
            exit code: 0 if all is well or was put right, 1 if something is left or the check fails",
    failure: 1,
    action: |cx| Box::pin(check(cx)),
};

async fn check(cx: Cx) -> Result<i32, Failure> {
    let mut findings = cx.client().await?.system().check(cx.args.has("repair"));
    let (mut found, mut left) = (0_u64, 0_u64);
    while let Some(finding) = findings.next().await? {
        found += 1;
        left += u64::from(!finding.repaired);
        if cx.json {
            cx.document(&finding)?;
        } else {
            line(&format!("{} {}: {}", finding.fault, finding.id, finding.message))?;
        }
    }
    if !cx.json {
        line(&match (found, left) {
            (0, _) => "records and disk agree".to_owned(),
            (_, 0) => format!("{} put right", counted(found, "contradiction")),
            _ => format!("{}, {left} of them left", counted(found, "contradiction")),
        })?;
    }
    Ok(i32::from(left > 0))
}

/// `coffer system crash`.
pub static CRASH: Command = Command {
    path: &["system", "crash"],
    about: "panic an actor of the daemon, for drills",
    positionals: &[Positional { name: "ACTOR", times: Times::Once }],
    flags: &[],
    notes: "It comes back from its state on disk; containers and other actors are untouched.",
    failure: 1,
    action: |cx| Box::pin(crash(cx)),
};

async fn crash(cx: Cx) -> Result<i32, Failure> {
    cx.client().await?.system().crash(cx.args.at(0)).await?;
    cx.names([cx.args.at(0)])?;
    Ok(0)
}

/// `coffer version`.
pub static VERSION: Command = Command {
    path: &["version"],
    about: "show the versions of coffer and of the daemon",
    positionals: &[],
    flags: &[],
    notes: "",
    failure: 1,
    action: |cx| Box::pin(version(cx)),
};

async fn version(cx: Cx) -> Result<i32, Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let daemon = async { Ok::<_, Failure>(cx.client().await?.hello().await?) }.await;
    if cx.json {
        cx.document(&json!({ "coffer": own, "cofferd": daemon.as_ref().ok() }))?;
    } else {
        line(&format!("coffer  {own}"))?;
        if let Ok(daemon) = &daemon {
            line(&format!("cofferd {} (API {})", daemon.daemon, daemon.api))?;
        }
    }
    daemon.map(|_| 0)
}

/// `coffer help`.
pub static HELP: Command = Command {
    path: &["help"],
    about: "show all commands, or what one of them does",
    positionals: &[Positional { name: "COMMAND", times: Times::Rest }],
    flags: &[],
    notes: "",
    failure: 1,
    action: |cx| Box::pin(async move { help(&cx) }),
};

fn help(cx: &Cx) -> Result<i32, Failure> {
    let words = cx.args.from(0);
    let text = if words.is_empty() {
        help::overview()
    } else if let Some(command) = commands::ALL.iter().find(|command| command.path == words) {
        help::command(command)
    } else {
        let verbs = help::noun(&words[0]);
        if words.len() > 1 || verbs.is_empty() {
            return Err(Failure::usage(format!(
                "there is no command {} (\"coffer help\" lists them)",
                words.join(" ")
            )));
        }
        verbs
    };
    line(text.trim_end())?;
    Ok(0)
}
