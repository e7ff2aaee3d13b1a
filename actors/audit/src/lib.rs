//! The audit log: who used which authority for what, in a chain that can't be altered unseen.
//!
//! Audit owns the directory `audit/`, the log's segments, and the row of `meta.redb` that says where the log begins and ends.
//! It never decides anything: which calls leave a record the schema says, and the RPC layer's guard makes it.
//!
//! - **A chain.** Each record has a hash over the one before it, its own number and what it says. The row has that of the last:
//!   what is changed, removed, put in or cut off doesn't lead there ([`Audit::verify`]). A record is on disk before the row says so,
//!   so a power cut leaves the log as long as the row says, or longer; what is torn behind that was never spoken for.
//! - **Two ways in.** [`Audit::add`] waits for nobody: it puts the record into a bounded queue, which is written within 100 ms
//!   ([`core`]). [`Audit::record`] answers when record and row are on disk.
//! - **A full disk.** There is always some room ahead of the end of the log. Where there can't be more of it, what gives authority
//!   is refused ([`Audit::room`]), what takes it back is written into that room, and all else waits in the queue. What doesn't
//!   fit there is lost, and a record says how much was.
//! - **Whoever does something, or is refused**, again and again leaves one record for many ([`often`]): he must not be able to push
//!   out of the log what others did.
//! - **What is found broken** stays as it is, and the log goes on in a new segment. What is old goes by whole segments.
//!
//! The queue outlives a crash of the actor.

mod actor;
mod chain;
mod core;
mod handle;
mod log;
pub mod messages;
mod often;
mod record;
#[cfg(test)]
mod tests;
mod verify;

pub use handle::Audit;
pub use log::{Found, Place, RETENTION};
pub use record::{Filter, Record, Verdict};
pub use verify::{Broken, Report};

/// For whoever tries what a disk may give back.
pub mod files {
    pub use crate::{
        chain::{Hash, link},
        log::Log,
        verify::verify,
    };
}
