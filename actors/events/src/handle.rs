//! The handle that the other subsystems hold.

use std::{os::fd::OwnedFd, sync::Arc};

use cofferdam_kernel::{Kernel, Placement, Pool, SlotConfig};
use cofferdam_metadata::{Metadata, records};
use cofferdam_types::{Authority, Error, Event, Fault, Filter, Finding, Findings, Namespace, Result, Timestamp};

use crate::{
    Retention, Subscription,
    actor::EventsActor,
    journal::Journal,
    messages::{Check, Settle},
    ring::Ring,
    subscription::Hub,
};

/// What a client may put into an event. The newest events are kept in memory: this bounds them.
const MAX_PAYLOAD: usize = 16 << 10;
/// The topics that say what the daemon itself did begin so. No client can make others believe that it did.
const OWN: [&str; 6] = ["containers", "content", "images", "namespaces", "snapshot", "tasks"];

/// The events of all namespaces, past and to come. Cheap to clone.
#[derive(Clone)]
pub struct Events(pub(crate) Arc<Hub>);

impl Events {
    /// Opens the journal in the directory `root` and hosts the actor that fills it.
    pub fn start(
        kernel: &Kernel,
        placement: Placement,
        meta: Metadata,
        root: OwnedFd,
        retention: Retention,
    ) -> Result<Events> {
        // What lost tables don't know of has happened all the same.
        let (committed, taken) = if meta.writable().is_ok() {
            let view = meta.read()?;
            let committed = records::events::last(&view)?;
            let waiting = records::events::outbox_after(&view, 0, 1)?;
            (committed, waiting.first().map_or(committed, |event| event.sequence - 1))
        } else {
            (u64::MAX, u64::MAX)
        };
        // One for all lives of the actor: jobs of an earlier one may still be writing.
        let journal = Arc::new(Journal::open(root, retention, committed, taken)?);
        let pool = Pool::new("events", 2, 256);
        let slot = kernel.spawn(SlotConfig::new("events", placement), {
            let meta = meta.clone();
            move || EventsActor::new(meta.clone(), journal.clone(), pool.clone())
        });
        Ok(Events(Arc::new(Hub { meta, ring: Ring::default(), slot })))
    }

    /// The sequence number of the last event; 0: there was none yet.
    pub fn last(&self) -> u64 {
        *self.0.meta.outbox().borrow()
    }

    /// Follows the events after the sequence `after` (0: all that there are; [`u64::MAX`]: only what is to come) that
    /// match the filter, in one namespace or in all.
    pub fn subscribe(&self, after: u64, scope: Option<Namespace>, filter: Filter) -> Result<Subscription> {
        let after = if after == u64::MAX { self.last() } else { after };
        Subscription::new(self.0.clone(), after, scope, filter)
    }

    /// Publishes an event of a client, that happens now, and gives its sequence. `payload` is a JSON object. The topics
    /// of the daemon's own subsystems are `denied`.
    pub async fn publish(
        &self,
        auth: &Authority,
        ns: &Namespace,
        topic: &str,
        payload: serde_json::Value,
    ) -> Result<u64> {
        let first = topic.trim_start_matches('/').split('/').next();
        if first.is_some_and(|first| OWN.contains(&first)) {
            return Err(Error::denied("topic", topic, "is one of the daemon's own: choose another first word"));
        }
        self.forward(auth, Event::new(ns, topic, payload)).await
    }

    /// Publishes an event that happened elsewhere or earlier, whatever its topic. It gets a sequence number of ours.
    pub async fn forward(&self, auth: &Authority, event: Event) -> Result<u64> {
        Event::validate_topic(&event.topic)?;
        if event.timestamp == Timestamp::default() {
            return Err(Error::invalid("event", &event.topic, "has no timestamp: say when it happened"));
        }
        if !event.payload.is_object() {
            return Err(Error::invalid("event", &event.topic, "has a payload that is no JSON object"));
        }
        let size = event.payload.to_string().len();
        if size > MAX_PAYLOAD {
            let why = format!("has a payload of {size} bytes: at most {MAX_PAYLOAD} are allowed");
            return Err(Error::invalid("event", &event.topic, why));
        }
        let emit = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            records::namespaces::require(tx, &event.namespace)?;
            records::events::emit(tx, event.clone())?;
            records::events::last(tx)
        };
        self.0.meta.write(auth, emit).await
    }

    /// What the disk has changed of the journal. Nothing of it can be put right; it goes with its segment.
    pub async fn check(&self) -> Result<Vec<Finding>> {
        let mut found = Findings::default();
        for damage in self.0.slot.call(Check).await? {
            let lost = damage.lost.iter().map(|(from, to)| format!("{from} to {to}")).collect::<Vec<_>>().join(", ");
            let what = format!(
                "the disk has changed a segment of the journal: of its events {lost} can't be read, and are a gap for who \
                 follows; it stays as it is, until it goes for its age"
            );
            found.add(Fault::JournalDamaged, format!("events/{:020}.seg", damage.segment), what, false);
        }
        Ok(found.done())
    }

    /// Moves everything into the journal now, which happens by itself within seconds, and gives the last sequence
    /// there.
    pub async fn settle(&self) -> Result<u64> {
        self.0.slot.call(Settle).await
    }
}
