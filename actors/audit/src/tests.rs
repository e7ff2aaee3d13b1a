//! The log against what may become of it: power cuts, full disks, and somebody who has the disk.

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{Metadata, records::audit::Head};
use cofferdam_segments::{Directory, Retention};
use cofferdam_types::{GrantId, Peer, Result, Timestamp};

use super::*;
use crate::{log::Log, verify::verify};

fn small() -> Retention {
    Retention { segment: 1024, ..RETENTION }
}

fn record(n: u64) -> Record {
    Record {
        grants: vec![GrantId(u128::from(n % 3))],
        peer: Some(Peer::Unix { uid: 7, gid: 8, pid: 9 }),
        namespace: "shop".into(),
        object: format!("container/c{n}"),
        ..Record::new("Task.exec", Verdict::Allowed)
    }
}

fn open_with(dir: &Path, retention: Retention, head: Option<Head>) -> (Log, Option<String>) {
    Log::open(fs::File::open(dir).unwrap().into(), retention, head).unwrap()
}

fn open(dir: &Path, head: Option<Head>) -> (Log, Option<String>) {
    open_with(dir, small(), head)
}

/// A log of so many records, one at a time, and where it ends.
fn filled(dir: &Path, count: u64) -> Head {
    let (mut log, _) = open(dir, None);
    for n in 1..=count {
        log.append(&[record(n)]).unwrap();
    }
    log.head()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn check(dir: &Path, head: &Head) -> Report {
    verify(&Directory::new(fs::File::open(dir).unwrap().into(), "audit log"), head).unwrap()
}

fn numbers(log: &Log, after: u64, filter: &Filter) -> Vec<u64> {
    let (mut place, mut all) = (Place::after(after), Vec::new());
    loop {
        let (found, end) = log.seen().read(&mut place, 7, filter).unwrap();
        all.extend(found.iter().map(|found| found.number));
        if end {
            return all;
        }
    }
}

#[test]
fn what_is_appended_is_read_from_any_place_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let head = filled(dir.path(), 100);
    assert!(segments(dir.path()).len() > 3);
    assert_eq!((head.first, head.last), (1, 100));
    let report = check(dir.path(), &head);
    assert_eq!((report.sound, report.broken), (100, vec![]));
    let (mut log, said) = open(dir.path(), Some(head));
    assert_eq!((said, log.head()), (None, head));
    for after in [0, 1, 41, 99, 100] {
        assert_eq!(numbers(&log, after, &Filter::default()), (after + 1..=100).collect::<Vec<_>>());
    }
    let grant = Filter { grant: Some(GrantId(2)), ..Filter::default() };
    assert_eq!(numbers(&log, 50, &grant), (51..=100).filter(|n| n % 3 == 2).collect::<Vec<_>>());
    log.append(&[record(101), record(102)]).unwrap();
    let (found, _) = log.seen().read(&mut Place::after(100), 9, &Filter::default()).unwrap();
    assert_eq!(found[1].record.as_ref().unwrap().object, "container/c102");
    assert_eq!(check(dir.path(), &log.head()).broken, []);
}

#[test]
fn filters_choose_by_what_a_record_says() {
    let record = Record { verdict: Verdict::Denied, time: Timestamp(50), ..record(1) };
    let all = Filter::default();
    for (filter, passes) in [
        (all.clone(), true),
        (Filter { namespace: Some("shop".into()), ..all.clone() }, true),
        (Filter { namespace: Some("sho".into()), ..all.clone() }, false),
        (Filter { method: Some("Task.exec".into()), ..all.clone() }, true),
        (Filter { method: Some("Task.*".into()), ..all.clone() }, true),
        (Filter { method: Some("Task".into()), ..all.clone() }, false),
        (Filter { verdict: Some(Verdict::Allowed), ..all.clone() }, false),
        (Filter { since: Timestamp(50), ..all.clone() }, true),
        (Filter { since: Timestamp(51), ..all.clone() }, false),
    ] {
        assert_eq!(filter.passes(&record), passes, "{filter:?}");
    }
}

