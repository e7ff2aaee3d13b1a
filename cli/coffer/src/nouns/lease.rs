//! Leases: what keeps blobs and snapshots from being collected.

use cofferdam_client::{LeaseInfo, Resource, random_id};
use cofferdam_types::{Digest, Labels, Timestamp};

use crate::{
    args::{Command, Flag, Positional, Times, many, switch, value},
    cx::{Cx, Table, line},
    failure::Failure,
    nouns::container::each,
    units::{pair, show_age, span},
};

/// For commands that make something: what holds it.
pub const LEASE: Flag = value("lease", None, "ID", "a lease that holds what is made");
const ID: Positional = Positional { name: "LEASE", times: Times::Once };
const RESOURCES: &[Positional] = &[ID, Positional { name: "RESOURCE", times: Times::Many }];
const RESOURCE: &str = "RESOURCE is a digest, or a snapshot as SNAPSHOTTER/KEY.";

fn end(cx: &Cx) -> Result<Option<Timestamp>, Failure> {
    let given = cx.args.read("expires", span)?;
    Ok(given
        .map(|span| Timestamp(Timestamp::now().0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))))
}

fn ends(info: &LeaseInfo) -> String {
    if info.expires == Timestamp::default() { "-".into() } else { info.expires.to_rfc3339() }
}

/// `coffer lease create`.
pub static CREATE: Command = Command {
    path: &["lease", "create"],
    about: "make a lease, which keeps what is made under it from being collected",
    positionals: &[Positional { name: "LEASE", times: Times::Maybe }],
    flags: &[
        value("expires", None, "SPAN", "when it ends by itself, such as 90s, 30m, 24h or 7d"),
        many("label", Some('l'), "KEY=VALUE", "a label"),
    ],
    notes: "Prints its id, which is chosen where none is given. Without --expires it stays until it is removed.",
    failure: 1,
    action: |cx| Box::pin(create(cx)),
};

async fn create(cx: Cx) -> Result<i32, Failure> {
    let labels = cx.args.read_all("label", pair)?.into_iter().collect();
    let expires = end(&cx)?;
    let id = match cx.args.at(0) {
        "" => random_id()?,
        id => id.to_owned(),
    };
    let info = cx.namespace().await?.leases().create(&id, &labels, expires).info().await?;
    if cx.json {
        cx.document(&info)?
    } else {
        line(&info.id)?
    }
    Ok(0)
}

/// `coffer lease ls`.
pub static LS: Command = Command {
    path: &["lease", "ls"],
    about: "list leases",
    positionals: &[],
    flags: &[
        switch("quiet", Some('q'), "ids alone"),
        many("filter", None, "FILTER", "such as id==ID or labels.KEY==VALUE"),
    ],
    notes: "-o json: one array",
    failure: 1,
    action: |cx| Box::pin(ls(cx)),
};

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let list = cx.namespace().await?.leases().list(cx.args.all("filter")).all().await?;
    if cx.args.has("quiet") {
        cx.names(list.iter().map(|info| info.id.as_str()))?;
    } else if cx.json {
        cx.document(&list)?;
    } else {
        let mut table = Table::new(&["LEASE", "CREATED", "EXPIRES", "LABELS"]);
        for info in &list {
            let labels = info.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
            table.row([info.id.clone(), show_age(info.created), ends(info), labels]);
        }
        table.print()?;
    }
    Ok(0)
}

/// `coffer lease renew`.
pub static RENEW: Command = Command {
    path: &["lease", "renew"],
    about: "have a lease end at another time",
    positionals: &[ID],
    flags: &[value("expires", None, "SPAN", "counted from now, such as 90s, 30m, 24h or 7d")],
    notes: "Without --expires it stays until it is removed. Prints when it ends.",
    failure: 1,
    action: |cx| Box::pin(renew(cx)),
};

async fn renew(cx: Cx) -> Result<i32, Failure> {
    let expires = end(&cx)?;
    let lease = cx.namespace().await?.leases().get(cx.args.at(0));
    let info = lease.update(&Labels::new(), expires, &["expires"]).await?;
    if cx.json {
        cx.document(&info)?
    } else {
        line(&ends(&info))?
    }
    Ok(0)
}

