//! What waits is bounded, over a real two-party connection.

use std::{cell::Cell, time::Duration};

use capnp::{
    capability::{FromClientHook, FromServer},
    traits::HasTypeId,
};
use capnp_rpc::RpcSystem;
use cofferdam_grants::Live;
use cofferdam_types::{Authority, Code};
use cofferdam_wire::{
    content_capnp::{blob, content},
    error::{from_rpc, to_rpc},
    gate_capnp::{self, namespace_cursor},
    system_capnp::system,
};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::server::{
    guard::guard,
    reach::Reach,
    session::Held,
    share::{Drawn, Share},
};

/// `enter` never answers, `hello` answers at length.
struct Slow {
    answered: Rc<Cell<usize>>,
}

const LENGTH: usize = 100 << 10;

impl gate_capnp::gate::Server for Slow {
    async fn hello(
        self: Rc<Self>,
        _: gate_capnp::gate::HelloParams,
        mut results: gate_capnp::gate::HelloResults,
    ) -> capnp::Result<()> {
        self.answered.set(self.answered.get() + 1);
        results.get().set_daemon("x".repeat(LENGTH));
        Ok(())
    }

    async fn enter(
        self: Rc<Self>,
        _: gate_capnp::gate::EnterParams,
        _: gate_capnp::gate::EnterResults,
    ) -> capnp::Result<()> {
        std::future::pending().await
    }
}

struct Setup {
    meter: Rc<Meter>,
    answered: Rc<Cell<usize>>,
    client: gate_capnp::gate::Client,
}

fn served(server: UnixStream, client: UnixStream) -> Setup {
    served_of(Rc::default(), server, client)
}

fn served_of(meter: Rc<Meter>, server: UnixStream, client: UnixStream) -> Setup {
    let answered: Rc<Cell<usize>> = Rc::default();
    let dispatch =
        <gate_capnp::gate::Client as FromServer<Slow>>::from_server(Rc::new(Slow { answered: answered.clone() }));
    let client = connected(&meter, dispatch, server, client);
    Setup { meter, answered, client }
}

/// A guarded object at the other end.
fn connected<C, D>(meter: &Rc<Meter>, dispatch: D, server: UnixStream, client: UnixStream) -> C
where
    C: FromClientHook + HasTypeId,
    D: capnp::capability::Server + Clone + 'static,
{
    let (grant, reach) = (Live::new(), Reach::everything());
    let held = Held {
        authority: Authority::system(),
        grant,
        given: None,
        reach,
        check: None,
        gone: None,
        deadline: None,
        calls: Default::default(),
        about: Default::default(),
    };
    let counted = (meter.begin_object().unwrap(), None);
    let object = guard(dispatch, C::TYPE_ID, meter.clone(), counted, Rc::new(held), None, None);
    let (network, _) = network(server, meter.clone());
    let bootstrap = FromClientHook::new(object.into_client_hook());
    tokio::task::spawn_local(RpcSystem::new(Box::new(network), Some(bootstrap)));
    let (network, _) = connect::network(client, Side::Client, 64 << 20);
    let mut rpc = RpcSystem::new(Box::new(network), None);
    let client = rpc.bootstrap(Side::Server);
    tokio::task::spawn_local(rpc);
    client
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(30), test()).await.unwrap() };
    tokio::task::LocalSet::new().block_on(&runtime, bounded);
}

/// Sends calls on a promise that is never kept until one is refused; gives how many were taken.
async fn until_refused(setup: &Setup, most: usize, actor: &str) -> usize {
    let root = setup.client.enter_request().send().pipeline.get_root();
    let never: system::Client = root.system_request().send().pipeline.get_system();
    // Behind the answer to this `enter` is under way.
    setup.client.hello_request().send().promise.await.unwrap();
    let mut calls = futures::stream::FuturesUnordered::new();
    for n in 0..most {
        let mut request = never.crash_request();
        request.get().set_actor(actor);
        let answer = request.send().promise;
        calls.push(async move { (n, answer.await.map(drop).map_err(from_rpc)) });
    }
    let refused = futures::StreamExt::next(&mut calls);
    let (n, answer) = tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap().unwrap();
    assert_eq!(answer.unwrap_err().code, Code::ResourceExhausted);
    setup.meter.until_cut().await;
    n
}

