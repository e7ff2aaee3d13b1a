//! One host of a route: redirects, challenges, and what may go along where.
//!
//! Redirects are followed here and not by the library, because what may go along depends on where they lead: the
//! `Authorization` header, and what the operator's table adds, only ever go to the host's own origin, and never again once an
//! exchange has left it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cofferdam_types::{Code, Error, Result};
use ureq::{
    Agent, AsSendBody, Body, SendBody,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, request::Builder},
    unversioned::{resolver::DefaultResolver, transport::DefaultConnector},
};

use super::{
    Access, Credentials, Endpoint, Limits,
    auth::{self, Bearer, Challenge},
    fault,
    guard::{self, GuardedResolver, Origin},
    hosts::Can,
    http::{Ask, Content},
    proxy::Proxies,
    retry,
    route::Step,
    tls::{self, Roots},
};
use crate::Cancel;

const MAX_REDIRECTS: usize = 5;
const MAX_CHALLENGES: usize = 2;
const MAX_HEADER: usize = 64 << 10;

/// What all hosts of a route have in common.
pub(super) struct Common {
    /// For messages: what the operator wrote.
    pub shown: String,
    pub path: String,
    pub access: Access,
    pub limits: Limits,
    pub cancel: Cancel,
}

/// Why an exchange failed.
#[derive(Debug)]
pub(super) struct Fault {
    pub error: Error,
    /// Whether another host may be asked instead.
    pub passing: bool,
    /// Whether the same may be asked again.
    pub again: bool,
    /// Nobody was there, or the connection broke: whoever waits for a network waits for that, and for no answer.
    pub nobody: bool,
    /// For how long who answered asks to be left alone.
    pub asked: Option<Duration>,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault { passing: error.code == Code::Unavailable, again: false, nobody: false, asked: None, error }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        fault.error
    }
}

#[derive(Default)]
struct Auth {
    header: Option<String>,
    /// Grows with every new header: a request that was refused under an older one just tries again.
    generation: u64,
    /// What the header was got for, and until when it is good.
    token: Option<(Bearer, Option<Instant>)>,
}

/// The connections to one host on behalf of one job.
pub(super) struct Way {
    pub agent: Agent,
    /// Scheme, host and port: what credentials are bound to.
    pub base: Origin,
    /// The address of the repository, without what follows it.
    root: String,
    /// Whether it is the registry that the name says.
    pub own: bool,
    pub can: Can,
    headers: Vec<(HeaderName, HeaderValue)>,
    pub credentials: Option<Credentials>,
    /// There are some, and the call's own way is none for them.
    pub withheld: bool,
    pub realms: Vec<String>,
    named: Arc<str>,
    proxies: Proxies,
    auth: Mutex<Auth>,
    /// It asked to be left alone until then.
    busy: Mutex<Option<Instant>>,
    gone: AtomicBool,
    pub common: Arc<Common>,
}

