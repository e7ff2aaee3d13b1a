//! The audit log, as a disk may give it back.

use std::{fs, fs::File, time::Duration};

use cofferdam_audit::{
    Filter, Place, Record, Verdict,
    files::{Hash, Log, link, verify},
};
use cofferdam_metadata::records::audit::Head;
use cofferdam_segments::{Directory, Retention};

use super::own::part;

/// The log's directory: opened, read again, gone on with. The first byte says whether there is a row and what it says; then come
/// files: what they are, the first number, and their bytes.
pub fn audit(data: &[u8]) {
    let (how, mut data) = super::choice(data);
    let scratch = super::scratch();
    let (mut last, mut hash) = (0u64, [0; 32]);
    while let [kind, first, rest @ ..] = data {
        data = rest;
        let Some(bytes) = part(&mut data, true) else { break };
        let first = if kind & 4 == 0 { u64::from(*first) } else { u64::MAX - 8 - u64::from(*first) };
        let bytes = if kind & 1 == 0 {
            bytes.to_vec()
        } else {
            let (bytes, number, end) =
                sealed(first, if Some(first) == last.checked_add(1) { hash } else { [7; 32] }, bytes);
            (last, hash) = (number, end);
            bytes
        };
        fs::write(scratch.path().join(format!("{first:020}.seg")), bytes).expect("a file");
    }
    let head = match how % 4 {
        0 => None,
        1 => Some(Head { first: 1, before: [0; 32], last, hash }),
        2 => Some(Head { first: 1, before: [0; 32], last: u64::from(how), hash: [3; 32] }),
        _ => Some(Head { first: u64::from(how), before: [0; 32], last: u64::from(how) - 1, hash: [0; 32] }),
    };
    let dir = || File::open(scratch.path()).expect("it is there").into();
    let retention = Retention { bytes: 1 << 20, age: Duration::from_secs(3600), segment: 512 };
    let (mut log, _) = Log::open(dir(), retention, head).expect("whatever lies there, it is opened");
    if let Some(head) = &head {
        assert!(log.head().last >= head.last, "no number is given twice");
    }
    let before = log.head().last;
    if before > u64::MAX - 8 {
        return;
    }
    for n in 0..3 {
        log.append(&[Record { detail: n.to_string(), ..Record::new("fuzz", Verdict::Allowed) }]).expect("it goes on");
    }
    assert_eq!(log.head().last, before + 3);
    let mut place = Place::after(before);
    let (mut news, mut end) = (Vec::new(), false);
    while !end {
        let (found, over) = log.seen().read(&mut place, 2, &Filter::default()).expect("it can be read");
        (news, end) = ([news, found].concat(), over);
    }
    let told: Vec<_> = news.iter().map(|found| (found.number, found.record.is_some())).collect();
    assert_eq!(told, (before + 1..=before + 3).map(|number| (number, true)).collect::<Vec<_>>());
    let report = verify(&Directory::new(dir(), "audit log"), &log.head()).expect("it can be read again");
    assert!(report.broken.len() <= 100);
    // What was found whole is found so again, and ends in the same place.
    let (again, said) = Log::open(dir(), retention, Some(log.head())).expect("it was opened before");
    assert_eq!((again.head().last, again.head().hash), (log.head().last, log.head().hash));
    assert_eq!(said, None);
}

/// A segment whose chain is right, whatever its records say.
fn sealed(first: u64, before: Hash, mut data: &[u8]) -> (Vec<u8>, u64, Hash) {
    let mut bytes = [&b"COFAUDT\x01"[..], &before].concat();
    let (mut number, mut hash) = (first.wrapping_sub(1), before);
    while let Some(payload) = part(&mut data, false) {
        number = number.wrapping_add(1);
        hash = link(&hash, number, payload);
        bytes.extend(u32::try_from(payload.len()).expect("it is short").to_le_bytes());
        bytes.extend(number.to_le_bytes());
        bytes.extend(hash);
        bytes.extend(payload);
    }
    (bytes, number, hash)
}
