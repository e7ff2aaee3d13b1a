//! The form of a segment, and the chain that its records make.
//!
//! ```text
//! <first number, 20 digits>.seg := "COFAUDT" version:u8 before:32 record*
//! record                        := length:u32le number:u64le hash:32 payload      (payload: CBOR)
//! ```
//! `before` is the hash of the record before the first. A hash is taken over the hash before it, the number and the payload. It
//! stands in the record, so that one that was changed is told from those behind it, which were not.

use std::{
    fs::File,
    io::{BufReader, ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::FileExt as _,
};

use cofferdam_types::{Error, Result};

use crate::Record;

/// What a chain comes to.
pub type Hash = [u8; 32];

const MAGIC: &[u8; 7] = b"COFAUDT";
const VERSION: u8 = 1;
/// Where the records of a segment begin.
pub const HEAD: u64 = 40;
const FRAME: usize = 44;
/// Longer than any record that is written: a greater length is garbage.
const MAX: u32 = 64 << 10;

/// The next hash.
pub fn link(before: &Hash, number: u64, payload: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(&number.to_le_bytes()).update(payload);
    *hasher.finalize().as_bytes()
}

/// What a segment begins with.
pub fn head(before: &Hash) -> Vec<u8> {
    [MAGIC.as_slice(), &[VERSION], before].concat()
}

/// What the chain came to before this segment; none where it doesn't begin as one.
pub fn before(file: &File) -> Result<Option<Hash>> {
    let mut head = [0; HEAD as usize];
    match file.read_exact_at(&mut head, 0) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(fault("read", &e)),
    }
    let Some((magic, [version, before @ ..])) = head.split_first_chunk::<7>() else { return Ok(None) };
    Ok(before.try_into().ok().filter(|_| magic == MAGIC && *version == VERSION))
}

/// Adds records behind `number` and `hash`, which move on.
pub fn encode(records: &[Record], number: &mut u64, hash: &mut Hash) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(records.len() * 256);
    for record in records {
        let start = bytes.len();
        bytes.extend([0; FRAME]);
        bytes = cbor4ii::serde::to_vec(bytes, record)
            .map_err(|e| Error::internal("audit", "", format!("a record can't be encoded: {e}")))?;
        *number += 1;
        let (frame, payload) = bytes[start..].split_at_mut(FRAME);
        let length = u32::try_from(payload.len()).ok().filter(|length| *length <= MAX);
        let length = length.ok_or_else(|| Error::internal("audit", "", "a record is too long for the log"))?;
        *hash = link(hash, *number, payload);
        frame[..4].copy_from_slice(&length.to_le_bytes());
        frame[4..12].copy_from_slice(&number.to_le_bytes());
        frame[12..].copy_from_slice(hash);
    }
    Ok(bytes)
}

/// A record as it lies there.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// As it says.
    pub number: u64,
    /// As it says.
    pub hash: Hash,
    /// Whether the hash is that of all this, behind what the record before says.
    pub sound: bool,
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// What it tells.
    pub fn record(&self) -> Option<Record> {
        cbor4ii::serde::from_slice(self.payload).ok()
    }
}

/// Walks the records of a segment, to the first that is not whole.
pub struct Frames<'f> {
    reader: BufReader<&'f File>,
    /// Where the next one lies.
    pub offset: u64,
    /// What the one before it says that the chain came to.
    pub hash: Hash,
    payload: Vec<u8>,
}

impl<'f> Frames<'f> {
    /// From there on.
    pub fn at(mut file: &'f File, offset: u64, hash: Hash) -> Result<Frames<'f>> {
        file.seek(SeekFrom::Start(offset)).map_err(|e| fault("read", &e))?;
        Ok(Frames { reader: BufReader::with_capacity(64 << 10, file), offset, hash, payload: Vec::new() })
    }

    /// The next.
    pub fn next(&mut self) -> Result<Option<Frame<'_>>> {
        let mut frame = [0; FRAME];
        if !fill(&mut self.reader, &mut frame)? {
            return Ok(None);
        }
        let [l0, l1, l2, l3, rest @ ..] = frame;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let Some((number, hash)) = rest.split_first_chunk::<8>() else { return Ok(None) };
        if length == 0 || length > MAX {
            return Ok(None);
        }
        self.payload.resize(length as usize, 0);
        if !fill(&mut self.reader, &mut self.payload)? {
            return Ok(None);
        }
        let Ok(hash) = Hash::try_from(hash) else { return Ok(None) };
        let number = u64::from_le_bytes(*number);
        let sound = hash == link(&self.hash, number, &self.payload);
        self.hash = hash;
        self.offset += FRAME as u64 + u64::from(length);
        Ok(Some(Frame { number, hash, sound, payload: &self.payload }))
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

fn fault(what: &str, error: &std::io::Error) -> Error {
    Error::io("audit", "", format!("can't {what} the audit log"), error)
}
