//! How far a job is, for whoever looks.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use cofferdam_types::Result;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Who watches is told at most this often about bytes; about phases always.
const INTERVAL: Duration = Duration::from_millis(50);

/// More items than these are summed up in the last: what is told of a job has a bound.
const MAX_ITEMS: usize = 1000;
const OTHERS: &str = "others";

/// What is happening to an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its turn has not come.
    Waiting,
    /// Another job has it in hand.
    Elsewhere,
    /// Its bytes come in, and are unpacked while they do.
    Fetching,
    /// Its bytes are here and are being unpacked.
    Unpacking,
    /// It was here before.
    Present,
    /// All of it is here.
    Done,
}

/// A blob on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its digest, or what else it is known by.
    pub name: String,
    /// Its bytes.
    pub total: u64,
    /// Those that are here.
    pub done: u64,
    /// What is happening to it.
    pub phase: Phase,
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is doing, for people.
    pub stage: String,
    /// What it moves.
    pub items: Vec<Item>,
}

impl Progress {
    /// Bytes that are here, and bytes in all.
    pub fn bytes(&self) -> (u64, u64) {
        self.items.iter().fold((0, 0), |(done, total), item| (done + item.done, total + item.total))
    }
}

/// The writing end.
pub(crate) struct Board {
    sender: watch::Sender<Progress>,
    told: Mutex<Instant>,
}

impl Board {
    pub fn new() -> Board {
        Board { sender: watch::Sender::new(Progress::default()), told: Mutex::new(Instant::now()) }
    }

    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.sender.subscribe()
    }

    pub fn stage(&self, what: &str) {
        self.sender.send_modify(|p| what.clone_into(&mut p.stage));
    }

    /// Adds an item and says which number it has.
    pub fn item(&self, name: impl ToString, total: u64) -> usize {
        let item = Item { name: name.to_string(), total, done: 0, phase: Phase::Waiting };
        let mut number = 0;
        self.sender.send_modify(|p| {
            if p.items.len() < MAX_ITEMS {
                number = p.items.len();
                p.items.push(item);
            } else if let Some(last) = p.items.last_mut() {
                number = MAX_ITEMS - 1;
                OTHERS.clone_into(&mut last.name);
                (last.total, last.phase) = (last.total + total, Phase::Fetching);
            }
        });
        number
    }

    pub fn phase(&self, number: usize, phase: Phase) {
        self.sender.send_modify(|p| {
            if let Some(item) = p.items.get_mut(number).filter(|item| item.name != OTHERS) {
                item.phase = phase;
                if matches!(phase, Phase::Done | Phase::Present) {
                    item.done = item.total;
                }
            }
        });
    }

    /// The job has come to a good end, and so has each of its items.
    pub fn finish(&self) {
        self.sender.send_modify(|p| {
            "done".clone_into(&mut p.stage);
            for item in &mut p.items {
                (item.done, item.phase) = (item.total, Phase::Done);
            }
        });
    }

    /// So many bytes are here, whatever was before.
    pub fn at(&self, number: usize, count: u64) {
        self.sender.send_modify(|p| {
            if let Some(item) = p.items.get_mut(number).filter(|item| item.name != OTHERS) {
                item.done = count;
            }
        });
    }

    /// `count` more bytes are here.
    pub fn advance(&self, number: usize, count: u64) {
        self.sender.send_if_modified(|p| {
            if let Some(item) = p.items.get_mut(number) {
                item.done += count;
                item.total = item.total.max(item.done);
            }
            // Held by another: that one tells.
            let Ok(mut told) = self.told.try_lock() else { return false };
            let now = Instant::now();
            let due = now.duration_since(*told) >= INTERVAL;
            if due {
                *told = now;
            }
            due
        });
    }
}

/// Counts what passes on its way to `inner`.
pub(crate) struct Counted<'a, R> {
    pub inner: R,
    pub board: &'a Board,
    pub number: usize,
    pub cancel: &'a crate::Cancel,
}

impl<R: std::io::Read> std::io::Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let check: Result<()> = self.cancel.check();
        check.map_err(std::io::Error::other)?;
        let n = self.inner.read(buffer)?;
        self.board.advance(self.number, n as u64);
        Ok(n)
    }
}

impl<R: crate::source::walk::Input> crate::source::walk::Input for Counted<'_, R> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_see_phases_and_sums() {
        let board = Board::new();
        let watch = board.watch();
        let a = board.item("a", 10);
        let b = board.item("b", 5);
        board.advance(a, 4);
        board.phase(b, Phase::Present);
        board.stage("pulling");
        let seen = watch.borrow().clone();
        assert_eq!(seen.bytes(), (9, 15));
        assert_eq!((seen.stage.as_str(), seen.items[b].phase), ("pulling", Phase::Present));
        // More than was announced is no reason to show more than all.
        board.advance(a, 20);
        assert_eq!(watch.borrow().bytes(), (29, 29));
        // Once more from the beginning.
        board.at(a, 0);
        assert_eq!(watch.borrow().bytes(), (5, 29));
        board.finish();
        assert_eq!(watch.borrow().bytes(), (29, 29));
        assert!(watch.borrow().items.iter().all(|item| item.phase == Phase::Done));
    }

    #[test]
    fn however_many_items_there_are_what_is_told_has_a_bound() {
        let board = Board::new();
        let numbers: Vec<usize> = (0..3 * MAX_ITEMS).map(|n| board.item(n, 2)).collect();
        assert_eq!((numbers[5], numbers[2 * MAX_ITEMS]), (5, MAX_ITEMS - 1));
        for number in numbers {
            board.phase(number, Phase::Waiting);
            board.advance(number, 1);
        }
        let progress = board.watch().borrow().clone();
        assert_eq!((progress.items.len(), progress.items[MAX_ITEMS - 1].name.as_str()), (MAX_ITEMS, OTHERS));
        assert_eq!(progress.bytes(), (3 * MAX_ITEMS as u64, 6 * MAX_ITEMS as u64));
    }
}
