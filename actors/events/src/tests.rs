//! The exchange tests of the reference (section 14.3) and what it does not have: history, crashes, slow readers.

use std::{
    fs,
    future::Future,
    time::{Duration, Instant},
};

use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{Metadata, records};
use cofferdam_types::{Authority, Code, Event, Fault, Filter, Labels, Namespace, Result, Timestamp};
use futures::FutureExt;
use serde_json::json;

use super::*;

/// The first event of a fresh daemon: the default namespace.
const BASE: u64 = 1;

struct Rig {
    dir: tempfile::TempDir,
    kernel: Kernel,
    meta: Metadata,
    events: Events,
    ns: Namespace,
}

fn small() -> Retention {
    Retention { segment: 2048, ..RETENTION }
}

impl Rig {
    async fn start(dir: tempfile::TempDir, retention: Retention) -> Rig {
        let kernel = Kernel::new().unwrap();
        let meta = Metadata::start(&kernel, Placement::Own, &dir.path().join("meta.redb")).unwrap();
        let root = dir.path().join("events");
        fs::create_dir_all(&root).unwrap();
        let root = fs::File::open(&root).unwrap().into();
        let events = Events::start(&kernel, Placement::Shared("test"), meta.clone(), root, retention).unwrap();
        kernel.ready().await.unwrap();
        Rig { dir, kernel, meta, events, ns: Namespace::default_namespace() }
    }

    async fn restart(self, between: impl FnOnce(&std::path::Path)) -> Rig {
        self.kernel.stop().await;
        let Rig { dir, kernel, meta, events, .. } = self;
        drop((kernel, meta, events));
        between(dir.path());
        Rig::start(dir, small()).await
    }

    async fn publish(&self, topic: &str, id: &str) {
        let event = Event::new(&self.ns, topic, json!({ "id": id }));
        let sequence = self.events.forward(&Authority::system(), event).await.unwrap();
        assert_eq!(sequence, self.events.last());
    }

    /// `count` events in one commit.
    async fn publish_many(&self, count: u64) {
        let ns = self.ns.clone();
        let emit = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            (0..count)
                .try_for_each(|n| records::events::emit(tx, Event::new(&ns, "/many", json!({ "id": n.to_string() }))))
        };
        self.meta.write(&Authority::system(), emit).await.unwrap();
    }

    fn outbox(&self) -> usize {
        records::events::outbox_after(&self.meta.read().unwrap(), 0, usize::MAX).unwrap().len()
    }

    fn follow(&self, after: u64, filters: &[&str]) -> Subscription {
        self.events.subscribe(after, None, Filter::any(filters).unwrap()).unwrap()
    }
}

fn run<F: Future<Output = Rig>>(test: impl FnOnce(Rig) -> F) {
    actix_rt::System::new().block_on(async {
        let rig = Rig::start(tempfile::tempdir().unwrap(), small()).await;
        assert_eq!(rig.events.last(), BASE);
        let rig = test(rig).await;
        rig.kernel.stop().await;
    });
}

/// What the subscription has ready, without waiting for more than a hop to the actor: sequences, and gaps.
async fn drain(subscription: &mut Subscription, until: u64, max: usize) -> (Vec<u64>, Vec<(u64, u64)>) {
    let (mut seen, mut gaps) = (Vec::new(), Vec::new());
    while subscription.position() < until {
        match subscription.next(max).await.unwrap() {
            Batch::Events(events) => {
                assert!(!events.is_empty() && events.len() <= max);
                seen.extend(events.iter().map(|event| event.sequence));
            }
            Batch::Gap { from, to } => gaps.push((from, to)),
        }
    }
    (seen, gaps)
}

async fn ids(subscription: &mut Subscription, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let Batch::Events(events) = subscription.next(count - ids.len()).await.unwrap() else { panic!("gap") };
        ids.extend(events.iter().map(|event| event.payload["id"].as_str().unwrap().to_owned()));
    }
    ids
}

// TestExchangeBasic.
#[test]
fn two_subscribers_see_three_events_in_order() {
    run(|rig| async move {
        let (mut one, mut two) = (rig.follow(BASE, &[]), rig.follow(BASE, &[]));
        assert!(one.next(10).now_or_never().is_none(), "nothing yet");
        for id in ["a", "b", "c"] {
            rig.publish("/test", id).await;
        }
        assert_eq!(ids(&mut one, 3).await, ["a", "b", "c"]);
        assert_eq!(ids(&mut two, 3).await, ["a", "b", "c"]);
        assert_eq!((one.position(), rig.events.last()), (BASE + 3, BASE + 3));
        assert!(one.next(10).now_or_never().is_none(), "and no more");
        rig
    });
}

