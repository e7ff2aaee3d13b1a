//! Points in time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Nanoseconds since the Unix epoch, UTC; 0 means "never".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The wall clock's present reading.
    pub fn now() -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Whole seconds since the epoch.
    pub fn seconds(self) -> u64 {
        self.0 / 1_000_000_000
    }

    /// RFC 3339 in UTC with nanoseconds, such as `2026-11-25T03:40:17.000000000Z`.
    pub fn to_rfc3339(self) -> String {
        let (secs, nanos) = (self.seconds(), self.0 % 1_000_000_000);
        let (days, rest) = (secs / 86_400, secs % 86_400);
        // Civil date from a day count: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".
        let z = days + 719_468;
        let era = z / 146_097;
        let doe = z % 146_097;
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = doy - (153 * mp + 2) / 5 + 1;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = yoe + era * 400 + u64::from(month <= 2);
        let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
        format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{nanos:09}Z")
    }

    /// Reads RFC 3339 in UTC, such as [`Timestamp::to_rfc3339`] writes; the fraction may have fewer digits or be missing.
    pub fn parse_rfc3339(text: &str) -> Option<Timestamp> {
        let text = text.strip_suffix('Z')?;
        let (date, clock) = text.split_once('T')?;
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
        let numbers = |text: &str, by: char| text.split(by).map(|n| n.parse().ok()).collect::<Option<Vec<u64>>>();
        let (date, clock) = (numbers(date, '-')?, numbers(clock, ':')?);
        let ([year, month, day], [hour, minute, second]) = (date.as_slice(), clock.as_slice()) else { return None };
        if !(1970..10_000).contains(year) || !(1..=12).contains(month) || *day > 31 || fraction.len() > 9 {
            return None;
        }
        if *hour > 23 || *minute > 59 || *second > 60 {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (4_102_444_800, "2100-01-01T00:00:00"),
        ] {
            assert_eq!(Timestamp(secs * 1_000_000_000 + 5).to_rfc3339(), format!("{text}.000000005Z"));
        }
    }

    #[test]
    fn times_come_back() {
        let parse = Timestamp::parse_rfc3339;
        for seconds in [0, 1, 951_782_400, 1_709_251_199, 1_709_164_800, 4_102_444_800, 9_999_999_999] {
            let time = Timestamp(seconds * 1_000_000_000 + 17);
            assert_eq!(parse(&time.to_rfc3339()), Some(time));
        }
        assert_eq!(parse("2026-11-25T03:40:17Z"), parse("2026-11-25T03:40:17.000000000Z"));
        let bad = ["", "2026-13-01T00:00:00Z", "2026-11-25", "2026-11-25T03:40:17+01:00", "2026-11-25T24:00:00Z"];
        for bad in bad.into_iter().chain(["99999999999999-01-01T00:00:00Z"]) {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
