//! The pipeline: inflate on one thread, hash on a second, hand the bytes to the caller's.
//!
//! A fixed number of chunks goes round, so a slow stage holds the others back and memory stays at 1 MiB a layer, and as much as 5 MiB that wait
//! to be filled.

use std::{
    cell::{Cell, RefCell},
    io::{self, BufReader, Cursor, Read},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use cofferdam_types::{Algorithm, Digest, Digester, Error, Result};

use crate::{
    Compression, Limits,
    frames::{self, Frames},
    header::{BLOCK, exhausted, malformed},
};

/// A multiple of the block size, so that no header ever straddles two chunks.
const CHUNK: usize = 64 << 10;
const CHUNKS: usize = 16;

struct Chunk {
    bytes: Box<[u8]>,
    len: usize,
}

/// The uncompressed stream, as the parser takes it.
pub(crate) struct Chunks {
    filled: Receiver<Chunk>,
    free: SyncSender<Chunk>,
    current: Option<Chunk>,
    at: usize,
}

impl Chunks {
    /// The next bytes, at most `max` (at least one); `None` at the end of the stream.
    pub(crate) fn take(&mut self, max: u64) -> Option<&[u8]> {
        if self.current.as_ref().is_none_or(|chunk| self.at == chunk.len) {
            if let Some(used) = self.current.take() {
                // The inflater may be gone; then nobody needs the chunk any more.
                let _ = self.free.send(used);
            }
            self.current = Some(self.filled.recv().ok()?);
            self.at = 0;
        }
        let chunk = self.current.as_ref()?;
        let rest = &chunk.bytes[self.at..chunk.len];
        let take = usize::try_from(max).unwrap_or(usize::MAX).min(rest.len());
        self.at += take;
        Some(&rest[..take])
    }

    /// The next block; `None` at the end of the stream.
    pub(crate) fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        match self.take(BLOCK as u64) {
            None => Ok(None),
            Some(bytes) => match bytes.try_into() {
                Ok(block) => Ok(Some(block)),
                Err(_) => Err(malformed(b"", "the archive is truncated within a block")),
            },
        }
    }
}

/// What a stream was, when all of it went through.
pub(crate) struct Hashed {
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
}

/// Runs `consume` over the uncompressed bytes of `source`. An error of the stream itself goes before whatever its
/// truncated end made `consume` say.
pub(crate) fn pump<R>(
    source: impl Read + Send,
    compression: Compression,
    limits: &Limits,
    cancel: &AtomicBool,
    consume: impl FnOnce(&mut Chunks) -> Result<R>,
) -> Result<(R, Hashed)> {
    let (inflated, to_hash) = sync_channel::<Chunk>(CHUNKS);
    let (hashed, filled) = sync_channel::<Chunk>(CHUNKS);
    let (free, reuse) = sync_channel::<Chunk>(CHUNKS);
    for _ in 0..CHUNKS {
        // Zeroed pages are mapped when they are first written, so a small layer pays for one.
        let _ = free.send(Chunk { bytes: vec![0; CHUNK].into_boxed_slice(), len: 0 });
    }
    thread::scope(|scope| {
        let inflater = thread::Builder::new()
            .name("inflate".into())
            .spawn_scoped(scope, move || inflate(source, compression, limits, cancel, &reuse, &inflated))
            .map_err(|error| Error::io("layer", "", "starting a thread", &error))?;
        let hasher = thread::Builder::new()
            .name("diff-id".into())
            .spawn_scoped(scope, move || {
                let (mut digester, mut size) = (Digester::new(Algorithm::Sha256), 0);
                for chunk in to_hash {
                    digester.update(&chunk.bytes[..chunk.len]);
                    size += chunk.len as u64;
                    if hashed.send(chunk).is_err() {
                        break;
                    }
                }
                (digester, size)
            })
            .map_err(|error| Error::io("layer", "", "starting a thread", &error))?;
        let mut chunks = Chunks { filled, free, current: None, at: 0 };
        let result = consume(&mut chunks);
        // Whoever waits to give us a chunk or to get one back learns that we are gone.
        drop(chunks);
        let gone = |_| Error::internal("layer", "", "a thread of the unpack pipeline panicked");
        let inflated = inflater.join().map_err(gone);
        let (digester, size) = hasher.join().map_err(gone)?;
        inflated??;
        Ok((result?, Hashed { diff_id: digester.finish(), size }))
    })
}

