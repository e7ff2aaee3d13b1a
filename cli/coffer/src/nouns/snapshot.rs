//! Snapshots.

use std::collections::BTreeMap;

use cofferdam_client::{Snapshot, SnapshotInfo, SnapshotKind, Snapshots};
use cofferdam_types::{Code, Labels, Mount};
use serde::Serialize;

use super::{
    container::{Failures, each, show_each},
    lease::LEASE,
};
use crate::{
    args::{Command, Flag, Positional, Times, many, switch, value},
    cx::{Cx, Table, line},
    failure::Failure,
    progress::short_name,
    units::{pair, show_age, show_size, size},
};

/// Whose snapshots are meant.
pub const SNAPSHOTTER: Flag = value("snapshotter", None, "NAME", "of another driver than the default one");
pub(super) const LABEL: Flag = many("label", Some('l'), "KEY=VALUE", "a label");
const NEW: &[Positional] =
    &[Positional { name: "KEY", times: Times::Once }, Positional { name: "PARENT", times: Times::Maybe }];

pub(super) async fn snapshots(cx: &Cx) -> Result<Snapshots, Failure> {
    Ok(cx.namespace().await?.snapshots(&cx.args.text("snapshotter")))
}

async fn to_fill(cx: &Cx) -> Result<Snapshots, Failure> {
    Ok(cx.namespace_to_fill().await?.snapshots(&cx.args.text("snapshotter")))
}

fn kind(info: &SnapshotInfo) -> &'static str {
    match info.kind {
        SnapshotKind::View => "view",
        SnapshotKind::Active => "active",
        SnapshotKind::Committed => "committed",
    }
}

/// `coffer snapshot ls`.
pub static LS: Command = Command {
    path: &["snapshot", "ls"],
    about: "list snapshots",
    positionals: &[],
    flags: &[
        switch("quiet", Some('q'), "keys alone"),
        SNAPSHOTTER,
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
    let snapshots = snapshots(&cx).await?;
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
        let parent = if info.parent.is_empty() { "-".to_owned() } else { short_name(&info.parent) };
        let mut row = vec![info.key.clone(), parent, kind(info).to_owned(), show_age(info.created)];
        if usage {
            let (size, inodes) = snapshots.get(&info.key).usage().await?;
            row.extend([show_size(size), inodes.to_string()]);
        }
        table.row(row);
    }
    table.print()?;
    Ok(0)
}

/// `coffer snapshot prepare`.
pub static PREPARE: Command = Command {
    path: &["snapshot", "prepare"],
    about: "make a writable snapshot, on top of a committed one or of nothing",
    positionals: NEW,
    flags: &[SNAPSHOTTER, LABEL, LEASE],
    notes: "It stands until it is committed or removed, or its lease ends. \"coffer snapshot mounts KEY\" says how to mount it.",
    failure: 1,
    action: |cx| Box::pin(make(cx, Snapshots::prepare)),
};

/// `coffer snapshot view`.
pub static VIEW: Command = Command {
    path: &["snapshot", "view"],
    about: "make a read-only snapshot, on top of a committed one or of nothing",
    positionals: NEW,
    flags: &[SNAPSHOTTER, LABEL, LEASE],
    notes: "It stands until it is removed, or its lease ends. \"coffer snapshot mounts KEY\" says how to mount it.",
    failure: 1,
    action: |cx| Box::pin(make(cx, Snapshots::view)),
};

async fn make(cx: Cx, how: fn(&Snapshots, &str, &str, &Labels) -> Snapshot) -> Result<i32, Failure> {
    let (key, labels) = (cx.args.at(0), labels(&cx)?);
    how(&to_fill(&cx).await?, key, cx.args.at(1), &labels).info().await?;
    cx.names([key])?;
    Ok(0)
}

pub(super) fn labels(cx: &Cx) -> Result<Labels, Failure> {
    Ok(cx.args.read_all("label", pair)?.into_iter().collect())
}

/// `coffer snapshot commit`.
pub static COMMIT: Command = Command {
    path: &["snapshot", "commit"],
    about: "make a writable snapshot immutable, under another name",
    positionals: &[Positional { name: "KEY", times: Times::Once }, Positional { name: "NAME", times: Times::Once }],
    flags: &[SNAPSHOTTER, LABEL, LEASE],
    notes: "Unmount it first. Labels that it had are gone with its key; others can lie on it then.",
    failure: 1,
    action: |cx| Box::pin(commit(cx)),
};

