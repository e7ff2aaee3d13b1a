//! Where actors run: arbiters, shared or their own, and what happens to one that hangs.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use actix_rt::{Arbiter, ArbiterHandle};
use cofferdam_types::{Error, Result};
use tokio::sync::watch;

/// Where a slot's actor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// On the arbiter of this name, with others: a hop between two actors there costs a microsecond. For actors that
    /// never block.
    Shared(&'static str),
    /// On a thread of its own: a hop to it costs up to 100 microseconds when it idles. For actors that block.
    Own,
}

/// Why a generation ended; `None` while it lives.
pub(crate) type Down = Option<Arc<str>>;

/// The arbiters of a kernel.
#[derive(Default)]
pub(crate) struct Hosts {
    shared: Mutex<HashMap<&'static str, Shared>>,
    /// Threads that hang in a handler and were given up. One that comes back to its loop ends and is no longer counted.
    abandoned: Arc<AtomicUsize>,
}

struct Shared {
    arbiter: ArbiterHandle,
    evicted: watch::Sender<Down>,
}

/// A place on an arbiter, for one life of one actor.
pub(crate) struct Seat {
    pub(crate) arbiter: ArbiterHandle,
    /// Turns `Some` when the arbiter under the actor is given up because a neighbour hangs.
    pub(crate) evicted: watch::Receiver<Down>,
    placement: Placement,
    _own: Option<watch::Sender<Down>>,
}

impl Hosts {
    /// A seat for a new life. Starts the arbiter if it isn't there.
    pub(crate) fn seat(&self, placement: Placement) -> Result<Seat> {
        match placement {
            Placement::Own => {
                let (own, evicted) = watch::channel(None);
                Ok(Seat { arbiter: new_arbiter()?, evicted, placement, _own: Some(own) })
            }
            Placement::Shared(name) => {
                let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                let host = match shared.entry(name) {
                    std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::hash_map::Entry::Vacant(entry) => {
                        entry.insert(Shared { arbiter: new_arbiter()?, evicted: watch::Sender::new(None) })
                    }
                };
                let evicted = host.evicted.subscribe();
                Ok(Seat { arbiter: host.arbiter.clone(), evicted, placement, _own: None })
            }
        }
    }

    /// Gives back the seat of an actor that ended.
    pub(crate) fn leave(&self, seat: Seat) {
        if seat.placement == Placement::Own {
            seat.arbiter.stop();
        }
    }

    /// Gives up the arbiter of a seat whose actor hangs; on a shared one every neighbour is evicted.
    pub(crate) fn abandon(&self, seat: Seat, why: &Arc<str>) {
        if let Placement::Shared(name) = seat.placement {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            if seat.evicted.borrow().is_some() {
                return; // A neighbour noticed first; what stands under the name now is the next arbiter.
            }
            if let Some(host) = shared.remove(name) {
                host.evicted.send_replace(Some(why.clone()));
            }
        }
        self.abandoned.fetch_add(1, Ordering::Relaxed);
        let hung = Hung(self.abandoned.clone());
        // If the hang ever ends, the thread stops, and drops this with all else that it held.
        seat.arbiter.spawn(async move { drop(hung) });
        seat.arbiter.stop();
    }

    pub(crate) fn abandoned(&self) -> usize {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Stops the shared arbiters.
    pub(crate) fn stop(&self) {
        for (_, host) in self.shared.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            host.arbiter.stop();
        }
    }
}

/// Counts a thread that hangs for as long as it does.
struct Hung(Arc<AtomicUsize>);

impl Drop for Hung {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn new_arbiter() -> Result<ArbiterHandle> {
    // The handle is enough: the thread ends when it is told to stop.
    Arbiter::try_new().map(|a| a.handle()).map_err(|e| Error::io("arbiter", "", "starting a thread", &e))
}