// Somebody who has the disk, and not the row.
#[test]
fn what_was_altered_is_found_where_it_was_altered() {
    let alter = |change: &dyn Fn(&Path, &[PathBuf])| {
        let dir = tempfile::tempdir().unwrap();
        let head = filled(dir.path(), 40);
        change(dir.path(), &segments(dir.path()));
        let report = check(dir.path(), &head);
        (report, head, dir)
    };
    let edit = |file: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(file).unwrap();
        change(&mut bytes);
        fs::write(file, bytes).unwrap();
    };
    // Where a record lies in a segment.
    let frame = |bytes: &[u8], nth: usize| {
        let mut at = 40;
        for _ in 0..nth {
            at += 44 + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        }
        at..at + 44 + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    };
    let first = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();

    // Each byte of a segment, one at a time: none can be changed unseen.
    let dir = tempfile::tempdir().unwrap();
    let head = filled(dir.path(), 40);
    let middle = segments(dir.path())[2].clone();
    let good = fs::read(&middle).unwrap();
    for at in 0..good.len() {
        edit(&middle, &|bytes| bytes[at] ^= 0x40);
        let report = check(dir.path(), &head);
        assert!(!report.broken.is_empty() && report.sound >= 20, "byte {at}: {report:?}");
        fs::write(&middle, &good).unwrap();
    }
    assert_eq!(check(dir.path(), &head).broken, []);

    // A payload: that record, and no other.
    let (report, ..) = alter(&|_, all| {
        edit(&all[1], &|bytes| {
            let place = frame(bytes, 1);
            bytes[place.end - 2] ^= 1;
        })
    });
    assert_eq!((report.sound, report.broken.len()), (39, 1), "{report:?}");
    assert!(report.broken[0].message.ends_with("is not what was written"), "{report:?}");

    // A record.
    let (report, ..) = alter(&|_, all| edit(&all[1], &|bytes| drop(bytes.drain(frame(bytes, 1)))));
    assert!(report.broken[0].message.ends_with("was removed"), "{report:?}");
    // The one behind it doesn't follow from what is there now.
    assert_eq!((report.sound, report.broken.len()), (38, 1), "{report:?}");

    // Two that change places.
    let (report, ..) = alter(&|_, all| {
        edit(&all[1], &|bytes| {
            let (a, b) = (frame(bytes, 0), frame(bytes, 1));
            let both = [&bytes[b.clone()], &bytes[a.clone()]].concat();
            bytes[a.start..b.end].copy_from_slice(&both);
        })
    });
    assert!(!report.broken.is_empty());

    // A segment, in the middle and at the beginning.
    for gone in [0, 2] {
        let (report, _, dir) = alter(&|_, all| fs::remove_file(&all[gone]).unwrap());
        assert!(report.broken[0].message.contains("their segment is gone"), "{report:?}");
        assert!(report.broken[0].number < first(&segments(dir.path())[gone]));
    }

    // The end: some records, and a whole segment.
    let (report, head, dir) = alter(&|_, all| {
        let last = all.last().unwrap();
        edit(last, &|bytes| bytes.truncate(frame(bytes, 0).end));
    });
    assert!(report.broken[0].message.contains("cut off"), "{report:?}");
    // It goes on, and the fault stays to be seen.
    let (mut log, said) = open(dir.path(), Some(head));
    assert!(said.unwrap().contains("doesn't lead to record 40"));
    log.append(&[record(41)]).unwrap();
    assert_eq!(log.head().last, 41);
    let later = check(dir.path(), &log.head());
    assert!(later.broken[0].message.contains("can't be found"), "{later:?}");
    let (report, head, dir) = alter(&|_, all| fs::remove_file(all.last().unwrap()).unwrap());
    assert!(report.broken[0].message.contains("cut off"), "{report:?}");
    assert!(open(dir.path(), Some(head)).1.unwrap().contains("doesn't lead to"));

    // All of it.
    let (report, head, dir) = alter(&|dir, _| {
        fs::remove_dir_all(dir).unwrap();
        fs::create_dir(dir).unwrap();
    });
    assert!(report.broken[0].message.contains("records 1 to 40 was cut off"), "{report:?}");
    assert_eq!(open(dir.path(), Some(head)).1.unwrap(), "records 1 to 40 are not there");

    // Another log, which is whole in itself.
    let (report, head, dir) = alter(&|dir, _| {
        fs::remove_dir_all(dir).unwrap();
        fs::create_dir(dir).unwrap();
        filled(dir, 40);
    });
    assert!(report.broken[0].message.contains("was written anew"), "{report:?}");
    assert!(open(dir.path(), Some(head)).1.is_some());
}

