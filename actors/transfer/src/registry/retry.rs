//! Hosts that are busy, and for how long they ask to be left alone: `Retry-After`, as seconds or as a date (RFC 9110, 10.2.3).

use std::time::{Duration, SystemTime};

use ureq::http::HeaderMap;

/// Whether a status says that the same may be answered otherwise in a while.
pub(super) fn passes(status: u16) -> bool {
    matches!(status, 429 | 500 | 502..=504)
}

/// What the header says; `None` where there is none that can be read.
pub(super) fn after(headers: &HeaderMap) -> Option<Duration> {
    said(headers.get("retry-after")?.to_str().ok()?, SystemTime::now())
}

/// More than anybody waits, in seconds.
const MANY: u64 = u32::MAX as u64;

fn said(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // So long that it is no number is long all the same.
        return Some(Duration::from_secs(text.parse().unwrap_or(MANY)));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    // A date that has passed: at once.
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let secs = |n| Some(Duration::from_secs(n));
        for (text, want) in [
            ("0", secs(0)),
            (" 120 ", secs(120)),
            ("99999999999999999999999", secs(u64::from(u32::MAX))),
            ("Sun, 06 Nov 1994 08:49:47 GMT", secs(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", secs(10)),
            ("Sun Nov  6 08:49:47 1994", secs(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", secs(0)),
            ("", None),
            ("soon", None),
            ("-1", None),
            ("1.5", None),
        ] {
            assert_eq!(said(text, now), want, "{text:?}");
        }
    }
}
