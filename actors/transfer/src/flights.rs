//! One job at a time per blob, namespace and way to it: whoever needs a blob that another job is bringing into the same namespace
//! by the same way waits for it instead of bringing it twice. What another job brings by another way is no reason to wait: that
//! way may lead nowhere.
//!
//! Nobody waits while he holds anything: so no two wait for each other, and what somebody waits for is not kept from a third.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cofferdam_types::{Digest, Namespace, Result};

use crate::Cancel;

type Key = (Namespace, Arc<str>, Digest);

/// Who is at what.
#[derive(Default)]
pub(crate) struct Flights {
    taken: Mutex<HashSet<Key>>,
    landed: Condvar,
}

/// A waiter looks for a cancellation this often: the word is said elsewhere.
const LOOK: Duration = Duration::from_millis(100);

impl Flights {
    /// Takes those of `digests` that nobody is at, and names the others.
    pub fn take<'a>(
        &'a self,
        ns: &Namespace,
        route: &Arc<str>,
        digests: impl IntoIterator<Item = Digest>,
    ) -> (Turn<'a>, Vec<Digest>) {
        let mut turn = Turn { flights: self, keys: Vec::new() };
        let mut others = Vec::new();
        let mut taken = self.taken();
        for digest in digests.into_iter().collect::<BTreeSet<_>>() {
            let key = (ns.clone(), route.clone(), digest);
            if taken.insert(key.clone()) {
                turn.keys.push(key);
            } else {
                others.push(key.2);
            }
        }
        (turn, others)
    }

    /// Waits until nobody is at any of `digests`.
    pub fn wait(&self, ns: &Namespace, route: &Arc<str>, digests: &[Digest], cancel: &Cancel) -> Result<()> {
        let keys: Vec<Key> = digests.iter().map(|digest| (ns.clone(), route.clone(), digest.clone())).collect();
        let mut taken = self.taken();
        while keys.iter().any(|key| taken.contains(key)) {
            cancel.check()?;
            taken = self.landed.wait_timeout(taken, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held until what was taken is in the store, or never will be.
pub(crate) struct Turn<'a> {
    flights: &'a Flights,
    keys: Vec<Key>,
}

impl Turn<'_> {
    /// What was taken.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.keys.iter().map(|(_, _, digest)| digest)
    }
}

impl Drop for Turn<'_> {
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

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    #[test]
    fn the_second_waits_for_the_first() {
        let flights = Flights::default();
        let (ns, cancel) = (Namespace::default_namespace(), Cancel::new());
        let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
        let (first, others) = flights.take(&ns, &one, [digest(1), digest(2), digest(1)]);
        assert_eq!((first.digests().count(), others.len()), (2, 0));
        // Another namespace is another matter, and so is another way.
        let other = Namespace::new("other").unwrap();
        assert!(flights.take(&other, &one, [digest(1)]).1.is_empty());
        assert!(flights.take(&ns, &two, [digest(1)]).1.is_empty());
        let (second, others) = flights.take(&ns, &one, [digest(2), digest(3)]);
        assert_eq!((second.digests().cloned().collect::<Vec<_>>(), &others), (vec![digest(3)], &vec![digest(2)]));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| flights.wait(&ns, &one, &others, &cancel));
            assert!(!waiting.is_finished());
            drop(first);
            waiting.join().unwrap().unwrap();
        });
        drop(second);
        assert!(flights.taken().is_empty());
    }

    #[test]
    fn a_wait_can_be_cancelled() {
        let flights = Flights::default();
        let (ns, route): (_, Arc<str>) = (Namespace::default_namespace(), "way".into());
        let (_first, _) = flights.take(&ns, &route, [digest(1)]);
        let cancel = Cancel::new();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| flights.wait(&ns, &route, &[digest(0), digest(1)], &cancel));
            cancel.cancel();
            assert_eq!(waiting.join().unwrap().unwrap_err().code, Code::Cancelled);
        });
    }
}
