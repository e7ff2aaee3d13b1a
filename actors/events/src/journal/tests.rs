use std::{
    fs,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt},
    path::Path,
};

use cofferdam_types::{Code, Namespace};

use super::*;

fn event(sequence: u64) -> Event {
    let payload = serde_json::json!({"id": format!("container-{sequence}"), "pid": sequence});
    Event { sequence, ..Event::new(&Namespace::default_namespace(), "/tasks/start", payload) }
}

fn events(range: std::ops::RangeInclusive<u64>) -> Vec<Event> {
    range.map(event).collect()
}

fn small() -> Retention {
    Retention { segment: 1024, ..RETENTION }
}

fn open_with(dir: &Path, retention: Retention, committed: u64) -> Result<Journal> {
    Journal::open(fs::File::open(dir).unwrap().into(), retention, committed, 0)
}

/// The same of which so many were acknowledged.
fn open_taken(dir: &Path, taken: u64) -> Journal {
    Journal::open(fs::File::open(dir).unwrap().into(), RETENTION, taken, taken).unwrap()
}

fn open(dir: &Path) -> Journal {
    open_with(dir, small(), u64::MAX).unwrap()
}

/// All that the journal gives from `next` on, in blocks of `max`.
fn drain(journal: &Journal, next: u64, max: usize) -> (Vec<u64>, Vec<(u64, u64)>) {
    let (mut seen, mut gaps, mut cursor) = (Vec::new(), Vec::new(), Cursor::at(next));
    loop {
        match journal.read(&mut cursor, max).unwrap() {
            Chunk::Events(events) => {
                assert!(!events.is_empty() && events.len() <= max);
                seen.extend(events.iter().map(|event| event.sequence));
                assert_eq!(cursor.next, seen.last().unwrap() + 1);
            }
            Chunk::Gap { from, to } => gaps.push((from, to)),
            Chunk::End => return (seen, gaps),
        }
    }
}

fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn what_is_appended_is_read_from_any_place_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    assert_eq!((journal.last(), journal.first()), (0, None));
    assert_eq!(drain(&journal, 1, 10), (vec![], vec![]));
    for batch in events(1..=100).chunks(7) {
        journal.append(batch).unwrap();
    }
    assert!(segments(dir.path()).len() > 3);
    for journal in [journal, open(dir.path())] {
        assert_eq!((journal.last(), journal.first()), (100, Some(1)));
        for (next, max) in [(1, 1), (1, 1000), (42, 5), (100, 3)] {
            assert_eq!(drain(&journal, next, max), ((next..=100).collect(), vec![]));
        }
        let Chunk::Events(got) = journal.read(&mut Cursor::at(17), 1).unwrap() else { panic!() };
        assert_eq!(got[0].payload, event(17).payload);
    }
    for segment in segments(dir.path()) {
        assert_eq!(fs::metadata(segment).unwrap().permissions().mode() & 0o7777, 0o600);
    }
}

#[test]
fn a_batch_given_twice_is_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    journal.append(&events(1..=10)).unwrap();
    journal.append(&events(5..=12)).unwrap();
    journal.append(&events(1..=3)).unwrap();
    assert_eq!(drain(&journal, 1, 100), ((1..=12).collect(), vec![]));
}

