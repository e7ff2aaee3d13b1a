//! Peers that lie, flood, and never read, on the main socket and on one that is a grant: their connection is cut, alone.
//! R, S and W are ids of SECURITY.md.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use capnp::any_pointer;
use capnp_rpc::{
    RpcSystem,
    rpc_capnp::{message, payload},
    rpc_twoparty_capnp::Side,
};
use cofferdam_client::{Client, GrantOptions, channel};
use cofferdam_integration::{Daemon, bounded, descriptors, pipe, until};
use cofferdam_types::{Code, Error};
use cofferdam_wire::{
    common_capnp::byte_stream,
    connect,
    container_capnp::{container, containers, log_sink},
    content_capnp::{blob, content, ingest},
    error::from_rpc,
    event_capnp::event_cursor,
    fdstream::{Fds, PARKED},
    gate_capnp::{gate, namespaces},
};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};

use crate::raw::{On, Raw, answered, bare, bootstrap, call, call_of, finish, naming, release, resolve, said};

/// By how much one client makes the daemon grow at most, in KiB: what it may keep (`daemon/src/server/meter.rs`), and as much
/// again for what is moved about.
const MOST: u64 = 96 << 10;
/// So long anybody else waits at most, on a machine that has other things to do.
const SOON: Duration = Duration::from_secs(10);

/// A daemon, and a socket of it that is a grant.
struct Host {
    daemon: Daemon,
    sockets: [PathBuf; 2],
}

impl Host {
    fn start(flags: &'static [&'static str]) -> Host {
        let daemon = Daemon::with_flags(flags);
        daemon.import_busybox();
        let directory = daemon.path().join("strange");
        let words = |text: &str| text.split(' ').map(str::to_owned).collect();
        let options = GrantOptions { rights: words("read write run"), ..GrantOptions::default() };
        bounded(async {
            let grant = daemon.open().await.grants().create(&options);
            grant.export(directory.to_str().unwrap()).await.unwrap();
        });
        let sockets = [daemon.socket(), directory.join("cofferdam.sock")];
        Host { daemon, sockets }
    }

    /// A blob of which a hundred streams are more than fits into memory.
    fn large_blob(&self) -> String {
        bounded(async {
            let file = tempfile::tempfile().unwrap();
            file.set_len(256 << 20).unwrap();
            let ingest = self.daemon.open().await.content().ingest("large", 0, "", "sha256");
            ingest.copy_fd(file.into()).await.unwrap();
            ingest.commit(0, "", &Default::default()).await.unwrap().to_string()
        })
    }

    /// In KiB.
    fn memory(&self) -> u64 {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.daemon.pid())).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Others are served, on both sockets.
    fn serves(&self, after: &str) {
        bounded(async {
            for socket in &self.sockets {
                let ask =
                    async { Client::connect(socket).await.unwrap().namespace(self.daemon.namespace()).info().await };
                let answer = tokio::time::timeout(SOON, ask).await;
                answer.unwrap_or_else(|_| panic!("nobody is served after {after}")).unwrap();
            }
        });
    }

    /// Tries something on both sockets: others are served meanwhile and then, and the daemon doesn't grow beyond a bound.
    fn bears(&self, what: &str, most: u64, attack: impl Fn(&Path)) {
        for socket in &self.sockets {
            let (before, sockets) = (self.memory(), sockets(self));
            let (peak, over) = (AtomicU64::new(before), AtomicBool::new(false));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        peak.fetch_max(self.memory(), Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
                let end = catch_unwind(AssertUnwindSafe(|| attack(socket)));
                over.store(true, Ordering::Relaxed);
                assert!(end.is_ok(), "{what} on {}", socket.display());
            });
            self.serves(what);
            until("the connection is gone", || (crate::hostile::sockets(self) <= sockets).then_some(()));
            let grown = peak.load(Ordering::Relaxed).saturating_sub(before);
            println!("{what} on {}: {grown} KiB", socket.display());
            assert!(grown <= most, "{what} on {}: the daemon grew by {grown} KiB", socket.display());
        }
    }
}

/// How many descriptors the daemon has open.
fn open(host: &Host) -> usize {
    descriptors(host.daemon.pid()).values().sum()
}

/// And how many of these are sockets.
fn sockets(host: &Host) -> usize {
    descriptors(host.daemon.pid()).get("socket").copied().unwrap_or_default()
}

