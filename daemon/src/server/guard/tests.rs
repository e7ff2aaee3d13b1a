//! The guard against objects that misbehave, over a real two-party connection.

use std::time::Duration;

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use cofferdam_grants::{End, Live};
use cofferdam_types::{Authority, Caveats, Code, Right, Rights};
use cofferdam_wire::{
    common_capnp::byte_stream, connect, container_capnp::attachment, error::from_rpc, gate_capnp::root, needs::METHODS,
    system_capnp::system,
};

use tokio::{net::UnixStream, sync::Notify};

use super::*;
use crate::server::reach::Reach;

/// `status` never answers, `crash` panics or succeeds.
struct Trouble;

impl system::Server for Trouble {
    async fn status(self: Rc<Self>, _: system::StatusParams, _: system::StatusResults) -> capnp::Result<()> {
        futures::future::pending().await
    }

    async fn crash(self: Rc<Self>, params: system::CrashParams, _: system::CrashResults) -> capnp::Result<()> {
        let how = params.get()?.get_actor()?.to_string()?;
        if how == "panic late" {
            tokio::task::yield_now().await;
        }
        if how.starts_with("panic") {
            panic!("on demand");
        }
        tracing::debug!("was told");
        Ok(())
    }
}

struct Setup {
    meter: Rc<Meter>,
    held: Held,
    client: system::Client,
}

fn held(deadline: Option<Duration>) -> Held {
    Held {
        authority: Authority::system(),
        grant: Live::new(),
        given: None,
        reach: Reach::everything(),
        check: None,
        gone: None,
        deadline,
        calls: Default::default(),
        about: Default::default(),
    }
}

fn guarded(deadline: Option<Duration>) -> Setup {
    guarded_with(held(deadline))
}

fn guarded_with(held: Held) -> Setup {
    let meter: Rc<Meter> = Rc::default();
    let dispatch = <system::Client as FromServer<Trouble>>::from_server(Rc::new(Trouble));
    let counted = (meter.begin_object().unwrap(), None);
    let own = <system::Client as HasTypeId>::TYPE_ID;
    let object = guard(dispatch, own, meter.clone(), counted, Rc::new(held.clone()), None, None);
    Setup { meter, held, client: served(object) }
}

/// An object at the other end of a connection.
fn served<C: FromClientHook>(object: Guarded) -> C {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (network, _) = connect::network(ours, Side::Server, connect::MESSAGE);
    let served = FromClientHook::new(object.into_client_hook());
    tokio::task::spawn_local(RpcSystem::new(Box::new(network), Some(served)));
    let (network, _) = connect::network(theirs, Side::Client, connect::MESSAGE);
    let mut rpc = RpcSystem::new(Box::new(network), None);
    let client = rpc.bootstrap(Side::Server);
    tokio::task::spawn_local(rpc);
    client
}

async fn crash(client: &system::Client, how: &str) -> Result<(), Error> {
    let mut request = client.crash_request();
    request.get().set_actor(how);
    request.send().promise.await.map(drop).map_err(from_rpc)
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async { test().await });
}

#[test]
fn a_panic_is_an_answer_and_the_connection_goes_on() {
    run(async || {
        let Setup { client, meter, .. } = guarded(None);
        for how in ["panic", "panic late"] {
            assert_eq!(crash(&client, how).await.unwrap_err().code, Code::Internal, "{how}");
        }
        crash(&client, "").await.expect("the connection goes on");
        drop(meter);
    });
}

#[test]
fn revoking_ends_what_is_under_way_and_what_comes() {
    run(async || {
        let Setup { client, held, .. } = guarded(None);
        let pending = client.status_request().send().promise;
        crash(&client, "").await.unwrap();
        held.grant.finish(End::Revoked);
        assert_eq!(pending.await.map(drop).map_err(from_rpc).unwrap_err().code, Code::Revoked);
        assert_eq!(crash(&client, "").await.unwrap_err().code, Code::Revoked);
    });
}