// A crash can leave the last segment at any length that it ever had, and garbage behind what was synced.
#[test]
fn a_tail_torn_anywhere_recovers_to_the_last_whole_record_and_the_outbox_refills_the_rest() {
    // Thousands of syncs, none of which is what is tested.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let big = RETENTION;
    open_with(dir.path(), big, u64::MAX).unwrap().append(&events(1..=5)).unwrap();
    let path = segments(dir.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let mut recovered = std::collections::BTreeSet::new();
    for cut in 0..whole.len() {
        // A garbage version can't be told from a newer one.
        let garbage = if cut == 7 { 0 } else { 0xff };
        for tail in [&b""[..], &[0; 40], &[garbage; 40]] {
            fs::write(&path, [&whole[..cut], tail].concat()).unwrap();
            let journal = open_with(dir.path(), big, 5).unwrap();
            let last = journal.last();
            recovered.insert(last);
            assert_eq!(drain(&journal, 1, 100), ((1..=last).collect(), vec![]), "cut at {cut}");
            journal.append(&events(1..=6)).unwrap();
            assert_eq!(drain(&journal, 1, 100), ((1..=6).collect(), vec![]), "cut at {cut}");
            let path = segments(dir.path());
            assert_eq!(path.len(), 1);
        }
    }
    assert_eq!(recovered.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[test]
fn a_flipped_bit_is_found_and_the_loss_is_told_as_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    for event in events(1..=60) {
        journal.append(&[event]).unwrap();
    }
    let paths = segments(dir.path());
    let mut bytes = fs::read(&paths[1]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&paths[1], bytes).unwrap();
    let (seen, gaps) = drain(&journal, 1, 4);
    let [(from, to)] = gaps[..] else { panic!("{gaps:?}") };
    assert!(from <= to && from > 1 && to < 60);
    let expected: Vec<u64> = (1..=60).filter(|sequence| !(from..=to).contains(sequence)).collect();
    assert_eq!(seen, expected);
    assert_eq!(drain(&open(dir.path()), 1, 4), (seen, gaps), "the same after a restart");
}

// What was acknowledged is nowhere else: a byte of it that the disk has changed costs that event, wherever it is, and not
// those behind it.
#[test]
fn a_changed_byte_of_what_was_acknowledged_takes_nothing_else_with_it() {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    open_taken(dir.path(), 0).append(&events(1..=9)).unwrap();
    let path = segments(dir.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    assert_eq!(open_taken(dir.path(), 9).damage().unwrap(), []);
    // Where each record begins.
    let mut starts = vec![HEAD as usize];
    while let Some(len) = whole.get(starts[starts.len() - 1]..).and_then(|rest| rest.first_chunk::<4>()) {
        starts.push(starts[starts.len() - 1] + RECORD_HEAD + u32::from_le_bytes(*len) as usize);
    }
    assert_eq!((starts.len(), starts[9]), (10, whole.len()));
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        // A garbage version can't be told from a newer one.
        bytes[at] = if at == 7 { 0 } else { bytes[at] ^ 0x10 };
        fs::write(&path, &bytes).unwrap();
        let hit = starts.iter().filter(|start| **start <= at).count() as u64;
        let length = hit > 0 && at - starts[hit as usize - 1] < 4;
        let lost: Vec<u64> = match hit {
            0 => vec![],
            // Behind a length that is wrong nothing is found.
            hit if length => (hit..=9).collect(),
            hit => vec![hit],
        };
        let kept: Vec<u64> = (1..=9).filter(|n| !lost.contains(n)).collect();
        // More than once: what is there stays as it is.
        for _ in 0..2 {
            let journal = open_taken(dir.path(), 9);
            assert_eq!(drain(&journal, 1, 4).0, kept, "byte {at}");
            let told: Vec<u64> = journal.damage().unwrap().iter().map(|one| one.lost[0].0).collect();
            assert_eq!(told, if hit == 0 { vec![] } else { vec![hit] }, "byte {at}");
        }
        assert!(fs::read(&path).unwrap() == bytes, "byte {at}");
        let journal = open_taken(dir.path(), 9);
        journal.append(&events(10..=11)).unwrap();
        for journal in [journal, open_taken(dir.path(), 11)] {
            let gaps: Vec<_> = lost.first().zip(lost.last()).map(|(from, to)| (*from, *to)).into_iter().collect();
            assert_eq!(drain(&journal, 1, 4), ([&kept[..], &[10, 11]].concat(), gaps), "byte {at}");
        }
        segments(dir.path()).iter().for_each(|path| fs::remove_file(path).unwrap());
    }
}

// Of one batch the disk may have the end and not the beginning, when the power goes: what the outbox still has is no damage.
#[test]
fn what_was_not_acknowledged_is_cut_off_also_where_whole_records_lie_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open_taken(dir.path(), 0);
    journal.append(&events(1..=3)).unwrap();
    let length = fs::metadata(segments(dir.path()).pop().unwrap()).unwrap().len() as usize;
    journal.append(&events(4..=6)).unwrap();
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[length + RECORD_HEAD] ^= 1;
    fs::write(&path, bytes).unwrap();
    let journal = Journal::open(fs::File::open(dir.path()).unwrap().into(), RETENTION, 6, 3).unwrap();
    assert_eq!((journal.last(), journal.damage().unwrap()), (3, vec![]));
    journal.append(&events(4..=6)).unwrap();
    assert_eq!(drain(&journal, 1, 10), ((1..=6).collect(), vec![]));
}

#[test]
fn a_jump_in_the_sequence_is_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    journal.append(&events(3..=4)).unwrap();
    journal.append(&[event(9), event(10), event(20)]).unwrap();
    assert_eq!(drain(&journal, 1, 10), (vec![3, 4, 9, 10, 20], vec![(1, 2), (5, 8), (11, 19)]));
}