impl Way {
    pub fn new(step: Step, endpoint: &Endpoint, roots: &Roots, common: &Arc<Common>) -> Result<Way> {
        let own = step.own;
        let certified = own && (endpoint.ca.is_some() || endpoint.identity.is_some());
        let https = step.https(certified) && !(own && endpoint.plain_http);
        let scheme = if https { "https" } else { "http" };
        let text = format!("{scheme}://{}{}/", step.place.authority, step.place.path);
        let no_url = || Error::invalid("reference", &common.shown, "its host does not make a URL");
        let uri: Uri = text.parse().map_err(|_| no_url())?;
        let base = Origin::of(&uri).ok_or_else(no_url)?;
        let root = format!("{scheme}://{}{}/{}", base, step.place.path, common.path);
        // What is stored was given for the host as the operator reaches it: whoever calls may not choose another way for it.
        let changed = own && (endpoint.plain_http || endpoint.ca.is_some());
        let given = endpoint.credentials.clone().filter(|_| own);
        let stored = if given.is_none() { endpoint.wallet.find(step.key())? } else { None };
        let (withheld, stored) = (changed && stored.is_some(), stored.filter(|_| !changed));
        let limits = &common.limits;
        let connect = step.manner.dial.unwrap_or(limits.connect);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // One for each exchange: it depends on whom that is with.
            .proxy(None)
            .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(MAX_HEADER)
            .max_idle_connections_per_host(limits.connections)
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .timeout_send_request(Some(limits.header))
            // The whole header, not one read of it: one byte a second is no progress (D5).
            .timeout_recv_response(Some(limits.header))
            .timeout_per_read(Some(limits.idle))
            .timeout_per_write(Some(limits.idle));
        if https {
            let (ca, identity) = (endpoint.ca.as_deref().filter(|_| own), endpoint.identity.as_ref().filter(|_| own));
            config = config.tls_config(tls::config(&step.manner, ca, identity, roots)?);
        }
        let named: Arc<str> = base.host.as_str().into();
        let proxies = endpoint.routes.proxies.clone();
        let resolver =
            GuardedResolver { named: named.clone(), proxies: proxies.clone(), inner: DefaultResolver::default() };
        let agent = Agent::with_parts(config.build(), DefaultConnector::default(), resolver);
        let closing = agent.clone();
        common.cancel.on_cancel(move || closing.shutdown());
        let mut realms: Vec<String> = step.manner.realms;
        if own {
            realms.extend(endpoint.trusted_realms.iter().cloned());
        }
        if base.host == "registry-1.docker.io" {
            realms.push("auth.docker.io".into());
        }
        Ok(Way {
            agent,
            base,
            root,
            own,
            can: step.manner.can,
            headers: step.manner.headers,
            credentials: given.or(stored),
            withheld,
            realms,
            named,
            proxies,
            auth: Mutex::default(),
            busy: Mutex::default(),
            gone: AtomicBool::new(false),
            common: common.clone(),
        })
    }

    /// A URL below the repository.
    pub fn uri(&self, kind: &str, what: &str) -> Result<Uri> {
        let uri = format!("{}/{kind}/{what}", self.root).parse();
        uri.map_err(|_| Error::invalid("reference", &self.common.shown, "does not make a URL"))
    }

