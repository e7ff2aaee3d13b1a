//! Setting up an RPC connection over a Unix stream, for every program the same way.

use std::{
    cell::Cell,
    future::poll_fn,
    rc::Rc,
    task::{Poll, ready},
};

use capnp::{
    any_pointer,
    capability::Promise,
    message::{Builder, HeapAllocator, ReaderOptions},
};
use capnp_rpc::{
    Connection, FlowController, IncomingMessage, OutgoingMessage, VatNetwork, rpc_twoparty_capnp::Side, twoparty,
};
use futures::{AsyncRead, FutureExt as _, TryFutureExt as _};
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

/// So often what is to be sent lets others go first who are ready on this connection: what they say to what just came goes along with
/// it. A second time gathers hardly more, and costs each call.
const TURN: u32 = 1;
/// So often it waits before that while messages are there that nobody has looked at yet: their answers may come in a moment.
const TURNS: u32 = 16;

/// The network of one connection. Messages that are sent in one go leave by one system call, and so do the answers to
/// messages that came together: each such call wakes the peer. They go to the stream's buffer as they are made: the library's own queue
/// has a channel and a future for each.
pub struct Network<R: AsyncRead + Unpin + 'static> {
    /// Reads, and says when it is over.
    inner: twoparty::VatNetwork<R>,
    outbox: Outbox,
    /// Until it is driven.
    sender: Option<buffered::Sender<fdstream::Writer>>,
    /// Whether messages were read that nobody has looked at yet.
    more: Rc<Cell<bool>>,
}

/// The network of one connection, and the descriptors that travel with it. `limit` bounds an incoming message in
/// bytes.
pub fn network(stream: UnixStream, side: Side, limit: usize) -> (Network<buffered::Reader<Reader>>, Fds) {
    network_through(stream, side, limit, |reader| reader, |_| ())
}

/// [`network`] with something of yours between the stream and the messages that come in; `sent` hears how many bytes have
/// gone out.
pub fn network_through<R: AsyncRead + Unpin + 'static>(
    stream: UnixStream,
    side: Side,
    limit: usize,
    through: impl FnOnce(buffered::Reader<Reader>) -> R,
    sent: impl Fn(usize) + 'static,
) -> (Network<R>, Fds) {
    let (reader, writer, fds) = fdstream::split(stream);
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(limit / 8)).nesting_limit(64);
    let reader = buffered::Reader::new(reader);
    let more = reader.more();
    let (outbox, sender) = buffered::outbox(writer, sent);
    let mut inner = twoparty::VatNetwork::new(through(reader), futures::io::sink(), side, options);
    inner.set_window_size(WINDOW);
    (Network { inner, outbox, sender: Some(sender), more }, fds)
}

type Outbox = buffered::Outbox<fdstream::Writer>;

/// The connection, with messages of its own.
struct Direct {
    inner: Box<dyn Connection<Side>>,
    outbox: Outbox,
}

impl Connection<Side> for Direct {
    fn get_peer_vat_id(&self) -> Side {
        self.inner.get_peer_vat_id()
    }

    fn new_outgoing_message(&mut self, first_segment_word_size: u32) -> Box<dyn OutgoingMessage> {
        let message = Builder::new(HeapAllocator::new().first_segment_words(first_segment_word_size));
        Box::new(Outgoing { message, outbox: self.outbox.clone() })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, capnp::Error> {
        self.inner.receive_incoming_message()
    }

    fn new_stream(&mut self) -> (Box<dyn FlowController>, Promise<(), capnp::Error>) {
        self.inner.new_stream()
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), capnp::Error> {
        // What was said last is why it ends.
        self.outbox.close();
        self.inner.shutdown(result)
    }
}

struct Outgoing {
    message: Builder<HeapAllocator>,
    outbox: Outbox,
}

impl OutgoingMessage for Outgoing {
    fn get_body(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        self.message.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.message.get_root_as_reader()
    }

    fn send(self: Box<Self>) -> (Promise<(), capnp::Error>, Rc<Builder<HeapAllocator>>) {
        let Outgoing { message, outbox } = *self;
        let message = Rc::new(message);
        outbox.put(&message);
        (Promise::ok(()), message)
    }

    fn take(self: Box<Self>) -> Builder<HeapAllocator> {
        self.message
    }

    fn size_in_words(&self) -> usize {
        self.message.size_in_words()
    }
}

impl<R: AsyncRead + Unpin + 'static> VatNetwork<Side> for Network<R> {
    fn connect(&mut self, host: Side) -> Option<Box<dyn Connection<Side>>> {
        let inner = self.inner.connect(host)?;
        Some(Box::new(Direct { inner, outbox: self.outbox.clone() }))
    }

    fn accept(&mut self) -> Promise<Box<dyn Connection<Side>>, capnp::Error> {
        let outbox = self.outbox.clone();
        let direct = |inner| Box::new(Direct { inner, outbox }) as Box<dyn Connection<Side>>;
        Promise::from_future(self.inner.accept().map_ok(direct))
    }

    /// When it is over, what is there is sent still.
    fn drive_until_shutdown(&mut self) -> Promise<(), capnp::Error> {
        let mut ends = self.inner.drive_until_shutdown();
        let Some(sender) = self.sender.take() else { return ends };
        let (more, mut ended) = (self.more.clone(), None);
        let (mut waited, mut yielded) = (0, 0);
        Promise::from_future(poll_fn(move |cx| {
            if ended.is_none() {
                sender.heed(cx);
                let may = |turns: &mut u32, most| {
                    *turns += 1;
                    *turns <= most
                };
                if sender.has_any() && ((more.get() && may(&mut waited, TURNS)) || may(&mut yielded, TURN)) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                (waited, yielded) = (0, 0);
                // The last message may be that of a failure.
                if let Poll::Ready(end) = ends.poll_unpin(cx) {
                    ended = Some(end);
                }
            }
            ready!(sender.poll_send(cx));
            ended.take().map_or(Poll::Pending, Poll::Ready)
        }))
    }
}

