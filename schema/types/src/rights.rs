//! Rights: what a grant lets its holder do, in the words of `$needs` in the schema.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// What a method needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Right {
    /// Nothing but the object itself.
    None = 0,
    /// To look.
    Read = 1 << 0,
    /// To change.
    Write = 1 << 1,
    /// To run code.
    Run = 1 << 2,
    /// To connect containers to networks of the host's configuration.
    Networks = 1 << 3,
    /// To touch the host.
    Host = 1 << 4,
    /// What only a `Root` has.
    Root = 1 << 5,
}

impl Right {
    /// Every right that can be given, the smallest first.
    pub const ALL: [Right; 6] = [Right::Read, Right::Write, Right::Run, Right::Networks, Right::Host, Right::Root];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Right::None => "none",
            Right::Read => "read",
            Right::Write => "write",
            Right::Run => "run",
            Right::Networks => "networks",
            Right::Host => "host",
            Right::Root => "root",
        }
    }

    /// Reads one that can be given.
    pub fn parse(text: &str) -> Result<Right> {
        let found = Right::ALL.into_iter().find(|right| right.as_str() == text);
        let why = "is no right: give read, write, run, networks, host or root";
        found.ok_or_else(|| Error::invalid("right", text, why))
    }

    /// What comes with it: who may change or run something sees it, who may touch the host can do all that a container
    /// can, and who has `root` everything.
    const fn brings(self) -> u8 {
        let read = Right::Read as u8;
        let host = Right::Host as u8 | Right::Networks as u8 | Right::Run as u8 | Right::Write as u8 | read;
        match self {
            Right::None => 0,
            Right::Read => read,
            Right::Write | Right::Run | Right::Networks => self as u8 | read,
            Right::Host => host,
            Right::Root => Right::Root as u8 | host,
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of rights, with all that they bring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rights(u8);

impl Rights {
    /// Everything.
    pub const ALL: Rights = Rights(Right::Root.brings());
    /// Everything within a namespace.
    pub const HOST: Rights = Rights(Right::Host.brings());

    /// These, and what they bring.
    pub fn of(rights: impl IntoIterator<Item = Right>) -> Rights {
        Rights(rights.into_iter().fold(0, |all, right| all | right.brings()))
    }

    /// Whether a method that needs this may be called.
    pub const fn has(self, right: Right) -> bool {
        self.0 & right as u8 == right as u8
    }

    /// What both have. Of sets that are closed this one is too.
    pub const fn intersect(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }

    /// Each of them, the smallest first.
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.has(*right))
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.iter().map(Right::as_str).collect();
        f.write_str(&words.join(", "))
    }
}

impl Serialize for Rights {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Right::as_str))
    }
}

impl<'de> Deserialize<'de> for Rights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Rights, D::Error> {
        let words = Vec::<String>::deserialize(deserializer)?;
        let rights: Result<Vec<_>> = words.iter().map(|word| Right::parse(word)).collect();
        rights.map(Rights::of).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_brings_what_is_smaller() {
        let brings = |right| Rights::of([right]).to_string();
        assert_eq!(brings(Right::Read), "read");
        assert_eq!(brings(Right::Write), "read, write");
        assert_eq!(brings(Right::Run), "read, run");
        assert_eq!(brings(Right::Networks), "read, networks");
        assert_eq!(brings(Right::Host), "read, write, run, networks, host");
        assert_eq!(brings(Right::Root), "read, write, run, networks, host, root");
        assert!(Rights::default().has(Right::None) && !Rights::default().has(Right::Read));
        for right in Right::ALL {
            assert!(Rights::ALL.has(right) && (Rights::HOST.has(right) || right == Right::Root));
            assert_eq!(Right::parse(right.as_str()).unwrap(), right);
        }
        assert!(Right::parse("none").is_err() && Right::parse("").is_err());
    }

    #[test]
    fn they_are_written_as_words() {
        let rights = Rights::of([Right::Run, Right::Write]);
        let text = serde_json::to_string(&rights).unwrap();
        assert_eq!(text, r#"["read","write","run"]"#);
        assert_eq!(serde_json::from_str::<Rights>(&text).unwrap(), rights);
        assert!(serde_json::from_str::<Rights>(r#"["everything"]"#).is_err());
    }
}
