//! Shims: the parents of containers.

use crate::{
    args::{Command, Positional, Times},
    cx::{Cx, Table},
    failure::Failure,
};

/// `coffer shim ls`.
pub static LS: Command = Command {
    path: &["shim", "ls"],
    about: "list shims, and the containers that each holds",
    positionals: &[],
    flags: &[],
    notes: "STATE: there; looking, while the daemon looks for it; mute, if it doesn't answer; lost, if it is gone.\n\
            Of every namespace. -o json: one array",
    failure: 1,
    action: |cx| Box::pin(ls(cx)),
};

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let shims = cx.client().await?.system().shims().all().await?;
    if cx.json {
        cx.document(&shims)?;
        return Ok(0);
    }
    let mut table = Table::new(&["SHIM", "STATE", "NAMESPACE", "GROUP", "CONTAINERS"]);
    for shim in &shims {
        let group = if shim.group.is_empty() { "-".to_owned() } else { shim.group.clone() };
        table.row([shim.id.clone(), shim.state.clone(), shim.namespace.clone(), group, shim.containers.join(" ")]);
    }
    table.print()?;
    Ok(0)
}

/// `coffer shim state`.
pub static STATE: Command = Command {
    path: &["shim", "state"],
    about: "show what a shim says of itself, as JSON",
    positionals: &[Positional { name: "SHIM", times: Times::Once }],
    flags: &[],
    notes: "Its process, version, descriptors and memory; its containers, and the life of each process in them.",
    failure: 1,
    action: |cx| Box::pin(state(cx)),
};

async fn state(cx: Cx) -> Result<i32, Failure> {
    cx.document(&cx.client().await?.system().shim(cx.args.at(0)).await?)?;
    Ok(0)
}
