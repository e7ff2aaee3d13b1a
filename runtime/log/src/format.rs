//! The formats of the files: how a piece of output becomes a record, and a record a piece again.
//!
//! A record that says that output was lost has the same frame in each format. What a container writes can forge neither
//! (L5): it is framed by length, escaped, or holds no line feed.

use cofferdam_types::Timestamp;
use serde::Deserialize;

use crate::Stream;

/// What a record holds at most.
pub const PIECE: usize = 16 << 10;
/// No record of ours is longer; what claims to be is damage.
pub(crate) const LARGEST: usize = 1 << 20;
/// A local record's header: time u64, length u32, kind u8, three bytes of zero; little endian.
const HEADER: usize = 16;
/// The kind of a local record that says how much was lost; below are the streams.
const LOST: u8 = 2;

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Framed by their length.
    Local,
    /// A JSON object on each line, as docker's json-file has it.
    Json,
    /// `time stream tags text` on each line, as the Kubernetes container runtime interface has it.
    Cri,
}

/// What the bytes at some place of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// A record of so many bytes.
    Record { time: Timestamp, stream: Stream, body: Vec<u8>, length: usize },
    /// A record that says that so many bytes of output are missing.
    Lost { time: Timestamp, bytes: u64, length: usize },
    /// The beginning of a record.
    Partial,
    /// No record of so many bytes; where that can't be told, nothing behind it can be read.
    Damaged(Option<usize>),
}

impl Format {
    /// Whether a record holds one line, or a part of one.
    pub(crate) fn has_lines(self) -> bool {
        self != Format::Local
    }

    /// Appends a record. `attributes` is a part of a JSON object, with the comma behind it.
    pub(crate) fn encode(self, into: &mut Vec<u8>, time: Timestamp, stream: Stream, body: &[u8], attributes: &str) {
        match self {
            Format::Local => local(into, time, stream as u8, body),
            Format::Json => {
                into.extend(b"{\"log\":");
                quote(into, &String::from_utf8_lossy(body));
                into.extend(format!(",\"stream\":\"{}\",{attributes}\"time\":", stream.as_str()).bytes());
                into.extend(format!("\"{}\"}}\n", time.to_rfc3339()).bytes());
            }
            Format::Cri => {
                let (text, tag) = body.strip_suffix(b"\n").map_or((body, 'P'), |text| (text, 'F'));
                into.extend(format!("{} {} {tag} ", time.to_rfc3339(), stream.as_str()).bytes());
                into.extend(text);
                into.push(b'\n');
            }
        }
    }

    /// Appends the record that so many bytes of output are missing here.
    pub(crate) fn encode_lost(self, into: &mut Vec<u8>, time: Timestamp, bytes: u64) {
        let stamp = time.to_rfc3339();
        match self {
            Format::Local => local(into, time, LOST, &bytes.to_le_bytes()),
            Format::Json => into.extend(
                format!("{{\"log\":\"\",\"stream\":\"stderr\",\"lost\":{bytes},\"time\":\"{stamp}\"}}\n").bytes(),
            ),
            Format::Cri => into.extend(format!("{stamp} stderr F:lost={bytes} \n").bytes()),
        }
    }

    /// Reads the record at the beginning of `bytes`.
    pub(crate) fn decode(self, bytes: &[u8]) -> Decoded {
        if self == Format::Local {
            return framed(bytes);
        }
        let Some(end) = bytes.iter().take(LARGEST).position(|byte| *byte == b'\n') else {
            return if bytes.len() < LARGEST { Decoded::Partial } else { Decoded::Damaged(None) };
        };
        let line = if self == Format::Json { json(&bytes[..end]) } else { cri(&bytes[..end]) };
        match line {
            Some(Line { time, lost: Some(bytes), .. }) => Decoded::Lost { time, bytes, length: end + 1 },
            Some(Line { time, stream, body, .. }) => Decoded::Record { time, stream, body, length: end + 1 },
            None => Decoded::Damaged(Some(end + 1)),
        }
    }
}

