//! The files by which a container knows names: resolv.conf and hosts.

use std::net::IpAddr;

use cofferdam_types::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::Dns;

/// What a resolver reads of each (resolv.conf(5)), and a bound on the rest.
const MAX_SERVERS: usize = 16;
const MAX_SEARCH: usize = 64;
const MAX_OPTIONS: usize = 64;
const MAX_HOSTS: usize = 1024;
const MAX_TEXT: usize = 253;

/// What a client says about names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Names {
    /// Name servers, in place of those of the network or the host.
    pub servers: Vec<String>,
    /// Domains to look through, likewise.
    pub search: Vec<String>,
    /// Options of resolv.conf, likewise.
    pub options: Vec<String>,
    /// More lines of hosts: a name and its address.
    pub hosts: Vec<(String, String)>,
}

impl Names {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Names::default()
    }

    /// Whether it makes sense. Each word stands in a file that is made of lines.
    pub fn check(&self) -> Result<()> {
        let shown = |text: &str| format!("{:?}", text.chars().take(100).collect::<String>());
        let wrong = |what: &'static str, why: String| Err(Error::invalid("options", what, why));
        for (what, list, most) in [
            ("dnsServers", &self.servers, MAX_SERVERS),
            ("dnsSearch", &self.search, MAX_SEARCH),
            ("dnsOptions", &self.options, MAX_OPTIONS),
        ] {
            if list.len() > most {
                return wrong(what, format!("are {}: give at most {most}", list.len()));
            }
        }
        if let Some(bad) = self.servers.iter().find(|server| server.parse::<IpAddr>().is_err()) {
            return wrong("dnsServers", format!("have {}: give addresses like 10.1.2.3", shown(bad)));
        }
        if let Some(bad) = self.search.iter().find(|domain| !is_host(domain.trim_end_matches('.')) && *domain != ".") {
            return wrong("dnsSearch", format!("has {}: give domains like shop.example", shown(bad)));
        }
        let word =
            |text: &String| !text.is_empty() && text.len() <= MAX_TEXT && text.bytes().all(|b| b.is_ascii_graphic());
        if let Some(bad) = self.options.iter().find(|option| !word(option)) {
            return wrong("dnsOptions", format!("have {}: give words like ndots:2", shown(bad)));
        }
        if self.hosts.len() > MAX_HOSTS {
            return wrong("hosts", format!("are {}: give at most {MAX_HOSTS}", self.hosts.len()));
        }
        for (name, address) in &self.hosts {
            if !is_host(name) {
                return wrong("hosts", format!("have the name {}: give one like db or db.shop.example", shown(name)));
            }
            if address.parse::<IpAddr>().is_err() {
                return wrong(
                    "hosts",
                    format!("have the address {} for {name}: give one like 10.1.2.3", shown(address)),
                );
            }
        }
        Ok(())
    }
}

fn is_host(text: &str) -> bool {
    let label = |l: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        !l.is_empty() && l.len() <= 63 && !l.starts_with('-') && l.bytes().all(good)
    };
    text.len() <= MAX_TEXT && text.split('.').all(label)
}

/// Reads a resolv.conf. Servers that only the host reaches, its own loopback, are left out.
fn parse_resolv(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => dns.nameservers.extend(words.take(1).map(str::to_owned)),
            Some("search") => dns.search = words.map(str::to_owned).collect(),
            Some("domain") => dns.search = words.take(1).map(str::to_owned).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

/// The servers that can be reached from another network namespace.
fn reachable(dns: &Dns) -> Vec<String> {
    let outside = |server: &&String| {
        let bare = server.split('%').next().unwrap_or_default();
        bare.parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback())
    };
    dns.nameservers.iter().filter(outside).cloned().collect()
}

/// The container's resolv.conf: what the client says, else the network, else the host, whose own files are given in the
/// order in which they are asked. `own`: it is in a network of its own, and reaches no server at a loopback address of
/// the host.
pub fn text_of_resolv(names: &Names, network: &Dns, host: &[String], own: bool) -> String {
    let host: Vec<Dns> = host.iter().map(|text| parse_resolv(text)).collect();
    let theirs = |dns: &Dns| if own { reachable(dns) } else { dns.nameservers.clone() };
    let of_host = host.iter().find(|dns| !theirs(dns).is_empty());
    let from_host = network.nameservers.is_empty();
    let servers = match (&names.servers, &network.nameservers) {
        (servers, _) if !servers.is_empty() => servers.clone(),
        (_, servers) if !servers.is_empty() => servers.clone(),
        _ => of_host.map(theirs).unwrap_or_default(),
    };
    let choose = |said: &[String], network: Vec<String>, host: fn(&Dns) -> &Vec<String>| match said {
        [] if !network.is_empty() => network,
        [] if from_host => of_host.map(host).cloned().unwrap_or_default(),
        said => said.to_vec(),
    };
    let domain = Some(network.domain.clone()).filter(|domain| !domain.is_empty() && network.search.is_empty());
    let search = choose(&names.search, network.search.iter().cloned().chain(domain).collect(), |dns| &dns.search);
    let options = choose(&names.options, network.options.clone(), |dns| &dns.options);
    // What a plugin says stands in a file of lines too.
    let word = |word: &&String| !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic());
    let mut text: String = servers.iter().filter(word).map(|server| format!("nameserver {server}\n")).collect();
    for (key, words) in [("search", search), ("options", options)] {
        let words: Vec<&str> = words.iter().filter(word).map(String::as_str).collect();
        if !words.is_empty() && words != ["."] {
            text += &format!("{key} {}\n", words.join(" "));
        }
    }
    text
}

