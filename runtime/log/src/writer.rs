//! The writer: one for a container, in its shim. It makes files when there is something to write, and rotates them.
//!
//! What can't be written is lost, counted, and said in the log as soon as that can be written again. The container never
//! fails for its log.

use std::{
    fs::File,
    io::{self, BufReader, Read as _, Seek as _, Write as _},
    os::fd::OwnedFd,
};

use cofferdam_types::{Labels, Timestamp};

use crate::{
    Stream,
    format::{Decoded, Format, LARGEST, PIECE, incomplete, quote},
    journal::Journal,
    segments,
};

/// Small records go to the disk together; the largest one still fits into a file behind so much.
const BATCH: usize = 32 << 10;

/// See the module.
pub struct Writer {
    target: Target,
    loss: Loss,
    /// Of each stream the beginning of a character whose rest has not come yet.
    held: [Held; 2],
}

/// Bytes of output that could not be kept.
#[derive(Default)]
pub(crate) struct Loss {
    all: u64,
    /// What the log doesn't say yet.
    pub unsaid: u64,
}

impl Loss {
    pub fn add(&mut self, bytes: u64) {
        self.all += bytes;
        self.unsaid += bytes;
    }
}

enum Target {
    Files(Files),
    Journal(Journal),
    Nowhere,
}

#[derive(Clone, Copy, Default)]
struct Held {
    bytes: [u8; 3],
    length: usize,
}

impl Writer {
    /// Writes files into `dir`: none is larger than `max_size`, which is at least [`MIN_SIZE`](crate::MIN_SIZE), and
    /// there are at most `max_files`.
    pub fn files(dir: OwnedFd, format: Format, max_size: u64, max_files: u32, attributes: &Labels) -> Writer {
        let attributes = if attributes.is_empty() { String::new() } else { fragment(attributes) };
        Writer::new(Target::Files(Files {
            place: Some(dir),
            format,
            max_size,
            max_files: max_files.max(1),
            attributes,
            current: None,
        }))
    }

    /// Appends to a file without a bound: all that a daemon of before gives.
    pub fn plain(file: OwnedFd) -> Writer {
        Writer::new(Target::Files(Files {
            place: None,
            format: Format::Local,
            max_size: u64::MAX,
            max_files: 1,
            attributes: String::new(),
            current: Some(Current { file: file.into(), number: 0, size: 0 }),
        }))
    }

    /// Writes to the journal.
    pub fn journal(journal: Journal) -> Writer {
        Writer::new(Target::Journal(journal))
    }

    /// Keeps nothing.
    pub fn nowhere() -> Writer {
        Writer::new(Target::Nowhere)
    }

    fn new(target: Target) -> Writer {
        Writer { target, loss: Loss::default(), held: Default::default() }
    }

    /// How many bytes of output are lost.
    pub fn lost(&self) -> u64 {
        self.loss.all
    }

    /// Takes in what a stream gave.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let holds = match &self.target {
            Target::Nowhere => return,
            Target::Files(files) => files.format == Format::Json,
            Target::Journal(_) => false,
        };
        if !holds {
            return self.put(stream, bytes);
        }
        let held = std::mem::take(&mut self.held[stream as usize]);
        let joined;
        let mut bytes = bytes;
        if held.length > 0 {
            joined = [&held.bytes[..held.length], bytes].concat();
            bytes = &joined;
        }
        let (now, later) = bytes.split_at(bytes.len() - incomplete(bytes));
        let mut rest = Held { length: later.len(), ..Held::default() };
        rest.bytes[..later.len()].copy_from_slice(later);
        self.held[stream as usize] = rest;
        self.put(stream, now);
    }

    /// The stream gives no more. What was lost is said, if that can be written by now.
    pub fn end(&mut self, stream: Stream) {
        let held = std::mem::take(&mut self.held[stream as usize]);
        self.put(stream, &held.bytes[..held.length]);
    }

    fn put(&mut self, stream: Stream, bytes: &[u8]) {
        match &mut self.target {
            Target::Nowhere => {}
            Target::Files(files) => files.put(stream, bytes, &mut self.loss),
            Target::Journal(journal) => journal.put(stream, bytes, &mut self.loss),
        }
    }
}

/// The attributes of a JSON record.
fn fragment(attributes: &Labels) -> String {
    let mut text = b"\"attrs\":{".to_vec();
    for (n, (key, value)) in attributes.iter().enumerate() {
        if n > 0 {
            text.push(b',');
        }
        quote(&mut text, key);
        text.push(b':');
        quote(&mut text, value);
    }
    text.extend(b"},");
    String::from_utf8_lossy(&text).into_owned()
}