fn local(into: &mut Vec<u8>, time: Timestamp, kind: u8, body: &[u8]) {
    into.extend(time.0.to_le_bytes());
    into.extend((body.len() as u32).to_le_bytes());
    into.extend([kind, 0, 0, 0]);
    into.extend(body);
}

fn framed(bytes: &[u8]) -> Decoded {
    let word =
        |range: std::ops::Range<usize>| bytes[range].iter().rev().fold(0u64, |value, byte| value << 8 | *byte as u64);
    if bytes.len() < HEADER {
        return Decoded::Partial;
    }
    let (time, size, kind) = (Timestamp(word(0..8)), word(8..12) as usize, bytes[12]);
    // Zeros are what some file systems show of what was never written.
    if time == Timestamp(0) || size == 0 || size > LARGEST - HEADER || kind > LOST {
        return Decoded::Damaged(None);
    }
    let length = HEADER + size;
    let Some(body) = bytes.get(HEADER..length) else { return Decoded::Partial };
    match (kind, <[u8; 8]>::try_from(body)) {
        (LOST, Ok(count)) => Decoded::Lost { time, bytes: u64::from_le_bytes(count), length },
        (LOST, Err(_)) => Decoded::Damaged(Some(length)),
        _ => {
            let stream = if kind == 0 { Stream::Stdout } else { Stream::Stderr };
            Decoded::Record { time, stream, body: body.to_vec(), length }
        }
    }
}

struct Line {
    time: Timestamp,
    stream: Stream,
    body: Vec<u8>,
    lost: Option<u64>,
}

fn json(line: &[u8]) -> Option<Line> {
    #[derive(Deserialize)]
    struct Raw {
        log: String,
        stream: String,
        time: String,
        lost: Option<u64>,
    }
    let raw: Raw = serde_json::from_slice(line).ok()?;
    Some(Line {
        time: Timestamp::parse_rfc3339(&raw.time)?,
        stream: Stream::parse(&raw.stream)?,
        body: raw.log.into_bytes(),
        lost: raw.lost,
    })
}

fn cri(line: &[u8]) -> Option<Line> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let mut text = || std::str::from_utf8(parts.next()?).ok();
    let (time, stream, tags) = (Timestamp::parse_rfc3339(text()?)?, Stream::parse(text()?)?, text()?);
    let mut body = parts.next()?.to_vec();
    let (tag, more) = tags.split_once(':').unwrap_or((tags, ""));
    match tag {
        "F" => body.push(b'\n'),
        "P" => {}
        _ => return None,
    }
    Some(Line { time, stream, body, lost: more.strip_prefix("lost=").and_then(|number| number.parse().ok()) })
}

/// A JSON string.
pub(crate) fn quote(into: &mut Vec<u8>, text: &str) {
    // Into memory, and a text is always one in JSON too: it can't fail.
    let _ = serde_json::to_writer(into, text);
}

