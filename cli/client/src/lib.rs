//! The client library: connect, typed handles, streams, errors, and a run in one round trip.