// TestExchangeFilters.
#[test]
fn filters() {
    run(|rig| async move {
        let all = [("/tasks/start", "alpha"), ("/tasks/exit", "alpha"), ("/images/create", "beta"), ("/test", "gamma")];
        for (topic, id) in all {
            rig.publish(topic, id).await;
        }
        for (filters, wanted) in [
            (&[][..], &[1, 2, 3, 4][..]),
            (&[r#"topic=="/test""#], &[4]),
            (&[r#"topic=="/tasks/exit""#], &[2]),
            (&["event.id==alpha"], &[1, 2]),
            (&["event.id==gamma", r#"topic=="/images/create""#], &[3, 4]),
            (&[r#"topic~="^/tasks/""#], &[1, 2]),
            (&["topic~=|^/tasks/|"], &[1, 2]),
            (&[r#"topic=="/tasks/start""#, r#"topic=="/tasks/exit""#], &[1, 2]),
            (&[r#"topic=="/tasks/exit",event.id==alpha"#], &[2]),
            (&["namespace==default,event.id==beta"], &[3]),
            (&["namespace==other"], &[]),
            (&["event.absent"], &[]),
        ] {
            let mut subscription = rig.follow(BASE, filters);
            let mut seen = Vec::new();
            while let Some(batch) = subscription.next(1).now_or_never() {
                let Batch::Events(events) = batch.unwrap() else { panic!("gap") };
                seen.extend(events.iter().map(|event| event.sequence - BASE));
            }
            assert_eq!((seen.as_slice(), subscription.position()), (wanted, BASE + 4), "{filters:?}");
        }
        rig
    });
}

// TestExchangeValidateTopic, for publish and forward alike, and what else they refuse.
#[test]
fn what_clients_publish_is_checked() {
    run(|rig| async move {
        let auth = Authority::system();
        let code = |result: Result<u64>| result.err().map(|error| error.code);
        for (topic, wanted) in [
            ("/test", None),
            ("/test/test", None),
            ("test", Some(Code::InvalidArgument)),
            ("/", Some(Code::InvalidArgument)),
            ("/a//b", Some(Code::InvalidArgument)),
        ] {
            assert_eq!(code(rig.events.publish(&auth, &rig.ns, topic, json!({})).await), wanted, "{topic}");
            assert_eq!(code(rig.events.forward(&auth, Event::new(&rig.ns, topic, json!({}))).await), wanted, "{topic}");
        }
        for own in ["/tasks/exit", "/content", "/images/create"] {
            assert_eq!(code(rig.events.publish(&auth, &rig.ns, own, json!({})).await), Some(Code::Denied), "{own}");
        }
        let event = Event::new(&rig.ns, "/t", json!({}));
        let timeless = Event { timestamp: Timestamp(0), ..event.clone() };
        assert_eq!(code(rig.events.forward(&auth, timeless).await), Some(Code::InvalidArgument));
        let nowhere = Event { namespace: Namespace::new("nowhere").unwrap(), ..event.clone() };
        assert_eq!(code(rig.events.forward(&auth, nowhere).await), Some(Code::NotFound));
        for payload in [json!([1]), json!({ "x": "y".repeat(20_000) })] {
            let event = Event { payload, ..event.clone() };
            assert_eq!(code(rig.events.forward(&auth, event).await), Some(Code::InvalidArgument));
        }
        let past = Event { timestamp: Timestamp(5), sequence: 77, ..event };
        rig.events.forward(&auth, past).await.unwrap();
        let Batch::Events(events) = rig.follow(BASE + 4, &[]).next(10).await.unwrap() else { panic!("gap") };
        assert_eq!((events.len(), events[0].sequence, events[0].timestamp), (1, BASE + 5, Timestamp(5)));
        let mut now = rig.follow(u64::MAX, &[]);
        assert!(now.next(1).now_or_never().is_none());
        assert_eq!(rig.events.subscribe(BASE + 6, None, Filter::everything()).err().unwrap().code, Code::OutOfRange);
        rig
    });
}

#[test]
fn a_scope_hides_other_namespaces() {
    run(|rig| async move {
        let other = Namespace::new("other").unwrap();
        let made = other.clone();
        let create =
            move |tx: &mut cofferdam_metadata::Tx<'_>| records::namespaces::create(tx, &made, &Labels::new()).map(drop);
        rig.meta.write(&Authority::system(), create).await.unwrap();
        let from = rig.events.last();
        rig.publish("/test", "ours").await;
        rig.events.publish(&Authority::system(), &other, "/test", json!({"id": "theirs"})).await.unwrap();
        let mut scoped = rig.events.subscribe(from, Some(other), Filter::parse(r#"topic=="/test""#).unwrap()).unwrap();
        assert_eq!(ids(&mut scoped, 1).await, ["theirs"]);
        assert_eq!(ids(&mut rig.follow(from, &[]), 2).await, ["ours", "theirs"]);
        rig
    });
}

// From the ring, the outbox and the journal, in blocks of any size, with and without a restart in between.
#[test]
fn history_is_whole_wherever_it_lies() {
    run(|mut rig| async move {
        rig.publish_many(700).await;
        assert_eq!(rig.events.settle().await.unwrap(), BASE + 700);
        assert_eq!(rig.outbox(), 0, "trimmed");
        rig.publish_many(1500).await;
        assert_eq!(rig.outbox(), 1500);
        for restarts in 0..3 {
            let last = rig.events.last();
            for (after, max) in [(0, 100), (0, 5000), (650, 7), (700, 100), (1200, 100), (2199, 1), (0, 1)] {
                let (seen, gaps) = drain(&mut rig.follow(after, &[]), last, max).await;
                assert_eq!(gaps, []);
                assert!(seen.iter().copied().eq(after + 1..=last), "{restarts} {after} {max}");
            }
            let mut rare = rig.follow(0, &["event.id==555"]);
            assert_eq!(ids(&mut rare, 2).await, ["555", "555"]);
            rig = rig.restart(|_| ()).await;
            assert_eq!(rig.events.last(), last);
            if restarts == 1 {
                rig.events.settle().await.unwrap();
            }
            rig.publish("/after", "x").await;
        }
        rig
    });
}

// What clients publish takes many times its bytes in memory, where it is many small things. All of it comes all the same.
#[test]
fn large_events_leave_the_ring_early_and_are_read_in_small_blocks() {
    run(|mut rig| async move {
        let ns = rig.ns.clone();
        let emit = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            let large = json!({ "many": vec![1; 8000], "text": "x".repeat(8000) });
            (0..400).try_for_each(|_| records::events::emit(tx, Event::new(&ns, "/large", large.clone())))
        };
        rig.meta.write(&Authority::system(), emit.clone()).await.unwrap();
        rig.events.settle().await.unwrap();
        rig.meta.write(&Authority::system(), emit).await.unwrap();
        for restart in [false, true] {
            let last = rig.events.last();
            for after in [0, BASE + 300, BASE + 700] {
                let mut follows = rig.follow(after, &[]);
                let (seen, gaps) = drain(&mut follows, last, 100).await;
                assert_eq!(gaps, []);
                assert!(seen.iter().copied().eq(after + 1..=last), "{restart} {after}");
            }
            let (events, bytes) = rig.events.0.ring.kept();
            // At a start it has what was not moved into the journal by then, which is all of it or nothing.
            let least = usize::from(!restart);
            assert!((least..=40).contains(&events) && bytes <= 8 << 20, "{events} of {bytes} bytes");
            if !restart {
                rig = rig.restart(|_| ()).await;
            }
        }
        // One that is larger than all that is kept.
        let ns = rig.ns.clone();
        let emit = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            records::events::emit(tx, Event::new(&ns, "/large", json!({ "many": vec![0; 400_000] })))
        };
        rig.meta.write(&Authority::system(), emit).await.unwrap();
        let last = rig.events.last();
        assert_eq!(drain(&mut rig.follow(last - 2, &[]), last, 100).await.0, [last - 1, last]);
        assert_eq!(rig.events.0.ring.kept().0, 1);
        rig
    });
}

// The crash comes after the journal has the events and before the outbox is trimmed, or tears the journal's tail.
#[test]
fn a_crash_while_moving_loses_nothing_and_doubles_nothing() {
    run(|mut rig| async move {
        for cut in [0, 1, 17, 100, 300] {
            let from = rig.events.settle().await.unwrap();
            rig.publish_many(20).await;
            let waiting = records::events::outbox_after(&rig.meta.read().unwrap(), 0, 100).unwrap();
            assert_eq!(waiting.len(), 20);
            rig = rig
                .restart(|dir| {
                    let dir = dir.join("events");
                    let open = || fs::File::open(&dir).unwrap().into();
                    let journal = journal::Journal::open(open(), RETENTION, u64::MAX, 0).unwrap();
                    journal.append(&waiting).unwrap();
                    let newest = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
                    let file = fs::File::options().write(true).open(newest).unwrap();
                    file.set_len(file.metadata().unwrap().len() - cut).unwrap();
                })
                .await;
            let last = from + 20;
            let (seen, gaps) = drain(&mut rig.follow(0, &[]), last, 9).await;
            assert!(seen.into_iter().eq(1..=last) && gaps.is_empty(), "cut {cut}");
            assert_eq!(rig.events.settle().await.unwrap(), last);
            assert_eq!(rig.outbox(), 0);
            let (seen, gaps) = drain(&mut rig.follow(0, &[]), last, 9).await;
            assert!(seen.into_iter().eq(1..=last) && gaps.is_empty(), "cut {cut}");
        }
        rig
    });
}

#[test]
fn a_reader_slower_than_retention_gets_a_gap_and_goes_on() {
    let tiny = Retention { bytes: 8192, segment: 1024, ..RETENTION };
    actix_rt::System::new().block_on(async {
        let rig = Rig::start(tempfile::tempdir().unwrap(), tiny).await;
        let mut slow = rig.follow(BASE, &[]);
        rig.publish("/test", "seen").await;
        assert_eq!(ids(&mut slow, 1).await, ["seen"]);
        rig.publish_many(3000).await;
        rig.events.settle().await.unwrap();
        let (seen, gaps) = drain(&mut slow, BASE + 3001, 100).await;
        let [(from, to)] = gaps[..] else { panic!("{gaps:?}") };
        assert_eq!(from, BASE + 2);
        assert!(seen.into_iter().eq(to + 1..=BASE + 3001));
        rig.publish("/test", "live").await;
        assert_eq!(ids(&mut slow, 1).await, ["live"]);
        rig.kernel.stop().await;
    });
}

// One byte, and one event. Those behind it have left the outbox, and nobody else has them.
#[test]
fn what_the_disk_has_changed_of_the_journal_is_told_by_each_check() {
    run(|rig| async move {
        rig.publish_many(50).await;
        rig.events.settle().await.unwrap();
        assert_eq!(rig.events.check().await.unwrap(), []);
        let mut rig = rig
            .restart(|dir| {
                let path = fs::read_dir(dir.join("events")).unwrap().next().unwrap().unwrap().path();
                let mut bytes = fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(&path, bytes).unwrap();
            })
            .await;
        for _ in 0..2 {
            let last = rig.events.last();
            let (seen, gaps) = drain(&mut rig.follow(0, &[]), last, 100).await;
            let [(from, to)] = gaps[..] else { panic!("{gaps:?}") };
            assert!(from == to && from > 1, "{from} to {to}");
            assert!(seen.into_iter().eq((1..=last).filter(|n| *n != from)));
            let found = rig.events.check().await.unwrap();
            let [one] = &found[..] else { panic!("{found:?}") };
            assert!(one.fault == Fault::JournalDamaged && one.message.contains(&format!("{from} to {to}")), "{one:?}");
            rig.publish_many(3).await;
            rig.events.settle().await.unwrap();
            rig = rig.restart(|_| ()).await;
        }
        rig
    });
}

// A disk that takes nothing: what happened is told.
#[test]
fn events_on_a_disk_that_is_read_only_are_followed() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    run(|rig| async move {
        let none = None::<&str>;
        let freeze = |dir: &std::path::Path| {
            mount(Some(dir), dir, none, MsFlags::MS_BIND, none).unwrap();
            mount(none, dir, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
        };
        rig.publish_many(50).await;
        rig.events.settle().await.unwrap();
        rig.publish_many(3).await;
        let last = rig.events.last();
        let rig = rig.restart(freeze).await;
        let (seen, gaps) = drain(&mut rig.follow(0, &[]), last, 100).await;
        assert!(seen.into_iter().eq(1..=last) && gaps.is_empty());
        assert_eq!(rig.events.check().await.unwrap(), []);
        rig.events.settle().await.unwrap_err();
        rig.restart(|dir| umount2(dir, MntFlags::MNT_DETACH).unwrap()).await
    });
}

// A journal that is gone is a gap, not a silence.
#[test]
fn a_lost_journal_is_told() {
    run(|rig| async move {
        rig.publish_many(50).await;
        rig.events.settle().await.unwrap();
        let rig = rig
            .restart(|dir| {
                fs::remove_dir_all(dir.join("events")).unwrap();
            })
            .await;
        rig.publish_many(3).await;
        let told = ((BASE + 51..=BASE + 53).collect(), vec![(11, BASE + 50)]);
        assert_eq!(drain(&mut rig.follow(10, &[]), BASE + 53, 100).await, told);
        rig.events.settle().await.unwrap();
        assert_eq!(drain(&mut rig.follow(10, &[]), BASE + 53, 100).await, told);
        rig
    });
}

/// Puts what is no event in the place of those in the outbox that have these numbers.
fn spoil(dir: &std::path::Path, sequences: &[u64]) {
    let database = redb::Database::open(dir.join("meta.redb")).unwrap();
    let write = database.begin_write().unwrap();
    for sequence in sequences {
        let table = redb::TableDefinition::<&[u8], &[u8]>::new("outbox");
        let mut table = write.open_table(table).unwrap();
        assert!(table.insert(&sequence.to_be_bytes()[..], &b"\xff"[..]).unwrap().is_some(), "{sequence} was there");
    }
    write.commit().unwrap();
}

// Wherever the others lie, and whether or not it is the first or the last of them.
#[test]
fn an_event_that_cant_be_read_is_a_gap_and_stands_in_nobodys_way() {
    run(|rig| async move {
        let from = rig.events.settle().await.unwrap();
        rig.publish_many(8).await;
        let bad = [1, 4, 5, 8].map(|n| from + n);
        let rig = rig.restart(|dir| spoil(dir, &bad)).await;
        let last = rig.events.last();
        assert_eq!(last, from + 8);
        let told = |last: u64| {
            let seen: Vec<u64> = (from + 1..=last).filter(|sequence| !bad.contains(sequence)).collect();
            (seen, vec![(bad[0], bad[0]), (bad[1], bad[2]), (bad[3], bad[3])])
        };
        for max in [1, 2, 100] {
            assert_eq!(drain(&mut rig.follow(from, &[]), last, max).await, told(last), "by {max}");
        }
        rig.events.settle().await.unwrap();
        assert_eq!(drain(&mut rig.follow(from, &[]), last, 100).await, told(last), "of the journal");
        // What comes behind it is moved, and the row goes with that.
        let mut live = rig.follow(last, &[]);
        rig.publish("/test", "behind").await;
        assert_eq!(ids(&mut live, 1).await, ["behind"]);
        assert_eq!(rig.events.settle().await.unwrap(), last + 1);
        assert_eq!(drain(&mut rig.follow(from, &[]), last + 1, 100).await, told(last + 1));
        let rig = rig.restart(|dir| {
            let database = redb::Database::open(dir.join("meta.redb")).unwrap();
            let table = redb::TableDefinition::<&[u8], &[u8]>::new("outbox");
            let read = redb::ReadableDatabase::begin_read(&database).unwrap();
            let rows = redb::ReadableTableMetadata::len(&read.open_table(table).unwrap());
            assert_eq!(rows.unwrap(), 0, "nothing stays in the outbox");
        });
        let rig = rig.await;
        assert_eq!(drain(&mut rig.follow(from, &[]), last + 1, 100).await, told(last + 1), "after a restart");
        rig
    });
}

#[test]
fn the_actor_moves_events_by_itself_and_a_crash_of_it_goes_unnoticed() {
    run(|rig| async move {
        let mut live = rig.follow(BASE, &[]);
        rig.publish("/test", "before").await;
        rig.kernel.poison("events").unwrap();
        rig.publish("/test", "after").await;
        assert_eq!(ids(&mut live, 2).await, ["before", "after"]);
        // Only that it happens is promised; the deadline ends a test that would never end.
        let deadline = Instant::now() + Duration::from_secs(20);
        while rig.outbox() > 0 {
            assert!(Instant::now() < deadline, "the outbox is never emptied");
            actix_rt::task::yield_now().await;
        }
        assert_eq!(rig.events.settle().await.unwrap(), BASE + 2);
        rig
    });
}

// From the answer of a commit to the subscriber on another thread. Ordinarily far below a millisecond, and most often
// before the answer; the bound tells a wake-up from a delay.
#[test]
fn a_subscriber_on_another_thread_is_told_at_once() {
    run(|rig| async move {
        let mut subscription = rig.follow(BASE, &[]);
        let (sender, receiver) = std::sync::mpsc::channel();
        let follower = std::thread::spawn(move || {
            for _ in 0..50 {
                let batch = cofferdam_kernel::block_on(subscription.next(1)).unwrap();
                sender.send((batch, Instant::now())).unwrap();
            }
        });
        let mut took = Vec::new();
        for n in 0..50u64 {
            rig.publish("/test", "x").await;
            let answered = Instant::now();
            let (batch, seen) = receiver.recv().unwrap();
            let Batch::Events(events) = batch else { panic!("gap") };
            assert_eq!(events[0].sequence, BASE + n + 1);
            took.push(seen.saturating_duration_since(answered));
        }
        follower.join().unwrap();
        took.sort();
        println!("after the answer: median {:?}, worst {:?}", took[25], took[49]);
        assert!(took[25] < Duration::from_millis(20), "{took:?}");
        rig
    });
}
