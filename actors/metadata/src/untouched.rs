//! A damaged file stays as it was. redb may choose another commit in its head before it finds that there is no good one, and
//! what is read of the file afterwards would be of that.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
};

use cofferdam_kernel::panic_text;
use redb::{Database, DatabaseError, StorageError};

/// What an attempt to open may change.
const HEAD: u64 = 4096;

/// The head of a file, and how long it is.
pub(crate) struct Untouched {
    file: File,
    head: Vec<u8>,
    length: u64,
}

impl Untouched {
    /// As they are.
    pub(crate) fn note(file: &File) -> io::Result<Untouched> {
        let length = file.metadata()?.len();
        let mut head = vec![0; length.min(HEAD) as usize];
        file.read_exact_at(&mut head, 0)?;
        Ok(Untouched { file: file.try_clone()?, head, length })
    }

    /// Opens it, and puts back what that has changed of a file that turns out to be damaged.
    pub(crate) fn open(
        self,
        open: impl FnOnce() -> Result<Database, DatabaseError>,
    ) -> Result<Database, DatabaseError> {
        let opened = catch_unwind(AssertUnwindSafe(open));
        let broken = match &opened {
            Ok(Err(DatabaseError::Storage(StorageError::Corrupted(_)))) | Err(_) => true,
            Ok(Err(DatabaseError::Storage(StorageError::Io(e)))) => {
                matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
            }
            Ok(_) => false,
        };
        if broken {
            self.restore().unwrap_or_else(|error| tracing::error!(%error, "the head of meta.redb can't be put back"));
        }
        opened.unwrap_or_else(|payload| Err(DatabaseError::Storage(StorageError::Corrupted(panic_text(&*payload)))))
    }

    fn restore(&self) -> io::Result<()> {
        if self.file.metadata()?.len() != self.length {
            self.file.set_len(self.length)?;
        }
        let mut now = vec![0; self.head.len()];
        self.file.read_exact_at(&mut now, 0)?;
        if now != self.head {
            self.file.write_all_at(&self.head, 0)?;
            self.file.sync_data()?;
        }
        Ok(())
    }
}
