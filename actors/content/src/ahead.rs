//! An ingest that is written in several places at once: by its writer from the beginning on, hashed as it goes, and ahead of
//! it by others, into the same file. What they wrote the writer reads when it gets there ([`Ingest::recover`]).
//!
//! No record says which places were written: the file's holes do. So what was there when a daemon died is found by the next.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use cofferdam_types::{Error, Result};
use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

use crate::ingest::Ingest;

/// No file system tells of holes that are smaller: the end of what was written in front of one may lie so far before it.
const GRAIN: u64 = 64 << 10;

/// Writes ahead of an ingest's writer. It goes on when the ingest is gone, into a file without a name.
#[derive(Clone, Debug)]
pub struct Ahead {
    file: Arc<File>,
    id: String,
    total: u64,
}

impl Ahead {
    /// Puts bytes where they belong.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        if offset.saturating_add(bytes.len() as u64) > self.total {
            let why = format!("gets more than the {} bytes that were announced", self.total);
            return Err(Error::out_of_range("ingest", &self.id, why));
        }
        self.file.write_all_at(bytes, offset).map_err(|e| Error::io("ingest", &self.id, "can't write", &e))
    }
}

impl Ingest {
    /// What lies in the file and was not hashed, as places from and to, in order: what an earlier writer left.
    pub fn left(&self) -> &[(u64, u64)] {
        &self.left
    }

    /// A way to write ahead. `None` where it isn't known how much is to come, or where it is asked for piece by piece whether
    /// that much may be stored.
    pub fn ahead(&self) -> Result<Option<Ahead>> {
        let (Some(total), None) = (self.total, &self.asked) else { return Ok(None) };
        let file = self.file.try_clone().map_err(|e| Error::io("ingest", self.id(), "can't be opened again", &e))?;
        Ok(Some(Ahead { file: Arc::new(file), id: self.id().to_owned(), total }))
    }

    /// Takes in the next bytes of the file, which are there ([`Ingest::left`], or written ahead), and gives them.
    pub fn recover(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buffer, self.offset())
            .map_err(|e| Error::io("ingest", self.id(), "can't read what was written before", &e))?;
        self.pass(buffer);
        Ok(())
    }
}

/// Which places of a file were written, and how long it is.
pub(crate) fn written(file: &File) -> io::Result<(Vec<(u64, u64)>, u64)> {
    let length = file.metadata()?.len();
    let mut found = Vec::new();
    let mut at = 0;
    while at < length {
        let seek = |from: u64, whence| match lseek(file, i64::try_from(from).unwrap_or(i64::MAX), whence) {
            Ok(place) => Ok(Some(u64::try_from(place).unwrap_or(0))),
            Err(Errno::ENXIO) => Ok(None),
            // A file system that has no holes.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) if matches!(whence, Whence::SeekData) => Ok(Some(from)),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(length)),
            Err(e) => Err(io::Error::from(e)),
        };
        let Some(from) = seek(at, Whence::SeekData)? else { break };
        let to = seek(from, Whence::SeekHole)?.unwrap_or(length);
        let end = if to >= length { length } else { to.saturating_sub(GRAIN) };
        if end > from {
            found.push((from, end));
        }
        at = to.max(at + 1);
    }
    Ok((found, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holes_of_a_file_say_what_was_written() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(written(&file).unwrap(), (vec![], 0));
        file.write_all_at(&[1; 1000], 0).unwrap();
        assert_eq!(written(&file).unwrap(), (vec![(0, 1000)], 1000));
        file.write_all_at(&[2; 200_000], 0).unwrap();
        file.write_all_at(&[3; 100_001], 8 << 20).unwrap();
        let end = (8 << 20) + 100_001;
        let (found, length) = written(&file).unwrap();
        let [(0, first), (8_388_608, last)] = found[..] else { panic!("{found:?}") };
        assert!((200_000 - 2 * GRAIN..=200_000).contains(&first), "{found:?}");
        assert_eq!((last, length), (end, end));
    }
}
