//! The entries of an archive, with what extended headers say about each folded in.

use cofferdam_types::{Error, Result};
use nix::sys::{stat::Mode, time::TimeSpec};

use crate::{
    Limits,
    header::{BLOCK, Header, exhausted, malformed, owner, refused, time},
    pax::Pax,
    stream::Chunks,
};

/// The largest body of an extended header, as in Go.
const EXTENDED: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    File,
    Link,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Type,
    pub(crate) mode: Mode,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) atime: TimeSpec,
    pub(crate) mtime: TimeSpec,
    pub(crate) device: (u64, u64),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) struct Reader<'a> {
    chunks: &'a mut Chunks,
    limits: &'a Limits,
    /// Bytes of the current entry that were not taken yet, and what pads them to a block.
    left: u64,
    padding: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(chunks: &'a mut Chunks, limits: &'a Limits) -> Reader<'a> {
        Reader { chunks, limits, left: 0, padding: 0 }
    }

    /// The next entry; what is left of the one before is skipped. `None` once the whole stream is read.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut pax: Option<Pax> = None;
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        loop {
            self.skip()?;
            let block = match self.chunks.block()? {
                Some(block) if block.iter().any(|b| *b != 0) => block,
                end => {
                    if pax.is_some() || long_name.is_some() || long_link.is_some() {
                        return Err(malformed(b"", "the archive ends behind an extended header"));
                    }
                    return if end.is_some() { self.finish() } else { Ok(None) };
                }
            };
            let header = Header::parse(&block)?;
            let size = header.size()?;
            match header.flag() {
                b'x' => {
                    let body = self.body(size)?;
                    if pax.replace(Pax::parse(&body, self.limits)?).is_some() {
                        return Err(malformed(&header.name(), "an entry has two PAX headers"));
                    }
                }
                b'g' => Pax::check_global(&self.body(size)?)?,
                b'L' => long(&mut long_name, self.body(size)?)?,
                b'K' => long(&mut long_link, self.body(size)?)?,
                _ => return self.entry(&header, size, pax.unwrap_or_default(), long_name, long_link).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        size: u64,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        // Which of the two wins, and whether the size is that of the long name, depends on the reader.
        if long_name.is_some() && pax.path.is_some()
            || long_link.is_some() && pax.link.is_some()
            || (long_name.is_some() || long_link.is_some()) && pax.size.is_some()
        {
            return Err(malformed(&header.name(), "an entry has a PAX header and a GNU long name that contradict"));
        }
        let path = long_name.or(pax.path).unwrap_or_else(|| header.name());
        let link = long_link.or(pax.link).unwrap_or_else(|| header.link());
        if pax.sparse || header.flag() == b'S' {
            let why = "sparse files are not supported: make the layer without them (tar without -S)";
            return Err(Error::unimplemented("layer", String::from_utf8_lossy(&path), why));
        }
        let kind = match header.flag() {
            // Before POSIX a slash at the end was all that told a directory.
            0 if path.ends_with(b"/") => Type::Dir,
            0 | b'0' => Type::File,
            b'1' => Type::Link,
            b'2' => Type::Symlink,
            b'3' => Type::Char,
            b'4' => Type::Block,
            b'5' => Type::Dir,
            b'6' => Type::Fifo,
            other => return Err(refused(&path, format!("entries of type {:?} are not supported", char::from(other)))),
        };
        let size = pax.size.unwrap_or(size);
        // Some readers skip that many bytes, others none.
        if kind != Type::File && size != 0 {
            return Err(malformed(&path, "an entry that has no content claims a size"));
        }
        if size > self.limits.max_bytes {
            return Err(exhausted(&path, format!("a file is larger than {} bytes", self.limits.max_bytes)));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mtime = pax.mtime.map_or_else(|| header.mtime(), Ok)?;
        let atime = pax.atime.unwrap_or(mtime).max(mtime);
        Ok(Entry {
            mode: Mode::from_bits_truncate(header.mode()?),
            uid: owner(pax.uid.map_or_else(|| header.uid(), Ok)?, &path)?,
            gid: owner(pax.gid.map_or_else(|| header.gid(), Ok)?, &path)?,
            atime: time(atime.tv_sec(), atime.tv_nsec()),
            mtime,
            device: if matches!(kind, Type::Char | Type::Block) { header.device()? } else { (0, 0) },
            xattrs: pax.xattrs,
            path,
            link,
            kind,
        })
    }

    /// How many bytes of the current entry were not taken yet.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The next bytes of the current entry's content; `None` behind the last.
    pub(crate) fn data(&mut self) -> Result<Option<&[u8]>> {
        if self.left == 0 {
            return Ok(None);
        }
        match self.chunks.take(self.left) {
            Some(bytes) => {
                self.left -= bytes.len() as u64;
                Ok(Some(bytes))
            }
            None => Err(malformed(b"", "the archive is truncated within a file")),
        }
    }

    fn skip(&mut self) -> Result<()> {
        while self.data()?.is_some() {}
        let whole = self.padding;
        while self.padding > 0 {
            match self.chunks.take(self.padding) {
                Some(bytes) => self.padding -= bytes.len() as u64,
                // `umoci insert` ends its layers with the last byte of the last file.
                None if self.padding == whole => self.padding = 0,
                None => return Err(malformed(b"", "the archive is truncated behind a file")),
            }
        }
        Ok(())
    }

    /// The body of an extended header.
    fn body(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > EXTENDED {
            return Err(exhausted(b"", format!("an extended header is larger than {EXTENDED} bytes")));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut body = Vec::new();
        while let Some(bytes) = self.data()? {
            body.extend_from_slice(bytes);
        }
        Ok(body)
    }

    /// Behind the first zero block: only zeros follow. More entries there would be seen by some readers and not by us.
    fn finish(&mut self) -> Result<Option<Entry>> {
        while let Some(bytes) = self.chunks.take(u64::MAX) {
            if bytes.iter().any(|b| *b != 0) {
                return Err(malformed(b"", "the archive has data behind its end"));
            }
        }
        Ok(None)
    }
}

/// The body of a GNU long name: up to its NUL.
fn long(slot: &mut Option<Vec<u8>>, mut body: Vec<u8>) -> Result<()> {
    if let Some(end) = body.iter().position(|b| *b == 0) {
        body.truncate(end);
    }
    if body.is_empty() || slot.replace(body).is_some() {
        return Err(malformed(b"", "a GNU long name is empty or stands twice"));
    }
    Ok(())
}
