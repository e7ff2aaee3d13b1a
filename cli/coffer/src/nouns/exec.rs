//! `exec`: another process in a running container.

use std::time::Duration;

use cofferdam_client::{Client, Process, ProcessOptions, Stdio, Task, is_lost};
use cofferdam_types::{Code, Error};
use nix::sys::signal::Signal;

use crate::{
    args::{Command, Positional, Times, many, switch, value},
    cx::{Cx, line},
    failure::Failure,
    keys::{DETACH_KEYS, Keyboard},
    nouns::{
        attach::forward,
        env::env,
        foreground::{Ends, Passed, attended, ended, needs_terminal, show, started, tell_detached},
    },
    screen::Screen,
    signals::{FORWARDED, Signals},
    terminal::Raw,
};

/// `coffer exec`.
pub static EXEC: Command = Command {
    path: &["exec"],
    about: "run another command in a running container",
    positionals: &[
        Positional { name: "CONTAINER", times: Times::Once },
        Positional { name: "COMMAND", times: Times::Rest },
    ],
    flags: &[
        switch("interactive", Some('i'), "give it coffer's standard input"),
        switch("tty", Some('t'), "give it a terminal"),
        switch("detach", Some('d'), "print its id and leave it running, with null streams"),
        many("env", Some('e'), "KEY[=VALUE]", "set a variable; KEY alone takes its value from here"),
        many("env-file", None, "FILE", "set variables from a file with a KEY[=VALUE] on each line"),
        value("user", Some('u'), "USER[:GROUP]", "who it runs as; the container's user otherwise"),
        value("workdir", Some('w'), "DIR", "where it starts; where the container does otherwise"),
        many("cap-add", None, "NAME", "a capability more than the container has; ALL is all"),
        many("cap-drop", None, "NAME", "a capability less; ALL is all"),
        DETACH_KEYS,
    ],
    notes: "With -it ctrl-p ctrl-q detaches and leaves the command running. Signals are passed on. Where the daemon doesn't do\n\
            that within a second, one more ends coffer and leaves the command as it is; before the start the first gives it up.\n\n\
            exit code: the command's own; 127 if it is not there, 126 if it can't be executed, 1 for any other failure",
    failure: 1,
    action: |cx| Box::pin(exec(cx)),
};

/// How long the end of one that was killed is waited for: less than giving up may take.
const DYING: Duration = Duration::from_millis(500);

