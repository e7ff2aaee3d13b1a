//! `attach`: follow a running container.

use std::cell::Cell;

use cofferdam_client::{Client, Input, Status, Stdio};
use cofferdam_types::Error;

use crate::{
    args::{Command, Positional, Times, switch},
    cx::{Cx, say},
    failure::Failure,
    keys::{DETACH_KEYS, Keyboard},
    nouns::foreground::{Passed, attended, stdio, tell, tell_detached},
    signals::{FORWARDED, Signals},
    terminal::Raw,
};

/// `coffer attach`.
pub static ATTACH: Command = Command {
    path: &["attach"],
    about: "follow a running container, and feed its input",
    positionals: &[Positional { name: "CONTAINER", times: Times::Once }],
    flags: &[switch("no-stdin", None, "only follow"), DETACH_KEYS],
    notes: "On a terminal ctrl-p ctrl-q detaches and leaves the container running. Signals are passed on. A restart of the\n\
            daemon is waited out. A container without standard input (it was run without -i) is only followed.\n\n\
            exit code: the container's own; 0 after detaching, 129 if the container outlives coffer's terminal, 1 if\n\
            coffer or the daemon fails",
    failure: 1,
    action: |cx| Box::pin(attach(cx)),
};

async fn attach(cx: Cx) -> Result<i32, Failure> {
    let id = cx.args.at(0).to_owned();
    let client = cx.client().await?;
    let container = client.namespace(&cx.namespace).containers().get(&id);
    let task = container.info().await?.task;
    if task.as_ref().is_some_and(|task| task.status == Status::Stopped) {
        let why = format!("has ended, and has nothing to attach to (\"coffer logs {id}\" shows what it wrote)");
        return Err(Error::failed_precondition("container", &id, why).into());
    }
    let terminal = task.is_some_and(|task| task.terminal);
    let stdin = !cx.args.has("no-stdin");
    let keyboard = if stdin { Keyboard::open(&cx.args)? } else { None };
    let keys = keyboard.is_some();

    let signals = Signals::take(FORWARDED)?;
    let raw = if terminal && keys { Raw::stdin()? } else { None };
    if let Some(raw) = &raw {
        raw.started()?;
    }
    let input = keyboard.as_ref().map(Keyboard::input).transpose()?;
    let fed = Cell::new(stdin);
    let streams = || -> Result<Stdio, Error> {
        let mut streams = stdio(fed.get() && !keys, terminal)?;
        if let Some(input) = input.as_ref().filter(|_| fed.get()) {
            let input = input.try_clone().map_err(|e| Error::io("pipe", "", "can't be duplicated", &e))?;
            streams.stdin = Input::Fd(input);
        }
        Ok(streams)
    };
    // After a restart of the daemon the attachment is made anew: the old one ended with the connection.
    let follow = client.persist(async |client: Client| {
        let task = client.namespace(&cx.namespace).containers().get(&id).task();
        let exit = task.wait();
        let ended = match task.attach(streams()?).wait().await {
            Err(error) if error.kind == "stdin" && fed.replace(false) => {
                if keys {
                    say(&format!("container {id} has no standard input: only its output is shown, as with --no-stdin"));
                }
                task.attach(streams()?).wait().await
            }
            other => other,
        };
        match ended?.as_str() {
            "exit" => exit.await,
            "detached" => {
                Err(Error::failed_precondition("attachment", &id, "is over: what it writes can't be written here"))
            }
            _ => {
                Err(Error::resource_exhausted("attachment", &id, "fell behind what the container writes: attach again"))
            }
        }
    });
    let passing = container.task();
    let pass = move |passed| match passed {
        Passed::Signal(signal) => passing.kill(signal, false),
        Passed::Size(rows, columns) => passing.resize(rows, columns),
    };
    let exit = tokio::select! {
        exit = attended(&signals, terminal, follow, pass) => Some(exit?),
        detached = forward(keyboard) => { detached?; None }
    };
    drop(raw);
    match exit {
        Some(exit) => Ok(tell(&id, &exit)),
        None => {
            tell_detached(&id);
            Ok(0)
        }
    }
}

/// Without a keyboard it never returns.
pub async fn forward(keyboard: Option<Keyboard>) -> Result<(), Failure> {
    match keyboard {
        Some(keyboard) => keyboard.forward().await,
        None => std::future::pending().await,
    }
}
