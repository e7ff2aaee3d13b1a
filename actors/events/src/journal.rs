//! The journal on disk: segments of checksummed records, appended in batches, dropped whole when they are old.
//!
//! ```text
//! <first sequence, 20 digits>.seg := "COFJRNL" version:u8  record*
//! record                          := length:u32le  check:u64le  payload      (payload: the event, CBOR)
//! ```
//! Inside a segment the sequence grows by one from record to record, so a record needs no number: the check is taken
//! over the number that its place implies and the payload. A jump in the sequence begins a new segment. Only the last
//! segment is ever written, so only its tail can be torn; what comes after the last whole record was never
//! acknowledged, is still in the outbox, and is cut off when the journal opens.
//!
//! What is not whole, and was acknowledged, the disk has changed since. It is passed over, to the next whole record to which
//! the lengths lead: readers have a gap for so much. Where they lead to none, the rest of the segment is that gap. It stays
//! as it is, and what comes begins another.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufReader, ErrorKind, Read, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cofferdam_segments::{Clock, Directory, Retention, Segment, modified, over, system};
use cofferdam_types::{Error, Event, Result, Timestamp};
use nix::fcntl::OFlag;

/// What it is called in errors.
const KIND: &str = "journal";
const MAGIC: &[u8; 7] = b"COFJRNL";
const VERSION: u8 = 1;
const HEAD: u64 = 8;
const RECORD_HEAD: usize = 12;
/// No event is bigger (a message has 1 MiB at most): a greater length is garbage.
const MAX_RECORD: u32 = 4 << 20;
/// Events that are written at once.
const RUN: usize = 256;
/// How many bytes of events are read at once, as they lie on disk: in memory they may take many times that.
pub(crate) const BLOCK: usize = 128 << 10;

/// How much history is kept.
pub const RETENTION: Retention =
    Retention { bytes: 64 << 20, age: Duration::from_secs(7 * 24 * 3600), segment: 4 << 20 };

/// Where a reader stands: the sequence that it wants next, and the place where that is likely to be.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    /// The sequence wanted next.
    pub next: u64,
    place: Option<Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    segment: u64,
    /// Of the record at `offset`; the reader may have moved on without us.
    sequence: u64,
    offset: u64,
}

impl Cursor {
    /// A reader that wants `next`.
    pub fn at(next: u64) -> Cursor {
        Cursor { next, place: None }
    }
}

/// What a read gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Chunk {
    /// Events, the first of which is the one wanted.
    Events(Vec<Event>),
    /// The events from one sequence to the other are no more: retention dropped them, or the disk lost them.
    Gap {
        /// The first that is missing.
        from: u64,
        /// The last that is missing.
        to: u64,
    },
    /// The journal has not come as far.
    End,
}

/// What the disk has changed of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its first sequence.
    pub segment: u64,
    /// From which event to which none can be read.
    pub lost: Vec<(u64, u64)>,
}

/// The journal. One appends, any number read meanwhile.
#[derive(Debug)]
pub struct Journal {
    dir: Directory,
    retention: Retention,
    /// Held for as long as it takes to find a segment, never across a sync.
    index: Mutex<VecDeque<Segment>>,
    /// Held by the one that appends.
    writer: Mutex<Option<File>>,
    clock: Clock,
}

