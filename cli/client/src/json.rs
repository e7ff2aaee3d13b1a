//! How the library's structs look as JSON, where the plain form would not read well.

use cofferdam_types::{Any, Timestamp};
use serde::{Serialize, Serializer};

/// A time as RFC 3339, `null` where it is "never".
pub fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    (time.0 != 0).then(|| time.to_rfc3339()).serialize(serializer)
}

/// Bytes that hold JSON, as that JSON; other bytes as a text.
pub fn bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    match serde_json::from_slice::<serde_json::Value>(bytes) {
        Ok(value) => value.serialize(serializer),
        Err(_) => String::from_utf8_lossy(bytes).serialize(serializer),
    }
}

/// An opaque payload, likewise.
pub fn any<S: Serializer>(any: &Any, serializer: S) -> Result<S::Ok, S::Error> {
    bytes(&any.value, serializer)
}

/// Whether there is no payload.
pub fn is_empty(any: &Any) -> bool {
    any.value.is_empty()
}

/// Names and their values, as one object.
pub fn map<S: Serializer>(pairs: &[(String, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

/// Reads what [`Timestamp::to_rfc3339`] wrote.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    let text = text.strip_suffix('Z')?;
    let (date, clock) = text.split_once('T')?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let numbers = |text: &str, by: char| text.split(by).map(|n| n.parse().ok()).collect::<Option<Vec<u64>>>();
    let (date, clock) = (numbers(date, '-')?, numbers(clock, ':')?);
    let ([year, month, day], [hour, minute, second]) = (date.as_slice(), clock.as_slice()) else { return None };
    if *year < 1970 || !(1..=12).contains(month) || fraction.len() > 9 {
        return None;
    }
    // Day count of a civil date: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let y = if *month <= 2 { year - 1 } else { *year };
    let (era, of_era) = (y / 400, y % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
    let days = (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)?;
    let nanos = format!("{fraction:0<9}").parse::<u64>().ok()?;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some(Timestamp(seconds.checked_mul(1_000_000_000)?.checked_add(nanos)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back() {
        for seconds in [0, 1, 951_782_400, 1_709_251_199, 1_709_164_800, 4_102_444_800, 9_999_999_999] {
            let time = Timestamp(seconds * 1_000_000_000 + 17);
            assert_eq!(parse_time(&time.to_rfc3339()), Some(time));
        }
        assert_eq!(parse_time("2026-11-25T03:40:17Z"), parse_time("2026-11-25T03:40:17.000000000Z"));
        for bad in ["", "2026-13-01T00:00:00Z", "2026-11-25", "2026-11-25T03:40:17+01:00"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }
}
