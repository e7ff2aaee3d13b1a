//! Which records are wanted.

use std::path::Path;

use cofferdam_types::{Result, Timestamp};

use crate::{
    Stream,
    format::Format,
    reader::{Entry, Position, Reader, What},
    segments,
};

/// Read at once while lines are counted.
const BLOCK: usize = 256 << 10;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Nothing older; 0 is everything.
    pub since: Timestamp,
    /// Nothing newer; 0 is everything.
    pub until: Timestamp,
    /// One stream alone.
    pub stream: Option<Stream>,
    /// So many lines from the end alone.
    pub tail: Option<u64>,
    /// What is behind this place, instead of the tail.
    pub after: Option<Position>,
}

/// Passes what is asked for.
#[derive(Clone, Debug)]
pub struct Selector {
    query: Query,
    /// Lines to be passed over first.
    skip: u64,
}

impl Selector {
    /// What of an entry is shown. One that is too new says nothing of those behind it: the clock may have been set back.
    pub fn take(&mut self, mut entry: Entry) -> Option<Entry> {
        let (since, until) = (self.query.since, self.query.until);
        // A loss whose time nobody knows belongs to what is around it.
        if entry.time != Timestamp(0) && (entry.time < since || until != Timestamp(0) && entry.time > until) {
            return None;
        }
        match &mut entry.what {
            What::Lost(_) if self.skip > 0 => return None,
            What::Lost(_) => {}
            What::Output(stream, _) if self.query.stream.is_some_and(|wanted| wanted != *stream) => return None,
            What::Output(_, bytes) => {
                while self.skip > 0 {
                    let end = bytes.iter().position(|byte| *byte == b'\n')?;
                    bytes.drain(..=end);
                    self.skip -= 1;
                }
                if bytes.is_empty() {
                    return None;
                }
            }
        }
        Some(entry)
    }
}

/// Where reading begins, and what is passed on from there. With a tail the files are read, the newest first, until they
/// have lines enough.
pub fn start(dir: &Path, format: Format, query: Query) -> Result<(Reader, Selector)> {
    let tail = query.tail.filter(|_| query.after.is_none());
    let Some(tail) = tail else {
        return Ok((Reader::new(dir, format, query.after), Selector { query, skip: 0 }));
    };
    let io = |e| cofferdam_types::Error::io("log", "", "can't be read", &e);
    let numbers = segments::list(dir).map_err(io)?;
    let (mut lines, mut from, mut end) = (0, None, None);
    for number in numbers.into_iter().rev() {
        let counted = count(dir, format, &query, number, end.is_none())?;
        end.get_or_insert(counted.end);
        lines += counted.lines;
        from = Some(Position { segment: number, offset: 0 });
        if lines >= tail {
            break;
        }
    }
    if tail == 0 {
        return Ok((Reader::new(dir, format, end), Selector { query, skip: 0 }));
    }
    // The oldest file may go while nobody has read anything: that is no loss to who asks for the end.
    let from = if lines < tail { None } else { from };
    Ok((Reader::new(dir, format, from), Selector { query, skip: lines.saturating_sub(tail) }))
}

struct Counted {
    lines: u64,
    end: Position,
}

/// Counts the lines of one file; in the newest one what has no end yet counts too.
fn count(dir: &Path, format: Format, query: &Query, segment: u64, newest: bool) -> Result<Counted> {
    let mut reader = Reader::new(dir, format, Some(Position { segment, offset: 0 }));
    let mut selector = Selector { query: query.clone(), skip: 0 };
    let mut counted = Counted { lines: 0, end: reader.position() };
    let mut open = false;
    'all: loop {
        let entries = reader.read(BLOCK)?;
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            if entry.next.segment != segment {
                break 'all;
            }
            counted.end = entry.next;
            if let Some(Entry { what: What::Output(_, bytes), .. }) = selector.take(entry) {
                counted.lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
                open = bytes.last() != Some(&b'\n');
            }
        }
    }
    counted.lines += u64::from(newest && open);
    Ok(counted)
}
