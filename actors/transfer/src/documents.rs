//! Manifests, indexes and configs that pulls are at. One is in no store before all of its image is: until then who needs one that
//! another pull of the namespace has from the same repository gets it from that pull, or waits while it is fetched.
//!
//! A pull that fails is waited for once, and not one after the other: what it ran into the others would run into too, each for as
//! long.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use cofferdam_types::Result;

use crate::{
    Cancel,
    flights::{Flights, Key},
};

/// Bytes of documents that one pull has for others. It has its own besides: what is larger is fetched by each.
const MAX: usize = 512 << 10;

/// Those of all pulls.
#[derive(Default)]
pub(crate) struct Documents {
    flights: Flights<Key>,
    known: Mutex<HashMap<Key, Weak<[u8]>>>,
}

/// Those of one pull: for others as long as this lives.
#[derive(Default)]
pub(crate) struct Own(Mutex<(Vec<Arc<[u8]>>, usize)>);

impl Documents {
    /// The verified bytes of one: another pull's, or fetched.
    pub fn get(
        &self,
        key: &Key,
        own: &Own,
        cancel: &Cancel,
        fetch: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let (turn, others) = self.flights.take([key.clone()]);
        self.flights.wait(others, cancel)?;
        // One that was at it when we came may be done with it by now.
        if let Some(bytes) = self.known().get(key).and_then(Weak::upgrade) {
            own.keep(&bytes);
            return Ok(bytes.to_vec());
        }
        let bytes = fetch()?;
        if let Some(shared) = own.keep(&Arc::from(&*bytes)) {
            let mut known = self.known();
            known.retain(|_, held| held.strong_count() > 0);
            known.insert(key.clone(), Arc::downgrade(&shared));
        }
        drop(turn);
        Ok(bytes)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Weak<[u8]>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Own {
    /// Keeps it, if there is room.
    fn keep(&self, bytes: &Arc<[u8]>) -> Option<Arc<[u8]>> {
        let mut own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, size) = &mut *own;
        if *size + bytes.len() > MAX {
            return None;
        }
        *size += bytes.len();
        all.push(bytes.clone());
        Some(bytes.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use cofferdam_types::{Algorithm, Digest, Error, Namespace};

    use super::*;

    fn key(n: u8) -> Key {
        (Namespace::default_namespace(), "way".into(), Digest::of(Algorithm::Sha256, &[n]))
    }

    #[test]
    fn one_fetches_and_the_others_have_it_from_there() {
        let (documents, cancel, fetched) = (Documents::default(), Cancel::new(), AtomicUsize::new(0));
        let (begun, began) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let fetch = || {
            fetched.fetch_add(1, Ordering::SeqCst);
            Ok(b"document".to_vec())
        };
        let first = Own::default();
        std::thread::scope(|scope| {
            let one = scope.spawn(|| {
                documents.get(&key(1), &first, &cancel, move || {
                    begun.send(()).unwrap();
                    wait.recv().unwrap();
                    Ok(b"document".to_vec())
                })
            });
            began.recv().unwrap();
            let others: Vec<_> =
                (0..4).map(|_| scope.spawn(|| documents.get(&key(1), &Own::default(), &cancel, fetch))).collect();
            // Another document is another matter.
            documents.get(&key(2), &Own::default(), &cancel, fetch).unwrap();
            go.send(()).unwrap();
            for one in others.into_iter().chain([one]) {
                assert_eq!(one.join().unwrap().unwrap(), b"document");
            }
        });
        assert_eq!(fetched.load(Ordering::SeqCst), 1, "the other document");
        // As long as the pull goes on that has it.
        documents.get(&key(1), &Own::default(), &cancel, fetch).unwrap();
        assert_eq!(fetched.load(Ordering::SeqCst), 1);
        drop(first);
        documents.get(&key(1), &Own::default(), &cancel, fetch).unwrap();
        assert_eq!(fetched.load(Ordering::SeqCst), 2);
        documents.get(&key(3), &Own::default(), &cancel, fetch).unwrap();
        assert_eq!(documents.known().len(), 1, "what nobody has is forgotten");
    }

    #[test]
    fn after_one_that_failed_each_tries_and_what_is_large_is_each_ones_own() {
        let (documents, cancel, fetched) = (Documents::default(), Cancel::new(), AtomicUsize::new(0));
        let (begun, began) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let fails = |_: &str| {
            fetched.fetch_add(1, Ordering::SeqCst);
            Err(Error::unavailable("registry", "", "went silent"))
        };
        std::thread::scope(|scope| {
            let (documents, cancel, fails) = (&documents, &cancel, &fails);
            let one = scope.spawn(move || {
                documents.get(&key(1), &Own::default(), cancel, move || {
                    begun.send(()).unwrap();
                    wait.recv().unwrap();
                    fails("first")
                })
            });
            began.recv().unwrap();
            let others: Vec<_> = (0..3)
                .map(|_| scope.spawn(move || documents.get(&key(1), &Own::default(), cancel, || fails("other"))))
                .collect();
            go.send(()).unwrap();
            assert!(others.into_iter().chain([one]).all(|one| one.join().unwrap().is_err()));
        });
        assert_eq!(fetched.load(Ordering::SeqCst), 4);
        let own = Own::default();
        let large = || {
            fetched.fetch_add(1, Ordering::SeqCst);
            Ok(vec![7; MAX])
        };
        documents.get(&key(2), &own, &cancel, large).unwrap();
        documents.get(&key(2), &Own::default(), &cancel, large).unwrap();
        assert_eq!(fetched.load(Ordering::SeqCst), 5, "it is what one may keep");
        documents.get(&key(3), &own, &cancel, large).unwrap();
        documents.get(&key(3), &Own::default(), &cancel, large).unwrap();
        assert_eq!(fetched.load(Ordering::SeqCst), 7, "there was no room for another");
    }
}
