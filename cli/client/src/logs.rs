//! What a container wrote.

use std::{cell::RefCell, rc::Rc};

use cofferdam_types::{Error, Timestamp};
use cofferdam_wire::{
    container_capnp::{log_record, log_sink},
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
            let record = LogRecord { time: Timestamp(record.get_time()), stream, bytes: record.get_bytes()? };
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
