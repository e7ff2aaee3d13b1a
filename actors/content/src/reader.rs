//! Reading a blob, with or without trust in the disk.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

use cofferdam_types::{Digest, Digester, Error, Result};

use crate::Content;

/// An open blob. It stays readable when the blob is deleted meanwhile.
#[derive(Debug)]
pub struct BlobReader {
    file: File,
    digest: Digest,
    size: u64,
    position: u64,
}

impl BlobReader {
    /// Refuses a file that can't be the blob because its size is another.
    pub(crate) fn new(file: File, digest: Digest, size: u64) -> Result<BlobReader> {
        let found = file.metadata().map_err(|e| Error::io("blob", &digest, "can't look at its file", &e))?.len();
        if found != size {
            let why = format!("has {found} bytes on disk instead of {size}: fetch it again, which replaces it");
            return Err(Error::data_loss("blob", digest, why));
        }
        Ok(BlobReader { file, digest, size, position: 0 })
    }

    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Which blob it is.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Reads from `offset` until the buffer is full or the blob ends; the position stays where it is.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Reads the whole blob, which may have at most `max` bytes, and verifies it: for manifests and the like.
    pub fn read_verified(&self, max: u64) -> Result<Vec<u8>> {
        if self.size > max {
            let why = format!("has {} bytes: at most {max} are read at once", self.size);
            return Err(Error::resource_exhausted("blob", &self.digest, why));
        }
        let mut bytes = vec![0; self.size as usize];
        self.read_at(&mut bytes, 0).map_err(|e| self.fault(&e))?;
        self.judge(Digest::of(self.digest.algorithm(), &bytes))?;
        Ok(bytes)
    }

    /// Reads the whole blob and compares its digest: `data_loss` when the disk has changed it. Blocks.
    pub fn verify(&self) -> Result<()> {
        let mut digester = Digester::new(self.digest.algorithm());
        let mut buffer = vec![0; 256 << 10];
        let mut offset = 0;
        loop {
            let count = self.read_at(&mut buffer, offset).map_err(|e| self.fault(&e))?;
            if count == 0 {
                return self.judge(digester.finish());
            }
            digester.update(&buffer[..count]);
            offset += count as u64;
        }
    }

    /// The open file (`O_RDONLY`), at the reader's position.
    pub fn into_file(mut self) -> io::Result<File> {
        self.file.seek(SeekFrom::Start(self.position))?;
        Ok(self.file)
    }

    fn judge(&self, found: Digest) -> Result<()> {
        if found == self.digest {
            return Ok(());
        }
        let why = format!("is damaged on disk (its bytes are {found}): delete it and fetch it again");
        Err(Error::data_loss("blob", &self.digest, why))
    }

    fn fault(&self, error: &io::Error) -> Error {
        Error::io("blob", &self.digest, "can't read it", error)
    }
}

/// A blob that is read from its beginning to its end, and hashed as it goes by. The read that comes to the end fails with
/// `data_loss` where the bytes are not the blob's, which counts as damaged from then on.
#[derive(Debug)]
pub struct Whole {
    content: Content,
    reader: BlobReader,
    /// Until it was finished.
    digester: Option<Digester>,
}

impl Whole {
    pub(crate) fn new(content: Content, reader: BlobReader) -> Whole {
        let digester = Some(Digester::new(reader.digest.algorithm()));
        Whole { content, reader, digester }
    }
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = match self.reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            read => read.map_err(|e| self.reader.fault(&e)),
        };
        let judged = read.and_then(|count| {
            self.digester.iter_mut().for_each(|digester| digester.update(&buffer[..count]));
            let end = count == 0 || self.reader.position >= self.reader.size;
            let digester = if end { self.digester.take() } else { None };
            digester.map_or(Ok(()), |digester| self.reader.judge(digester.finish())).map(|()| count)
        });
        judged.map_err(|error| {
            self.content.suspect(&self.reader.digest);
            io::Error::other(error)
        })
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.size.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "before the beginning"))?;
        Ok(self.position)
    }
}