// What is attached ends with its grant too: who waits for that is told of the grant's end, whichever is seen first.
#[test]
fn who_waits_for_what_ends_with_the_grant_is_told_of_that() {
    struct Attached(Arc<Live>, Rc<Notify>);
    impl attachment::Server for Attached {
        async fn wait(self: Rc<Self>, _: attachment::WaitParams, _: attachment::WaitResults) -> capnp::Result<()> {
            self.1.notify_one();
            self.0.until_ended().await;
            Ok(())
        }
    }
    run(async || {
        let (meter, held) = (Rc::<Meter>::default(), held(None));
        let asked = Rc::<Notify>::default();
        let attached = Attached(held.grant.clone(), asked.clone());
        let dispatch = <attachment::Client as FromServer<Attached>>::from_server(Rc::new(attached));
        let counted = (meter.begin_object().unwrap(), None);
        let own = <attachment::Client as HasTypeId>::TYPE_ID;
        let client: attachment::Client =
            served(guard(dispatch, own, meter.clone(), counted, Rc::new(held.clone()), None, None));
        let waits = client.wait_request().send().promise;
        asked.notified().await;
        held.grant.finish(End::Revoked);
        assert_eq!(waits.await.map(drop).map_err(from_rpc).unwrap_err().code, Code::Revoked);
    });
}

#[test]
fn what_the_grant_does_not_let_through_is_denied_and_counts_for_nothing() {
    run(async || {
        let caveats = Caveats { rights: Rights::of([Right::Read]), ..Caveats::none() };
        let Setup { client, meter, .. } = guarded_with(Held { reach: Reach::of(&caveats), ..held(None) });
        let error = crash(&client, "panic").await.unwrap_err();
        assert_eq!(error.code, Code::Denied);
        assert!(error.message.contains("needs the root right") && error.id == "System.crash", "{error}");
        assert!(meter.is_idle());
    });
}

// Of the proofs: no method of the schema is without a test that it is refused. One that comes to be is tried here by itself.
#[test]
fn every_method_is_refused_without_its_right_and_let_through_with_it() {
    #[derive(Clone)]
    struct Anything(Rc<std::cell::Cell<usize>>);
    impl Server for Anything {
        fn dispatch_call(
            self,
            _: u64,
            _: u16,
            _: Params<any_pointer::Owned>,
            _: Results<any_pointer::Owned>,
        ) -> DispatchCallResult {
            self.0.set(self.0.get() + 1);
            DispatchCallResult::new(Promise::ok(()), false)
        }
        fn as_ptr(&self) -> usize {
            0
        }
    }
    run(async || {
        let sets = Right::ALL.map(|right| Rights::of([right]));
        for (method, rights) in METHODS.iter().flat_map(|method| sets.map(|rights| (method, rights))) {
            let caveats = Caveats { rights, ..Caveats::none() };
            let (meter, came): (Rc<Meter>, Rc<std::cell::Cell<usize>>) = Default::default();
            let held = Held { reach: Reach::of(&caveats), ..held(None) };
            let counted = (meter.begin_object().unwrap(), None);
            let object = guard(Anything(came.clone()), method.own, meter, counted, Rc::new(held), None, None);
            let client = capnp::capability::Client::new(object.into_client_hook());
            let call = client.new_call::<any_pointer::Owned, any_pointer::Owned>(method.interface, method.method, None);
            let answer = call.send().promise.await;
            let (may, name) = (rights.has(method.needs), method.name);
            assert_eq!(came.get(), usize::from(may), "{name} with {rights}");
            match answer.map(drop).map_err(from_rpc) {
                Ok(()) => assert!(may, "{name} with {rights}"),
                Err(error) => assert!(!may && error.code == Code::Denied && error.id == name, "{name}: {error}"),
            }
        }
    });
}

