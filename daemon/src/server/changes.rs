//! `ChangeCursor` (snapshot.capnp): what differs between two snapshots; and layers made of that.

use std::{os::unix::ffi::OsStrExt as _, path::Path, rc::Rc};

use cofferdam_content::Commit;
use cofferdam_diff::{Change, ChangeKind, Created, Listing};
use cofferdam_types::{Error, Labels, Name, Result, media};
use cofferdam_wire::{
    convert::set_descriptor,
    received::Received,
    snapshot_capnp::{change, change_cursor, layer},
};
use tokio::sync::Mutex;

use super::{Place, outflow, rpc};

/// The label of a layer that names its diff id, as in the reference.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// The most that one block holds.
const BLOCK: usize = 100;

/// A snapshot, and what it is compared with.
pub struct Pair<'a> {
    pub place: &'a Place,
    pub driver: &'a str,
    pub key: &'a Name,
    /// Its parent, where there is none.
    pub base: Option<Name>,
}

impl Pair<'_> {
    async fn changes(&self) -> Result<cofferdam_snapshots::Changes> {
        let (all, ns) = (self.place.services().snapshots.clone(), self.place.namespace.clone());
        let (driver, key, base) = (self.driver.to_owned(), self.key.clone(), self.base.clone());
        self.place.services().pool.run(move || all.changes(&ns, &driver, &key, base.as_ref())).await
    }

    /// What differs.
    pub async fn list(&self) -> Result<change_cursor::Client> {
        let listing = self.place.services().diff.list(self.changes().await?);
        Ok(self.place.hand_out(Changes(Mutex::new(listing))))
    }

    async fn compare(&self, media_type: &str) -> Result<Created> {
        let diff = &self.place.services().diff;
        let media_type = if media_type.is_empty() { media::OCI_LAYER_GZIP } else { media_type };
        // Before anything is opened for it.
        diff.writes(media_type)?;
        diff.compare(&self.place.namespace, self.changes().await?, media_type).await
    }

    /// The layer as a blob of the namespace. Nothing refers to it yet: it stays as what is made by hand does.
    pub async fn store(&self, media_type: &str, mut labels: Labels, builder: layer::Builder<'_>) -> Result<()> {
        let Created { ingest, layer, diff_id, .. } = self.compare(media_type).await?;
        set_layer(builder, &layer, &diff_id);
        labels.insert(UNCOMPRESSED.into(), diff_id.to_string());
        let commit = Commit { ingest, size: Some(layer.size), expected: Some(layer.digest), labels };
        let content = &self.place.services().content;
        content.commit_many(&self.place.authority().by_hand(), vec![commit]).await.map(drop)
    }

    /// The layer in a descriptor of the client's. It is whole before the first byte goes out: who is slow to take it
    /// holds up nothing.
    pub async fn pour(&self, media_type: &str, target: impl Into<Received>, builder: layer::Builder<'_>) -> Result<()> {
        let Created { ingest, layer, diff_id, .. } = self.compare(media_type).await?;
        set_layer(builder, &layer, &diff_id);
        let file = ingest.file()?;
        drop(ingest);
        outflow::pour(&self.place.services().pool, file, layer.size, target, &self.place.session.files).await
    }
}

fn set_layer(mut builder: layer::Builder<'_>, layer: &cofferdam_types::Descriptor, diff_id: &cofferdam_types::Digest) {
    set_descriptor(builder.reborrow().init_descriptor(), layer);
    builder.set_diff_id(diff_id.to_string());
}

struct Changes(Mutex<Listing>);

impl change_cursor::Server for Changes {
    async fn next(
        self: Rc<Self>,
        params: change_cursor::NextParams,
        mut results: change_cursor::NextResults,
    ) -> capnp::Result<()> {
        let max = usize::from(params.get()?.get_max());
        if max == 0 {
            return rpc(Err(Error::invalid("cursor", "", "was asked for a block of 0: ask for 1 to 100")));
        }
        let (block, end) = rpc(self.0.lock().await.next(max.min(BLOCK)).await)?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, Change { kind, path }) in block.iter().enumerate() {
            let mut item = items.reborrow().get(n as u32);
            item.set_path(Path::new("/").join(path).as_os_str().as_bytes());
            item.set_kind(match kind {
                ChangeKind::Added => change::Kind::Added,
                ChangeKind::Changed => change::Kind::Changed,
                ChangeKind::Deleted => change::Kind::Deleted,
            });
        }
        Ok(())
    }
}
