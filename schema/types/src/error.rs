//! The one error that crosses every boundary of the system.

use std::{borrow::Cow, fmt};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// What went wrong, as a program may act on it. The names are stable: they are part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The request can never succeed as it stands.
    InvalidArgument,
    /// The thing named does not exist, or the caller may not know that it does.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The thing is in a state that forbids the request; the message names the state.
    FailedPrecondition,
    /// A part of the daemon is down or overloaded; the same request may succeed later.
    Unavailable,
    /// The caller's capability does not allow it.
    Denied,
    /// The capability was taken back.
    Revoked,
    /// An offset or a size lies outside the thing.
    OutOfRange,
    /// The caller, or its disappearance, ended the request.
    Cancelled,
    /// A deadline passed.
    DeadlineExceeded,
    /// A budget, a quota or a disk is full.
    ResourceExhausted,
    /// This build, driver or kernel can't do it.
    Unimplemented,
    /// Stored or received bytes are not what they should be.
    DataLoss,
    /// A defect of the daemon.
    Internal,
}

impl Code {
    /// Every code, in the order of the schema.
    pub const ALL: [Code; 14] = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::AlreadyExists,
        Code::FailedPrecondition,
        Code::Unavailable,
        Code::Denied,
        Code::Revoked,
        Code::OutOfRange,
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::ResourceExhausted,
        Code::Unimplemented,
        Code::DataLoss,
        Code::Internal,
    ];

    /// The stable name, as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::InvalidArgument => "invalid_argument",
            Code::NotFound => "not_found",
            Code::AlreadyExists => "already_exists",
            Code::FailedPrecondition => "failed_precondition",
            Code::Unavailable => "unavailable",
            Code::Denied => "denied",
            Code::Revoked => "revoked",
            Code::OutOfRange => "out_of_range",
            Code::Cancelled => "cancelled",
            Code::DeadlineExceeded => "deadline_exceeded",
            Code::ResourceExhausted => "resource_exhausted",
            Code::Unimplemented => "unimplemented",
            Code::DataLoss => "data_loss",
            Code::Internal => "internal",
        }
    }

    fn parse(text: &str) -> Option<Code> {
        Code::ALL.into_iter().find(|code| code.as_str() == text)
    }
}

/// What a part of the daemon says while it is down: nothing of the request was done, and it comes back.
pub const COMES_BACK: &str = "will be started again";

/// The result of anything that a client may come to see.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with a stable code, the thing it is about, and a sentence that says what to do.
///
/// On the wire it is the reason of a Cap'n Proto exception, `cofferdam:<code> <kind>/<id>: <sentence>`, so that a
/// failure anywhere in a pipelined chain surfaces unchanged at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What a program may act on.
    pub code: Code,
    /// The kind of thing, such as `container` or `blob`.
    pub kind: Cow<'static, str>,
    /// Which one; empty where there is none.
    pub id: String,
    /// For people: what is wrong and what to do.
    pub message: String,
}

macro_rules! constructors {
    ($($name:ident => $code:ident),* $(,)?) => {$(
        #[doc = concat!("An error of code [`Code::", stringify!($code), "`].")]
        pub fn $name(kind: &'static str, id: impl ToString, message: impl Into<String>) -> Error {
            Error { code: Code::$code, kind: Cow::Borrowed(kind), id: id.to_string(), message: message.into() }
        }
    )*};
}

/// What the id of a thing may not hold raw inside a reason: whatever would end it or break the line.
const ID: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b':').add(b'/').add(b'@');

impl Error {
    constructors! {
        invalid => InvalidArgument,
        not_found => NotFound,
        already_exists => AlreadyExists,
        failed_precondition => FailedPrecondition,
        unavailable => Unavailable,
        denied => Denied,
        revoked => Revoked,
        out_of_range => OutOfRange,
        cancelled => Cancelled,
        deadline_exceeded => DeadlineExceeded,
        resource_exhausted => ResourceExhausted,
        unimplemented => Unimplemented,
        data_loss => DataLoss,
        internal => Internal,
    }

