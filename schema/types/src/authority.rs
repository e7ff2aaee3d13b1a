//! What a message that acts for a client may do.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Name, Peer,
    caveats::{Nets, Pictures},
};

/// The id of a grant: 128 random bits, or zero for the authority that the daemon itself acts with. It names a grant and
/// gives nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GrantId(pub u128);

impl FromStr for GrantId {
    type Err = Error;
    fn from_str(text: &str) -> Result<GrantId, Error> {
        let hex = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let id = u128::from_str_radix(text, 16).ok().filter(|_| hex);
        id.map(GrantId)
            .ok_or_else(|| Error::invalid("grant", text, "is no id of a grant: it has 32 hexadecimal digits"))
    }
}

impl TryFrom<String> for GrantId {
    type Error = Error;
    fn try_from(text: String) -> Result<GrantId, Error> {
        text.parse()
    }
}

impl From<GrantId> for String {
    fn from(id: GrantId) -> String {
        id.to_string()
    }
}

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
    /// The most memory that a container may have, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// The most of the processors, in thousand millionths of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<u64>,
    /// The most processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// The most bytes that it may have written into its root file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<u64>,
    /// What containers may be made from.
    #[serde(default, skip_serializing_if = "Pictures::is_all")]
    pub images: Pictures,
    /// Which networks they may ask for, of those that the rights allow.
    #[serde(default, skip_serializing_if = "Nets::is_all")]
    pub nets: Nets,
}

impl Ceiling {
    /// Everything that the daemon itself may do.
    pub const FULL: Ceiling = Ceiling::bare(true);
    /// Nothing of the host, and no other bounds.
    pub const NONE: Ceiling = Ceiling::bare(false);

    const fn bare(host: bool) -> Ceiling {
        Ceiling {
            host,
            networks: host,
            memory: None,
            nano_cpus: None,
            pids: None,
            storage: None,
            images: Pictures(Vec::new()),
            nets: Nets(Vec::new()),
        }
    }

    /// What both allow.
    pub fn intersect(&self, other: &Ceiling) -> Ceiling {
        let least = |ours: Option<u64>, theirs: Option<u64>| ours.into_iter().chain(theirs).min();
        Ceiling {
            host: self.host && other.host,
            networks: self.may_connect() && other.may_connect(),
            memory: least(self.memory, other.memory),
            nano_cpus: least(self.nano_cpus, other.nano_cpus),
            pids: least(self.pids, other.pids),
            storage: least(self.storage, other.storage),
            images: self.images.and(&other.images),
            nets: self.nets.and(&other.nets),
        }
    }

    /// Whether networks of the host's configuration may be used.
    pub fn may_connect(&self) -> bool {
        self.host || self.networks
    }
}

impl Default for Ceiling {
    /// Deny is the default: a record whose ceiling is missing reaches nothing of the host.
    fn default() -> Ceiling {
        Ceiling::NONE
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
    /// The grants through which the request came, the outermost first; none: from the daemon itself, or from a holder of
    /// all of it.
    pub grants: Arc<[GrantId]>,
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
            grants: Arc::default(),
            ceiling: Ceiling::FULL,
            peer: None,
            correlation: None,
            trace: None,
            keeper: Keeper::References,
        }
    }

    /// The grant through which the request came.
    pub fn grant(&self) -> GrantId {
        self.grants.last().copied().unwrap_or_default()
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