async fn commit(cx: Cx) -> Result<i32, Failure> {
    let labels = labels(&cx)?;
    let active = to_fill(&cx).await?.get(cx.args.at(0));
    let committed = active.commit(cx.args.at(1), &labels);
    committed.info().await?;
    cx.names([cx.args.at(1)])?;
    Ok(0)
}

/// `coffer snapshot mounts`.
pub static MOUNTS: Command = Command {
    path: &["snapshot", "mounts"],
    about: "show how a snapshot is mounted, as commands for a shell",
    positionals: &[Positional { name: "KEY", times: Times::Once }, Positional { name: "TARGET", times: Times::Maybe }],
    flags: &[SNAPSHOTTER],
    notes: "TARGET is a directory of the daemon's host, /mnt if none is given. A committed snapshot isn't mounted: prepare\n\
            or view one on top of it. Nor is one in which a container runs: see \"coffer cp\". Of one that lies on many others\n\
            mount(8) can't be told: see \"coffer snapshot mount\". -o json: one array of mounts, with type, source and options",
    failure: 1,
    action: |cx| Box::pin(mounts(cx)),
};

async fn mounts(cx: Cx) -> Result<i32, Failure> {
    let mounts = snapshots(&cx).await?.get(cx.args.at(0)).mounts().await?;
    if cx.json {
        cx.document(&mounts)?;
        return Ok(0);
    }
    let target = Some(cx.args.at(1)).filter(|target| !target.is_empty()).unwrap_or("/mnt");
    let commands = mounts.iter().map(|mount| command(mount, target)).collect::<Result<Vec<_>, _>>();
    let commands = commands.map_err(|len| {
        let why = "lies on so many that mount(8) can't be told all of them";
        let key = quoted(cx.args.at(0));
        Failure::usage(format!(
            "snapshot {key}: {why}, {len} bytes of options where {MAX_OPTIONS} are possible: see \"coffer snapshot mount\""
        ))
    })?;
    commands.iter().try_for_each(|command| line(command))?;
    Ok(0)
}

/// What mount(2) takes: a page, with the byte that ends it.
const MAX_OPTIONS: usize = 4095;

/// What mount(8) is told; the error is the length of what it can't be. A bind mount has no type for it.
fn command(mount: &Mount, target: &str) -> Result<String, usize> {
    let kind = if mount.kind == "bind" { String::new() } else { format!("-t {} ", quoted(&mount.kind)) };
    let options = mount.options.join(",");
    if options.len() > MAX_OPTIONS {
        return Err(options.len());
    }
    Ok(format!("mount {kind}-o {} {} {}", quoted(&options), quoted(&mount.source), quoted(target)))
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:=@%".contains(c);
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// `coffer snapshot info`.
pub static INFO: Command = Command {
    path: &["snapshot", "info"],
    about: "show all that is known of snapshots, as JSON",
    positionals: &[Positional { name: "KEY", times: Times::Many }],
    flags: &[SNAPSHOTTER],
    notes: "one JSON document for each; -o json puts each on one line",
    failure: 1,
    action: |cx| Box::pin(info(cx)),
};

async fn info(cx: Cx) -> Result<i32, Failure> {
    let snapshots = snapshots(&cx).await?;
    show_each(&cx, async |key| snapshots.get(key).info().await).await
}

/// `coffer snapshot usage`.
pub static USAGE: Command = Command {
    path: &["snapshot", "usage"],
    about: "show what snapshots take up, each without those that it lies on",
    positionals: &[Positional { name: "KEY", times: Times::Any }],
    flags: &[SNAPSHOTTER],
    notes: "All of them where none is named. -o json: one array",
    failure: 1,
    action: |cx| Box::pin(usage(cx)),
};

/// The figures of one, for programs.
#[derive(Serialize)]
struct Used<'k> {
    key: &'k str,
    size: u64,
    inodes: u64,
}

