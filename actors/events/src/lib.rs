//! The journal of events: sequence numbers, subscriptions, retention.
mod journal;