impl Journal {
    /// Opens the journal in `dir`, cuts off a torn tail, and forgets events beyond `committed`: the store's own count
    /// of events that have happened. There are such events only when the store was put back to an older state, and
    /// then their numbers will be given out again. Up to `taken` the journal had them all once, and nobody else
    /// has. [`u64::MAX`]: nobody knows, and nothing is written.
    pub fn open(dir: OwnedFd, retention: Retention, committed: u64, taken: u64) -> Result<Journal> {
        let dir = Directory::new(dir, KIND);
        let mut firsts = dir.firsts()?;
        let (index, writer, clock) = (Mutex::default(), Mutex::default(), Clock::at(Timestamp::now()));
        let mut journal = Journal { dir, retention, index, writer, clock };
        while let Some(&first) = firsts.last() {
            if first <= committed && journal.recover(first, committed, taken)? {
                break;
            }
            if taken < u64::MAX {
                tracing::warn!(first, committed, "a segment of the journal that holds no valid event is removed");
                journal.dir.unlink(first)?;
            }
            firsts.pop();
        }
        firsts.pop();
        let newest = lock(&journal.index).back().map(|segment| segment.newest);
        if let Some(newest) = newest {
            journal.clock = Clock::at(newest);
        }
        for first in firsts.into_iter().rev() {
            let meta = journal.dir.open(first, OFlag::O_RDONLY)?.metadata().map_err(|e| fault("stat", &e))?;
            let time = modified(&meta);
            lock(&journal.index).push_front(Segment { first, last: 0, bytes: meta.len(), oldest: time, newest: time });
        }
        Ok(journal)
    }

    /// A number that no event of the journal in this directory exceeds: that of its last record, and so much more as there may be
    /// in what can't be read behind it. Nothing is written.
    pub fn highest(dir: OwnedFd) -> Result<u64> {
        let dir = Directory::new(dir, KIND);
        let Some(first) = dir.firsts()?.pop() else { return Ok(0) };
        let file = dir.open(first, OFlag::O_RDONLY)?;
        let length = file.metadata().map_err(|e| fault("stat", &e))?.len();
        let mut records = Records::open(&file, first, HEAD)?;
        // A disk that can't be read is no reason to know less: what lies behind is counted by its length.
        while records.next().is_ok_and(|record| record.is_some()) {}
        Ok((records.sequence - 1).saturating_add(length.saturating_sub(records.offset) / RECORD_HEAD as u64))
    }

    /// Takes over the last segment: finds its last whole record and cuts off the rest, unless that was acknowledged. False when
    /// nothing in it is worth keeping.
    fn recover(&self, first: u64, committed: u64, taken: u64) -> Result<bool> {
        let blind = taken == u64::MAX;
        let flags = if blind { OFlag::O_RDONLY } else { OFlag::O_RDWR };
        let file = self.dir.open(first, flags)?;
        let meta = file.metadata().map_err(|e| fault("stat", &e))?;
        let time = modified(&meta);
        let mut head = [0; HEAD as usize];
        let short = file.read_exact_at(&mut head, 0).is_err();
        let known = &head[..7] == MAGIC && head[7] != 0;
        if short || !known && first > taken {
            return Ok(false);
        }
        if known && head[7] != VERSION {
            return Err(Error::failed_precondition(
                "journal",
                Segment::name(first),
                format!("has format version {}, this build knows {VERSION}: use the newer build", head[7]),
            ));
        }
        let mut records = Records::open(&file, first, HEAD)?;
        let mut damage = None;
        while records.sequence <= committed {
            if records.next()?.is_some() {
                continue;
            }
            // What the outbox still has comes once more.
            if records.sequence > taken || records.offset >= meta.len() {
                break;
            }
            damage = damage.or(Some(records.sequence));
            if !records.pass(taken.saturating_add(1))? {
                // It may be torn as well where nobody knows what was acknowledged.
                let bytes = if blind { records.offset } else { meta.len() };
                damaged(first, damage.filter(|_| !blind));
                let last = records.sequence - 1;
                lock(&self.index).push_back(Segment { first, last, bytes, oldest: time, newest: time });
                return Ok(true);
            }
        }
        damaged(first, damage);
        let (last, bytes) = (records.sequence - 1, records.offset);
        if last < first {
            return Ok(false);
        }
        let segment = Segment { first, last, bytes, oldest: time, newest: time };
        if blind {
            lock(&self.index).push_back(segment);
            return Ok(true);
        }
        if bytes < meta.len() {
            tracing::warn!(first, last, cut = meta.len() - bytes, "the tail of the journal is cut off");
            file.set_len(bytes)
                .and_then(|()| file.set_modified(system(time)))
                .map_err(|e| fault("cut the tail of", &e))?;
        }
        // Who wrote it may have died before it was synced: then only memory has it, and the outbox is trimmed by it.
        file.sync_all().and_then(|()| self.dir.sync()).map_err(|e| fault("sync", &e))?;
        lock(&self.index).push_back(segment);
        *lock(&self.writer) = Some(file);
        Ok(true)
    }

