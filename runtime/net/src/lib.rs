//! Networks of containers.
//!
//! A network is a configuration of CNI, the Container Network Interface: a chain of plugins, which are programs. This
//! crate finds and reads configurations ([`list`], [`find`]), runs chains ([`Chain::add`], [`Chain::del`]), understands
//! what they answer ([`Outcome`]), and writes the files by which a container knows names ([`Names`]).
//!
//! It keeps nothing: that an ADD is paired with a DEL is the affair of whoever records it before and after. Nothing
//! here waits for longer than the deadline of a plugin.

mod chain;
mod conf;
mod names;
mod outcome;
mod plugin;
#[cfg(test)]
mod tests;
mod wish;

pub use chain::{Chain, Place};
pub use conf::{Network, find, list};
pub use names::{Names, text_of_hosts, text_of_resolv};
pub use outcome::{Dns, Outcome};
pub use plugin::Plugins;
pub use wish::{Port, Protocol, Wish, address};

use cofferdam_types::{Error, Result};

/// The names that CNI takes for networks and types of plugins. They become part of paths: no `/`, and no `.` in front.
pub fn check_name(kind: &'static str, text: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && text.len() <= 128 && text.bytes().all(good) {
        return Ok(());
    }
    let shown: String = text.chars().take(100).collect();
    let why = "is no name: give a letter or a digit, then letters, digits, `_`, `.` and `-`, at most 128";
    Err(Error::invalid(kind, shown.escape_default(), why))
}
