//! One budget of bytes for all that is under way: what a decoder needs, and what runs ahead of it.
//!
//! Whoever must have it to go on waits for it, and holds nothing that another waits for: windows, which an extraction takes
//! before it takes the first byte of a frame. What would only be faster with more memory asks, and does without.

use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cofferdam_types::Result;

/// A waiter looks so often for a word that ends it.
const LOOK: Duration = Duration::from_millis(100);

/// See the head of this file. Clones are the same budget.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    total: u64,
    used: Mutex<Used>,
    freed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct Used {
    needed: u64,
    spare: u64,
}

/// Bytes of a budget, given back when it is dropped.
pub struct Share {
    budget: Budget,
    bytes: u64,
    needed: bool,
}

impl Budget {
    /// Of so many bytes.
    pub fn new(total: u64) -> Budget {
        Budget(Arc::new(Inner { total, used: Mutex::default(), freed: Condvar::new() }))
    }

    /// Takes what is needed, three quarters of the budget together, and waits for it. More than that is given when nobody else
    /// has any: it was allowed by name.
    pub fn take(&self, bytes: u64, check: impl Fn() -> Result<()>) -> Result<Share> {
        let most = self.0.total / 4 * 3;
        let mut used = self.lock();
        while used.needed > 0 && used.needed.saturating_add(bytes) > most {
            check()?;
            used = self.0.freed.wait_timeout(used, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        used.needed = used.needed.saturating_add(bytes);
        Ok(Share { budget: self.clone(), bytes, needed: true })
    }

    /// Takes what would be useful, a quarter of the budget together, if it is there.
    pub fn spare(&self, bytes: u64) -> Option<Share> {
        let mut used = self.lock();
        let spare = used.spare.checked_add(bytes)?;
        if spare > self.0.total / 4 || spare.checked_add(used.needed)? > self.0.total {
            return None;
        }
        used.spare = spare;
        Some(Share { budget: self.clone(), bytes, needed: false })
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        let used = self.lock();
        used.needed.saturating_add(used.spare)
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Budget {
    /// 44 MiB: with all else that a daemon has it stays below 64.
    fn default() -> Budget {
        Budget::new(44 << 20)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Budget({} of {})", self.used(), self.0.total)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.budget.lock();
        let part = if self.needed { &mut used.needed } else { &mut used.spare };
        *part = part.saturating_sub(self.bytes);
        drop(used);
        self.budget.0.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use cofferdam_types::{Code, Error};

    use super::*;

    #[test]
    fn what_is_needed_is_waited_for_and_what_is_useful_is_not() {
        let budget = Budget::new(40);
        let first = budget.take(20, || Ok(())).unwrap();
        let ahead = budget.spare(10).unwrap();
        assert!(budget.spare(1).is_none(), "a quarter, and no more");
        assert_eq!(budget.used(), 30);
        let (tell, told) = channel();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut waits = Some(tell);
                let waits = std::cell::RefCell::new(waits.take());
                budget.take(20, || {
                    waits.borrow_mut().take().into_iter().for_each(|tell| tell.send(()).unwrap());
                    Ok(())
                })
            });
            told.recv().unwrap();
            drop(first);
            let second = waiting.join().unwrap().unwrap();
            assert_eq!(budget.used(), 30);
            drop((second, ahead));
        });
        assert_eq!(budget.used(), 0);
        // More than there is: alone, or not at all.
        let all = budget.take(100, || Ok(())).unwrap();
        assert!(budget.spare(1).is_none());
        let ended = budget.take(1, || Err(Error::cancelled("layer", "", "was cancelled"))).err().unwrap();
        assert_eq!(ended.code, Code::Cancelled);
        drop(all);
        assert!(budget.spare(10).is_some());
    }
}
