//! The whole chain, read again: whether it is what was written, and where it is not.

use cofferdam_metadata::records::audit::Head;
use cofferdam_segments::Directory;
use cofferdam_types::{Code, Result};
use nix::fcntl::OFlag;

use crate::chain::{self, Frames, HEAD};

/// Places that are told at most.
const MOST: usize = 100;

/// A place where the log is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The record there.
    pub number: u64,
    /// What is wrong.
    pub message: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The first record that there should be.
    pub first: u64,
    /// The last that was found, or should be there.
    pub last: u64,
    /// Records that are what was written.
    pub sound: u64,
    /// What the chain comes to, as it is on record.
    pub hash: [u8; 32],
    /// At most so many as one can read.
    pub broken: Vec<Broken>,
}

impl Report {
    fn say(&mut self, number: u64, message: impl Into<String>) {
        if self.broken.len() < MOST {
            self.broken.push(Broken { number, message: message.into() });
        }
    }

    /// That these are missing.
    fn missing(&mut self, from: u64, to: u64, how: &str) {
        if from == to {
            self.say(from, format!("record {from} {how}"));
        } else {
            self.say(from, format!("records {from} to {to} {how}"));
        }
    }
}

/// Reads everything. Behind the head there may be more, which nobody has spoken for yet.
pub fn verify(dir: &Directory, head: &Head) -> Result<Report> {
    let mut report = Report { first: head.first, last: head.last, hash: head.hash, ..Report::default() };
    let firsts: Vec<u64> = dir.firsts()?.into_iter().filter(|first| *first >= head.first).collect();
    // What comes next, and what the chain came to before that.
    let (mut expected, mut hash) = (head.first, head.before);
    let mut over = false;
    let mut meets = head.last.checked_add(1) == Some(head.first);
    for (n, first) in firsts.iter().copied().enumerate() {
        // Nobody has spoken for anything in it.
        if first > head.last {
            break;
        }
        let next = firsts.get(n + 1).copied();
        if first > expected {
            report.missing(expected, first - 1, "can't be found: their segment is gone, or ends early");
        } else if first < expected {
            report.say(first, "a segment begins within the one before it");
        }
        expected = first;
        let file = match dir.open(first, OFlag::O_RDONLY) {
            Ok(file) => file,
            Err(error) if error.code == Code::NotFound => continue,
            Err(error) => return Err(error),
        };
        match chain::before(&file)? {
            None => {
                report.say(first, "the segment doesn't begin as one, and can't be read");
                continue;
            }
            Some(before) if before != hash => {
                report.say(first, "the segment doesn't follow from what is before it");
                hash = before;
            }
            Some(before) => hash = before,
        }
        let mut frames = Frames::at(&file, HEAD, hash)?;
        while let Some(frame) = frames.next()? {
            let number = frame.number;
            // Nobody has spoken for it: an append that is under way, or was when the power went.
            if expected > head.last && (number != expected || !frame.sound) {
                break;
            }
            if number < expected || next.is_some_and(|next| number >= next) || number - expected > 1 << 32 {
                report.say(expected, format!("record {expected} and what is behind it in its segment can't be read"));
                break;
            }
            let altered = !frame.sound || frame.record().is_none();
            if number > expected {
                report.missing(expected, number - 1, "was removed");
            } else if altered {
                report.say(number, format!("record {number} is not what was written"));
            }
            report.sound += u64::from(!altered);
            if number == head.last {
                meets = frame.hash == head.hash;
            }
            hash = frame.hash;
            // There is none behind the last number that there is.
            over = number == u64::MAX;
            expected = number.saturating_add(1);
        }
    }
    if expected <= head.last && !over {
        report.missing(expected, head.last, "was cut off: they were the last");
    } else if !meets && report.broken.is_empty() {
        report
            .say(head.last, format!("the log was written anew: record {} is not the one that was the last", head.last));
    }
    report.last = report.last.max(expected.saturating_sub(1));
    Ok(report)
}
