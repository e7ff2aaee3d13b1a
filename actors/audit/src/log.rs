//! The log on disk: it appends, finds its end again, and knows what is old.

use std::{
    collections::VecDeque,
    fs::File,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    sync::Arc,
    time::Duration,
};

use cofferdam_metadata::records::audit::Head;
use cofferdam_segments::{Clock, Directory, Retention, Segment, modified, over, system};
use cofferdam_types::{Code, Error, Result, Timestamp};
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, OFlag, fallocate},
};

use crate::{
    Filter, Record,
    chain::{self, Frames, HEAD, Hash},
};

/// How much is kept.
pub const RETENTION: Retention =
    Retention { bytes: 128 << 20, age: Duration::from_secs(180 * 24 * 3600), segment: 1 << 20 };

/// The room that is held ahead of the end of the log: for some 200 records.
const AHEAD: u64 = 64 << 10;

/// Records that one read looks at when a filter lets few through: the next read goes on there.
const LOOK: usize = 10_000;

/// The log. One appends; who reads needs a [`Seen`] alone.
#[derive(Debug)]
pub struct Log {
    dir: Arc<Directory>,
    retention: Retention,
    index: VecDeque<Segment>,
    /// The first record that is kept. Where its segment is gone that is somebody else's doing, and to be seen.
    first: u64,
    /// What the chain came to before it.
    before: Hash,
    /// The last of the segments, where it may be written.
    file: Option<File>,
    last: u64,
    hash: Hash,
    clock: Clock,
    /// Up to there the last segment has blocks.
    held: u64,
}

/// What of the log can be read: all that is on disk.
#[derive(Clone, Debug)]
pub struct Seen {
    dir: Arc<Directory>,
    index: VecDeque<Segment>,
}

impl Log {
    /// Opens the log in `dir`, which begins and ends where `head` says, and cuts off what is torn behind that. Where it doesn't
    /// lead there nothing is changed: it goes on in a new segment. Also gives what there is to say about that.
    pub fn open(dir: OwnedFd, retention: Retention, head: Option<Head>) -> Result<(Log, Option<String>)> {
        let dir = Arc::new(Directory::new(dir, "audit log"));
        let mut firsts = dir.firsts()?;
        if let Some(head) = &head {
            // The row went first: these were to go too.
            let (old, kept): (Vec<_>, _) = firsts.into_iter().partition(|first| *first < head.first);
            old.into_iter().try_for_each(|first| dir.unlink(first))?;
            firsts = kept;
        }
        let mut index = VecDeque::new();
        for first in firsts {
            let meta = dir.open(first, OFlag::O_RDONLY)?.metadata().map_err(|e| dir.fault("stat", &e))?;
            let time = modified(&meta);
            index.push_back(Segment { first, last: 0, bytes: meta.len(), oldest: time, newest: time });
        }
        let clock = Clock::at(index.back().map_or_else(Timestamp::now, |segment: &Segment| segment.newest));
        let Head { first, before, last, hash } =
            head.unwrap_or(Head { first: 1, before: [0; 32], last: 0, hash: [0; 32] });
        let mut log = Log { dir, retention, index, first, before, file: None, last, hash, clock, held: 0 };
        let said = log.recover(head.as_ref())?;
        Ok((log, said))
    }

