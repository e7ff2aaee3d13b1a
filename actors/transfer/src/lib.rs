//! Images from archives, directories and registries.

mod cancel;
mod errors;
mod reference;
pub mod registry;
#[cfg(test)]
mod testing;

pub use cancel::Cancel;
pub use errors::from_io;
pub use reference::{Reference, Target, normalize};