async fn usage(cx: Cx) -> Result<i32, Failure> {
    let snapshots = snapshots(&cx).await?;
    let mut keys = cx.args.from(0).to_vec();
    if keys.is_empty() {
        keys = snapshots.list::<&str>(&[]).all().await?.into_iter().map(|info| info.key).collect();
    }
    let mut table = Table::new(&["KEY", "SIZE", "INODES"]);
    let (mut documents, mut failures) = (Vec::new(), Failures::default());
    for key in &keys {
        let (size, inodes) = match snapshots.get(key).usage().await {
            Ok(usage) => usage,
            // It went while we looked.
            Err(error) if cx.args.from(0).is_empty() && error.code == Code::NotFound => continue,
            Err(error) => {
                failures.add(error);
                continue;
            }
        };
        table.row([key.clone(), show_size(size), inodes.to_string()]);
        documents.push(Used { key, size, inodes });
    }
    if cx.json {
        cx.document(&documents)?
    } else {
        table.print()?
    }
    failures.end(0)
}

/// `coffer snapshot limit`.
pub static LIMIT: Command = Command {
    path: &["snapshot", "limit"],
    about: "bound what may be written into an active snapshot",
    positionals: &[Positional { name: "KEY", times: Times::Once }, Positional { name: "SIZE", times: Times::Once }],
    flags: &[SNAPSHOTTER],
    notes: "SIZE is such as 512m, and 0 for no limit. What it lies on doesn't count. The driver btrfs can do that, with quotas on, and \
            the others where the file system has project quotas.",
    failure: 1,
    action: |cx| Box::pin(limit(cx)),
};

async fn limit(cx: Cx) -> Result<i32, Failure> {
    let text = cx.args.at(1);
    let bytes = size(text).map_err(|why| Failure::usage(format!("snapshot limit: {text:?}: {why}")))?;
    snapshots(&cx).await?.get(cx.args.at(0)).limit(bytes).await?;
    Ok(0)
}

/// What a command that sets labels was given behind the thing's name: those to set, and the names of all.
pub(super) fn edits(cx: &Cx) -> Result<(Labels, Vec<String>), Failure> {
    let (mut labels, mut fields) = (Labels::new(), Vec::new());
    for text in cx.args.from(1) {
        let of = |why| Failure::usage(format!("{}: {text:?}: {why}", cx.args.command.name()));
        let (key, value) = pair(text).map_err(of)?;
        fields.push(format!("labels.{key}"));
        if !value.is_empty() {
            labels.insert(key, value);
        }
    }
    Ok((labels, fields))
}

/// `coffer snapshot label`.
pub static SET: Command = Command {
    path: &["snapshot", "label"],
    about: "set labels of a snapshot, and remove some",
    positionals: &[
        Positional { name: "KEY", times: Times::Once },
        Positional { name: "LABEL=[VALUE]", times: Times::Many },
    ],
    flags: &[SNAPSHOTTER],
    notes: "LABEL= without a value removes that label. Prints the labels that there are then.",
    failure: 1,
    action: |cx| Box::pin(set(cx)),
};

async fn set(cx: Cx) -> Result<i32, Failure> {
    let (labels, fields) = edits(&cx)?;
    let info = snapshots(&cx).await?.get(cx.args.at(0)).update(&labels, &fields).await?;
    if cx.json {
        cx.document(&info.labels)?;
    } else {
        info.labels.iter().try_for_each(|(key, value)| line(&format!("{key}={value}")))?;
    }
    Ok(0)
}

/// `coffer snapshot rm`.
pub static RM: Command = Command {
    path: &["snapshot", "rm"],
    about: "remove snapshots",
    positionals: &[Positional { name: "KEY", times: Times::Many }],
    flags: &[SNAPSHOTTER],
    notes: "Those first that lie on others. The root of a container goes with that. Unmount them before.",
    failure: 1,
    action: |cx| Box::pin(rm(cx)),
};

async fn rm(cx: Cx) -> Result<i32, Failure> {
    let snapshots = snapshots(&cx).await?;
    each(&cx, async |key| Ok(snapshots.get(key).remove().await?)).await
}

/// `coffer snapshot tree`.
pub static TREE: Command = Command {
    path: &["snapshot", "tree"],
    about: "show which snapshot lies on which",
    positionals: &[],
    flags: &[SNAPSHOTTER],
    notes: "-o json: one array, parents first, each with its depth",
    failure: 1,
    action: |cx| Box::pin(tree(cx)),
};

