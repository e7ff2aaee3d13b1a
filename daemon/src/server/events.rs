//! `Events` (event.capnp).

use std::{cell::RefCell, rc::Rc};

use cofferdam_events::{Batch, Subscription};
use cofferdam_types::{Error, Event, Namespace, Result, Timestamp};
use cofferdam_wire::{
    convert::{set_event, text},
    event_capnp::{event, event_cursor, events},
};

use super::{
    Place, filters,
    meter::{Counted, Meter},
    rpc,
};

/// The most events in one answer.
const BLOCK: usize = 100;
/// What such an answer has room for while it is made. It may be three times as large, where each event is as large as may be, and then counts as
/// that when it is made.
const ANSWER: usize = 512 << 10;
/// The events of a namespace.
pub struct Events(pub Place);

fn payload(json: &str) -> Result<serde_json::Value> {
    serde_json::from_str(json).map_err(|e| Error::invalid("event", "", format!("has a payload that is no JSON: {e}")))
}

fn foreign(reader: event::Reader<'_>) -> Result<Event> {
    Ok(Event {
        sequence: 0,
        timestamp: Timestamp(reader.get_timestamp()),
        namespace: Namespace::new(text(reader.get_namespace())?)?,
        topic: text(reader.get_topic())?.to_owned(),
        payload: payload(text(reader.get_payload())?)?,
    })
}

impl events::Server for Events {
    async fn subscribe(
        self: Rc<Self>,
        params: events::SubscribeParams,
        mut results: events::SubscribeResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let filter = rpc(filters(params.get_filters(), &["namespace", "topic", "event.KEY"]))?;
        let Some(counted) = self.0.session.meter.begin_subscription() else {
            let why = "has as many subscriptions to events as is allowed, and is cut";
            return rpc(Err(Error::resource_exhausted("connection", "", why)));
        };
        let events = &self.0.services().events;
        let subscription = rpc(events.subscribe(params.get_after(), Some(self.0.namespace.clone()), filter))?;
        let meter = self.0.session.meter.clone();
        let cursor = EventCursor { subscription: RefCell::new(Some(subscription)), meter, _counted: counted };
        results.get().set_cursor(self.0.hand_out(cursor));
        Ok(())
    }

    async fn last(self: Rc<Self>, _: events::LastParams, mut results: events::LastResults) -> capnp::Result<()> {
        results.get().set_sequence(self.0.services().events.last());
        Ok(())
    }

    async fn publish(
        self: Rc<Self>,
        params: events::PublishParams,
        mut results: events::PublishResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let topic = rpc(text(params.get_topic()))?;
        let payload = rpc(text(params.get_payload()).and_then(payload))?;
        let events = &self.0.services().events;
        let published = events.publish(self.0.authority(), &self.0.namespace, topic, payload).await;
        results.get().set_sequence(rpc(published)?);
        Ok(())
    }

    async fn forward(
        self: Rc<Self>,
        params: events::ForwardParams,
        mut results: events::ForwardResults,
    ) -> capnp::Result<()> {
        let event = rpc(foreign(params.get()?.get_event()?))?;
        let forwarded = self.0.services().events.forward(self.0.authority(), event).await;
        results.get().set_sequence(rpc(forwarded)?);
        Ok(())
    }
}

/// A place in the sequence of events. Taken out while it is waited on: one `next` at a time.
struct EventCursor {
    subscription: RefCell<Option<Subscription>>,
    meter: Rc<Meter>,
    _counted: Counted,
}

impl event_cursor::Server for EventCursor {
    async fn next(
        self: Rc<Self>,
        params: event_cursor::NextParams,
        mut results: event_cursor::NextResults,
    ) -> capnp::Result<()> {
        let max = usize::from(params.get()?.get_max()).clamp(1, BLOCK);
        let busy = || Error::failed_precondition("cursor", "", "is being waited on already: one `next` at a time");
        let mut back =
            Back { cursor: self.clone(), subscription: Some(rpc(self.subscription.take().ok_or_else(busy))?) };
        let Some(subscription) = back.subscription.as_mut() else { return rpc(Err(busy())) };
        let (batch, _room) = loop {
            rpc(subscription.until_news().await)?;
            // Those of many subscriptions come at once, and each is large for who wants it so.
            let room = self.meter.room(ANSWER).await;
            if let Some(batch) = rpc(subscription.look(max).await)? {
                break (batch, room);
            }
        };
        match batch {
            Batch::Events(events) => {
                let mut list = results.get().init_items(events.len() as u32);
                for (n, event) in events.iter().enumerate() {
                    set_event(list.reborrow().get(n as u32), event);
                }
            }
            Batch::Gap { from, to } => {
                results.get().set_gap_from(from);
                results.get().set_gap_to(to);
            }
        }
        Ok(())
    }
}

/// Puts the subscription back, also when the call is cancelled.
struct Back {
    cursor: Rc<EventCursor>,
    subscription: Option<Subscription>,
}

impl Drop for Back {
    fn drop(&mut self) {
        self.cursor.subscription.replace(self.subscription.take());
    }
}
