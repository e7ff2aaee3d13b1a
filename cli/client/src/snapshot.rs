//! Snapshots.

use std::{os::fd::OwnedFd, rc::Rc};

use cofferdam_types::{Descriptor, Labels, Mount, Result, Timestamp};
use cofferdam_wire::{
    convert::{descriptor, labels, mounts, set_labels, set_texts, text},
    error::malformed,
    received::Received,
    snapshot_capnp::{change, layer, snapshot, snapshot_info, snapshots},
};
use serde::Serialize;

use crate::{
    call::{Reply, done_by, reply_by},
    connect::Link,
    cursor::Cursor,
    stdio::Sink,
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

/// What became of something in a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It is another than before, or something in it is.
    Changed,
    /// It is gone, with all that was in it.
    Deleted,
}

/// One difference between two file systems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What became of it.
    pub kind: ChangeKind,
    /// What: beginning with `/`, and not necessarily UTF-8.
    pub path: Vec<u8>,
}

pub(crate) fn change(reader: change::Reader<'_>) -> Result<Change> {
    Ok(Change {
        kind: match reader.get_kind().map_err(|e| malformed(e.into()))? {
            change::Kind::Added => ChangeKind::Added,
            change::Kind::Changed => ChangeKind::Changed,
            change::Kind::Deleted => ChangeKind::Deleted,
        },
        path: reader.get_path().map_err(malformed)?.to_vec(),
    })
}

/// A layer that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// What it is.
    #[serde(flatten)]
    pub descriptor: Descriptor,
    /// The digest of its tar.
    pub diff_id: String,
}

fn layer(reader: capnp::Result<layer::Reader<'_>>) -> Result<Layer> {
    let reader = reader.map_err(malformed)?;
    Ok(Layer {
        descriptor: descriptor(reader.get_descriptor().map_err(malformed)?)?,
        diff_id: text(reader.get_diff_id())?.to_owned(),
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
        Cursor::over_records(&self.link, request.send().pipeline.get_cursor(), info)
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
        reply_by(&self.link, &self.client, self.client.info_request(), |answer| {
            info(answer.get_info().map_err(malformed)?)
        })
    }

    /// Bytes and inodes of this layer alone.
    pub fn usage(&self) -> Reply<(u64, u64)> {
        reply_by(&self.link, &self.client, self.client.usage_request(), |answer| {
            Ok((answer.get_size(), answer.get_inodes()))
        })
    }

    /// Removes it.
    pub fn remove(&self) -> Reply<()> {
        done_by(&self.link, &self.client, self.client.remove_request())
    }

    /// What shows it, on the daemon's host: to be mounted in order onto one directory. Needs the `host` right.
    pub fn mounts(&self) -> Reply<Vec<Mount>> {
        reply_by(&self.link, &self.client, self.client.mounts_request(), |answer| mounts(answer.get_mounts()))
    }

    /// What shows it, as a mount that is attached nowhere; no device can be used in it. Needs the `host` right.
    pub fn mount_fd(&self) -> Reply<OwnedFd> {
        let link = self.link.clone();
        reply_by(&self.link, &self.client, self.client.mount_fd_request(), move |answer| {
            link.fds.take(answer.get_mount()).map(Received::into_fd)
        })
    }

    /// What differs from the snapshot `base`; where that is empty, from what it lies on.
    pub fn changes(&self, base: &str) -> Cursor<Change> {
        let mut request = self.client.changes_request();
        request.get().set_base(base);
        Cursor::of(&self.link, request.send().pipeline.get_cursor(), change)
    }

    /// The same as a layer in the content of the namespace; an empty media type is OCI's with gzip.
    pub fn diff(&self, base: &str, media_type: &str, labels: &Labels) -> Reply<Layer> {
        let mut request = self.client.diff_request();
        request.get().set_base(base);
        request.get().set_media_type(media_type);
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        reply_by(&self.link, &self.client, request, |answer| layer(answer.get_layer()))
    }

    /// The same into a file or a pipe of yours; nothing is stored.
    pub fn diff_fd(&self, base: &str, media_type: &str, target: OwnedFd) -> Reply<Layer> {
        let mut request = self.client.diff_fd_request();
        request.get().set_base(base);
        request.get().set_media_type(media_type);
        request.get().set_target(self.link.fds.push(target));
        reply_by(&self.link, &self.client, request, |answer| layer(answer.get_layer()))
    }

    /// The same into a sink of yours, see [`crate::channel`].
    pub fn diff_to(&self, base: &str, media_type: &str, sink: &Sink) -> Reply<Layer> {
        let mut request = self.client.diff_to_request();
        request.get().set_base(base);
        request.get().set_media_type(media_type);
        request.get().set_sink(sink.client.clone());
        reply_by(&self.link, &self.client, request, |answer| layer(answer.get_layer()))
    }

    /// The most bytes that it may have for itself while it is active; 0 is no limit.
    pub fn limit(&self, bytes: u64) -> Reply<()> {
        let mut request = self.client.limit_request();
        request.get().set_bytes(bytes);
        done_by(&self.link, &self.client, request)
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
        reply_by(&self.link, &self.client, request, |answer| info(answer.get_info().map_err(malformed)?))
    }
}
