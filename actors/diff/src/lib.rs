//! Applying a layer to a snapshot.