// A power cut leaves the log as long as the row says, or longer.
#[test]
fn a_torn_end_is_no_broken_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open_with(dir.path(), RETENTION, None);
    log.append(&[record(1), record(2)]).unwrap();
    let (head, file) = (log.head(), segments(dir.path()).remove(0));
    let spoken = fs::metadata(&file).unwrap().len();
    log.append(&[record(3), record(4)]).unwrap();
    let whole = fs::read(&file).unwrap();
    for end in spoken as usize..=whole.len() {
        for zeros in [false, true] {
            let mut bytes = whole[..end].to_vec();
            if zeros {
                bytes.resize(whole.len() + 100, 0);
            }
            fs::write(&file, bytes).unwrap();
            assert_eq!(check(dir.path(), &head).broken, [], "{end}");
            let (mut log, said) = open_with(dir.path(), RETENTION, Some(head));
            assert_eq!(said, None, "{end}");
            let next = log.head().last + 1;
            assert!((3..=5).contains(&next));
            log.append(&[record(next)]).unwrap();
            assert_eq!(numbers(&log, 0, &Filter::default()), (1..=next).collect::<Vec<_>>());
            assert_eq!(check(dir.path(), &log.head()).broken, [], "{end}");
        }
    }
    // The beginning of a segment, torn: nobody has spoken for anything in it.
    let dir = tempfile::tempdir().unwrap();
    let head = filled(dir.path(), 40);
    let next = dir.path().join(format!("{:020}.seg", 41));
    for bytes in [&b""[..], b"COFAUDT", b"COFAUDT\x01"] {
        fs::write(&next, bytes).unwrap();
        let (mut log, said) = open(dir.path(), Some(head));
        assert_eq!(said, None);
        log.append(&[record(41)]).unwrap();
        assert_eq!(check(dir.path(), &log.head()).broken, []);
        let file = segments(dir.path()).pop().unwrap();
        if file == next {
            fs::remove_file(&next).unwrap();
        } else {
            // It went into the segment before.
            let last = fs::read(&file).unwrap();
            let end = last.len() - 44 - payload(&last);
            fs::write(&file, &last[..end]).unwrap();
        }
    }
    assert_eq!(check(dir.path(), &head).broken, []);
}

/// The length of the last payload in a segment.
fn payload(bytes: &[u8]) -> usize {
    let mut at = 40;
    loop {
        let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        at += 44 + length;
        if at >= bytes.len() {
            return length;
        }
    }
}

#[test]
fn the_oldest_go_and_the_chain_begins_later() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { bytes: 4096, ..small() };
    let (mut log, _) = open_with(dir.path(), retention, None);
    for n in 1..=100 {
        log.append(&[record(n)]).unwrap();
        let gone = log.retire();
        // A crash between the row and the files leaves them to the next start.
        if n < 90 {
            log.remove(&gone);
        }
    }
    let head = log.head();
    let report = check(dir.path(), &head);
    assert!(head.first > 50 && report.broken.is_empty() && report.sound == 101 - head.first, "{report:?}");
    let before = segments(dir.path()).len();
    let (log, said) = open_with(dir.path(), retention, Some(head));
    assert!(said.is_none() && log.head() == head && segments(dir.path()).len() < before);
    assert_eq!(numbers(&log, 0, &Filter::default()), (head.first..=100).collect::<Vec<_>>());
    // Whoever removes the oldest himself is found, also when the log has gone on since.
    drop(log);
    fs::remove_file(&segments(dir.path())[0]).unwrap();
    assert!(check(dir.path(), &head).broken[0].message.contains("their segment is gone"));
    let (mut log, _) = open_with(dir.path(), retention, Some(head));
    log.append(&[record(101)]).unwrap();
    assert!(check(dir.path(), &log.head()).broken[0].message.contains("their segment is gone"));
}

