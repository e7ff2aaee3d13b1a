//! The newest events in memory, shared by all who follow: decoded once, whoever comes first after a commit.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use cofferdam_metadata::{Metadata, records};
use cofferdam_types::{Event, Result};
use serde_json::Value;

use crate::journal::BLOCK;

/// How many events it keeps. Who falls behind further reads from disk.
pub(crate) const RING: usize = 1024;
/// And how many bytes of memory they take, about: what clients publish is up to them.
const WEIGHT: usize = 8 << 20;

/// Events in an unbroken sequence, the newest last.
#[derive(Default)]
pub(crate) struct Ring(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    events: VecDeque<(Arc<Event>, usize)>,
    /// Of all of them.
    weight: usize,
}

impl Kept {
    fn push(&mut self, event: Event) {
        if self.events.back().is_some_and(|(back, _)| back.sequence + 1 != event.sequence) {
            *self = Kept::default();
        }
        let weight = weight(&event);
        self.events.push_back((Arc::new(event), weight));
        self.weight += weight;
        // The newest stays, however large: it says how far this has come.
        while self.events.len() > RING || self.weight > WEIGHT && self.events.len() > 1 {
            self.weight -= self.events.pop_front().map_or(0, |(_, weight)| weight);
        }
    }

    fn last(&self) -> u64 {
        self.events.back().map_or(0, |(event, _)| event.sequence)
    }
}

/// What an event takes in memory, about: small values take many times what they have on disk.
fn weight(event: &Event) -> usize {
    fn of(value: &Value) -> usize {
        size_of::<Value>()
            + match value {
                Value::String(text) => text.len(),
                Value::Array(values) => values.iter().map(of).sum(),
                Value::Object(fields) => fields.iter().map(|(key, value)| 64 + key.len() + of(value)).sum(),
                _ => 0,
            }
    }
    size_of::<Event>() + event.topic.len() + of(&event.payload)
}

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
        if ring.last() < committed {
            let view = meta.read()?;
            while ring.last() < committed {
                let from = ring.last().max(committed.saturating_sub(RING as u64));
                let fresh = records::events::outbox_block(&view, from, RING, BLOCK)?;
                if fresh.is_empty() {
                    break;
                }
                fresh.into_iter().for_each(|event| ring.push(event));
            }
        }
        let ring = &ring.events;
        let Some(first) = ring.front().map(|(event, _)| event.sequence).filter(|first| *first <= next) else {
            return Ok(None);
        };
        let skip = usize::try_from(next - first).unwrap_or(usize::MAX);
        let from = || ring.iter().skip(skip).take(max).map(|(event, _)| event.clone()).collect();
        Ok((skip < ring.len()).then(from))
    }
}

#[cfg(test)]
impl Ring {
    /// How many it has, and their weight.
    pub(crate) fn kept(&self) -> (usize, usize) {
        let ring = self.0.lock().unwrap();
        assert_eq!(ring.weight, ring.events.iter().map(|(event, _)| weight(event)).sum::<usize>());
        (ring.events.len(), ring.weight)
    }
}
