//! A layer on its way: who fetches which part of it. Its owner takes all of it in, from the beginning to the end; of a large one
//! others fetch parts ahead, into the same file, as long as it is the network that the owner waits for.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cofferdam_types::{Error, Result};

use crate::Cancel;

/// What is fetched by one request where several fetch.
pub(crate) const PART: u64 = 4 << 20;
/// So many of them where one alone does.
const RUN: usize = 16;
/// A waiter looks for a cancellation this often.
const LOOK: Duration = Duration::from_millis(100);
/// Of such a time it is looked whether most of it was waiting.
const SPAN: Duration = Duration::from_millis(100);

/// See the head of this file.
pub(crate) struct Parts {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    parts: Vec<Part>,
    /// The owner mostly waits for bytes.
    hungry: bool,
    /// Nobody helps: the registry doesn't send parts.
    alone: bool,
}

struct Part {
    from: u64,
    to: u64,
    /// So far its bytes lie in the file.
    done: u64,
    taken: bool,
    failed: Option<Error>,
}

/// What the owner does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// What comes next lies in the file, up to here.
    Read(u64),
    /// It is fetched, up to here.
    Fetch(u64),
}

impl Parts {
    /// Of a layer of `size` bytes of which those of `left` lie in the file; in one piece unless it may be split.
    pub fn new(size: u64, left: &[(u64, u64)], split: bool) -> Parts {
        let length = if split { PART } else { size.max(1) };
        let mut parts = Vec::new();
        let mut from = 0;
        while from < size {
            let to = from.saturating_add(length).min(size);
            let there = left.iter().find(|(begin, end)| *begin <= from && from < *end);
            let done = there.map_or(from, |(_, end)| (*end).min(to));
            parts.push(Part { from, to, done, taken: done == to, failed: None });
            from = to;
        }
        Parts { state: Mutex::new(State { parts, hungry: false, alone: !split }), moved: Condvar::new() }
    }

