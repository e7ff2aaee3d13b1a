//! The records of a PAX extended header.

use cofferdam_types::Result;
use nix::sys::time::TimeSpec;

use crate::{
    Limits,
    header::{exhausted, malformed, time},
};

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What an extended header says about the entry that follows it.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<TimeSpec>,
    pub(crate) atime: Option<TimeSpec>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: bool,
}

impl Pax {
    /// Reads the body of an `x` header. Readers differ on a repeated record that matters, so there may be none.
    pub(crate) fn parse(body: &[u8], limits: &Limits) -> Result<Pax> {
        let mut pax = Pax::default();
        records(body, |key, value| {
            match key {
                b"path" => once(&mut pax.path, key, string(key, value)?),
                b"linkpath" => once(&mut pax.link, key, string(key, value)?),
                b"size" => once(&mut pax.size, key, decimal(key, value)?.unsigned_abs()),
                b"uid" => once(&mut pax.uid, key, decimal(key, value)?),
                b"gid" => once(&mut pax.gid, key, decimal(key, value)?),
                b"mtime" => once(&mut pax.mtime, key, instant(key, value)?),
                b"atime" => once(&mut pax.atime, key, instant(key, value)?),
                _ if key.starts_with(b"GNU.sparse.") => {
                    pax.sparse = true;
                    Ok(())
                }
                _ => match key.strip_prefix(XATTR) {
                    Some(name) if value.len() > limits.max_xattr => {
                        Err(exhausted(name, format!("an extended attribute is larger than {} bytes", limits.max_xattr)))
                    }
                    Some(name) if name.is_empty() || pax.xattrs.iter().any(|(other, _)| other == name) => {
                        Err(malformed(key, "an extended attribute has no name, or stands twice"))
                    }
                    // A body is at most 1 MiB, but the search above is quadratic.
                    Some(name) if pax.xattrs.len() >= 1024 => {
                        Err(exhausted(name, "an entry has over 1024 extended attributes"))
                    }
                    Some(name) => {
                        pax.xattrs.push((name.to_vec(), value.to_vec()));
                        Ok(())
                    }
                    None => Ok(()),
                },
            }
        })?;
        Ok(pax)
    }

    /// Reads the body of a `g` header. Some readers apply one to all that follows, others ignore it: only records that
    /// nobody acts on may stand in it (`git archive` leaves a comment).
    pub(crate) fn check_global(body: &[u8]) -> Result<()> {
        records(body, |key, _| match key {
            b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"uname" | b"gname" | b"mtime" | b"atime" => {
                Err(malformed(key, "a global header changes the entries that follow it"))
            }
            _ if key.starts_with(b"GNU.sparse.") || key.starts_with(b"SCHILY.") => {
                Err(malformed(key, "a global header changes the entries that follow it"))
            }
            _ => Ok(()),
        })
    }
}

/// Walks `<length> <key>=<value>\n` records, which must fill the body exactly.
fn records<'a>(mut body: &'a [u8], mut each: impl FnMut(&'a [u8], &'a [u8]) -> Result<()>) -> Result<()> {
    let bad = || malformed(b"", "a PAX header has a malformed record");
    while !body.is_empty() {
        let space = body.iter().take(10).position(|b| *b == b' ').ok_or_else(bad)?;
        let length = &body[..space];
        if length.first().is_none_or(|b| *b == b'0') || !length.iter().all(u8::is_ascii_digit) {
            return Err(bad());
        }
        let length = length.iter().fold(0usize, |n, b| n * 10 + usize::from(b - b'0'));
        if length < space + 4 || length > body.len() || body[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &body[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err(bad());
        }
        each(key, value)?;
        body = &body[length..];
    }
    Ok(())
}

fn once<T>(slot: &mut Option<T>, key: &[u8], value: T) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(malformed(key, "a PAX record stands twice")),
    }
}

/// Readers differ on what an empty one means.
fn string(key: &[u8], value: &[u8]) -> Result<Vec<u8>> {
    if value.is_empty() || value.contains(&0) {
        return Err(malformed(key, "a PAX record is empty or holds a NUL"));
    }
    Ok(value.to_vec())
}

fn decimal(key: &[u8], value: &[u8]) -> Result<i64> {
    let bad = || malformed(key, "a PAX record is not a number in range");
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)
}

fn instant(key: &[u8], value: &[u8]) -> Result<TimeSpec> {
    let (seconds, fraction) = match value.iter().position(|b| *b == b'.') {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(malformed(key, "a PAX record is not a time"));
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0i64, |n, b| n * 10 + i64::from(b - b'0'));
    match seconds.strip_prefix(b"-") {
        // Before 1970: the epoch, as all times that the platform can't hold.
        Some(seconds) => decimal(key, seconds).map(|_| time(0, 0)),
        None => Ok(time(decimal(key, seconds)?, nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pax(body: &[u8]) -> Result<Pax> {
        Pax::parse(body, &Limits::default())
    }

    #[test]
    fn a_record_is_read() {
        let pax = pax(b"9 path=a\n25 mtime=1350244992.0239\n25 SCHILY.xattr.user.a==\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a"[..]));
        assert_eq!(pax.mtime, Some(TimeSpec::new(1_350_244_992, 23_900_000)));
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"=".to_vec())]);
    }

    #[test]
    fn a11_malformed_records_are_refused() {
        for body in [
            &b"11 path=a\n"[..],
            b"8 path=a\n",
            b"09 path=a\n",
            b"+9 path=a\n",
            b" 9 path=a\n",
            b"9 path=a\n\0",
            b"9 pathsa\n",
            b"6 =ab\n",
            b"9 path=a\n9 path=b\n",
            b"9 size=1\n9 size=1\n",
            b"10 size=-1\n",
            b"8 size=\n",
            b"28 size=99999999999999999999\n",
            b"9 path=\0\n",
            b"99999999999999999999 path=a\n",
        ] {
            assert!(pax(body).is_err(), "{:?}", String::from_utf8_lossy(body));
        }
    }
}