/// Says all of it, again and again, until the daemon hangs up; `most` times at most.
fn until_cut(raw: &Raw, most: u32, mut say: impl FnMut(u32) -> Vec<u8>) {
    let reader = raw.drain();
    let mut from = 0;
    while from < most {
        let block: Vec<u8> = (from..most.min(from + 500)).flat_map(&mut say).collect();
        if !raw.send(&block) {
            break;
        }
        from += 500;
    }
    // That it was cut is for the reader to say.
    reader.join().expect("it is cut");
}

#[test]
fn w4_lies_about_ids_end_the_connection_that_tells_them() {
    let host = Host::start(&[]);
    let namespace = host.daemon.namespace().to_owned();
    // Whether the connection goes on: some are no lies, for one reason or other.
    let cases: Vec<(&str, bool, Vec<Vec<u8>>)> = vec![
        ("a question that was never asked is finished", true, vec![finish(99)]),
        ("twice", true, vec![finish(6), finish(6)]),
        ("what was never given is released", false, vec![release(77, 1)]),
        ("more often than it was given", false, vec![release(0, 200)]),
        ("so often that it is less than nothing", false, vec![release(0, u32::MAX)]),
        ("a question's number is used again", false, vec![bare(6, On::Gate(0), "Gate.hello")]),
        ("by a bootstrap", false, vec![bootstrap(6)]),
        ("an answer to no question", false, vec![said(|root| root.init_return().set_answer_id(0))]),
        ("a call on what was never given", false, vec![bare(50, On::Export(4000), "Gate.hello")]),
        ("a call on no answer", true, vec![bare(50, On::Answer(4000), "Gate.hello")]),
        ("a call on an answer that has nothing there", true, vec![bare(50, On::Answer(0), "Gate.hello")]),
        ("a promise that nobody knows", true, vec![resolve(9, |mut cap| cap.set_sender_hosted(10))]),
        ("that is nothing", false, vec![resolve(9, |mut cap| cap.set_none(()))]),
        ("what we don't do is said not to be done", false, {
            vec![said(|root| root.init_unimplemented().init_bootstrap().set_question_id(3))]
        }),
        ("and what was resolved to is released so", false, {
            vec![said(|root| root.init_unimplemented().init_resolve().init_cap().set_sender_hosted(4000))]
        }),
        ("an embargo that is none", false, {
            vec![said(|root| root.init_disembargo().get_context().set_receiver_loopback(7))]
        }),
        ("one on ours", false, {
            vec![said(|root| {
                let mut lift = root.init_disembargo();
                lift.reborrow().get_context().set_sender_loopback(7);
                lift.init_target().set_imported_cap(0);
            })]
        }),
        (
            "what only three have",
            true,
            vec![
                said(|root| root.init_provide().set_question_id(60)),
                said(|root| root.init_join().set_question_id(61)),
            ],
        ),
        ("results that are to stay", true, {
            vec![said(|root| {
                let mut call = root.init_call();
                call.set_question_id(50);
                answered(call.reborrow().init_target().init_promised_answer(), 0, &[]);
                call.get_send_results_to().set_yourself(());
            })]
        }),
        ("nothing at all", false, vec![said(|_| {})]),
        ("an end", false, vec![said(|root| root.init_abort().set_reason("so be it"))]),
        ("objects without end", false, {
            vec![call(50, On::Gate(0), "Gate.hello", |payload| {
                let mut table = payload.init_cap_table(60_000);
                (0..60_000).for_each(|n| table.reborrow().get(n).set_sender_hosted(n));
            })]
        }),
    ];
    for (what, goes_on, messages) in cases {
        host.bears(what, MOST, |socket| {
            let raw = Raw::connect(socket);
            raw.wait_for_an_event(&namespace);
            raw.send(&messages.concat());
            raw.send(&bootstrap(1000));
            assert_eq!(raw.until_answered(1000), goes_on);
        });
    }
}

