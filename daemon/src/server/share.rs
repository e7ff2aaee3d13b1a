//! What the connections of one user or of one grant keep in the daemon together, and all such together: many that are each
//! within their budget would take all memory.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What a connection keeps before that counts.
const OWN: usize = 256 << 10;

/// See the module.
#[derive(Debug)]
pub struct Share {
    most: usize,
    taken: AtomicUsize,
    above: Option<Arc<Share>>,
}

impl Share {
    /// At most so many bytes, which count for the one above too.
    pub fn new(most: usize, above: Option<Arc<Share>>) -> Arc<Share> {
        Arc::new(Share { most, taken: AtomicUsize::new(0), above })
    }

    fn take(&self, bytes: usize) -> bool {
        let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
        let room = before.saturating_add(bytes) <= self.most;
        if room && self.above.as_ref().is_none_or(|above| above.take(bytes)) {
            return true;
        }
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
        false
    }

    fn give(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(above) = &self.above {
            above.give(bytes);
        }
    }
}

/// What one connection has of it, given back when that ends.
#[derive(Default)]
pub struct Drawn {
    /// None: the operator's, whose connections count for themselves alone.
    share: Option<Arc<Share>>,
    bytes: Cell<usize>,
}

impl Drawn {
    /// Nothing yet.
    pub fn from(share: Option<Arc<Share>>) -> Drawn {
        Drawn { share, bytes: Cell::default() }
    }

    /// Whether it counts for nobody else.
    pub fn is_free(&self) -> bool {
        self.share.is_none()
    }

    /// The connection keeps so much now. False, and nothing changes, where there is no room for more.
    pub fn set(&self, held: usize) -> bool {
        let Some(share) = &self.share else { return true };
        let (want, drawn) = (held.saturating_sub(OWN), self.bytes.get());
        if want > drawn && !share.take(want - drawn) {
            return false;
        }
        if want < drawn {
            share.give(drawn - want);
        }
        self.bytes.set(want);
        true
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_grant_keeps_is_bounded_and_so_is_what_all_do() {
        let all = Share::new(1000, None);
        let (one, other) = (Share::new(600, Some(all.clone())), Share::new(600, Some(all.clone())));
        let taken = || [&all, &one, &other].map(|share| share.taken.load(Ordering::Relaxed));
        let [a, b, c] = [&one, &one, &other].map(|share| Drawn::from(Some(share.clone())));
        assert!(a.set(OWN) && taken() == [0; 3], "a little is everybody's own");
        assert!(a.set(OWN + 500) && b.set(OWN + 100));
        assert!(!b.set(OWN + 101), "its own bound");
        assert!(c.set(OWN + 400) && !c.set(OWN + 401), "the bound of all");
        assert_eq!(taken(), [1000, 600, 400]);
        assert!(a.set(OWN + 10) && c.set(OWN + 600));
        assert_eq!(taken(), [710, 110, 600]);
        drop((a, c));
        assert_eq!(taken(), [100, 100, 0]);
        drop(b);
        assert_eq!(taken(), [0; 3]);
        assert!(Drawn::default().set(usize::MAX), "the operator's");
    }
}
