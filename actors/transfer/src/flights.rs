//! One job at a time per blob, namespace and way to it: whoever needs a blob that another job is bringing into the same namespace
//! by the same way waits for it instead of bringing it twice. What another job brings by another way is no reason to wait: that
//! way may lead nowhere.
//!
//! Nobody waits while he holds anything: so no two wait for each other, and what somebody waits for is not kept from a third.

use std::{
    collections::{BTreeSet, HashSet},
    hash::Hash,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cofferdam_types::{Digest, Namespace, Result};

use crate::Cancel;

/// A blob or a document, of a namespace, by a way.
pub(crate) type Key = (Namespace, Arc<str>, Digest);

/// Who is at what.
pub(crate) struct Flights<K> {
    taken: Mutex<HashSet<K>>,
    landed: Condvar,
}

/// A waiter looks for a cancellation this often: the word is said elsewhere.
const LOOK: Duration = Duration::from_millis(100);

impl<K> Default for Flights<K> {
    fn default() -> Flights<K> {
        Flights { taken: Mutex::default(), landed: Condvar::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Flights<K> {
    /// Takes those of `keys` that nobody is at, and names the others.
    pub fn take(&self, keys: impl IntoIterator<Item = K>) -> (Turn<'_, K>, Vec<K>) {
        let mut turn = Turn { flights: self, keys: Vec::new() };
        let mut others = Vec::new();
        let mut taken = self.taken();
        for key in keys.into_iter().collect::<BTreeSet<_>>() {
            if taken.insert(key.clone()) {
                turn.keys.push(key);
            } else {
                others.push(key);
            }
        }
        (turn, others)
    }

    /// Waits until nobody is at any of `keys`.
    pub fn wait(&self, keys: &[K], cancel: &Cancel) -> Result<()> {
        let mut taken = self.taken();
        while keys.iter().any(|key| taken.contains(key)) {
            cancel.check()?;
            taken = self.landed.wait_timeout(taken, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Takes one, as soon as nobody else is at it.
    pub fn alone(&self, key: &K, cancel: &Cancel) -> Result<Turn<'_, K>> {
        loop {
            let (turn, others) = self.take([key.clone()]);
            if others.is_empty() {
                return Ok(turn);
            }
            self.wait(&others, cancel)?;
        }
    }
}

impl<K: Eq + Hash> Flights<K> {
    fn taken(&self) -> MutexGuard<'_, HashSet<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held until what was taken is in the store, or never will be.
pub(crate) struct Turn<'a, K: Eq + Hash> {
    flights: &'a Flights<K>,
    keys: Vec<K>,
}

impl<K: Eq + Hash> Turn<'_, K> {
    /// What was taken.
    pub fn keys(&self) -> &[K] {
        &self.keys
    }
}

impl<K: Eq + Hash> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        let mut taken = self.flights.taken();
        for key in &self.keys {
            taken.remove(key);
        }
        drop(taken);
        self.flights.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::{Algorithm, Code};

    use super::*;

    fn key(ns: &str, route: &str, n: u8) -> Key {
        (Namespace::new(ns).unwrap(), route.into(), Digest::of(Algorithm::Sha256, &[n]))
    }

    #[test]
    fn the_second_waits_for_the_first() {
        let (flights, cancel) = (Flights::default(), Cancel::new());
        let of = |n| key("default", "one", n);
        let (first, others) = flights.take([of(1), of(2), of(1)]);
        assert_eq!((first.keys().len(), others.len()), (2, 0));
        // Another namespace is another matter, and so is another way.
        assert!(flights.take([key("other", "one", 1)]).1.is_empty());
        assert!(flights.take([key("default", "two", 1)]).1.is_empty());
        let (second, others) = flights.take([of(2), of(3)]);
        assert_eq!((second.keys(), &*others), (&[of(3)][..], &[of(2)][..]));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| flights.wait(&others, &cancel));
            let alone = scope.spawn(|| flights.alone(&of(1), &cancel).map(drop));
            assert!(!waiting.is_finished() && !alone.is_finished());
            drop(first);
            waiting.join().unwrap().unwrap();
            alone.join().unwrap().unwrap();
        });
        drop(second);
        assert!(flights.taken().is_empty());
    }

    #[test]
    fn a_wait_can_be_cancelled() {
        let flights = Flights::default();
        let (_first, _) = flights.take([key("default", "way", 1)]);
        let (cancel, both) = (Cancel::new(), [0, 1].map(|n| key("default", "way", n)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| flights.wait(&both, &cancel));
            let alone = scope.spawn(|| flights.alone(&both[1], &cancel).map(drop));
            cancel.cancel();
            assert_eq!(waiting.join().unwrap().unwrap_err().code, Code::Cancelled);
            assert_eq!(alone.join().unwrap().unwrap_err().code, Code::Cancelled);
        });
    }
}
