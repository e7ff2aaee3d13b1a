//! Collecting: blobs and snapshots that nothing keeps are removed, and when.
//!
//! Gc owns no directory and no table. What keeps what is the metadata's to say ([`cofferdam_metadata::graph`]), and so is
//! which of it a removing transaction spares; the bytes are removed by content and snapshots, after the commit that removed
//! the record. Gc decides when, and goes through all of it in slices, so that a writer waits for one of them at most.
//!
//! Whose the bytes on disk are it says too ([`DiskUsage`]), by the same graph.
//!
//! Nothing of a collection is on disk. One that is cut off by a crash has removed what it had committed; what its owners had
//! not come to they sweep at their start, and the next collection finds the rest.

mod actor;
mod collect;
mod disk;
mod handle;
pub mod messages;
mod schedule;
mod settings;
#[cfg(test)]
mod tests;

pub use collect::{Item, LISTED, Report};
pub use disk::DiskUsage;
pub use handle::Gc;
pub use settings::Settings;
