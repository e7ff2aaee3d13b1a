//! Errors across the wire: a Cap'n Proto exception's reason is the domain error's text form.

use capnp::ErrorKind;
use cofferdam_types::{Code, Error};

/// What a server method returns for a domain error.
pub fn to_rpc(error: Error) -> capnp::Error {
    let kind = match error.code {
        Code::Unimplemented => ErrorKind::Unimplemented,
        Code::Unavailable | Code::ResourceExhausted => ErrorKind::Overloaded,
        _ => ErrorKind::Failed,
    };
    capnp::Error { kind, extra: error.to_reason() }
}

/// What a client makes of an exception. One that isn't in our form came from a library: a lost connection is
/// `unavailable`, a method that the other side doesn't know `unimplemented`, the rest `internal`.
pub fn from_rpc(error: capnp::Error) -> Error {
    let parsed = Error::from_reason(&error.extra);
    if parsed.code != Code::Internal || parsed.kind != "rpc" {
        return parsed;
    }
    match error.kind {
        // The other side may die in the middle of a message.
        ErrorKind::Disconnected | ErrorKind::PrematureEndOfFile => {
            Error::unavailable("connection", "", format!("is lost: {}", parsed.message))
        }
        ErrorKind::Unimplemented => Error::unimplemented("method", "", parsed.message),
        // capnp's own words for a message over the other side's limit: it ends the connection.
        _ if parsed.message.starts_with("Message has ") && parsed.message.contains("too large") => {
            let why = format!(
                "is larger than the other side takes, and ended the connection: a daemon takes {} MiB, arguments, variables \
                 and labels together",
                crate::connect::MESSAGE >> 20
            );
            Error::resource_exhausted("message", "", why)
        }
        ErrorKind::Overloaded => Error::unavailable("daemon", "", parsed.message),
        _ => parsed,
    }
}

/// For `?` in server methods: a malformed message is the client's fault.
pub fn malformed(error: capnp::Error) -> Error {
    Error::invalid("message", "", format!("is malformed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_lost_between_two_messages_or_within_one() {
        let torn = capnp::Error::from(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        let reset = capnp::Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        for error in [torn, reset, capnp::Error::disconnected("Peer disconnected.".into())] {
            let error = from_rpc(error);
            assert_eq!((error.code, &*error.kind), (Code::Unavailable, "connection"), "{error}");
        }
        assert_eq!(from_rpc(capnp::Error::failed("else".into())).code, Code::Internal);
    }
}
