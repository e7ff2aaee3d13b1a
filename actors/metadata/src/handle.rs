//! The handle that the other subsystems hold.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cofferdam_kernel::{Health, Kernel, Placement, Slot, SlotConfig};
use cofferdam_types::{Authority, Code, Error, Namespace, Result, Timestamp};
use tokio::sync::watch;

use crate::{
    Changes, Pin, Tx, View,
    actor::Writer,
    graph::{Explanation, Subject, explain},
    messages::{Patience, Write},
    opener::Opener,
    rebuild,
    records::Resource,
    store::{Shared, instance},
};

/// How many writes may wait.
const BOUND: usize = 1024;
/// A commit waits for the disk, and a disk may take its time.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How long a lazy write waits for company.
const PATIENCE: Duration = Duration::from_millis(5);

/// Reads on the caller's thread, writes through the one writer. Cheap to clone.
#[derive(Clone)]
pub struct Metadata {
    shared: Arc<Shared>,
    writer: Slot<Writer>,
}

impl Metadata {
    /// Opens the file (made if it is not there) and hosts the writer. Reads are possible when this returns; writes
    /// once the kernel is ready. A file of a newer version of the daemon is refused. Of one that something has altered
    /// what is readable is served, and each write is refused: see [`Metadata::writable`].
    pub fn start(kernel: &Kernel, placement: Placement, path: &Path) -> Result<Metadata> {
        match Metadata::start_with(kernel, placement, Opener::file(path)) {
            Err(error) if error.code == Code::DataLoss && rebuild::is_readable(path) => {
                let metadata = Metadata::start_with(kernel, placement, Opener::salvaged(path))?;
                metadata.shared.refuse(error.context("nothing can be written, and what is readable is served"));
                Ok(metadata)
            }
            started => started,
        }
    }

    /// Whether anything can be written: not where only what is readable of a damaged file is served, nor where the disk is
    /// read-only. Who removes what no record names asks this first: where records are lost, that is more than a crash has left.
    pub fn writable(&self) -> Result<()> {
        self.shared.writable()
    }

    pub(crate) fn start_with(kernel: &Kernel, placement: Placement, opener: Opener) -> Result<Metadata> {
        let shared = Arc::new(Shared::new(opener));
        let first = Mutex::new(Some(shared.open()?));
        let config = SlotConfig { bound: BOUND, heartbeat: HEARTBEAT, ..SlotConfig::new("metadata", placement) };
        let writer = kernel.spawn(config, {
            let shared = shared.clone();
            move || {
                let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
                // PANIC: the kernel takes a panic of the factory for a crash, and tries again later.
                let store = first.unwrap_or_else(|| shared.open().unwrap_or_else(|e| panic!("opening meta.redb: {e}")));
                Writer::new(store)
            }
        });
        Ok(Metadata { shared, writer })
    }

    /// A snapshot of everything. Takes microseconds; waits for nobody. `unavailable` while the writer is down.
    pub fn read(&self) -> Result<View> {
        self.shared.read()
    }

    /// What tells this root directory from every other one, for names that several daemons of one host share: eight
    /// hexadecimal digits, the same for as long as the directory lives.
    pub fn instance(&self) -> Result<String> {
        instance(&self.read()?)
    }

    /// Runs `f` within a transaction and answers once it is durable. `f` must be repeatable: it may run more than
    /// once, in one batch with others, and touches memory and tables alone. Its error leaves nothing behind. An
    /// `unavailable` error leaves open whether it was committed.
    pub async fn write<R: Send + 'static>(
        &self,
        authority: &Authority,
        f: impl Fn(&mut Tx<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.write_within(Patience::None, authority, f).await
    }

    /// [`Metadata::write`] for what nobody waits for: it shares the commit of whatever is written next, before that, and
    /// has one of its own if that takes too long.
    pub async fn write_lazily<R: Send + 'static>(
        &self,
        authority: &Authority,
        f: impl Fn(&mut Tx<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.write_within(Patience::For(PATIENCE), authority, f).await
    }

    /// The same for work of which more follows: it has a commit of its own only where nobody has written for a while. So who
    /// does write is not made to wait for two.
    pub async fn write_patiently<R: Send + 'static>(
        &self,
        authority: &Authority,
        f: impl Fn(&mut Tx<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.write_within(Patience::UntilQuiet, authority, f).await
    }

    pub(crate) async fn write_within<R: Send + 'static>(
        &self,
        patience: Patience,
        authority: &Authority,
        f: impl Fn(&mut Tx<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.writable()?;
        let result = Arc::new(Mutex::new(None));
        let place = result.clone();
        let job = Box::new(move |tx: &mut Tx<'_>| {
            let value = f(tx)?;
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            Ok(())
        });
        self.writer.call(Write { authority: authority.clone(), job, patience }).await?;
        let value = result.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or_else(|| Error::internal("metadata", "", "a write was answered without a result"))
    }

    /// [`Metadata::write`] for worker threads.
    pub fn write_blocking<R: Send + 'static>(
        &self,
        authority: &Authority,
        f: impl Fn(&mut Tx<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        cofferdam_kernel::block_on(self.write(authority, f))
    }

    /// A durable write of nothing: whether the store serves, for the health check.
    pub async fn probe(&self) -> Result<()> {
        self.write(&Authority::system(), |tx| tx.probe()).await
    }

    /// Keeps the collector from what a job is about to refer to, there or not. What is there once this has answered stays
    /// until the pin is dropped, and the job's commit before that.
    pub async fn pin(&self, ns: &Namespace, resources: Vec<Resource>) -> Result<Pin> {
        let ns = ns.clone();
        let pin = move |tx: &mut Tx<'_>| Ok(Pin::new(tx.spared().clone(), ns.clone(), resources.clone()));
        self.write(&Authority::system(), pin).await
    }

    /// Begins a collection: gives its number, and what had been written until then. A view that is taken from now on has
    /// everything that isn't noted for it.
    pub async fn begin_collection(&self) -> Result<(u64, Changes)> {
        let collection = self.write(&Authority::system(), |tx| Ok(tx.spared().begin())).await?;
        let mut seen = Changes::default();
        self.shared.changes.send_if_modified(|all| {
            seen = *all;
            all.soonest = None;
            false
        });
        Ok((collection, seen))
    }

    /// Ends it.
    pub fn end_collection(&self, collection: u64) {
        self.shared.spared().end(collection);
    }

    /// What has been written, as it goes on.
    pub fn changes(&self) -> watch::Receiver<Changes> {
        self.shared.changes.subscribe()
    }

    /// Why something stays, or goes.
    pub fn explain(&self, ns: &Namespace, subject: &Subject) -> Result<Explanation> {
        explain(&self.read()?, self.shared.spared(), ns, subject, Timestamp::now())
    }

    /// News about how the writer is.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.writer.watch()
    }

    /// The sequence number of the last event committed: [`crate::records::events`] has what is behind it.
    pub fn outbox(&self) -> watch::Receiver<u64> {
        self.shared.outbox.subscribe()
    }
}
