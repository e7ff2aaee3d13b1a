//! Networks: which there are, what a container wants of one, and what it has.

use std::{fmt, net::IpAddr, rc::Rc};

use cofferdam_types::Result;
use cofferdam_wire::{
    container_capnp::{network_info, network_options, network_status, networks, port_mapping},
    convert::{set_texts, text, texts},
    error::malformed,
};
use serde::Serialize;

use crate::{
    call::{Reply, reply_by},
    connect::Link,
    cursor::Cursor,
};

/// What a container sees of networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Network {
    /// Nothing but a loopback interface.
    #[default]
    None,
    /// The host's own: needs the `host` right.
    Host,
    /// A network of the host's configuration: needs the `networks` right.
    Named(String),
    /// The network namespace of the host's at this path: needs the `host` right.
    Path(String),
    /// That of another container of the same namespace, by id.
    Container(String),
}

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of the host that leads to one of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// On the host.
    pub host_port: u16,
    /// In the container.
    pub container_port: u16,
    /// Of both.
    pub protocol: Protocol,
    /// Of the host, that it is published on; every one otherwise.
    pub host_address: Option<IpAddr>,
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_address {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(ip) => write!(f, "{ip}:")?,
            None => {}
        }
        write!(f, "{}->{}/{}", self.host_port, self.container_port, self.protocol.as_str())
    }
}

/// What a container wants of its network, and what it is told of names. Ports, addresses and the hardware address need a
/// network that is named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Networking {
    /// Published on the host.
    pub ports: Vec<PortMapping>,
    /// The addresses that it is to have.
    pub addresses: Vec<String>,
    /// The hardware address that its interface is to have.
    pub mac: String,
    /// Name servers, in place of the network's or the host's. Likewise the next two.
    pub dns_servers: Vec<String>,
    /// Domains to look through; a single "." is none.
    pub dns_search: Vec<String>,
    /// Options of resolv.conf.
    pub dns_options: Vec<String>,
    /// More lines of its hosts: names and addresses.
    pub hosts: Vec<(String, String)>,
}

impl Networking {
    pub(crate) fn fill(&self, network: &Network, mut builder: network_options::Builder<'_>) {
        match network {
            // The field of its own says these, to older daemons too.
            Network::None | Network::Host => builder.set_unset(()),
            Network::Named(name) => builder.set_name(name),
            Network::Path(path) => builder.set_path(path),
            Network::Container(id) => builder.set_container(id),
        }
        let mut ports = builder.reborrow().init_ports(self.ports.len() as u32);
        for (n, port) in self.ports.iter().enumerate() {
            let mut mapping = ports.reborrow().get(n as u32);
            mapping.set_host_port(port.host_port);
            mapping.set_container_port(port.container_port);
            mapping.set_protocol(match port.protocol {
                Protocol::Tcp => port_mapping::Protocol::Tcp,
                Protocol::Udp => port_mapping::Protocol::Udp,
                Protocol::Sctp => port_mapping::Protocol::Sctp,
            });
            mapping.set_host_address(port.host_address.map(|ip| ip.to_string()).unwrap_or_default());
        }
        set_texts(builder.reborrow().init_addresses(self.addresses.len() as u32), &self.addresses);
        builder.set_mac(&self.mac);
        set_texts(builder.reborrow().init_dns_servers(self.dns_servers.len() as u32), &self.dns_servers);
        set_texts(builder.reborrow().init_dns_search(self.dns_search.len() as u32), &self.dns_search);
        set_texts(builder.reborrow().init_dns_options(self.dns_options.len() as u32), &self.dns_options);
        let mut hosts = builder.init_hosts(self.hosts.len() as u32);
        for (n, (name, address)) in self.hosts.iter().enumerate() {
            let mut host = hosts.reborrow().get(n as u32);
            host.set_key(name);
            host.set_value(address);
        }
    }
}

