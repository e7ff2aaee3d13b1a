//! What a container wrote.

use std::{cell::RefCell, rc::Rc};

use cofferdam_types::{Error, Timestamp};
use cofferdam_wire::{
    container_capnp::{log_options, log_record, log_sink},
    convert::text,
    error::{malformed, to_rpc},
};

/// Which stream it was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output; with a terminal everything.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output, as it came: not a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRecord<'a> {
    /// When it was written.
    pub time: Timestamp,
    /// Where to.
    pub stream: LogStream,
    /// What.
    pub bytes: &'a [u8],
    /// Not empty: here something is missing, and this says what and why. There are no bytes then.
    pub lost: &'a str,
    /// The place behind it.
    pub position: LogPosition,
}

/// A place in a log, to go on from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    segment: u64,
    offset: u64,
}

/// Which records are wanted; all by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the task has ended.
    pub follow: bool,
    /// Nothing older; 0 is everything.
    pub since: Timestamp,
    /// Nothing newer; 0 is everything.
    pub until: Timestamp,
    /// So many lines from the end of what is there, then what follows.
    pub tail: Option<u64>,
    /// One stream alone.
    pub stream: Option<LogStream>,
    /// What lies behind this place, instead of the tail.
    pub after: Option<LogPosition>,
}

impl LogOptions {
    pub(crate) fn fill(&self, mut builder: log_options::Builder<'_>) {
        builder.set_since(self.since.0);
        builder.set_until(self.until.0);
        builder.set_tail(self.tail.unwrap_or(u64::MAX));
        builder.set_streams(match self.stream {
            None => log_options::Streams::Both,
            Some(LogStream::Stdout) => log_options::Streams::Stdout,
            Some(LogStream::Stderr) => log_options::Streams::Stderr,
        });
        let after = self.after.unwrap_or_default();
        builder.set_segment(after.segment);
        builder.set_offset(after.offset);
    }
}

/// What is done with a record; an error ends the log.
type Take<F> = RefCell<F>;

pub(crate) struct Records<F>(pub(crate) Take<F>);

impl<F: FnMut(LogRecord<'_>) -> cofferdam_types::Result<()> + 'static> log_sink::Server for Records<F> {
    async fn write(self: Rc<Self>, params: log_sink::WriteParams) -> capnp::Result<()> {
        for record in params.get()?.get_records()?.iter() {
            let stream = match record.get_stream().map_err(|e| to_rpc(malformed(e.into())))? {
                log_record::Stream::Stdout => LogStream::Stdout,
                log_record::Stream::Stderr => LogStream::Stderr,
            };
            let record = LogRecord {
                time: Timestamp(record.get_time()),
                stream,
                bytes: record.get_bytes()?,
                lost: text(record.get_lost()).map_err(to_rpc)?,
                position: LogPosition { segment: record.get_segment(), offset: record.get_offset() },
            };
            let mut take =
                self.0.try_borrow_mut().map_err(|_| to_rpc(Error::internal("log", "", "is read in its own reader")))?;
            take(record).map_err(to_rpc)?;
        }
        Ok(())
    }

    async fn end(self: Rc<Self>, _: log_sink::EndParams, _: log_sink::EndResults) -> capnp::Result<()> {
        Ok(())
    }
}
