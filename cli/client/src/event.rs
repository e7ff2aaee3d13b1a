//! Events.

use std::{collections::VecDeque, rc::Rc};

use cofferdam_types::{Error, Event, Result, Timestamp};
use cofferdam_wire::{
    convert::{set_event, set_texts, text},
    error::malformed,
    event_capnp::{self, event_cursor, events},
};

use crate::{
    call::{Reply, reply_by},
    connect::Link,
    cursor::BLOCK,
};

/// For [`Events::subscribe`]: only what is yet to happen.
pub const FROM_NOW: u64 = u64::MAX;

/// Events that were dropped for a reader that was too slow; both ends are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first that is missing.
    pub from: u64,
    /// The last that is missing.
    pub to: u64,
}

fn event(reader: event_capnp::event::Reader<'_>) -> Result<Event> {
    Ok(Event {
        sequence: reader.get_sequence(),
        timestamp: Timestamp(reader.get_timestamp()),
        namespace: text(reader.get_namespace())?.parse()?,
        topic: text(reader.get_topic())?.to_owned(),
        payload: serde_json::from_str(text(reader.get_payload())?).map_err(|e| {
            Error::internal("event", reader.get_sequence(), format!("has a payload that is not JSON: {e}"))
        })?,
    })
}

/// What happens in a namespace.
#[derive(Clone)]
pub struct Events {
    pub(crate) link: Rc<Link>,
    pub(crate) client: events::Client,
}

impl Events {
    /// Everything behind the sequence number `after` that passes one of the filters: first what was, then what happens.
    pub fn subscribe<S: AsRef<str>>(&self, after: u64, filters: &[S]) -> Subscription {
        let mut request = self.client.subscribe_request();
        request.get().set_after(after);
        set_texts(request.get().init_filters(filters.len() as u32), filters);
        Subscription { link: self.link.clone(), cursor: request.send().pipeline.get_cursor(), ready: VecDeque::new() }
    }

    /// The sequence number of the last event.
    pub fn last(&self) -> Reply<u64> {
        reply_by(&self.link, &self.client, self.client.last_request(), |answer| Ok(answer.get_sequence()))
    }

    /// Publishes an event of your own; durable when it returns. The payload must be a JSON object.
    pub fn publish(&self, topic: &str, payload: &serde_json::Value) -> Reply<u64> {
        let mut request = self.client.publish_request();
        request.get().set_topic(topic);
        request.get().set_payload(payload.to_string());
        reply_by(&self.link, &self.client, request, |answer| Ok(answer.get_sequence()))
    }

    /// Takes a foreign event in, with its own time, namespace and topic.
    pub fn forward(&self, event: &Event) -> Reply<u64> {
        let mut request = self.client.forward_request();
        set_event(request.get().init_event(), event);
        reply_by(&self.link, &self.client, request, |answer| Ok(answer.get_sequence()))
    }
}

/// A stream of events.
pub struct Subscription {
    link: Rc<Link>,
    cursor: event_cursor::Client,
    ready: VecDeque<Result<Event, Gap>>,
}

impl Subscription {
    /// The next event, or the gap that lies in front of it. Waits.
    pub async fn next(&mut self) -> Result<Result<Event, Gap>> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Ok(next);
            }
            let mut request = self.cursor.next_request();
            request.get().set_max(BLOCK);
            let block = reply_by(&self.link, &self.cursor, request, |answer| {
                let mut block = VecDeque::new();
                if answer.get_gap_to() != 0 {
                    block.push_back(Err(Gap { from: answer.get_gap_from(), to: answer.get_gap_to() }));
                }
                for item in answer.get_items().map_err(malformed)?.iter() {
                    block.push_back(Ok(event(item)?));
                }
                Ok(block)
            });
            self.ready = block.await?;
        }
    }
}