#[test]
fn a_log_whose_row_is_lost_is_taken_for_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let head = filled(dir.path(), 40);
    let (log, said) = open(dir.path(), None);
    assert!(said.unwrap().contains("taken for that is record 40"));
    assert_eq!(log.head(), head);
}

struct Rig {
    dir: tempfile::TempDir,
    kernel: Kernel,
    audit: Audit,
}

impl Rig {
    async fn start(dir: tempfile::TempDir) -> Rig {
        let kernel = Kernel::new().unwrap();
        let meta = Metadata::start(&kernel, Placement::Own, &dir.path().join("meta.redb")).unwrap();
        let root = dir.path().join("audit");
        fs::create_dir_all(&root).unwrap();
        let root = fs::File::open(root).unwrap().into();
        let audit = Audit::start(&kernel, Placement::Shared("kernel"), meta, root, small()).unwrap();
        kernel.ready().await.unwrap();
        Rig { dir, kernel, audit }
    }

    async fn again(self) -> Rig {
        self.kernel.stop().await;
        let Rig { dir, kernel, audit } = self;
        drop((kernel, audit));
        Rig::start(dir).await
    }

    async fn all(&self) -> Vec<Record> {
        let (found, _, end) = self.audit.read(Place::after(0), 1000, Filter::default()).await.unwrap();
        assert!(end);
        found.into_iter().map(|found| found.record.unwrap()).collect()
    }
}

fn run(test: impl AsyncFnOnce()) {
    actix_rt::System::new().block_on(async { test().await });
}

#[test]
fn a_record_is_on_disk_when_that_is_answered_and_others_soon() {
    run(async || {
        let rig = Rig::start(tempfile::tempdir().unwrap()).await;
        rig.audit.add(record(1));
        rig.audit.record(record(2)).await.unwrap();
        let all = rig.all().await;
        let objects: Vec<_> = all.iter().map(|record| record.object.as_str()).collect();
        assert_eq!(objects, ["", "container/c1", "container/c2"]);
        assert_eq!((all[0].method.as_ref(), all[0].detail.as_str()), ("audit", "the log begins"));
        let mut last = rig.audit.last();
        let begun = Instant::now();
        rig.audit.add(record(3));
        last.wait_for(|last| *last == 4).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2));
        let report = rig.audit.verify().await.unwrap();
        assert_eq!((report.sound, report.broken), (4, vec![]));
        // The end of the daemon takes nothing away.
        rig.audit.add(record(4));
        let rig = rig.again().await;
        assert_eq!(rig.all().await.len(), 5);
        assert_eq!(rig.audit.verify().await.unwrap().broken, []);
        rig.kernel.stop().await;
    });
}

#[test]
fn a_crash_of_the_actor_takes_nothing_away() {
    run(async || {
        let rig = Rig::start(tempfile::tempdir().unwrap()).await;
        rig.audit.record(record(1)).await.unwrap();
        rig.kernel.poison("audit").unwrap();
        rig.audit.add(record(2));
        let last = rig.audit.last().wait_for(|last| *last == 3).await.map(|last| *last);
        assert_eq!(last.unwrap(), 3);
        let answered: Result<()> = loop {
            match rig.audit.record(record(3)).await {
                Err(error) if error.comes_back() => tokio::task::yield_now().await,
                answered => break answered,
            }
        };
        answered.unwrap();
        assert_eq!(rig.all().await.len(), 4);
        rig.kernel.stop().await;
    });
}

