//! What a check finds where the records and the disk don't agree.

use crate::{Error, Result};

/// What is wrong. The names are stable: they are part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A count or an index isn't what the records say that it was made of.
    IndexWrong,
    /// A record names another that isn't there.
    RecordMissing,
    /// A record can't be read.
    RecordUnreadable,
    /// A blob on record has no file.
    BlobMissing,
    /// The file of a blob on record has another size.
    BlobDamaged,
    /// A blob's file has no record.
    BlobUnrecorded,
    /// An ingest on record has no file.
    IngestMissing,
    /// An ingest's file has no record.
    IngestUnrecorded,
    /// An active snapshot, or a view of nothing, has no tree.
    SnapshotMissing,
    /// The tree of a committed snapshot is gone.
    SnapshotLost,
    /// The tree of a committed snapshot can't be opened, which doesn't say that it is gone.
    SnapshotUnreadable,
    /// The tree of a layer is not what its blob unpacks to.
    SnapshotDamaged,
    /// A snapshot's directory has no record.
    SnapshotUnrecorded,
    /// Something in the trash can't be deleted.
    TrashLeft,
    /// A bundle has no task.
    BundleUnrecorded,
    /// A log has no container.
    LogUnrecorded,
    /// The audit log is not what was written.
    AuditBroken,
    /// The journal of events is not what was written.
    JournalDamaged,
    /// A part of the check ended early, or couldn't look at something.
    Unchecked,
    /// There are more of a kind than are told.
    More,
}

impl Fault {
    /// The stable name, as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::IndexWrong => "index-wrong",
            Fault::RecordMissing => "record-missing",
            Fault::RecordUnreadable => "record-unreadable",
            Fault::BlobMissing => "blob-missing",
            Fault::BlobDamaged => "blob-damaged",
            Fault::BlobUnrecorded => "blob-unrecorded",
            Fault::IngestMissing => "ingest-missing",
            Fault::IngestUnrecorded => "ingest-unrecorded",
            Fault::SnapshotMissing => "snapshot-missing",
            Fault::SnapshotLost => "snapshot-lost",
            Fault::SnapshotUnreadable => "snapshot-unreadable",
            Fault::SnapshotDamaged => "snapshot-damaged",
            Fault::SnapshotUnrecorded => "snapshot-unrecorded",
            Fault::TrashLeft => "trash-left",
            Fault::BundleUnrecorded => "bundle-unrecorded",
            Fault::LogUnrecorded => "log-unrecorded",
            Fault::AuditBroken => "audit-broken",
            Fault::JournalDamaged => "journal-damaged",
            Fault::Unchecked => "unchecked",
            Fault::More => "more",
        }
    }
}

/// One contradiction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub fault: Fault,
    /// Which thing, as errors name things.
    pub id: String,
    /// For people: what it means, and what to do or what was done.
    pub message: String,
    /// Whether it was put right.
    pub repaired: bool,
}

/// What one part of a check has found. It has a bound: a store of which everything is lost has as many contradictions as
/// it had things.
#[derive(Debug, Default)]
pub struct Findings {
    list: Vec<Finding>,
    more: u64,
    /// Whether records may be lost, and nothing can be removed.
    frozen: bool,
}

impl Findings {
    /// How many are told.
    const MOST: usize = 10_000;

    /// Of a check beside records that can be written, or can't: what has no record may then be what lost ones told of.
    pub fn beside(writable: bool) -> Findings {
        Findings { frozen: !writable, ..Findings::default() }
    }

    /// One more.
    pub fn add(&mut self, fault: Fault, id: impl ToString, message: impl Into<String>, repaired: bool) {
        if self.list.len() == Findings::MOST {
            self.more += u64::from(!repaired);
            return;
        }
        self.list.push(Finding { fault, id: id.to_string(), message: message.into(), repaired });
    }

    /// What couldn't be looked at, or the part of a check that ended early: what else was found is told all the same.
    pub fn unchecked(&mut self, id: impl ToString, error: &Error) {
        let why = format!("the check of this ended early, and what is behind it was not compared: {error}");
        self.add(Fault::Unchecked, id, why, false);
    }

    /// Something that nobody has, and what became of it where it was to be removed.
    pub fn stray(&mut self, fault: Fault, id: impl ToString, what: &str, removed: Option<Result<()>>) {
        let (then, repaired) = match removed {
            None if self.frozen => ("it stays as long as meta.redb can't be written".to_owned(), false),
            None => ("--repair removes it".to_owned(), false),
            Some(Ok(())) => ("it was removed".to_owned(), true),
            Some(Err(error)) => (format!("it can't be removed: {error}"), false),
        };
        self.add(fault, id, format!("{what}: {then}"), repaired);
    }

    /// All of them; where some are left out, the last one says how many.
    pub fn done(mut self) -> Vec<Finding> {
        if self.more > 0 {
            let message = format!("{} more are not told: check again when these are put right", self.more);
            self.list.push(Finding { fault: Fault::More, id: String::new(), message, repaired: false });
        }
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_records_may_be_lost_nobody_is_told_to_remove_what_has_none() {
        for (writable, then) in [(true, "--repair removes it"), (false, "it stays")] {
            let mut found = Findings::beside(writable);
            found.stray(Fault::BlobUnrecorded, 1, "no namespace has it", None);
            let message = &found.done()[0].message;
            assert!(message.contains(then), "{message}");
        }
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let mut found = Findings::default();
        for n in 0..Findings::MOST + 3 {
            found.add(Fault::BlobMissing, n, "", n % 2 == 0);
        }
        let list = found.done();
        assert_eq!(list.len(), Findings::MOST + 1);
        let last = list.last().unwrap();
        assert!(last.fault == Fault::More && last.message.starts_with("1 more"), "{last:?}");
    }
}
