//! One exchange with a registry: redirects, challenges, limits, and errors in our own words.
//!
//! Redirects are followed here and not by the library, because what may go along depends on where they lead: the
//! `Authorization` header only ever goes to the registry's own origin, and never again once an exchange has left it.

use std::{
    fmt,
    io::{self, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cofferdam_types::{Error, Result};
use serde::Deserialize;
use ureq::{
    Agent, AsSendBody, Body, SendBody, Timeout,
    http::{HeaderMap, Method, Request, Response, Uri, request::Builder},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
    unversioned::{resolver::DefaultResolver, transport::DefaultConnector},
};

use super::{
    Credentials, Endpoint, Limits,
    auth::{self, Challenge, TokenReply},
    guard::{self, GuardedResolver, Origin},
};
use crate::{Cancel, Reference};

const MAX_REDIRECTS: usize = 5;
const MAX_CHALLENGES: usize = 2;
const MAX_HEADER: usize = 64 << 10;
const MAX_TOKEN_REPLY: u64 = 64 << 10;
const MAX_ERROR_BODY: u64 = 4 << 10;

/// The connections to one registry on behalf of one job.
pub(super) struct Http {
    agent: Agent,
    /// Scheme, host and port of the registry: what credentials are bound to.
    pub base: Origin,
    named: Arc<str>,
    /// For messages: what the operator wrote.
    pub shown: String,
    pub path: String,
    access: Access,
    credentials: Option<Credentials>,
    trusted_realms: Vec<String>,
    auth: Mutex<Auth>,
    pub limits: Limits,
}

#[derive(Default)]
struct Auth {
    header: Option<String>,
    /// Grows with every new header: a request that was refused under an older one just tries again.
    generation: u64,
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
        Ask {
            method,
            uri,
            accept: None,
            range: None,
            until: None,
            ours: true,
            body_within: None,
            content: Content::None,
        }
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

impl Http {
    pub fn new(reference: &Reference, endpoint: &Endpoint, access: Access, cancel: &Cancel) -> Result<Http> {
        let shown = reference.to_string();
        let written = match reference.host() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let https = !(endpoint.plain_http
            || (endpoint.ca.is_none() && guard::is_loopback(written.rsplit_once(':').map_or(written, |(h, _)| h))));
        let scheme = if https { "https" } else { "http" };
        let uri: Uri = format!("{scheme}://{written}/v2/")
            .parse()
            .map_err(|_| Error::invalid("reference", &shown, "its host does not make a URL"))?;
        let base =
            Origin::of(&uri).ok_or_else(|| Error::invalid("reference", &shown, "its host does not make a URL"))?;
        let named: Arc<str> = base.host.as_str().into();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(MAX_HEADER)
            .max_idle_connections_per_host(endpoint.limits.connections)
            .timeout_resolve(Some(endpoint.limits.connect))
            .timeout_connect(Some(endpoint.limits.connect))
            .timeout_send_request(Some(endpoint.limits.header))
            // The whole header, not one read of it: one byte a second is no progress (D5).
            .timeout_recv_response(Some(endpoint.limits.header))
            .timeout_per_read(Some(endpoint.limits.idle))
            .timeout_per_write(Some(endpoint.limits.idle));
        if guard::is_loopback(&base.host) {
            // A proxy's idea of "this machine" is another machine.
            config = config.proxy(None);
        }
        if https {
            config = config.tls_config(TlsConfig::builder().root_certs(roots(endpoint.ca.as_deref())?).build());
        }
        let resolver = GuardedResolver { named: named.clone(), inner: DefaultResolver::default() };
        let agent = Agent::with_parts(config.build(), DefaultConnector::default(), resolver);
        let closing = agent.clone();
        cancel.on_cancel(move || closing.shutdown());
        let mut trusted_realms: Vec<String> = endpoint.trusted_realms.iter().map(|h| guard::bare(h)).collect();
        if reference.host() == "docker.io" {
            trusted_realms.push("auth.docker.io".into());
        }
        Ok(Http {
            agent,
            base,
            named,
            shown,
            path: reference.path().to_owned(),
            access,
            credentials: endpoint.credentials.clone(),
            trusted_realms,
            auth: Mutex::default(),
            limits: endpoint.limits.clone(),
        })
    }

    /// A URL below the repository.
    pub fn uri(&self, kind: &str, what: &str) -> Result<Uri> {
        let scheme = if self.base.https { "https" } else { "http" };
        let host = if self.base.host.contains(':') { format!("[{}]", self.base.host) } else { self.base.host.clone() };
        format!("{scheme}://{host}:{}/v2/{}/{kind}/{what}", self.base.port, self.path)
            .parse()
            .map_err(|_| Error::invalid("reference", &self.shown, "does not make a URL"))
    }

    /// Sends `ask` and follows redirects and challenges until there is an answer. Any status may come back.
    pub fn send(&self, ask: &Ask<'_>) -> Result<Response<Body>> {
        let mut uri = ask.uri.clone();
        let mut ours = ask.ours;
        let (mut redirects, mut challenges) = (0, 0);
        loop {
            let origin = self.origin(&uri)?;
            ours &= origin == self.base;
            let (header, generation) = match ours {
                true => {
                    let auth = self.auth();
                    (auth.header.clone(), auth.generation)
                }
                false => (None, 0),
            };
            let response = self.once(ask, &uri, header.as_deref())?;
            match response.status().as_u16() {
                // They would have it asked again as a GET.
                301..=303 if !matches!(ask.method, Method::GET | Method::HEAD) => {
                    return Err(self.error(Error::unavailable, "redirects what is written to it"));
                }
                301 | 302 | 303 | 307 | 308 => {
                    redirects += 1;
                    if redirects > MAX_REDIRECTS {
                        return Err(self.error(Error::unavailable, "redirects without end"));
                    }
                    let next = response.headers().get("location").and_then(|l| l.to_str().ok());
                    let next = next.and_then(|location| join(&uri, location));
                    let next = next.ok_or_else(|| self.error(Error::unavailable, "redirects to what is not a URL"))?;
                    if origin.https && next.scheme_str() != Some("https") {
                        return Err(self.error(Error::denied, "redirects from https to plain http: refused"));
                    }
                    uri = next;
                }
                401 if ours && challenges < MAX_CHALLENGES => {
                    challenges += 1;
                    self.answer(response.headers(), generation, header.as_deref())?;
                }
                _ => return Ok(response),
            }
        }
    }

    fn origin(&self, uri: &Uri) -> Result<Origin> {
        let origin =
            Origin::of(uri).ok_or_else(|| self.error(Error::unavailable, "leads to what is not an http(s) URL"))?;
        guard::check(&origin, &self.named)
            .map_err(|e| e.context(format!("{} leads to {}", self.shown, origin.host)))?;
        Ok(origin)
    }

    fn once(&self, ask: &Ask<'_>, uri: &Uri, authorization: Option<&str>) -> Result<Response<Body>> {
        let mut request = Request::builder().method(&ask.method).uri(uri);
        if let Some(accept) = ask.accept {
            request = request.header("accept", accept);
        }
        if let Some(first) = ask.range {
            let last = ask.until.map(|until| until.saturating_sub(1).to_string()).unwrap_or_default();
            request = request.header("range", format!("bytes={first}-{last}"));
        }
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        // What the server packs on the way would be counted and hashed packed.
        request = request.header("accept-encoding", "identity");
        match &ask.content {
            Content::None if matches!(ask.method, Method::GET | Method::HEAD) => self.run(ask, uri, request, ()),
            Content::None => self.run(ask, uri, request.header("content-length", 0), ()),
            Content::Bytes(kind, bytes) => self.run(ask, uri, request.header("content-type", *kind), *bytes),
            Content::Stream { first, length, part, open } => {
                request = request.header("content-type", "application/octet-stream").header("content-length", *length);
                if *part {
                    request =
                        request.header("content-range", format!("{first}-{}", (first + length).saturating_sub(1)));
                }
                let mut stream = open()?;
                self.run(ask, uri, request, SendBody::from_reader(&mut *stream))
            }
        }
    }

    fn run(&self, ask: &Ask<'_>, uri: &Uri, request: Builder, body: impl AsSendBody) -> Result<Response<Body>> {
        let request = request.body(body).map_err(|_| self.error(Error::invalid, "does not make a request"))?;
        let mut request = self.agent.configure_request(request).timeout_recv_body(ask.body_within);
        if !matches!(ask.method, Method::GET | Method::HEAD) {
            // It stores what it got before it answers.
            request = request.timeout_recv_response(Some(self.limits.store));
        }
        self.agent.run(request.build()).map_err(|e| self.transport(&e, Origin::of(uri).as_ref()))
    }

    /// Answers a 401: the next request carries what it asked for, or there is a reason why not.
    fn answer(&self, headers: &HeaderMap, generation: u64, sent: Option<&str>) -> Result<()> {
        // Held through the token request: of four refused connections one asks, three take its answer.
        let mut auth = self.auth();
        if auth.generation != generation {
            return Ok(());
        }
        let header = match auth::challenge(headers) {
            Some(Challenge::Bearer { realm, service, scope, error }) => {
                if sent.is_some_and(|s| s.starts_with("Bearer ")) && error.as_deref() != Some("invalid_token") {
                    return Err(self.refused());
                }
                self.token(&realm, service.as_deref(), scope.as_deref())?
            }
            Some(Challenge::Basic) => match &self.credentials {
                Some(_) if sent.is_some() => return Err(self.refused()),
                Some(credentials) => credentials.basic(),
                None => return Err(self.refused()),
            },
            None => return Err(self.error(Error::denied, "wants an authentication that is neither Basic nor Bearer")),
        };
        auth.header = Some(header);
        auth.generation += 1;
        Ok(())
    }

    fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String> {
        let realm: Uri =
            realm.parse().map_err(|_| self.error(Error::denied, "names a token realm that is not a URL"))?;
        let origin = self.origin(&realm)?;
        let trusted = realm_trust(&self.base, &origin, &self.trusted_realms)
            .ok_or_else(|| self.error(Error::denied, "names a token realm over plain http: refused"))?;
        let credentials = self.credentials.as_ref().filter(|_| trusted);
        let mut fields: Vec<(&str, String)> = service.map(|s| ("service", s.to_owned())).into_iter().collect();
        let scopes = auth::scopes(&self.path, &self.access, scope);
        let unsendable = |_| self.error(Error::denied, "names a token realm that is not a URL");
        let within = Some(self.limits.header);
        let answer = match credentials {
            // Only a refresh token needs the OAuth2 form; everybody takes the other.
            Some(c) if c.user.is_empty() => {
                fields.push(("scope", scopes.join(" ")));
                fields.push(("client_id", "cofferdam".into()));
                fields.push(("grant_type", "refresh_token".into()));
                fields.push(("refresh_token", c.secret.clone()));
                let request = Request::post(realm).header("content-type", "application/x-www-form-urlencoded");
                let request = request.body(form(&fields)).map_err(unsendable)?;
                self.agent.run(self.agent.configure_request(request).timeout_recv_body(within).build())
            }
            other => {
                fields.extend(scopes.into_iter().map(|s| ("scope", s)));
                let mark = if realm.query().is_some() { '&' } else { '?' };
                let mut request = Request::get(format!("{realm}{mark}{}", form(&fields)));
                if let Some(c) = other {
                    request = request.header("authorization", c.basic());
                }
                let request = request.body(()).map_err(unsendable)?;
                self.agent.run(self.agent.configure_request(request).timeout_recv_body(within).build())
            }
        };
        let mut response = answer.map_err(|e| self.transport(&e, Some(&origin)))?;
        let status = response.status().as_u16();
        if status != 200 {
            let what = format!("its authorization server {} answered {status}", origin.host);
            return Err(match status {
                401 | 403 if self.credentials.is_some() && !trusted => self.error(
                    Error::denied,
                    format!("{what}; it is not the registry's own host, so your credentials were not sent: trust it by name if it is right"),
                ),
                400..=403 => self.refused().context(what),
                _ => self.error(Error::unavailable, what),
            });
        }
        let mut text = Vec::new();
        let read = response.body_mut().as_reader().take(MAX_TOKEN_REPLY).read_to_end(&mut text);
        read.map_err(|_| self.error(Error::unavailable, "its authorization server stopped half-way"))?;
        let reply: TokenReply = serde_json::from_slice(&text)
            .map_err(|_| self.error(Error::denied, "its authorization server sent no token"))?;
        reply.header(&origin.host)
    }

    /// What is done with the repository, in a word.
    fn act(&self) -> &'static str {
        if self.access == Access::Pull { "pull" } else { "push to" }
    }

    fn refused(&self) -> Error {
        let act = self.act();
        self.error(Error::denied, match self.credentials {
            Some(_) => format!("the registry refused the user and secret: check them, and that they may {act} this repository"),
            None => format!("the registry lets nobody {act} this without credentials (or it does not exist): give a user and a secret"),
        })
    }

    /// The error that a status other than the wanted one stands for, with what the registry says about it.
    pub fn unexpected(&self, what: &str, response: Response<Body>) -> Error {
        let status = response.status().as_u16();
        let said = self.said(response);
        match status {
            401 => self.refused(),
            403 => self.error(
                Error::denied,
                format!(
                    "the registry forbids {what}{said}: ask for the right to {} it, or log in as another user",
                    self.act()
                ),
            ),
            404 => self.error(Error::not_found, format!("the registry has no such {what}{said}: check the name")),
            429 => {
                self.error(Error::unavailable, format!("the registry counts too many requests{said}: wait, or log in"))
            }
            500..=599 => self.error(
                Error::unavailable,
                format!("the registry fails with status {status} for {what}{said}: try again later"),
            ),
            _ => self.error(
                Error::failed_precondition,
                format!("the registry answered {what} with unexpected status {status}{said}"),
            ),
        }
    }

    /// The registry's own explanation, if it is one that can be shown.
    fn said(&self, mut response: Response<Body>) -> String {
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
        let mut secrets: Vec<String> =
            self.auth().header.iter().filter_map(|h| h.split(' ').nth(1).map(str::to_owned)).collect();
        secrets.extend(self.credentials.iter().map(|c| c.secret.clone()));
        if secrets.iter().any(|s| s.len() < 4 || shown.contains(s.get(..s.len().min(16)).unwrap_or(s))) {
            return String::new();
        }
        format!(" ({})", shown.trim())
    }

    /// A failure of the transport in our own words: the library's could hold a URL with a signature in its query.
    /// `at`: whom it was about to be spoken to; `None` in the middle of a body.
    pub fn transport(&self, error: &ureq::Error, at: Option<&Origin>) -> Error {
        use io::ErrorKind as K;
        use ureq::Error as E;
        let peer = at.map_or_else(|| "it".to_owned(), Origin::to_string);
        let unavailable = |message: String| self.error(Error::unavailable, message);
        let unreached = |why: &str| {
            unavailable(format!(
                "cannot be reached at {peer}: {why}: check its name and port, that it runs there, and the network"
            ))
        };
        match error {
            E::HostNotFound => unreached("the host is not known to the name service"),
            E::Timeout(Timeout::Resolve) => unreached("the name service didn't answer in time"),
            E::Timeout(Timeout::Connect) => unreached("no answer in time"),
            E::Timeout(_) => unavailable("went silent or too slow: try again later".into()),
            E::Io(e) if e.to_string() == guard::REFUSED => self.error(Error::denied, guard::REFUSED),
            // What rustls makes of a certificate or of bytes that are no TLS.
            E::Io(e) if e.kind() == K::InvalidData && self.base.https => self.untrusted(e),
            E::Io(e) if lookup(e).is_some() => unreached(&lookup(e).unwrap_or_default()),
            E::ConnectionFailed => unreached("no connection came about"),
            E::Io(e) => match e.kind() {
                K::ConnectionRefused
                | K::HostUnreachable
                | K::NetworkUnreachable
                | K::NetworkDown
                | K::AddrNotAvailable => unreached(&cause(e)),
                _ => unavailable(format!("broke the connection to {peer} off: {}: try again later", cause(e))),
            },
            E::LargeResponseHeader(..) => unavailable("sends a header without end".into()),
            E::Tls(_) | E::Rustls(_) | E::Pem(_) => self.untrusted(error),
            _ => unavailable("does not speak proper HTTP (https spoken to a plain http port, or the reverse?)".into()),
        }
    }

    fn untrusted(&self, why: &dyn fmt::Display) -> Error {
        let message =
            format!("cannot be trusted over TLS ({why}): give its CA, or plain http if that is what it speaks");
        self.error(Error::unavailable, message)
    }

    /// An error about the reference that the operator wrote.
    pub fn error(&self, make: fn(&'static str, String, String) -> Error, message: impl Into<String>) -> Error {
        make("registry", self.shown.clone(), message.into())
    }

    fn auth(&self) -> MutexGuard<'_, Auth> {
        self.auth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the name service said, if it is that which failed: the library gives it as any other failure.
fn lookup(error: &io::Error) -> Option<String> {
    let text = error.to_string();
    let why = text.strip_prefix("failed to lookup address information: ")?;
    Some(format!("the name service doesn't know the host ({})", why.to_lowercase()))
}

/// Why an exchange failed. A text that a library made is left out: it could hold a secret; the system's can't.
pub(super) fn cause(error: &io::Error) -> String {
    match (error.raw_os_error(), error.get_ref()) {
        (Some(number), _) => {
            let text = io::Error::from_raw_os_error(number).to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
        (None, Some(_)) => error.kind().to_string(),
        (None, None) => error.to_string(),
    }
}

/// Whether a token realm may be asked at all, and then whether with the credentials (D3): another host only over
/// https, and only a trusted one with them.
fn realm_trust(base: &Origin, realm: &Origin, trusted: &[String]) -> Option<bool> {
    let same = realm.host == base.host;
    let encrypted_enough = realm.https || (same && !base.https);
    encrypted_enough.then(|| same || trusted.contains(&realm.host))
}

/// The system's roots (or, where it has none, Mozilla's as built in), and the operator's own.
fn roots(own: Option<&[u8]>) -> Result<RootCerts> {
    let found = rustls_native_certs::load_native_certs();
    let mut certs: Vec<Certificate<'static>> =
        found.certs.iter().map(|c| Certificate::from_der(c).to_owned()).collect();
    let Some(pem) = own else {
        return Ok(if certs.is_empty() { RootCerts::WebPki } else { RootCerts::new_with_certs(&certs) });
    };
    let before = certs.len();
    for item in parse_pem(pem) {
        match item {
            Ok(PemItem::Certificate(cert)) => certs.push(cert),
            Ok(_) => {}
            Err(_) => return Err(Error::invalid("ca", "", "is not PEM")),
        }
    }
    match certs.len() {
        n if n == before => Err(Error::invalid("ca", "", "holds no certificate in PEM form")),
        _ => Ok(RootCerts::new_with_certs(&certs)),
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

fn form(fields: &[(&str, String)]) -> String {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    let one = |(key, value): &(&str, String)| format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
    fields.iter().map(one).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    // D3 of the negative tests.
    #[test]
    fn d3_a_foreign_realm_gets_no_credentials_unless_trusted() {
        let origin = |url: &str| Origin::of(&url.parse().unwrap()).unwrap();
        let trusted = ["auth.h.io".to_owned()];
        for (base, realm, want) in [
            ("https://h.io", "https://h.io/token", Some(true)),
            ("https://h.io", "https://h.io:8443/token", Some(true)),
            ("https://h.io", "https://auth.h.io/token", Some(true)),
            ("https://h.io", "https://evil.io/token", Some(false)),
            ("https://h.io", "https://h.io.evil.io/token", Some(false)),
            ("https://h.io", "http://h.io/token", None),
            ("https://h.io", "http://auth.h.io/token", None),
            ("http://h.io", "http://h.io/token", Some(true)),
            ("http://h.io", "http://evil.io/token", None),
        ] {
            assert_eq!(realm_trust(&origin(base), &origin(realm), &trusted), want, "{base} names {realm}");
        }
    }

    #[test]
    fn causes_are_the_systems_words_and_no_secrets() {
        assert_eq!(cause(&io::Error::from_raw_os_error(libc::ECONNREFUSED)), "connection refused");
        // One for which Rust has no kind.
        assert_eq!(cause(&io::Error::from_raw_os_error(libc::EPROTO)), "protocol error");
        let unknown = std::net::ToSocketAddrs::to_socket_addrs("no-such-host.invalid:1").unwrap_err();
        assert!(lookup(&unknown).is_some_and(|why| why.contains("the name service")), "{unknown:?}");
        assert!(lookup(&io::Error::from_raw_os_error(libc::ECONNREFUSED)).is_none());
        let told = cause(&io::Error::other("https://h.io/blob?signature=secret"));
        assert!(!told.contains("secret"), "{told}");
    }

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
