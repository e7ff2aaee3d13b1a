//! When a crashed actor may start again, and when to give up.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The first wait; it doubles with each crash.
const FIRST: Duration = Duration::from_millis(10);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(1);
/// After so long without a crash the next one counts as the first.
const GOOD: Duration = Duration::from_secs(30);
/// More than [`MAX_RESTARTS`] restarts within this time: the subsystem has failed.
const WINDOW: Duration = Duration::from_secs(60);
const MAX_RESTARTS: usize = 8;

/// The restart policy of one slot. Time is passed in, so that tests need none.
pub(crate) struct Backoff {
    wait: Duration,
    restarts: VecDeque<Instant>,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { wait: FIRST, restarts: VecDeque::new() }
    }

    /// How long to wait before the restart after a crash at `now` of what came up at `up`; `None`: give up.
    pub(crate) fn next(&mut self, up: Option<Instant>, now: Instant) -> Option<Duration> {
        if up.is_some_and(|up| now.duration_since(up) >= GOOD) {
            self.wait = FIRST;
        }
        while self.restarts.front().is_some_and(|t| now.duration_since(*t) > WINDOW) {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= MAX_RESTARTS {
            return None;
        }
        self.restarts.push_back(now);
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_a_second_and_gives_up() {
        let mut backoff = Backoff::new();
        let now = Instant::now();
        let waits: Vec<_> = std::iter::from_fn(|| backoff.next(None, now)).map(|d| d.as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1000]);
    }

    #[test]
    fn forgives_after_good_behaviour() {
        let mut backoff = Backoff::new();
        let start = Instant::now();
        backoff.next(None, start);
        assert_eq!(backoff.next(Some(start), start + Duration::from_secs(29)), Some(FIRST * 2));
        assert_eq!(backoff.next(Some(start), start + Duration::from_secs(30)), Some(FIRST));
    }

    #[test]
    fn the_window_slides() {
        let mut backoff = Backoff::new();
        let start = Instant::now();
        for _ in 0..MAX_RESTARTS {
            assert!(backoff.next(None, start).is_some());
        }
        assert_eq!(backoff.next(None, start + WINDOW), None);
        assert_eq!(backoff.next(None, start + WINDOW + Duration::from_nanos(1)), Some(LONGEST));
    }
}