#[test]
fn calls_on_promises_are_counted() {
    run(async || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let setup = served(ours, theirs);
        // Besides these `system` waits, and `enter` is under way.
        assert_eq!(until_refused(&setup, 2000, "").await, 1023);
    });
}

#[test]
fn their_bytes_are_counted() {
    run(async || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let setup = served(ours, theirs);
        assert_eq!(until_refused(&setup, 40, &"x".repeat(900 << 10)).await, (16 << 20) / (900 << 10));
    });
}

#[test]
fn what_a_grants_connections_keep_is_counted_together() {
    run(async || {
        let share = Share::new(3500 << 10, None);
        let of_it = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            served_of(Meter::new(Default::default(), Some(share.clone())), ours, theirs)
        };
        let (first, second, third) = (of_it(), of_it(), of_it());
        let text = "x".repeat(900 << 10);
        // Within the budget of a connection, and the share is used up.
        let root = first.client.enter_request().send().pipeline.get_root();
        let never: system::Client = root.system_request().send().pipeline.get_system();
        let kept: Vec<_> = (0..4)
            .map(|_| {
                let mut request = never.crash_request();
                request.get().set_actor(&text);
                request.send()
            })
            .collect();
        first.client.hello_request().send().promise.await.unwrap();
        assert_eq!(until_refused(&second, 40, &text).await, 0);
        assert_eq!(until_refused(&third, 40, &text).await, 0, "what was refused is not kept");
        first.client.hello_request().send().promise.await.expect("it goes on");
        drop(kept);
    });
}

// Whoever begins messages and never ends them keeps as much as who ends them.
#[test]
fn a_message_that_never_wholly_comes_counts_by_what_was_announced() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    run(async || {
        let share = Share::new(1 << 20, None);
        let of_it = async |sent: usize| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let (network, _) = network(ours, Meter::new(Default::default(), Some(share.clone())));
            tokio::task::spawn_local(RpcSystem::new(Box::new(network), None));
            theirs.write_all(&[[0; 4], 131_000_u32.to_le_bytes()].concat()).await.unwrap();
            theirs.write_all(&vec![0; sent]).await.unwrap();
            theirs
        };
        let first = of_it(1_000_000).await;
        for sent in [0, 100_000] {
            let mut other = of_it(sent).await;
            let mut said = Vec::new();
            // What was sent and not read makes its end a reset, behind what is said.
            let _ = other.read_to_end(&mut said).await;
            let said = String::from_utf8_lossy(&said);
            assert!(said.contains("cofferdam:resource_exhausted connection/: begins a message"), "{said:?}");
        }
        drop(first);
        let all_of_it = || Drawn::from(Some(share.clone())).set((1 << 20) + (256 << 10));
        while !all_of_it() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn what_is_done_counts_no_longer() {
    run(async || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let setup = served(ours, theirs);
        for _ in 0..30 {
            let calls = (0..100).map(|_| setup.client.hello_request().send().promise);
            for answer in futures::future::join_all(calls).await {
                assert_eq!(answer.unwrap().get().unwrap().get_daemon().unwrap().len(), LENGTH);
            }
        }
        assert_eq!(setup.answered.get(), 3000);
        while !setup.meter.is_idle() {
            tokio::task::yield_now().await;
        }
    });
}

/// The daemon's end of a connection and the client's: between them bytes go to the daemon at once, and back when they may.
fn unread() -> (UnixStream, UnixStream, tokio::sync::oneshot::Sender<()>) {
    let (ours, near) = UnixStream::pair().unwrap();
    let (far, theirs) = UnixStream::pair().unwrap();
    let (from_daemon, to_daemon) = near.into_split();
    let (from_client, to_client) = far.into_split();
    use tokio_util::compat::{TokioAsyncReadCompatExt as _, TokioAsyncWriteCompatExt as _};
    let forth = async move {
        futures::io::copy(from_client.compat(), &mut to_daemon.compat_write()).await.unwrap();
    };
    tokio::task::spawn_local(forth);
    let (allow, allowed) = tokio::sync::oneshot::channel::<()>();
    let back = async move {
        allowed.await.unwrap();
        let (mut from, mut to) = (from_daemon.compat(), to_client.compat_write());
        let mut block = vec![0; 64 << 10];
        loop {
            let n = from.read(&mut block).await.unwrap();
            to.write_all(&block[..n]).await.unwrap();
        }
    };
    tokio::task::spawn_local(back);
    (ours, theirs, allow)
}