#[test]
fn retention_drops_whole_segments_by_size_and_by_age() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open_with(dir.path(), Retention { bytes: 4096, ..small() }, u64::MAX).unwrap();
    for event in events(1..=200) {
        journal.append(&[event]).unwrap();
    }
    let (seen, gaps) = drain(&journal, 1, 50);
    assert_eq!(gaps, [(1, seen[0] - 1)]);
    assert_eq!(seen, (seen[0]..=200).collect::<Vec<_>>());
    let total: u64 = segments(dir.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(total <= 4096 + 1200, "{total}");

    let long_after = Timestamp(Timestamp::now().0 + 8 * 24 * 3600 * 1_000_000_000);
    journal.retain(long_after);
    assert_eq!(segments(dir.path()).len(), 1, "the last one stays");
    assert_eq!(journal.last(), 200);
}

#[test]
fn events_that_the_store_does_not_know_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    for event in events(1..=60) {
        journal.append(&[event]).unwrap();
    }
    drop(journal);
    let journal = open_with(dir.path(), small(), 31).unwrap();
    assert_eq!(drain(&journal, 1, 100), ((1..=31).collect(), vec![]));
    journal.append(&events(32..=33)).unwrap();
    assert_eq!(drain(&open(dir.path()), 30, 100), ((30..=33).collect(), vec![]));
}

#[test]
fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).append(&events(1..=2)).unwrap();
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] = 2;
    fs::write(&path, &bytes).unwrap();
    let error = open_with(dir.path(), small(), 2).unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert_eq!(fs::read(&path).unwrap(), bytes, "and left alone");
}

#[test]
fn a_cursor_may_be_moved_by_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    journal.append(&events(1..=9)).unwrap();
    let mut cursor = Cursor::at(1);
    for (next, max) in [(1, 2), (7, 1), (3, 4), (9, 1), (1, 9)] {
        cursor.next = next;
        let Chunk::Events(got) = journal.read(&mut cursor, max).unwrap() else { panic!() };
        assert_eq!((got[0].sequence, cursor.next), (next, next + max as u64));
    }
}

#[test]
fn readers_and_the_one_that_appends_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    std::thread::scope(|scope| {
        for max in [1, 3, 64] {
            let journal = &journal;
            scope.spawn(move || {
                let (mut cursor, mut seen) = (Cursor::at(1), 0);
                while seen < 300 {
                    match journal.read(&mut cursor, max).unwrap() {
                        Chunk::Events(events) => {
                            for event in events {
                                assert_eq!(event.sequence, seen + 1);
                                seen += 1;
                            }
                        }
                        Chunk::Gap { from, to } => panic!("gap {from} to {to}"),
                        Chunk::End => std::thread::yield_now(),
                    }
                }
            });
        }
        for batch in events(1..=300).chunks(3) {
            journal.append(batch).unwrap();
        }
    });
}

