//! The subsystems, as the RPC servers hold them.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU32},
};

use cofferdam_audit::Audit;
use cofferdam_content::Content;
use cofferdam_diff::Diff;
use cofferdam_events::Events;
use cofferdam_gc::Gc;
use cofferdam_grants::Grants;
use cofferdam_images::Images;
use cofferdam_kernel::{Kernel, Pool};
use cofferdam_metadata::Metadata;
use cofferdam_networks::Networks;
use cofferdam_snapshots::Snapshots;
use cofferdam_tasks::Tasks;
use cofferdam_transfer::{Routes, Transfer};
use cofferdam_types::Timestamp;

use crate::{access::Access, full::Full, quiet::Quiet, server::Exports};

/// What is true of this daemon for as long as it runs.
#[derive(Debug)]
pub struct Facts {
    /// When it started.
    pub started: Timestamp,
    /// The root directory.
    pub root: PathBuf,
    /// The state directory.
    pub state: PathBuf,
    /// `v1`, `v2` or `hybrid`.
    pub cgroups: &'static str,
    /// Connections that are open.
    pub connections: Arc<AtomicU32>,
}

/// Handles, each valid across the restarts of its actor. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    /// Who hosts them.
    pub kernel: Kernel,
    /// Records.
    pub metadata: Metadata,
    /// What was handed out.
    pub grants: Grants,
    /// What of that is a socket.
    pub exports: Exports,
    /// Who is granted what of it by connecting.
    pub access: Arc<Access>,
    /// Who used that for what.
    pub audit: Audit,
    /// Blobs.
    pub content: Content,
    /// What happened.
    pub events: Events,
    /// File system states.
    pub snapshots: Snapshots,
    /// What differs between them.
    pub diff: Diff,
    /// Names for manifests.
    pub images: Images,
    /// Networks, and who is connected to them.
    pub networks: Networks,
    /// Containers and what runs in them.
    pub tasks: Tasks,
    /// Pulls and imports.
    pub transfer: Transfer,
    /// How registries are reached.
    pub routes: Routes,
    /// What goes because nothing keeps it.
    pub gc: Gc,
    /// Threads for the RPC layer's own reads and writes of files.
    pub pool: Pool,
    /// Says what is known of a disk that is full.
    pub full: Arc<Full>,
    /// Hears of all that happens.
    pub quiet: Arc<Quiet>,
    /// See [`Facts`].
    pub facts: Arc<Facts>,
}
