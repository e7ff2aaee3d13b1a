//! Networks: those that the host has configured.

use crate::{
    args::{Command, Positional, Times, switch},
    cx::{Cx, Table},
    failure::Failure,
    nouns::container::show_each,
};

/// `coffer network ls`.
pub static LS: Command = Command {
    path: &["network", "ls"],
    about: "list the networks that are configured",
    positionals: &[],
    flags: &[switch("quiet", Some('q'), "names alone")],
    notes: "They are the CNI configurations of the host that the daemon runs on: \"coffer run --net NAME\" connects a\n\
            container to one. -o json: one array",
    failure: 1,
    action: |cx| Box::pin(ls(cx)),
};

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let list = cx.namespace().await?.networks().list().all().await?;
    if cx.args.has("quiet") {
        cx.names(list.iter().map(|info| info.name.as_str()))?;
    } else if cx.json {
        cx.document(&list)?;
    } else {
        let mut table = Table::new(&["NAME", "PLUGINS", "CNI"]);
        for info in &list {
            table.row([info.name.clone(), info.plugins.join(","), info.versions.join(",")]);
        }
        table.print()?;
    }
    Ok(0)
}

/// `coffer network inspect`.
pub static INSPECT: Command = Command {
    path: &["network", "inspect"],
    about: "show all that is known of networks, as JSON",
    positionals: &[Positional { name: "NETWORK", times: Times::Many }],
    flags: &[],
    notes: "one JSON document for each; -o json puts each on one line",
    failure: 1,
    action: |cx| Box::pin(inspect(cx)),
};

async fn inspect(cx: Cx) -> Result<i32, Failure> {
    let networks = cx.namespace().await?.networks();
    show_each(&cx, async |name| networks.get(name).await).await
}
