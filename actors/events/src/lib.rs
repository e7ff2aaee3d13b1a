//! The journal of events: sequence numbers, subscriptions, retention.
//!
//! Every write to the metadata puts its event into the outbox table in the same commit, with the next sequence number:
//! an event is durable, and in order, before anyone is told of what it reports. Events owns the directory `events/`,
//! the journal's segments, into which it moves the outbox; it never owns the outbox (metadata's) nor the truth about
//! things: an event is news, the records are the state.
//!
//! - [`Subscription`]: a place in the sequence, a namespace or all, and a filter. It sees an event as soon as its commit
//!   is durable, by the metadata's own watch and without a hop through an actor; what it needs from further back comes
//!   from the ring of newest events, the outbox or the journal, whichever has it. So a slow reader costs no memory,
//!   and gets a [`Batch::Gap`] only for what retention has dropped.
//! - Moving to the journal is lazy, batched and repeatable: append, sync, then trim the outbox. A crash in between
//!   loses nothing and doubles nothing, for the sequence numbers tell.
//! - A torn tail is cut off at the last whole record; the outbox still has the rest.
//!
//! While the actor is down subscriptions go on, but for those that read far back.

mod actor;
mod fields;
mod handle;
mod journal;
pub mod messages;
mod ring;
mod subscription;

#[cfg(test)]
mod tests;

pub use actor::EventsActor;
pub use cofferdam_segments::Retention;
pub use handle::Events;
pub use journal::{Chunk, Cursor, Damage, Journal, RETENTION};
pub use subscription::{Batch, Subscription};
