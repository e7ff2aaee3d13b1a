//! Following the events: from any past one on, then live, each once and in order.

use std::sync::Arc;

use cofferdam_kernel::Slot;
use cofferdam_metadata::{Metadata, records};
use cofferdam_types::{Error, Event, Filter, Namespace, Result};
use tokio::sync::watch;

use crate::{
    actor::EventsActor,
    fields::field,
    journal::{Chunk, Cursor},
    messages::ReadJournal,
    ring::Ring,
};

/// Events that are looked at in one go before others get their turn on the thread.
const SCAN: usize = 256;

/// What a subscriber gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Batch {
    /// Events that match, in order.
    Events(Vec<Arc<Event>>),
    /// It was so slow, or began so far back, that the events from one sequence to the other are no more. Whether they
    /// would have matched nobody knows.
    Gap {
        /// The first that is missing.
        from: u64,
        /// The last that is missing.
        to: u64,
    },
}

/// What the subscriptions of a daemon share.
pub(crate) struct Hub {
    pub(crate) meta: Metadata,
    pub(crate) ring: Ring,
    pub(crate) slot: Slot<EventsActor>,
}

/// A place in the sequence of events. It keeps no events of its own, however slow its reader is: those that have left
/// memory are read from disk.
pub struct Subscription {
    hub: Arc<Hub>,
    news: watch::Receiver<u64>,
    cursor: Cursor,
    scope: Option<Namespace>,
    filter: Filter,
}

impl Subscription {
    pub(crate) fn new(hub: Arc<Hub>, after: u64, scope: Option<Namespace>, filter: Filter) -> Result<Subscription> {
        let news = hub.meta.outbox();
        let last = *news.borrow();
        if after > last {
            let why = format!("is ahead of the last event, {last}: follow from there");
            return Err(Error::out_of_range("event", after, why));
        }
        Ok(Subscription { hub, news, cursor: Cursor::at(after + 1), scope, filter })
    }

    /// The last sequence that was looked at: subscribing after it again loses nothing and doubles nothing.
    pub fn position(&self) -> u64 {
        self.cursor.next - 1
    }

    /// Waits for the next events that match, at most `max`, or for a gap. Dropping the future loses nothing. Works on
    /// any thread and needs no runtime.
    pub async fn next(&mut self, max: usize) -> Result<Batch> {
        let max = max.max(1);
        loop {
            let committed = *self.news.borrow_and_update();
            if self.cursor.next > committed {
                let closed = |_| Error::unavailable("events", "", "the daemon stops");
                self.news.changed().await.map_err(closed)?;
                continue;
            }
            match self.hub.ring.from(self.cursor.next, committed, self.scan(max), &self.hub.meta)? {
                Some(events) => {
                    let found = self.choose(events, max);
                    if !found.is_empty() {
                        return Ok(Batch::Events(found));
                    }
                }
                None => {
                    if let Some(batch) = self.history(committed, max).await? {
                        return Ok(batch);
                    }
                }
            }
        }
    }

    /// Reads what the ring has no more: from the journal, or from the outbox where the journal has not come so far.
    async fn history(&mut self, committed: u64, max: usize) -> Result<Option<Batch>> {
        let next = self.cursor.next;
        // The outbox first: an event leaves it only after the journal has it.
        let mut waiting = records::events::outbox_after(&self.hub.meta.read()?, next - 1, self.scan(max))?;
        let oldest = waiting.first().map(|event| event.sequence);
        if oldest == Some(next) {
            // Behind one that can't be read the rest comes after the gap.
            waiting.truncate(waiting.iter().zip(next..).take_while(|(event, due)| event.sequence == *due).count());
            let found = self.choose(waiting.into_iter().map(Arc::new).collect(), max);
            return Ok((!found.is_empty()).then_some(Batch::Events(found)));
        }
        let (chunk, cursor) = self.hub.slot.call(ReadJournal { cursor: self.cursor, max: self.scan(max) }).await?;
        match chunk {
            Chunk::Events(events) => {
                let found = self.choose(events.into_iter().map(Arc::new).collect(), max);
                if self.cursor.next == cursor.next {
                    self.cursor = cursor;
                }
                Ok((!found.is_empty()).then_some(Batch::Events(found)))
            }
            Chunk::Gap { from, to } => {
                self.cursor = cursor;
                Ok(Some(Batch::Gap { from, to }))
            }
            Chunk::End => {
                let to = oldest.map_or(committed, |oldest| oldest - 1);
                self.cursor = Cursor::at(to + 1);
                Ok(Some(Batch::Gap { from: next, to }))
            }
        }
    }

    /// How many events to look at for `max` that match.
    fn scan(&self, max: usize) -> usize {
        let all = self.scope.is_none() && self.filter.is_everything();
        if all { max.min(SCAN) } else { SCAN }
    }

    /// Takes at most `max` that match and moves on past what was looked at.
    fn choose(&mut self, events: Vec<Arc<Event>>, max: usize) -> Vec<Arc<Event>> {
        let mut found = Vec::new();
        for event in events {
            if found.len() == max {
                break;
            }
            self.cursor.next = event.sequence + 1;
            let in_scope = self.scope.as_ref().is_none_or(|scope| *scope == event.namespace);
            if in_scope && self.filter.matches(&|path| field(&event, path)) {
                found.push(event);
            }
        }
        found
    }
}
