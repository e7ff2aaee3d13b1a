//! Failures of the transport in our own words: the library's could hold a URL with a signature in its query.

use std::{fmt, io};

use cofferdam_types::Error;
use ureq::Timeout;

use super::guard::{self, Origin};

type Make = fn(&'static str, String, String) -> Error;

/// What failed and why. `at`: whom it was about to be spoken to; `None` in the middle of a body. `proxy`: by which proxy, as it may
/// be shown.
pub(super) fn transport(error: &ureq::Error, at: Option<&Origin>, proxy: Option<&str>, https: bool) -> (Make, String) {
    use io::ErrorKind as K;
    use ureq::Error as E;
    let peer = at.map_or_else(|| "it".to_owned(), Origin::to_string);
    let unavailable = |message: String| (Error::unavailable as Make, message);
    let unreached = |why: &str| {
        unavailable(match proxy {
            None => format!(
                "cannot be reached at {peer}: {why}: check its name and port, that it runs there, and the network"
            ),
            Some(proxy) => {
                format!("cannot be reached at {peer} by the proxy {proxy}: {why}: check the proxy, and NO_PROXY")
            }
        })
    };
    match error {
        E::HostNotFound => unreached("the host is not known to the name service"),
        E::Timeout(Timeout::Resolve) => unreached("the name service didn't answer in time"),
        E::Timeout(Timeout::Connect) => unreached("no answer in time"),
        E::Timeout(_) => unavailable("went silent or too slow: try again later".into()),
        E::ConnectProxyFailed(_) => unreached("it makes no connection there"),
        E::Io(e) if e.to_string() == guard::REFUSED => (Error::denied, guard::REFUSED.into()),
        _ if is_distrust(error, https) => match error {
            E::Io(e) => untrusted(e),
            other => untrusted(other),
        },
        E::Io(e) if lookup(e).is_some() => unreached(&lookup(e).unwrap_or_default()),
        E::ConnectionFailed => unreached("no connection came about"),
        E::Io(e) => match e.kind() {
            K::ConnectionRefused
            | K::HostUnreachable
            | K::NetworkUnreachable
            | K::NetworkDown
            | K::AddrNotAvailable => unreached(&cause(e)),
            _ => unavailable(format!("broke the connection to {peer} off: {}: try again later", cause(e))),
        },
        E::LargeResponseHeader(..) => unavailable("sends a header without end".into()),
        _ => unavailable("does not speak proper HTTP (https spoken to a plain http port, or the reverse?)".into()),
    }
}

/// Whether it is what a host showed of itself that is wrong.
pub(super) fn is_distrust(error: &ureq::Error, https: bool) -> bool {
    match error {
        // What rustls makes of a certificate or of bytes that are no TLS.
        ureq::Error::Io(e) => e.kind() == io::ErrorKind::InvalidData && https,
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) => true,
        _ => false,
    }
}

fn untrusted(why: &dyn fmt::Display) -> (Make, String) {
    // What the other side says of us, by either of the alerts that servers have for it.
    let said = why.to_string();
    if ["CertificateRequired", "BadCertificate"]
        .iter()
        .any(|alert| said.ends_with(&format!("received fatal alert: {alert}")))
    {
        return (Error::denied, "wants to be shown a certificate that it takes: give one for it, with its key".into());
    }
    let message = format!("cannot be trusted over TLS ({why}): give its CA, or plain http if that is what it speaks");
    (Error::unavailable, message)
}

/// What the name service said, if it is that which failed: the library gives it as any other failure.
fn lookup(error: &io::Error) -> Option<String> {
    let text = error.to_string();
    let why = text.strip_prefix("failed to lookup address information: ")?;
    Some(format!("the name service doesn't know the host ({})", why.to_lowercase()))
}

/// Why an exchange failed. A text that a library made is left out: it could hold a secret; the system's can't.
pub(super) fn cause(error: &io::Error) -> String {
    match (error.raw_os_error(), error.get_ref()) {
        (Some(number), _) => {
            let text = io::Error::from_raw_os_error(number).to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
        (None, Some(_)) => error.kind().to_string(),
        (None, None) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_the_systems_words_and_no_secrets() {
        assert_eq!(cause(&io::Error::from_raw_os_error(libc::ECONNREFUSED)), "connection refused");
        // One for which Rust has no kind.
        assert_eq!(cause(&io::Error::from_raw_os_error(libc::EPROTO)), "protocol error");
        let unknown = std::net::ToSocketAddrs::to_socket_addrs("no-such-host.invalid:1").unwrap_err();
        assert!(lookup(&unknown).is_some_and(|why| why.contains("the name service")), "{unknown:?}");
        assert!(lookup(&io::Error::from_raw_os_error(libc::ECONNREFUSED)).is_none());
        let told = cause(&io::Error::other("https://h.io/blob?signature=secret"));
        assert!(!told.contains("secret"), "{told}");
    }
}