    /// What the owner, who stands at `at`, does next: waits for who has it.
    pub fn next(&self, at: u64, word: &Cancel) -> Result<Step> {
        let mut state = self.state();
        loop {
            let Some(index) = state.parts.iter().position(|part| part.from <= at && at < part.to) else {
                return Ok(Step::Read(at));
            };
            let part = &mut state.parts[index];
            if part.done > at {
                return Ok(Step::Read(part.done));
            }
            if let Some(error) = part.failed.take() {
                return Err(error);
            }
            if !part.taken {
                return Ok(Step::Fetch(state.run(index)));
            }
            word.check()?;
            state = self.moved.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A part for somebody who helps: which, and where to begin and to end.
    pub fn claim(&self) -> Option<(usize, u64, u64)> {
        let mut state = self.state();
        if !state.hungry || state.alone {
            return None;
        }
        let index = state.parts.iter().position(|part| !part.taken)?;
        let part = state.parts.get_mut(index)?;
        part.taken = true;
        Some((index, part.done, part.to))
    }

    /// Somebody who helps has got so far.
    pub fn wrote(&self, index: usize, done: u64) {
        if let Some(part) = self.state().parts.get_mut(index) {
            part.done = done;
        }
        self.moved.notify_all();
    }

    /// Somebody who helps could not.
    pub fn failed(&self, index: usize, error: Error) {
        if let Some(part) = self.state().parts.get_mut(index) {
            part.failed = Some(error);
        }
        self.moved.notify_all();
    }

    /// The registry doesn't send parts: what somebody took goes back.
    pub fn alone(&self, back: Option<usize>) {
        let mut state = self.state();
        state.alone = true;
        if let Some(part) = back.and_then(|index| state.parts.get_mut(index)) {
            part.taken = false;
        }
        drop(state);
        self.moved.notify_all();
    }

    /// Whether there is nothing to help with, now or later.
    pub fn is_spread(&self) -> bool {
        let state = self.state();
        state.alone || state.parts.iter().all(|part| part.taken)
    }

    fn hungry(&self, hungry: bool) {
        self.state().hungry = hungry;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the part and those behind it that are free, for one request; gives its end.
    fn run(&mut self, index: usize) -> u64 {
        let most = match (self.alone, self.hungry) {
            (true, _) => usize::MAX,
            // By the first it is found out how fast the network is.
            (false, hungry) if hungry || index == 0 => 1,
            (false, _) => RUN,
        };
        let mut to = 0;
        for (n, part) in self.parts[index..].iter_mut().take(most).enumerate() {
            if part.taken || (n > 0 && part.done > part.from) {
                break;
            }
            part.taken = true;
            to = part.to;
        }
        to
    }
}

/// How much of its time the owner waits.
pub(crate) struct Hunger<'a> {
    parts: &'a Parts,
    since: Instant,
    waited: Duration,
}

impl<'a> Hunger<'a> {
    pub fn new(parts: &'a Parts) -> Hunger<'a> {
        Hunger { parts, since: Instant::now(), waited: Duration::ZERO }
    }

    /// So long it waited just now.
    pub fn waited(&mut self, time: Duration) {
        self.waited += time;
        let all = self.since.elapsed();
        if all >= SPAN {
            self.parts.hungry(self.waited * 2 > all);
            (self.since, self.waited) = (Instant::now(), Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;

    use super::*;

    const SIZE: u64 = 3 * PART + 10;

    #[test]
    fn what_is_free_is_fetched_in_one_go_and_what_others_have_is_waited_for() {
        let (parts, word) = (Parts::new(SIZE, &[], true), Cancel::new());
        assert!(parts.claim().is_none(), "nobody helps whom the network doesn't keep waiting");
        assert_eq!(parts.next(0, &word).unwrap(), Step::Fetch(PART));
        assert_eq!(parts.next(PART, &word).unwrap(), Step::Fetch(SIZE));
        assert!(parts.is_spread());

        let parts = Parts::new(SIZE, &[], true);
        parts.hungry(true);
        assert_eq!(parts.next(0, &word).unwrap(), Step::Fetch(PART));
        assert_eq!(parts.claim(), Some((1, PART, 2 * PART)));
        assert_eq!(parts.claim(), Some((2, 2 * PART, 3 * PART)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| parts.next(PART, &word));
            parts.wrote(1, PART + 7);
            assert_eq!(waiting.join().unwrap().unwrap(), Step::Read(PART + 7));
        });
        parts.failed(1, Error::unavailable("registry", "", "went silent"));
        assert_eq!(parts.next(PART + 7, &word).unwrap_err().code, Code::Unavailable);
        parts.alone(Some(2));
        assert!(parts.claim().is_none() && parts.is_spread());
        assert_eq!(parts.next(2 * PART, &word).unwrap(), Step::Fetch(SIZE));
        word.cancel();
        assert_eq!(parts.next(PART + 7, &word).unwrap_err().code, Code::Cancelled);
    }

    #[test]
    fn what_a_dead_daemon_left_is_read() {
        let word = Cancel::new();
        let left = [(0, PART + 100), (2 * PART, 2 * PART + 50), (3 * PART, SIZE)];
        let parts = Parts::new(SIZE, &left, true);
        assert_eq!(parts.next(0, &word).unwrap(), Step::Read(PART));
        assert_eq!(parts.next(PART, &word).unwrap(), Step::Read(PART + 100));
        // The run ends where something is there.
        assert_eq!(parts.next(PART + 100, &word).unwrap(), Step::Fetch(2 * PART));
        assert_eq!(parts.next(2 * PART, &word).unwrap(), Step::Read(2 * PART + 50));
        assert_eq!(parts.next(2 * PART + 50, &word).unwrap(), Step::Fetch(3 * PART));
        assert_eq!(parts.next(3 * PART, &word).unwrap(), Step::Read(SIZE));
        // In one piece only the beginning counts.
        let parts = Parts::new(SIZE, &left, false);
        assert_eq!(parts.next(0, &word).unwrap(), Step::Read(PART + 100));
        assert_eq!(parts.next(PART + 100, &word).unwrap(), Step::Fetch(SIZE));
        assert!(Parts::new(0, &[], false).is_spread());
    }
}
