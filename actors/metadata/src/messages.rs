//! The protocol of the writer: one message.

use std::time::Duration;

use actix::Message;
use cofferdam_types::{Authority, Result};

use crate::Tx;

/// What a write does. It may run more than once and touches memory and tables alone.
pub(crate) type Job = Box<dyn Fn(&mut Tx<'_>) -> Result<()> + Send>;

/// Run this within a transaction; the answer comes after the commit.
pub struct Write {
    pub(crate) authority: Authority,
    pub(crate) job: Job,
    /// How long it waits for another one, to share its commit.
    pub(crate) patience: Duration,
}

impl Message for Write {
    type Result = Result<()>;
}
