//! What a message that acts for a client may do.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Name, Peer};

/// The id of a grant: 128 random bits, or zero for the authority that the daemon itself acts with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GrantId(pub u128);

impl fmt::Display for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The bounds within which something was created, kept by value in its record: a later update, restore or import
/// can never widen them. Only ever intersected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ceiling {
    /// May reach the host: raw specs, host paths, host namespaces, runtime binaries, mounts.
    pub host: bool,
    /// May connect containers to the networks that the host has configured; what may reach the host may.
    #[serde(default)]
    pub networks: bool,
}

impl Ceiling {
    /// Everything that the daemon itself may do.
    pub const FULL: Ceiling = Ceiling { host: true, networks: true };

    /// What both allow.
    pub fn intersect(&self, other: &Ceiling) -> Ceiling {
        Ceiling { host: self.host && other.host, networks: self.may_connect() && other.may_connect() }
    }

    /// Whether networks of the host's configuration may be used.
    pub fn may_connect(&self) -> bool {
        self.host || self.networks
    }
}

impl Default for Ceiling {
    /// Deny is the default: a record whose ceiling is missing reaches nothing of the host.
    fn default() -> Ceiling {
        Ceiling { host: false, networks: false }
    }
}

/// What keeps the blobs and snapshots that a request makes from being collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keeper {
    /// What refers to them, and nothing else.
    #[default]
    References,
    /// They were made by hand, one by one, and stand until they are removed.
    Hand,
    /// The lease of this id.
    Lease(Name),
}

/// Who asks, within which bounds, and how the request is recognised in logs and audit.
#[derive(Clone, Debug)]
pub struct Authority {
    /// The grant through which the request came.
    pub grant: GrantId,
    /// The bounds of that grant.
    pub ceiling: Ceiling,
    /// Who is at the other end of the connection; `None` for the daemon itself.
    pub peer: Option<Peer>,
    /// The caller's own name for what it is doing.
    pub correlation: Option<Arc<str>>,
    /// Where it stands in a trace of the caller's: W3C Trace Context, `traceparent`.
    pub trace: Option<Arc<str>>,
    /// What keeps what is made.
    pub keeper: Keeper,
}

impl Authority {
    /// The daemon acting for itself: start-up, sweeps, recovery.
    pub fn system() -> Authority {
        Authority {
            grant: GrantId(0),
            ceiling: Ceiling::FULL,
            peer: None,
            correlation: None,
            trace: None,
            keeper: Keeper::References,
        }
    }

    /// The same for what a client makes by hand: where it works under no lease, it stands until it is removed.
    pub fn by_hand(&self) -> Authority {
        let keeper = match &self.keeper {
            Keeper::References => Keeper::Hand,
            other => other.clone(),
        };
        Authority { keeper, ..self.clone() }
    }
}
