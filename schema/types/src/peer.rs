//! The other end of a connection.

use serde::{Deserialize, Serialize};

/// Who is at the other end, as the kernel says (`SO_PEERCRED`, unix(7)). The pid serves the audit alone: identity
/// never follows from it (negative test Z1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// A process on this host.
    Unix {
        /// Effective user id when it connected.
        uid: u32,
        /// Effective group id when it connected.
        gid: u32,
        /// Process id when it connected.
        pid: i32,
    },
}
