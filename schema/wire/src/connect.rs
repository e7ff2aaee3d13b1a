//! Setting up an RPC connection over a Unix stream, for every program the same way.

use capnp::message::ReaderOptions;
use capnp_rpc::{rpc_twoparty_capnp::Side, twoparty::VatNetwork};
use futures::AsyncRead;
use tokio::net::UnixStream;

use crate::{
    buffered,
    fdstream::{self, Fds, Reader},
};

/// Bytes that a stream may have under way before its sender waits.
pub const WINDOW: usize = 1 << 20;
/// The largest chunk that a `ByteStream` takes.
pub const CHUNK: usize = 256 << 10;
/// What the daemon accepts as one message from a client.
pub const MESSAGE: usize = 1 << 20;

/// The network of one connection, and the descriptors that travel with it. `limit` bounds an incoming message in
/// bytes.
pub fn network(stream: UnixStream, side: Side, limit: usize) -> (VatNetwork<buffered::Reader<Reader>>, Fds) {
    network_through(stream, side, limit, |reader| reader)
}

/// [`network`] with something of yours between the stream and the messages that come in.
pub fn network_through<R: AsyncRead + Unpin + 'static>(
    stream: UnixStream,
    side: Side,
    limit: usize,
    through: impl FnOnce(buffered::Reader<Reader>) -> R,
) -> (VatNetwork<R>, Fds) {
    let (reader, writer, fds) = fdstream::split(stream);
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(limit / 8)).nesting_limit(64);
    let mut network =
        VatNetwork::new(through(buffered::Reader::new(reader)), buffered::Writer::new(writer), side, options);
    network.set_window_size(WINDOW);
    (network, fds)
}