    /// The last sequence that the journal holds; 0 for none.
    pub fn last(&self) -> u64 {
        lock(&self.index).back().map_or(0, |segment| segment.last)
    }

    /// What the disk has changed: of each segment in which that is so, its first sequence, and which events of it can't be read.
    pub fn damage(&self) -> Result<Vec<Damage>> {
        let index = lock(&self.index).clone();
        let mut all = Vec::new();
        for (n, segment) in index.iter().enumerate() {
            let file = match self.dir.open(segment.first, OFlag::O_RDONLY) {
                // Retention took it since we looked.
                Err(error) if error.code == cofferdam_types::Code::NotFound => continue,
                file => file?,
            };
            let last = index.get(n + 1).map_or(segment.last, |next| next.first - 1);
            let (mut records, mut lost) = (Records::open(&file, segment.first, HEAD)?, Vec::new());
            while records.sequence <= last {
                let from = records.sequence;
                if records.next()?.is_some() {
                    continue;
                }
                if records.offset >= segment.bytes {
                    break;
                }
                let passed = records.pass(last)?;
                lost.push((from, if passed { records.sequence - 1 } else { last }));
                if !passed {
                    break;
                }
            }
            // The last one may go on behind its last whole record, and nobody knows how far.
            if lost.is_empty() && records.sequence > last && records.offset < segment.bytes {
                lost.push((records.sequence, records.sequence));
            }
            if !lost.is_empty() {
                all.push(Damage { segment: segment.first, lost });
            }
        }
        Ok(all)
    }

    /// The first sequence that the journal holds, if it holds any.
    #[cfg(test)]
    pub fn first(&self) -> Option<u64> {
        lock(&self.index).front().map(|segment| segment.first)
    }

    /// Appends events in the order of their sequence and syncs them. Those that the journal already has are skipped,
    /// so that a batch may be given again after a crash. When it fails the journal is as it was.
    pub fn append(&self, events: &[Event]) -> Result<()> {
        let mut writer = lock(&self.writer);
        let mut rest = events;
        loop {
            let last = self.last();
            let known = rest.iter().take_while(|event| event.sequence <= last).count();
            rest = &rest[known..];
            let Some(first) = rest.first() else { break };
            if first.sequence == 0 {
                return Err(Error::internal("event", &first.topic, "has no sequence number"));
            }
            let active = lock(&self.index).back().copied();
            let active = active.filter(|segment| {
                first.sequence == segment.last + 1 && segment.is_open(&self.retention, self.clock.now())
            });
            // A segment may outgrow its size by one such run.
            let run = rest.iter().zip(first.sequence..).take(RUN).take_while(|(event, due)| event.sequence == *due);
            let run = &rest[..run.count()];
            match (active, &*writer) {
                (Some(segment), Some(file)) => self.extend(file, segment, run)?,
                _ => *writer = Some(self.begin(run)?),
            }
            rest = &rest[run.len()..];
        }
        self.retain(self.clock.now());
        Ok(())
    }

    fn extend(&self, file: &File, segment: Segment, events: &[Event]) -> Result<()> {
        let records = encode(events)?;
        let now = self.clock.now();
        let written = file
            .write_all_at(&records, segment.bytes)
            .and_then(|()| file.set_modified(system(now)))
            .and_then(|()| file.sync_data());
        if let Err(error) = written {
            // Whatever got there lies behind the end that the index knows; the next append overwrites it.
            let _ = file.set_len(segment.bytes);
            return Err(fault("append to", &error));
        }
        if let Some(back) = lock(&self.index).back_mut() {
            back.bytes += records.len() as u64;
            back.last += events.len() as u64;
            back.newest = now;
        }
        Ok(())
    }

