//! What is asked of a registry, by way of the hosts that the route to it names.

use std::{
    io::Read,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cofferdam_types::{Error, Result};
use serde::Deserialize;
use ureq::{
    Body,
    http::{Method, Response, Uri},
};

use super::{
    Endpoint, Limits, fault,
    guard::Origin,
    retry,
    tls::Roots,
    way::{Common, Fault, Way},
};
pub(super) use super::{fault::cause, way::join};
use crate::{Cancel, Reference};

const MAX_ERROR_BODY: u64 = 4 << 10;
/// Notes about hosts that were asked before.
const MAX_NOTES: usize = 8;

/// The connections to one registry on behalf of one job.
pub(super) struct Http {
    ways: Vec<Way>,
    /// The registry as the name says it.
    registry: String,
    common: Arc<Common>,
    pub path: String,
    pub limits: Limits,
    /// What became of hosts that were asked before others.
    notes: Mutex<Vec<String>>,
}

/// What is asked of a server.
pub(super) struct Ask<'a> {
    pub method: Method,
    pub uri: Uri,
    pub accept: Option<&'static str>,
    /// The first byte wanted.
    pub range: Option<u64>,
    /// With that the byte behind the last; `None`: all that follows.
    pub until: Option<u64>,
    /// Whether it is what a tag stands for.
    pub resolve: bool,
    /// Whether the registry's credentials may go along (while at its own origin).
    pub ours: bool,
    /// The whole body must be there by then.
    pub body_within: Option<Duration>,
    /// What goes along.
    pub content: Content<'a>,
}

impl Ask<'_> {
    /// A question that needs no more.
    pub fn of(method: Method, uri: Uri) -> Self {
        let (accept, range, until, body_within) = (None, None, None, None);
        Ask { method, uri, accept, range, until, resolve: false, ours: true, body_within, content: Content::None }
    }
}

/// The body of a request.
pub(super) enum Content<'a> {
    None,
    /// Of this media type.
    Bytes(&'a str, &'a [u8]),
    /// A blob's bytes from the first on, of so many; opened anew for each attempt.
    Stream {
        first: u64,
        length: u64,
        part: bool,
        open: &'a dyn Fn() -> Result<Box<dyn Read + 'a>>,
    },
}

/// What a job may do in its repository, and so what its tokens are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Read.
    #[default]
    Pull,
    /// Write too, and take blobs over from these repositories of the registry.
    Push(Vec<String>),
}

/// By which host an answer came.
#[derive(Clone, Copy)]
struct By(usize);

impl Http {
    /// Reads the operator's table; asks nobody yet.
    pub fn new(reference: &Reference, endpoint: &Endpoint, access: Access, cancel: &Cancel) -> Result<Http> {
        let steps = endpoint.routes.route(reference.host())?.of(&access)?;
        let common = Arc::new(Common {
            shown: reference.to_string(),
            path: reference.path().to_owned(),
            access,
            limits: endpoint.limits.clone(),
            cancel: cancel.clone(),
        });
        let roots = Roots::default();
        let ways = steps.into_iter().map(|step| Way::new(step, endpoint, &roots, &common)).collect::<Result<_>>()?;
        Ok(Http {
            ways,
            registry: super::bound(reference.host()),
            path: common.path.clone(),
            limits: common.limits.clone(),
            common,
            notes: Mutex::default(),
        })
    }

