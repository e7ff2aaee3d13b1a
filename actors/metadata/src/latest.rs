//! What was committed last, for as long as nobody commits anything else, with the tables that were opened in it: to begin a read and
//! to find a table takes longer than to read a row.
//!
//! It is shared by all who read meanwhile. Whoever commits takes it away before anybody is answered, so who was told that something is
//! written reads that; and pages that a commit frees are free for the next.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cofferdam_types::Result;
use redb::{ReadOnlyTable, ReadTransaction};

use crate::table::{Bytes, Table, storage};

/// A state of the tables.
pub(crate) struct Snapshot {
    txn: ReadTransaction,
    open: [OnceLock<ReadOnlyTable<Bytes, Bytes>>; Table::ALL.len()],
}

impl Snapshot {
    pub(crate) fn new(txn: ReadTransaction) -> Arc<Snapshot> {
        Arc::new(Snapshot { txn, open: [const { OnceLock::new() }; Table::ALL.len()] })
    }

    pub(crate) fn table(&self, table: Table) -> Result<&ReadOnlyTable<Bytes, Bytes>> {
        let place = &self.open[usize::from(table.0)];
        if let Some(open) = place.get() {
            return Ok(open);
        }
        let opened = self.txn.open_table(table.definition()).map_err(storage)?;
        Ok(place.get_or_init(|| opened))
    }
}

/// The last one, once somebody has read it.
#[derive(Default)]
pub(crate) struct Latest(Mutex<Option<Arc<Snapshot>>>);

impl Latest {
    /// It, or what `begin` begins to read.
    pub(crate) fn get(&self, begin: impl FnOnce() -> Result<ReadTransaction>) -> Result<Arc<Snapshot>> {
        // Whoever commits waits here until what was begun before can be taken away.
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*latest {
            Some(held) => Ok(held.clone()),
            None => Ok(latest.insert(Snapshot::new(begin()?)).clone()),
        }
    }

    /// There is something newer, or nothing any more.
    pub(crate) fn outdate(&self) {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(before);
    }
}

#[cfg(test)]
mod tests {
    use redb::{Database, ReadableDatabase as _, backends::InMemoryBackend};

    use super::*;

    #[test]
    fn each_table_knows_its_place() {
        for (place, table) in Table::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(table.0), place, "{}", table.name());
        }
    }

    #[test]
    fn it_is_shared_until_there_is_another() {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let write = |value: &[u8]| {
            let txn = database.begin_write().unwrap();
            txn.open_table(Table::META.definition()).unwrap().insert(b"key".as_slice(), value).unwrap();
            txn.commit().unwrap();
        };
        let latest = Latest::default();
        let begin = || database.begin_read().map_err(storage);
        let read = |held: &Snapshot| {
            held.table(Table::META).unwrap().get(b"key".as_slice()).unwrap().map(|value| value.value().to_vec())
        };
        write(b"one");
        let first = latest.get(begin).unwrap();
        assert!(Arc::ptr_eq(&first, &latest.get(|| panic!("it was begun")).unwrap()));
        write(b"two");
        latest.outdate();
        let second = latest.get(begin).unwrap();
        assert_eq!((read(&first), read(&second)), (Some(b"one".to_vec()), Some(b"two".to_vec())));
    }
}