    /// Finds the end in the last segment.
    fn recover(&mut self, head: Option<&Head>) -> Result<Option<String>> {
        let Some(mut segment) = self.index.back().copied() else {
            let lost = head.filter(|head| head.last >= head.first);
            return Ok(lost.map(|head| format!("records {} to {} are not there", head.first, head.last)));
        };
        // On a disk that is read-only it is read, and stays as it is.
        let (file, frozen) = match self.dir.open(segment.first, OFlag::O_RDWR) {
            Err(error) if error.is_read_only_disk() => (self.dir.open(segment.first, OFlag::O_RDONLY)?, true),
            opened => (opened?, false),
        };
        let Some(before) = chain::before(&file)? else {
            // Torn while it was begun, or not what was written.
            return match head {
                Some(head) if segment.first > head.last => {
                    self.dir.unlink(segment.first)?;
                    self.index.pop_back();
                    self.recover(Some(head))
                }
                _ => Ok(Some(self.go_on(segment.first, "the last segment doesn't begin as one"))),
            };
        };
        let (mut number, mut end, mut leads) = (segment.first - 1, HEAD, false);
        if let Some(head) = head {
            leads = number >= head.last && (number > head.last || before == head.hash);
        }
        let mut frames = Frames::at(&file, HEAD, before)?;
        let mut hash = before;
        while let Some(frame) = frames.next()? {
            if !frame.sound || frame.number != number + 1 {
                break;
            }
            (number, hash) = (frame.number, frame.hash);
            leads |= head.is_some_and(|head| head.last == number && head.hash == hash);
            end = frames.offset;
        }
        match head {
            Some(head) if !leads => {
                let why = format!("the log doesn't lead to record {}, which was its last", head.last);
                return Ok(Some(self.go_on(number, &why)));
            }
            Some(_) => {}
            // No row, but a log: what it says of itself is all that is known.
            None => {
                let first = self.index.front().map_or(segment.first, |segment| segment.first);
                self.first = first;
                self.before = chain::before(&self.dir.open(first, OFlag::O_RDONLY)?)?.unwrap_or_default();
            }
        }
        if end < segment.bytes && !frozen {
            let cut = segment.bytes - end;
            tracing::warn!(last = number, cut, "the torn end of the audit log is cut off");
            file.set_len(end)
                .and_then(|()| file.set_modified(system(segment.newest)))
                .map_err(|e| self.dir.fault("cut the end of", &e))?;
            segment.bytes = end;
        }
        // Who wrote it may have died before it was synced: then only memory has it, and the row would say that it is there.
        if !frozen {
            file.sync_all().and_then(|()| self.dir.sync()).map_err(|e| self.dir.fault("sync", &e))?;
        }
        segment.last = number;
        if number < segment.first && !frozen {
            // Begun, and nothing in it yet: it is begun again.
            self.dir.unlink(segment.first)?;
            self.index.pop_back();
            (self.last, self.hash) = (number, before);
            if let Some(back) = self.index.back_mut() {
                back.last = number;
            }
        } else {
            (self.last, self.hash, self.file) = (number, hash, (!frozen).then_some(file));
            self.held = segment.bytes;
            if let Some(back) = self.index.back_mut() {
                *back = segment;
            }
        }
        let said = head.is_none().then(|| format!("it was lost where the log ends: taken for that is record {number}"));
        Ok(said)
    }

    /// Leaves what is there as it is: the log goes on behind it, and behind what the row says.
    fn go_on(&mut self, number: u64, why: &str) -> String {
        self.last = self.last.max(number);
        if let Some(back) = self.index.back_mut() {
            back.last = self.last;
        }
        format!("{why}: it goes on behind record {}", self.last)
    }

    /// Where it begins and ends.
    pub fn head(&self) -> Head {
        Head { first: self.first, before: self.before, last: self.last, hash: self.hash }
    }

    /// What can be read.
    pub fn seen(&self) -> Seen {
        Seen { dir: self.dir.clone(), index: self.index.clone() }
    }

    /// Appends and syncs. When it fails the log is as it was.
    pub fn append(&mut self, records: &[Record]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let open = self.index.back().is_some_and(|last| last.is_open(&self.retention, self.clock.now()));
        if open && self.file.is_some() {
            return self.extend(records);
        }
        match self.begin(records) {
            // There is room in the old one.
            Err(error) if error.code == Code::ResourceExhausted && self.file.is_some() => self.extend(records),
            begun => begun,
        }
    }

    fn extend(&mut self, records: &[Record]) -> Result<()> {
        let (Some(file), Some(last)) = (&self.file, self.index.back_mut()) else {
            return Err(Error::internal("audit", "", "the log has no segment to append to"));
        };
        let (mut number, mut hash) = (self.last, self.hash);
        let bytes = chain::encode(records, &mut number, &mut hash)?;
        let now = self.clock.now();
        let written = file
            .write_all_at(&bytes, last.bytes)
            .and_then(|()| file.set_modified(system(now)))
            .and_then(|()| file.sync_data());
        if let Err(error) = written {
            let _ = file.set_len(last.bytes);
            self.held = 0;
            return Err(self.dir.fault("append to", &error));
        }
        (last.bytes, last.last, last.newest) = (last.bytes + bytes.len() as u64, number, now);
        (self.last, self.hash) = (number, hash);
        Ok(())
    }

    fn begin(&mut self, records: &[Record]) -> Result<()> {
        let (first, now, before) = (self.last + 1, self.clock.now(), self.hash);
        let (mut number, mut hash) = (self.last, before);
        let bytes = [chain::head(&before), chain::encode(records, &mut number, &mut hash)?].concat();
        let file = self.dir.begin(first, &bytes, now)?;
        if let (Some(old), Some(last)) = (&self.file, self.index.back()) {
            // What was held ahead of its end.
            let _ = old.set_len(last.bytes).and_then(|()| old.set_modified(system(last.newest)));
        }
        let bytes = bytes.len() as u64;
        self.index.push_back(Segment { first, last: number, bytes, oldest: now, newest: now });
        (self.last, self.hash, self.file, self.held) = (number, hash, Some(file), bytes);
        Ok(())
    }