#[test]
fn no_token_and_no_book_gets_into_a_record() {
    run(async || {
        let rig = Rig::start(tempfile::tempdir().unwrap()).await;
        let token = cofferdam_grants::Token::random().unwrap();
        // Half of it lies behind what is kept.
        let detail = format!("{}{}", "x".repeat(490), token.reveal());
        let object = format!("container/{}", token.reveal());
        rig.audit.record(Record { detail, object, correlation: "é".repeat(9999), ..record(1) }).await.unwrap();
        let all = rig.all().await;
        assert!(all[1].correlation.len() <= 512 && all[1].correlation.ends_with("..."));
        for file in segments(&rig.dir.path().join("audit")) {
            let bytes = fs::read(file).unwrap();
            let hex = &token.reveal().as_bytes()[16..32];
            assert!(!bytes.windows(hex.len()).any(|part| part == hex));
        }
        rig.kernel.stop().await;
    });
}

// R7: a disk of so many pages, most of which somebody else has.
#[test]
fn r7_a_full_disk_refuses_what_it_can_not_record_and_loses_nothing_that_waits() {
    run(async || {
        let options = vec!["size=327680".into(), "nr_inodes=100".into()];
        let mount = cofferdam_types::Mount { kind: "tmpfs".into(), source: "tmpfs".into(), options };
        let disk = cofferdam_sys::mount::detached(&mount).unwrap();
        let root = PathBuf::from(format!("/proc/self/fd/{}/.", disk.as_raw_fd()));
        let dir = tempfile::tempdir().unwrap();
        let kernel = Kernel::new().unwrap();
        let meta = Metadata::start(&kernel, Placement::Own, &dir.path().join("meta.redb")).unwrap();
        let held = fs::File::open(&root).unwrap().into();
        let audit = Audit::start(&kernel, Placement::Shared("kernel"), meta, held, RETENTION).unwrap();
        kernel.ready().await.unwrap();
        audit.record(record(0)).await.unwrap();
        audit.room().await.unwrap();
        let ballast = root.join("ballast");
        let all = fs::File::create(&ballast).unwrap();
        while all.write_all_at(&[1; 4096], all.metadata().unwrap().len()).is_ok() {}

        // What is held ahead of the end is used, down to half of it.
        let (mut spoken, mut waits) = (1, 0);
        while !audit.is_full() {
            audit.record(record(spoken)).await.unwrap();
            spoken += 1;
            assert!(spoken < 1000, "it is never full");
        }
        let refused = audit.room().await.unwrap_err();
        assert!(refused.is_full_disk() && refused.message.contains("is refused"), "{refused}");
        // What is taken back is recorded all the same; what runs code waits, and is no reason not to run it.
        for _ in 0..20 {
            audit.add(record(5000 + waits));
            waits += 1;
            audit.record(record(spoken)).await.unwrap();
            spoken += 1;
        }
        assert!(audit.is_full());
        // Until there is nothing left.
        let error = loop {
            match audit.record(record(spoken)).await {
                Ok(()) => spoken += 1,
                Err(error) => break error,
            }
            assert!(spoken < 2000, "it is never full");
        };
        assert!(error.is_full_disk(), "{error}");
        let seen = *audit.last().borrow();
        assert_eq!(seen, spoken + 1, "those that wait are not there yet");

        drop(all);
        fs::remove_file(&ballast).unwrap();
        audit.room().await.unwrap();
        assert!(!audit.is_full());
        audit.last().wait_for(|last| *last == spoken + 1 + waits).await.unwrap();
        let report = audit.verify().await.unwrap();
        assert_eq!((report.sound, report.broken), (spoken + 1 + waits, vec![]));
        kernel.stop().await;
    });
}

/// A log to which nobody writes what waits.
async fn unwritten() -> (tempfile::TempDir, Kernel, core::Core) {
    let (dir, kernel) = (tempfile::tempdir().unwrap(), Kernel::new().unwrap());
    let meta = Metadata::start(&kernel, Placement::Own, &dir.path().join("meta.redb")).unwrap();
    kernel.ready().await.unwrap();
    let root = dir.path().join("audit");
    fs::create_dir(&root).unwrap();
    let core = core::Core::open(meta, fs::File::open(root).unwrap().into(), RETENTION).unwrap();
    (dir, kernel, core)
}

