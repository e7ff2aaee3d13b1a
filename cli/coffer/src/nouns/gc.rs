//! What goes, what stays, and why.

use serde_json::json;

use crate::{
    args::{Command, Positional, Times, switch},
    cx::{Cx, Table, line},
    failure::Failure,
    nouns::snapshot::SNAPSHOTTER,
    units::{counted, show_size},
};

/// `coffer gc`.
pub static GC: Command = Command {
    path: &["gc"],
    about: "remove blobs and snapshots that nothing keeps, now",
    positionals: &[],
    flags: &[switch("dry-run", None, "say what would go, and remove nothing")],
    notes: "The daemon does this by itself; \"coffer explain\" says why something stays. All namespaces are collected. Lists the \
            first 10,000 things; the sums count all.\n\
            -o json: an object with the sums, and items",
    failure: 1,
    action: |cx| Box::pin(gc(cx)),
};

async fn gc(cx: Cx) -> Result<i32, Failure> {
    let dry = cx.args.has("dry-run");
    let (report, cursor) = cx.client().await?.collector().collect(dry).await?;
    let items = cursor.all().await?;
    if cx.json {
        let mut document = json!(report);
        document["items"] = json!(items);
        cx.document(&document)?;
        return Ok(0);
    }
    if !items.is_empty() {
        let mut table = Table::new(&["NAMESPACE", "TYPE", "ID", "BYTES"]);
        for item in items {
            table.row([item.namespace, item.kind, item.id, show_size(item.bytes)]);
        }
        table.print()?;
        line("")?;
    }
    let (blobs, snapshots) = (counted(report.blobs, "blob"), counted(report.snapshots, "snapshot"));
    let leases = counted(report.leases, "lease");
    let (would, ended) = if dry { ("would go", "have ended") } else { ("are gone", "had ended") };
    line(&format!("{blobs} and {snapshots} {would}, {}; {leases} {ended}", show_size(report.bytes)))?;
    if !report.unreadable.is_empty() {
        line("\nrecords that can't be read: where one of them may refer to something, all stays in its namespace")?;
        report.unreadable.iter().try_for_each(|unreadable| line(&format!("  {unreadable}")))?;
    }
    Ok(0)
}

/// `coffer explain`.
pub static EXPLAIN: Command = Command {
    path: &["explain"],
    about: "say what keeps something from being collected, or why it goes",
    positionals: &[Positional { name: "KIND", times: Times::Once }, Positional { name: "NAME", times: Times::Once }],
    flags: &[SNAPSHOTTER],
    notes: "KIND: blob (its digest), snapshot (its key), image, container or lease\n\
            exit code: 0 whether it stays or goes",
    failure: 1,
    action: |cx| Box::pin(explain(cx)),
};

async fn explain(cx: Cx) -> Result<i32, Failure> {
    let (noun, id) = (cx.args.at(0).to_owned(), cx.args.at(1).to_owned());
    let namespace = cx.namespace().await?;
    let (kind, id) = match noun.as_str() {
        "blob" | "content" => ("content".to_owned(), id),
        "image" | "container" | "lease" => (noun.clone(), id),
        "snapshot" => {
            // What its driver is called, it says itself.
            let info = namespace.snapshots(&cx.args.text("snapshotter")).get(&id).info().await?;
            (format!("snapshots/{}", info.driver), id)
        }
        other => {
            let why = format!("explain: {other:?} is no kind of thing: give blob, snapshot, image, container or lease");
            return Err(Failure::usage(why));
        }
    };
    let answer = namespace.explain(&kind, &id).await?;
    if cx.json {
        cx.document(&answer)?;
        return Ok(0);
    }
    line(&format!("{noun} {id} {}", answer.why))?;
    for step in &answer.chain {
        let name = match step.kind.as_str() {
            "hand" => "made by hand".to_owned(),
            "label" => "the label containerd.io/gc.root".to_owned(),
            "unreadable" => "a record that can't be read".to_owned(),
            kind => format!("{kind} {}", step.id),
        };
        match step.by.is_empty()
            || matches!(answer.chain[0].kind.as_str(), "hand" | "label" | "unreadable") && step.by == name
        {
            true => line(&format!("  {name}"))?,
            false => line(&format!("  -> {name}  ({})", step.by))?,
        }
    }
    let (blobs, snapshots) = (counted(answer.blobs, "blob"), counted(answer.snapshots, "snapshot"));
    line(&format!(
        "with it {}: {blobs} and {snapshots}, {}",
        if answer.stays { "stay" } else { "goes" },
        show_size(answer.bytes)
    ))?;
    Ok(0)
}

/// `coffer system df`.
pub static DF: Command = Command {
    path: &["system", "df"],
    about: "say whose the bytes below the daemon's root are",
    positionals: &[],
    flags: &[],
    notes: "ALONE goes when the owner goes; SHARED others keep too, and the line \"shared\" counts it once. The lines in brackets are no \
            owner's. ALONE is what lies on disk, and its sum is all that does.\n\
            -o json: an object with total, shared, areas and owners",
    failure: 1,
    action: |cx| Box::pin(df(cx)),
};

async fn df(cx: Cx) -> Result<i32, Failure> {
    let (usage, cursor) = cx.client().await?.collector().usage().await?;
    let mut owners = cursor.all().await?;
    if cx.json {
        let mut document = json!(usage);
        document["owners"] = json!(owners);
        cx.document(&document)?;
        return Ok(0);
    }
    owners.sort_by_key(|owner| std::cmp::Reverse((owner.alone, owner.shared)));
    let mut table = Table::new(&["NAMESPACE", "OWNER", "ALONE", "SHARED"]);
    for owner in owners {
        let name = match owner.kind.as_str() {
            "hand" => "made by hand".to_owned(),
            "label" => "label containerd.io/gc.root".to_owned(),
            "nothing" => "nothing: goes with the next collection".to_owned(),
            "unreadable" => "records that can't be read".to_owned(),
            kind => format!("{kind} {}", owner.id),
        };
        table.row([owner.namespace, name, show_size(owner.alone), show_size(owner.shared)]);
    }
    table.row(["".into(), "[shared]".into(), show_size(usage.shared), "".into()]);
    for (name, bytes) in usage.areas.iter().filter(|(_, bytes)| **bytes > 0) {
        table.row(["".into(), format!("[{name}]"), show_size(*bytes), "".into()]);
    }
    table.print()?;
    line(&format!("\ntotal {}", show_size(usage.total)))?;
    Ok(0)
}
