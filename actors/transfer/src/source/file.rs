//! Reading a part of a file at its own pace, and unpacking the compression around an archive.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use cofferdam_archive::Limits;
use cofferdam_types::media::Compression;

use super::walk::Input;

/// A stretch of a file, read from its own position: several can be read side by side.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Section {
    pub fn new(file: Arc<File>, at: u64, size: u64) -> Section {
        Section { file, at, end: at.saturating_add(size) }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        match self.file.read_at(&mut buffer[..want], self.at)? {
            // Its end was taken from its size or from a header: a file that is shorter was cut off.
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.at += n as u64;
                Ok(n)
            }
        }
    }
}

impl Input for Section {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        match self.at.checked_add(count).filter(|at| *at <= self.end) {
            Some(at) => {
                self.at = at;
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The largest zstd window that is allocated: 128 MiB.
const WINDOW_LOG: u32 = 27;
const BUFFER: usize = 256 << 10;

/// A stream without the compression around it.
pub(crate) struct Outer<'a> {
    inner: Packed<'a>,
    given: u64,
    limits: Limits,
}

enum Packed<'a> {
    Plain(BufReader<Counted<'a>>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<Counted<'a>>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Counted<'a>>>>),
}

struct Counted<'a> {
    inner: Box<dyn Read + Send + 'a>,
    taken: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.taken += n as u64;
        Ok(n)
    }
}

impl<'a> Outer<'a> {
    /// Looks at the first bytes and unpacks accordingly. Gzip may have any number of members, zstd of frames.
    pub fn new(inner: impl Read + Send + 'a) -> io::Result<(Outer<'a>, Compression)> {
        let mut inner: Box<dyn Read + Send + 'a> = Box::new(inner);
        let mut head = Vec::new();
        (&mut inner).take(4).read_to_end(&mut head)?;
        let kind = Compression::sniff(&head);
        let whole = Counted { inner: Box::new(io::Cursor::new(head).chain(inner)), taken: 0 };
        let buffered = BufReader::with_capacity(BUFFER, whole);
        let inner = match kind {
            Compression::None => Packed::Plain(buffered),
            Compression::Gzip => Packed::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(buffered))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(buffered)?;
                decoder.window_log_max(WINDOW_LOG)?;
                Packed::Zstd(Box::new(decoder))
            }
        };
        Ok((Outer { inner, given: 0, limits: Limits::default() }, kind))
    }

    fn taken(&self) -> u64 {
        match &self.inner {
            Packed::Plain(r) => r.get_ref().taken,
            Packed::Gzip(r) => r.get_ref().get_ref().taken,
            Packed::Zstd(r) => r.get_ref().get_ref().taken,
        }
    }
}

impl Read for Outer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = match &mut self.inner {
            Packed::Plain(r) => r.read(buffer),
            Packed::Gzip(r) => r.read(buffer),
            Packed::Zstd(r) => r.read(buffer),
        }
        .map_err(|e| match e.kind() {
            // zstd's own word for damaged bytes; an error of the stream below it passes as it is.
            io::ErrorKind::Other if e.get_ref().is_none_or(|e| !e.is::<cofferdam_types::Error>()) => {
                io::Error::new(io::ErrorKind::InvalidData, e)
            }
            _ => e,
        })?;
        self.given += n as u64;
        // A15 of the negative tests.
        if self.given > self.limits.ratio_free && self.given / self.limits.max_ratio > self.taken() {
            let error = cofferdam_types::Error::resource_exhausted(
                "archive",
                "",
                format!("unpacks to more than {} times its size: refused as a bomb", self.limits.max_ratio),
            );
            return Err(io::Error::other(error));
        }
        Ok(n)
    }
}

impl Input for Outer<'_> {}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_section_is_its_own() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        let file = Arc::new(file);
        let mut text = String::new();
        let mut section = Section::new(file.clone(), 2, 5);
        section.skip(1).unwrap();
        section.clone().read_to_string(&mut text).unwrap();
        assert_eq!(text, "3456");
        assert!(section.skip(5).is_err());
        let mut beyond = Section::new(file, 8, 5);
        assert_eq!(beyond.read_to_string(&mut text).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn compressions_are_told_and_undone() {
        let plain = b"some bytes that repeat, some bytes that repeat".repeat(1000);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        let gz = gz.finish().unwrap();
        let zst = zstd::encode_all(&plain[..], 1).unwrap();
        // Two members, two frames: one stream.
        for (packed, kind, times) in [
            (plain.clone(), Compression::None, 1),
            ([gz.clone(), gz].concat(), Compression::Gzip, 2),
            ([zst.clone(), zst].concat(), Compression::Zstd, 2),
            (Vec::new(), Compression::None, 0),
        ] {
            let (mut outer, found) = Outer::new(&packed[..]).unwrap();
            let mut out = Vec::new();
            outer.read_to_end(&mut out).unwrap();
            assert_eq!((found, out == plain.repeat(times)), (kind, true));
        }
    }

    // A15 of the negative tests.
    #[test]
    fn a15_a_bomb_is_refused() {
        let zeros = zstd::encode_all(io::repeat(0).take(320 << 20), 1).unwrap();
        let (mut outer, _) = Outer::new(&zeros[..]).unwrap();
        let error = io::copy(&mut outer, &mut io::sink()).unwrap_err();
        let error = crate::from_io("archive", "", "", error);
        assert_eq!(error.code, cofferdam_types::Code::ResourceExhausted);
    }
}