struct Files {
    /// The directory; `None` where there is one file alone.
    place: Option<OwnedFd>,
    format: Format,
    max_size: u64,
    max_files: u32,
    attributes: String,
    current: Option<Current>,
}

struct Current {
    file: File,
    number: u64,
    size: u64,
}

impl Files {
    fn put(&mut self, stream: Stream, bytes: &[u8], loss: &mut Loss) {
        let time = Timestamp::now();
        let (mut batch, mut within) = (Vec::new(), 0);
        let mut pieces = pieces(bytes, self.format.has_lines()).peekable();
        // What was lost is said with what comes next: by itself it would fill every rest of a disk that is almost full.
        while pieces.peek().is_some() || bytes.is_empty() && loss.unsaid > 0 {
            if loss.unsaid > 0 {
                self.format.encode_lost(&mut batch, time, loss.unsaid);
            }
            while let Some(piece) = pieces.next_if(|_| batch.len() < BATCH) {
                self.format.encode(&mut batch, time, stream, piece, &self.attributes);
                within += piece.len() as u64;
            }
            match self.append(&batch) {
                Ok(()) => loss.unsaid = 0,
                Err(_) => loss.add(within),
            }
            batch.clear();
            if std::mem::take(&mut within) == 0 {
                return;
            }
        }
    }

    /// Whole or not at all.
    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let mut current = match self.current.take() {
            Some(current) => current,
            None => self.open()?,
        };
        if current.size > 0 && current.size + records.len() as u64 > self.max_size {
            current = match self.next(&current) {
                Ok(next) => next,
                Err(e) => {
                    self.current = Some(current);
                    return Err(e);
                }
            };
        }
        let mut left = records;
        let result = loop {
            if left.is_empty() {
                break Ok(());
            }
            match current.file.write(left) {
                Ok(n) if n > 0 => left = &left[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) => break Err(io::ErrorKind::WriteZero.into()),
                Err(e) => break Err(e),
            }
        };
        match (&result, &self.place) {
            (Ok(()), _) => current.size += records.len() as u64,
            // A disk that is full takes the beginning of a record: that goes again. One without a place has other
            // writers' bytes in it, so that its end is found anew.
            (Err(_), Some(_)) => current.file.set_len(current.size)?,
            (Err(_), None) => {
                let end = current.file.metadata()?.len();
                current.file.set_len(end - (records.len() - left.len()) as u64)?;
            }
        }
        self.current = Some(current);
        result
    }

    /// The newest file, or the one behind it where that ends in something that is no record.
    fn open(&self) -> io::Result<Current> {
        let place = self.place.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let number = segments::list_in(place)?.last().copied().unwrap_or(0);
        let file = segments::append(place, number)?;
        let size = file.metadata()?.len();
        let current = Current { file, number, size };
        if ends_whole(&current, self.format)? { Ok(current) } else { self.next(&current) }
    }

    /// Rotates. The new one first: there is always a highest number.
    fn next(&self, current: &Current) -> io::Result<Current> {
        let place = self.place.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let number = current.number + 1;
        let file = segments::append(place, number)?;
        for old in segments::list_in(place)? {
            if old + u64::from(self.max_files) <= number {
                let _ =
                    nix::unistd::unlinkat(place, segments::name(old).as_str(), nix::unistd::UnlinkatFlags::NoRemoveDir);
            }
        }
        Ok(Current { file, number, size: 0 })
    }
}

/// Whether a file that somebody else wrote ends with a whole record: the host may have died meanwhile.
fn ends_whole(current: &Current, format: Format) -> io::Result<bool> {
    if current.size == 0 {
        return Ok(true);
    }
    let mut file = &current.file;
    if format.has_lines() {
        let mut last = [0];
        file.seek(io::SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        return Ok(last == *b"\n");
    }
    file.rewind()?;
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let (mut at, mut header) = (0, [0; 17]);
    while at < current.size {
        // With one byte of the body: less is no record.
        if let Err(e) = reader.read_exact(&mut header) {
            return if e.kind() == io::ErrorKind::UnexpectedEof { Ok(false) } else { Err(e) };
        }
        let size = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as u64;
        let begins = size <= LARGEST as u64 && !matches!(format.decode(&header), Decoded::Damaged(None));
        if !begins {
            return Ok(false);
        }
        at += 16 + size;
        reader.seek_relative(size as i64 - 1)?;
    }
    Ok(at == current.size)
}

/// Cuts output into what records hold.
pub(crate) fn pieces(bytes: &[u8], lines: bool) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let most = rest.len().min(PIECE);
        let line = if lines { rest[..most].iter().position(|byte| *byte == b'\n').map(|at| at + 1) } else { None };
        let (piece, left) = rest.split_at(line.unwrap_or(most));
        rest = left;
        Some(piece)
    })
}
