//! One job at a time per blob, namespace and way to it: whoever needs a blob that another job is bringing into the same namespace
//! by the same way waits for it instead of bringing it twice. What another job brings by another way is no reason to wait: that
//! way may lead nowhere.
//!
//! Nobody waits while he holds anything: so no two wait for each other, and what somebody waits for is not kept from a third.
//!
//! Who waits does so for who was at it when he came, and hears whether that failed. What that one ran into the others would run into
//! too, one after the other, each for as long: so none of them waits for it again.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cofferdam_types::{Digest, Namespace, Result};

use crate::Cancel;

/// A blob or a document, of a namespace, by a way.
pub(crate) type Key = (Namespace, Arc<str>, Digest);

/// Who is at what.
pub(crate) struct Flights<K> {
    taken: Mutex<HashMap<K, Arc<Flight>>>,
    landed: Condvar,
}

/// What became of one.
#[derive(Default)]
struct Flight {
    over: AtomicBool,
    failed: AtomicBool,
}

/// What another is at.
pub(crate) struct Other<K> {
    pub key: K,
    flight: Arc<Flight>,
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
    pub fn take(&self, keys: impl IntoIterator<Item = K>) -> (Turn<'_, K>, Vec<Other<K>>) {
        let mut turn = Turn { flights: self, keys: Vec::new(), flight: Arc::default() };
        let mut others = Vec::new();
        let mut taken = self.taken();
        for key in keys.into_iter().collect::<BTreeSet<_>>() {
            match taken.get(&key).cloned() {
                Some(flight) => others.push(Other { key, flight }),
                None => {
                    taken.insert(key.clone(), turn.flight.clone());
                    turn.keys.push(key);
                }
            }
        }
        (turn, others)
    }

    /// Waits until those who were at them are done, and gives what they failed to bring.
    pub fn wait(&self, others: Vec<Other<K>>, cancel: &Cancel) -> Result<Vec<K>> {
        let mut taken = self.taken();
        while others.iter().any(|other| !other.flight.over.load(Ordering::Acquire)) {
            cancel.check()?;
            taken = self.landed.wait_timeout(taken, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(taken);
        let failed = others.into_iter().filter(|other| other.flight.failed.load(Ordering::Acquire));
        Ok(failed.map(|other| other.key).collect())
    }

    /// Takes one, as soon as nobody else is at it.
    pub fn alone(&self, key: &K, cancel: &Cancel) -> Result<Turn<'_, K>> {
        loop {
            let (turn, others) = self.take([key.clone()]);
            if others.is_empty() {
                return Ok(turn);
            }
            self.wait(others, cancel)?;
        }
    }
}

impl<K: Eq + Hash> Flights<K> {
    fn taken(&self) -> MutexGuard<'_, HashMap<K, Arc<Flight>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held until what was taken is in the store, or never will be.
pub(crate) struct Turn<'a, K: Eq + Hash> {
    flights: &'a Flights<K>,
    keys: Vec<K>,
    flight: Arc<Flight>,
}

impl<K: Eq + Hash> Turn<'_, K> {
    /// What was taken.
    pub fn keys(&self) -> &[K] {
        &self.keys
    }

    /// It can't be brought, or not soon.
    pub fn failed(&self) {
        self.flight.failed.store(true, Ordering::Release);
    }
}

impl<K: Eq + Hash> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        let mut taken = self.flights.taken();
        for key in &self.keys {
            taken.remove(key);
        }
        self.flight.over.store(true, Ordering::Release);
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
        assert_eq!((second.keys(), others.len(), &others[0].key), (&[of(3)][..], 1, &of(2)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| flights.wait(others, &cancel));
            let alone = scope.spawn(|| flights.alone(&of(1), &cancel).map(drop));
            assert!(!waiting.is_finished() && !alone.is_finished());
            drop(first);
            assert_eq!(waiting.join().unwrap().unwrap(), []);
            alone.join().unwrap().unwrap();
        });
        drop(second);
        assert!(flights.taken().is_empty());
    }

    #[test]
    fn who_failed_is_waited_for_once_and_who_comes_behind_him_not_at_all() {
        let (flights, cancel) = (Flights::default(), Cancel::new());
        let of = |n| key("default", "one", n);
        let (first, _) = flights.take([of(1)]);
        let (second, _) = flights.take([of(2)]);
        let ((_, one), (_, two)) = (flights.take([of(1), of(2)]), flights.take([of(1)]));
        first.failed();
        drop((first, second));
        // Somebody else is at both before the two look.
        let (_third, others) = flights.take([of(1), of(2)]);
        assert!(others.is_empty());
        assert_eq!(flights.wait(one, &cancel).unwrap(), [of(1)]);
        assert_eq!(flights.wait(two, &cancel).unwrap(), [of(1)]);
    }

    #[test]
    fn a_wait_can_be_cancelled() {
        let flights = Flights::default();
        let (_first, _) = flights.take([key("default", "way", 1)]);
        let (cancel, both) = (Cancel::new(), [0, 1].map(|n| key("default", "way", n)));
        let (_second, others) = flights.take(both.clone());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| flights.wait(others, &cancel));
            let alone = scope.spawn(|| flights.alone(&both[1], &cancel).map(drop));
            cancel.cancel();
            assert_eq!(waiting.join().unwrap().unwrap_err().code, Code::Cancelled);
            assert_eq!(alone.join().unwrap().unwrap_err().code, Code::Cancelled);
        });
    }
}
