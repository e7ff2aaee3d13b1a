//! What the actor is asked.

use actix::Message;
use cofferdam_kernel::Fair;
use cofferdam_types::{GrantId, Namespace, Result};

use crate::{Arrived, Job, transfer::Core};

pub(crate) type Work = Box<dyn FnOnce(&Core, &Job) -> Result<Vec<Arrived>> + Send>;

/// Begin a job: answered as soon as it has a name, long before it ends.
pub struct Begin {
    /// Whose threads do it.
    pub(crate) pool: fn(&Core) -> &Fair,
    /// `pull`, `import`, …
    pub kind: &'static str,
    /// What it is about.
    pub subject: String,
    /// Where.
    pub namespace: Namespace,
    /// The outermost grant that it came through; none: the operator's.
    pub whose: Option<GrantId>,
    /// What it does.
    pub(crate) work: Work,
}

impl Message for Begin {
    type Result = Result<Job>;
}
