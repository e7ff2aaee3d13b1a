//! The protocol of the writer: one message.

use std::time::Duration;

use actix::Message;
use cofferdam_types::{Authority, Result};

use crate::Tx;

/// What a write does. It may run more than once and touches memory and tables alone.
pub(crate) type Job = Box<dyn Fn(&mut Tx<'_>) -> Result<()> + Send>;

/// How long a write waits for another one, to share its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Not at all.
    None,
    /// For so long.
    For(Duration),
    /// Until nobody has written for a while.
    UntilQuiet,
}

/// Run this within a transaction; the answer comes after the commit.
pub struct Write {
    pub(crate) authority: Authority,
    pub(crate) job: Job,
    pub(crate) patience: Patience,
}

impl Message for Write {
    type Result = Result<()>;
}
