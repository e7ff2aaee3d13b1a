//! A client for registries (OCI distribution specification).
//!
//! Blocking by design: it runs on the threads of a job, and a [`Cancel`] closes its sockets. Everything that a
//! registry says is checked: sizes and digests against the descriptor that asked, media types against the document,
//! addresses against what may be spoken to.

mod auth;
mod blob;
mod fault;
mod guard;
mod hosts;
mod http;
mod keys;
mod legacy;
mod proxy;
mod referrers;
mod retry;
mod route;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod upload;
mod way;

use std::{
    io::Read,
    time::{Duration, Instant},
};

use cofferdam_types::{Algorithm, Code, Descriptor, Digest, Error, Result, media};
use serde::Deserialize;
use ureq::{
    Body,
    http::{Method, Response},
};

pub use auth::Credentials;
pub use blob::BlobStream;
pub use hosts::Can;
pub use http::Access;
use http::{Ask, Http, cause};
pub use keys::{Wallet, bound};
pub use proxy::Proxies;
pub(crate) use referrers::Lists;
pub use referrers::{Referrer, referrer};
pub use route::{Explained, Routes};
pub use tls::Identity;
pub use upload::{Sent, Source};
use way::Fault;

use crate::{Cancel, Reference, Target};

/// The largest manifest or index that is read (M4 of the negative tests).
pub const MAX_MANIFEST: u64 = 4 << 20;

/// How often a question is asked.
const TRIES: u32 = 3;

const ACCEPT_MANIFEST: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// How long a registry may take, and how often it may fail.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For the name lookup, and for the connection with its TLS handshake.
    pub connect: Duration,
    /// From the request to the end of the answer's header, and for a whole manifest or token.
    pub header: Duration,
    /// Without a single byte of a blob.
    pub idle: Duration,
    /// A blob that brings less than `pace_bytes` within this long is stalled (D5 of the negative tests).
    pub pace: Duration,
    /// See `pace`.
    pub pace_bytes: u64,
    /// Connections that stop half-way, one after another without much progress, before a blob is given up.
    pub attempts: u32,
    /// Before the second attempt; doubles with each.
    pub backoff: Duration,
    /// The longest that a host which is busy may ask to be left alone, for it to be waited for.
    pub patience: Duration,
    /// From the last byte of what is written to the answer: what was sent is stored meanwhile.
    pub store: Duration,
    /// Kept connections, and blobs fetched at once.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect: Duration::from_secs(15),
            header: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            pace: Duration::from_secs(60),
            pace_bytes: 64 << 10,
            attempts: 5,
            backoff: Duration::from_millis(200),
            patience: Duration::from_secs(60),
            store: Duration::from_secs(300),
            connections: 4,
        }
    }
}

/// How to speak to a registry.
#[derive(Clone, Debug, Default)]
pub struct Endpoint {
    /// http instead of https. Without it, a host that is this machine is still spoken to in plain http unless `ca`
    /// says that it has a certificate.
    pub plain_http: bool,
    /// Certificates in PEM form to trust beside the system's, for the registry itself.
    pub ca: Option<Vec<u8>>,
    /// What the registry itself is shown of us by TLS.
    pub identity: Option<Identity>,
    /// Who pulls, for the registry itself; without, what the wallet has for each host.
    pub credentials: Option<Credentials>,
    /// What is stored for hosts.
    pub wallet: Wallet,
    /// The operator's table of hosts, and the proxies.
    pub routes: Routes,
    /// Hosts, with a port or without, whose token service may be given the credentials beside the registry's own place.
    pub trusted_realms: Vec<String>,
    /// Time and failure limits.
    pub limits: Limits,
}

/// What a name stands for at the registry.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The manifest or index.
    pub descriptor: Descriptor,
    /// Its bytes, where finding out brought them along.
    pub body: Option<Vec<u8>>,
}

/// One repository of one registry, for one job.
pub struct Repository {
    http: Http,
    cancel: Cancel,
}

impl Repository {
    /// Opens nothing yet: the first request connects.
    pub fn new(reference: &Reference, endpoint: &Endpoint, cancel: &Cancel) -> Result<Repository> {
        Repository::with(reference, endpoint, Access::Pull, cancel)
    }

    /// The same, to do more with it.
    pub fn with(reference: &Reference, endpoint: &Endpoint, access: Access, cancel: &Cancel) -> Result<Repository> {
        Ok(Repository { http: Http::new(reference, endpoint, access, cancel)?, cancel: cancel.clone() })
    }

