//! Where a walk is, for its errors.

use std::{
    ffi::{CStr, CString},
    fmt,
};

use cofferdam_types::Error;
use nix::errno::Errno;

/// The names on the way, and the one that the walk is at.
#[derive(Default)]
pub struct Place {
    path: Vec<CString>,
    name: CString,
    fault: Option<Error>,
}

impl Place {
    pub fn at(&mut self, name: &CStr) {
        self.name = name.to_owned();
    }

    pub fn down(&mut self, name: &CStr) {
        self.path.push(name.to_owned());
        self.name = CString::default();
    }

    pub fn up(&mut self) {
        self.name = self.path.pop().unwrap_or_default();
    }

    /// Keeps an error about what is here, for [`Place::fault`]: a walk carries numbers alone.
    pub fn refuse(&mut self, error: impl Fn(&'static str, String, String) -> Error, why: impl Into<String>) -> Errno {
        self.fault = Some(error("file", self.to_string(), why.into()));
        Errno::ECANCELED
    }

    /// The error that ended a walk.
    pub fn fault(&mut self, error: Errno) -> Error {
        let here = self.to_string();
        let what = "can't be put into the image of a layer";
        self.fault.take().unwrap_or_else(|| Error::io("file", here, what, &error.into()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.iter().chain([&self.name]).try_for_each(|part| write!(f, "/{}", part.to_string_lossy()))
    }
}
