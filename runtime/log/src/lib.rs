//! The log of a container: what its first process writes, kept.
//!
//! The shim writes it ([`Writer`]), the daemon reads it ([`Reader`]): both are plain synchronous code, and nothing but
//! files lies between them. A log is a directory of numbered files, of which the one with the highest number is written.
//! To rotate is to make the next one and then to remove the oldest: no file is ever renamed or cut, so that a reader who
//! knows a number and an offset knows where it is, whatever the writer does meanwhile.
//!
//! Never here: who may read what, when a log goes.

mod format;
mod journal;
mod options;
mod query;
mod reader;
mod segments;
#[cfg(test)]
mod tests;
mod writer;

pub use format::{Format, PIECE};
pub use journal::{JOURNAL, Journal};
pub use options::{Driver, MAX_FILES, MAX_SIZE, MIN_SIZE, Options};
pub use query::{Query, Selector, start};
pub use reader::{Entry, Position, Reader, What};
pub use writer::Writer;

/// Which stream a piece of output was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output; with a terminal everything.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As the formats call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    fn parse(text: &str) -> Option<Stream> {
        [Stream::Stdout, Stream::Stderr].into_iter().find(|stream| stream.as_str() == text)
    }
}
