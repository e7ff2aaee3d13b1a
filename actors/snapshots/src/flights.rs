//! One at a time: whoever wants a layer that another is unpacking waits for it instead of unpacking it again.
//!
//! There are two lanes for each layer: one within a namespace, and one for all. A layer that is extracted while it
//! arrives takes the first alone, if it is free, and nobody waits for that: whose registry is slow (or hostile) holds up
//! nobody else. Two may then unpack the same layer at once, and the later one's commit links what the first made. A layer
//! that is extracted from the disk takes both, and waits for the second.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use cofferdam_types::{Digest, Namespace};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// A layer of a namespace, or of all.
pub type Lane = (Option<Namespace>, Digest);

/// The layers that somebody is at. A chain id says all that lies below it; who wants several takes the lanes for all from the
/// lowest layer up: so nobody can wait for someone who waits for him, and nobody who holds up others waits for a network.
#[derive(Default)]
pub struct Flights(Mutex<HashMap<Lane, Weak<AsyncMutex<()>>>>);

/// Held by whoever is at a layer.
pub type Flight = OwnedMutexGuard<()>;

impl Flights {
    fn lane(&self, name: &Lane) -> Arc<AsyncMutex<()>> {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(name).and_then(Weak::upgrade) {
            return lane;
        }
        // So it never holds more than are used, and the one more that stands for the last.
        lanes.retain(|_, lane| lane.strong_count() > 0);
        let lane = Arc::new(AsyncMutex::new(()));
        lanes.insert(name.clone(), Arc::downgrade(&lane));
        lane
    }

    /// Waits for the turn.
    pub async fn enter(&self, name: &Lane) -> Flight {
        self.lane(name).lock_owned().await
    }

    /// Takes the turn if nobody has it.
    pub fn try_enter(&self, name: &Lane) -> Option<Flight> {
        self.lane(name).try_lock_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Algorithm;

    use super::*;

    #[test]
    fn one_at_a_time_and_nothing_is_kept() {
        let flights = Flights::default();
        let of = |n: u32| (None, Digest::of(Algorithm::Sha256, &n.to_be_bytes()));
        let first = flights.try_enter(&of(0)).unwrap();
        assert!(flights.try_enter(&of(0)).is_none());
        for n in 1..1000 {
            assert!(flights.try_enter(&of(n)).is_some());
        }
        assert!(flights.0.lock().unwrap().len() <= 2);
        drop(first);
        assert!(flights.try_enter(&of(0)).is_some());
    }
}