    /// Sees to it that there is room ahead of the end.
    pub fn hold(&mut self) -> Result<()> {
        let (Some(file), Some(last)) = (&self.file, self.index.back()) else { return Ok(()) };
        if self.held >= last.bytes + AHEAD / 2 {
            return Ok(());
        }
        // From what is held on: where that fails some file systems give back all that was asked for.
        let (from, to) = (self.held.max(last.bytes), last.bytes + AHEAD);
        match fallocate(file.as_fd(), FallocateFlags::FALLOC_FL_KEEP_SIZE, from as i64, (to - from) as i64) {
            // Where a file system can't, room is seen to be missing when it is.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.held = to,
            Err(error) => return Err(self.dir.fault("hold room for", &error.into())),
        }
        Ok(())
    }

    /// Takes the old segments off the log. They are to be removed once the head is on record: see [`Log::remove`].
    pub fn retire(&mut self) -> Vec<u64> {
        let mut gone = Vec::new();
        while let Some(oldest) = over(&self.index, &self.retention, self.clock.now()) {
            let Some(next) = self.index.get(1).copied() else { break };
            let before = self.dir.open(next.first, OFlag::O_RDONLY).and_then(|file| chain::before(&file));
            // One that is broken is as good a beginning as it can be.
            (self.first, self.before) = (next.first, before.ok().flatten().unwrap_or_default());
            self.index.pop_front();
            gone.push(oldest.first);
        }
        gone
    }

    /// Removes segments that were taken off. What can't be removed the next start removes.
    pub fn remove(&self, gone: &[u64]) {
        for first in gone {
            if let Err(error) = self.dir.unlink(*first) {
                tracing::warn!(%error, first, "an old segment of the audit log can't be removed");
            }
        }
    }
}

/// Where a reader stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// What it has seen last.
    pub after: u64,
    /// Segment, offset there, and what the chain came to.
    known: Option<(u64, u64, Hash)>,
}

impl Place {
    /// Behind that record.
    pub fn after(after: u64) -> Place {
        Place { after, known: None }
    }
}

/// A record, as it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its number.
    pub number: u64,
    /// What it says; none where that is not what was written.
    pub record: Option<Record>,
}

impl Seen {
    /// The directory.
    pub fn dir(&self) -> &Directory {
        &self.dir
    }

    /// The segments, in order.
    pub fn index(&self) -> &VecDeque<Segment> {
        &self.index
    }

    /// At most so many records behind the place, which moves on; and whether there are no more. Those that were altered pass
    /// every filter.
    pub fn read(&self, place: &mut Place, max: usize, filter: &Filter) -> Result<(Vec<Found>, bool)> {
        let (mut found, mut looked) = (Vec::new(), 0);
        let begin = self.index.partition_point(|segment| segment.first <= place.after + 1).saturating_sub(1);
        for (n, segment) in self.index.iter().enumerate().skip(begin) {
            let next = self.index.get(n + 1).map(|next| next.first);
            let limit = next.map_or(segment.last, |next| next - 1);
            if limit <= place.after {
                continue;
            }
            let file = match self.dir.open(segment.first, OFlag::O_RDONLY) {
                Ok(file) => file,
                // Retention took it since, or somebody else: `verify` tells which.
                Err(error) if error.code == Code::NotFound => continue,
                Err(error) => return Err(error),
            };
            let known =
                place.known.filter(|(first, ..)| *first == segment.first).map(|(_, offset, hash)| (offset, hash));
            let (offset, hash) = match known {
                Some(known) => known,
                None => (HEAD, chain::before(&file)?.unwrap_or_default()),
            };
            let mut frames = Frames::at(&file, offset, hash)?;
            loop {
                if found.len() == max || looked == LOOK {
                    return Ok((found, false));
                }
                // Behind the end of the last segment an append may be under way.
                if next.is_none() && frames.offset >= segment.bytes {
                    break;
                }
                let Some(frame) = frames.next()? else { break };
                looked += 1;
                let (number, sound) = (frame.number, frame.sound);
                // Numbers that belong elsewhere lead nowhere.
                if number > limit {
                    break;
                }
                let record = if sound { frame.record() } else { None };
                let wanted = number > place.after && record.as_ref().is_none_or(|record| filter.passes(record));
                if wanted {
                    found.push(Found { number, record });
                }
                place.after = place.after.max(number);
                place.known = Some((segment.first, frames.offset, frames.hash));
            }
            place.after = place.after.max(limit);
        }
        Ok((found, true))
    }
}