/// One of the tree, for programs.
#[derive(Serialize)]
struct Leaf<'i> {
    depth: usize,
    #[serde(flatten)]
    info: &'i SnapshotInfo,
}

async fn tree(cx: Cx) -> Result<i32, Failure> {
    let list = snapshots(&cx).await?.list::<&str>(&[]).all().await?;
    let tree = grown(&list);
    if cx.json {
        cx.document(&tree)?;
        return Ok(0);
    }
    let mut table = Table::new(&["KEY", "KIND"]);
    for leaf in &tree {
        let branch = if leaf.depth == 0 { "" } else { "\\_ " };
        table.row([format!("{}{branch}{}", "   ".repeat(leaf.depth), leaf.info.key), kind(leaf.info).to_owned()]);
    }
    table.print()?;
    Ok(0)
}

/// The list in the order of a tree. What was removed while it was listed is no reason to leave out what lay on it.
fn grown(list: &[SnapshotInfo]) -> Vec<Leaf<'_>> {
    let known: BTreeMap<&str, &SnapshotInfo> = list.iter().map(|info| (&*info.key, info)).collect();
    let mut children: BTreeMap<&str, Vec<&SnapshotInfo>> = BTreeMap::new();
    for info in list {
        let parent = if known.contains_key(&*info.parent) { &*info.parent } else { "" };
        children.entry(parent).or_default().push(info);
    }
    let mut tree = Vec::with_capacity(list.len());
    let mut left: Vec<(usize, &SnapshotInfo)> = Vec::new();
    let put = |left: &mut Vec<_>, depth, key: &str| {
        left.extend(children.get(key).into_iter().flatten().rev().map(|info| (depth, *info)));
    };
    put(&mut left, 0, "");
    while let Some((depth, info)) = left.pop() {
        tree.push(Leaf { depth, info });
        put(&mut left, depth + 1, &info.key);
    }
    tree
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Timestamp;

    use super::*;

    #[test]
    fn a_mount_is_a_command_that_a_shell_takes_as_it_is() {
        let mount = |kind: &str, source: &str, options: &[&str]| Mount {
            kind: kind.into(),
            source: source.into(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        let bind = mount("bind", "/s/1/fs", &["ro", "rbind"]);
        assert_eq!(command(&bind, "/mnt").unwrap(), "mount -o ro,rbind /s/1/fs /mnt");
        let overlay = mount("overlay", "overlay", &["workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir=/s/1/fs"]);
        assert_eq!(
            command(&overlay, "it's here; rm").unwrap(),
            "mount -t overlay -o workdir=/s/2/work,upperdir=/s/2/fs,lowerdir=/s/1/fs overlay 'it'\\''s here; rm'"
        );
        let lower = |len: usize| format!("lowerdir={}", "x".repeat(len - 9));
        assert!(command(&mount("overlay", "overlay", &[&lower(MAX_OPTIONS)]), "/mnt").is_ok());
        assert_eq!(command(&mount("overlay", "overlay", &[&lower(MAX_OPTIONS + 1)]), "/mnt"), Err(MAX_OPTIONS + 1));
        assert_eq!((quoted(""), quoted("-r"), quoted("a\nb")), ("''".into(), "'-r'".into(), "'a\nb'".into()));
    }

    #[test]
    fn the_tree_has_each_once_below_its_parent() {
        let info = |key: &str, parent: &str| SnapshotInfo {
            key: key.into(),
            parent: parent.into(),
            kind: SnapshotKind::Committed,
            labels: Labels::new(),
            created: Timestamp(1),
            updated: Timestamp(1),
            driver: "overlay".into(),
        };
        let list = [info("a", "z"), info("b", "gone"), info("c", "a"), info("d", "a"), info("e", "c"), info("z", "")];
        let tree: Vec<_> = grown(&list).iter().map(|leaf| (leaf.depth, leaf.info.key.clone())).collect();
        let expected = [(0, "b"), (0, "z"), (1, "a"), (2, "c"), (3, "e"), (2, "d")];
        assert_eq!(tree, expected.map(|(depth, key)| (depth, key.to_owned())));
    }
}
