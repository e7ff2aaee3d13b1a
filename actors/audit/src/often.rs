//! Whoever is refused again and again leaves one record for many: of each, so many at once are told one by one, then one in a
//! while, with a count.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use cofferdam_types::{GrantId, Peer};

use crate::Record;

/// Refusals of one that are told one by one.
const BURST: u32 = 32;
/// In such a time one more is.
const EVERY: Duration = Duration::from_secs(10);
/// How many are told apart.
const SUBJECTS: usize = 1024;

/// Who is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Grant(GrantId),
    User(u32),
    /// More than are told apart.
    Others,
}

fn subject(record: &Record) -> Subject {
    match (record.grants.last(), record.peer) {
        (Some(grant), _) => Subject::Grant(*grant),
        (None, Some(Peer::Unix { uid, .. })) => Subject::User(uid),
        (None, None) => Subject::Others,
    }
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled: Instant,
    /// The last that was not told, with how many it stands for.
    counted: Option<Record>,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let more = now.saturating_duration_since(self.filled).as_nanos() / EVERY.as_nanos();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.filled += EVERY.saturating_mul(more);
            self.left = self.left.saturating_add(more).min(BURST);
        }
    }

    /// What is to be told now.
    fn take(&mut self, now: Instant) -> Option<Record> {
        self.fill(now);
        if self.left == 0 {
            return None;
        }
        let record = self.counted.take()?;
        self.left -= 1;
        Some(record)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Refusals(HashMap<Subject, Bucket>);

impl Refusals {
    /// One more; gives what is to be told.
    pub fn add(&mut self, record: Record, now: Instant) -> Option<Record> {
        let mut who = subject(&record);
        if !self.0.contains_key(&who) && self.0.len() >= SUBJECTS {
            self.forget(now);
            if self.0.len() >= SUBJECTS {
                who = Subject::Others;
            }
        }
        let bucket = self.0.entry(who).or_insert(Bucket { left: BURST, filled: now, counted: None });
        let before = bucket.counted.take().map_or(0, |counted| counted.times);
        bucket.counted = Some(Record { times: before.saturating_add(record.times), ..record });
        bucket.take(now)
    }

    /// What is to be told by now, of those who are refused no more.
    pub fn due(&mut self, now: Instant) -> Vec<Record> {
        let due = self.0.values_mut().filter_map(|bucket| bucket.take(now)).collect();
        self.forget(now);
        due
    }

    /// All that is not told yet, at the end.
    pub fn rest(&mut self) -> Vec<Record> {
        self.0.values_mut().filter_map(|bucket| bucket.counted.take()).collect()
    }

    /// Whether something is not told yet.
    pub fn waits(&self) -> bool {
        self.0.values().any(|bucket| bucket.counted.is_some())
    }

    fn forget(&mut self, now: Instant) {
        self.0.retain(|_, bucket| {
            bucket.fill(now);
            bucket.left < BURST || bucket.counted.is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;

    fn refused(grant: u128) -> Record {
        Record { grants: vec![GrantId(grant)], ..Record::new("Task.exec", Verdict::Denied) }
    }

    #[test]
    fn many_of_one_are_one_record_and_others_are_told() {
        let (mut all, start) = (Refusals::default(), Instant::now());
        let told = (0..1000).filter_map(|_| all.add(refused(1), start)).count();
        assert_eq!(told, BURST as usize);
        assert_eq!(all.add(refused(2), start).map(|record| record.times), Some(1), "another's is his own");
        assert!(all.waits() && all.due(start + EVERY / 2).is_empty());
        let due = all.due(start + EVERY);
        assert_eq!(due.iter().map(|record| record.times).collect::<Vec<_>>(), [1000 - BURST]);
        assert!(!all.waits() && all.due(start + EVERY * 2).is_empty());
        // After a while it begins anew, and nothing of it is kept.
        all.due(start + EVERY * 100);
        assert!(all.0.is_empty());
    }

    #[test]
    fn those_who_are_told_apart_are_bounded() {
        let (mut all, start) = (Refusals::default(), Instant::now());
        let told = (0..5000).filter_map(|grant| all.add(refused(grant), start)).count();
        assert_eq!(told, SUBJECTS + BURST as usize);
        assert!(all.0.len() <= SUBJECTS + 1);
        let rest: u32 = all.rest().iter().map(|record| record.times).sum();
        assert_eq!(told as u32 + rest, 5000, "each is counted");
    }
}