    /// Registry and repository, whatever the registry was called.
    pub fn place(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// A URL below the repository, on the first host: [`Http::send`] knows it on any other.
    pub fn uri(&self, kind: &str, what: &str) -> Result<Uri> {
        self.first()?.uri(kind, what)
    }

    /// Sends `ask`, and where it is something to be read by one host after the other (see `route`). Any status may come back.
    pub fn send(&self, ask: &Ask<'_>) -> Result<Response<Body>, Fault> {
        let text = ask.uri.to_string();
        let reads = ask.ours && matches!(ask.method, Method::GET | Method::HEAD);
        let Some(below) = self.first()?.below(&text).filter(|_| reads) else {
            // A place that a registry has named, or a foreign one.
            let at = Origin::of(&ask.uri);
            let n = self.ways.iter().position(|way| Some(&way.base) == at.as_ref()).unwrap_or(0);
            return self.ways[n].send(ask, &ask.uri).map(|response| by(response, n));
        };
        let may = |way: &Way| if ask.resolve { way.can.resolve } else { way.can.pull };
        let pushes = self.common.access != Access::Pull;
        let any = self.ways.iter().enumerate().filter(|(_, way)| pushes || may(way));
        let any: Vec<_> = any.collect();
        let alive: Vec<_> = any.iter().copied().filter(|(_, way)| !way.is_gone() && !way.is_busy()).collect();
        let mut asked = if alive.is_empty() { any } else { alive }.into_iter().peekable();
        while let Some((n, way)) = asked.next() {
            let last = asked.peek().is_none();
            let sent = way.at(below, &self.registry).map_err(Fault::from).and_then(|uri| way.send(ask, &uri));
            let why = match sent {
                Ok(response) if last || !moves_on(response.status().as_u16()) => return Ok(by(response, n)),
                Ok(response) => format!("answered {}", response.status().as_u16()),
                Err(fault) if last || !fault.passing => {
                    return Err(Fault { error: self.noted(fault.error), ..fault });
                }
                Err(fault) => {
                    // A cancelled job closes its sockets: what the socket says then is not the reason.
                    self.common.cancel.check()?;
                    way.set_gone();
                    // Which host it was stands before it already.
                    let said = fault.error.message;
                    said.strip_prefix(&format!("by way of {}: ", way.base)).map(str::to_owned).unwrap_or(said)
                }
            };
            tracing::warn!(image = %self.common.shown, host = %way.base, "{why}: the next host of the route is asked");
            self.note(format!("{} {why}", way.base));
        }
        let what = if ask.resolve {
            "may say what a tag stands for: name the image by its digest"
        } else {
            "may be pulled from"
        };
        Err(Error::failed_precondition("hosts", &self.registry, format!("has a route on which no host {what}")).into())
    }

    fn first(&self) -> Result<&Way> {
        self.ways.first().ok_or_else(|| Error::internal("registry", &self.common.shown, "has a route without a host"))
    }

    fn note(&self, what: String) {
        let mut notes = self.notes();
        if notes.len() < MAX_NOTES && !notes.contains(&what) {
            notes.push(what);
        }
    }

    /// With what became of hosts that were asked before.
    fn noted(&self, mut error: Error) -> Error {
        let notes = self.notes();
        if !notes.is_empty() {
            error.message = format!("{} (before that: {})", error.message, notes.join("; "));
        }
        error
    }

    /// The error that a status other than the wanted one stands for, with what the registry says about it. `what` it was asked
    /// for, in a word.
    pub fn unexpected(&self, what: &str, response: Response<Body>) -> Error {
        let status = response.status().as_u16();
        let n = response.extensions().get::<By>().map_or(0, |by| by.0);
        let Some(way) = self.ways.get(n) else { return self.error(Error::internal, "answered by nobody") };
        let alone =
            retry::after(response.headers()).map(|time| format!(", for {} s", time.as_secs())).unwrap_or_default();
        let said = said(way, response);
        let act = way.act();
        self.noted(match status {
            401 => way.refused(),
            403 => way.error(
                Error::denied,
                format!(
                    "the registry forbids this {what}{said}: ask for the right to {act} it, or log in as another user"
                ),
            ),
            404 => way.error(Error::not_found, format!("the registry has no such {what}{said}: check the name")),
            429 => way.error(
                Error::unavailable,
                format!(
                    "the registry counts too many requests and wants to be left alone{alone}{said}: wait, or log in"
                ),
            ),
            500..=599 => way.error(
                Error::unavailable,
                format!("the registry fails with status {status} for this {what}{said}: try again later"),
            ),
            _ => way.error(
                Error::failed_precondition,
                format!("the registry answered for this {what} with unexpected status {status}{said}"),
            ),
        })
    }

    /// A failure of the transport in the middle of a body.
    pub fn transport(&self, error: &ureq::Error, at: Option<&Origin>) -> Error {
        let https = at.map_or_else(|| self.ways.iter().any(|way| way.base.https), |at| at.https);
        let (make, message) = fault::transport(error, at, None, https);
        self.error(make, message)
    }

    /// An error about the reference that the operator wrote.
    pub fn error(&self, make: fn(&'static str, String, String) -> Error, message: impl Into<String>) -> Error {
        self.noted(make("registry", self.common.shown.clone(), message.into()))
    }

    fn notes(&self) -> MutexGuard<'_, Vec<String>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a status says that another host may have it.
fn moves_on(status: u16) -> bool {
    matches!(status, 404 | 429 | 500..=599)
}

fn by(mut response: Response<Body>, n: usize) -> Response<Body> {
    response.extensions_mut().insert(By(n));
    response
}

/// The registry's own explanation, if it is one that can be shown.
fn said(way: &Way, mut response: Response<Body>) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut text = Vec::new();
    let _ = response.body_mut().as_reader().take(MAX_ERROR_BODY).read_to_end(&mut text);
    let Ok(Errors { errors }) = serde_json::from_slice(&text) else { return String::new() };
    let Some(first) = errors.first() else { return String::new() };
    let shown: String =
        format!("{} {}", first.code, first.message).chars().filter(|c| !c.is_control()).take(200).collect();
    // A server may send back what it was sent (D8).
    let secrets = way.secrets();
    if secrets.iter().any(|s| s.len() < 4 || shown.contains(s.get(..s.len().min(16)).unwrap_or(s))) {
        return String::new();
    }
    format!(" ({})", shown.trim())
}