#[test]
fn what_is_asked_of_an_object_at_each_call_is_asked() {
    run(async || {
        let within = Rc::new(std::cell::Cell::new(true));
        let theirs = within.clone();
        let check = move || match theirs.get() {
            true => Ok(()),
            false => Err(Error::not_found("container", "web", "is out of reach")),
        };
        let Setup { client, .. } = guarded_with(Held { check: Some(Rc::new(check)), ..held(None) });
        crash(&client, "").await.unwrap();
        within.set(false);
        assert_eq!(crash(&client, "").await.unwrap_err().code, Code::NotFound);
    });
}

// What was let through and is done soon is done: it may itself be what takes the object out of reach.
#[test]
fn what_waits_by_an_object_ends_when_it_is_out_of_reach() {
    struct Attached;
    impl attachment::Server for Attached {
        async fn wait(self: Rc<Self>, _: attachment::WaitParams, _: attachment::WaitResults) -> capnp::Result<()> {
            std::future::pending().await
        }
    }
    run(async || {
        let left = Rc::<Notify>::default();
        let news = left.clone();
        let gone = move || -> futures::future::LocalBoxFuture<'static, Error> {
            let news = news.clone();
            Box::pin(async move {
                news.notified().await;
                Error::not_found("container", "web", "is out of reach")
            })
        };
        let held = Held { gone: Some(Rc::new(gone)), ..held(None) };
        let Setup { client, meter, .. } = guarded_with(held.clone());
        let mut goes_on = client.status_request().send().promise;
        let dispatch = <attachment::Client as FromServer<Attached>>::from_server(Rc::new(Attached));
        let counted = (meter.begin_object().unwrap(), None);
        let own = <attachment::Client as HasTypeId>::TYPE_ID;
        let attached: attachment::Client =
            served(guard(dispatch, own, meter.clone(), counted, Rc::new(held.clone()), None, None));
        let waits = attached.wait_request().send().promise;
        left.notify_one();
        let waits = tokio::time::timeout(Duration::from_secs(5), waits).await.expect("it ends");
        assert_eq!(waits.map(drop).map_err(from_rpc).unwrap_err().code, Code::NotFound);
        crash(&client, "").await.expect("it is asked at each call, and says nothing yet");
        assert!((&mut goes_on).now_or_never().is_none());
        held.grant.finish(End::Revoked);
        assert_eq!(goes_on.await.map(drop).map_err(from_rpc).unwrap_err().code, Code::Revoked);
    });
}

#[test]
fn one_call_too_many_is_refused_and_cuts_the_connection() {
    run(async || {
        let Setup { client, meter, .. } = guarded(None);
        let pending: Vec<_> = (0..256).map(|_| client.status_request().send()).collect();
        let refused = crash(&client, "").await.unwrap_err();
        assert_eq!(refused.code, Code::ResourceExhausted);
        tokio::time::timeout(Duration::from_secs(5), meter.until_cut()).await.expect("cut");
        drop(pending);
    });
}

#[test]
fn the_deadline_of_the_context_ends_a_call() {
    run(async || {
        let Setup { client, .. } = guarded(Some(Duration::from_millis(20)));
        let error = client.status_request().send().promise.await.map(drop).map_err(from_rpc).unwrap_err();
        assert_eq!(error.code, Code::DeadlineExceeded);
    });
}

