//! Checkpoints as images: an index in the reference's form (section 20), whose entries are what criu wrote, the
//! container's spec, the image that it was made from and the layer of what was changed in it.

use std::{io::Read, os::fd::OwnedFd};

use cofferdam_content::BlobReader;
use cofferdam_diff::{Created, Word};
use cofferdam_metadata::records::replace;
use cofferdam_types::{
    Algorithm, Any, Descriptor, Digest, Error, Name, Namespace, Platform, Result,
    media::{self, Kind},
};
use prost::Message as _;
use serde_json::json;

use crate::{
    Images, MAX_DOCUMENT,
    document::{Document, document},
};

/// Which runtime driver wrote what criu's images are, in a form of its own.
const RUNTIME: &str = "dev.cofferdam.checkpoint.runtime";
/// With what it was made, and is to be restored: `tcp-established`, `ext-unix-sk`.
const OPTIONS: &str = "dev.cofferdam.checkpoint.options";
/// The reference's word for a layer's diff id.
const DIFF_ID: &str = "containerd.io/uncompressed";
const TCP: &str = "tcp-established";
const UNIX: &str = "ext-unix-sk";
/// A spec is smaller.
const MAX_SPEC: u64 = 4 << 20;

/// What an index says of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// What criu wrote: a plain tar.
    pub criu: Descriptor,
    /// The spec of the container.
    pub spec: Descriptor,
    /// What was changed in its files, and the diff id of that.
    pub changes: Option<(Descriptor, Digest)>,
    /// `native`, or `runc` for every runc-compatible binary.
    pub runtime: String,
    /// There are established TCP connections in it.
    pub tcp_established: bool,
    /// There are unix sockets in it whose other end was outside.
    pub unix_sockets: bool,
}

/// The spec as the reference keeps it: a protobuf `Any`.
#[derive(Clone, PartialEq, prost::Message)]
struct Packed {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Packs a spec.
pub fn pack_spec(spec: &Any) -> Vec<u8> {
    Packed { type_url: spec.type_url.clone(), value: spec.value.clone() }.encode_to_vec()
}

/// Whether an entry of an index is a part of a checkpoint, and no image.
pub(crate) fn is_part(entry: &Descriptor) -> bool {
    entry.media_type == media::CHECKPOINT_SPEC || matches!(media::kind(&entry.media_type), Kind::Layer(_))
}

impl Checkpoint {
    /// Reads an index whose `bytes` have the descriptor's digest. `None`: it is no checkpoint. One that is damaged, or
    /// that another daemon than ours made, is refused.
    pub fn find(target: &Descriptor, bytes: &[u8]) -> Result<Option<Checkpoint>> {
        if media::kind(&target.media_type) != Kind::Index {
            return Ok(None);
        }
        let Document::Index(entries) = document(target, bytes)? else { return Ok(None) };
        let of = |kind: &str| entries.iter().filter(|e| e.media_type == kind).collect::<Vec<_>>();
        let refuse = |why: &str| Err(Error::invalid("checkpoint", &target.digest, why));
        let criu = match of(media::CHECKPOINT_CRIU)[..] {
            [] => return Ok(None),
            [criu] => criu.clone(),
            _ => return refuse("has the memory of several containers"),
        };
        let [spec] = of(media::CHECKPOINT_SPEC)[..] else { return refuse("has not exactly one spec") };
        let images = entries.iter().filter(|e| matches!(media::kind(&e.media_type), Kind::Manifest | Kind::Index));
        if images.count() != 1 {
            return refuse("has not exactly one image that its container was made from");
        }
        let mut layers = entries
            .iter()
            .filter(|e| e.media_type != media::CHECKPOINT_CRIU && matches!(media::kind(&e.media_type), Kind::Layer(_)));
        let changes = match (layers.next(), layers.next()) {
            (None, _) => None,
            (Some(layer), None) => match layer.annotations.get(DIFF_ID).map(|text| text.parse()) {
                Some(diff_id) => Some((layer.clone(), diff_id?)),
                None => return refuse("has a layer without its diff id"),
            },
            _ => return refuse("has several layers of changes"),
        };
        let runtime = match criu.annotations.get(RUNTIME).map(String::as_str) {
            Some(runtime @ ("native" | "runc")) => runtime.to_owned(),
            _ => {
                return refuse(
                    "does not say which driver made it: it was made by another program, and can't be restored here",
                );
            }
        };
        let option = |name: &str| criu.annotations.get(OPTIONS).is_some_and(|all| all.split(',').any(|o| o == name));
        Ok(Some(Checkpoint {
            tcp_established: option(TCP),
            unix_sockets: option(UNIX),
            spec: spec.clone(),
            criu,
            changes,
            runtime,
        }))
    }

