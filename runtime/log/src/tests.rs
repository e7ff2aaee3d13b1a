//! Writer and reader together.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use cofferdam_types::{Labels, Timestamp};

use crate::{Format, MIN_SIZE, Position, Query, Reader, Stream, What, Writer, segments, start};

const ALL: [Format; 3] = [Format::Local, Format::Json, Format::Cri];

fn writer(dir: &Path, format: Format, files: u32) -> Writer {
    Writer::files(OwnedFd::from(File::open(dir).unwrap()), format, MIN_SIZE, files, &Labels::new())
}

/// What is there, and what is said to be missing.
fn rest(reader: &mut Reader) -> (String, Vec<String>) {
    let (mut text, mut lost) = (Vec::new(), Vec::new());
    loop {
        let entries = reader.read(10_000).unwrap();
        if entries.is_empty() {
            return (String::from_utf8(text).unwrap(), lost);
        }
        for entry in entries {
            match entry.what {
                What::Output(_, bytes) => text.extend(bytes),
                What::Lost(why) => lost.push(why),
            }
        }
    }
}

fn all(dir: &Path, format: Format) -> (String, Vec<String>) {
    rest(&mut Reader::new(dir, format, None))
}

fn asked(dir: &Path, format: Format, query: Query) -> String {
    let (mut reader, mut selector) = start(dir, format, query).unwrap();
    let mut text = Vec::new();
    loop {
        let entries = reader.read(1000).unwrap();
        if entries.is_empty() {
            return String::from_utf8(text).unwrap();
        }
        for entry in entries.into_iter().filter_map(|entry| selector.take(entry)) {
            if let What::Output(_, bytes) = entry.what {
                text.extend(bytes);
            }
        }
    }
}

fn line(n: usize) -> String {
    format!("{n:0>7} {}\n", "x".repeat(n % 90))
}

#[test]
fn nothing_is_made_before_there_is_output() {
    let dir = tempfile::tempdir().unwrap();
    let mut silent = writer(dir.path(), Format::Json, 2);
    silent.end(Stream::Stdout);
    silent.end(Stream::Stderr);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(all(dir.path(), Format::Json), Default::default());
    assert_eq!(all(&dir.path().join("missing"), Format::Json), Default::default());
}

#[test]
fn files_are_bounded_and_a_reader_follows_through_them() {
    for format in ALL {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path(), format, 3);
        let mut follower = Reader::new(dir.path(), format, None);
        let mut seen = String::new();
        let mut wrote = String::new();
        let mut block = String::new();
        for n in 0..20_000 {
            block.push_str(&line(n));
            if n % 50 == 0 {
                writer.write(Stream::Stdout, block.as_bytes());
                wrote.push_str(&block);
                block.clear();
            }
            if n % 1000 == 0 {
                let (text, lost) = rest(&mut follower);
                assert_eq!(lost, Vec::<String>::new(), "{format:?}");
                seen.push_str(&text);
            }
        }
        seen.push_str(&rest(&mut follower).0);
        assert!(seen == wrote, "{format:?}: {} of {}", seen.len(), wrote.len());
        let numbers = segments::list(dir.path()).unwrap();
        assert!(numbers.len() == 3 && numbers[0] > 0, "{format:?} {numbers:?}");
        for number in numbers {
            let size = std::fs::metadata(dir.path().join(segments::name(number))).unwrap().len();
            assert!(size <= MIN_SIZE && size > MIN_SIZE - (64 << 10) || number == follower.position().segment);
        }
        // Who comes later reads what is there, and it is the end of all.
        let (there, lost) = all(dir.path(), format);
        assert!(wrote.ends_with(&there) && there.len() > 200_000 && lost.is_empty(), "{format:?} {}", there.len());
        assert_eq!(writer.lost(), 0);
    }
}

#[test]
fn who_falls_behind_is_told_and_keeps_the_file_that_he_reads() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), Format::Cri, 2);
    writer.write(Stream::Stdout, b"first\n");
    let mut slow = Reader::new(dir.path(), Format::Cri, None);
    assert_eq!(rest(&mut slow).0, "first\n");
    writer.write(Stream::Stdout, b"in the same file\n");
    let mut fill = || (0..40).for_each(|_| writer.write(Stream::Stdout, "y".repeat(16_000).as_bytes()));
    fill();
    fill();
    assert!(!dir.path().join(segments::name(0)).exists());
    let (text, lost) = rest(&mut slow);
    assert!(text.starts_with("in the same file\n"), "what was still there when it was opened is read");
    assert_eq!(lost, ["older records were rotated away before they were read"]);
    // The same by a place that somebody kept.
    let (_, lost) = rest(&mut Reader::new(dir.path(), Format::Cri, Some(Position { segment: 0, offset: 40 })));
    assert_eq!(lost.len(), 1);
}