    fn begin(&self, events: &[Event]) -> Result<File> {
        let (first, now) = (events[0].sequence, self.clock.now());
        let mut bytes = [MAGIC.as_slice(), &[VERSION]].concat();
        bytes.extend(encode(events)?);
        let file = self.dir.begin(first, &bytes, now)?;
        lock(&self.index).push_back(Segment {
            first,
            last: first + events.len() as u64 - 1,
            bytes: bytes.len() as u64,
            oldest: now,
            newest: now,
        });
        Ok(file)
    }

    /// Drops the oldest segments, never the last one. A segment that can't be removed is tried again next time.
    fn retain(&self, now: Timestamp) {
        loop {
            let Some(oldest) = over(&lock(&self.index), &self.retention, now) else { return };
            if let Err(error) = self.dir.unlink(oldest.first) {
                tracing::warn!(%error, first = oldest.first, "an old segment of the journal can't be removed");
                return;
            }
            lock(&self.index).pop_front();
        }
    }

    /// Reads at most `max` events from where the cursor stands and moves it on, past a gap too.
    pub fn read(&self, cursor: &mut Cursor, max: usize) -> Result<Chunk> {
        loop {
            let (segment, next) = {
                let index = lock(&self.index);
                let Some((front, back)) = index.front().zip(index.back()) else { return Ok(Chunk::End) };
                if cursor.next > back.last {
                    return Ok(Chunk::End);
                }
                if cursor.next < front.first {
                    return Ok(gap(cursor, front.first));
                }
                let place = index.partition_point(|segment| segment.first <= cursor.next) - 1;
                (index[place], index.get(place + 1).map(|segment| segment.first))
            };
            let start = cursor.place.filter(|place| place.segment == segment.first && place.sequence <= cursor.next);
            let start = start.unwrap_or(Place { segment: segment.first, sequence: segment.first, offset: HEAD });
            let file = match self.dir.open(segment.first, OFlag::O_RDONLY) {
                Ok(file) => file,
                // Retention took it since we looked.
                Err(error) if error.code == cofferdam_types::Code::NotFound => {
                    let gone = lock(&self.index).iter().all(|other| other.first != segment.first);
                    if gone {
                        continue;
                    }
                    match next {
                        Some(next) => return Ok(gap(cursor, next)),
                        None => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            };
            let mut records = Records::open(&file, start.sequence, start.offset)?;
            let (mut events, mut bytes, mut offset) = (Vec::new(), 0, start.offset);
            // The end of the last segment is where the index says: behind it an append may be under way.
            while events.len() < max && bytes < BLOCK && (next.is_some() || records.sequence <= segment.last) {
                let sequence = records.sequence;
                let Some(payload) = records.next()? else {
                    // What was before it comes first.
                    if !events.is_empty() || !records.pass(next.map_or(segment.last, |next| next - 1))? {
                        break;
                    }
                    match records.sequence <= cursor.next {
                        true => continue,
                        false => return Ok(gap(cursor, records.sequence)),
                    }
                };
                if sequence < cursor.next {
                    continue;
                }
                bytes += payload.len();
                match cbor4ii::serde::from_slice(payload) {
                    Ok(event) => {
                        events.push(event);
                        offset = records.offset;
                    }
                    // What was before it comes first.
                    Err(_) if !events.is_empty() => break,
                    // What was written is no event: as good as lost.
                    Err(error) => {
                        tracing::warn!(sequence, %error, "an event of the journal can't be read: it is told as a gap");
                        return Ok(gap(cursor, sequence + 1));
                    }
                }
            }
            if !events.is_empty() {
                cursor.next += events.len() as u64;
                cursor.place = Some(Place { segment: segment.first, sequence: cursor.next, offset });
                return Ok(Chunk::Events(events));
            }
            if max == 0 {
                return Ok(Chunk::Events(events));
            }
            // Nothing whole where there should be something: the segment ends early.
            return Ok(gap(cursor, next.unwrap_or(segment.last + 1)));
        }
    }
}

fn damaged(segment: u64, from: Option<u64>) {
    if let Some(from) = from {
        tracing::error!(
            segment,
            from,
            "the disk has changed the journal of events: who follows has a gap there, and coffer system check says which"
        );
    }
}

fn gap(cursor: &mut Cursor, next: u64) -> Chunk {
    let from = std::mem::replace(&mut cursor.next, next);
    cursor.place = None;
    Chunk::Gap { from, to: next - 1 }
}

/// Walks the records of a segment until the first that is not whole.
struct Records<'f> {
    reader: BufReader<&'f File>,
    /// Of the record that comes next.
    sequence: u64,
    offset: u64,
    payload: Vec<u8>,
}

impl<'f> Records<'f> {
    fn open(mut file: &'f File, sequence: u64, offset: u64) -> Result<Records<'f>> {
        file.seek(SeekFrom::Start(offset)).map_err(|e| fault("read", &e))?;
        Ok(Records { reader: BufReader::with_capacity(64 << 10, file), sequence, offset, payload: Vec::new() })
    }

    /// Goes on behind what is not what was written, to the next record that is: as far as lengths lead there, and the number of
    /// that is at most `most`. False where there is none, and back where it was.
    fn pass(&mut self, most: u64) -> Result<bool> {
        let stood = (self.sequence, self.offset);
        let mut len = [0; 4];
        while self.sequence < most {
            self.seek(self.sequence, self.offset)?;
            if !fill(&mut self.reader, &mut len)? {
                break;
            }
            let len = u32::from_le_bytes(len);
            if len == 0 || len > MAX_RECORD {
                break;
            }
            let behind = (self.sequence + 1, self.offset + RECORD_HEAD as u64 + u64::from(len));
            self.seek(behind.0, behind.1)?;
            if self.next()?.is_some() {
                self.seek(behind.0, behind.1)?;
                return Ok(true);
            }
        }
        self.seek(stood.0, stood.1)?;
        Ok(false)
    }

    fn seek(&mut self, sequence: u64, offset: u64) -> Result<()> {
        (self.sequence, self.offset) = (sequence, offset);
        self.reader.seek(SeekFrom::Start(offset)).map(drop).map_err(|e| fault("read", &e))
    }

    fn next(&mut self) -> Result<Option<&[u8]>> {
        let mut head = [0; RECORD_HEAD];
        if !fill(&mut self.reader, &mut head)? {
            return Ok(None);
        }
        let [l0, l1, l2, l3, check @ ..] = head;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        if len == 0 || len > MAX_RECORD {
            return Ok(None);
        }
        self.payload.resize(len as usize, 0);
        if !fill(&mut self.reader, &mut self.payload)? || check != checksum(self.sequence, &self.payload) {
            return Ok(None);
        }
        self.sequence += 1;
        self.offset += RECORD_HEAD as u64 + u64::from(len);
        Ok(Some(&self.payload))
    }
}

/// Fills the buffer; false when the file ends before that.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(fault("read", &error)),
    }
}

fn encode(events: &[Event]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for event in events {
        let start = bytes.len();
        bytes.extend([0; RECORD_HEAD]);
        bytes = cbor4ii::serde::to_vec(bytes, event)
            .map_err(|e| Error::internal("event", event.sequence, format!("can't be encoded: {e}")))?;
        let (head, payload) = bytes[start..].split_at_mut(RECORD_HEAD);
        let len = u32::try_from(payload.len()).ok().filter(|len| *len <= MAX_RECORD);
        let len = len.ok_or_else(|| Error::internal("event", event.sequence, "is too big for the journal"))?;
        head[..4].copy_from_slice(&len.to_le_bytes());
        head[4..].copy_from_slice(&checksum(event.sequence, payload));
    }
    Ok(bytes)
}

fn checksum(sequence: u64, payload: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&sequence.to_le_bytes()).update(payload);
    let mut check = [0; 8];
    hasher.finalize_xof().fill(&mut check);
    check
}

fn fault(what: &str, error: &std::io::Error) -> Error {
    Error::io("journal", "", format!("can't {what} the journal of events"), error)
}

/// No invariant spans a panic under these locks: each change under them is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