/// Has the contents of a blob sent to a promise of one's own, which turns out to be `then`.
fn promised(raw: &Raw, namespace: &str, digest: &str, promises: u32, then: &[u8]) {
    use cofferdam_wire::{content_capnp::content, gate_capnp::namespaces};
    let way = [
        bootstrap(0),
        bare(1, On::Gate(0), "Gate.enter"),
        bare(2, On::Answer(1), "Root.namespaces"),
        call(3, On::Answer(2), "Namespaces.get", |mut payload| {
            payload.reborrow().get_content().init_as::<namespaces::get_params::Builder<'_>>().set_name(namespace);
        }),
        bare(4, On::Answer(3), "Namespace.content"),
        call(5, On::Answer(4), "Content.get", |mut payload| {
            payload.reborrow().get_content().init_as::<content::get_params::Builder<'_>>().set_digest(digest);
        }),
        call(6, On::Answer(5), "Blob.read", |payload| {
            let set = |content: capnp::any_pointer::Builder<'_>, nobody: byte_stream::Client| {
                content.init_as::<blob::read_params::Builder<'_>>().set_sink(nobody);
            };
            naming(payload, set, promises, |mut table| {
                (0..promises).for_each(|n| table.reborrow().get(n).set_sender_promise(5 + n));
            });
        }),
    ];
    assert!(raw.send(&[&way.concat(), then].concat()));
}

#[test]
fn w4_promises_that_are_promises_lead_nobody_round() {
    let host = Host::start(&[]);
    let namespace = host.daemon.namespace().to_owned();
    let digest = bounded(async {
        let blobs = host.daemon.open().await.content().list::<&str>(&[]).all().await.unwrap();
        blobs.iter().max_by_key(|blob| blob.size).unwrap().digest.to_string()
    });
    let to_promise = |from, to| resolve(from, |mut cap| cap.set_sender_promise(to));
    let to_object = |from, to| resolve(from, |mut cap| cap.set_sender_hosted(to));
    let cases: Vec<(&str, u32, Vec<u8>)> = vec![
        ("itself", 1, to_promise(5, 5)),
        ("itself, as an object", 1, to_object(5, 5)),
        ("another and that the first", 2, [to_promise(5, 6), to_promise(6, 5)].concat()),
        ("the same as objects", 2, [to_object(5, 6), to_object(6, 5)].concat()),
        ("a chain", 1, (5..1000).flat_map(|n| to_promise(n, n + 1)).collect()),
    ];
    for (what, promises, then) in cases {
        host.bears(&format!("a promise that is {what}"), MOST, |socket| {
            let raw = Raw::connect(socket);
            promised(&raw, &namespace, &digest, promises, &then);
            // It is written to all the same, as the promise that it stays.
            let written = raw.until(|message| matches!(message, message::Call(Ok(_))));
            assert!(written, "the connection is cut");
            raw.send(&said(|root| {
                let mut answer = root.init_return();
                answer.set_answer_id(0);
                answer.init_results();
            }));
            raw.send(&bootstrap(1000));
            assert!(raw.until_answered(1000));
        });
    }
}

#[test]
fn w5_floods_of_calls_on_an_answer_that_is_to_come() {
    let host = Host::start(&[]);
    let namespace = host.daemon.namespace().to_owned();
    let waiting = |socket: &Path| {
        let raw = Raw::connect(socket);
        raw.wait_for_an_event(&namespace);
        raw
    };
    host.bears("calls that wait", MOST, |socket| {
        until_cut(&waiting(socket), 100_000, |n| bare(10 + n, On::Answer(6), "Gate.hello"));
    });
    host.bears("calls that are given up", MOST, |socket| {
        let one = |n| [bare(10 + n, On::Answer(6), "Gate.hello"), finish(10 + n)].concat();
        until_cut(&waiting(socket), 1_000_000, one);
    });
    host.bears("the answer as an argument", MOST, |socket| {
        until_cut(&waiting(socket), 20_000, |n| {
            let named = call(10 + n, On::Gate(0), "Gate.hello", |payload| {
                let mut table = payload.init_cap_table(200);
                (0..200).for_each(|n| answered(table.reborrow().get(n).init_receiver_answer(), 6, &[0]));
            });
            [named, finish(10 + n)].concat()
        });
    });
    // Each on the one before; then all of it falls at once. Those that are too high are told so.
    let tower = |raw: &Raw, from: u32| {
        let calls: Vec<u8> = (0..1000).flat_map(|n| bare(from + n, On::Answer(from + n - 1), "Gate.hello")).collect();
        assert!(raw.send(&calls));
        raw.send(&bootstrap(5000));
        assert!(raw.until_answered(5000));
    };
    host.bears("a tower that is left", MOST, |socket| tower(&waiting(socket), 7));
    host.bears("a tower that falls", MOST, |socket| {
        let raw = waiting(socket);
        tower(&raw, 7);
        bounded(async {
            let events = host.daemon.open().await.events();
            events.publish("/test/falls", &serde_json::json!({})).await.unwrap();
        });
        // The lowest of them; what it is on has nothing for it.
        assert!(raw.until_answered(7));
    });
}

