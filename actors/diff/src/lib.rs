//! Layers into trees: what stands between a blob and a snapshot.
//!
//! Owns the threads on which layers are inflated and extracted, and nothing on disk: blobs are content's, trees are
//! snapshots'.
//!
//! - [`Diff::apply`]: a blob of the content store into a [`Stage`](cofferdam_snapshots::Stage).
//! - [`Diff::feed`]: the same while the bytes arrive, so that a layer is read once on its way from the network.
//! - [`Diff::settle`]: layers that were extracted side by side, without their parents, are completed in order.
//! - [`Diff::verify`]: whether a blob is what an image says, without extracting it: a namespace gets a link to a tree
//!   that another unpacked only if its own blob inflates to it.
//! - [`Diff::create`]: the other way, what was changed in a snapshot as a layer; [`pack`], all of a tree; [`Diff::list`],
//!   what was changed as a list.
//!
//! Every extraction is verified by its diff id, can be cancelled (by dropping the future) and leaves nothing behind: the
//! stage goes to the trash. After a crash of the actor jobs under way end, their stages with them.

mod actor;
mod create;
mod differs;
mod extract;
mod feed;
mod handle;
mod links;
mod list;
pub mod messages;
mod pack;

#[cfg(test)]
mod property;
#[cfg(test)]
mod reference;

pub use actor::DiffActor;
pub use cofferdam_archive::Budget;
pub use handle::{Created, Diff, LayerFeed, Pending, Room};
pub use list::{Change, ChangeKind, Listing};
pub use messages::{Extracted, Rung};
pub use pack::{Word, pack, pack_as};
