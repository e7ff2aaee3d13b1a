//! `attach`: follow a running container.

use std::cell::Cell;

use cofferdam_client::{Client, Status, Task};
use cofferdam_types::Error;

use crate::{
    args::{Command, Positional, Times, switch},
    cx::{Cx, say},
    failure::Failure,
    keys::{DETACH_KEYS, Keyboard},
    nouns::{
        container::{PROCESS, process},
        foreground::{Ends, Passed, attended, ended, tell_detached},
    },
    screen::Screen,
    signals::{FORWARDED, Signals},
    terminal::{self, Raw},
};

/// `coffer attach`.
pub static ATTACH: Command = Command {
    path: &["attach"],
    about: "follow a running container, and feed its input",
    positionals: &[Positional { name: "CONTAINER", times: Times::Once }],
    flags: &[switch("no-stdin", None, "only follow"), PROCESS, DETACH_KEYS],
    notes: "On a terminal ctrl-p ctrl-q detaches and leaves the container running. Signals are passed on. A restart of the\n\
            daemon is waited out. A container without standard input (it was run without -i) is only followed.\n\
            Where the daemon doesn't pass a signal on within a second, one more ends coffer. Of what was run in a container only\n\
            what has a terminal can be followed.\n\n\
            exit code: the container's own; 0 after detaching, 129 if the container outlives coffer's terminal, 1 if\n\
            coffer or the daemon fails",
    failure: 1,
    action: |cx| Box::pin(attach(cx)),
};

async fn attach(cx: Cx) -> Result<i32, Failure> {
    let id = cx.args.at(0).to_owned();
    let client = cx.client().await?;
    let container = client.namespace(&cx.namespace).containers().get(&id);
    let exec = cx.args.value("exec").map(str::to_owned);
    let of = |task: &Task| process(task, exec.as_deref());
    let terminal = match &exec {
        None => {
            let task = container.info().await?.task;
            if task.as_ref().is_some_and(|task| task.status == Status::Stopped) {
                let why = format!("has ended, and has nothing to attach to (\"coffer logs {id}\" shows what it wrote)");
                return Err(Error::failed_precondition("container", &id, why).into());
            }
            task.is_some_and(|task| task.terminal)
        }
        Some(exec) => {
            let process = of(&container.task());
            if process.state().await?.status == Status::Stopped {
                return Err(
                    Error::failed_precondition("process", exec, "has ended, and has nothing to attach to").into()
                );
            }
            // Nothing else of it can be followed, and it gets the size of this terminal in any case.
            match terminal::size() {
                Some((rows, columns)) => process.resize(rows, columns).await.map(|()| true)?,
                None => false,
            }
        }
    };
    let stdin = !cx.args.has("no-stdin");
    let keyboard = if stdin { Keyboard::open(&cx.args)? } else { None };
    let keys = keyboard.is_some();

    let signals = Signals::take(FORWARDED)?;
    let raw = if terminal && keys { Raw::stdin()? } else { None };
    if let Some(raw) = &raw {
        raw.started()?;
    }
    // What the container writes ends here with coffer, whatever the daemon does.
    let screen = Screen::open(terminal, false)?;
    let ends = Ends::of(keyboard.as_ref(), Some(&screen))?;
    let fed = Cell::new(stdin);
    let streams = || ends.stdio(fed.get(), terminal);
    // After a restart of the daemon the attachment is made anew: the old one ended with the connection.
    let follow = client.persist(async |client: Client| {
        let task = of(&client.namespace(&cx.namespace).containers().get(&id).task());
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
    let place = (client.clone(), cx.namespace.clone(), id.clone(), exec.clone());
    let pass = move |passed| {
        let (client, namespace, id, exec) = place.clone();
        let again = async move |client: Client| {
            let task = process(&client.namespace(&namespace).containers().get(&id).task(), exec.as_deref());
            match passed {
                Passed::Signal(signal) => task.kill(signal, false).await,
                Passed::Size(rows, columns) => task.resize(rows, columns).await,
            }
        };
        async move { client.persist(again).await }
    };
    let what = exec.as_ref().map_or_else(|| format!("container {id}"), |exec| format!("process {exec}"));
    let exit = tokio::select! {
        exit = attended(&signals, &what, terminal, Vec::new(), follow, pass) => Some(exit?),
        failure = screen.show() => return Err(failure),
        detached = forward(keyboard) => { detached?; None }
    };
    drop(ends);
    match exit {
        Some(exit) => ended(&signals, Some(screen), raw, &id, &exit, ATTACH.failure).await,
        None => {
            drop(raw);
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
