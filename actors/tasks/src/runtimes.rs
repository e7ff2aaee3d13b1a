//! Runtime binaries of others, by the names that clients know them by.
//!
//! A binary runs as root on the host. So whoever hasn't the right to the host has those that the operator names, and no other
//! program that happens to lie where programs lie.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use cofferdam_types::{Error, Id, Result};

/// Where a name is looked for: not the daemon's environment, since what runs as root is not up to a variable.
const DIRS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The ones that are named, each with its binary where that isn't to be looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtimes(BTreeMap<String, Option<PathBuf>>);

impl Default for Runtimes {
    /// The runtimes of the field that are for nothing else.
    fn default() -> Runtimes {
        Runtimes(["runc", "crun", "youki"].map(|name| (name.to_owned(), None)).into())
    }
}

impl Runtimes {
    /// Names one more, or another binary for a name: `NAME=PATH`. `NAME=` takes a name away, and `NAME` alone is looked for.
    pub fn set(&mut self, text: &str) -> Result<()> {
        let bad = |why: &str| Error::invalid("runtime", text.escape_debug(), why);
        let (name, path) = match text.split_once('=') {
            Some((name, path)) => (name, Some(path)),
            None => (text, None),
        };
        if Id::new(name).is_err() || name == "native" {
            return Err(bad("is no name of a runtime, with = and the path of its binary behind it"));
        }
        match path {
            Some("") => drop(self.0.remove(name)),
            Some(path) if !path.starts_with('/') => return Err(bad("needs the whole path of the binary, from / on")),
            path => drop(self.0.insert(name.to_owned(), path.map(PathBuf::from))),
        }
        Ok(())
    }

    /// Whether it is for everybody who may make containers: ours, or one that is named.
    pub(crate) fn are_given(&self, runtime: &str) -> bool {
        matches!(runtime, "" | "native") || self.0.contains_key(runtime)
    }

    /// The name of the driver that is ours, or the binary of one that is not.
    pub(crate) fn find(&self, name: &str) -> Result<String> {
        if name == "native" || name.contains('/') {
            return Ok(name.to_owned());
        }
        if let Some(Some(path)) = self.0.get(name) {
            return Ok(path.to_string_lossy().into_owned());
        }
        let found = DIRS.iter().map(|dir| format!("{dir}/{name}")).find(|path| Path::new(path).is_file());
        found.filter(|_| Id::new(name).is_ok()).ok_or_else(|| {
            let why = "is not installed: `native` needs nothing; runc, crun and youki work if their binary is there, and others \
                       by `cofferd --runtime NAME=PATH`";
            Error::not_found("runtime", name, why)
        })
    }

    /// What there is, for an error.
    pub(crate) fn names(&self) -> String {
        std::iter::once("native").chain(self.0.keys().map(String::as_str)).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_given_and_nothing_else() {
        let mut runtimes = Runtimes::default();
        for given in ["", "native", "runc", "crun", "youki"] {
            assert!(runtimes.are_given(given), "{given}");
        }
        for other in ["sh", "kata", "/usr/bin/runc", "runc/../sh"] {
            assert!(!runtimes.are_given(other), "{other}");
        }
        runtimes.set("kata=/opt/kata/bin/kata").unwrap();
        runtimes.set("runc=").unwrap();
        runtimes.set("sh").unwrap();
        assert!(runtimes.are_given("kata") && !runtimes.are_given("runc"));
        assert_eq!(runtimes.find("kata").unwrap(), "/opt/kata/bin/kata");
        assert!(runtimes.find("sh").unwrap().ends_with("/sh"));
        assert_eq!(runtimes.names(), "native, crun, kata, sh, youki");
        for bad in ["native=/x", "=/x", "a/b=/x", "kata=bin/kata", "..=/x"] {
            assert_eq!(runtimes.set(bad).unwrap_err().kind, "runtime", "{bad}");
        }
        assert_eq!(runtimes.find("no-such-runtime").unwrap_err().code, cofferdam_types::Code::NotFound);
        assert_eq!(runtimes.find("../bin/sh").unwrap(), "../bin/sh", "a path is whoever's it is who may name one");
    }
}
