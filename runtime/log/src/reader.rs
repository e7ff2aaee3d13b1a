//! The reader: follows a log through its files while they are written, and says what it missed.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use cofferdam_types::{Error, Result, Timestamp};

use crate::{
    Stream,
    format::{Decoded, Format, LARGEST},
    segments,
};

/// How many records are given at once: the small ones cost more than their bytes.
const RECORDS: usize = 2000;

/// A place in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The number of the file.
    pub segment: u64,
    /// In the file.
    pub offset: u64,
}

/// Something that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it was written; 0 where nobody knows.
    pub time: Timestamp,
    /// It.
    pub what: What,
    /// Where the next one begins.
    pub next: Position,
}

/// See [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A piece of output, as it came.
    Output(Stream, Vec<u8>),
    /// Something is missing here; this says what and why.
    Lost(String),
}

/// See the module. It holds the file that it reads: that one is read to its end even if it is removed meanwhile.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    format: Format,
    at: Position,
    file: Option<File>,
    /// Whether the files before are known to be read: what is missing then is a loss.
    going: bool,
    /// Behind here nothing can be read, and that was said.
    blocked: bool,
}

impl Reader {
    /// From a place on, or from the oldest record.
    pub fn new(dir: &Path, format: Format, from: Option<Position>) -> Reader {
        let at = from.unwrap_or_default();
        Reader { dir: dir.to_owned(), format, at, file: None, going: from.is_some(), blocked: false }
    }

    /// Where it is.
    pub fn position(&self) -> Position {
        self.at
    }

    /// Gives the next records, of about `most` bytes together; none where there are none now.
    pub fn read(&mut self, most: usize) -> Result<Vec<Entry>> {
        self.next(most).map_err(|e| Error::io("log", "", "can't be read", &e))
    }

    fn next(&mut self, most: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        loop {
            if self.file.is_none() && !self.open(&mut entries)? {
                return Ok(entries);
            }
            self.fill(most, &mut entries)?;
            if !entries.is_empty() {
                return Ok(entries);
            }
            // Whoever makes the next file writes no more into this one.
            if !segments::list(&self.dir)?.iter().any(|number| *number > self.at.segment) {
                return Ok(entries);
            }
            self.fill(most, &mut entries)?;
            if entries.is_empty() {
                self.leave(&mut entries)?;
            }
        }
    }

    /// Opens the file of the place, or the first that is there behind it.
    fn open(&mut self, entries: &mut Vec<Entry>) -> io::Result<bool> {
        loop {
            let Some(number) = segments::list(&self.dir)?.into_iter().find(|number| *number >= self.at.segment) else {
                return Ok(false);
            };
            let path = self.dir.join(segments::name(number));
            let file = match File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if number > self.at.segment {
                self.at = Position { segment: number, offset: 0 };
                if self.going {
                    self.lose(entries, "older records were rotated away before they were read");
                }
            }
            self.file = Some(file);
            self.going = true;
            self.blocked = false;
            return Ok(true);
        }
    }

    /// The file is read; what is left of it is no record.
    fn leave(&mut self, entries: &mut Vec<Entry>) -> io::Result<()> {
        let size = match &self.file {
            Some(file) => file.metadata()?.len(),
            None => self.at.offset,
        };
        let torn = size > self.at.offset && !self.blocked;
        self.file = None;
        self.at = Position { segment: self.at.segment + 1, offset: 0 };
        if torn {
            self.lose(entries, "a record was only half written");
        }
        Ok(())
    }

    fn lose(&self, entries: &mut Vec<Entry>, why: &str) {
        entries.push(Entry { time: Timestamp(0), what: What::Lost(why.to_owned()), next: self.at });
    }

    fn fill(&mut self, most: usize, entries: &mut Vec<Entry>) -> io::Result<()> {
        let most = most.clamp(1, LARGEST);
        if self.blocked || self.parse(most, entries)? {
            return Ok(());
        }
        // The next record is longer than what was asked for.
        if most < LARGEST {
            self.parse(LARGEST, entries)?;
        }
        Ok(())
    }

    /// Reads so many bytes. Whether there is an entry, or the end of the file.
    fn parse(&mut self, size: usize, entries: &mut Vec<Entry>) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(true) };
        let mut bytes = vec![0; size];
        let mut filled = 0;
        while filled < size {
            match file.read_at(&mut bytes[filled..], self.at.offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let mut rest = &bytes[..filled];
        while !rest.is_empty() && entries.len() < RECORDS {
            let (time, what, length) = match self.format.decode(rest) {
                Decoded::Record { time, stream, body, length } => (time, What::Output(stream, body), length),
                Decoded::Lost { time, bytes, length } => {
                    (time, What::Lost(format!("{bytes} bytes could not be written: was the disk full?")), length)
                }
                Decoded::Partial => break,
                Decoded::Damaged(Some(length)) => {
                    let place = format!("a damaged record of {length} bytes at byte {}", self.at.offset);
                    (Timestamp(0), What::Lost(place), length)
                }
                Decoded::Damaged(None) => {
                    self.blocked = true;
                    let place = format!("the file {} can't be read from byte {} on", self.at.segment, self.at.offset);
                    (Timestamp(0), What::Lost(place), 0)
                }
            };
            self.at.offset += length as u64;
            rest = &rest[length..];
            entries.push(Entry { time, what, next: self.at });
            if self.blocked {
                break;
            }
        }
        Ok(!entries.is_empty() || filled < size)
    }
}
