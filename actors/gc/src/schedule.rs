//! When the next collection is due: plain arithmetic on what has been written since the last one.

use std::time::{Duration, Instant};

use cofferdam_metadata::Changes;
use cofferdam_types::Timestamp;

use crate::Settings;

/// Between two collections where their cost is not to say.
const UNTUNED: Duration = Duration::from_secs(1);
/// On a full disk the cost doesn't matter, but what the last collection left can't go yet.
const PRESSED: Duration = Duration::from_secs(10);

/// What has been, and what follows from it.
pub struct Schedule {
    settings: Settings,
    /// When the first one is due.
    first: Option<Instant>,
    last: Option<Instant>,
    /// What had been written when the last one began.
    seen: Changes,
    /// When the first lease ends of those that it saw.
    next_end: Option<Timestamp>,
    spent: Duration,
    runs: u32,
    failures: u32,
    /// Since when there is a reason.
    since: Option<Instant>,
}

impl Schedule {
    pub(crate) fn new(settings: Settings, now: Instant) -> Schedule {
        let first = (!settings.startup_delay.is_zero()).then(|| now + settings.startup_delay);
        let (seen, next_end) = (Changes::default(), None);
        Schedule {
            settings,
            first,
            last: None,
            seen,
            next_end,
            spent: Duration::ZERO,
            runs: 0,
            failures: 0,
            since: None,
        }
    }

    /// The time between two collections that keeps to the share of time.
    pub(crate) fn interval(&self) -> Duration {
        let share = self.settings.pause_threshold;
        let Some(average) = self.spent.checked_div(self.runs) else { return Duration::ZERO };
        match share > 0.0 {
            true => average.mul_f64(1.0 / share - 1.0),
            false => UNTUNED,
        }
    }

    /// When to collect; `None`: there is no reason to. `pressed`: the disk is full, as the settings have it.
    pub(crate) fn due(&mut self, now: Instant, clock: Timestamp, changes: Changes, pressed: bool) -> Option<Instant> {
        let Settings { deletion_threshold, mutation_threshold, schedule_delay, period, .. } = self.settings;
        let deletions = changes.deletions.saturating_sub(self.seen.deletions);
        let mutations = changes.mutations.saturating_sub(self.seen.mutations);
        let reason = self.failures > 0
            || (deletions > 0 && deletions >= deletion_threshold)
            || (mutation_threshold > 0 && mutations >= mutation_threshold);
        let since = reason.then(|| *self.since.get_or_insert(now));
        // Not before the last one has been paid for, and longer after each that failed.
        let mut pause = self.interval();
        if self.failures > 0 {
            pause += UNTUNED * self.failures.min(60);
        }
        let earliest = self.last.map_or(now, |last| last + pause);
        let wanted = since.map(|since| since + schedule_delay);
        let ends = self.next_end.into_iter().chain(changes.soonest).min();
        let ends = ends.map(|end| now + Duration::from_nanos(end.0.saturating_sub(clock.0)));
        let again = self.last.filter(|_| !period.is_zero() && mutations > 0).map(|last| last + period);
        let full = (pressed && mutations > 0).then(|| self.last.map_or(now, |last| last + PRESSED));
        let usual = [wanted, ends, again].into_iter().flatten().min().map(|at| at.max(earliest));
        [self.first, usual, full].into_iter().flatten().min()
    }

    /// One was made, of what had been written by `seen`.
    pub(crate) fn done(&mut self, now: Instant, seen: Changes, spent: Duration, next_end: Option<Timestamp>) {
        (self.seen, self.next_end, self.last) = (seen, next_end, Some(now));
        self.spent += spent;
        self.runs += 1;
        (self.first, self.since, self.failures) = (None, None, 0);
    }

    /// One failed.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.last = Some(now);
        (self.first, self.since) = (None, None);
        self.failures = self.failures.saturating_add(1);
    }
}
