//! Writing to a repository: blobs in one piece or in several, taken over from another repository where that has them, and
//! manifests (OCI distribution-spec, "Push").
//!
//! An upload that breaks off goes on where the registry says that it is. Each answer names the place for the next request: it is
//! never made up here.

use std::{
    cell::{Cell, RefCell},
    io::{self, Read},
    time::Instant,
};

use cofferdam_types::{Code, Descriptor, Digest, Error, Result};
use ureq::{
    Body,
    http::{Method, Response, Uri},
};

use super::{
    ACCEPT_MANIFEST, Ask, Repository, TRIES,
    blob::{MAX_PAUSE, PATIENCE},
    http::{Content, join},
    retry,
    way::Fault,
};

/// Progress that makes up for the failures before it.
const PROGRESS: u64 = 1 << 20;

/// Where the bytes of a blob come from.
pub trait Source {
    /// From an offset to the end.
    fn open(&self, offset: u64) -> Result<Box<dyn Read + '_>>;
    /// So many bytes are on their way, whatever was before.
    fn sent(&self, count: u64);
}

/// How a blob came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It was.
    Present,
    /// The registry took it over from another repository.
    Mounted,
    /// Its bytes were sent.
    Uploaded,
}

/// An upload that has begun.
struct Upload {
    location: Uri,
    offset: u64,
    /// The least that a piece but the last may have.
    least: u64,
}

impl Repository {
    /// Brings a blob there, unless it is: taken over from one of the repositories `from`, or sent, in pieces of `chunk` bytes; 0: in
    /// one.
    pub fn push_blob(&self, blob: &Descriptor, from: &[String], chunk: u64, source: &dyn Source) -> Result<Sent> {
        if self.has("blobs", blob)? {
            return Ok(Sent::Present);
        }
        for from in from.iter().filter(|from| **from != self.http.path) {
            match self.begin(blob, Some(from)) {
                Ok(None) => return Ok(Sent::Mounted),
                Ok(Some(upload)) => return self.send(blob, upload, chunk, source).map(|()| Sent::Uploaded),
                // That one is not for us, or is no more.
                Err(e) if matches!(e.code, Code::Denied | Code::NotFound | Code::FailedPrecondition) => {}
                Err(e) => return Err(e),
            }
        }
        let Some(upload) = self.begin(blob, None)? else { return Ok(Sent::Mounted) };
        self.send(blob, upload, chunk, source).map(|()| Sent::Uploaded)
    }

    /// Stores a manifest or an index under a tag or its digest. All that it names must be there.
    pub fn push_manifest(&self, name: &str, descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
        let response = self.put_manifest(name, descriptor, bytes)?;
        self.confirmed(&response, &descriptor.digest)
    }

    /// What the registry says to a document under a name.
    pub(super) fn put_manifest(&self, name: &str, descriptor: &Descriptor, bytes: &[u8]) -> Result<Response<Body>> {
        let uri = self.http.uri("manifests", name)?;
        let content = || Content::Bytes(&descriptor.media_type, bytes);
        let response = self.settled(|| Ask { content: content(), ..Ask::of(Method::PUT, uri.clone()) })?;
        match response.status().as_u16() {
            200..=204 => Ok(response),
            _ => Err(self.http.unexpected("manifest", response)),
        }
    }

    /// Whether it has a blob, or a manifest.
    pub fn has(&self, kind: &str, descriptor: &Descriptor) -> Result<bool> {
        let uri = self.http.uri(kind, &descriptor.digest.to_string())?;
        let accept = (kind == "manifests").then_some(ACCEPT_MANIFEST);
        let response = self.again(|| self.http.send(&Ask { accept, ..Ask::of(Method::HEAD, uri.clone()) }))?;
        match response.status().as_u16() {
            200 => Ok(true),
            404 => Ok(false),
            _ => Err(self.http.unexpected("blob", response)),
        }
    }

