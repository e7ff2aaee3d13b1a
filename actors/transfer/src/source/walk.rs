//! Walking the tar that wraps an image: names, sizes and offsets, and the bytes of one member at a time.
//!
//! This is not how layers are read (that is the archive crate's business, with every kind of entry and attribute): an
//! image archive has regular files, and links between them. So it reads what those need, ustar with GNU and PAX long
//! names, with a limit on everything that the archive can make it remember.

use std::io::{self, Read};

use cofferdam_types::{Error, Result};
use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// Members of an archive: images have some dozens.
const MAX_MEMBERS: usize = 100_000;
/// A name, or what a PAX header says about one member.
const MAX_EXTENSION: u64 = 64 << 10;
/// The longest name that is kept: as long as a path may be.
const MAX_NAME: usize = 4096;

/// A stream that can be read past cheaply, if its nature allows.
pub(crate) trait Input: Read {
    /// Passes `count` bytes; fewer are an error.
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let mut rest = Read::take(&mut *self, count);
        match io::copy(&mut rest, &mut io::sink())? {
            n if n == count => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// What a member is, as far as an image cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// A symbolic link, to be read from where it stands.
    Symlink(String),
    /// A hard link to another member.
    Hardlink(String),
    /// Directories, and whatever has no business in an image archive.
    Other,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its path, without leading `./`.
    pub name: String,
    pub kind: Kind,
    /// Where its bytes begin.
    pub offset: u64,
    pub size: u64,
}

/// The members of an archive, one after another.
pub(crate) struct Walk<I> {
    input: I,
    at: u64,
    /// Bytes of the present member that have not been read, and what pads them.
    left: u64,
    padding: u64,
    members: usize,
}

impl<I: Input> Walk<I> {
    pub fn new(input: I) -> Walk<I> {
        Walk { input, at: 0, left: 0, padding: 0, members: 0 }
    }

    /// The next member; what was left of the present one is passed over.
    pub fn next(&mut self) -> Result<Option<Member>> {
        let mut extended = Extended::default();
        loop {
            let rest = self.left + self.padding;
            self.input.skip(rest).map_err(broken)?;
            self.at += rest;
            (self.left, self.padding) = (0, 0);
            let Some(header) = self.header()? else { return Ok(None) };
            self.members += 1;
            if self.members > MAX_MEMBERS {
                return Err(refused(format!("has more than {MAX_MEMBERS} members")));
            }
            let size = header.entry_size().map_err(|_| refused("has a member without a proper size"))?;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => extended.name = Some(self.extension(size)?),
                EntryType::GNULongLink => extended.link = Some(self.extension(size)?),
                EntryType::XHeader => self.pax(size, &mut extended)?,
                // Says nothing about a single member that we would read.
                EntryType::XGlobalHeader => self.stand_before(size)?,
                _ => return self.member(&header, kind, extended).map(Some),
            }
        }
    }

    fn member(&mut self, header: &Header, kind: EntryType, extended: Extended) -> Result<Member> {
        let file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        if matches!(kind, EntryType::GNUSparse) {
            return Err(refused("has a sparse member"));
        }
        let own = header.entry_size().map_err(|_| refused("has a member without a proper size"))?;
        let size = extended.size.unwrap_or(own);
        // Links and directories have no bytes, whatever the header says.
        let size = if file || matches!(kind, EntryType::Char | EntryType::Block | EntryType::Fifo) { size } else { 0 };
        let name = match extended.name {
            Some(name) => name,
            None => text(&header.path_bytes())?,
        };
        let link = |bytes: Option<std::borrow::Cow<'_, [u8]>>| match (extended.link, bytes) {
            (Some(link), _) => Ok(link),
            (None, Some(bytes)) => text(&bytes),
            (None, None) => Err(refused("has a link to nothing")),
        };
        let kind = match kind {
            _ if file => Kind::File,
            EntryType::Symlink => Kind::Symlink(link(header.link_name_bytes())?),
            EntryType::Link => Kind::Hardlink(link(header.link_name_bytes())?),
            _ => Kind::Other,
        };
        self.stand_before(size)?;
        Ok(Member { name: name.trim_start_matches("./").to_owned(), kind, offset: self.at, size })
    }

    fn stand_before(&mut self, size: u64) -> Result<()> {
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        match self.at.checked_add(size).and_then(|end| end.checked_add(BLOCK)) {
            Some(end) if i64::try_from(end).is_ok() => Ok(()),
            _ => Err(refused("has a member of impossible size")),
        }
    }

    /// The next header; `None` at the end: two empty blocks, or (as GNU tar takes it) nothing more after whole blocks.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < BLOCK as usize {
            match self.input.read(&mut header.as_mut_bytes()[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(broken(e)),
            }
        }
        self.at += BLOCK;
        let bytes = header.as_bytes();
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum: u32 =
            bytes[..148].iter().chain(&bytes[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * u32::from(b' ');
        match header.cksum() {
            Ok(said) if said == sum => Ok(Some(header)),
            _ => Err(refused("is not a tar, or is damaged (a header's checksum is wrong)")),
        }
    }

    fn extension(&mut self, size: u64) -> Result<String> {
        let bytes = self.small(size)?;
        text(bytes.split(|b| *b == 0).next().unwrap_or_default())
    }

    fn pax(&mut self, size: u64, extended: &mut Extended) -> Result<()> {
        let bytes = self.small(size)?;
        let mut rest = &bytes[..];
        while !rest.is_empty() && rest[0] != 0 {
            let bad = || refused("has a malformed PAX header");
            let space = rest.iter().position(|b| *b == b' ').ok_or_else(bad)?;
            let length: usize =
                std::str::from_utf8(&rest[..space]).ok().and_then(|n| n.parse().ok()).ok_or_else(bad)?;
            let record = rest.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(bad)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => extended.name = Some(text(value)?),
                b"linkpath" => extended.link = Some(text(value)?),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|n| n.parse().ok());
                    extended.size = Some(size.ok_or_else(bad)?);
                }
                key if key.starts_with(b"GNU.sparse") => return Err(refused("has a sparse member")),
                _ => {}
            }
            rest = &rest[length..];
        }
        Ok(())
    }

    fn small(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(refused("has a member with an endless name"));
        }
        self.stand_before(size)?;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(broken)?;
        Ok(bytes)
    }
}

