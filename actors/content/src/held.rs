//! Locks on names: the ref of an ingest (one writer), a digest (rename-and-link against remove).

use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// Things of which each may be held by one at a time; held until the guard is dropped, whoever drops it.
#[derive(Debug)]
pub(crate) struct Held<K: Eq + Hash>(Arc<(Mutex<HashSet<K>>, Condvar)>);

impl<K: Eq + Hash> Clone for Held<K> {
    fn clone(&self) -> Held<K> {
        Held(self.0.clone())
    }
}

impl<K: Eq + Hash> Default for Held<K> {
    fn default() -> Held<K> {
        Held(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> Held<K> {
    /// Takes hold of one thing, unless another has it.
    pub(crate) fn try_hold(&self, key: K) -> Option<Guard<K>> {
        self.lock().insert(key.clone()).then(|| Guard { held: self.clone(), keys: vec![key] })
    }

    /// Takes hold of several things, all at once and never some of them, so that two who want the same can't wait for
    /// each other. Blocks the thread.
    pub(crate) fn hold_all(&self, mut keys: Vec<K>) -> Guard<K>
    where
        K: Ord,
    {
        keys.sort();
        keys.dedup();
        let mut held = self.lock();
        while keys.iter().any(|key| held.contains(key)) {
            held = self.0.1.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.extend(keys.iter().cloned());
        drop(held);
        Guard { held: self.clone(), keys }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<K>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds what was taken until it is dropped.
#[derive(Debug)]
pub(crate) struct Guard<K: Eq + Hash + Clone> {
    held: Held<K>,
    keys: Vec<K>,
}

impl<K: Eq + Hash + Clone> Drop for Guard<K> {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        for key in &self.keys {
            held.remove(key);
        }
        drop(held);
        self.held.0.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_held_by_one() {
        let held = Held::<u32>::default();
        let one = held.try_hold(1).unwrap();
        assert!(held.try_hold(1).is_none());
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let thread = held.clone();
            scope.spawn(move || {
                let both = thread.hold_all(vec![2, 1, 2]);
                sender.send(()).unwrap();
                drop(both);
            });
            // Waiting for 1, it must not hold 2 meanwhile.
            drop(held.try_hold(2).unwrap());
            assert!(receiver.try_recv().is_err());
            drop(one);
            receiver.recv().unwrap();
        });
        assert!(held.try_hold(1).is_some() && held.try_hold(2).is_some());
    }
}
