//! Jobs: pulls and imports, those of others too.

use std::time::Duration;

use cofferdam_client::{JobInfo, JobItem};
use cofferdam_types::Digest;

use crate::{
    args::{Command, Positional, Times},
    cx::{Cx, Table},
    failure::Failure,
    nouns::container::each,
    progress,
    units::{show_age, show_size},
};

/// How often a change is told.
const EVERY: Duration = Duration::from_millis(200);

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
    let mut table = Table::new(&["JOB", "KIND", "SUBJECT", "STATE", "PROGRESS", "STARTED", "WHY"]);
    for info in &list {
        let state = match (info.state.as_str(), info.stage.as_str()) {
            ("running", stage) if !stage.is_empty() => format!("running: {stage}"),
            (state, _) => state.to_owned(),
        };
        let (id, kind, subject) = (info.id.clone(), info.kind.clone(), info.subject.clone());
        // What failed says so at length: last, so that it moves nothing.
        table.row([id, kind, subject, state, progress(info), show_age(info.started), info.error.clone()]);
    }
    table.print()?;
    Ok(0)
}

/// What came in as a whole, such as an archive, is there a second time as the layers that it was taken apart into: then
/// the whole alone counts.
fn progress(info: &JobInfo) -> String {
    let whole = |item: &&JobItem| item.name.parse::<Digest>().is_err();
    let wholes = info.items.iter().any(|item| whole(&item));
    let counted = info.items.iter().filter(|item| !wholes || whole(item));
    let (done, total) = counted.fold((0, 0), |(done, total), item| (done + item.done, total + item.total));
    if total == 0 || done == total { show_size(done) } else { format!("{} / {}", show_size(done), show_size(total)) }
}

/// `coffer job watch`.
pub static WATCH: Command = Command {
    path: &["job", "watch"],
    about: "show the progress of a job until it ends",
    positionals: &[Positional { name: "JOB", times: Times::Once }],
    flags: &[],
    notes: "Whoever began it. ctrl-c ends watching; the job goes on. The names of the images that it made go to standard output.\n\
            -o json: a line for each change",
    failure: 1,
    action: |cx| Box::pin(watch(cx)),
};

async fn watch(cx: Cx) -> Result<i32, Failure> {
    let job = cx.namespace().await?.jobs().get(cx.args.at(0));
    if !cx.json {
        let names = progress::watch(&job).await?;
        cx.names(names.iter().map(String::as_str))?;
        return Ok(0);
    }
    let mut told = Ok(());
    let ended =
        job.follow(EVERY, |info| told = std::mem::replace(&mut told, Ok(())).and_then(|()| cx.document(info))).await;
    told?;
    ended?;
    Ok(0)
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
    each(&cx, async |id| Ok(jobs.get(id).cancel().await?)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_counted_and_said_once() {
        let layer = format!("sha256:{}", "ab".repeat(32));
        let item = |done, total| JobItem { name: layer.clone(), done, total, ..JobItem::default() };
        let shown = |items: &[JobItem]| progress(&JobInfo { items: items.into(), ..JobInfo::default() });
        assert_eq!(shown(&[item(1 << 20, 2 << 20), item(2 << 20, 2 << 20)]), "3.0 MiB / 4.0 MiB");
        assert_eq!(shown(&[item(2 << 20, 2 << 20), item(2 << 20, 2 << 20)]), "4.0 MiB");
        assert_eq!(shown(&[item(5, 0)]), "5 B");
        assert_eq!(shown(&[]), "0 B");
        let archive = JobItem { name: "archive".into(), done: 3 << 20, total: 3 << 20, ..JobItem::default() };
        assert_eq!(shown(&[archive, item(3 << 20, 3 << 20)]), "3.0 MiB");
    }
}