#[test]
fn r7_a_full_disk_keeps_what_was_appended_and_takes_the_rest_when_there_is_room() {
    // A segment has one page or two, so that each step of an append meets the end of the disk; and then of its inodes.
    for (pages, inodes) in (1..10).map(|pages| (pages, 100)).chain((3..8).map(|inodes| (100, inodes))) {
        let options = vec![format!("size={}", pages * 4096), format!("nr_inodes={inodes}")];
        let mount = cofferdam_types::Mount { kind: "tmpfs".into(), source: "tmpfs".into(), options };
        let disk = cofferdam_sys::mount::detached(&mount).unwrap();
        let dir = format!("/proc/self/fd/{}/.", disk.as_raw_fd());
        let retention = Retention { segment: 6 << 10, ..RETENTION };
        let open = || open_with(Path::new(&dir), retention, u64::MAX).unwrap();
        let journal = open();
        let mut due = 1;
        let refused = loop {
            match journal.append(&events(due..=due + 6)) {
                Ok(()) => due += 7,
                Err(error) => break error,
            }
            assert!(due < 10_000, "it is never full");
        };
        assert_eq!(refused.code, Code::ResourceExhausted, "{pages} pages, {inodes} inodes: {refused}");
        let last = journal.last();
        for _ in 0..3 {
            journal.append(&events(last + 1..=last + 50)).unwrap_err();
        }
        assert!(journal.last() >= due - 1, "what was acknowledged is there");
        let all = |journal: &Journal| {
            let (seen, gaps) = drain(journal, 1, 100);
            assert_eq!((seen, gaps), ((1..=journal.last()).collect(), vec![]), "{pages} pages, {inodes} inodes");
        };
        all(&journal);
        let again = open();
        assert_eq!(again.last(), journal.last(), "nothing is half written");
        all(&again);
        // There is room once the oldest segments may go.
        let Some(first) = segments(Path::new(&dir)).into_iter().next().filter(|_| segments(Path::new(&dir)).len() > 1)
        else {
            continue;
        };
        fs::remove_file(first).unwrap();
        let again = open();
        let next = again.last() + 1;
        again.append(&events(next..=next + 6)).unwrap();
        assert_eq!(drain(&again, next, 100).0, (next..=next + 6).collect::<Vec<_>>());
    }
}

#[test]
fn r8_the_order_is_that_of_the_sequence_whatever_the_clock_says() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { bytes: 8 << 10, segment: 1 << 10, ..RETENTION };
    let journal = open_with(dir.path(), retention, u64::MAX).unwrap();
    let now = Timestamp::now().0;
    let year = 365 * 24 * 3600 * 1_000_000_000;
    let at = |sequence, timestamp| Event { timestamp: Timestamp(timestamp), ..event(sequence) };
    // Ahead, behind, at the beginning of all time, and as it should be.
    let times = [now, now + 20 * year, now, now - year / 365, 0, now];
    let mut sequence = 0;
    for time in times {
        for _ in 0..4 {
            sequence += 1;
            journal.append(&[at(sequence, time)]).unwrap();
        }
    }
    for journal in [&journal, &open_with(dir.path(), retention, u64::MAX).unwrap()] {
        assert_eq!(drain(journal, 1, 100), ((1..=sequence).collect(), vec![]));
    }
    // They go by their size too.
    for _ in 0..50 {
        let batch: Vec<_> = (1..=20).map(|n| at(sequence + n, now + 20 * year)).collect();
        journal.append(&batch).unwrap();
        sequence += 20;
    }
    let size: u64 = segments(dir.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(size <= retention.bytes + 2 * retention.segment, "{size}");
    assert_eq!(drain(&journal, sequence - 5, 100), ((sequence - 5..=sequence).collect(), vec![]));
}

const DAY: u64 = 24 * 3600 * 1_000_000_000;

fn set_age(path: &Path, days: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(system(Timestamp(Timestamp::now().0 - days * DAY))).unwrap();
}

#[test]
fn r8_a_clock_that_jumped_makes_nothing_old() {
    let dir = tempfile::tempdir().unwrap();
    let at = |sequence, days: u64| {
        let timestamp = Timestamp(Timestamp::now().0 - days * DAY);
        Event { timestamp, ..event(sequence) }
    };
    // The clock goes a month ahead while there is a journal, and before the next is opened.
    for (n, days) in [60, 30, 30, 0, 0].into_iter().enumerate() {
        let journal = open(dir.path());
        for sequence in 1 + n as u64 * 20..=20 + n as u64 * 20 {
            journal.append(&[at(sequence, if sequence % 20 < 10 { days } else { days.min(30) })]).unwrap();
        }
        drop(journal);
        assert!(segments(dir.path()).len() > n + 1);
    }
    assert_eq!(drain(&open(dir.path()), 1, 30), ((1..=100).collect(), vec![]));
    // So does the time without a daemon, which may be such a jump as well.
    segments(dir.path()).iter().for_each(|path| set_age(path, 90));
    open(dir.path()).append(&[event(101)]).unwrap();
    assert_eq!(drain(&open(dir.path()), 1, 30), ((1..=101).collect(), vec![]));
}

