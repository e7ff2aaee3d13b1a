//! What the tests of images share.

pub mod craft;
pub mod server;
pub mod signer;
pub mod tree;
pub mod world;
