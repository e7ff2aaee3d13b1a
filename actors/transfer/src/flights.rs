//! One job at a time per blob: whoever needs a blob that another job is bringing into the same namespace waits for it
//! instead of bringing it twice.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cofferdam_types::{Digest, Namespace, Result};

use crate::Cancel;

type Key = (Namespace, Digest);

/// Who is at what.
#[derive(Default)]
pub(crate) struct Flights {
    taken: Mutex<HashSet<Key>>,
    landed: Condvar,
}

/// A waiter looks for a cancellation this often: the word is said elsewhere.
const LOOK: Duration = Duration::from_millis(100);

impl Flights {
    /// Takes all of `digests`, waiting for those that others have. Everybody takes them in the same order, so nobody
    /// waits for someone who waits for him. `waits` is told when there is something to wait for.
    pub fn take<'a>(
        &'a self,
        ns: &Namespace,
        digests: impl IntoIterator<Item = Digest>,
        cancel: &Cancel,
        waits: impl Fn(&Digest),
    ) -> Result<Turn<'a>> {
        let mut turn = Turn { flights: self, keys: Vec::new() };
        for digest in digests.into_iter().collect::<BTreeSet<_>>() {
            let key = (ns.clone(), digest);
            let mut taken = self.taken();
            if taken.contains(&key) {
                waits(&key.1);
            }
            while taken.contains(&key) {
                cancel.check()?;
                taken = self.landed.wait_timeout(taken, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            }
            taken.insert(key.clone());
            turn.keys.push(key);
        }
        Ok(turn)
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
    use std::sync::mpsc::channel;

    use cofferdam_types::{Algorithm, Code};

    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    #[test]
    fn the_second_waits_for_the_first() {
        let flights = Flights::default();
        let ns = Namespace::default_namespace();
        let (other, cancel) = (Namespace::new("other").unwrap(), Cancel::new());
        let never = |_: &Digest| panic!("there is nothing to wait for");
        let first = flights.take(&ns, [digest(1), digest(2), digest(1)], &cancel, never).unwrap();
        // Another namespace is another matter.
        drop(flights.take(&other, [digest(1)], &cancel, never).unwrap());
        let (tell, told) = channel();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let turn = flights.take(&ns, [digest(3), digest(2)], &cancel, |d| tell.send(d.clone()).unwrap());
                turn.map(drop)
            });
            assert_eq!(told.recv().unwrap(), digest(2));
            drop(first);
            waiting.join().unwrap().unwrap();
        });
        assert!(flights.taken().is_empty());
    }

    #[test]
    fn a_wait_can_be_cancelled() {
        let flights = Flights::default();
        let ns = Namespace::default_namespace();
        let _first = flights.take(&ns, [digest(1)], &Cancel::new(), |_| ()).unwrap();
        let cancel = Cancel::new();
        let error = flights.take(&ns, [digest(0), digest(1)], &cancel, |_| cancel.cancel()).err().unwrap();
        assert_eq!(error.code, Code::Cancelled);
        assert_eq!(flights.taken().len(), 1, "what the cancelled one had taken is free");
    }
}