#[test]
fn w5_answers_that_nobody_finishes() {
    let host = Host::start(&[]);
    let flood = |what: &str, one: &dyn Fn(u32) -> Vec<u8>| {
        host.bears(what, MOST, |socket| {
            let raw = Raw::connect(socket);
            assert!(raw.send(&bootstrap(0)) && raw.until_answered(0));
            until_cut(&raw, 1_000_000, |n| one(10 + n));
        });
    };
    flood("bootstraps", &bootstrap);
    flood("calls that fail", &|n| call_of(n, On::Gate(0), (1, 1), |_| {}));
    flood("objects", &|n| bare(n, On::Gate(0), "Gate.enter"));
}

#[test]
fn r5_who_never_reads_is_not_read_from() {
    let host = Host::start(&[]);
    // Until nothing goes through any more.
    let flood = |raw: &Raw| {
        assert!(raw.send(&bootstrap(0)));
        let block: Vec<u8> = (0..1000).flat_map(|n| bare(1 + n, On::Gate(0), "Gate.hello")).collect();
        let block = [block, (0..1000).flat_map(|n| finish(1 + n)).collect()].concat();
        assert!((0..2000).any(|_| !raw.send(&block)), "all of it was read");
    };
    host.bears("calls whose answers nobody reads", MOST, |socket| flood(&Raw::connect(socket)));
    host.bears("eight of these", 3 * MOST, |socket| {
        std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| flood(&Raw::connect(socket))))));
    });
}

// Who asks for streams and takes nothing of them has no more read for him than a window of each, in his own memory.
#[test]
fn r5_streams_that_nobody_takes_wait_and_others_of_the_connection_dont() {
    let host = Host::start(&[]);
    let (namespace, digest) = (host.daemon.namespace().to_owned(), host.large_blob());
    host.bears("streams that nobody takes", MOST, |socket| {
        bounded(async {
            let client = Client::connect(socket).await.unwrap();
            let blob = client.namespace(&namespace).content().get(&digest);
            let untaken: Vec<_> = (0..100)
                .map(|_| {
                    let (sink, heard) = channel();
                    (blob.read(0, 0, &sink), sink, heard)
                })
                .collect();
            let (sink, mut heard) = channel();
            let reading = blob.read(0, 1 << 20, &sink);
            drop(sink);
            let mut got = 0;
            while let Some(chunk) = heard.next().await {
                got += chunk.len();
            }
            reading.await.unwrap();
            assert_eq!(got, 1 << 20);
            drop(untaken);
        });
    });
}

