//! Whoever does something, or is refused, again and again leaves one record for many: of each, so many at once are told one by one,
//! then one in a while, with a count.

use std::{
    borrow::Cow,
    collections::HashMap,
    time::{Duration, Instant},
};

use cofferdam_types::{GrantId, Peer};

use crate::{Record, Verdict};

/// How much of one is told.
#[derive(Debug)]
pub struct Measure {
    /// So many are told one by one.
    burst: u32,
    /// In such a time one more is.
    every: Duration,
    /// Whose they are.
    whose: fn(&[GrantId]) -> Option<&GrantId>,
    /// Whether what is counted is told apart by what it was: what was done is, so that nobody hides one call behind many others.
    apart: bool,
}

/// Of who is refused.
pub const REFUSALS: Measure =
    Measure { burst: 32, every: Duration::from_secs(10), whose: |path| path.last(), apart: false };
/// Of who does what he may: a few MiB of the log at once, whatever grants he makes of his own.
pub const USES: Measure =
    Measure { burst: 2048, every: Duration::from_secs(1), whose: |path| path.first(), apart: true };
/// How many are told apart.
const SUBJECTS: usize = 1024;

/// Who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Grant(GrantId),
    User(u32),
    /// More than are told apart.
    Others,
}

fn subject(record: &Record, measure: &Measure) -> Subject {
    match ((measure.whose)(&record.grants), record.peer) {
        (Some(grant), _) => Subject::Grant(*grant),
        (None, Some(Peer::Unix { uid, .. })) => Subject::User(uid),
        (None, None) => Subject::Others,
    }
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled: Instant,
    /// The last of each kind that was not told, with how many it stands for. There are as many kinds as methods have verdicts.
    counted: HashMap<Kind, Record>,
}

/// What a record is counted with.
type Kind = Option<(Cow<'static, str>, Verdict)>;

impl Bucket {
    fn fill(&mut self, measure: &Measure, now: Instant) {
        let more = now.saturating_duration_since(self.filled).as_nanos() / measure.every.as_nanos();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.filled += measure.every.saturating_mul(more);
            self.left = self.left.saturating_add(more).min(measure.burst);
        }
    }

    /// What is to be told now: the oldest, which others that go on have no turn before.
    fn take(&mut self, measure: &Measure, now: Instant) -> Option<Record> {
        self.fill(measure, now);
        if self.left == 0 {
            return None;
        }
        let (kind, _) = self.counted.iter().min_by_key(|(_, record)| record.time)?;
        let kind = kind.clone();
        self.left -= 1;
        self.counted.remove(&kind)
    }
}

/// All of them.
#[derive(Debug)]
pub struct Often {
    measure: Measure,
    all: HashMap<Subject, Bucket>,
}

impl Often {
    /// None yet.
    pub fn new(measure: Measure) -> Often {
        Often { measure, all: HashMap::new() }
    }

    /// One more; gives what is to be told.
    pub fn add(&mut self, record: Record, now: Instant) -> Option<Record> {
        let mut who = subject(&record, &self.measure);
        if !self.all.contains_key(&who) && self.all.len() >= SUBJECTS {
            self.forget(now);
            if self.all.len() >= SUBJECTS {
                who = Subject::Others;
            }
        }
        let fresh = || Bucket { left: self.measure.burst, filled: now, counted: HashMap::new() };
        let bucket = self.all.entry(who).or_insert_with(fresh);
        let kind = self.measure.apart.then(|| (record.method.clone(), record.verdict));
        let before = bucket.counted.remove(&kind).map_or(0, |counted| counted.times);
        bucket.counted.insert(kind, Record { times: before.saturating_add(record.times), ..record });
        bucket.take(&self.measure, now)
    }

    /// What is to be told by now, of those who have stopped.
    pub fn due(&mut self, now: Instant) -> Vec<Record> {
        let mut due = Vec::new();
        for bucket in self.all.values_mut() {
            due.extend(std::iter::from_fn(|| bucket.take(&self.measure, now)));
        }
        self.forget(now);
        due
    }

