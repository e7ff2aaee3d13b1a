//! What can be asked of the journal through its mailbox. Following the newest events is not among it: that needs no
//! actor.

use actix::Message;
use cofferdam_types::Result;

use crate::journal::{Chunk, Cursor, Damage};

/// Reads from the journal on disk.
#[derive(Debug)]
pub struct ReadJournal {
    /// Where the reader stands.
    pub cursor: Cursor,
    /// How many events at most.
    pub max: usize,
}

impl Message for ReadJournal {
    /// What was read, and where the reader stands then.
    type Result = Result<(Chunk, Cursor)>;
}

/// Looks for what the disk has changed of the journal.
#[derive(Debug)]
pub struct Check;

impl Message for Check {
    type Result = Result<Vec<Damage>>;
}

/// Moves what is in the outbox into the journal now. The actor does so by itself in time.
#[derive(Debug)]
pub struct Settle;

impl Message for Settle {
    /// The last sequence in the journal.
    type Result = Result<u64>;
}
