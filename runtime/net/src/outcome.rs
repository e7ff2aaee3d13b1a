//! What a chain of plugins answered, in any version of CNI, as one form.

use std::net::IpAddr;

use cofferdam_types::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::wish::address;

/// Name service, as a network says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Servers.
    pub nameservers: Vec<String>,
    /// The container's own domain.
    pub domain: String,
    /// Domains to look through.
    pub search: Vec<String>,
    /// Options of resolv.conf.
    pub options: Vec<String>,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The container's addresses with their prefixes, such as `10.88.0.2/16`.
    pub addresses: Vec<String>,
    /// The gateways of these.
    pub gateways: Vec<String>,
    /// The hardware address of the container's interface; empty if it is not told.
    pub mac: String,
    /// Name service.
    pub dns: Dns,
}

/// From 0.3.0 on.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Answer {
    interfaces: Option<Vec<Interface>>,
    ips: Option<Vec<Ip>>,
    dns: Option<Dns>,
    // Up to 0.2.0.
    ip4: Option<Old>,
    ip6: Option<Old>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Interface {
    name: String,
    mac: Option<String>,
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    gateway: Option<String>,
    interface: Option<usize>,
}

#[derive(Deserialize)]
struct Old {
    ip: String,
    gateway: Option<String>,
}

impl Outcome {
    /// Reads an answer; `interface` is the name of the container's.
    pub fn read(answer: &Value, interface: &str) -> Result<Outcome> {
        let wrong = |why: String| Error::failed_precondition("network", "", format!("was answered with {why}"));
        let answer = Answer::deserialize(answer).map_err(|e| wrong(format!("what is no result of CNI: {e}")))?;
        let interfaces = answer.interfaces.unwrap_or_default();
        let inside = |n: usize| interfaces.get(n).is_none_or(|i| i.sandbox.as_ref().is_some_and(|s| !s.is_empty()));
        let new = answer.ips.unwrap_or_default().into_iter().filter(|ip| ip.interface.is_none_or(inside));
        let old = [answer.ip4, answer.ip6].into_iter().flatten().map(|old| (old.ip, old.gateway));
        let mut outcome = Outcome { dns: answer.dns.unwrap_or_default(), ..Outcome::default() };
        for (ip, gateway) in new.map(|ip| (ip.address, ip.gateway)).chain(old) {
            if address(&ip).is_none() {
                return Err(wrong(format!(
                    "the address {:?}, which is none",
                    ip.chars().take(100).collect::<String>()
                )));
            }
            outcome.addresses.push(ip);
            outcome.gateways.extend(gateway.filter(|gateway| gateway.parse::<IpAddr>().is_ok()));
        }
        let sandboxed = |i: &&Interface| i.sandbox.as_ref().is_some_and(|s| !s.is_empty()) && i.name == interface;
        let mac = interfaces.iter().find(sandboxed).and_then(|i| i.mac.clone()).unwrap_or_default();
        outcome.mac = mac.chars().filter(|c| c.is_ascii_hexdigit() || *c == ':').take(64).collect();
        Ok(outcome)
    }

    /// The addresses without their prefixes.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().filter_map(|text| address(text)).collect()
    }
}
