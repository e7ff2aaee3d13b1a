//! The bytes of one blob, over as many connections as it takes.

use std::{
    io::{self, Read},
    time::{Duration, Instant},
};

use cofferdam_types::{Code, Descriptor, Error, Result};
use ureq::{
    BodyReader,
    http::{HeaderMap, Method, Uri},
};

use super::{Ask, Repository, http::cause, retry};

/// Progress that makes up for the failures before it.
const PROGRESS: u64 = 1 << 20;
/// So many times what a connection may be silent for a blob may bring nothing: after the first silence it is asked for once more.
pub(super) const PATIENCE: u32 = 2;
/// Between two connections, unless the registry asks for more.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Foreign URLs of a descriptor that are tried.
const MAX_URLS: usize = 4;

/// A blob from an offset to its end, or a part of it. Its errors carry a [`cofferdam_types::Error`] (see [`crate::from_io`]).
pub struct BlobStream<'a> {
    repository: &'a Repository,
    descriptor: Descriptor,
    body: Option<BodyReader<'static>>,
    offset: u64,
    end: u64,
    /// Whether only the part is wanted, however it comes otherwise.
    only: bool,
    /// Connections in a row that brought little.
    failures: u32,
    /// Of these those on which somebody answered: only they are counted out. A network that is away is waited for.
    answered: u32,
    /// Nobody answers what was asked last.
    nobody: bool,
    /// Where the present count of failures began.
    since: u64,
    /// When the last byte came.
    heard: Instant,
    /// How long the registry wants to be left alone.
    asked: Option<Duration>,
    pace: Pace,
}

impl<'a> BlobStream<'a> {
    pub(super) fn open(repository: &'a Repository, descriptor: &Descriptor, offset: u64) -> Result<BlobStream<'a>> {
        BlobStream::part(repository, descriptor, offset, descriptor.size, false)
    }

    pub(super) fn part(
        repository: &'a Repository,
        descriptor: &Descriptor,
        offset: u64,
        end: u64,
        only: bool,
    ) -> Result<BlobStream<'a>> {
        if offset > end || end > descriptor.size {
            return Err(Error::out_of_range("blob", &descriptor.digest, "begins behind its end"));
        }
        let limits = &repository.http.limits;
        let mut stream = BlobStream {
            repository,
            descriptor: descriptor.clone(),
            body: None,
            offset,
            end,
            only,
            failures: 0,
            answered: 0,
            nobody: false,
            since: offset,
            heard: Instant::now(),
            asked: None,
            pace: Pace { window: limits.pace, least: limits.pace_bytes, spent: Duration::ZERO, bytes: 0 },
        };
        if offset < end {
            stream.connect_again()?;
        }
        Ok(stream)
    }

    /// Where it ends: behind the part that was asked for if the registry doesn't send parts.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Connects, and where that fails in a way that may pass, again after a while.
    fn connect_again(&mut self) -> Result<()> {
        loop {
            match self.connect() {
                Ok(body) => {
                    self.body = Some(body);
                    return Ok(());
                }
                Err(error) => self.failed(error)?,
            }
        }
    }

    /// Counts a failure: an error if it is one too many or will not pass.
    fn failed(&mut self, error: Error) -> Result<()> {
        self.body = None;
        // A cancelled job closes its sockets: what the socket says then is not the reason.
        self.repository.cancel.check()?;
        if error.code != Code::Unavailable {
            return Err(error);
        }
        if self.offset - self.since >= PROGRESS {
            (self.failures, self.answered) = (0, 0);
        }
        self.since = self.offset;
        self.failures += 1;
        self.answered += u32::from(!std::mem::take(&mut self.nobody));
        let limits = &self.repository.http.limits;
        let silent = self.heard.elapsed() >= limits.idle * PATIENCE;
        let asked = self.asked.take();
        if self.answered >= limits.attempts || silent || asked.is_some_and(|asked| asked > limits.patience) {
            let (done, size) = (self.offset, self.descriptor.size);
            return Err(error.context(format!("{} stopped at byte {done} of {size}", self.descriptor.digest)));
        }
        tracing::debug!(digest = %self.descriptor.digest, offset = self.offset, %error, "blob stopped half-way: resuming");
        let pause = limits.backoff.saturating_mul(2u32.saturating_pow(self.failures - 1)).min(MAX_PAUSE);
        self.repository.cancel.wait(pause.max(asked.unwrap_or_default()))
    }