    /// An operating system error met while doing `what` to `kind`/`id`, with the code that its errno stands for.
    pub fn io(kind: &'static str, id: impl ToString, what: impl fmt::Display, error: &std::io::Error) -> Error {
        use std::io::ErrorKind as K;
        // Too many open files, which has no kind of its own.
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        let code = match error.kind() {
            K::NotFound => Code::NotFound,
            K::AlreadyExists => Code::AlreadyExists,
            K::StorageFull | K::QuotaExceeded | K::OutOfMemory => Code::ResourceExhausted,
            K::TimedOut => Code::DeadlineExceeded,
            K::Unsupported => Code::Unimplemented,
            K::UnexpectedEof => Code::DataLoss,
            _ if matches!(error.raw_os_error(), Some(ENFILE | EMFILE)) => Code::ResourceExhausted,
            _ => Code::Internal,
        };
        Error { code, kind: Cow::Borrowed(kind), id: id.to_string(), message: format!("{what}: {error}") }
    }

    /// Puts what was being done in front of the sentence.
    pub fn context(mut self, what: impl fmt::Display) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Whether a part of the daemon is down and comes back, and nothing was done meanwhile: asking again is right.
    pub fn comes_back(&self) -> bool {
        self.code == Code::Unavailable && self.message.contains(COMES_BACK)
    }

    /// Whether a file system has no room left, as the system itself says it: budgets are worded by who keeps them.
    pub fn is_full_disk(&self) -> bool {
        const ENOSPC: i32 = 28;
        self.code == Code::ResourceExhausted
            && self.message.contains(&std::io::Error::from_raw_os_error(ENOSPC).to_string())
    }

    /// Whether a file system takes nothing at all.
    pub fn is_read_only_disk(&self) -> bool {
        const EROFS: i32 = 30;
        self.message.contains(&std::io::Error::from_raw_os_error(EROFS).to_string())
    }

    /// The form that crosses the wire.
    pub fn to_reason(&self) -> String {
        let id = utf8_percent_encode(&self.id, ID);
        format!("cofferdam:{} {}/{id}: {}", self.code.as_str(), self.kind, self.message)
    }

    /// Reads what [`Error::to_reason`] wrote, whatever number of hops prefixed it. A text without our prefix came
    /// from a library or a foreign program and is `internal`.
    pub fn from_reason(reason: &str) -> Error {
        let mut text = reason;
        while let Some(rest) = text.strip_prefix("remote exception: ") {
            text = rest;
        }
        Self::parse(text).unwrap_or_else(|| Error::internal("rpc", "", text))
    }

    fn parse(text: &str) -> Option<Error> {
        let (code, rest) = text.strip_prefix("cofferdam:")?.split_once(' ')?;
        let (thing, message) = rest.split_once(": ")?;
        let (kind, id) = thing.split_once('/')?;
        Some(Error {
            code: Code::parse(code)?,
            kind: Cow::Owned(kind.to_owned()),
            id: percent_decode_str(id).decode_utf8().ok()?.into_owned(),
            message: message.to_owned(),
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.id.is_empty() {
            write!(f, "{}: {}", self.kind, self.message)
        } else {
            write!(f, "{} {}: {}", self.kind, self.id, self.message)
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for code in Code::ALL {
            let mut error = Error::internal("image", "docker.io/a b:1@x%é", "is wrong: use another");
            error.code = code;
            let hopped = format!("remote exception: remote exception: {}", error.to_reason());
            assert_eq!(Error::from_reason(&hopped), error);
        }
    }

    #[test]
    fn a_full_disk_is_known_across_the_wire_and_a_full_budget_is_none() {
        let full = Error::io("blob", "x", "writing it", &std::io::Error::from_raw_os_error(28));
        assert!(Error::from_reason(&full.to_reason()).is_full_disk(), "{full}");
        assert!(!Error::io("file", "x", "opening it", &std::io::Error::from_raw_os_error(24)).is_full_disk());
        assert!(!Error::resource_exhausted("connection", "", "has too many calls").is_full_disk());
    }

    #[test]
    fn a_foreign_text_is_internal() {
        let error = Error::from_reason("remote exception: Peer disconnected.");
        assert_eq!((error.code, error.message.as_str()), (Code::Internal, "Peer disconnected."));
        assert_eq!(Error::from_reason("cofferdam:nonsense a/b: c").code, Code::Internal);
    }
}