    /// The answer to a manifest once it isn't that this is invalid, or the last of a few. While another client's upload of a blob is
    /// linked, distribution (2.8) finds the link empty, and says that of a manifest that names the blob.
    fn settled<'a>(&self, ask: impl Fn() -> Ask<'a>) -> Result<Response<Body>> {
        let mut tried = 1;
        loop {
            let response = self.again(|| self.http.send(&ask()))?;
            if tried >= TRIES || response.status() != 400 {
                return Ok(response);
            }
            self.cancel.wait(self.http.limits.backoff * tried)?;
            tried += 1;
        }
    }

    /// Begins an upload; one that nobody goes on with is dropped by the registry. None: the registry took the blob over.
    fn begin(&self, blob: &Descriptor, from: Option<&str>) -> Result<Option<Upload>> {
        let query = from.map(|from| format!("?mount={}&from={from}", blob.digest)).unwrap_or_default();
        let uri = self.http.uri("blobs", &format!("uploads/{query}"))?;
        let response = self.again(|| self.http.send(&Ask::of(Method::POST, uri.clone())))?;
        match response.status().as_u16() {
            201 if from.is_some() => Ok(None),
            202 => {
                let location = self.location(&uri, &response)?;
                let least = header(&response, "oci-chunk-min-length").and_then(|least| least.parse().ok()).unwrap_or(0);
                Ok(Some(Upload { location, offset: 0, least }))
            }
            _ => Err(self.http.unexpected("upload", response)),
        }
    }

    fn send(&self, blob: &Descriptor, mut upload: Upload, chunk: u64, source: &dyn Source) -> Result<()> {
        let limits = &self.http.limits;
        let (mut failures, mut best) = (0, 0);
        loop {
            let error = match self.pour(blob, &mut upload, chunk, source) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // A cancelled job closes its sockets: what the socket says then is not the reason.
            self.cancel.check()?;
            if upload.offset > best + PROGRESS {
                failures = 0;
            }
            best = best.max(upload.offset);
            failures += 1;
            if error.code != Code::Unavailable || failures >= limits.attempts {
                let _ = self.http.send(&Ask::of(Method::DELETE, upload.location.clone()));
                return Err(error.context(&blob.digest));
            }
            tracing::debug!(digest = %blob.digest, offset = upload.offset, %error, "an upload stopped half-way");
            self.cancel.wait(limits.backoff * 2u32.saturating_pow(failures - 1))?;
            upload = match self.resumed(blob, &upload)? {
                Some(there) => there,
                None => return Ok(()),
            };
        }
    }

    /// Where an upload goes on: where the registry says that it is, or anew. None: the registry has the blob, by this upload or by
    /// another. A network that is away is waited for, as long as a blob that is fetched may bring nothing.
    fn resumed(&self, blob: &Descriptor, upload: &Upload) -> Result<Option<Upload>> {
        let (limits, began) = (&self.http.limits, Instant::now());
        let mut pause = limits.backoff;
        loop {
            match self.progress(upload) {
                Ok(there) if there.offset <= blob.size => return Ok(Some(there)),
                Err(fault) if fault.again && began.elapsed() < limits.idle * PATIENCE => {
                    tracing::debug!(digest = %blob.digest, error = %fault.error, "nobody says how far an upload got");
                }
                // What was ended is no more, though its answer didn't come here.
                _ if self.has("blobs", blob)? => return Ok(None),
                _ => return self.begin(blob, None),
            }
            self.cancel.wait(pause)?;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// The rest of the blob, and its end.
    fn pour(&self, blob: &Descriptor, upload: &mut Upload, chunk: u64, source: &dyn Source) -> Result<()> {
        if chunk > 0 {
            let chunk = chunk.max(upload.least);
            while upload.offset < blob.size {
                let length = chunk.min(blob.size - upload.offset);
                let response =
                    self.write(Method::PATCH, upload.location.clone(), upload.offset, length, true, source)?;
                if !matches!(response.status().as_u16(), 202 | 204) {
                    return Err(self.lost(response));
                }
                upload.location = self.location(&upload.location, &response)?;
                let sent = upload.offset + length;
                let there = match range_end(&response) {
                    // "0-0" is said of nothing as of one byte.
                    Some(1) if sent > 1 => 0,
                    // What it says counts where it has less than was sent. That it has more can't be.
                    said => said.unwrap_or(sent).min(sent),
                };
                if there <= upload.offset {
                    let why = format!("took nothing of the {length} bytes from {} on", upload.offset);
                    return Err(self.http.error(Error::unavailable, why));
                }
                upload.offset = there;
            }
        }
        let (at, size) = (upload.offset, blob.size);
        let response =
            self.write(Method::PUT, ending(&upload.location, &blob.digest)?, at, size - at, at > 0, source)?;
        match response.status().as_u16() {
            200 | 201 | 204 => self.confirmed(&response, &blob.digest),
            _ => Err(self.lost(response)),
        }
    }

    fn write(
        &self,
        method: Method,
        uri: Uri,
        first: u64,
        length: u64,
        part: bool,
        source: &dyn Source,
    ) -> Result<Response<Body>> {
        let fault = RefCell::new(None);
        let open = || -> Result<Box<dyn Read + '_>> {
            let inner = source.open(first)?.take(length);
            let (at, end) = (Cell::new(first), first + length);
            Ok(Box::new(Outgoing { inner, source, at, end, fault: &fault, repository: self }))
        };
        let content = if length > 0 { Content::Stream { first, length, part, open: &open } } else { Content::None };
        let response = self.http.send(&Ask { content, ..Ask::of(method, uri) });
        // The transport knows that the bytes ended, and not why.
        match fault.take() {
            Some(error) => Err(error),
            None => Ok(response?),
        }
    }

    /// Where an upload is that broke off.
    fn progress(&self, upload: &Upload) -> Result<Upload, Fault> {
        let response = self.http.send(&Ask::of(Method::GET, upload.location.clone()))?;
        let status = response.status().as_u16();
        if !matches!(status, 204 | 202 | 200) {
            let asked = retry::after(response.headers());
            let patient = asked.is_none_or(|asked| asked <= self.http.limits.patience);
            // Others say that they don't know, or won't soon.
            let again = retry::passes(status) && patient;
            return Err(Fault { again, ..self.http.unexpected("upload", response).into() });
        }
        let location = self.location(&upload.location, &response).unwrap_or_else(|_| upload.location.clone());
        // "0-0" is said of nothing as of one byte.
        let offset = range_end(&response).filter(|end| *end > 1).unwrap_or(0);
        Ok(Upload { location, offset, least: upload.least })
    }

    /// What a refusal of a piece means: an upload that is no more, or is somewhere else, begins anew.
    fn lost(&self, response: Response<Body>) -> Error {
        let status = response.status().as_u16();
        let error = self.http.unexpected("upload", response);
        match status {
            404 | 408 | 416 => Error { code: Code::Unavailable, ..error },
            400 => Error { code: Code::DataLoss, ..error },
            _ => error,
        }
    }

    fn location(&self, base: &Uri, response: &Response<Body>) -> Result<Uri> {
        let next = header(response, "location").and_then(|location| join(base, location));
        next.ok_or_else(|| self.http.error(Error::unavailable, "doesn't say where an upload goes on"))
    }

    fn confirmed(&self, response: &Response<Body>, digest: &Digest) -> Result<()> {
        match header(response, "docker-content-digest").map(str::parse::<Digest>) {
            Some(Ok(said)) if said != *digest && said.algorithm() == digest.algorithm() => {
                Err(self.http.error(Error::data_loss, format!("stored {digest} as {said}")))
            }
            _ => Ok(()),
        }
    }
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// One behind the last byte that is there: `Range: 0-last`, with or without a unit.
fn range_end(response: &Response<Body>) -> Option<u64> {
    let range = header(response, "range")?;
    let (first, last) = range.strip_prefix("bytes=").unwrap_or(range).split_once('-')?;
    (first == "0").then(|| last.parse::<u64>().ok()?.checked_add(1))?
}

/// The place that ends an upload.
fn ending(location: &Uri, digest: &Digest) -> Result<Uri> {
    let mark = if location.query().is_some() { '&' } else { '?' };
    let uri = format!("{location}{mark}digest={digest}").parse();
    uri.map_err(|_| Error::unavailable("registry", "", "sent a place for an upload that is no URL"))
}

/// Bytes on their way out. Why they end early is kept for whoever asked for them.
struct Outgoing<'a, R> {
    inner: R,
    source: &'a dyn Source,
    at: Cell<u64>,
    /// So far the request has promised to go.
    end: u64,
    fault: &'a RefCell<Option<Error>>,
    repository: &'a Repository,
}

impl<R> Outgoing<'_, R> {
    fn failed(&self, error: Error) -> io::Result<usize> {
        let text = error.to_string();
        *self.fault.borrow_mut() = Some(error);
        Err(io::Error::other(text))
    }
}

impl<R: Read> Read for Outgoing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.repository.cancel.check().map_err(io::Error::other).and_then(|()| self.inner.read(buffer));
        match read {
            // The transport would ask again without end for what it has promised.
            Ok(0) if !buffer.is_empty() && self.at.get() < self.end => {
                let why = format!("ended at byte {} of the {} that were to be sent", self.at.get(), self.end);
                self.failed(Error::data_loss("blob", "", why))
            }
            Ok(n) => {
                self.at.set(self.at.get() + n as u64);
                self.source.sent(self.at.get());
                Ok(n)
            }
            Err(error) => self.failed(crate::from_io("blob", "", "can't be read", error)),
        }
    }
}

#[cfg(test)]
mod tests;
