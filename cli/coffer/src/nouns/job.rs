//! Jobs: pulls and imports, those of others too.

use cofferdam_client::JobInfo;

use crate::{
    args::{Command, Positional, Times},
    cx::{Cx, Table},
    failure::Failure,
    nouns::container::each,
    units::{show_age, show_size},
};

/// `coffer job ls`.
pub static LS: Command = Command {
    path: &["job", "ls"],
    about: "list pulls and imports",
    positionals: &[],
    flags: &[],
    notes: "-o json: one array",
    failure: 1,
    action: |cx| Box::pin(ls(cx)),
};

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let list = cx.namespace().await?.jobs().list().all().await?;
    if cx.json {
        cx.document(&list)?;
        return Ok(0);
    }
    let mut table = Table::new(&["JOB", "KIND", "SUBJECT", "STATE", "PROGRESS", "STARTED"]);
    for info in &list {
        let state = if info.error.is_empty() { info.state.clone() } else { format!("{}: {}", info.state, info.error) };
        let row =
            [info.id.clone(), info.kind.clone(), info.subject.clone(), state, progress(info), show_age(info.started)];
        table.row(row);
    }
    table.print()?;
    Ok(0)
}

fn progress(info: &JobInfo) -> String {
    let (done, total) = info.items.iter().fold((0, 0), |(done, total), item| (done + item.done, total + item.total));
    if total == 0 { show_size(done) } else { format!("{} / {}", show_size(done), show_size(total)) }
}

/// `coffer job cancel`.
pub static CANCEL: Command = Command {
    path: &["job", "cancel"],
    about: "end pulls and imports",
    positionals: &[Positional { name: "JOB", times: Times::Many }],
    flags: &[],
    notes: "Returns when they have left nothing behind.",
    failure: 1,
    action: |cx| Box::pin(cancel(cx)),
};

async fn cancel(cx: Cx) -> Result<i32, Failure> {
    let jobs = cx.namespace().await?.jobs();
    each(cx.args.from(0), async |id| Ok(jobs.get(id).cancel().await?)).await
}
