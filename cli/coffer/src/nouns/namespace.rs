//! Namespaces.

use cofferdam_types::Code;

use crate::{
    args::{Command, Positional, Times, many, switch},
    cx::{Cx, Table, line},
    failure::Failure,
    nouns::{container::each, snapshot::edits},
    units::{pair, show_age},
};

/// `coffer namespace ls`.
pub static LS: Command = Command {
    path: &["namespace", "ls"],
    about: "list namespaces",
    positionals: &[],
    flags: &[switch("quiet", Some('q'), "names alone")],
    notes: "-o json: one array",
    failure: 1,
    action: |cx| Box::pin(ls(cx)),
};

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let list = cx.client().await?.namespaces().list::<&str>(&[]).all().await?;
    if cx.args.has("quiet") {
        cx.names(list.iter().map(|info| info.name.as_str()))?;
    } else if cx.json {
        cx.document(&list)?;
    } else {
        let mut table = Table::new(&["NAME", "CREATED", "LABELS"]);
        for info in &list {
            let labels = info.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
            table.row([info.name.clone(), show_age(info.created), labels]);
        }
        table.print()?;
    }
    Ok(0)
}

/// `coffer namespace create`.
pub static CREATE: Command = Command {
    path: &["namespace", "create"],
    about: "make a namespace",
    positionals: &[Positional { name: "NAME", times: Times::Once }],
    flags: &[many("label", Some('l'), "KEY=VALUE", "a label")],
    notes: "",
    failure: 1,
    action: |cx| Box::pin(create(cx)),
};

async fn create(cx: Cx) -> Result<i32, Failure> {
    let labels = cx.args.read_all("label", pair)?.into_iter().collect();
    let info = cx.client().await?.namespaces().create(cx.args.at(0), &labels).await?;
    if cx.json {
        cx.document(&info)?
    } else {
        line(&info.name)?
    }
    Ok(0)
}

/// `coffer namespace label`.
pub static SET: Command = Command {
    path: &["namespace", "label"],
    about: "set labels of a namespace, and remove some",
    positionals: &[
        Positional { name: "NAME", times: Times::Once },
        Positional { name: "LABEL=[VALUE]", times: Times::Many },
    ],
    flags: &[],
    notes: "LABEL= without a value removes that label. Prints the labels that there are then.",
    failure: 1,
    action: |cx| Box::pin(set(cx)),
};

async fn set(cx: Cx) -> Result<i32, Failure> {
    let (labels, fields) = edits(&cx)?;
    let info = cx.client().await?.namespace(cx.args.at(0)).update(&labels, &fields).await?;
    if cx.json {
        cx.document(&info.labels)?;
    } else {
        info.labels.iter().try_for_each(|(key, value)| line(&format!("{key}={value}")))?;
    }
    Ok(0)
}

/// `coffer namespace rm`.
pub static RM: Command = Command {
    path: &["namespace", "rm"],
    about: "remove empty namespaces",
    positionals: &[Positional { name: "NAME", times: Times::Many }],
    flags: &[switch("revoke", None, "take back what was given out of it by grants")],
    notes: "A namespace is empty when no containers, images, leases, and snapshots, blobs and ingests made by hand are in it. What\n\
            images that are gone left in it, blobs and layers, goes with it, unless another namespace has it too. While there are\n\
            grants that begin in it it stays, unless --revoke takes them back.",
    failure: 1,
    action: |cx| Box::pin(rm(cx)),
};

async fn rm(cx: Cx) -> Result<i32, Failure> {
    let client = cx.client().await?;
    let (namespaces, revoke) = (client.namespaces(), cx.args.has("revoke"));
    each(&cx, async |name| {
        match namespaces.remove(name).await {
            // Where something else stands in the way nothing is taken back.
            Err(error) if revoke && error.code == Code::FailedPrecondition && error.kind == "grant" => {}
            done => return Ok(done?),
        }
        let grants = client.namespace(name).grants();
        for one in grants.list().all().await?.iter().filter(|one| one.parent.is_empty()) {
            match grants.get(&one.id).revoke().await {
                Err(error) if error.code != Code::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(namespaces.remove(name).await?)
    })
    .await
}
