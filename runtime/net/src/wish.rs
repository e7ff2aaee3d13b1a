//! What is asked of a network for one container.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use cofferdam_types::{Error, Result};
use serde::{Deserialize, Serialize};

/// The most ports of one container: each is a handful of rules in the host's tables.
const MAX_PORTS: usize = 1024;
const MAX_ADDRESSES: usize = 16;

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of the host that leads to one of the container. As JSON it is an entry of CNI's `portMappings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// On the host.
    pub host_port: u16,
    /// In the container.
    pub container_port: u16,
    /// Of both.
    pub protocol: Protocol,
    /// The host's address that it is published on; all of them otherwise.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(ip) => write!(f, "{ip}:")?,
            None => {}
        }
        write!(f, "{}:{}/{}", self.host_port, self.container_port, self.protocol.as_str())
    }
}

impl Port {
    /// Whether the host can't have both.
    pub fn collides(&self, other: &Port) -> bool {
        let shares = match (self.host_ip, other.host_ip) {
            (Some(one), Some(two)) => one == two || one.is_unspecified() || two.is_unspecified(),
            _ => true,
        };
        (self.host_port, self.protocol) == (other.host_port, other.protocol) && shares
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wish {
    /// What is published.
    pub ports: Vec<Port>,
    /// The addresses that the container is to have, each with or without the length of its prefix.
    pub addresses: Vec<String>,
    /// The hardware address of its interface.
    pub mac: Option<String>,
}

impl Wish {
    /// Whether nothing is asked for beyond being connected.
    pub fn is_empty(&self) -> bool {
        *self == Wish::default()
    }

    /// Whether it makes sense by itself.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &'static str, why: String| Error::invalid("options", what, why);
        if self.ports.len() > MAX_PORTS {
            return Err(wrong("ports", format!("are {}: at most {MAX_PORTS} can be published", self.ports.len())));
        }
        for (n, port) in self.ports.iter().enumerate() {
            if port.host_port == 0 || port.container_port == 0 {
                return Err(wrong("ports", format!("have {port}: a port lies between 1 and 65535")));
            }
            if let Some(other) = self.ports[..n].iter().find(|other| other.collides(port)) {
                return Err(wrong("ports", format!("have {port} and {other}: a port of the host leads to one place")));
            }
        }
        if self.addresses.len() > MAX_ADDRESSES {
            return Err(wrong("addresses", format!("are {}: give at most {MAX_ADDRESSES}", self.addresses.len())));
        }
        let mut seen = BTreeSet::new();
        for text in &self.addresses {
            let Some(ip) = address(text) else {
                let shown: String = text.chars().take(100).collect();
                return Err(wrong(
                    "addresses",
                    format!("have {shown:?}, which is no address like 10.1.2.3 or fd00::3"),
                ));
            };
            if !seen.insert(ip) {
                return Err(wrong("addresses", format!("have {ip} twice")));
            }
        }
        match &self.mac {
            Some(mac) if !is_mac(mac) => {
                let shown: String = mac.chars().take(100).collect();
                Err(wrong("mac", format!("is {shown:?}: give one interface's address like 02:42:ac:11:00:02")))
            }
            _ => Ok(()),
        }
    }
}

/// The address of `10.1.2.3` or `10.1.2.3/24`.
pub fn address(text: &str) -> Option<IpAddr> {
    let Some((ip, length)) = text.split_once('/') else { return text.parse().ok() };
    let ip: IpAddr = ip.parse().ok()?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let plain = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    (plain && length.parse::<u8>().is_ok_and(|length| length <= most)).then_some(ip)
}

/// Six bytes, of one interface and not of a group.
fn is_mac(text: &str) -> bool {
    let bytes: Vec<&str> = text.split(':').collect();
    let hex = |byte: &&str| byte.len() == 2 && byte.bytes().all(|b| b.is_ascii_hexdigit());
    let first = bytes.first().and_then(|byte| u8::from_str_radix(byte, 16).ok());
    bytes.len() == 6
        && bytes.iter().all(hex)
        && first.is_some_and(|first| first & 1 == 0)
        && bytes.iter().any(|byte| *byte != "00")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host: u16, ip: Option<&str>, protocol: Protocol) -> Port {
        Port { host_port: host, container_port: 80, protocol, host_ip: ip.map(|ip| ip.parse().unwrap()) }
    }

    #[test]
    fn ports_collide_where_the_host_would_have_to_choose() {
        use Protocol::{Tcp, Udp};
        let all = port(80, None, Tcp);
        assert!(all.collides(&port(80, Some("127.0.0.1"), Tcp)));
        assert!(port(80, Some("0.0.0.0"), Tcp).collides(&port(80, Some("127.0.0.1"), Tcp)));
        assert!(!port(80, Some("127.0.0.2"), Tcp).collides(&port(80, Some("127.0.0.1"), Tcp)));
        assert!(!all.collides(&port(80, None, Udp)) && !all.collides(&port(81, None, Tcp)));
        assert_eq!(port(80, Some("::1"), Udp).to_string(), "[::1]:80:80/udp");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let wrong = |wish: Wish| wish.check().unwrap_err().id;
        let ports = |ports: Vec<Port>| Wish { ports, ..Wish::default() };
        assert_eq!(wrong(ports(vec![port(0, None, Protocol::Tcp)])), "ports");
        assert_eq!(wrong(ports(vec![port(80, None, Protocol::Tcp); 2])), "ports");
        assert_eq!(wrong(ports((1..=1025).map(|n| port(n, None, Protocol::Tcp)).collect())), "ports");
        ports((1..=1024).map(|n| port(n, None, Protocol::Tcp)).collect()).check().unwrap();
        for bad in ["", "10.1.2", "10.1.2.3/33", "10.1.2.3/", "fd00::1/129", "10.1.2.3/+8", "a"] {
            assert_eq!(wrong(Wish { addresses: vec![bad.into()], ..Wish::default() }), "addresses", "{bad}");
        }
        assert_eq!(
            wrong(Wish { addresses: vec!["10.1.2.3".into(), "10.1.2.3/8".into()], ..Wish::default() }),
            "addresses"
        );
        Wish { addresses: vec!["10.1.2.3/8".into(), "fd00::3".into()], ..Wish::default() }.check().unwrap();
        for bad in
            ["", "02:42:ac:11:00", "03:42:ac:11:00:02", "00:00:00:00:00:00", "02-42-ac-11-00-02", "2:42:ac:11:0:2"]
        {
            assert_eq!(wrong(Wish { mac: Some(bad.into()), ..Wish::default() }), "mac", "{bad}");
        }
        Wish { mac: Some("02:42:AC:11:00:02".into()), ..Wish::default() }.check().unwrap();
    }
}