// A disk that nothing can be written to stays so for long: the log isn't filled with that.
#[test]
fn that_the_row_stands_behind_is_said_once() {
    run(async || {
        let (_dir, kernel, core) = unwritten().await;
        let said: Vec<bool> = [true, true, false, true, true].map(|behind| core.is_news(behind)).into();
        assert_eq!(said, [true, false, false, true, false]);
        kernel.stop().await;
    });
}

// A disk that takes nothing: what was recorded is read, and nothing is cut off, which may be torn.
#[test]
fn a_log_on_a_disk_that_is_read_only_is_read() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let dir = tempfile::tempdir().unwrap();
    let head = filled(dir.path(), 9);
    let last = segments(dir.path()).pop().unwrap();
    let bytes = [&fs::read(&last).unwrap()[..], b"torn"].concat();
    fs::write(&last, &bytes).unwrap();
    let (none, path) = (None::<&str>, dir.path());
    mount(Some(path), path, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, path, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
    let (mut log, said) = open(path, Some(head));
    let (all, refused) = (numbers(&log, 0, &Filter::default()), log.append(&[record(10)]));
    drop(log);
    umount2(path, MntFlags::MNT_DETACH).unwrap();
    assert_eq!((all, said), ((1..=9).collect(), None));
    assert!(refused.unwrap_err().is_read_only_disk());
    assert!(fs::read(&last).unwrap() == bytes);
}

// The queue has a bound: what doesn't fit is counted, and the log says how much was lost.
#[test]
fn r7_what_is_lost_is_counted() {
    run(async || {
        let (_dir, kernel, core) = unwritten().await;
        for n in 0..5000 {
            core.add(record(n));
        }
        core.flush().unwrap();
        let (found, _) = core.read(&mut Place::after(0), 10_000, &Filter::default()).unwrap();
        let lost: Vec<_> =
            found.iter().filter_map(|found| found.record.as_ref()).filter(|r| r.method == "audit").collect();
        assert!(found.len() < 4200 && lost.len() == 2, "{lost:?}");
        assert_eq!(lost[1].detail, format!("{} records are lost: more came than could be written", 5002 - found.len()));
        kernel.stop().await;
    });
}

// Nobody pushes out of the log what others did, by what he may do either.
#[test]
fn what_one_grant_does_without_end_is_told_with_a_count() {
    run(async || {
        let (_dir, kernel, core) = unwritten().await;
        for n in 0..5000 {
            core.add(Record { grants: vec![GrantId(1)], ..record(n) });
        }
        core.add(Record { grants: Vec::new(), peer: None, ..record(5000) });
        core.finish();
        let (found, _) = core.read(&mut Place::after(0), 10_000, &Filter::default()).unwrap();
        let of = |one: bool| {
            let all = found.iter().filter_map(|found| found.record.as_ref());
            all.filter(move |record| record.grants.is_empty() != one).map(|record| record.times).collect::<Vec<_>>()
        };
        assert!(of(true).len() < 2100 && of(true).iter().sum::<u32>() == 5000, "{}", of(true).len());
        assert_eq!(of(false).len(), 2, "the beginning of the log, and the daemon's own");
        kernel.stop().await;
    });
}

#[test]
fn a_format_that_is_not_known_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let head = filled(dir.path(), 1);
    let file = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    bytes[7] = 2;
    fs::write(&file, &bytes).unwrap();
    let (mut log, said) = open(dir.path(), Some(head));
    assert!(said.unwrap().contains("doesn't begin as one"));
    log.append(&[record(2)]).unwrap();
    assert_eq!(fs::read(&file).unwrap(), bytes);
    assert_eq!(numbers(&log, 1, &Filter::default()), [2]);
    assert!(!check(dir.path(), &log.head()).broken.is_empty());
}
