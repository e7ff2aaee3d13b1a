//! Our errors through `std::io`, and back.

use std::{fmt, io};

use cofferdam_types::Error;

/// The error within `error` if it is one of ours (a stream of ours failed), else what errno says, met while doing
/// `what` to `kind`/`id`.
pub fn from_io(kind: &'static str, id: impl ToString, what: impl fmt::Display, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(other) => Error::io(kind, id, what, &other),
    }
}