    /// Finds out what `target` is. A HEAD request does where the registry answers it in full: it costs no quota and
    /// saves the body where the content is here already.
    pub fn resolve(&self, target: &Target) -> Result<Resolved> {
        let uri = self.http.uri("manifests", &target.to_string())?;
        let ask = |method| Ask {
            accept: Some(ACCEPT_MANIFEST),
            body_within: Some(self.http.limits.header),
            resolve: matches!(target, Target::Tag(_)),
            ..Ask::of(method, uri.clone())
        };
        let response = self.again(|| self.http.send(&ask(Method::HEAD)))?;
        // HEAD carries no explanation, and some refuse HEAD alone: what is the matter is then said by the GET.
        if response.status() == 200
            && let Some(descriptor) = self.described(target, &response)?
        {
            return Ok(Resolved { descriptor, body: None });
        }
        let (said, body) = self.whole(&ask(Method::GET), MAX_MANIFEST)?;
        let media_type = self.agreed(said.as_deref(), &body)?;
        let digest = match target {
            Target::Digest(digest) => digest.clone(),
            Target::Tag(_) => Digest::of(Algorithm::Sha256, &body),
        };
        let descriptor = Descriptor::new(media_type, digest, body.len() as u64);
        self.verify(&descriptor, &body)?;
        Ok(Resolved { descriptor, body: Some(body) })
    }

    /// The descriptor that a HEAD answer makes, if it is complete.
    fn described(&self, target: &Target, response: &Response<Body>) -> Result<Option<Descriptor>> {
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let digest = match (target, header("docker-content-digest")) {
            (Target::Digest(digest), _) => digest.clone(),
            (Target::Tag(_), None) => return Ok(None),
            (Target::Tag(_), Some(text)) => text
                .parse()
                .map_err(|e: Error| self.http.error(Error::data_loss, format!("sent a bad content digest: {e}")))?,
        };
        let size = header("content-length").and_then(|l| l.parse::<u64>().ok()).filter(|l| *l > 0);
        let (Some(size), Some(media_type)) = (size, media_type(response)) else { return Ok(None) };
        if !matches!(media::kind(&media_type), media::Kind::Manifest | media::Kind::Index) {
            return Ok(None);
        }
        if size > MAX_MANIFEST {
            return Err(self.too_big(MAX_MANIFEST));
        }
        Ok(Some(Descriptor::new(media_type, digest, size)))
    }

