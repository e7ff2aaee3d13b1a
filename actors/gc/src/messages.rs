//! What can be asked of the collector.

use actix::Message;
use cofferdam_types::Result;

use crate::{DiskUsage, Report};

/// Collect now, whatever the schedule says; or say what that would remove.
#[derive(Clone, Copy, Debug)]
pub struct Collect {
    /// Nothing is to be removed.
    pub rehearse: bool,
}

impl Message for Collect {
    /// The answer comes when the bytes are gone too, but for snapshots, which lie in the trash by then.
    type Result = Result<Report>;
}

/// Measure what lies below the root, and say whose it is.
#[derive(Clone, Copy, Debug)]
pub struct Measure;

impl Message for Measure {
    /// Whose it is.
    type Result = Result<DiskUsage>;
}