// And who doesn't even read what is sent to him, whatever it is that he asked for.
#[test]
fn r5_streams_of_who_never_reads_have_a_bound() {
    let host = Host::start(&[]);
    let (namespace, digest) = (host.daemon.namespace().to_owned(), host.large_blob());
    bounded(async {
        let mut request =
            host.daemon.run("loud", ["sh", "-c", "yes 'a line of a log that has many' | head -c 8000000"]);
        request.log = true;
        request.container.remove_on_exit = false;
        assert_eq!(host.daemon.client().await.run(request).unwrap().wait().await.unwrap().status, 0);
        let (events, payload) =
            (host.daemon.open().await.events(), serde_json::json!({ "text": "x".repeat(15 << 10) }));
        for _ in 0..200 {
            events.publish("/test/large", &payload).await.unwrap();
        }
    });
    let name = |mut payload: payload::Builder<'_>| {
        payload.reborrow().get_content().init_as::<namespaces::get_params::Builder<'_>>().set_name(&namespace);
    };
    let blob = |mut payload: payload::Builder<'_>| {
        payload.reborrow().get_content().init_as::<content::get_params::Builder<'_>>().set_digest(&digest);
    };
    let loud = |mut payload: payload::Builder<'_>| {
        payload.reborrow().get_content().init_as::<containers::get_params::Builder<'_>>().set_id("loud");
    };
    let all = |mut payload: payload::Builder<'_>| {
        payload.reborrow().get_content().init_as::<event_cursor::next_params::Builder<'_>>().set_max(100);
    };
    let bytes = |n: u32, payload: payload::Builder<'_>| {
        let set = |content: any_pointer::Builder<'_>, sink| {
            content.init_as::<blob::read_params::Builder<'_>>().set_sink(sink)
        };
        naming::<byte_stream::Client>(payload, set, 1, |table| table.get(0).set_sender_hosted(n));
    };
    let records = |n: u32, payload: payload::Builder<'_>| {
        let set = |content: any_pointer::Builder<'_>, sink| {
            content.init_as::<container::logs_params::Builder<'_>>().set_sink(sink)
        };
        naming::<log_sink::Client>(payload, set, 1, |table| table.get(0).set_sender_hosted(n));
    };
    let way = [
        bootstrap(0),
        bare(1, On::Gate(0), "Gate.enter"),
        bare(2, On::Answer(1), "Root.namespaces"),
        call(3, On::Answer(2), "Namespaces.get", name),
        bare(4, On::Answer(3), "Namespace.content"),
        call(5, On::Answer(4), "Content.get", blob),
        bare(6, On::Answer(3), "Namespace.containers"),
        call(7, On::Answer(6), "Containers.get", loud),
        bare(8, On::Answer(3), "Namespace.events"),
    ];
    let flood = |what: &str, many: u32, ask: &dyn Fn(u32) -> Vec<u8>| {
        host.bears(what, MOST, |socket| {
            let raw = Raw::connect(socket);
            assert!(raw.send(&way.concat()) && raw.until_answered(7));
            assert!(raw.send(&(100..100 + many).flat_map(ask).collect::<Vec<_>>()));
            let mut block = vec![0; 100 << 10];
            until("nothing more goes through", || {
                let there = recv(raw.stream().as_raw_fd(), &mut block, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
                there.is_ok_and(|there| there == block.len()).then_some(())
            });
            // What it goes on with now it does while others are served.
            (0..20).for_each(|_| host.serves(what));
        });
    };
    flood("blobs that nobody reads", 200, &|n| call(n, On::Answer(5), "Blob.read", |payload| bytes(n, payload)));
    flood("logs that nobody reads", 200, &|n| call(n, On::Answer(7), "Container.logs", |payload| records(n, payload)));
    // As many subscriptions as there may be.
    flood("events that nobody reads", 60, &|n| {
        let from = bare(n, On::Answer(8), "Events.subscribe");
        [from, call(1000 + n, On::Answer(n), "EventCursor.next", all)].concat()
    });
}

// What many connections of one grant keep together is bounded, not only what each does.
#[test]
fn r6_the_connections_of_a_grant_have_a_share() {
    let host = Host::start(&["--connections", "512"]);
    let namespace = host.daemon.namespace().to_owned();
    let socket = &host.sockets[1];
    let before = host.memory();
    let raws: Vec<_> = (0..48).map(|_| Raw::connect(socket)).collect();
    let text = "x".repeat(800 << 10);
    let mut cut = 0;
    for raw in &raws {
        raw.wait_for_an_event(&namespace);
        let large = |n: u32| {
            call(10 + n, On::Answer(6), "Gate.hello", |mut payload| {
                payload.reborrow().get_content().init_as::<gate::hello_params::Builder<'_>>().set_name(&text);
            })
        };
        // Within its own budget.
        for n in 0..16 {
            if !raw.send(&large(n)) {
                break;
            }
        }
        raw.send(&bootstrap(1000));
        cut += usize::from(!raw.until_answered(1000));
    }
    let grown = host.memory().saturating_sub(before);
    // 600 MiB were sent; 64 the grant may have, and a quarter each is nobody's.
    println!("{cut} of {} were cut, and the daemon grew by {grown} KiB", raws.len());
    assert!(cut >= 40, "{cut} were cut");
    assert!(grown <= 128 << 10, "the daemon grew by {grown} KiB");
    host.serves("a crowd of one grant");
    // The operator has a budget for each connection, and none is cut for the sake of another.
    let own = Raw::connect(&host.sockets[0]);
    own.wait_for_an_event(&namespace);
    drop(raws);
    until("they are counted no longer", || {
        let raw = Raw::connect(socket);
        raw.wait_for_an_event(&namespace);
        let one = call(10, On::Answer(6), "Gate.hello", |mut payload| {
            payload.reborrow().get_content().init_as::<gate::hello_params::Builder<'_>>().set_name(&text);
        });
        raw.send(&[one, bootstrap(1000)].concat());
        raw.until_answered(1000).then_some(())
    });
}