#[test]
fn a_half_written_record_is_told_not_shown_and_in_nobodys_way() {
    for format in ALL {
        let dir = tempfile::tempdir().unwrap();
        let mut first = writer(dir.path(), format, 5);
        first.write(Stream::Stdout, b"whole\n");
        let path = dir.path().join(segments::name(0));
        let record = std::fs::read(&path).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&record[..record.len() - 3]).unwrap();
        let mut reader = Reader::new(dir.path(), format, None);
        assert_eq!(rest(&mut reader), ("whole\n".to_owned(), vec![]), "{format:?}: it may still be written");
        drop(first);
        let mut second = writer(dir.path(), format, 5);
        second.write(Stream::Stderr, b"behind\n");
        let torn = vec!["a record was only half written".to_owned()];
        assert_eq!(rest(&mut reader), ("behind\n".to_owned(), torn.clone()), "{format:?}");
        assert_eq!(all(dir.path(), format), ("whole\nbehind\n".to_owned(), torn), "{format:?}");
        // A whole end is gone on with.
        drop(second);
        writer(dir.path(), format, 5).write(Stream::Stdout, b"third\n");
        assert_eq!(segments::list(dir.path()).unwrap(), [0, 1], "{format:?}");
        assert_eq!(rest(&mut reader).0, "third\n", "{format:?}");
    }
}

#[test]
fn damage_does_not_end_the_reading() {
    for format in ALL {
        let dir = tempfile::tempdir().unwrap();
        writer(dir.path(), format, 5).write(Stream::Stdout, b"good\n");
        let zeros = vec![0; 4096];
        OpenOptions::new().append(true).open(dir.path().join(segments::name(0))).unwrap().write_all(&zeros).unwrap();
        let mut reader = Reader::new(dir.path(), format, None);
        let (text, before) = rest(&mut reader);
        assert_eq!(text, "good\n", "{format:?}");
        writer(dir.path(), format, 5).write(Stream::Stdout, b"later\n");
        let (text, after) = rest(&mut reader);
        assert_eq!((text.as_str(), before.len() + after.len()), ("later\n", 1), "{format:?} {before:?} {after:?}");
    }
}

#[test]
fn characters_are_not_torn_between_two_reads() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), Format::Json, 1);
    for byte in "grün 💡".as_bytes() {
        writer.write(Stream::Stdout, &[*byte]);
        writer.write(Stream::Stderr, b"-");
    }
    writer.write(Stream::Stdout, b"\xe2\x82");
    writer.end(Stream::Stdout);
    let (mut reader, mut out) = (Reader::new(dir.path(), Format::Json, None), String::new());
    for entry in reader.read(1 << 20).unwrap() {
        if let What::Output(Stream::Stdout, bytes) = entry.what {
            out.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
    assert_eq!(out, "grün 💡\u{fffd}");
}

#[test]
fn a_time_a_stream_and_lines_from_the_end_are_chosen() {
    for format in ALL {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path(), format, 50);
        let mut wrote = String::new();
        for n in 0..12_000 {
            wrote.push_str(&line(n));
            writer.write(Stream::Stdout, line(n).as_bytes());
        }
        assert!(segments::list(dir.path()).unwrap().len() > 2, "{format:?}");
        let tail = |tail| asked(dir.path(), format, Query { tail: Some(tail), ..Query::default() });
        for lines in [1, 2, 500, 11_999] {
            let expected: String = (12_000 - lines..12_000).map(line).collect();
            assert!(tail(lines as u64) == expected, "{format:?} {lines}");
        }
        assert!(tail(12_000) == wrote && tail(99_999) == wrote && tail(0).is_empty(), "{format:?}");

        let between = Timestamp::now();
        writer.write(Stream::Stderr, b"an error\n");
        writer.write(Stream::Stdout, b"no end");
        assert_eq!(tail(2), "an error\nno end", "{format:?}");
        let since = Query { since: between, ..Query::default() };
        assert_eq!(asked(dir.path(), format, since.clone()), "an error\nno end", "{format:?}");
        let errors = Query { stream: Some(Stream::Stderr), ..since };
        assert_eq!(asked(dir.path(), format, errors), "an error\n", "{format:?}");
        let errors = Query { stream: Some(Stream::Stderr), tail: Some(9), ..Query::default() };
        assert_eq!(asked(dir.path(), format, errors), "an error\n", "{format:?}");
        let until = Query { until: between, ..Query::default() };
        assert!(asked(dir.path(), format, until.clone()) == wrote, "{format:?}");
        assert_eq!(asked(dir.path(), format, Query { tail: Some(1), ..until }), line(11_999), "{format:?}");
    }
}

#[test]
fn reading_goes_on_at_a_place_that_was_kept() {
    for format in ALL {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(dir.path(), format, 50);
        let mut wrote = String::new();
        for n in 0..9000 {
            wrote.push_str(&line(n));
            writer.write(Stream::Stdout, line(n).as_bytes());
        }
        let (mut text, mut place) = (String::new(), None);
        loop {
            let entries = Reader::new(dir.path(), format, place).read(30_000).unwrap();
            let Some(last) = entries.last() else { break };
            place = Some(last.next);
            for entry in entries {
                let What::Output(_, bytes) = entry.what else { panic!("{entry:?}") };
                text.push_str(std::str::from_utf8(&bytes).unwrap());
            }
        }
        assert!(text == wrote, "{format:?}");
    }
}