/// The container's hosts: its loopback, itself at its own addresses, and what the client says.
pub fn text_of_hosts(names: &Names, hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    if !hostname.is_empty() {
        // A full name is found by its first label too.
        let short = hostname.split_once('.').map(|(short, _)| format!(" {short}")).unwrap_or_default();
        let loopback = [IpAddr::from([127, 0, 1, 1])];
        for address in if addresses.is_empty() { &loopback } else { addresses } {
            text += &format!("{address}\t{hostname}{short}\n");
        }
    }
    for (name, address) in &names.hosts {
        text += &format!("{address}\t{name}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolv(names: &Names, network: &Dns, host: &[&str], own: bool) -> String {
        text_of_resolv(names, network, &host.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), own)
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_client_is_heard_before_the_network_and_that_before_the_host() {
        let stub = "nameserver 127.0.0.53\nsearch stub.example\n";
        let host = "# comment\nnameserver 10.0.0.1\nnameserver 10.0.0.2 trailing\nsearch a.example b.example\noptions ndots:2\n";
        let none = Names::default();
        let of_host = "nameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch a.example b.example\noptions ndots:2\n";
        assert_eq!(resolv(&none, &Dns::default(), &[stub, host], true), of_host);
        assert_eq!(resolv(&none, &Dns::default(), &[stub, host], false), stub);
        assert_eq!(resolv(&none, &Dns::default(), &[stub], true), "");
        let network = Dns { nameservers: words(&["10.9.0.1"]), domain: "net.example".into(), ..Dns::default() };
        assert_eq!(resolv(&none, &network, &[host], true), "nameserver 10.9.0.1\nsearch net.example\n");
        let names = Names { servers: words(&["1.2.3.4"]), options: words(&["rotate"]), ..Names::default() };
        assert_eq!(resolv(&names, &network, &[host], true), "nameserver 1.2.3.4\nsearch net.example\noptions rotate\n");
        assert_eq!(
            resolv(&Names { search: words(&["."]), ..names }, &network, &[], true),
            "nameserver 1.2.3.4\noptions rotate\n"
        );
        // No line of its own comes out of a plugin's word.
        let bad = Dns { nameservers: words(&["1.1.1.1\nnameserver 6.6.6.6", "2.2.2.2"]), ..Dns::default() };
        assert_eq!(resolv(&none, &bad, &[], true), "nameserver 2.2.2.2\n");
    }

    #[test]
    fn a_container_finds_itself() {
        let names = Names { hosts: vec![("db".into(), "10.1.2.3".into())], ..Names::default() };
        let text = text_of_hosts(&names, "web.shop.example", &["10.88.0.2".parse().unwrap()]);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("\n10.88.0.2\tweb.shop.example web\n10.1.2.3\tdb\n"), "{text}");
        assert!(text_of_hosts(&Names::default(), "box", &[]).ends_with("\n127.0.1.1\tbox\n"));
    }

    #[test]
    fn what_would_be_another_line_is_refused() {
        let names = |change: fn(&mut Names)| {
            let mut names = Names::default();
            change(&mut names);
            names.check()
        };
        let wrong = |change| names(change).unwrap_err().id;
        assert_eq!(wrong(|n| n.servers = vec!["dns.example".into()]), "dnsServers");
        assert_eq!(wrong(|n| n.servers = vec!["1.1.1.1".into(); 17]), "dnsServers");
        assert_eq!(wrong(|n| n.search = vec!["a\nnameserver 6.6.6.6".into()]), "dnsSearch");
        assert_eq!(wrong(|n| n.options = vec!["a b".into()]), "dnsOptions");
        assert_eq!(wrong(|n| n.hosts = vec![("a b".into(), "1.1.1.1".into())]), "hosts");
        assert_eq!(wrong(|n| n.hosts = vec![("".into(), "1.1.1.1".into())]), "hosts");
        assert_eq!(wrong(|n| n.hosts = vec![("a".into(), "1.1.1".into())]), "hosts");
        names(|n| {
            n.servers = vec!["fd00::1".into()];
            n.search = vec![".".into(), "a.example.".into()];
            n.hosts = vec![("a_b.c-d".into(), "::1".into())];
        })
        .unwrap();
    }
}
