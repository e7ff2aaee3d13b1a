//! A file on a file system that is read-only. It is read as it is, and what opening it changes stays in memory: redb has no
//! other way to open a file that a kill has left.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Error, ErrorKind, Result},
    os::unix::fs::FileExt as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::StorageBackend;

/// What is kept of it at once.
const PAGE: u64 = 4096;

#[derive(Debug)]
pub(crate) struct Frozen {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    length: u64,
    /// Up to here the file counts.
    below: u64,
    changed: BTreeMap<u64, Box<[u8]>>,
}

impl Frozen {
    /// Over a file that is open for reading.
    pub(crate) fn new(file: File) -> Result<Frozen> {
        let length = file.metadata()?.len();
        Ok(Frozen { file, state: Mutex::new(State { length, below: length, changed: BTreeMap::new() }) })
    }

    /// Each change is whole when it can panic no more.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Some of one page.
    fn read(&self, file: &File, at: u64, into: &mut [u8]) -> Result<()> {
        if let Some(page) = self.changed.get(&(at / PAGE)) {
            let within = (at % PAGE) as usize;
            into.copy_from_slice(&page[within..within + into.len()]);
            return Ok(());
        }
        let there = self.below.saturating_sub(at).min(into.len() as u64) as usize;
        into[there..].fill(0);
        file.read_exact_at(&mut into[..there], at)
    }

    fn page(&mut self, file: &File, number: u64) -> Result<&mut [u8]> {
        if !self.changed.contains_key(&number) {
            let mut page = vec![0; PAGE as usize];
            self.read(file, number * PAGE, &mut page)?;
            self.changed.insert(number, page.into());
        }
        self.changed.get_mut(&number).map(|page| &mut page[..]).ok_or_else(|| Error::other("a page is gone"))
    }
}

/// The pieces of a range, each in one page: where it is, and which bytes of the whole it has.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let count = (length - done).min((PAGE - at % PAGE) as usize);
        let piece = (at, done..done + count);
        done += count;
        (count > 0).then_some(piece)
    })
}

impl StorageBackend for Frozen {
    fn len(&self) -> Result<u64> {
        Ok(self.lock().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let state = self.lock();
        if offset.saturating_add(out.len() as u64) > state.length {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        pieces(offset, out.len()).try_for_each(|(at, range)| state.read(&self.file, at, &mut out[range]))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut state = self.lock();
        // What is behind it is zeros, where it grows again.
        if !len.is_multiple_of(PAGE) && len < state.length {
            state.page(&self.file, len / PAGE)?[(len % PAGE) as usize..].fill(0);
        }
        state.changed.split_off(&len.div_ceil(PAGE));
        state.below = state.below.min(len);
        state.length = len;
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.lock();
        for (at, range) in pieces(offset, data.len()) {
            let within = (at % PAGE) as usize;
            state.page(&self.file, at / PAGE)?[within..within + range.len()].copy_from_slice(&data[range]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Against a file that may be written.
    #[test]
    fn it_reads_as_a_file_that_was_written_and_the_one_below_stays() {
        let whole: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8).collect();
        let (mut below, twin) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        below.write_all(&whole).unwrap();
        twin.write_all_at(&whole, 0).unwrap();
        let frozen = Frozen::new(below.try_clone().unwrap()).unwrap();
        let same = || {
            let length = twin.metadata().unwrap().len();
            assert_eq!(frozen.len().unwrap(), length);
            let (mut ours, mut theirs) = (vec![1; length as usize], vec![2; length as usize]);
            frozen.read(0, &mut ours).unwrap();
            twin.read_exact_at(&mut theirs, 0).unwrap();
            assert!(ours == theirs);
            assert!(frozen.read(length, &mut [0]).is_err());
        };
        same();
        for (at, count) in [(0, 1), (4095, 2), (5000, 9000), (19_990, 10), (8192, 4096)] {
            frozen.write(at, &vec![9; count]).unwrap();
            twin.write_all_at(&vec![9; count], at).unwrap();
            same();
        }
        for length in [30_000, 12_345, 12_400, 8192, 20_000, 0, 5000] {
            frozen.set_len(length).unwrap();
            twin.set_len(length).unwrap();
            same();
        }
        let mut now = vec![0; whole.len()];
        below.read_exact_at(&mut now, 0).unwrap();
        assert!(now == whole, "the file was written");
    }
}