#[test]
fn a_calls_context_stands_in_the_log() {
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (log, trace) = (Log::default(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    run(async || {
        let authority =
            Authority { correlation: Some("mine".into()), trace: Some(trace.into()), ..Authority::system() };
        let held = Held { authority, ..held(None) };
        let Setup { client, .. } = guarded_with(held);
        // The handler's own lines carry it too.
        crash(&client, "tell").await.unwrap();
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let told = text.lines().find(|line| line.contains("was told")).unwrap_or_else(|| panic!("{text}"));
    assert!(told.contains(trace) && told.contains("mine"), "{told}");
}

#[test]
fn objects_are_counted_while_they_live() {
    let meter: Rc<Meter> = Rc::default();
    let all: Vec<_> = (0..4096).map(|_| meter.begin_object().unwrap()).collect();
    assert!(meter.begin_object().is_none());
    drop(all);
    assert!(meter.begin_object().is_some());
}

// What streams is streamed through the guard as well: the generated flag must survive it.
#[test]
fn a_streaming_method_stays_one() {
    struct Sink;
    impl byte_stream::Server for Sink {
        async fn write(self: Rc<Self>, _: byte_stream::WriteParams) -> capnp::Result<()> {
            Err(to_rpc(Error::failed_precondition("stream", "", "is broken")))
        }
        async fn end(self: Rc<Self>, _: byte_stream::EndParams, _: byte_stream::EndResults) -> capnp::Result<()> {
            Ok(())
        }
    }
    run(async || {
        let meter: Rc<Meter> = Rc::default();
        let dispatch = <byte_stream::Client as FromServer<Sink>>::from_server(Rc::new(Sink));
        let counted = (meter.begin_object().unwrap(), None);
        let own = <byte_stream::Client as HasTypeId>::TYPE_ID;
        let object = guard(dispatch, own, meter.clone(), counted, Rc::new(held(None)), None, None);
        let client: byte_stream::Client = FromClientHook::new(object.into_client_hook());
        let _ = client.write_request().send().await;
        // Only a streaming call breaks its object for good.
        assert!(client.end_request().send().promise.await.is_err());
    });
}

/// `namespaces` fails, and not at once; it may have given something before.
struct Broken(Given);

/// What it had given.
#[derive(Clone, Copy, PartialEq)]
enum Given {
    Nothing,
    NoObject,
    Object,
}

impl root::Server for Broken {
    async fn namespaces(
        self: Rc<Self>,
        _: root::NamespacesParams,
        mut results: root::NamespacesResults,
    ) -> capnp::Result<()> {
        tokio::task::yield_now().await;
        if self.0 != Given::Nothing {
            let mut results = results.get();
            if self.0 == Given::Object {
                results.set_namespaces(capnp_rpc::new_future_client(std::future::pending()));
            }
        }
        Err(to_rpc(Error::not_found("thing", "lost", "does not exist")))
    }
}

// The client has let go of all that lies between the first handle and the last call when the daemon comes to it.
#[test]
fn what_fails_in_the_middle_of_a_chain_is_told_at_its_end() {
    run(async || {
        let meter: Rc<Meter> = Rc::default();
        let root = |reach, given| -> root::Client {
            let held = Held { reach, ..held(None) };
            let dispatch = <root::Client as FromServer<Broken>>::from_server(Rc::new(Broken(given)));
            let (counted, own) = ((meter.begin_object().unwrap(), None), <root::Client as HasTypeId>::TYPE_ID);
            served(guard(dispatch, own, meter.clone(), counted, Rc::new(held), None, None))
        };
        let end_of_chain = async |root: &root::Client| {
            let all = root.namespaces_request().send().pipeline.get_namespaces();
            let containers = all.get_request().send().pipeline.get_namespace().containers_request().send().pipeline;
            let one = containers.get_containers().get_request().send().pipeline.get_container();
            let end = one.info_request().send().promise;
            drop((all, one, containers));
            end.await.map(drop).map_err(from_rpc).unwrap_err()
        };
        let all = [Given::Nothing, Given::NoObject].map(|given| root(Reach::everything(), given));
        let less = root(Reach::of(&Caveats::none()), Given::Nothing);
        for _ in 0..10 {
            for all in &all {
                let error = end_of_chain(all).await;
                assert_eq!((error.code, &*error.id), (Code::NotFound, "lost"), "{error}");
            }
            let error = end_of_chain(&less).await;
            assert_eq!((error.code, &*error.id), (Code::Denied, "Root.namespaces"), "{error}");
            assert!(error.message.contains("needs the root right"), "{error}");
        }
        // What was given stays, and the connection with it.
        let given = root(Reach::everything(), Given::Object);
        for _ in 0..2 {
            let error = given.namespaces_request().send().promise.await.map(drop).map_err(from_rpc).unwrap_err();
            assert_eq!((error.code, &*error.id), (Code::NotFound, "lost"), "{error}");
        }
        drop(given);
        assert!(meter.is_idle());
    });
}
