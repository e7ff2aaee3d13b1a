//! What stands in the log of one call.

use std::borrow::Cow;

use cofferdam_grants::Token;
use cofferdam_types::{Error, GrantId, Peer, Result, Timestamp};
use serde::{Deserialize, Serialize};

/// The most bytes of what a record tells in words: it is about who and what, and no place to keep things.
const WORDS: usize = 512;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was done.
    Allowed,
    /// It was refused for want of authority.
    Denied,
    /// It was let through, and failed.
    Failed,
    /// Its caller went away before the answer.
    Cut,
}

impl Verdict {
    const ALL: [Verdict; 4] = [Verdict::Allowed, Verdict::Denied, Verdict::Failed, Verdict::Cut];

    /// The stable name, as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Allowed => "allowed",
            Verdict::Denied => "denied",
            Verdict::Failed => "failed",
            Verdict::Cut => "cut",
        }
    }

    /// Reads one.
    pub fn parse(text: &str) -> Result<Verdict> {
        let found = Verdict::ALL.into_iter().find(|verdict| verdict.as_str() == text);
        let all = Verdict::ALL.map(Verdict::as_str).join(", ");
        found.ok_or_else(|| Error::invalid("verdict", text, format!("is none: give one of {all}")))
    }
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When the call began.
    pub time: Timestamp,
    /// The grants through which it came, the outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<GrantId>,
    /// Who is at the other end; none: the daemon itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// Where it happened.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Kind and name of what was called.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// The object's interface and the method.
    pub method: Cow<'static, str>,
    /// What it was about.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Why, where it wasn't done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// The caller's own name for what it is doing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub correlation: String,
    /// How many such calls it stands for.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub times: u32,
}

fn once() -> u32 {
    1
}

fn is_once(times: &u32) -> bool {
    *times == 1
}

impl Record {
    /// A call that begins now, of which nothing is known but this.
    pub fn new(method: impl Into<Cow<'static, str>>, verdict: Verdict) -> Record {
        Record {
            time: Timestamp::now(),
            grants: Vec::new(),
            peer: None,
            namespace: String::new(),
            object: String::new(),
            method: method.into(),
            detail: String::new(),
            verdict,
            error: String::new(),
            correlation: String::new(),
            times: 1,
        }
    }

    /// What the log says of itself.
    pub(crate) fn own(detail: impl Into<String>) -> Record {
        Record { detail: detail.into(), ..Record::new("audit", Verdict::Failed) }
    }

    /// As it may be kept: without tokens, and no longer than a record is.
    pub(crate) fn fit(mut self) -> Record {
        for words in [&mut self.namespace, &mut self.object, &mut self.detail, &mut self.error, &mut self.correlation] {
            // Before it is cut: of a token there may be nothing, not even a part.
            if let Cow::Owned(hidden) = Token::hide(words) {
                *words = hidden;
            }
            if words.len() > WORDS {
                let end = (0..=WORDS - 3).rev().find(|end| words.is_char_boundary(*end)).unwrap_or_default();
                words.truncate(end);
                words.push_str("...");
            }
        }
        self
    }
}

/// Which records are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this namespace.
    pub namespace: Option<String>,
    /// That came through this grant, or through one that comes from it, or was done to it.
    pub grant: Option<GrantId>,
    /// Of this method, or of all of an interface: `Task.*`.
    pub method: Option<String>,
    /// That ended so.
    pub verdict: Option<Verdict>,
    /// That began then or later.
    pub since: Timestamp,
}

impl Filter {
    /// Whether a record is one of them.
    pub fn passes(&self, record: &Record) -> bool {
        let of_method = |wanted: &String| match wanted.strip_suffix('*') {
            Some(interface) => record.method.starts_with(interface),
            None => record.method == *wanted,
        };
        self.namespace.as_ref().is_none_or(|namespace| record.namespace == *namespace)
            && self
                .grant
                .is_none_or(|grant| record.grants.contains(&grant) || record.object == format!("grant/{grant}"))
            && self.method.as_ref().is_none_or(of_method)
            && self.verdict.is_none_or(|verdict| record.verdict == verdict)
            && record.time >= self.since
    }

    /// Whether it lets everything through.
    pub fn is_all(&self) -> bool {
        *self == Filter::default()
    }
}
