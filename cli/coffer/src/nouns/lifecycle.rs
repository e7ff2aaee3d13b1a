//! What becomes of containers that are there: paused, resumed, restarted, renamed, labelled.

use std::time::Duration;

use cofferdam_client::{Container, ContainerChanges, Namespace, Status, Stdio, TaskInfo};
use cofferdam_types::Labels;

use crate::{
    args::{Command, Positional, Times, value},
    cx::{Cx, line},
    failure::Failure,
    nouns::container::{each, stop_one},
    units::{number, pair, signal},
};

const CONTAINERS: &[Positional] = &[Positional { name: "CONTAINER", times: Times::Many }];

/// `coffer pause`.
pub static PAUSE: Command = Command {
    path: &["pause"],
    about: "freeze containers where they are",
    positionals: CONTAINERS,
    flags: &[],
    notes: "",
    failure: 1,
    action: |cx| Box::pin(pause(cx)),
};

async fn pause(cx: Cx) -> Result<i32, Failure> {
    let containers = cx.namespace().await?.containers();
    each(&cx, async |id| Ok(containers.get(id).task().pause().await?)).await
}

/// `coffer resume`.
pub static RESUME: Command = Command {
    path: &["resume"],
    about: "let paused containers go on",
    positionals: CONTAINERS,
    flags: &[],
    notes: "",
    failure: 1,
    action: |cx| Box::pin(resume(cx)),
};

async fn resume(cx: Cx) -> Result<i32, Failure> {
    let containers = cx.namespace().await?.containers();
    each(&cx, async |id| Ok(containers.get(id).task().resume().await?)).await
}

/// `coffer start`.
pub static START: Command = Command {
    path: &["start"],
    about: "start containers that don't run",
    positionals: CONTAINERS,
    flags: &[],
    notes: "They start in the background, with null streams; what they write is kept if it was kept before.",
    failure: 1,
    action: |cx| Box::pin(start(cx)),
};

async fn start(cx: Cx) -> Result<i32, Failure> {
    let namespace = cx.namespace().await?;
    each(&cx, async |id| {
        let container = namespace.containers().get(id);
        match container.info().await?.task {
            // One that was made and not started yet; any other is refused with what it is.
            Some(task) if task.status != Status::Stopped => {
                container.task().start().await?;
                Ok(())
            }
            ended => again(&container, ended).await,
        }
    })
    .await
}

/// Has a container run once more, whose task has ended or is none.
async fn again(container: &Container, ended: Option<TaskInfo>) -> Result<(), Failure> {
    if ended.is_some() {
        container.task().delete().await?;
    }
    let log = ended.is_none_or(|task| task.log);
    container.create_task(Stdio::default(), log).start().await?;
    Ok(())
}

/// `coffer restart`.
pub static RESTART: Command = Command {
    path: &["restart"],
    about: "end containers as stop does, if they run, and start them again",
    positionals: CONTAINERS,
    flags: &[
        value("time", Some('t'), "SECONDS", "how long each may take to end; 10 otherwise"),
        value("signal", Some('s'), "SIGNAL", "how it is asked to end; as its image said at its creation, or TERM"),
    ],
    notes: "They start in the background, with null streams; what they write is kept if it was kept before.",
    failure: 1,
    action: |cx| Box::pin(restart(cx)),
};

async fn restart(cx: Cx) -> Result<i32, Failure> {
    let patience = Duration::from_secs(cx.args.read("time", number)?.unwrap_or(10));
    let asked = cx.args.read("signal", signal)?;
    let namespace = cx.namespace().await?;
    each(&cx, async |id| restart_one(&namespace, id, asked, patience).await).await
}

async fn restart_one(namespace: &Namespace, id: &str, asked: Option<u32>, patience: Duration) -> Result<(), Failure> {
    let container = namespace.containers().get(id);
    let info = container.info().await?;
    if info.remove_on_exit {
        let why = "goes when it ends, since it was run with --rm: it can't be restarted";
        return Err(cofferdam_types::Error::failed_precondition("container", id, why).into());
    }
    if info.task.is_some() {
        stop_one(namespace, id, asked, patience).await?;
    }
    again(&container, info.task).await
}

/// `coffer rename`.
pub static RENAME: Command = Command {
    path: &["rename"],
    about: "give a container that doesn't run another name",
    positionals: &[
        Positional { name: "CONTAINER", times: Times::Once },
        Positional { name: "NAME", times: Times::Once },
    ],
    flags: &[],
    notes: "Its log, its exit code and what it wrote to its file system go along; its host name stays what it was.",
    failure: 1,
    action: |cx| Box::pin(rename(cx)),
};

async fn rename(cx: Cx) -> Result<i32, Failure> {
    let containers = cx.namespace().await?.containers();
    let renamed = containers.get(cx.args.at(0)).rename(cx.args.at(1));
    renamed.info().await?;
    cx.names([cx.args.at(1)])?;
    Ok(0)
}

/// `coffer container label`.
pub static LABEL: Command = Command {
    path: &["container", "label"],
    about: "set labels of a container, and remove some",
    positionals: &[
        Positional { name: "CONTAINER", times: Times::Once },
        Positional { name: "KEY=[VALUE]", times: Times::Many },
    ],
    flags: &[],
    notes: "KEY= without a value removes that label. Prints the labels that there are then.",
    failure: 1,
    action: |cx| Box::pin(label(cx)),
};

async fn label(cx: Cx) -> Result<i32, Failure> {
    let (labels, fields) = label_changes("container label", &cx)?;
    let changes = ContainerChanges { labels, ..ContainerChanges::default() };
    let info = cx.namespace().await?.containers().get(cx.args.at(0)).update(&changes, &fields).await?;
    show_labels(&cx, &info.labels)
}

/// What the arguments behind the first set, and the fields that they name.
pub fn label_changes(command: &str, cx: &Cx) -> Result<(Labels, Vec<String>), Failure> {
    let (mut labels, mut fields) = (Labels::new(), Vec::new());
    for text in cx.args.from(1) {
        let (key, value) = pair(text).map_err(|why| Failure::usage(format!("{command}: {text:?}: {why}")))?;
        fields.push(format!("labels.{key}"));
        if !value.is_empty() {
            labels.insert(key, value);
        }
    }
    Ok((labels, fields))
}

/// The labels that there are.
pub fn show_labels(cx: &Cx, labels: &Labels) -> Result<i32, Failure> {
    if cx.json {
        cx.document(labels)?;
    } else {
        labels.iter().try_for_each(|(key, value)| line(&format!("{key}={value}")))?;
    }
    Ok(0)
}