/// The source, counted, its errors kept apart from those of the decoder on top of it.
struct Source<'a, R> {
    inner: R,
    read: &'a Cell<u64>,
    failed: &'a RefCell<Option<io::Error>>,
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(into) {
            Ok(n) => {
                self.read.set(self.read.get() + n as u64);
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                *self.failed.borrow_mut() = Some(error);
                Err(io::Error::other("the source failed"))
            }
        }
    }
}

fn inflate(
    mut source: impl Read,
    compression: Compression,
    limits: &Limits,
    cancel: &AtomicBool,
    reuse: &Receiver<Chunk>,
    inflated: &SyncSender<Chunk>,
) -> Result<()> {
    let mut head = [0u8; 4];
    let sniffed = fill(&mut source, &mut head).map_err(source_error)?;
    let head = &head[..sniffed];
    let read = Cell::new(0);
    let failed = RefCell::new(None);
    let source = Source { inner: Cursor::new(head).chain(source), read: &read, failed: &failed };
    let broken = |error: &io::Error| match (failed.borrow_mut().take(), frames::own(error)) {
        (Some(error), _) => source_error(error),
        (None, Some(own)) => own,
        (None, None) => malformed(b"", format!("the compressed layer is damaged: {error}")),
    };
    let mut stream = open(source, compression, head, limits, cancel).map_err(|error| broken(&error))?;
    let mut written = 0u64;
    while let Ok(mut chunk) = reuse.recv() {
        if cancel.load(Ordering::Relaxed) {
            return Err(cancelled());
        }
        chunk.len = fill(&mut stream, &mut chunk.bytes).map_err(|error| broken(&error))?;
        written += chunk.len as u64;
        if written > limits.max_bytes {
            return Err(exhausted(b"", format!("the layer is larger than {} bytes", limits.max_bytes)));
        }
        if written > limits.ratio_free && written / limits.max_ratio.max(1) > read.get() {
            let why = format!("the layer inflates to more than {} times its size", limits.max_ratio);
            return Err(exhausted(b"", why));
        }
        let last = chunk.len < chunk.bytes.len();
        if chunk.len > 0 && inflated.send(chunk).is_err() || last {
            break;
        }
    }
    Ok(())
}

/// A stream without the compression around it, told by its first bytes, for who only reads it.
pub fn inflated<'a>(
    mut source: impl Read + 'a,
    limits: &Limits,
    cancel: &'a AtomicBool,
) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = [0u8; 4];
    let sniffed = fill(&mut source, &mut head)?;
    let whole = Cursor::new(head[..sniffed].to_vec()).chain(source);
    open(whole, Compression::Sniff, &head[..sniffed], limits, cancel)
}

fn open<'a>(
    source: impl Read + 'a,
    compression: Compression,
    head: &[u8],
    limits: &Limits,
    cancel: &'a AtomicBool,
) -> io::Result<Box<dyn Read + 'a>> {
    let compression = match (compression, head) {
        (Compression::Sniff, [0x1f, 0x8b, 8, ..]) => Compression::Gzip,
        (Compression::Sniff, [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18]) => Compression::Zstd,
        (Compression::Sniff, _) => Compression::Plain,
        (told, _) => told,
    };
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(CHUNK, source))),
        Compression::Zstd => Box::new(Frames::new(BufReader::with_capacity(CHUNK, source), limits, cancel)?),
        Compression::Sniff | Compression::Plain => Box::new(source),
    })
}

/// Reads until the buffer is full or the stream ends.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A source may hand one of our own errors through `io::Error::other`.
fn source_error(error: io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(own) => own.clone(),
        None => Error::io("layer", "", "reading the layer", &error),
    }
}

pub(crate) fn cancelled() -> Error {
    Error::cancelled("layer", "", "the unpack was cancelled")
}
