//! Images: what a name stands for, which of it runs here, and what of it is unpacked.
//!
//! Owns no directory: records are metadata's, blobs content's, trees snapshots'. What it knows is how to read
//! manifests, indexes and configs, which come from strangers: strictly, within limits, and never in two ways at once.
//!
//! - A name resolves to a [`ResolvedImage`] for a platform: the first manifest of an index that fits, as the image-spec
//!   has it. The chain ids in it name the snapshots that hold its layers.
//! - [`Images::unpack`] makes these snapshots: layers side by side, one sync, one commit. A namespace that holds the
//!   blobs of layers that are unpacked already gets links to them, once its own blobs have been verified to be those
//!   layers: claiming a diff id is not enough.
//! - [`Images::begin_unpack`] does so while the layers arrive ([`Unpack`]).
//! - Labels keep content and snapshots of an image from being collected, as in the reference: a document has
//!   `containerd.io/gc.ref.content.N` for each of its children, a config `containerd.io/gc.ref.snapshot.<driver>`.
//!   Labels of the image itself (in its config or annotations) never become labels of records.
//! - What is unpacked is compared with its blobs from time to time ([`Images::examine`]), and unpacked again where the disk
//!   has changed it ([`Images::check_layers`]).
//! - Removing an image removes its record; the rest is the collector's.
//!
//! Documents are read on a pool of the actor. After a crash of the actor nothing is lost: it has no state.

mod actor;
mod checkpoint;
mod document;
mod handle;
mod heal;
mod json;
pub mod messages;
mod prune;
mod reach;
mod recent;
mod report;
mod resolve;
#[cfg(test)]
mod tests;
mod unpack;

use cofferdam_types::{Descriptor, Labels, Result};

pub use actor::ImagesActor;
pub use checkpoint::{Checkpoint, pack_spec};
pub use cofferdam_metadata::records::images::Image;
pub use document::{Config, Document, Manifest, chain_ids, children, config, document, gc_labels, gc_snapshot_label};
pub use handle::Images;
pub use heal::Unpacked;
pub use json::MAX_DOCUMENT;
pub use prune::{Prune, Pruned, Why};
pub use reach::Own;
pub use report::State;
pub use resolve::{Blobs, Check, ResolvedImage, resolve};
pub use unpack::{Step, Told, Unpack};

/// The labels that a manifest or an index is stored with. `bytes` have the descriptor's digest.
pub fn content_labels(descriptor: &Descriptor, bytes: &[u8]) -> Result<Labels> {
    Ok(gc_labels(&children(&document(descriptor, bytes)?)))
}
