//! The handle that the RPC layer holds.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Instant,
};

use cofferdam_content::Content;
use cofferdam_kernel::{Kernel, Placement, Pool, Slot, SlotConfig};
use cofferdam_metadata::Metadata;
use cofferdam_snapshots::Snapshots;
use cofferdam_types::Result;
use tokio::sync::Notify;

use crate::{
    DiskUsage, Report, Settings,
    actor::{GcActor, Shared},
    collect::Stores,
    messages::{Collect, Measure},
    schedule::Schedule,
};

/// Who asks waits for those before him, and for the one that the schedule has begun.
const QUEUE: usize = 16;

/// The collector. Cheap to clone.
#[derive(Clone)]
pub struct Gc {
    slot: Slot<GcActor>,
    met: Arc<Notify>,
}

impl Gc {
    /// Hosts the actor. `root`: the root directory, which is measured, and whose file system fills.
    pub fn start(
        kernel: &Kernel,
        placement: Placement,
        meta: Metadata,
        content: Content,
        snapshots: Snapshots,
        root: OwnedFd,
        settings: Settings,
    ) -> Gc {
        let (full, met) = (settings.disk_pressure, Arc::new(Notify::new()));
        let stores = Stores { meta, content, snapshots };
        let shared = Arc::new(Shared {
            stores,
            schedule: Mutex::new(Schedule::new(settings, Instant::now())),
            // One thread: there is one collection at a time.
            pool: Pool::new("gc", 1, QUEUE),
            measures: Pool::new("measure", 1, QUEUE),
            root,
            full,
            met: met.clone(),
        });
        let slot = kernel.spawn(SlotConfig::new("gc", placement), move || GcActor(shared.clone()));
        Gc { slot, met }
    }

    /// Collects now, and answers when the bytes are gone; a snapshot's lie in the trash by then.
    pub async fn collect(&self) -> Result<Report> {
        self.slot.call(Collect { rehearse: false }).await
    }

    /// What a collection would remove now.
    pub async fn rehearse(&self) -> Result<Report> {
        self.slot.call(Collect { rehearse: true }).await
    }

    /// Says that somebody met a full disk: it looks whether that is so, and whether to collect.
    pub fn met_full_disk(&self) {
        self.met.notify_one();
    }

    /// Whose the bytes below the root are. All of it is looked at.
    pub async fn usage(&self) -> Result<DiskUsage> {
        self.slot.call(Measure).await
    }
}
