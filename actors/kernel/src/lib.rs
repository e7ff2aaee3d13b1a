//! Slots, supervision, health, ordered start and stop.
