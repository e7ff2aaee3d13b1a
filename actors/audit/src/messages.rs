//! What can be asked of the log through its mailbox. Adding to it is not among it: that waits for nobody.

use actix::Message;
use cofferdam_types::Result;

use crate::{Filter, Found, Place, Record, Report};

/// Have a record on disk.
pub struct Append(pub Record);

impl Message for Append {
    type Result = Result<()>;
}

/// Say whether there is room for one, and make some if there can be.
pub struct Room;

impl Message for Room {
    type Result = Result<()>;
}

/// Read some of it.
pub struct ReadLog {
    /// Where the reader stands.
    pub place: Place,
    /// How many records at most.
    pub max: usize,
    /// Which.
    pub filter: Filter,
}

impl Message for ReadLog {
    /// What was read, where the reader stands then, and whether there are no more.
    type Result = Result<(Vec<Found>, Place, bool)>;
}

/// Read all of it again.
pub struct Verify;

impl Message for Verify {
    type Result = Result<Report>;
}