/// Reads the present member.
impl<I: Input> Read for Walk<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let read = self.input.read(&mut buffer[..want])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

#[derive(Default)]
struct Extended {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

fn text(bytes: &[u8]) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.len() <= MAX_NAME => Ok(text.to_owned()),
        _ => Err(refused("has a member whose name is too long or not UTF-8")),
    }
}

/// An archive that is not what it should be.
pub(crate) fn refused(why: impl Into<String>) -> Error {
    Error::invalid("archive", "", why)
}

/// An archive that ends or fails in the middle.
pub(crate) fn broken(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::data_loss("archive", "", "ends in the middle: it was cut off"),
        // What the decoder around it says about its bytes.
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            Error::data_loss("archive", "", format!("is damaged: {error}"))
        }
        _ => crate::from_io("archive", "", "can't be read", error),
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;

    use super::*;

    impl Input for &[u8] {}

    fn walk(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>> {
        let mut walk = Walk::new(bytes);
        let mut found = Vec::new();
        while let Some(member) = walk.next()? {
            let mut content = Vec::new();
            walk.read_to_end(&mut content).map_err(broken)?;
            found.push((member, content));
        }
        Ok(found)
    }

    fn archive() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(3);
        tar.append_data(&mut header, "./a/b", &b"abc"[..]).unwrap();
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        header.set_size(600);
        tar.append_data(&mut header, &long, &[7; 600][..]).unwrap();
        header.set_size(0);
        header.set_entry_type(EntryType::Symlink);
        tar.append_link(&mut header, "l", "../x").unwrap();
        header.set_entry_type(EntryType::Link);
        tar.append_link(&mut header, "h", &long).unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn members_are_found_where_they_are() {
        let bytes = archive();
        let found = walk(&bytes).unwrap();
        let names: Vec<&str> = found.iter().map(|(m, _)| m.name.as_str()).collect();
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        assert_eq!(names, ["a/b", long.as_str(), "l", "h"]);
        assert_eq!(found[0].1, b"abc");
        assert_eq!(found[1].1, [7; 600]);
        assert_eq!(found[2].0.kind, Kind::Symlink("../x".into()));
        assert_eq!(found[3].0.kind, Kind::Hardlink(long));
        for (member, content) in &found {
            let at = member.offset as usize;
            assert_eq!(&bytes[at..at + member.size as usize], content);
        }
    }

    #[test]
    fn pax_names_and_sizes() {
        let mut tar = tar::Builder::new(Vec::new());
        let long = "é".repeat(200);
        tar.append_pax_extensions([("path", long.as_bytes()), ("size", b"3")]).unwrap();
        let mut header = Header::new_ustar();
        header.set_path("short").unwrap();
        header.set_size(3);
        header.set_cksum();
        tar.append(&header, &b"abc"[..]).unwrap();
        let found = walk(&tar.into_inner().unwrap()).unwrap();
        assert_eq!((found[0].0.name.as_str(), found[0].1.as_slice()), (long.as_str(), &b"abc"[..]));
    }

    #[test]
    fn truncated_archives_are_data_loss_wherever_they_end() {
        let bytes = archive();
        for end in [100, 513, 514, 1000, 1030, 2700] {
            let error = walk(&bytes[..end]).unwrap_err();
            assert_eq!(error.code, Code::DataLoss, "{end}: {error}");
        }
        assert_eq!(walk(&[]).unwrap().len(), 0);
    }

    #[test]
    fn what_is_not_a_tar_is_refused() {
        assert_eq!(walk(&[b'x'; 2048]).unwrap_err().code, Code::InvalidArgument);
        let mut flipped = archive();
        flipped[0] ^= 1;
        assert_eq!(walk(&flipped).unwrap_err().code, Code::InvalidArgument);
    }

    #[test]
    fn endless_names_and_impossible_sizes_are_refused() {
        for (kind, size) in
            [(EntryType::GNULongName, 1 << 20), (EntryType::XHeader, 1 << 20), (EntryType::Regular, u64::MAX >> 1)]
        {
            let mut header = Header::new_gnu();
            header.set_path("x").unwrap();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_cksum();
            assert_eq!(walk(header.as_bytes()).unwrap_err().code, Code::InvalidArgument, "{kind:?}");
        }
        for record in ["path=x", "9 path=xy\n", "0 a=b\n", "99999 a=b\n", "10 size=-1\n"] {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.set_size(record.len() as u64);
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend_from_slice(record.as_bytes());
            bytes.resize(1024, 0);
            assert_eq!(walk(&bytes).unwrap_err().code, Code::InvalidArgument, "{record:?}");
        }
    }

    #[test]
    fn too_many_members_are_refused() {
        let mut header = Header::new_gnu();
        header.set_path("x").unwrap();
        header.set_size(0);
        header.set_cksum();
        let bytes = header.as_bytes().repeat(MAX_MEMBERS + 1);
        assert!(walk(&bytes).unwrap_err().message.contains("more than"));
    }
}
