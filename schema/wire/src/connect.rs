//! Setting up an RPC connection over a Unix stream, for every program the same way.

use std::{
    cell::Cell,
    future::poll_fn,
    rc::Rc,
    task::{Poll, ready},
};

use capnp::{capability::Promise, message::ReaderOptions};
use capnp_rpc::{Connection, VatNetwork, rpc_twoparty_capnp::Side, twoparty};
use futures::{AsyncRead, FutureExt as _};
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

/// So often what is to be sent lets others go first who are ready: after the second time all of them had their turn, and what they
/// say to what just came goes along with it.
const TURN: u32 = 2;
/// So often it waits before that while messages are there that nobody has looked at yet: their answers may come in a moment.
const TURNS: u32 = 16;

/// The network of one connection. Messages that are sent in one go leave by one system call, and so do the answers to
/// messages that came together: each such call wakes the peer.
pub struct Network<R: AsyncRead + Unpin + 'static> {
    inner: twoparty::VatNetwork<R>,
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
    let (writer, sender) = buffered::writer(writer, sent);
    let mut inner = twoparty::VatNetwork::new(through(reader), writer, side, options);
    inner.set_window_size(WINDOW);
    (Network { inner, sender: Some(sender), more }, fds)
}

impl<R: AsyncRead + Unpin + 'static> VatNetwork<Side> for Network<R> {
    fn connect(&mut self, host: Side) -> Option<Box<dyn Connection<Side>>> {
        self.inner.connect(host)
    }

    fn accept(&mut self) -> Promise<Box<dyn Connection<Side>>, capnp::Error> {
        self.inner.accept()
    }

    /// Beside what writes the messages: when that has no more, what it wrote is sent.
    fn drive_until_shutdown(&mut self) -> Promise<(), capnp::Error> {
        let mut writes = self.inner.drive_until_shutdown();
        let Some(sender) = self.sender.take() else { return writes };
        let (more, mut written) = (self.more.clone(), None);
        let (mut waited, mut yielded) = (0, 0);
        Promise::from_future(poll_fn(move |cx| {
            if written.is_none() {
                match writes.poll_unpin(cx) {
                    // The last message may be that of a failure.
                    Poll::Ready(done) => written = Some(done),
                    Poll::Pending if sender.has_any() && more.get() && waited < TURNS => {
                        waited += 1;
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Poll::Pending if sender.has_any() && yielded < TURN => {
                        yielded += 1;
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Poll::Pending => (waited, yielded) = (0, 0),
                }
            }
            let sent = ready!(sender.poll_send(cx));
            match written.take() {
                Some(done) => Poll::Ready(done.and_then(|()| sent.map_err(capnp::Error::from))),
                None => sent.map_or_else(|e| Poll::Ready(Err(e.into())), |()| Poll::Pending),
            }
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