/// How many bytes at the end begin a character of UTF-8 that isn't complete.
pub(crate) fn incomplete(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let length = match bytes[bytes.len() - back] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if length > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Timestamp = Timestamp(1_764_000_000_123_456_789);
    const ALL: [Format; 3] = [Format::Local, Format::Json, Format::Cri];

    fn encoded(format: Format, stream: Stream, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        format.encode(&mut bytes, TIME, stream, body, "");
        bytes
    }

    // The forms of docker's json-file and of the CRI, to the byte.
    #[test]
    fn lines_are_those_of_docker_and_of_the_cri() {
        let mut json = Vec::new();
        Format::Json.encode(&mut json, TIME, Stream::Stdout, b"say \"hi\"\x1b\n", "\"attrs\":{\"a\":\"b\"},");
        assert_eq!(
            String::from_utf8(json).unwrap(),
            "{\"log\":\"say \\\"hi\\\"\\u001b\\n\",\"stream\":\"stdout\",\"attrs\":{\"a\":\"b\"},\
             \"time\":\"2025-11-24T16:00:00.123456789Z\"}\n"
        );
        assert_eq!(
            encoded(Format::Cri, Stream::Stderr, b"a line\n"),
            b"2025-11-24T16:00:00.123456789Z stderr F a line\n"
        );
        assert_eq!(encoded(Format::Cri, Stream::Stdout, b"half "), b"2025-11-24T16:00:00.123456789Z stdout P half \n");
    }

    #[test]
    fn what_is_written_is_read() {
        for format in ALL {
            for body in ["a line\n", "half of one", "\n", " ", "täg\t\"\\\u{2028}\n", "x F y P"] {
                for stream in [Stream::Stdout, Stream::Stderr] {
                    let bytes = encoded(format, stream, body.as_bytes());
                    let whole = Decoded::Record { time: TIME, stream, body: body.into(), length: bytes.len() };
                    assert_eq!(format.decode(&bytes), whole, "{format:?} {body:?}");
                    for end in 0..bytes.len() {
                        assert_eq!(format.decode(&bytes[..end]), Decoded::Partial, "{format:?} {body:?} {end}");
                    }
                }
            }
            let mut lost = Vec::new();
            format.encode_lost(&mut lost, TIME, 77);
            let length = lost.len();
            assert_eq!(format.decode(&lost), Decoded::Lost { time: TIME, bytes: 77, length }, "{format:?}");
        }
        // Bytes that are no text come back as they were, but for JSON, which has none.
        for format in [Format::Local, Format::Cri] {
            let bytes = encoded(format, Stream::Stdout, b"\xff\0\xc3\r\n");
            assert!(matches!(format.decode(&bytes), Decoded::Record { body, .. } if body == b"\xff\0\xc3\r\n"));
        }
    }

    // L5 of the negative tests: what is logged can't forge a record.
    #[test]
    fn l5_output_that_looks_like_a_record_is_output() {
        for format in ALL {
            let mut forged = encoded(format, Stream::Stderr, b"forged\n");
            forged.retain(|byte| !format.has_lines() || *byte != b'\n');
            forged.push(b'\n');
            let bytes = encoded(format, Stream::Stdout, &forged);
            let Decoded::Record { stream, body, length, .. } = format.decode(&bytes) else { panic!("{format:?}") };
            assert_eq!((stream, length), (Stream::Stdout, bytes.len()), "{format:?}");
            if format != Format::Json || std::str::from_utf8(&forged).is_ok() {
                assert_eq!(body, forged, "{format:?}");
            }
        }
    }

    #[test]
    fn damage_is_told_from_a_beginning() {
        assert_eq!(Format::Local.decode(&[0; 64]), Decoded::Damaged(None));
        assert_eq!(Format::Local.decode(&[0xff; 64]), Decoded::Damaged(None));
        for bad in ["{}\n", "\0\0\0\n", "{\"log\":\"x\"\n", "\n"] {
            assert_eq!(Format::Json.decode(bad.as_bytes()), Decoded::Damaged(Some(bad.len())), "{bad:?}");
        }
        let stamp = TIME.to_rfc3339();
        for bad in [format!("{stamp} stdout X a\n"), format!("{stamp} elsewhere F a\n"), format!("{stamp}\n")] {
            assert_eq!(Format::Cri.decode(bad.as_bytes()), Decoded::Damaged(Some(bad.len())), "{bad:?}");
        }
        assert_eq!(Format::Json.decode(&vec![b'x'; LARGEST + 1]), Decoded::Damaged(None));
    }

    #[test]
    fn characters_that_are_not_complete_are_found() {
        for (bytes, left) in [
            (&b""[..], 0),
            (b"abc", 0),
            ("ä".as_bytes(), 0),
            (b"a\xc3", 1),
            (b"a\xe2\x82", 2),
            (b"\xf0\x9f\x92", 3),
            ("💡".as_bytes(), 0),
            (b"\x80\x80\x80\x80", 0),
            (b"\xff", 0),
        ] {
            assert_eq!(incomplete(bytes), left, "{bytes:?}");
        }
    }
}