    /// One connection that stands at `self.offset`.
    fn connect(&mut self) -> Result<BodyReader<'static>> {
        let http = &self.repository.http;
        let first = self.request(http.uri("blobs", &self.descriptor.digest.to_string())?, true);
        let Err(error) = first else { return first };
        if error.code != Code::NotFound {
            return Err(error);
        }
        let urls: Vec<String> = self.descriptor.urls.iter().take(MAX_URLS).cloned().collect();
        for url in &urls {
            // A foreign host gets the request and nothing else of ours (D1).
            if let Ok(uri) = url.parse::<Uri>()
                && let Ok(body) = self.request(uri, false)
            {
                return Ok(body);
            }
        }
        Err(error)
    }

    fn request(&mut self, uri: Uri, ours: bool) -> Result<BodyReader<'static>> {
        let http = &self.repository.http;
        let whole = self.offset == 0 && self.end == self.descriptor.size;
        let range = (!whole).then_some(self.offset);
        let until = (self.end < self.descriptor.size).then_some(self.end);
        let response = http.send(&Ask { range, until, ours, ..Ask::of(Method::GET, uri) });
        let fault = response.as_ref().err();
        (self.nobody, self.asked) = (fault.is_some_and(|fault| fault.nobody), fault.and_then(|fault| fault.asked));
        let response = response?;
        let bad = |what: String| http.error(Error::data_loss, format!("{what} for {}", self.descriptor.digest));
        let size = self.descriptor.size;
        let skip = match response.status().as_u16() {
            200 if self.only => return Err(http.error(Error::unimplemented, "sends blobs as a whole alone")),
            // The whole thing, though a part was asked for: what is here already is read past.
            200 => {
                self.end = size;
                self.offset
            }
            206 if range.is_some() => {
                let wanted = (self.offset, self.end - 1, size);
                if content_range(response.headers()) != Some(wanted) {
                    return Err(bad("sent another range than the one asked".into()));
                }
                0
            }
            206 => return Err(bad("sent a part when asked for the whole".into())),
            status if retry::passes(status) => {
                self.asked = retry::after(response.headers());
                return Err(http.unexpected("blob", response));
            }
            416 => return Err(bad(format!("has less than the {size} bytes that the manifest says"))),
            _ => return Err(http.unexpected("blob", response)),
        };
        let length = response.headers().get("content-length").and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
        let left = self.end - self.offset;
        if let Some(length) = length
            && length != left + skip
        {
            return Err(bad(format!("announced {length} bytes where the manifest says {}", left + skip)));
        }
        let mut body = response.into_body().into_reader();
        if skip > 0 {
            let read = io::copy(&mut (&mut body).take(skip), &mut io::sink());
            let read = read.map_err(|e| self.broken(e))?;
            if read < skip {
                return Err(http.error(Error::unavailable, "stopped before the part that was asked for"));
            }
        }
        Ok(body)
    }

    fn broken(&self, error: io::Error) -> Error {
        let http = &self.repository.http;
        match error.downcast::<ureq::Error>() {
            Ok(error) => http.transport(&error, None),
            Err(error) => http.error(Error::unavailable, format!("hung up half-way ({})", cause(&error))),
        }
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let left = self.end - self.offset;
            if left == 0 {
                return Ok(0);
            }
            if self.body.is_none() {
                self.connect_again()?;
            }
            let Some(body) = &mut self.body else { continue };
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let before = Instant::now();
            let read = body.read(&mut buffer[..want]);
            let error = match read {
                Ok(0) => self.repository.http.error(Error::unavailable, "hung up half-way"),
                Ok(n) => {
                    self.offset += n as u64;
                    self.heard = Instant::now();
                    if self.offset == self.end {
                        self.finish()?;
                    } else if self.pace.too_slow(before.elapsed(), n as u64) {
                        let error = self.repository.http.error(Error::unavailable, "sends too slowly to be alive");
                        self.failed(error)?;
                    }
                    return Ok(n);
                }
                Err(error) => self.broken(error),
            };
            self.failed(error)?;
        }
    }

    /// At the end there must be nothing more: a longer blob is another blob.
    fn finish(&mut self) -> Result<()> {
        let mut more = [0];
        match self.body.take().map(|mut body| body.read(&mut more)) {
            Some(Ok(1..)) => Err(self.repository.http.error(
                Error::data_loss,
                format!("sent more than the {} bytes of {}", self.descriptor.size, self.descriptor.digest),
            )),
            _ => Ok(()),
        }
    }
}

impl Read for BlobStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.read_some(buffer).map_err(io::Error::other)
    }
}

/// How fast the bytes come, counting only the time spent waiting for them.
struct Pace {
    window: Duration,
    least: u64,
    spent: Duration,
    bytes: u64,
}

impl Pace {
    fn too_slow(&mut self, spent: Duration, bytes: u64) -> bool {
        self.spent += spent;
        self.bytes += bytes;
        if self.spent < self.window {
            return false;
        }
        let slow = self.bytes < self.least;
        (self.spent, self.bytes) = (Duration::ZERO, 0);
        slow
    }
}

/// `Content-Range: bytes first-last/size`; a size of `*` is no answer to compare with.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64, u64)> {
    let text = headers.get("content-range")?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, size) = text.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, size.parse().ok()?))
}
