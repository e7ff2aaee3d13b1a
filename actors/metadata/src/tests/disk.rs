//! A disk that loses power, lies, or is full.

use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use redb::StorageBackend;

use crate::reserve::Reserve;

const PAGE: u64 = 4096;
/// What is given up at once.
const SLICE: u64 = 16;

/// xorshift64*: the same seed, the same run.
#[derive(Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

#[derive(Debug)]
enum Op {
    Len(u64),
    Write(u64, Vec<u8>),
}

#[derive(Debug, Default)]
struct State {
    /// The page cache.
    current: Vec<u8>,
    /// The platter.
    durable: Vec<u8>,
    /// What lies between them, in order.
    pending: Vec<Op>,
    ops: u64,
    cut_at: Option<u64>,
    /// How many more pages can be had; without a number, as many as are wanted.
    room: Option<u64>,
    /// Pages that it has: a length alone takes no room.
    pages: HashSet<u64>,
    /// Pages that are kept.
    reserve: u64,
    lies: bool,
    syncs: u64,
    /// The sync that finds no room, and leaves what was written in the page cache.
    full_at: Option<u64>,
}

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<State>>);

impl Disk {
    pub(super) fn with(bytes: Vec<u8>) -> Disk {
        let disk = Disk::default();
        *disk.state() = State { current: bytes.clone(), durable: bytes, ..State::default() };
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From the `op`th operation from now on everything fails.
    pub(super) fn cut_after(&self, op: u64) {
        let mut state = self.state();
        state.cut_at = Some(state.ops + op);
    }

    /// Power is back, and so is everything that was in the page cache: a passing fault.
    pub(super) fn mend(&self) {
        let mut state = self.state();
        state.cut_at = None;
        state.room = None;
    }

    pub(super) fn set_lies(&self) {
        self.state().lies = true;
    }

    /// How often it was synced.
    pub(super) fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// The `sync`th sync from now on finds no room; those behind it do.
    pub(super) fn full_at_sync(&self, sync: u64) {
        let mut state = self.state();
        state.full_at = Some(state.syncs + sync);
    }

    /// Somebody takes all room, but for so many pages that are kept.
    pub(super) fn fill(&self, reserve: u64) {
        let mut state = self.state();
        (state.room, state.reserve) = (Some(0), reserve);
    }

    /// What a power cut leaves: what was synced, and any part of the rest, sector by sector.
    pub(super) fn crash_image(&self, rng: &mut Rng) -> Vec<u8> {
        let state = self.state();
        let mut image = state.durable.clone();
        for op in &state.pending {
            match op {
                Op::Len(len) => {
                    if *len as usize > image.len() || rng.coin() {
                        image.resize(*len as usize, 0);
                    }
                }
                Op::Write(offset, data) => {
                    for (i, sector) in data.chunks(512).enumerate() {
                        if rng.coin() {
                            let at = *offset as usize + i * 512;
                            image.resize(image.len().max(at + sector.len()), 0);
                            image[at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        image
    }

    fn op(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.ops += 1;
        if state.cut_at.is_some_and(|cut| state.ops >= cut) {
            return Err(io::Error::other("injected fault"));
        }
        Ok(state)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.op()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.op()?;
        let range = offset as usize..offset as usize + out.len();
        out.copy_from_slice(state.current.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.op()?;
        state.current.resize(len as usize, 0);
        state.pages.retain(|page| page * PAGE < len);
        state.pending.push(Op::Len(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.op()?;
        state.syncs += 1;
        if state.full_at == Some(state.syncs) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if !state.lies {
            state.durable = state.current.clone();
            state.pending.clear();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.op()?;
        let end = offset as usize + data.len();
        let fresh: Vec<u64> =
            (offset / PAGE..(end as u64).div_ceil(PAGE)).filter(|page| !state.pages.contains(page)).collect();
        if let Some(room) = &mut state.room {
            *room = room.checked_sub(fresh.len() as u64).ok_or(io::ErrorKind::StorageFull)?;
        }
        state.pages.extend(fresh);
        let len = state.current.len().max(end);
        state.current.resize(len, 0);
        state.current[offset as usize..end].copy_from_slice(data);
        state.pending.push(Op::Write(offset, data.to_vec()));
        Ok(())
    }
}

impl Reserve for Disk {
    fn give(&self) -> bool {
        let mut state = self.state();
        let slice = state.reserve.min(SLICE);
        state.reserve -= slice;
        state.room = state.room.map(|room| room + slice);
        slice > 0
    }

    fn make(&self) -> bool {
        true
    }
}