/// A client that sends and doesn't read: the daemon doesn't read either, and goes on when it does.
#[test]
fn who_does_not_read_is_not_read_from() {
    run(async || {
        let (ours, theirs, allow) = unread();
        let setup = served(ours, theirs);
        let calls = |count| (0..count).map(|_| setup.client.hello_request().send().promise).collect::<Vec<_>>();
        let first = calls(100);
        while setup.meter.has_room() {
            tokio::task::yield_now().await;
        }
        // What it has taken in by then it may answer, and no more.
        let taken = setup.answered.get() + 100;
        let second = calls(200);
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        assert!(setup.answered.get() <= taken, "{} of 300 were read", setup.answered.get());
        allow.send(()).unwrap();
        for answer in futures::future::join_all(first.into_iter().chain(second)).await {
            answer.unwrap();
        }
        assert_eq!(setup.answered.get(), 300);
    });
}

#[test]
fn chunks_of_a_stream_count_by_their_bytes() {
    let meter: Rc<Meter> = Rc::default();
    let chunks: Vec<_> = (0..5000).map(|_| meter.keep(true, 0).unwrap()).collect();
    let calls: Vec<_> = (0..1024).map(|_| meter.keep(false, 0).unwrap()).collect();
    assert!(meter.keep(false, 0).is_none());
    meter.arrives(16 << 20);
    assert!(meter.keep(true, 0).is_none());
    drop((chunks, calls));
    assert!(meter.is_idle());
}

/// `read` streams as the daemon does, and `ingest` never answers.
#[derive(Clone)]
struct Streams(Rc<Meter>);

const STREAM: usize = 2 << 20;

impl content::Server for Streams {
    async fn get(self: Rc<Self>, _: content::GetParams, mut results: content::GetResults) -> capnp::Result<()> {
        results.get().set_blob(capnp_rpc::new_client(Streams::clone(&self)));
        Ok(())
    }

    async fn ingest(self: Rc<Self>, _: content::IngestParams, _: content::IngestResults) -> capnp::Result<()> {
        std::future::pending().await
    }
}

impl blob::Server for Streams {
    async fn read(self: Rc<Self>, params: blob::ReadParams, _: blob::ReadResults) -> capnp::Result<()> {
        let sink: byte_stream::Client = params.get()?.get_sink()?;
        for _ in 0..STREAM / connect::CHUNK {
            let room = self.0.room(connect::CHUNK).await;
            let mut request = sink.write_request();
            request.get().init_chunk(connect::CHUNK as u32);
            room.send(request).await.map_err(to_rpc)?;
        }
        Ok(())
    }
}

/// A sink of the client's: it counts, and says when it has taken something if it ever does.
struct Sink {
    taken: Rc<Cell<usize>>,
    answers: bool,
}

impl byte_stream::Server for Sink {
    async fn write(self: Rc<Self>, params: byte_stream::WriteParams) -> capnp::Result<()> {
        self.taken.set(self.taken.get() + params.get()?.get_chunk()?.len());
        if self.answers { Ok(()) } else { std::future::pending().await }
    }
}

/// A client of [`Streams`].
fn streaming(server: UnixStream, client: UnixStream) -> (Rc<Meter>, content::Client) {
    let meter: Rc<Meter> = Rc::default();
    let (network, _) = network(server, meter.clone());
    let object: content::Client = capnp_rpc::new_client(Streams(meter.clone()));
    tokio::task::spawn_local(RpcSystem::new(Box::new(network), Some(object.client)));
    let (network, _) = connect::network(client, Side::Client, 64 << 20);
    let mut rpc = RpcSystem::new(Box::new(network), None);
    let client = rpc.bootstrap(Side::Server);
    tokio::task::spawn_local(rpc);
    (meter, client)
}

