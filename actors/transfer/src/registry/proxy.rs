//! Proxies: which of them a host is reached by, as the environment says.
//!
//! Only the proxy itself is told its user and password: they stand in no message and in no report.

use std::{fmt, net::IpAddr};

use cofferdam_types::{Error, Result};
use ureq::{Proxy, http::Uri};

use super::guard::{Origin, bare, is_loopback};

/// The proxies of a daemon.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    without: Vec<Without>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |proxy: &Option<Proxy>| proxy.as_ref().map(shown);
        write!(f, "Proxies {{ http: {:?}, https: {:?} }}", shown(&self.http), shown(&self.https))
    }
}

/// What is reached without a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Without {
    All,
    /// An address and how many bits of it count.
    Net(IpAddr, u8),
    /// A host and all below it, on one port or on all.
    Host(String, Option<u16>),
}

impl Proxies {
    /// As `variable` has them: `HTTPS_PROXY` for https, `HTTP_PROXY` for http, `ALL_PROXY` where the one is not set, and
    /// `NO_PROXY`, each in lower case too, which comes first.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Proxies> {
        let get = |name: &str| {
            let found = variable(&name.to_ascii_lowercase()).filter(|text| !text.is_empty());
            found.or_else(|| variable(name).filter(|text| !text.is_empty()))
        };
        let one = |name: &'static str| match get(name) {
            None => Ok(None),
            Some(text) => proxy(name, &text).map(Some),
        };
        let all = one("ALL_PROXY")?;
        Ok(Proxies {
            http: one("HTTP_PROXY")?.or_else(|| all.clone()),
            https: one("HTTPS_PROXY")?.or(all),
            without: get("NO_PROXY").iter().flat_map(|text| text.split([',', ' '])).filter_map(without).collect(),
        })
    }

    /// The proxy by which a host is reached.
    pub(super) fn to(&self, origin: &Origin) -> Option<&Proxy> {
        let proxy = if origin.https { &self.https } else { &self.http };
        // A proxy's idea of "this machine" is another machine.
        proxy.as_ref().filter(|_| !is_loopback(&origin.host) && !self.without.iter().any(|one| one.has(origin)))
    }

    /// The same as it may be shown.
    pub(super) fn shown_to(&self, origin: &Origin) -> Option<String> {
        self.to(origin).map(shown)
    }

    /// Whether a host is a proxy: the operator has named it.
    pub(super) fn is_one(&self, uri: &Uri) -> bool {
        let asked = (uri.host().map(bare), uri.port_u16());
        let same = |proxy: &Proxy| (Some(bare(proxy.host())), proxy.uri().port_u16()) == asked;
        self.http.iter().chain(&self.https).any(same)
    }
}

fn proxy(name: &'static str, text: &str) -> Result<Proxy> {
    // Not the text itself, which may hold a password.
    let wrong = |why: &str| Error::invalid("proxy", name, format!("{why}: give such as http://host:3128"));
    let proxy = Proxy::new(text).map_err(|_| wrong("is no URL of a proxy"))?;
    match proxy.protocol() {
        ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https => Ok(proxy),
        _ => Err(wrong("is a proxy of a kind that isn't spoken here")),
    }
}

/// Without user and password.
pub(super) fn shown(proxy: &Proxy) -> String {
    let scheme = if proxy.protocol() == ureq::ProxyProtocol::Https { "https" } else { "http" };
    format!("{scheme}://{}:{}", proxy.host(), proxy.port())
}

fn without(text: &str) -> Option<Without> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    if text == "*" {
        return Some(Without::All);
    }
    if let Some((net, bits)) = text.split_once('/')
        && let (Ok(net), Ok(bits)) = (net.parse::<IpAddr>(), bits.parse())
    {
        return Some(Without::Net(net, bits));
    }
    if let Ok(ip) = bare(text).parse::<IpAddr>() {
        return Some(Without::Net(ip, 128));
    }
    let (host, port) = match text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    Some(Without::Host(bare(host.trim_start_matches('*').trim_start_matches('.')), port))
}

impl Without {
    fn has(&self, origin: &Origin) -> bool {
        match self {
            Without::All => true,
            Without::Net(net, bits) => origin.host.parse().is_ok_and(|ip| within(ip, *net, *bits)),
            Without::Host(host, port) => {
                let below =
                    origin.host.strip_suffix(host.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                below && port.is_none_or(|port| port == origin.port)
            }
        }
    }
}

fn within(ip: IpAddr, net: IpAddr, bits: u8) -> bool {
    let same = |one: u128, other: u128, width: u32| {
        let left = width.saturating_sub(u32::from(bits));
        left >= width || one >> left == other >> left
    };
    match (ip, net) {
        (IpAddr::V4(one), IpAddr::V4(other)) => same(u32::from(one).into(), u32::from(other).into(), 32),
        (IpAddr::V6(one), IpAddr::V6(other)) => same(one.into(), other.into(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(of: &[(&str, &str)]) -> Result<Proxies> {
        Proxies::of(|name| of.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn to(proxies: &Proxies, url: &str) -> Option<String> {
        proxies.shown_to(&Origin::of(&url.parse().unwrap()).unwrap())
    }

    #[test]
    fn each_scheme_has_its_proxy_and_what_is_left_out_none() {
        let found = proxies(&[
            ("HTTPS_PROXY", "http://me:hunter22@secure:3128"),
            ("https_proxy", "http://me:hunter22@lower:3128"),
            ("ALL_PROXY", "https://all"),
            ("NO_PROXY", "inside.io, .dots.io,*.stars.io 10.0.0.0/8,192.168.1.7,port.io:5000,[fd00::1]"),
        ])
        .unwrap();
        assert_eq!(to(&found, "https://h.io").as_deref(), Some("http://lower:3128"));
        assert_eq!(to(&found, "http://h.io").as_deref(), Some("https://all:443"));
        for (url, without) in [
            ("https://inside.io", true),
            ("https://a.inside.io", true),
            ("https://notinside.io", false),
            ("https://a.dots.io", true),
            ("https://a.stars.io", true),
            ("https://10.1.2.3:5000", true),
            ("https://11.1.2.3", false),
            ("https://192.168.1.7", true),
            ("https://192.168.1.8", false),
            ("https://port.io:5000", true),
            ("https://port.io", false),
            ("https://[fd00::1]:5000", true),
            ("http://localhost:5000", true),
            ("http://127.0.0.1:5000", true),
        ] {
            assert_eq!(to(&found, url).is_none(), without, "{url}");
        }
        let none = proxies(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", "*")]).unwrap();
        assert_eq!(to(&none, "https://h.io"), None);
        assert!(
            found.is_one(&"http://lower:3128/".parse().unwrap()) && !found.is_one(&"http://lower:1/".parse().unwrap())
        );
    }

    // D8 of the negative tests.
    #[test]
    fn d8_what_a_proxy_is_told_is_not_shown() {
        let found = proxies(&[("HTTPS_PROXY", "http://me:hunter22@p:3128")]).unwrap();
        assert!(!format!("{found:?}").contains("hunter22"));
        for bad in ["socks5://me:hunter22@p", "http://me:hunter22@", "http://me:hunter22@a b"] {
            let error = proxies(&[("HTTPS_PROXY", bad)]).unwrap_err();
            assert_eq!(error.id, "HTTPS_PROXY");
            assert!(!error.to_string().contains("hunter22"), "{error}");
        }
    }
}
