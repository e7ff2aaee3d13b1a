//! One 512-byte tar header, read strictly.
//!
//! A file whose size two readers see differently hides entries from one of them. So wherever Go's reader (which made
//! most images) and libarchive disagree about a header, it is refused.

use cofferdam_types::{Error, Result};
use nix::sys::time::TimeSpec;

pub(crate) const BLOCK: usize = 512;

/// A malformed archive.
pub(crate) fn malformed(id: &[u8], why: impl Into<String>) -> Error {
    Error::data_loss("layer", String::from_utf8_lossy(id), why)
}

/// A well-formed archive that asks for something it may not have.
pub(crate) fn refused(id: &[u8], why: impl Into<String>) -> Error {
    Error::invalid("layer", String::from_utf8_lossy(id), why)
}

/// An archive that costs more than it may.
pub(crate) fn exhausted(id: &[u8], why: impl Into<String>) -> Error {
    let id = String::from_utf8_lossy(id);
    Error::resource_exhausted("layer", id.chars().take(256).collect::<String>(), why)
}

/// One header, its checksum verified.
pub(crate) struct Header<'a>(&'a [u8; BLOCK]);

#[derive(Clone, Copy, PartialEq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Header<'a> {
    pub(crate) fn parse(block: &'a [u8; BLOCK]) -> Result<Header<'a>> {
        let header = Header(block);
        let at = |i: usize| if (148..156).contains(&i) { b' ' } else { block[i] };
        let unsigned: i64 = (0..BLOCK).map(|i| i64::from(at(i))).sum();
        // Some old tars summed signed characters.
        let signed: i64 = (0..BLOCK).map(|i| i64::from(at(i).cast_signed())).sum();
        match number(&block[148..156]) {
            Some(sum) if sum == unsigned || sum == signed => Ok(header),
            _ => Err(malformed(b"", "a header has a wrong checksum: this is not a tar, or it is damaged")),
        }
    }

    fn format(&self) -> Format {
        match &self.0[257..265] {
            [b'u', b's', b't', b'a', b'r', 0, ..] if &self.0[508..512] == b"tar\0" => Format::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
            b"ustar  \0" => Format::Gnu,
            _ => Format::V7,
        }
    }

    pub(crate) fn flag(&self) -> u8 {
        self.0[156]
    }

    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.format() {
            Format::V7 => &[][..],
            Format::Ustar => text(&self.0[345..500]),
            Format::Star => text(&self.0[345..476]),
            // GNU keeps times here. Go's writer before 1.8 put a prefix there all the same, and images have such.
            Format::Gnu
                if self.0[345] != 0 && (number(&self.0[345..357]).is_none() || number(&self.0[357..369]).is_none()) =>
            {
                text(&self.0[345..500])
            }
            Format::Gnu => &[][..],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(crate) fn size(&self) -> Result<u64> {
        self.number("size", 124..136)
            .and_then(|size| u64::try_from(size).map_err(|_| malformed(&self.name(), "an entry has a negative size")))
    }

    pub(crate) fn mode(&self) -> Result<u32> {
        let mode = self.number("mode", 100..108)?;
        u32::try_from(mode & 0o7777).map_err(|_| malformed(&self.name(), "an entry has a negative mode"))
    }

    pub(crate) fn uid(&self) -> Result<i64> {
        self.number("uid", 108..116)
    }

    pub(crate) fn gid(&self) -> Result<i64> {
        self.number("gid", 116..124)
    }

    pub(crate) fn mtime(&self) -> Result<TimeSpec> {
        Ok(time(self.number("mtime", 136..148)?, 0))
    }

    pub(crate) fn device(&self) -> Result<(u64, u64)> {
        if self.format() == Format::V7 {
            return Ok((0, 0));
        }
        let (major, minor) = (self.number("major", 329..337)?, self.number("minor", 337..345)?);
        match (u64::try_from(major), u64::try_from(minor)) {
            (Ok(major), Ok(minor)) if major <= 0xfff && minor <= 0xf_ffff => Ok((major, minor)),
            _ => Err(malformed(&self.name(), "a device number is out of range")),
        }
    }

    fn number(&self, field: &str, range: std::ops::Range<usize>) -> Result<i64> {
        number(&self.0[range]).ok_or_else(|| malformed(&self.name(), format!("a header has a malformed {field}")))
    }
}

/// The owner that an archive may name: -1 means "leave as it is" to chown.
pub(crate) fn owner(id: i64, path: &[u8]) -> Result<u32> {
    match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(malformed(path, format!("owner {id} is out of range"))),
    }
}

/// A time as it will be set: what is before 1970 or after 2262 becomes the epoch.
pub(crate) fn time(seconds: i64, nanoseconds: i64) -> TimeSpec {
    if (0..=9_223_372_036).contains(&seconds) { TimeSpec::new(seconds, nanoseconds) } else { TimeSpec::new(0, 0) }
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// Octal digits between blanks, or a base-256 number in two's complement. `None` where readers differ.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let first = if field[0] & 0x40 != 0 { i128::from(field[0].cast_signed()) } else { i128::from(field[0] & 0x7f) };
        let value = field[1..].iter().fold(first, |value, byte| (value << 8) | i128::from(*byte));
        return i64::try_from(value).ok();
    }
    let digits = text(field).trim_ascii();
    if digits.is_empty() {
        return field.iter().all(|b| matches!(b, 0 | b' ')).then_some(0);
    }
    digits.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_readers_see_alike() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"644\0junk"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        for bad in [&b"\x00\x00\x00644\0\0"[..], b"64x\0\0\0\0\0", b"-1\0\0\0\0\0\0", b"6 4\0\0\0\0\0", b"0x10\0\0\0\0"]
        {
            assert_eq!(number(bad), None, "{bad:?}");
        }
        let huge = [0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(number(&huge), None);
    }
}
