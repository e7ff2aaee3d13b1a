//! One at a time: whoever wants a layer that another is unpacking waits for it instead of unpacking it again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use cofferdam_types::Digest;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The layers that somebody is at, by chain id. A chain id says all that lies below it, and who wants several takes them
/// from the lowest up: so nobody can wait for someone who waits for him.
#[derive(Default)]
pub struct Flights(Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>);

/// Held by whoever is at a layer.
pub type Flight = OwnedMutexGuard<()>;

impl Flights {
    fn lane(&self, chain: &Digest) -> Arc<AsyncMutex<()>> {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(chain).and_then(Weak::upgrade) {
            return lane;
        }
        // So it never holds more than are used, and the one more that stands for the last.
        lanes.retain(|_, lane| lane.strong_count() > 0);
        let lane = Arc::new(AsyncMutex::new(()));
        lanes.insert(chain.clone(), Arc::downgrade(&lane));
        lane
    }

    /// Waits for the turn.
    pub async fn enter(&self, chain: &Digest) -> Flight {
        self.lane(chain).lock_owned().await
    }

    /// Takes the turn if nobody has it.
    pub fn try_enter(&self, chain: &Digest) -> Option<Flight> {
        self.lane(chain).try_lock_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Algorithm;

    use super::*;

    #[test]
    fn one_at_a_time_and_nothing_is_kept() {
        let flights = Flights::default();
        let of = |n: u32| Digest::of(Algorithm::Sha256, &n.to_be_bytes());
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