#[test]
fn r6_ten_thousand_connections_that_idle() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // Half of them are for connections, in the daemon too, which has the same limit.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let many = (hard as usize / 2 - 100).min(10_000);
    assert!(many > 2000, "this host lets nobody have more than {hard} descriptors");
    let host = Host::start(&["--connections", "12000"]);
    host.serves("nothing");
    let before = host.memory();
    let idle: Vec<Raw> = (0..many).map(|_| Raw::connect(&host.daemon.socket())).collect();
    // All have been taken, and each knows that it was.
    idle.iter().for_each(|raw| assert!(raw.send(&bootstrap(0))));
    idle.iter().for_each(|raw| assert!(raw.until_answered(0)));
    let each = host.memory().saturating_sub(before) as f64 / many as f64;
    println!("{each:.1} KiB each");
    assert!(each <= 24.0, "each connection takes {each:.1} KiB");
    host.serves("ten thousand connections");
    drop(idle);
    until("they are gone", || (open(&host) < many).then_some(()));
    host.serves("their end");
}

/// A connection by which descriptors go too.
async fn with_descriptors(socket: &Path) -> (gate::Client, Fds) {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (network, fds) = connect::network(stream, Side::Client, connect::MESSAGE);
    let mut system = RpcSystem::new(Box::new(network), None);
    let gate = system.bootstrap(Side::Server);
    tokio::task::spawn_local(system);
    (gate, fds)
}

#[test]
fn descriptors_of_the_wrong_kind_guessed_and_used_twice() {
    let host = Host::start(&[]);
    let namespace = host.daemon.namespace().to_owned();
    let file = |path: &str, flags: i32| {
        use std::os::unix::fs::OpenOptionsExt as _;
        let opened = File::options().read(true).custom_flags(flags).open(path).unwrap();
        OwnedFd::from(opened)
    };
    // SAFETY: each of these makes a descriptor that nobody else has.
    let own = |fd: i32| unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    for socket in &host.sockets {
        bounded(async {
            let (gate, fds) = with_descriptors(socket).await;
            let root = gate.enter_request().send().pipeline.get_root();
            let mut get = root.namespaces_request().send().pipeline.get_namespaces().get_request();
            get.get().set_name(&namespace);
            let content = get.send().pipeline.get_namespace().content_request().send().pipeline.get_content();
            let ingest = |reference: &str| {
                let mut request = content.ingest_request();
                request.get().set_reference(reference);
                request.send().pipeline.get_ingest()
            };
            let take = async |ingest: &ingest::Client, number: u32| -> Result<u64, Error> {
                let mut request = ingest.take_fd_request();
                request.get().set_source(number);
                let answer = request.send().promise.await.map_err(from_rpc)?;
                Ok(answer.get().unwrap().get_offset())
            };
            let one = ingest("one");
            for guessed in [0, 1, 77, u32::MAX] {
                assert_eq!(take(&one, guessed).await.unwrap_err().code, Code::InvalidArgument);
            }
            let (_, writes) = pipe();
            // SAFETY: none of them takes a pointer that is looked at.
            let (epoll, event) = unsafe { (libc::epoll_create1(libc::O_CLOEXEC), libc::eventfd(0, libc::EFD_CLOEXEC)) };
            let listener = std::os::unix::net::UnixListener::bind(host.daemon.path().join("listens")).unwrap();
            for wrong in [
                file("/", 0),
                file("/etc/passwd", libc::O_PATH),
                File::options().write(true).open("/dev/null").unwrap().into(),
                writes,
                own(epoll),
                own(event),
                listener.into(),
                file("/proc/self/ns/net", 0),
            ] {
                let what = std::fs::read_link(format!("/proc/self/fd/{}", wrong.as_raw_fd())).unwrap();
                let number = fds.push(wrong);
                let taking = tokio::time::timeout(SOON, take(&one, number)).await;
                let error = taking.unwrap_or_else(|_| panic!("{what:?} is waited for"));
                let error = error.expect_err(&format!("{what:?} was read"));
                assert!(matches!(error.code, Code::InvalidArgument | Code::FailedPrecondition), "{what:?}: {error}");
            }
            // And a right one after all that: once.
            let right = fds.push(file("/etc/passwd", 0));
            let two = ingest("two");
            assert!(take(&two, right).await.unwrap() > 0);
            assert_eq!(take(&two, right).await.unwrap_err().code, Code::InvalidArgument);
            std::fs::remove_file(host.daemon.path().join("listens")).unwrap();
            for reference in ["one", "two"] {
                let mut request = content.abort_request();
                request.get().set_reference(reference);
                request.send().promise.await.unwrap();
            }
        });
        // A crowd with each byte, on a connection that never names one.
        let before = open(&host);
        let raw = Raw::connect(socket);
        let null = file("/dev/null", 0);
        let crowd = vec![null.as_raw_fd(); 253];
        let message = bootstrap(0);
        for byte in &message {
            let iov = [std::io::IoSlice::new(std::slice::from_ref(byte))];
            sendmsg::<()>(
                raw.stream().as_raw_fd(),
                &iov,
                &[ControlMessage::ScmRights(&crowd)],
                MsgFlags::empty(),
                None,
            )
            .unwrap();
        }
        assert!(raw.until_answered(0));
        let there = open(&host);
        assert!(there <= before + PARKED + 8, "{there} are open, and {before} were");
        drop(raw);
        until("they go with the connection", || (open(&host) <= before + 2).then_some(()));
        host.serves("descriptors");
    }
}

