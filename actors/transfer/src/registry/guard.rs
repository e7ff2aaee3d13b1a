//! Where the daemon lets itself be sent (negative tests D1 to D4).
//!
//! A registry, a redirect, a token realm and a manifest's `urls` are all words of a foreign party. The daemon sits
//! inside networks that this party cannot reach: so addresses that only the inside has are refused, whatever name
//! resolves to them, unless it is the very host that the operator named.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use cofferdam_types::{Error, Result};
use ureq::{
    config::Config,
    http::Uri,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::NextTimeout,
    },
};

use super::proxy::Proxies;

/// Scheme, host and port: credentials are bound to one of these.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub https: bool,
    /// Lowercase, without brackets.
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// Of an absolute http or https URL without user information.
    pub fn of(uri: &Uri) -> Option<Origin> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let port = match authority.port() {
            Some(_) => authority.port_u16()?,
            None => [80, 443][usize::from(https)],
        };
        Some(Origin { https, host: bare(authority.host()), port })
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A host in the form in which hosts are compared.
pub(super) fn bare(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

/// Whether `host` is this machine by name.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = bare(host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| canonical(ip).is_loopback())
}

fn canonical(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        v4 => v4,
    }
}

/// Why `ip` may not be spoken to. `named`: the operator wrote the host that it belongs to.
fn refusal(ip: IpAddr, named: bool) -> Option<&'static str> {
    let ip = canonical(ip);
    let (link_local, metadata) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), false),
        // fd00:ec2::/32 is where one cloud keeps its metadata service; unique-local addresses at large are ordinary.
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[..2] == [0xfd00, 0x0ec2]),
    };
    if link_local || metadata {
        return Some("is a link-local or metadata address");
    }
    if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::from([255, 255, 255, 255]) {
        return Some("is not an address of a host");
    }
    (ip.is_loopback() && !named).then_some("is this machine itself, which only the operator may name")
}

/// Refuses a literal address before anything is sent: this also holds where a proxy does the resolving.
pub(super) fn check(origin: &Origin, named: &str) -> Result<()> {
    let is_named = origin.host == named;
    let why = match origin.host.parse::<IpAddr>() {
        Ok(ip) => refusal(ip, is_named),
        Err(_) if !is_named && is_loopback(&origin.host) => {
            Some("is this machine itself, which only the operator may name")
        }
        Err(_) => None,
    };
    match why {
        Some(why) => Err(Error::denied("host", &origin.host, format!("{why}: refused"))),
        None => Ok(()),
    }
}

/// The resolver that drops forbidden addresses after the lookup, so that a name cannot be made to point inside
/// between the check and the connection.
#[derive(Debug)]
pub(super) struct GuardedResolver {
    pub named: Arc<str>,
    /// The operator has named them too.
    pub proxies: Proxies,
    pub inner: DefaultResolver,
}

impl Resolver for GuardedResolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let named = uri.host().is_some_and(|host| bare(host) == *self.named) || self.proxies.is_one(uri);
        let mut kept = self.empty();
        for address in found.iter().filter(|a: &&SocketAddr| refusal(a.ip(), named).is_none()) {
            kept.push(*address);
        }
        if kept.is_empty() {
            return Err(ureq::Error::Io(std::io::Error::new(std::io::ErrorKind::PermissionDenied, REFUSED)));
        }
        Ok(kept)
    }
}

/// The text by which a refusal in the resolver is known.
pub(super) const REFUSED: &str = "its name leads to a link-local, metadata or loopback address: refused";

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Option<Origin> {
        Origin::of(&text.parse().ok()?)
    }

    // D4 of the negative tests.
    #[test]
    fn d4_inside_addresses_are_refused() {
        for (url, named, ok) in [
            ("http://169.254.169.254/latest", "h.io", false),
            // Even the operator cannot mean it.
            ("http://169.254.169.254/latest", "169.254.169.254", false),
            ("http://[fe80::1]/", "h.io", false),
            ("http://[fd00:ec2::254]/", "h.io", false),
            ("http://[::ffff:169.254.169.254]/", "h.io", false),
            ("http://[::ffff:127.0.0.1]/", "h.io", false),
            ("http://127.0.0.1:5000/", "h.io", false),
            ("http://127.0.0.1:5000/", "127.0.0.1", true),
            ("http://localhost:5000/", "h.io", false),
            ("http://LOCALHOST.:5000/", "h.io", false),
            ("http://localhost:5000/", "localhost", true),
            ("http://[::1]:5000/", "::1", true),
            ("http://0.0.0.0/", "h.io", false),
            ("http://[::]/", "h.io", false),
            ("http://224.0.0.1/", "h.io", false),
            ("http://10.0.0.1/", "h.io", true),
            ("https://storage.h.io/", "h.io", true),
        ] {
            assert_eq!(check(&origin(url).unwrap(), named).is_ok(), ok, "{url} for {named}");
        }
    }

    #[test]
    fn d4_a_name_that_leads_inside_is_refused_after_the_lookup() {
        let resolver = |named: &str| GuardedResolver {
            named: named.into(),
            proxies: Proxies::default(),
            inner: DefaultResolver::default(),
        };
        let uri: Uri = "http://localhost:1/".parse().unwrap();
        let never = || NextTimeout {
            after: ureq::unversioned::transport::time::Duration::NotHappening,
            reason: ureq::Timeout::Global,
            ..NextTimeout::default()
        };
        assert!(resolver("h.io").resolve(&uri, &Config::default(), never()).is_err());
        assert!(resolver("localhost").resolve(&uri, &Config::default(), never()).is_ok());
    }

    #[test]
    fn origins() {
        let o = |https, host: &str, port| Some(Origin { https, host: host.into(), port });
        assert_eq!(origin("https://H.io/x"), o(true, "h.io", 443));
        assert_eq!(origin("http://[::1]:81/x"), o(false, "::1", 81));
        assert_eq!(origin("https://user@h.io/"), None);
        assert_eq!(origin("ftp://h.io/"), None);
        assert_eq!(origin("/relative"), None);
    }
}
