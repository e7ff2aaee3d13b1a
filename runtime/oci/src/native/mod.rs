//! The driver that makes containers itself, with clone3 from a single-threaded process.

/// What the native driver keeps of a container.
#[derive(Debug, Default)]
pub struct Kept {}