/// A stream that is asked for, and what has come of it.
fn read(content: &content::Client, answers: bool) -> (Promise<(), capnp::Error>, Rc<Cell<usize>>) {
    let taken: Rc<Cell<usize>> = Rc::default();
    (read_into(content, capnp_rpc::new_client(Sink { taken: taken.clone(), answers })), taken)
}

fn read_into(content: &content::Client, sink: byte_stream::Client) -> Promise<(), capnp::Error> {
    let mut request = content.get_request().send().pipeline.get_blob().read_request();
    request.get().set_sink(sink);
    Promise::from_future(request.send().promise.map_ok(drop))
}

/// Everybody has had a turn, many times.
async fn settle() {
    for _ in 0..20_000 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn streams_of_a_client_that_does_not_read_wait_for_room() {
    run(async || {
        let (ours, theirs, allow) = unread();
        let (meter, content) = streaming(ours, theirs);
        let streams: Vec<_> = (0..40).map(|_| read(&content, true)).collect();
        settle().await;
        let kept = meter.outward();
        assert!(((2 << 20)..=(3 << 20)).contains(&kept), "{kept} bytes are kept for who reads nothing");
        assert!(meter.has_room(), "what he says is heard");
        allow.send(()).unwrap();
        for (reading, taken) in streams {
            reading.await.unwrap();
            assert_eq!(taken.get(), STREAM);
        }
        settle().await;
        assert!(meter.is_idle());
    });
}

#[test]
fn a_stream_that_is_not_taken_holds_up_no_other() {
    run(async || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (meter, content) = streaming(ours, theirs);
        let untaken: Vec<_> = (0..40).map(|_| read(&content, false)).collect();
        let (reading, taken) = read(&content, true);
        reading.await.unwrap();
        assert_eq!(taken.get(), STREAM);
        settle().await;
        assert!(
            untaken.iter().all(|(_, taken)| taken.get() == connect::CHUNK),
            "the rest of its window waits over there"
        );
        assert_eq!(meter.outward(), 0, "what the client has is kept by the client alone");
    });
}

#[test]
fn what_is_read_for_an_object_that_never_comes_keeps_its_room() {
    run(async || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (meter, content) = streaming(ours, theirs);
        let never = content.ingest_request().send().pipeline.get_ingest().sink_request().send().pipeline.get_sink();
        let waiting: Vec<_> = (0..40).map(|_| read_into(&content, never.clone())).collect();
        settle().await;
        let kept = meter.outward();
        assert!(((2 << 20)..=(3 << 20)).contains(&kept), "{kept} bytes are kept for nobody");
        drop((never, waiting));
        while meter.outward() > 0 {
            tokio::task::yield_now().await;
        }
        let (reading, taken) = read(&content, true);
        reading.await.unwrap();
        assert_eq!(taken.get(), STREAM);
    });
}

/// A list of long names.
struct Long {
    answered: Rc<Cell<usize>>,
}

impl namespace_cursor::Server for Long {
    async fn next(
        self: Rc<Self>,
        _: namespace_cursor::NextParams,
        mut results: namespace_cursor::NextResults,
    ) -> capnp::Result<()> {
        self.answered.set(self.answered.get() + 1);
        results.get().init_items(1).get(0).set_name("x".repeat(LENGTH));
        Ok(())
    }
}

#[test]
fn blocks_of_lists_that_nobody_reads_wait() {
    run(async || {
        let (ours, theirs, allow) = unread();
        let (meter, answered): (Rc<Meter>, Rc<Cell<usize>>) = Default::default();
        let object = Rc::new(Long { answered: answered.clone() });
        let dispatch = <namespace_cursor::Client as FromServer<Long>>::from_server(object);
        let list: namespace_cursor::Client = connected(&meter, dispatch, ours, theirs);
        let blocks: Vec<_> = (0..200).map(|_| list.next_request().send().promise).collect();
        settle().await;
        assert!(meter.outward() <= 3 << 20 && answered.get() < 40, "{} were made", answered.get());
        allow.send(()).unwrap();
        for block in blocks {
            assert_eq!(block.await.unwrap().get().unwrap().get_items().unwrap().len(), 1);
        }
        assert_eq!(answered.get(), 200);
    });
}