/// `coffer lease rm`.
pub static RM: Command = Command {
    path: &["lease", "rm"],
    about: "remove leases",
    positionals: &[Positional { name: "LEASE", times: Times::Many }],
    flags: &[],
    notes: "What they held stays until it is collected, unless something else keeps it.",
    failure: 1,
    action: |cx| Box::pin(rm(cx)),
};

async fn rm(cx: Cx) -> Result<i32, Failure> {
    let leases = cx.namespace().await?.leases();
    each(&cx, async |id| Ok(leases.remove(id).await?)).await
}

/// A digest is a blob; all else is a snapshot.
fn resource(text: &str) -> Result<Resource, String> {
    if text.parse::<Digest>().is_ok() {
        return Ok(Resource { kind: "content".into(), id: text.into() });
    }
    match text.split_once('/') {
        Some((driver, key)) if !driver.is_empty() && !key.is_empty() => {
            Ok(Resource { kind: format!("snapshots/{driver}"), id: key.into() })
        }
        _ => Err("give a digest, or a snapshot as SNAPSHOTTER/KEY".into()),
    }
}

fn named(cx: &Cx) -> Result<Vec<Resource>, Failure> {
    let name = cx.args.command.name();
    let read = |text: &String| resource(text).map_err(|why| Failure::usage(format!("{name}: {text:?}: {why}")));
    cx.args.from(1).iter().map(read).collect()
}

/// `coffer lease add`.
pub static ADD: Command = Command {
    path: &["lease", "add"],
    about: "have a lease hold blobs and snapshots",
    positionals: RESOURCES,
    flags: &[],
    notes: "RESOURCE is a digest, or a snapshot as SNAPSHOTTER/KEY. It needn't be there yet: it is held when it comes.",
    failure: 1,
    action: |cx| Box::pin(add(cx)),
};

async fn add(cx: Cx) -> Result<i32, Failure> {
    let resources = named(&cx)?;
    let lease = cx.namespace().await?.leases().get(cx.args.at(0));
    for resource in &resources {
        lease.add(resource).await?;
    }
    Ok(0)
}

/// `coffer lease drop`.
pub static DROP: Command = Command {
    path: &["lease", "drop"],
    about: "have a lease let go of blobs and snapshots",
    positionals: RESOURCES,
    flags: &[],
    notes: RESOURCE,
    failure: 1,
    action: |cx| Box::pin(drop_all(cx)),
};

async fn drop_all(cx: Cx) -> Result<i32, Failure> {
    let resources = named(&cx)?;
    let lease = cx.namespace().await?.leases().get(cx.args.at(0));
    for resource in &resources {
        lease.release(resource).await?;
    }
    Ok(0)
}

/// `coffer lease resources`.
pub static HELD: Command = Command {
    path: &["lease", "resources"],
    about: "list what a lease holds",
    positionals: &[ID],
    flags: &[],
    notes: "-o json: one array",
    failure: 1,
    action: |cx| Box::pin(held(cx)),
};

async fn held(cx: Cx) -> Result<i32, Failure> {
    let list = cx.namespace().await?.leases().get(cx.args.at(0)).resources().all().await?;
    if cx.json {
        cx.document(&list)?;
        return Ok(0);
    }
    let mut table = Table::new(&["TYPE", "ID"]);
    list.into_iter().for_each(|resource| table.row([resource.kind, resource.id]));
    table.print()?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_a_blob_or_a_snapshot() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(resource(&digest).unwrap().kind, "content");
        let layer = resource(&format!("overlay/{digest}")).unwrap();
        assert_eq!((layer.kind.as_str(), layer.id), ("snapshots/overlay", digest));
        assert_eq!(resource("native/a/b").unwrap().id, "a/b");
        for wrong in ["", "box", "/box", "overlay/"] {
            assert!(resource(wrong).is_err(), "{wrong:?}");
        }
    }
}
