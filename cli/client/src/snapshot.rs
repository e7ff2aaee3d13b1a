//! Snapshots.

use std::rc::Rc;

use cofferdam_types::{Labels, Mount, Result, Timestamp};
use cofferdam_wire::{
    convert::{labels, mounts, set_labels, set_texts, text},
    error::malformed,
    snapshot_capnp::{snapshot, snapshot_info, snapshots},
};
use serde::Serialize;

use crate::{
    call::{BLOCK, Cursor, Reply, done, reply},
    connect::Link,
};

/// What may be done with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SnapshotKind {
    /// Read-only, uncommitted.
    View,
    /// Writable.
    Active,
    /// Immutable; only these can be parents.
    Committed,
}

/// What a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotInfo {
    /// Its key.
    pub key: String,
    /// What it stands on; empty where on nothing.
    pub parent: String,
    /// What may be done with it.
    pub kind: SnapshotKind,
    /// Its labels.
    pub labels: Labels,
    /// When it was made.
    #[serde(serialize_with = "crate::json::time")]
    pub created: Timestamp,
    /// When it was last changed.
    #[serde(serialize_with = "crate::json::time")]
    pub updated: Timestamp,
    /// Whose it is.
    pub driver: String,
}

fn info(reader: snapshot_info::Reader<'_>) -> Result<SnapshotInfo> {
    Ok(SnapshotInfo {
        key: text(reader.get_key())?.to_owned(),
        parent: text(reader.get_parent())?.to_owned(),
        kind: match reader.get_kind().map_err(|e| malformed(e.into()))? {
            snapshot_info::Kind::View => SnapshotKind::View,
            snapshot_info::Kind::Active => SnapshotKind::Active,
            snapshot_info::Kind::Committed => SnapshotKind::Committed,
        },
        labels: labels(reader.get_labels())?,
        created: Timestamp(reader.get_created()),
        updated: Timestamp(reader.get_updated()),
        driver: text(reader.get_driver())?.to_owned(),
    })
}

/// The snapshots of a namespace in one driver.
#[derive(Clone)]
pub struct Snapshots {
    pub(crate) link: Rc<Link>,
    pub(crate) client: snapshots::Client,
}

impl Snapshots {
    /// All that pass one of the filters.
    pub fn list<S: AsRef<str>>(&self, filters: &[S]) -> Cursor<SnapshotInfo> {
        let mut request = self.client.list_request();
        set_texts(request.get().init_filters(filters.len() as u32), filters);
        let (cursor, link) = (request.send().pipeline.get_cursor(), self.link.clone());
        Cursor::new(move || {
            let mut request = cursor.next_request();
            request.get().set_max(BLOCK);
            reply(&link, request, |answer| {
                let items = answer.get_items().map_err(malformed)?;
                Ok((items.iter().map(info).collect::<Result<_>>()?, answer.get_end()))
            })
        })
    }

    /// One of them.
    pub fn get(&self, key: &str) -> Snapshot {
        let mut request = self.client.get_request();
        request.get().set_key(key);
        Snapshot { link: self.link.clone(), client: request.send().pipeline.get_snapshot() }
    }

    /// Makes a writable one on top of a committed one, or of nothing where `parent` is empty. It stands until it is
    /// committed or removed.
    pub fn prepare(&self, key: &str, parent: &str, labels: &Labels) -> Snapshot {
        let mut request = self.client.prepare_request();
        request.get().set_key(key);
        request.get().set_parent(parent);
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        Snapshot { link: self.link.clone(), client: request.send().pipeline.get_snapshot() }
    }

    /// Makes a read-only one, likewise.
    pub fn view(&self, key: &str, parent: &str, labels: &Labels) -> Snapshot {
        let mut request = self.client.view_request();
        request.get().set_key(key);
        request.get().set_parent(parent);
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        Snapshot { link: self.link.clone(), client: request.send().pipeline.get_snapshot() }
    }
}

/// A snapshot.
#[derive(Clone)]
pub struct Snapshot {
    link: Rc<Link>,
    client: snapshot::Client,
}

impl Snapshot {
    /// What it is.
    pub fn info(&self) -> Reply<SnapshotInfo> {
        reply(&self.link, self.client.info_request(), |answer| info(answer.get_info().map_err(malformed)?))
    }

    /// Bytes and inodes of this layer alone.
    pub fn usage(&self) -> Reply<(u64, u64)> {
        reply(&self.link, self.client.usage_request(), |answer| Ok((answer.get_size(), answer.get_inodes())))
    }

    /// Removes it.
    pub fn remove(&self) -> Reply<()> {
        done(&self.link, self.client.remove_request())
    }

    /// What shows it, on the daemon's host: to be mounted in order onto one directory. Needs the `host` right.
    pub fn mounts(&self) -> Reply<Vec<Mount>> {
        reply(&self.link, self.client.mounts_request(), |answer| mounts(answer.get_mounts()))
    }

    /// The most bytes that it may have for itself while it is active; 0 is no limit.
    pub fn limit(&self, bytes: u64) -> Reply<()> {
        let mut request = self.client.limit_request();
        request.get().set_bytes(bytes);
        done(&self.link, request)
    }

    /// Makes it immutable and durable, under another key. Nothing should be written into it meanwhile, or afterwards.
    pub fn commit(&self, name: &str, labels: &Labels) -> Snapshot {
        let mut request = self.client.commit_request();
        request.get().set_name(name);
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        Snapshot { link: self.link.clone(), client: request.send().pipeline.get_snapshot() }
    }

    /// Takes what is named, labels or labels.KEY, from `labels`; all of them where nothing is. An entry that is absent
    /// there is removed.
    pub fn update<S: AsRef<str>>(&self, labels: &Labels, fields: &[S]) -> Reply<SnapshotInfo> {
        let mut request = self.client.update_request();
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        set_texts(request.get().init_fields(fields.len() as u32), fields);
        reply(&self.link, request, |answer| info(answer.get_info().map_err(malformed)?))
    }
}