// Each connection within its own bound, and all of a grant's together within theirs: who sends one more is told, and cut.
#[test]
fn w5_descriptors_that_wait_have_a_bound_over_all_connections() {
    let host = Host::start(&["--connections", "256"]);
    let (most, each) = (256, 60);
    let before = open(&host);
    let file = || OwnedFd::from(File::open("/etc/passwd").unwrap());
    let fill = async |socket: &Path| {
        let (gate, fds) = with_descriptors(socket).await;
        for _ in 0..each {
            fds.push(file());
        }
        let mut last = Ok(());
        // Behind a few more messages all of them have gone over.
        for _ in 0..8 {
            last = last.and(gate.hello_request().send().promise.await.map(drop).map_err(from_rpc));
        }
        (gate, last)
    };
    let held = bounded(async {
        let (mut held, mut refused) = (Vec::new(), 0);
        for _ in 0..8 {
            let (gate, answered) = fill(&host.sockets[1]).await;
            if let Err(error) = answered {
                assert_eq!(error.code, Code::ResourceExhausted, "{error}");
                refused += 1;
            }
            held.push(gate);
        }
        assert!(refused >= held.len() - most / each, "{refused} were refused");
        let there = open(&host) - before;
        assert!(there <= most + held.len() + 8, "{there} are open");
        let (_operator, answered) = fill(&host.sockets[0]).await;
        answered.expect("the operator has a part of his own");
        held
    });
    drop(held);
    until("they go with the connections", || (open(&host) <= before + 8).then_some(()));
    bounded(async { fill(&host.sockets[1]).await.1.expect("there is room again") });
}

// S3: the kernel says at every accept who is there, and what he may not is denied to him alone.
#[test]
fn s3_each_peer_of_the_daemon_is_known_by_the_kernel() {
    use std::os::unix::fs::PermissionsExt as _;
    let host = Host::start(&[]);
    let socket = host.daemon.socket();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let as_user = |uid: u32| {
        let socket = socket.clone();
        let connect = move || {
            // Of this thread alone.
            // SAFETY: no pointers.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }, 0);
            UnixStream::connect(socket).unwrap()
        };
        std::thread::spawn(connect).join().unwrap()
    };
    bounded(async {
        for round in 0..3 {
            for (uid, may) in [(0, true), (4321, false), (0, true), (1, false)] {
                let stream = as_user(uid);
                stream.set_nonblocking(true).unwrap();
                let stream = tokio::net::UnixStream::from_std(stream).unwrap();
                let (network, _fds) = connect::network(stream, Side::Client, connect::MESSAGE);
                let mut system = RpcSystem::new(Box::new(network), None);
                let gate: gate::Client = system.bootstrap(Side::Server);
                tokio::task::spawn_local(system);
                let answer = gate.enter_request().send().promise.await.map(drop).map_err(from_rpc);
                match answer {
                    Ok(()) => assert!(may, "user {uid} in round {round}"),
                    Err(error) => assert!(!may && error.code == Code::Denied, "user {uid}: {error}"),
                }
            }
        }
    });
}
