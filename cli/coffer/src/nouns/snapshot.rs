//! Snapshots.

use cofferdam_client::{SnapshotInfo, SnapshotKind};
use serde::Serialize;

use crate::{
    args::{Command, many, switch, value},
    cx::{Cx, Table},
    failure::Failure,
    progress::short_name,
    units::{show_age, show_size},
};

/// `coffer snapshot ls`.
pub static LS: Command = Command {
    path: &["snapshot", "ls"],
    about: "list snapshots",
    positionals: &[],
    flags: &[
        switch("quiet", Some('q'), "keys alone"),
        value("snapshotter", None, "NAME", "of another driver than the default one"),
        switch("usage", Some('u'), "with size and inodes of each layer alone"),
        many("filter", None, "FILTER", "such as kind==active or parent==KEY"),
    ],
    notes: "-o json: one array",
    failure: 1,
    action: |cx| Box::pin(ls(cx)),
};

/// What the table has, for programs.
#[derive(Serialize)]
struct Listed<'i> {
    #[serde(flatten)]
    info: &'i SnapshotInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes: Option<u64>,
}

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let snapshots = cx.namespace().await?.snapshots(&cx.args.text("snapshotter"));
    let list = snapshots.list(cx.args.all("filter")).all().await?;
    if cx.args.has("quiet") {
        cx.names(list.iter().map(|info| info.key.as_str()))?;
        return Ok(0);
    }
    let usage = cx.args.has("usage");
    if cx.json {
        let mut documents = Vec::new();
        for info in &list {
            let taken = if usage { Some(snapshots.get(&info.key).usage().await?) } else { None };
            documents.push(Listed { info, size: taken.map(|(size, _)| size), inodes: taken.map(|(_, inodes)| inodes) });
        }
        cx.document(&documents)?;
        return Ok(0);
    }
    let mut heads = vec!["KEY", "PARENT", "KIND", "CREATED"];
    if usage {
        heads.extend(["SIZE", "INODES"]);
    }
    let mut table = Table::new(&heads);
    for info in &list {
        let kind = match info.kind {
            SnapshotKind::View => "view",
            SnapshotKind::Active => "active",
            SnapshotKind::Committed => "committed",
        };
        let parent = if info.parent.is_empty() { "-".to_owned() } else { short_name(&info.parent) };
        let mut row = vec![info.key.clone(), parent, kind.to_owned(), show_age(info.created)];
        if usage {
            let (size, inodes) = snapshots.get(&info.key).usage().await?;
            row.extend([show_size(size), inodes.to_string()]);
        }
        table.row(row);
    }
    table.print()?;
    Ok(0)
}
