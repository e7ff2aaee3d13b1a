//! The schedule, by the clock of the test; and collections of real stores.

mod stores;

use std::time::{Duration, Instant};

use cofferdam_metadata::Changes;
use cofferdam_types::Timestamp;

use crate::{Settings, schedule::Schedule};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn settings(text: &str) -> Settings {
    let mut settings = Settings::default();
    settings.set("startup_delay=0,schedule_delay=0,period=0").unwrap();
    settings.set(text).unwrap();
    settings
}

fn written(mutations: u64, deletions: u64) -> Changes {
    Changes { mutations, deletions, soonest: None }
}

struct Bench {
    schedule: Schedule,
    start: Instant,
}

impl Bench {
    fn new(text: &str) -> Bench {
        let start = Instant::now();
        Bench { schedule: Schedule::new(settings(text), start), start }
    }

    /// When it is due, as seen at `at`; both from the start.
    fn due(&mut self, at: Duration, changes: Changes) -> Option<Duration> {
        self.asked(at, changes, false)
    }

    fn asked(&mut self, at: Duration, changes: Changes, pressed: bool) -> Option<Duration> {
        let clock = Timestamp(u64::try_from(at.as_nanos()).unwrap());
        let due = self.schedule.due(self.start + at, clock, changes, pressed);
        due.map(|due| due.saturating_duration_since(self.start))
    }

    fn done(&mut self, at: Duration, seen: Changes, spent: Duration) {
        self.schedule.done(self.start + at, seen, spent, None);
    }
}

#[test]
fn it_collects_once_after_the_start() {
    let mut bench = Bench::new("startup_delay=100ms");
    assert_eq!(bench.due(Duration::ZERO, written(0, 0)), Some(100 * MS));
    bench.done(100 * MS, written(0, 0), MS);
    assert_eq!(bench.due(S, written(0, 0)), None);
    assert_eq!(Bench::new("startup_delay=0").due(S, written(0, 0)), None);
}

#[test]
fn removals_and_writes_make_it_collect() {
    // As the reference's test has it: none after four, one after five.
    let mut bench = Bench::new("deletion_threshold=5,mutation_threshold=0");
    assert_eq!(bench.due(S, written(400, 4)), None);
    assert_eq!(bench.due(2 * S, written(500, 5)), Some(2 * S));
    bench.done(2 * S, written(500, 5), Duration::ZERO);
    assert_eq!(bench.due(3 * S, written(900, 9)), None, "those before it don't count");
    let mut bench = Bench::new("mutation_threshold=100");
    assert_eq!(bench.due(S, written(99, 0)), None);
    assert_eq!(bench.due(S, written(100, 0)), Some(S));
    let mut bench = Bench::new("deletion_threshold=0,schedule_delay=3s");
    assert_eq!(bench.due(S, written(1, 1)), Some(4 * S));
    assert_eq!(bench.due(2 * S, written(2, 2)), Some(4 * S), "the delay counts from the first");
}

#[test]
fn it_keeps_to_its_share_of_the_time() {
    let mut bench = Bench::new("pause_threshold=0.02");
    bench.done(S, written(1, 1), 100 * MS);
    assert_eq!(bench.due(S, written(2, 2)), Some(S + 4900 * MS));
    bench.done(6 * S, written(2, 2), 300 * MS);
    assert_eq!(bench.due(6 * S, written(3, 3)), Some(6 * S + 9800 * MS), "the average counts");
    let mut bench = Bench::new("pause_threshold=0");
    bench.done(S, written(1, 1), 10 * S);
    assert_eq!(bench.due(S, written(2, 2)), Some(2 * S), "untuned it is a second");
    assert_eq!(settings("pause_threshold=0.5").pause_threshold, 0.5);
}

#[test]
fn time_makes_it_collect() {
    let mut bench = Bench::new("period=1h");
    bench.done(S, written(5, 0), Duration::ZERO);
    assert_eq!(bench.due(2 * S, written(5, 0)), None, "nothing was written");
    assert_eq!(bench.due(2 * S, written(6, 0)), Some(3601 * S));
    // The end of a lease that was made since, or that the last one saw.
    let mut bench = Bench::new("");
    let ends = |at: u64| Some(Timestamp(at * 1_000_000_000));
    assert_eq!(bench.due(2 * S, Changes { soonest: ends(7), ..written(1, 0) }), Some(7 * S));
    bench.schedule.done(bench.start + 3 * S, written(1, 0), Duration::ZERO, ends(9));
    assert_eq!(bench.due(3 * S, written(1, 0)), Some(9 * S));
    assert_eq!(bench.due(12 * S, written(1, 0)), Some(12 * S));
}

#[test]
fn a_full_disk_makes_it_collect_whatever_was_written() {
    let mut bench = Bench::new("mutation_threshold=0,pause_threshold=0.01");
    bench.done(S, written(1, 0), 60 * S);
    assert_eq!(bench.asked(2 * S, written(2, 0), false), None);
    assert_eq!(bench.asked(2 * S, written(2, 0), true), Some(11 * S));
    assert_eq!(bench.asked(2 * S, written(1, 0), true), None, "nothing was written: there is nothing to find");
}

#[test]
fn after_a_failure_it_tries_again_later_and_later() {
    let mut bench = Bench::new("");
    bench.schedule.failed(bench.start + S);
    assert_eq!(bench.due(S, written(0, 0)), Some(2 * S));
    bench.schedule.failed(bench.start + 2 * S);
    assert_eq!(bench.due(2 * S, written(0, 0)), Some(4 * S));
    bench.done(4 * S, written(0, 0), Duration::ZERO);
    assert_eq!(bench.due(5 * S, written(0, 0)), None);
}

#[test]
fn what_is_wrong_in_the_settings_is_named() {
    let mut settings = Settings::default();
    for (text, key) in [
        ("pause_threshold=0.51", "pause_threshold"),
        ("mutation_threshold=-1", "mutation_threshold"),
        ("schedule_delay=5", "schedule_delay"),
        ("period=1d", "period"),
        ("disk_pressure", "disk_pressure"),
        ("nonsense=1", "nonsense"),
    ] {
        assert_eq!(settings.set(text).unwrap_err().id, key, "{text}");
    }
    settings.set("period=90s,disk_pressure=0.75").unwrap();
    assert_eq!((settings.period, settings.disk_pressure), (90 * S, 0.75));
}
