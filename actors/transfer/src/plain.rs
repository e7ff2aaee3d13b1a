//! Files of the operator's.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use cofferdam_types::Error;

/// Opens one to be read. What is no regular file is an error of ours: who opens a FIFO waits until somebody writes, and no word
/// that ends a job reaches him there.
pub(crate) fn open_plain(kind: &'static str, path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => {
            let why = "is not a regular file: put one in its place";
            Err(io::Error::other(Error::failed_precondition(kind, path.display(), why)))
        }
    }
}