pub(crate) fn options(reader: network_options::Reader<'_>) -> Result<(Network, Networking)> {
    let network = match reader.which().map_err(|e| malformed(e.into()))? {
        network_options::Unset(()) => Network::None,
        network_options::Host(()) => Network::Host,
        network_options::Name(name) => Network::Named(text(name)?.to_owned()),
        network_options::Path(path) => Network::Path(text(path)?.to_owned()),
        network_options::Container(id) => Network::Container(text(id)?.to_owned()),
    };
    let mut hosts = Vec::new();
    for host in reader.get_hosts().map_err(malformed)?.iter() {
        hosts.push((text(host.get_key())?.to_owned(), text(host.get_value())?.to_owned()));
    }
    let networking = Networking {
        ports: reader.get_ports().map_err(malformed)?.iter().map(port).collect::<Result<_>>()?,
        addresses: texts(reader.get_addresses())?,
        mac: text(reader.get_mac())?.to_owned(),
        dns_servers: texts(reader.get_dns_servers())?,
        dns_search: texts(reader.get_dns_search())?,
        dns_options: texts(reader.get_dns_options())?,
        hosts,
    };
    Ok((network, networking))
}

fn port(reader: port_mapping::Reader<'_>) -> Result<PortMapping> {
    Ok(PortMapping {
        host_port: reader.get_host_port(),
        container_port: reader.get_container_port(),
        protocol: match reader.get_protocol().map_err(|e| malformed(e.into()))? {
            port_mapping::Protocol::Tcp => Protocol::Tcp,
            port_mapping::Protocol::Udp => Protocol::Udp,
            port_mapping::Protocol::Sctp => Protocol::Sctp,
        },
        host_address: text(reader.get_host_address())?.parse().ok(),
    })
}

/// What a task is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// The network's name.
    pub network: String,
    /// The interface in the container.
    pub device: String,
    /// Its hardware address, if the plugins tell it.
    pub mac: String,
    /// Its addresses, each with the length of its prefix.
    pub addresses: Vec<String>,
    /// The gateways.
    pub gateways: Vec<String>,
    /// What is published on the host.
    pub ports: Vec<PortMapping>,
}

pub(crate) fn status(reader: network_status::Reader<'_>) -> Result<NetworkStatus> {
    Ok(NetworkStatus {
        network: text(reader.get_network())?.to_owned(),
        device: text(reader.get_device())?.to_owned(),
        mac: text(reader.get_mac())?.to_owned(),
        addresses: texts(reader.get_addresses())?,
        gateways: texts(reader.get_gateways())?,
        ports: reader.get_ports().map_err(malformed)?.iter().map(port).collect::<Result<_>>()?,
    })
}

/// A network that the host has configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// The versions of CNI that it may be used in.
    pub versions: Vec<String>,
    /// The types of its plugins.
    pub plugins: Vec<String>,
    /// The configurations of its plugins, JSON; lists leave it out.
    #[serde(serialize_with = "crate::json::of_text", skip_serializing_if = "String::is_empty")]
    pub config: String,
}

fn info(reader: network_info::Reader<'_>) -> Result<NetworkInfo> {
    Ok(NetworkInfo {
        name: text(reader.get_name())?.to_owned(),
        versions: texts(reader.get_versions())?,
        plugins: texts(reader.get_plugins())?,
        config: text(reader.get_config())?.to_owned(),
    })
}

/// The networks of the host's configuration.
#[derive(Clone)]
pub struct Networks {
    pub(crate) link: Rc<Link>,
    pub(crate) client: networks::Client,
}

impl Networks {
    /// All of them.
    pub fn list(&self) -> Cursor<NetworkInfo> {
        Cursor::of(&self.link, self.client.list_request().send().pipeline.get_cursor(), info)
    }

    /// What is known of one.
    pub fn get(&self, name: &str) -> Reply<NetworkInfo> {
        let mut request = self.client.get_request();
        request.get().set_name(name);
        reply_by(&self.link, &self.client, request, |answer| info(answer.get_info().map_err(malformed)?))
    }
}
