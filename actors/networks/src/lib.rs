//! Which container is connected to which network.
//!
//! Owns the network namespaces of connected containers, pinned below `<state>/netns` under the ids of their shims, and
//! the rows of `attachments`. It never owns a container, nor a network: what networks there are the configuration files
//! of CNI say, and what they are made of is the plugins' affair.
//!
//! - Every ADD has its DEL. The row comes before the first plugin is run, with all that DEL will need, and goes after the
//!   last one has undone its work; a pinned namespace lasts as long. Whatever dies meanwhile, the next start finds the row.
//! - A connection is given up by a commit: that of a task's end or deletion does it. [`Networks::release`] only says that
//!   there is something to do.
//! - A DEL that fails is done again until it succeeds, with growing pauses.
//! - A plugin that hangs is killed at its deadline. Meanwhile it holds up its own container, and nobody else.

mod actor;
mod attach;
mod handle;
mod messages;
#[cfg(test)]
mod tests;

pub use attach::{Connected, INTERFACE};
pub use handle::{Config, Networks};
pub use messages::Attach;