#[test]
fn segments_have_their_age_by_the_time_that_passed_between_them() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    for event in events(1..=60) {
        journal.append(&[event]).unwrap();
    }
    let all = segments(dir.path());
    for (path, days) in all.iter().zip([28, 22, 20].into_iter().chain(std::iter::repeat(20))) {
        set_age(path, days);
    }
    let second: u64 = all[1].file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let journal = open(dir.path());
    assert_eq!(journal.first(), Some(1));
    journal.append(&[event(61)]).unwrap();
    assert_eq!(journal.first(), Some(second), "eight days before the youngest");
    // What is written goes on from there.
    let young = fs::metadata(segments(dir.path()).last().unwrap()).unwrap().modified().unwrap();
    let days = young.elapsed().unwrap().as_secs() / (24 * 3600);
    assert!((19..=20).contains(&days), "{days}");
}

#[test]
fn what_is_no_segment_by_name_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).append(&events(1..=5)).unwrap();
    let first = segments(dir.path()).remove(0);
    // Events are counted from 1, and a name has 20 digits.
    for name in [format!("{:020}.seg", 0), "7.seg".into(), "+0000000000000000007.seg".into(), format!("{:021}.seg", 7)]
    {
        let path = dir.path().join(name);
        fs::copy(&first, &path).unwrap();
        let journal = open(dir.path());
        assert_eq!((journal.last(), journal.first()), (5, Some(1)), "{path:?}");
        assert_eq!(drain(&journal, 1, 9), ((1..=5).collect(), vec![]));
        assert!(path.exists());
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn no_event_exceeds_the_highest_number_whatever_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let highest = || Journal::highest(fs::File::open(dir.path()).unwrap().into()).unwrap();
    assert_eq!(highest(), 0);
    let journal = open(dir.path());
    for batch in events(1..=100).chunks(7) {
        journal.append(batch).unwrap();
    }
    drop(journal);
    assert_eq!(highest(), 100);
    // Behind a record that was altered there may be others.
    let last = segments(dir.path()).pop().unwrap();
    let good = fs::read(&last).unwrap();
    let mut bad = good.clone();
    bad[HEAD as usize + RECORD_HEAD + 3] ^= 1;
    fs::write(&last, &bad).unwrap();
    assert!((100..200).contains(&highest()), "{}", highest());
    assert!(fs::read(&last).unwrap() == bad, "it is only read");
    fs::write(&last, &good[..good.len() - 1]).unwrap();
    assert!((99..110).contains(&highest()), "{}", highest());
}

#[test]
fn a_payload_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let payload = serde_json::json!({
        "none": null, "nested": {"none": null, "list": [null, {}, [], [null]], "": ""},
        "yes": true, "number": -7, "large": u64::MAX, "part": 0.1, "text": "\u{0}\u{1F600}",
    });
    let told = Event { payload, ..event(1) };
    let journal = open(dir.path());
    journal.append(std::slice::from_ref(&told)).unwrap();
    drop(journal);
    let Chunk::Events(found) = open(dir.path()).read(&mut Cursor::at(1), 10).unwrap() else { panic!("a gap") };
    assert_eq!(found, [told]);
}

// Its checksum is right: somebody has written what is no event.
#[test]
fn a_record_that_is_no_event_is_told_as_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    journal.append(&events(1..=2)).unwrap();
    drop(journal);
    let newest = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    for sequence in [3, 4] {
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(checksum(sequence, b"\xff"));
        bytes.push(0xff);
    }
    fs::write(&newest, bytes).unwrap();
    let journal = open(dir.path());
    assert_eq!(journal.last(), 4);
    journal.append(&events(5..=6)).unwrap();
    for max in [1, 2, 100] {
        assert_eq!(drain(&journal, 1, max), (vec![1, 2, 5, 6], vec![(3, 3), (4, 4)]), "by {max}");
        assert_eq!(drain(&journal, 4, max), (vec![5, 6], vec![(4, 4)]), "by {max}");
    }
}
