//! The handle that the RPC layer holds.

use std::{os::fd::OwnedFd, sync::Arc};

use cofferdam_kernel::{Kernel, Placement, Pool, Slot, SlotConfig};
use cofferdam_metadata::Metadata;
use cofferdam_segments::Retention;
use cofferdam_types::Result;
use tokio::sync::watch;

use crate::{
    Filter, Found, Place, Record, Report,
    actor::AuditActor,
    core::Core,
    messages::{Append, ReadLog, Room, Verify},
};

/// The log. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    slot: Slot<AuditActor>,
    core: Arc<Core>,
}

impl Audit {
    /// Opens the log in the directory `root`, and hosts the actor that writes it.
    pub fn start(
        kernel: &Kernel,
        placement: Placement,
        meta: Metadata,
        root: OwnedFd,
        retention: Retention,
    ) -> Result<Audit> {
        let core = Arc::new(Core::open(meta, root, retention)?);
        let pool = Pool::new("audit", 2, 256);
        let slot = kernel.spawn(SlotConfig::new("audit", placement), {
            let core = core.clone();
            move || AuditActor::new(core.clone(), pool.clone())
        });
        Ok(Audit { slot, core })
    }

    /// Adds a record, which is on disk within 100 ms where the disk is well. Waits for nobody.
    pub fn add(&self, record: Record) {
        self.core.add(record);
    }

    /// Adds that a call was refused; of many of one a few are told.
    pub fn refused(&self, record: Record) {
        self.core.refused(record);
    }

    /// Adds a record, and answers when it is on disk.
    pub async fn record(&self, record: Record) -> Result<()> {
        self.slot.call(Append(record)).await
    }

    /// Whether what is to be recorded can't be, as far as is known: costs nothing.
    pub fn is_full(&self) -> bool {
        self.core.is_full()
    }

    /// Looks whether that is so still.
    pub async fn room(&self) -> Result<()> {
        self.slot.call(Room).await
    }

    /// The last record that is on disk, as it goes on.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.core.last.subscribe()
    }

    /// Reads at most so many records behind a place; also where it stands then, and whether there are no more.
    pub async fn read(&self, place: Place, max: usize, filter: Filter) -> Result<(Vec<Found>, Place, bool)> {
        self.slot.call(ReadLog { place, max, filter }).await
    }

    /// Reads all of it again, and says where it is not what was written.
    pub async fn verify(&self) -> Result<Report> {
        self.slot.call(Verify).await
    }
}
