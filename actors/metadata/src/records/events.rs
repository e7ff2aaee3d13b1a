//! The outbox: events that were committed and that the journal has yet to take over.

use std::ops::{Bound, ControlFlow};

use cofferdam_types::{Error, Event, Result};

use super::Record;
use crate::{Read, Tx, codec, table::Table, tx};

const SEQUENCE: &str = "event";

/// The outbox holds no more than this, so that it stays small when nobody takes events over; older ones are lost to
/// the journal, which sees a gap.
const MAX_OUTBOX: u64 = 65_536;

impl Record for Event {
    const TABLE: Table = Table::OUTBOX;
    const KIND: &'static str = "event";

    fn name(&self) -> Vec<u8> {
        self.sequence.to_be_bytes().to_vec()
    }
}

/// Adds an event to the transaction and gives it the next sequence number.
pub fn emit(tx: &mut Tx<'_>, mut event: Event) -> Result<()> {
    let sequence = tx.next(SEQUENCE, 1)?;
    event.sequence = sequence;
    super::save(tx, &sequence.to_be_bytes(), &event)?;
    if let Some(old) = sequence.checked_sub(MAX_OUTBOX) {
        tx.remove(Table::OUTBOX, &old.to_be_bytes())?;
    }
    tx.set_last_event(sequence);
    Ok(())
}

/// The sequence number of the last event; 0: there was none.
pub fn last(read: &dyn Read) -> Result<u64> {
    tx::counter_of(read, SEQUENCE)
}

/// At most `max` events after `sequence`, in order. One that can't be read is left out: who follows sees a gap.
pub fn outbox_after(read: &dyn Read, sequence: u64, max: usize) -> Result<Vec<Event>> {
    outbox_block(read, sequence, max, usize::MAX)
}

/// The same, and no more than have so many bytes together as they lie there; one at least, if there is one.
pub fn outbox_block(read: &dyn Read, sequence: u64, max: usize, bytes: usize) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    if max == 0 {
        return Ok(events);
    }
    let (from, mut taken) = (sequence.to_be_bytes(), 0);
    read.range(Table::OUTBOX, Bound::Excluded(&from), Bound::Unbounded, &mut |key, value| {
        taken += value.len();
        if taken > bytes && !events.is_empty() {
            return Ok(ControlFlow::Break(()));
        }
        let due = codec::number(key).map_err(|error| Error::data_loss(Event::KIND, key.escape_ascii(), error.message));
        let event = due.and_then(|due| {
            let event: Event = codec::decode(Event::KIND, due.to_string().as_bytes(), value)?;
            let other = || Error::data_loss(Event::KIND, due, format!("its record says that it is {}", event.sequence));
            if event.sequence == due { Ok(event) } else { Err(other()) }
        });
        events.extend(super::readable(event)?);
        Ok(if events.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(events)
}

/// Drops the events up to and with `upto`: the journal has them.
pub fn outbox_trim(tx: &mut Tx<'_>, upto: u64) -> Result<()> {
    tx.remove_to(Table::OUTBOX, &upto.to_be_bytes())
}
