//! Snapshots: named states of a filesystem, and the trees that they are made of.
//!
//! Owns `snapshots/<driver>/` and `trash/`, and nothing else: the records of snapshots and layers are metadata's, and
//! mounting is up to whoever gets the mounts, but for layers that are images. Never owns the content of a writable tree:
//! what a container writes there is acknowledged by nobody until the snapshot is committed.
//!
//! - To create, the directory comes first and the commit second; to remove, the commit first and a rename into the trash
//!   second. The start sweeps what lies in between. The start after a crash of the actor is the same; what is in
//!   somebody's hands then (a [`Reserved`] or a [`Stage`]) is left to him.
//! - The trees of layers that the daemon unpacks are stored once by chain id. A namespace gets a link to one when it
//!   holds the layer's blob, which [`Snapshots::commit_layers`] leaves to its caller to verify. What a client commits
//!   under a chain id is its own snapshot and never shared.
//! - A new driver is one file in `drivers/` and one line in its list.
//! - Copies, syncs and scans run on a pool of the actor. Deletion is one thread of idle priority.

mod actor;
mod area;
#[cfg(test)]
mod contract;
mod copy;
mod core;
mod drivers;
mod flights;
mod ground;
mod handle;
mod image;
pub mod messages;
mod project;
mod same;
mod stage;
mod trash;
pub mod walk;

pub use actor::SnapshotsActor;
pub use cofferdam_metadata::records::snapshots::{Kind, Removed, Snapshot, Usage};
pub use drivers::Settings;
pub use handle::Snapshots;
pub use messages::ChainLayer;
pub use same::Pace;
pub use stage::{Changes, Reserved, Stage, Staged, Turn};
