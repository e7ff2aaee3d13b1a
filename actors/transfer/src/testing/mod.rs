//! What the tests of this crate share.

pub(crate) mod picture;
pub(crate) mod server;
pub(crate) mod shelf;
pub(crate) mod world;