    /// The bytes of a manifest or index, verified against its descriptor.
    pub fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > MAX_MANIFEST {
            return Err(self.too_big(MAX_MANIFEST));
        }
        let ask = Ask {
            accept: Some(ACCEPT_MANIFEST),
            body_within: Some(self.http.limits.header),
            ..Ask::of(Method::GET, self.http.uri("manifests", &descriptor.digest.to_string())?)
        };
        let (said, body) = self.whole(&ask, descriptor.size)?;
        self.verify(descriptor, &body)?;
        // What leads to it says what it is, and so does the document, if it does. By its digest alone some caches don't know any
        // more which of two manifests it is, and say one.
        let (found, same) = match (self.inside(&body)?, said.as_deref().and_then(said_type)) {
            (Some(inside), _) => (inside.clone(), inside == descriptor.media_type),
            (None, Some(said)) => (said.to_owned(), media::kind(said) == media::kind(&descriptor.media_type)),
            (None, None) => return Ok(body),
        };
        if !same {
            let message =
                format!("sent {found} for {}, whose descriptor says {}", descriptor.digest, descriptor.media_type);
            return Err(self.http.error(Error::data_loss, message));
        }
        Ok(body)
    }

    /// A blob that is small enough to be read whole, such as a config, verified.
    pub fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > MAX_MANIFEST {
            return Err(self.too_big(MAX_MANIFEST));
        }
        let mut bytes = Vec::new();
        let read = self.blob(descriptor, 0)?.read_to_end(&mut bytes);
        read.map_err(|e| crate::from_io("blob", &descriptor.digest, "can't be read", e))?;
        self.verify(descriptor, &bytes)?;
        Ok(bytes)
    }

    /// A stream of a blob from `offset` on. It is exactly as long as the descriptor says, resumes by itself where a
    /// connection stops half-way, and does not verify the digest: whoever stores the bytes hashes them anyway.
    pub fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream<'_>> {
        BlobStream::open(self, descriptor, offset)
    }

    /// A stream of the part of a blob from `from` up to `to`. A registry that doesn't send parts sends all that follows too
    /// ([`BlobStream::end`]), or with `only` is `unimplemented`.
    pub fn part(&self, descriptor: &Descriptor, from: u64, to: u64, only: bool) -> Result<BlobStream<'_>> {
        BlobStream::part(self, descriptor, from, to, only)
    }

    /// Tries again what a registry that is busy or fails for a moment (429, 500, 502 to 504) or a connection that broke spoiled, a
    /// bounded number of times.
    fn again(&self, send: impl Fn() -> Result<Response<Body>, Fault>) -> Result<Response<Body>> {
        let mut pause = self.http.limits.backoff;
        for _ in 1..TRIES {
            let began = Instant::now();
            match send() {
                Ok(response) if !retry::passes(response.status().as_u16()) => return Ok(response),
                Ok(response) => match retry::after(response.headers()) {
                    // Who is asked waits for it.
                    Some(asked) if asked <= self.http.limits.patience => continue,
                    Some(_) => return Ok(response),
                    None => {}
                },
                Err(fault) => self.may_pass(fault, began)?,
            }
            self.cancel.wait(pause)?;
            pause *= 2;
        }
        Ok(send()?)
    }

    /// A document in one piece, and what its header calls it: asked for again where the connection ends before it does.
    fn whole(&self, ask: &Ask<'_>, limit: u64) -> Result<(Option<String>, Vec<u8>)> {
        let mut tried = 1;
        loop {
            let began = Instant::now();
            let response = self.again(|| self.http.send(ask))?;
            if response.status() != 200 {
                return Err(self.http.unexpected("manifest", response));
            }
            let said = media_type(&response);
            match self.bounded(response, limit) {
                Err(error) if tried < TRIES => {
                    let again = error.code == Code::Unavailable;
                    self.may_pass(Fault { again, ..error.into() }, began)?;
                }
                body => return Ok((said, body?)),
            }
            self.cancel.wait(self.http.limits.backoff * tried)?;
            tried += 1;
        }
    }

    /// Whether to try again: a connection that broke, but not one on which it was waited for long already.
    fn may_pass(&self, fault: Fault, began: Instant) -> Result<()> {
        // A cancelled job closes its sockets: what the socket says then is not the reason.
        self.cancel.check()?;
        let limits = &self.http.limits;
        if !fault.again || began.elapsed() >= limits.header.min(limits.connect) / 2 {
            return Err(fault.error);
        }
        tracing::debug!(error = %fault.error, "a question to a registry is asked again");
        Ok(())
    }

    fn bounded(&self, mut response: Response<Body>, limit: u64) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        let read = response.body_mut().as_reader().take(limit + 1).read_to_end(&mut body);
        read.map_err(|e| match e.downcast::<ureq::Error>() {
            Ok(e) => self.http.transport(&e, None),
            Err(e) => {
                self.http.error(Error::unavailable, format!("stopped in the middle of a manifest ({})", cause(&e)))
            }
        })?;
        match body.len() as u64 > limit {
            true => Err(self.too_big(limit)),
            false => Ok(body),
        }
    }

    fn too_big(&self, limit: u64) -> Error {
        self.http.error(Error::data_loss, format!("sent a manifest larger than the {limit} bytes that it may have"))
    }

    fn verify(&self, descriptor: &Descriptor, body: &[u8]) -> Result<()> {
        let (want, size) = (&descriptor.digest, body.len() as u64);
        if size != descriptor.size {
            let message = format!("sent {size} bytes for {want}, which has {}", descriptor.size);
            return Err(self.http.error(Error::data_loss, message));
        }
        let found = Digest::of(want.algorithm(), body);
        match found == *want {
            true => Ok(()),
            false => Err(self.http.error(Error::data_loss, format!("sent bytes of digest {found} for {want}"))),
        }
    }

    /// What a document says that it is.
    fn inside(&self, body: &[u8]) -> Result<Option<String>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Typed {
            media_type: Option<String>,
        }
        let typed = serde_json::from_slice::<Typed>(body);
        Ok(typed.map_err(|_| self.http.error(Error::data_loss, "sent a manifest that is not JSON"))?.media_type)
    }

    /// The media type on which header and document agree (M2 of the negative tests): were they to differ, two
    /// readers of the same bytes could see two images.
    fn agreed(&self, header: Option<&str>, body: &[u8]) -> Result<String> {
        let known = |t: &&str| matches!(media::kind(t), media::Kind::Manifest | media::Kind::Index);
        let (header, inside) = (header.and_then(said_type), self.inside(body)?);
        match (header, inside.as_deref()) {
            (Some(header), Some(inside)) if header != inside => Err(self
                .http
                .error(Error::data_loss, format!("sent a manifest as {header:?} that calls itself {inside:?}"))),
            (Some(one), _) | (None, Some(one)) if known(&one) => Ok(one.to_owned()),
            (Some(one), _) | (None, Some(one)) => Err(self.http.error(
                Error::unimplemented,
                format!("has {one:?} under this name, which is no image manifest that can be pulled"),
            )),
            (None, None) => Err(self.http.error(Error::data_loss, "sent a manifest that does not say what it is")),
        }
    }
}

/// A media type of a header that says more than that there are bytes.
fn said_type(header: &str) -> Option<&str> {
    Some(header).filter(|h| !matches!(*h, "application/json" | "application/octet-stream" | "text/plain"))
}

fn media_type(response: &Response<Body>) -> Option<String> {
    let value = response.headers().get("content-type")?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or(value).trim().to_ascii_lowercase())
}