#[cfg(test)]
mod tests {
    use capnp_rpc::RpcSystem;

    use super::*;
    use crate::gate_capnp::{gate, root};

    /// `enter` gives nothing that answers.
    struct Served;

    impl gate::Server for Served {
        async fn hello(self: Rc<Self>, _: gate::HelloParams, mut results: gate::HelloResults) -> capnp::Result<()> {
            results.get().set_version(7);
            Ok(())
        }
    }

    /// Both ends, and how often each has sent something.
    fn joined() -> (gate::Client, Rc<Cell<u32>>, Rc<Cell<u32>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let counted = || {
            let calls = Rc::new(Cell::new(0));
            let count = calls.clone();
            (calls, move |_| count.set(count.get() + 1))
        };
        let ((served, of_server), (asked, of_client)) = (counted(), counted());
        let (network, _) = network_through(ours, Side::Server, MESSAGE, |reader| reader, of_server);
        let gate: gate::Client = capnp_rpc::new_client(Served);
        tokio::task::spawn_local(RpcSystem::new(Box::new(network), Some(gate.client)));
        let (network, _) = network_through(theirs, Side::Client, MESSAGE, |reader| reader, of_client);
        let mut system = RpcSystem::new(Box::new(network), None);
        let gate = system.bootstrap(Side::Server);
        tokio::task::spawn_local(system);
        (gate, asked, served)
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn what_is_said_in_one_go_is_one_call() {
        run(async {
            let (gate, asked, served) = joined();
            gate.hello_request().send().promise.await.unwrap();
            let before = (asked.get(), served.get());
            let calls: Vec<_> = (0..20).map(|_| gate.hello_request().send().promise).collect();
            for answer in futures::future::join_all(calls).await {
                assert_eq!(answer.unwrap().get().unwrap().get_version(), 7);
            }
            assert_eq!(asked.get() - before.0, 1);
            // More than a few are not waited for.
            assert!((1..=5).contains(&(served.get() - before.1)), "{}", served.get() - before.1);
        });
    }

    // Why a connection ends is the last that is said on it.
    #[test]
    fn what_ends_it_is_told_before_it_ends() {
        run(async {
            let (mut raw, ours) = UnixStream::pair().unwrap();
            let (network, _) = network(ours, Side::Server, MESSAGE);
            let gate: gate::Client = capnp_rpc::new_client(Served);
            tokio::task::spawn_local(RpcSystem::new(Box::new(network), Some(gate.client)));
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            // More segments than there may be.
            raw.write_all(&[0xff; 64]).await.unwrap();
            let mut said = Vec::new();
            raw.read_to_end(&mut said).await.unwrap();
            assert!(String::from_utf8_lossy(&said).contains("segments"), "{said:?}");
        });
    }

    // A peer that hangs up while it is written to said why before: who waits is told that, and doesn't wait for ever.
    #[test]
    fn who_waits_is_told_what_was_said_before_it_ended() {
        run(async {
            let (ours, mut peer) = UnixStream::pair().unwrap();
            let (network, _) = network(ours, Side::Client, MESSAGE);
            let mut system = RpcSystem::new(Box::new(network), None);
            let gate: gate::Client = system.bootstrap(Side::Server);
            use capnp_rpc::rpc_capnp::message;
            use tokio::io::AsyncWriteExt as _;
            let mut abort = capnp::message::Builder::new_default();
            abort.init_root::<message::Builder<'_>>().init_abort().set_reason("you say too much");
            peer.write_all(&capnp::serialize::write_message_to_words(&abort)).await.unwrap();
            drop(peer);
            let call = gate.hello_request().send().promise;
            tokio::task::spawn_local(system);
            let error = call.await.map(drop).unwrap_err();
            assert!(error.to_string().contains("you say too much"), "{error}");
        });
    }

    // An object of it that somebody still holds keeps nobody from hearing that it is over.
    #[test]
    fn it_is_over_when_it_is_not_driven_any_more() {
        run(async {
            let (ours, mut peer) = UnixStream::pair().unwrap();
            let (network, fds) = network(ours, Side::Client, MESSAGE);
            let mut system = RpcSystem::new(Box::new(network), None);
            let gate: gate::Client = system.bootstrap(Side::Server);
            let driven = tokio::task::spawn_local(system);
            let call = gate.hello_request().send().promise;
            tokio::task::yield_now().await;
            driven.abort();
            use tokio::io::AsyncReadExt as _;
            peer.read_to_end(&mut Vec::new()).await.unwrap();
            drop((gate, call, fds));
        });
    }

    // Nothing stays behind for want of something that comes after it.
    #[test]
    fn what_waits_for_nothing_is_sent() {
        run(async {
            let (gate, ..) = joined();
            for _ in 0..100 {
                let never: root::Client = gate.enter_request().send().pipeline.get_root();
                let answer = gate.hello_request().send().promise.await.unwrap();
                assert_eq!(answer.get().unwrap().get_version(), 7);
                drop(never);
            }
            // The last message of all, larger than what is collected.
            let mut request = gate.hello_request();
            request.get().set_name("x".repeat(100 << 10));
            request.send().promise.await.unwrap();
        });
    }
}
