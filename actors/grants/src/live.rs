//! Whether something may still be used: asked at every call, and told once.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicU8, Ordering},
};

use cofferdam_types::Error;
use tokio::sync::watch;

/// Why it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// It was taken back.
    Revoked = 1,
    /// Its time is over.
    Expired = 2,
    /// The connection that had it is closed.
    Closed = 3,
}

impl End {
    /// What a call is told.
    pub fn error(self) -> Error {
        let why = match self {
            End::Revoked => "was taken back",
            End::Expired => "has ended: it was given until a time that is over",
            End::Closed => "ended with its connection",
        };
        Error::revoked("grant", "", why)
    }
}

/// A grant, or what one connection has of it, as far as a call needs to know it.
#[derive(Debug)]
pub struct Live {
    /// 0, or how it ended. Written once.
    end: AtomicU8,
    /// For who waits.
    ended: watch::Sender<bool>,
    /// What ends with it. A mutex: it is taken when something is derived, and never by a call.
    below: Mutex<Below>,
}

#[derive(Debug, Default)]
struct Below {
    all: Vec<Weak<Live>>,
    /// At so many those that are gone are looked for.
    full: usize,
}

impl Live {
    /// One that depends on nothing.
    pub fn new() -> Arc<Live> {
        Arc::new(Live { end: AtomicU8::new(0), ended: watch::Sender::new(false), below: Mutex::default() })
    }

    /// One that ends with each of these. Below one that has ended it has ended from the beginning.
    pub fn below(all: &[&Arc<Live>]) -> Arc<Live> {
        let live = Live::new();
        for above in all {
            let mut below = above.below.lock().unwrap_or_else(PoisonError::into_inner);
            // Who ends it marks it before he takes the lock: either he finds this one, or it finds his mark.
            if let Some(end) = above.end() {
                drop(below);
                live.finish(end);
                continue;
            }
            if below.all.len() >= below.full {
                below.all.retain(|one| one.strong_count() > 0);
                below.full = (2 * below.all.len()).max(16);
            }
            below.all.push(Arc::downgrade(&live));
        }
        live
    }

    /// Ends it, and all that depends on it. When this returns no call through any of them begins.
    pub fn finish(&self, end: End) {
        let mut open = Vec::new();
        self.mark(end, &mut open);
        while let Some(live) = open.pop() {
            live.mark(end, &mut open);
        }
    }

    fn mark(&self, end: End, open: &mut Vec<Arc<Live>>) {
        if self.end.compare_exchange(0, end as u8, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        let below = std::mem::take(&mut *self.below.lock().unwrap_or_else(PoisonError::into_inner));
        open.extend(below.all.iter().filter_map(Weak::upgrade));
        self.ended.send_replace(true);
    }

    /// How it ended, if it has: one load.
    pub fn end(&self) -> Option<End> {
        match self.end.load(Ordering::Acquire) {
            0 => None,
            1 => Some(End::Revoked),
            2 => Some(End::Expired),
            _ => Some(End::Closed),
        }
    }

    /// Turns true when it ends.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// Waits for its end.
    pub async fn until_ended(&self) -> End {
        let _ = self.ended().wait_for(|ended| *ended).await;
        self.end().unwrap_or(End::Revoked)
    }

    /// How many depend on it directly.
    pub fn held(&self) -> usize {
        let below = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        below.all.iter().filter(|one| one.strong_count() > 0).count()
    }
}
