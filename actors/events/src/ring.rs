//! The newest events in memory, shared by all who follow: decoded once, whoever comes first after a commit.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use cofferdam_metadata::{Metadata, records};
use cofferdam_types::{Event, Result};

/// How many events it keeps. Who falls behind further reads from disk.
pub(crate) const RING: usize = 1024;

/// Events in an unbroken sequence, the newest last.
#[derive(Default)]
pub(crate) struct Ring(Mutex<VecDeque<Arc<Event>>>);

impl Ring {
    /// At most `max` events from `next` on, if the ring reaches that far back; `None` if it doesn't. Takes in first
    /// what was committed (up to the sequence `committed`, and it is no less than `next`) since the last call.
    pub(crate) fn from(
        &self,
        next: u64,
        committed: u64,
        max: usize,
        meta: &Metadata,
    ) -> Result<Option<Vec<Arc<Event>>>> {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = ring.back().map_or(0, |event| event.sequence);
        if last < committed {
            let from = last.max(committed.saturating_sub(RING as u64));
            let fresh = records::events::outbox_after(&meta.read()?, from, RING)?;
            for event in fresh {
                if ring.back().is_some_and(|back| back.sequence + 1 != event.sequence) {
                    ring.clear();
                }
                if ring.len() == RING {
                    ring.pop_front();
                }
                ring.push_back(Arc::new(event));
            }
        }
        let Some(first) = ring.front().map(|event| event.sequence).filter(|first| *first <= next) else {
            return Ok(None);
        };
        let skip = usize::try_from(next - first).unwrap_or(usize::MAX);
        Ok((skip < ring.len()).then(|| ring.iter().skip(skip).take(max).cloned().collect()))
    }
}
