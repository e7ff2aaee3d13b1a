//! Snapshots.

use cofferdam_client::SnapshotKind;

use crate::{
    args::{Command, many, switch, value},
    cx::{Cx, Table, line},
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

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let snapshots = cx.namespace().await?.snapshots(&cx.args.text("snapshotter"));
    let list = snapshots.list(cx.args.all("filter")).all().await?;
    if cx.args.has("quiet") {
        list.iter().try_for_each(|info| line(&info.key))?;
        return Ok(0);
    }
    if cx.json {
        cx.document(&list)?;
        return Ok(0);
    }
    let usage = cx.args.has("usage");
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