    /// The index. `image` is the manifest of the image that the container was made from, and `name` what it was called.
    pub fn index(&self, image: &Descriptor, name: &str, platform: &Platform) -> (Descriptor, Vec<u8>) {
        let on = |descriptor: &Descriptor| Descriptor { platform: Some(platform.clone()), ..descriptor.clone() };
        let mut criu = on(&self.criu);
        criu.annotations.insert(RUNTIME.into(), self.runtime.clone());
        let options = [(TCP, self.tcp_established), (UNIX, self.unix_sockets)];
        let options: Vec<&str> = options.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        if !options.is_empty() {
            criu.annotations.insert(OPTIONS.into(), options.join(","));
        }
        let mut entries = vec![criu, on(&self.spec), on(image)];
        entries.extend(self.changes.as_ref().map(|(layer, diff_id)| {
            let mut layer = on(layer);
            layer.annotations.insert(DIFF_ID.into(), diff_id.to_string());
            layer
        }));
        let body = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_INDEX,
            "manifests": entries,
            "annotations": { "image.name": name },
        });
        let bytes = body.to_string().into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        (Descriptor::new(media::OCI_INDEX, digest, bytes.len() as u64), bytes)
    }

    /// All but the image.
    pub fn parts(&self) -> Vec<Descriptor> {
        let bare = |d: &Descriptor| Descriptor::new(&*d.media_type, d.digest.clone(), d.size);
        let changes = self.changes.as_ref().map(|(layer, _)| layer);
        [&self.criu, &self.spec].into_iter().chain(changes).map(bare).collect()
    }
}

impl Images {
    /// The checkpoint that an image is; `failed_precondition` if it is none.
    pub fn checkpoint(&self, ns: &Namespace, name: &Name) -> Result<Checkpoint> {
        let target = self.get(ns, name)?.target;
        let bytes = self.content.read_verified(ns, &target.digest, MAX_DOCUMENT)?;
        let why = "is no checkpoint: `coffer checkpoint` makes one";
        Checkpoint::find(&target, &bytes)?.ok_or_else(|| Error::failed_precondition("image", name, why))
    }

    /// The spec in a checkpoint.
    pub fn checkpoint_spec(&self, ns: &Namespace, checkpoint: &Checkpoint) -> Result<Vec<u8>> {
        let bytes = self.content.read_verified(ns, &checkpoint.spec.digest, MAX_SPEC)?;
        let packed = Packed::decode(&*bytes).map_err(|e| {
            Error::invalid("checkpoint", &checkpoint.spec.digest, format!("its spec can't be read: {e}"))
        })?;
        Ok(packed.value)
    }

    /// What criu wrote.
    pub fn checkpoint_memory(&self, ns: &Namespace, checkpoint: &Checkpoint) -> Result<BlobReader> {
        self.content.reader(ns, &checkpoint.criu.digest)
    }

    /// What a snapshot was made on, by the name that this had then.
    pub fn snapshot_parent(&self, ns: &Namespace, driver: &str, key: &Name) -> Result<Option<String>> {
        let Some(parent) = self.snapshots.stat(ns, driver, key)?.parent else { return Ok(None) };
        Ok(Some(replace::first_name(&self.snapshots.stat(ns, driver, &parent)?).to_owned()))
    }