async fn exec(cx: Cx) -> Result<i32, Failure> {
    let args = &cx.args;
    let (id, detach, tty) = (args.at(0).to_owned(), args.has("detach"), args.has("tty"));
    let options = ProcessOptions {
        args: args.from(1).to_vec(),
        env: env(args)?,
        workdir: args.text("workdir"),
        user: args.text("user"),
        terminal: tty,
        cap_add: args.all("cap-add").to_vec(),
        cap_drop: args.all("cap-drop").to_vec(),
    };
    if options.args.is_empty() {
        return Err(Failure::usage("exec: COMMAND is missing (\"coffer exec --help\" says more)"));
    }
    if !detach {
        needs_terminal("exec", args.has("interactive") && tty)?;
    }
    let client = cx.client().await?;
    // A name of our own: by it the process is found again after a restart of the daemon.
    let name = cofferdam_client::random_id()?;
    let task = client.namespace(&cx.namespace).containers().get(&id).task();
    if detach {
        let process = task.exec(&name, &options, Stdio::default());
        if let Err(error) = process.start().await {
            return Err(forget(&process, error).await);
        }
        line(&if cx.json { serde_json::json!({ "id": name }).to_string() } else { name })?;
        return Ok(0);
    }
    let signals = Signals::take(FORWARDED)?;
    let interactive = args.has("interactive");
    let keyboard = if tty && interactive { Keyboard::open(args)? } else { None };
    let screen = tty.then(|| Screen::open(tty, true)).transpose()?;
    let ends = Ends::of(keyboard.as_ref(), screen.as_ref())?;
    let streams = || ends.stdio(interactive, tty);
    let raw = if tty && interactive { Raw::stdin()? } else { None };
    let process = task.exec(&name, &options, streams()?);
    let (starting, waiting) = (process.start(), process.wait());
    let start = async {
        match starting.await {
            // Whether it was made, and started, is not known.
            Err(error) if is_lost(&error) => {
                let again = async |client: Client| {
                    let task = client.namespace(&cx.namespace).containers().get(&id).task();
                    start_again(&task, &name, &options, streams()?).await
                };
                Ok(client.persist(again).await?)
            }
            Err(error) => Err(forget(&process, error).await),
            Ok(_) => Ok(()),
        }
    };
    let late = started(&signals, tty, start, undo(&process)).await?;
    if let Some(raw) = &raw {
        raw.started()?;
    }
    let wait = async {
        match waiting.await {
            Err(error) if is_lost(&error) => {
                let again = |client: Client| {
                    let task = client.namespace(&cx.namespace).containers().get(&id).task();
                    task.process(&name).wait()
                };
                client.persist(again).await
            }
            other => other,
        }
    };
    let place = (client.clone(), cx.namespace.clone(), id.clone(), name.clone());
    let pass = move |passed| {
        let (client, namespace, id, name) = place.clone();
        let again = async move |client: Client| {
            let process = client.namespace(&namespace).containers().get(&id).task().process(&name);
            match passed {
                Passed::Signal(signal) => process.kill(signal, false).await,
                Passed::Size(rows, columns) => process.resize(rows, columns).await,
            }
        };
        async move { client.persist(again).await }
    };
    let what = format!("what runs in container {id}");
    let exit = tokio::select! {
        exit = attended(&signals, &what, tty, late, wait, pass) => Some(exit?),
        detached = forward(keyboard) => { detached?; None }
        failure = show(screen.as_ref()) => return Err(failure),
    };
    drop(ends);
    let Some(exit) = exit else {
        drop(raw);
        tell_detached(&what);
        return Ok(0);
    };
    let code = ended(&signals, screen, raw, &id, &exit, EXEC.failure).await?;
    tokio::select! {
        deleted = process.delete() => match deleted {
            Err(error) if error.code != Code::NotFound && !is_lost(&error) => return Err(error.into()),
            _ => {}
        },
        // It has ended, and what is left of it goes with the container.
        signal = signals.ending() => drop(signal?),
    }
    Ok(code)
}

/// Has a process started that was asked for on a connection which was lost: it is made where it is not there, and started
/// where it was not.
async fn start_again(task: &Task, name: &str, options: &ProcessOptions, stdio: Stdio) -> cofferdam_types::Result<()> {
    let started = match task.exec(name, options, stdio).start().await {
        Err(error) if error.code == Code::AlreadyExists => task.process(name).start().await,
        other => other,
    };
    match started {
        // It was started, and may have ended.
        Err(error) if error.code == Code::FailedPrecondition && error.kind == "process" => Ok(()),
        other => other.map(drop),
    }
}

/// Ends and deletes what is not wanted any more, which nobody else would.
async fn undo(process: &Process) -> cofferdam_types::Result<()> {
    // Both are on their way before the first is answered.
    let (killed, deleted) = (process.kill(Signal::SIGKILL as u32, false), process.delete());
    let killed = killed.await;
    match deleted.await {
        // It dies of that, one that a runtime is at work on behind its start; only then can it be deleted.
        Err(error) if error.code == Code::FailedPrecondition && killed.is_ok() => {
            tokio::time::timeout(DYING, process.wait()).await.map_err(|_| error)??;
            process.delete().await.map(drop)
        }
        deleted => deleted.map(drop).or(killed),
    }
}

/// The same of what could not be started. The error stays as it is.
async fn forget(process: &Process, error: Error) -> Failure {
    // One that was never made can't be deleted.
    let _ = undo(process).await;
    error.into()
}
