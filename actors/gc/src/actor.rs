//! The actor: waits for the time, collects on a thread of its own, answers who asks.

use std::{
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use actix::{Actor, AsyncContext, Context, Handler, ResponseFuture, WrapFuture};
use cofferdam_kernel::{Pool, hosted};
use cofferdam_types::{Result, Timestamp};
use tokio::sync::Notify;

use crate::{
    DiskUsage, Report,
    collect::Stores,
    messages::{Collect, Measure},
    schedule::Schedule,
};

/// Writers come by the thousand: nobody counts them one by one.
const GLANCE: Duration = Duration::from_secs(1);
/// A timer doesn't see that the clock was set, and nobody says that the disk fills.
const LONGEST: Duration = Duration::from_secs(60);

/// So many records that can't be read are told of one by one.
const TOLD: usize = 20;

/// What all lives of the actor share.
pub(crate) struct Shared {
    pub stores: Stores,
    pub schedule: Mutex<Schedule>,
    pub pool: Pool,
    /// Measuring takes its time, and keeps nobody from collecting.
    pub measures: Pool,
    /// The root directory.
    pub root: std::os::fd::OwnedFd,
    /// From this share in use on it counts as full; 0: never.
    pub full: f64,
    /// Somebody met a full disk.
    pub met: Arc<Notify>,
}

impl Shared {
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pressed(&self) -> bool {
        self.full > 0.0
            && nix::sys::statvfs::fstatvfs(self.root.as_fd()).is_ok_and(|fs| {
                // As df(1) has it: what only root may use counts neither way.
                let used = fs.blocks().saturating_sub(fs.blocks_free()) as f64;
                let usable = used + fs.blocks_available() as f64;
                usable > 0.0 && used / usable >= self.full
            })
    }

    fn collect(&self) -> Result<Report> {
        let begun = Instant::now();
        match self.stores.collect() {
            Ok((report, seen)) => {
                let Report { blobs, snapshots, leases, bytes, mark, sweep, longest, next_end, .. } = report;
                for unreadable in report.unreadable.iter().take(TOLD) {
                    tracing::error!(unreadable, "a record stands in the way of collections");
                }
                if blobs + snapshots + leases > 0 {
                    tracing::info!(blobs, snapshots, leases, bytes, ?mark, ?sweep, ?longest, "collected");
                }
                self.schedule().done(Instant::now(), seen, begun.elapsed(), next_end);
                Ok(report)
            }
            Err(error) => {
                self.schedule().failed(Instant::now());
                Err(error)
            }
        }
    }

    /// When it is due, from now.
    fn due(&self) -> Option<Duration> {
        self.stores.meta.writable().ok()?;
        let (now, changes) = (Instant::now(), self.stores.meta.changes());
        let pressed = self.pressed();
        let due = self.schedule().due(now, Timestamp::now(), *changes.borrow(), pressed);
        due.map(|at| at.saturating_duration_since(now))
    }
}

/// Collects. What is garbage is in the records: a new one needs nothing of the old one's.
pub struct GcActor(pub(crate) Arc<Shared>);

hosted!(GcActor);

impl Actor for GcActor {
    type Context = Context<GcActor>;

    fn started(&mut self, ctx: &mut Context<GcActor>) {
        let shared = self.0.clone();
        let watch = async move {
            let mut changes = shared.stores.meta.changes();
            loop {
                changes.mark_unchanged();
                match shared.due() {
                    Some(wait) if wait.is_zero() => {
                        let theirs = shared.clone();
                        if let Err(error) = shared.pool.run(move || theirs.collect()).await {
                            tracing::warn!(%error, "a collection failed; another follows");
                        }
                    }
                    Some(wait) if wait <= GLANCE => tokio::time::sleep(wait).await,
                    wait => {
                        let timer = async {
                            match wait {
                                Some(wait) => tokio::time::sleep(wait.min(LONGEST)).await,
                                None => std::future::pending().await,
                            }
                        };
                        tokio::select! {
                            () = timer => {}
                            // No write says so: none is possible.
                            () = shared.met.notified() => {}
                            changed = changes.changed() => match changed {
                                Ok(()) if shared.due().is_none_or(|wait| wait > GLANCE) => {
                                    tokio::time::sleep(GLANCE).await;
                                }
                                Ok(()) => {}
                                Err(_) => return,
                            },
                        }
                    }
                }
            }
        };
        ctx.spawn(watch.into_actor(self));
    }
}

impl Handler<Collect> for GcActor {
    type Result = ResponseFuture<Result<Report>>;

    fn handle(&mut self, message: Collect, _: &mut Context<GcActor>) -> Self::Result {
        let shared = self.0.clone();
        Box::pin(async move {
            let theirs = shared.clone();
            let job = move || if message.rehearse { theirs.stores.rehearse() } else { theirs.collect() };
            shared.pool.run(job).await
        })
    }
}

impl Handler<Measure> for GcActor {
    type Result = ResponseFuture<Result<DiskUsage>>;

    fn handle(&mut self, _: Measure, _: &mut Context<GcActor>) -> Self::Result {
        let shared = self.0.clone();
        Box::pin(async move {
            let theirs = shared.clone();
            shared.measures.run(move || DiskUsage::ask(&theirs.stores.meta, theirs.root.as_fd())).await
        })
    }
}