    /// All that is not told yet, at the end.
    pub fn rest(&mut self) -> Vec<Record> {
        self.all.values_mut().flat_map(|bucket| std::mem::take(&mut bucket.counted).into_values()).collect()
    }

    /// Whether something is not told yet.
    pub fn waits(&self) -> bool {
        self.all.values().any(|bucket| !bucket.counted.is_empty())
    }

    fn forget(&mut self, now: Instant) {
        self.all.retain(|_, bucket| {
            bucket.fill(&self.measure, now);
            bucket.left < self.measure.burst || !bucket.counted.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u32 = REFUSALS.burst;
    const EVERY: Duration = REFUSALS.every;

    fn refused(grant: u128) -> Record {
        Record { grants: vec![GrantId(grant)], ..Record::new("Task.exec", Verdict::Denied) }
    }

    #[test]
    fn many_of_one_are_one_record_and_others_are_told() {
        let (mut all, start) = (Often::new(REFUSALS), Instant::now());
        let told = (0..1000).filter_map(|_| all.add(refused(1), start)).count();
        assert_eq!(told, BURST as usize);
        assert_eq!(all.add(refused(2), start).map(|record| record.times), Some(1), "another's is his own");
        assert!(all.waits() && all.due(start + EVERY / 2).is_empty());
        let due = all.due(start + EVERY);
        assert_eq!(due.iter().map(|record| record.times).collect::<Vec<_>>(), [1000 - BURST]);
        assert!(!all.waits() && all.due(start + EVERY * 2).is_empty());
        // After a while it begins anew, and nothing of it is kept.
        all.due(start + EVERY * 100);
        assert!(all.all.is_empty());
    }

    #[test]
    fn those_who_are_told_apart_are_bounded() {
        let (mut all, start) = (Often::new(REFUSALS), Instant::now());
        let told = (0..5000).filter_map(|grant| all.add(refused(grant), start)).count();
        assert_eq!(told, SUBJECTS + BURST as usize);
        assert!(all.all.len() <= SUBJECTS + 1);
        let rest: u32 = all.rest().iter().map(|record| record.times).sum();
        assert_eq!(told as u32 + rest, 5000, "each is counted");
    }

    #[test]
    fn what_one_does_often_hides_nothing_else_that_he_does() {
        let (mut all, start) = (Often::new(USES), Instant::now());
        let used = |path: &[u128], method: &'static str, verdict, time| {
            let grants = path.iter().copied().map(GrantId).collect();
            Record { grants, time: cofferdam_types::Timestamp(time), ..Record::new(method, verdict) }
        };
        // A grant of one's own is no other one.
        let enter = |n: u64| used(&[1, n.into()][..1 + n as usize % 2], "Gate.enter", Verdict::Allowed, n);
        let told = (0..10_000).filter_map(|n| all.add(enter(n), start)).count();
        assert_eq!(told, USES.burst as usize);
        assert!(all.add(used(&[1], "Task.exec", Verdict::Allowed, 10_000), start).is_none());
        assert!(all.add(used(&[1], "Task.exec", Verdict::Failed, 10_001), start).is_none());
        assert!(all.add(enter(10_002), start).is_none());
        assert!(all.add(used(&[2], "Gate.enter", Verdict::Allowed, 10_003), start).is_some());
        let due = all.due(start + USES.every * 2);
        let due: Vec<_> = due.iter().map(|record| (&*record.method, record.verdict, record.times)).collect();
        assert_eq!(due, [("Task.exec", Verdict::Allowed, 1), ("Task.exec", Verdict::Failed, 1)]);
        let rest: Vec<_> = all.rest().iter().map(|record| (record.method.to_string(), record.times)).collect();
        assert_eq!(rest, [("Gate.enter".to_owned(), 10_001 - USES.burst)]);
    }
}
