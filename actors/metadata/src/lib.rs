//! Every table of meta.redb, and the one writer.
//!
//! All facts that the daemon acknowledges are rows here: what exists, what it refers to, what happened. Metadata owns
//! the file `meta.redb` and never a directory, a blob or a process: those belong to the subsystems whose records it
//! keeps, and they make their files visible by a commit here (file first, commit second; on removal the other way).
//!
//! - Reads ([`Metadata::read`]) are MVCC snapshots on the caller's thread; they wait for nobody.
//! - A write ([`Metadata::write`]) is a repeatable function of a [`Tx`] that touches memory and tables alone. One
//!   writer folds what waits into one transaction and one fsync, then answers each. A write that fails before its
//!   first change leaves the others alone; one that fails after it, or panics, has the batch run again without it.
//! - The functions in [`records`] are the only ones that know keys and values. They take a transaction, so that a
//!   job over several subsystems composes one commit, and they emit the event and note what it refers to themselves.
//!
//! - [`graph`] says what refers to what, and so what the collector removes. What is referred to while it is at it, and what
//!   a job has pinned ([`Metadata::pin`]), it spares.
//!
//! After a crash of the writer, or a storage error, the file is opened again; until then reads and writes are
//! `unavailable`. After a sync that failed it is first read past the page cache, which may hold what the disk has not.

mod actor;
mod ahead;
mod codec;
mod doubt;
mod fields;
mod frozen;
pub mod graph;
mod handle;
mod messages;
mod opener;
pub mod rebuild;
pub mod records;
mod reserve;
mod salvage;
mod spared;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod tx;
mod untouched;

pub use handle::Metadata;
pub use messages::Write;
pub use spared::Pin;
pub use table::{Read, Table, View, Visit};
pub use tx::{Changes, Tx};