    /// What was changed in a container's snapshot, as a layer of this media type that is not a blob yet. On the caller's
    /// thread.
    pub fn changes(
        &self,
        ns: &Namespace,
        driver: &str,
        key: &Name,
        media_type: &str,
        word: Word<'_>,
    ) -> Result<Created> {
        self.diff.create(ns, &self.snapshots.changes(ns, driver, key, None)?, media_type, word)
    }

    /// A tar as a layer of this media type that is not a blob yet. On the caller's thread.
    pub fn pack(&self, ns: &Namespace, tar: &mut dyn Read, media_type: &str, word: Word<'_>) -> Result<Created> {
        self.diff.pack(ns, tar, media_type, word)
    }

    /// Refuses a media type of which no layer can be written.
    pub fn writes(&self, media_type: &str) -> Result<()> {
        self.diff.writes(media_type)
    }

    /// Brings what a checkpoint has of changed files into a new snapshot, whose mount is `root`.
    pub async fn apply_changes(&self, ns: &Namespace, checkpoint: &Checkpoint, root: OwnedFd) -> Result<()> {
        match &checkpoint.changes {
            Some((layer, diff_id)) => self.diff.apply_onto(ns, layer, diff_id, root).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;

    use super::*;

    fn part(kind: &str, bytes: &[u8]) -> Descriptor {
        Descriptor::new(kind, Digest::of(Algorithm::Sha256, bytes), bytes.len() as u64)
    }

    fn made() -> (Descriptor, Vec<u8>, Checkpoint) {
        let checkpoint = Checkpoint {
            criu: part(media::CHECKPOINT_CRIU, b"memory"),
            spec: part(media::CHECKPOINT_SPEC, b"spec"),
            changes: Some((part(media::OCI_LAYER_GZIP, b"layer"), Digest::of(Algorithm::Sha256, b"tar"))),
            runtime: "native".into(),
            tcp_established: true,
            unix_sockets: false,
        };
        let (target, bytes) =
            checkpoint.index(&part(media::OCI_MANIFEST, b"image"), "test/image", &Platform::new("linux", "amd64", ""));
        (target, bytes, checkpoint)
    }

    #[test]
    fn an_index_says_what_it_was_made_of() {
        let (target, bytes, checkpoint) = made();
        let found = Checkpoint::find(&target, &bytes).unwrap().unwrap();
        assert_eq!(found.parts(), checkpoint.parts());
        assert_eq!((&*found.runtime, found.tcp_established, found.unix_sockets), ("native", true, false));
        assert_eq!(found.changes.unwrap().1, checkpoint.changes.unwrap().1);
        let spec = Any { type_url: "a/b".into(), value: b"{}".to_vec() };
        assert_eq!(Packed::decode(&*pack_spec(&spec)).unwrap().value, b"{}");
    }

    #[test]
    fn what_is_damaged_or_foreign_is_refused() {
        let (_, bytes, _) = made();
        let damaged = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = serde_json::from_slice(&bytes).unwrap();
            change(&mut value);
            let bytes = value.to_string().into_bytes();
            Checkpoint::find(&part(media::OCI_INDEX, &bytes), &bytes)
        };
        let drop_entry = |n: usize| {
            move |value: &mut serde_json::Value| {
                value["manifests"].as_array_mut().unwrap().remove(n);
            }
        };
        assert_eq!(damaged(&drop_entry(0)).unwrap(), None, "without criu's part it is no checkpoint");
        for n in [1, 2] {
            assert_eq!(damaged(&drop_entry(n)).unwrap_err().code, Code::InvalidArgument, "{n}");
        }
        assert_eq!(damaged(&drop_entry(3)).unwrap().unwrap().changes, None);
        let foreign = damaged(&|value| value["manifests"][0]["annotations"] = json!({})).unwrap_err();
        assert!(foreign.message.contains("another program"), "{foreign}");
        let unnamed = damaged(&|value| value["manifests"][3]["annotations"] = json!({})).unwrap_err();
        assert!(unnamed.message.contains("diff id"), "{unnamed}");
        let twice = damaged(&|value| {
            let first = value["manifests"][0].clone();
            value["manifests"].as_array_mut().unwrap().push(first);
        });
        assert_eq!(twice.unwrap_err().code, Code::InvalidArgument);
    }
}