/// A disk of so many bytes, that nobody else sees and that goes with its descriptor.
fn disk(size: usize) -> (OwnedFd, PathBuf) {
    let options = vec![format!("size={size}")];
    let mount = cofferdam_types::Mount { kind: "tmpfs".into(), source: "tmpfs".into(), options };
    let fd = cofferdam_sys::mount::detached(&mount).unwrap();
    let path = format!("/proc/self/fd/{}/.", fd.as_raw_fd()).into();
    (fd, path)
}

/// Takes what room there is but so much.
fn fill(disk: &Path, left: usize) -> PathBuf {
    let path = disk.join("filler");
    let mut file = File::create(&path).unwrap();
    while file.write(&[1; 4096]).is_ok_and(|n| n > 0) {}
    let size = file.metadata().unwrap().len();
    file.set_len(size - left as u64).unwrap();
    path
}

#[test]
fn r7_a_full_disk_loses_whole_records_and_the_log_says_how_much() {
    // What was lost is no part of a line, and nothing is counted twice or not at all.
    for (format, left) in ALL.into_iter().flat_map(|format| [0, 4096, 40 << 10].map(|left| (format, left))) {
        let (_disk, dir) = disk(2 << 20);
        let mut writer = writer(&dir, format, 2);
        let (mut wrote, mut n) = (0, 0);
        let mut write = |writer: &mut Writer, times: usize| {
            for _ in 0..times {
                writer.write(Stream::Stdout, line(n).as_bytes());
                (wrote, n) = (wrote + line(n).len(), n + 1);
            }
            wrote as u64
        };
        write(&mut writer, 100);
        assert_eq!(writer.lost(), 0);
        let filler = fill(&dir, left);
        let all_of_it = write(&mut writer, 2000);
        let lost = writer.lost();
        assert!(lost > 0 && lost < all_of_it, "{format:?}, {left}: {lost}");
        let kept = |text: &str| {
            let numbers: Vec<usize> = text.lines().map(|line| line[..7].parse().unwrap()).collect();
            assert!(numbers.iter().is_sorted_by(|a, b| a < b), "{format:?}, {left}");
            assert_eq!(numbers.iter().map(|n| line(*n)).collect::<String>(), text, "{format:?}, {left}: whole lines");
            numbers.len()
        };
        let (text, said) = all(&dir, format);
        assert!(kept(&text) >= 100, "{format:?}, {left}: what was there before is there");
        assert_eq!(text.len() as u64 + lost, all_of_it, "{format:?}, {left}: {said:?}");

        std::fs::remove_file(filler).unwrap();
        let all_of_it = write(&mut writer, 100);
        assert_eq!(writer.lost(), lost, "{format:?}, {left}: it is written again");
        let (text, said) = all(&dir, format);
        assert!(text.ends_with(&line(n - 1)));
        kept(&text);
        assert_eq!(text.len() as u64 + lost, all_of_it, "{format:?}, {left}");
        let number = |why: &String| why.split(' ').next().unwrap().parse::<u64>().unwrap();
        assert_eq!(said.iter().map(number).sum::<u64>(), lost, "{format:?}, {left}: {said:?}");
        assert!(said.iter().all(|why| why.ends_with("bytes could not be written: was the disk full?")), "{said:?}");
    }
}

#[test]
fn r8_times_that_jump_choose_records_and_end_nothing() {
    for format in ALL {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = Vec::new();
        let second = |n: u64| Timestamp(n * 1_000_000_000);
        // Ahead by years, back to where it was, and then behind all.
        for (n, time) in [100, 101, 4_000_000_000, 4_000_000_001, 102, 103, 50, 51].into_iter().enumerate() {
            format.encode(&mut bytes, second(time), Stream::Stdout, format!("{n}\n").as_bytes(), "");
        }
        std::fs::write(dir.path().join(segments::name(0)), bytes).unwrap();
        let ask = |since: u64, until: u64, tail: Option<u64>| {
            let query = Query { since: second(since), until: second(until), tail, ..Query::default() };
            asked(dir.path(), format, query).replace('\n', "")
        };
        assert_eq!(ask(0, 0, None), "01234567", "{format:?}: in the order in which they were written");
        assert_eq!(ask(0, 200, None), "014567", "{format:?}");
        assert_eq!(ask(101, 200, None), "145", "{format:?}");
        assert_eq!(ask(101, 0, None), "12345", "{format:?}");
        assert_eq!(ask(0, 200, Some(3)), "567", "{format:?}");
        assert_eq!(ask(101, 0, Some(2)), "45", "{format:?}");
        // What is written now comes last, whatever the times before say.
        writer(dir.path(), format, 2).write(Stream::Stdout, b"8\n");
        assert_eq!(ask(0, 0, None), "012345678", "{format:?}");
    }
}