    /// What follows the repository in one of its URLs.
    pub fn below<'u>(&self, uri: &'u str) -> Option<&'u str> {
        uri.strip_prefix(&self.root)?.strip_prefix('/')
    }

    /// The same on this host. A host that serves several registries is told which one is meant.
    pub fn at(&self, below: &str, registry: &str) -> Result<Uri> {
        let mark = if below.contains('?') { '&' } else { '?' };
        let tail = if self.own { String::new() } else { format!("{mark}ns={registry}") };
        let uri = format!("{}/{below}{tail}", self.root).parse();
        uri.map_err(|_| Error::invalid("reference", &self.common.shown, "does not make a URL"))
    }

    /// It couldn't be reached.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub fn set_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// It asked to be left alone.
    pub fn is_busy(&self) -> bool {
        self.busy().is_some_and(|until| until > Instant::now())
    }

    /// Sends `ask` and follows redirects and challenges until there is an answer. Any status may come back.
    pub fn send(&self, ask: &Ask<'_>, uri: &Uri) -> Result<Response<Body>, Fault> {
        let (mut uri, mut ours) = (uri.clone(), ask.ours);
        let (mut redirects, mut challenges) = (0, 0);
        self.let_be()?;
        loop {
            let origin = self.origin(&uri)?;
            ours &= origin == self.base;
            let (header, generation) = if ours { self.authorization()? } else { (None, 0) };
            let response = self.once(ask, &uri, &origin, ours, header.as_deref())?;
            match response.status().as_u16() {
                // They would have it asked again as a GET.
                301..=303 if !matches!(ask.method, Method::GET | Method::HEAD) => {
                    return Err(self.error(Error::unavailable, "redirects what is written to it").into());
                }
                301 | 302 | 303 | 307 | 308 => {
                    redirects += 1;
                    if redirects > MAX_REDIRECTS {
                        return Err(self.error(Error::unavailable, "redirects without end").into());
                    }
                    let next = response.headers().get("location").and_then(|l| l.to_str().ok());
                    let next = next.and_then(|location| join(&uri, location));
                    let next = next.ok_or_else(|| self.error(Error::unavailable, "redirects to what is not a URL"))?;
                    if origin.https && next.scheme_str() != Some("https") {
                        return Err(self.error(Error::denied, "redirects from https to plain http: refused").into());
                    }
                    uri = next;
                }
                401 if ours && challenges < MAX_CHALLENGES => {
                    challenges += 1;
                    self.answer(response.headers(), generation, header.as_deref(), challenges > 1)?;
                }
                status => {
                    if retry::passes(status) {
                        self.note(retry::after(response.headers()));
                    }
                    return Ok(response);
                }
            }
        }
    }

    /// Waits for as long as it asked to be left alone.
    pub fn let_be(&self) -> Result<()> {
        let left = self.busy().map(|until| until.saturating_duration_since(Instant::now()));
        match left.filter(|left| !left.is_zero()) {
            Some(left) => self.common.cancel.wait(left),
            None => Ok(()),
        }
    }

    /// Notes for how long it asks to be left alone. What is too long to be waited for is for who asked to say.
    pub fn note(&self, asked: Option<Duration>) {
        if let Some(asked) = asked.filter(|asked| *asked <= self.common.limits.patience) {
            *self.busy() = Some(Instant::now() + asked);
        }
    }

    pub fn origin(&self, uri: &Uri) -> Result<Origin> {
        let origin =
            Origin::of(uri).ok_or_else(|| self.error(Error::unavailable, "leads to what is not an http(s) URL"))?;
        guard::check(&origin, &self.named)
            .map_err(|e| e.context(format!("{} leads to {}", self.common.shown, origin.host)))?;
        Ok(origin)
    }

    fn once(
        &self,
        ask: &Ask<'_>,
        uri: &Uri,
        origin: &Origin,
        ours: bool,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, Fault> {
        let mut request = Request::builder().method(&ask.method).uri(uri);
        if let Some(accept) = ask.accept {
            request = request.header("accept", accept);
        }
        if let Some(first) = ask.range {
            let last = ask.until.map(|until| until.saturating_sub(1).to_string()).unwrap_or_default();
            request = request.header("range", format!("bytes={first}-{last}"));
        }
        if ours {
            for (name, value) in
                self.headers.iter().filter(|(name, _)| authorization.is_none() || name != "authorization")
            {
                request = request.header(name, value);
            }
        }
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        // What the server packs on the way would be counted and hashed packed.
        request = request.header("accept-encoding", "identity");
        match &ask.content {
            Content::None if matches!(ask.method, Method::GET | Method::HEAD) => self.run(ask, origin, request, ()),
            Content::None => self.run(ask, origin, request.header("content-length", 0), ()),
            Content::Bytes(kind, bytes) => self.run(ask, origin, request.header("content-type", *kind), *bytes),
            Content::Stream { first, length, part, open } => {
                request = request.header("content-type", "application/octet-stream").header("content-length", *length);
                if *part {
                    request =
                        request.header("content-range", format!("{first}-{}", (first + length).saturating_sub(1)));
                }
                let mut stream = open()?;
                self.run(ask, origin, request, SendBody::from_reader(&mut *stream))
            }
        }
    }

    fn run(
        &self,
        ask: &Ask<'_>,
        origin: &Origin,
        request: Builder,
        body: impl AsSendBody,
    ) -> Result<Response<Body>, Fault> {
        let request = request.body(body).map_err(|_| self.error(Error::invalid, "does not make a request"))?;
        let proxy = self.proxy_to(origin);
        let (limits, request) = (&self.common.limits, self.agent.configure_request(request).proxy(proxy));
        // The wait for an answer is a read too, and no read may take longer than it may by itself: `idle` is for a blob's bytes.
        let request = match (ask.body_within, &ask.method) {
            // It stores what it got before it answers; what it says then is short.
            (_, &Method::PUT | &Method::PATCH | &Method::POST) => {
                let store = Some(limits.store);
                request.timeout_recv_response(store).timeout_per_read(store).timeout_recv_body(Some(limits.header))
            }
            (Some(within), _) => request.timeout_per_read(Some(limits.header)).timeout_recv_body(Some(within)),
            (None, _) => request,
        };
        self.agent.run(request.build()).map_err(|e| self.failed(&e, origin))
    }

    /// The proxy by which a host is reached.
    pub fn proxy_to(&self, origin: &Origin) -> Option<ureq::Proxy> {
        self.proxies.to(origin).cloned()
    }

    /// A failure of the transport to a host.
    pub fn failed(&self, error: &ureq::Error, at: &Origin) -> Fault {
        let proxy = self.proxies.shown_to(at);
        let (make, message) = fault::transport(error, Some(at), proxy.as_deref(), at.https);
        let fault = Fault::from(self.error(make, message));
        // Whoever can't be trusted may not be there the next time: then another would be asked in his place.
        let passing = fault.passing && !fault::is_distrust(error, at.https);
        Fault { passing, again: passing, nobody: passing, ..fault }
    }

    /// The header of the next exchange. A token that has ended is replaced first: an upload would be sent in vain with it.
    fn authorization(&self) -> Result<(Option<String>, u64), Fault> {
        let mut auth = self.auth();
        let ended = auth.token.as_ref().filter(|(_, until)| until.is_some_and(|until| until <= Instant::now()));
        if let Some(bearer) = ended.map(|(bearer, _)| bearer.clone()) {
            self.renew(&mut auth, bearer)?;
        }
        Ok((auth.header.clone(), auth.generation))
    }

    /// Answers a 401: the next request carries what it asked for, or there is a reason why not. `again`: what this very exchange
    /// has got was refused.
    fn answer(&self, headers: &HeaderMap, generation: u64, sent: Option<&str>, again: bool) -> Result<(), Fault> {
        // Held through the token request: of four refused connections one asks, three take its answer.
        let mut auth = self.auth();
        if auth.generation != generation {
            return Ok(());
        }
        match auth::challenge(headers) {
            Some(Challenge::Bearer(bearer)) => {
                let bearer_sent = sent.is_some_and(|s| s.starts_with("Bearer "));
                if again && bearer_sent && bearer.error.as_deref() != Some("invalid_token") {
                    return Err(self.refused().into());
                }
                self.renew(&mut auth, bearer)
            }
            Some(Challenge::Basic) => match &self.credentials {
                Some(_) if sent.is_some() => Err(self.refused().into()),
                Some(credentials) if credentials.user.is_empty() => {
                    let why = "wants a user and a password, and there is an identity token for it";
                    Err(self.error(Error::denied, why).into())
                }
                Some(credentials) => {
                    auth.header = Some(credentials.basic());
                    auth.token = None;
                    auth.generation += 1;
                    Ok(())
                }
                None => Err(self.refused().into()),
            },
            None => Err(self.error(Error::denied, "wants an authentication that is neither Basic nor Bearer").into()),
        }
    }

    fn renew(&self, auth: &mut Auth, bearer: Bearer) -> Result<(), Fault> {
        let (header, lasts) = self.token(&bearer)?;
        auth.header = Some(header);
        auth.token = Some((bearer, lasts.map(|lasts: Duration| Instant::now() + lasts)));
        auth.generation += 1;
        Ok(())
    }

    /// What may not be shown to anybody.
    pub fn secrets(&self) -> Vec<String> {
        let auth = self.auth();
        let mut secrets: Vec<String> =
            auth.header.iter().filter_map(|h| h.split(' ').nth(1).map(str::to_owned)).collect();
        secrets.extend(self.credentials.iter().map(|c| c.secret.clone()));
        let added = self.headers.iter().filter_map(|(_, value)| value.to_str().ok().map(str::to_owned));
        // What is shorter is no secret, and in every text.
        secrets.extend(added.filter(|value| value.len() >= 8));
        secrets
    }

    /// An error about the reference that the operator wrote.
    pub fn error(&self, make: fn(&'static str, String, String) -> Error, message: impl Into<String>) -> Error {
        let message = message.into();
        let message = if self.own { message } else { format!("by way of {}: {message}", self.base) };
        make("registry", self.common.shown.clone(), message)
    }

    fn auth(&self) -> MutexGuard<'_, Auth> {
        self.auth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn busy(&self) -> MutexGuard<'_, Option<Instant>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where `location` leads, seen from `base` (RFC 3986, 5.2, as far as servers use it).
pub(super) fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split_once('#').map_or(location, |(l, _)| l);
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    let text = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(d, _)| d);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base: Uri = "https://h.io:1/v2/a/blobs/x?y".parse().unwrap();
        for (location, want) in [
            ("https://s.io/z?sig=1#f", "https://s.io/z?sig=1"),
            ("//s.io/z", "https://s.io/z"),
            ("/z?q", "https://h.io:1/z?q"),
            ("z", "https://h.io:1/v2/a/blobs/z"),
        ] {
            assert_eq!(join(&base, location).unwrap().to_string(), want);
        }
        assert!(join(&base, "http://a b/").is_none());
    }
}
