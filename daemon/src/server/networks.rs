//! `Networks`, and what is said of networks about containers and tasks (container.capnp).

use std::rc::Rc;

use cofferdam_net::{Names, Network as Configured, Port, Protocol, Wish};
use cofferdam_networks::{Connected, INTERFACE};
use cofferdam_oci::spec::Network;
use cofferdam_tasks::NetworkRecord;
use cofferdam_types::{Error, Id, Result};
use cofferdam_wire::{
    container_capnp::{network_cursor, network_info, network_options, network_status, networks, port_mapping},
    convert::{set_texts, text, texts},
    error::malformed,
};

use super::{Place, cursor::Cursor, rpc};

/// The networks that the host has configured.
pub struct Networks(pub Place);

impl Networks {
    async fn all(&self) -> Result<Vec<Configured>> {
        let (networks, errors) = self.0.services().networks.list().await?;
        for error in errors {
            tracing::warn!(%error, "a network is passed over");
        }
        Ok(networks)
    }
}

impl networks::Server for Networks {
    async fn list(self: Rc<Self>, _: networks::ListParams, mut results: networks::ListResults) -> capnp::Result<()> {
        let all = rpc(self.all().await)?;
        let page = move |after: Option<&str>, max: usize| {
            let behind = all.iter().filter(|network| after.is_none_or(|after| *network.chain.name > *after));
            Ok(behind.take(max).cloned().collect())
        };
        let cursor = Cursor::new(Box::new(page), |network: &Configured| network.chain.name.clone(), |_| true);
        results.get().set_cursor(self.0.hand_out(NetworkCursor(cursor)));
        Ok(())
    }

    async fn get(self: Rc<Self>, params: networks::GetParams, mut results: networks::GetResults) -> capnp::Result<()> {
        let name = rpc(text(params.get()?.get_name()))?;
        rpc(cofferdam_net::check_name("network", name))?;
        let found = rpc(self.all().await)?.into_iter().find(|network| network.chain.name == name);
        let missing =
            || Error::not_found("network", name, "is not configured: \"coffer network ls\" lists those that are");
        let network = rpc(found.ok_or_else(missing))?;
        rpc(set_info(results.get().init_info(), &network, true))
    }
}

struct NetworkCursor(Cursor<Configured>);

impl network_cursor::Server for NetworkCursor {
    async fn next(
        self: Rc<Self>,
        params: network_cursor::NextParams,
        mut results: network_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.0.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, network) in block.iter().enumerate() {
            rpc(set_info(items.reborrow().get(n as u32), network, false))?;
        }
        Ok(())
    }
}

fn set_info(mut builder: network_info::Builder<'_>, network: &Configured, whole: bool) -> Result<()> {
    let chain = &network.chain;
    builder.set_name(&chain.name);
    set_texts(builder.reborrow().init_versions(chain.versions.len() as u32), &chain.versions);
    let types = chain.types();
    set_texts(builder.reborrow().init_plugins(types.len() as u32), &types);
    if whole {
        let text = serde_json::to_string(&chain.plugins).map_err(|e| Error::internal("network", "", e.to_string()))?;
        builder.set_config(&text);
    }
    Ok(())
}

/// What a client wants; `None` for the network: as the older field says.
pub fn options(reader: network_options::Reader<'_>) -> Result<(Option<Network>, Wish, Names)> {
    let network = match reader.which().map_err(|e| malformed(e.into()))? {
        network_options::Unset(()) => None,
        network_options::Name(name) => Some(Network::Named(text(name)?.to_owned())),
        network_options::Path(path) => Some(Network::Path(text(path)?.to_owned())),
        network_options::Container(id) => Some(Network::Container(Id::new(text(id)?)?)),
        network_options::Host(()) => Some(Network::Host),
    };
    let mac = text(reader.get_mac())?;
    let wish = Wish {
        ports: reader.get_ports().map_err(malformed)?.iter().map(port).collect::<Result<_>>()?,
        addresses: texts(reader.get_addresses())?,
        mac: (!mac.is_empty()).then(|| mac.to_owned()),
    };
    let mut hosts = Vec::new();
    for host in reader.get_hosts().map_err(malformed)?.iter() {
        hosts.push((text(host.get_key())?.to_owned(), text(host.get_value())?.to_owned()));
    }
    let names = Names {
        servers: texts(reader.get_dns_servers())?,
        search: texts(reader.get_dns_search())?,
        options: texts(reader.get_dns_options())?,
        hosts,
    };
    Ok((network, wish, names))
}

fn port(reader: port_mapping::Reader<'_>) -> Result<Port> {
    let address = text(reader.get_host_address())?;
    let wrong = |_| {
        let shown: String = address.chars().take(100).collect();
        Error::invalid(
            "options",
            "ports",
            format!("have the host's address {shown:?}: give one like 127.0.0.1, or none"),
        )
    };
    Ok(Port {
        host_port: reader.get_host_port(),
        container_port: reader.get_container_port(),
        protocol: match reader.get_protocol().map_err(|e| malformed(e.into()))? {
            port_mapping::Protocol::Tcp => Protocol::Tcp,
            port_mapping::Protocol::Udp => Protocol::Udp,
            port_mapping::Protocol::Sctp => Protocol::Sctp,
        },
        host_ip: if address.is_empty() { None } else { Some(address.parse().map_err(wrong)?) },
    })
}

fn set_port(mut builder: port_mapping::Builder<'_>, port: &Port) {
    builder.set_host_port(port.host_port);
    builder.set_container_port(port.container_port);
    builder.set_protocol(match port.protocol {
        Protocol::Tcp => port_mapping::Protocol::Tcp,
        Protocol::Udp => port_mapping::Protocol::Udp,
        Protocol::Sctp => port_mapping::Protocol::Sctp,
    });
    builder.set_host_address(port.host_ip.map(|ip| ip.to_string()).unwrap_or_default());
}

/// What was asked for.
pub fn set_options(mut builder: network_options::Builder<'_>, record: &NetworkRecord) {
    match &record.network {
        Network::None => builder.set_unset(()),
        Network::Host => builder.set_host(()),
        Network::Named(name) => builder.set_name(name),
        Network::Path(path) => builder.set_path(path),
        Network::Container(id) => builder.set_container(&**id),
    }
    let (wish, names) = (&record.wish, &record.names);
    let mut ports = builder.reborrow().init_ports(wish.ports.len() as u32);
    for (n, port) in wish.ports.iter().enumerate() {
        set_port(ports.reborrow().get(n as u32), port);
    }
    set_texts(builder.reborrow().init_addresses(wish.addresses.len() as u32), &wish.addresses);
    builder.set_mac(wish.mac.as_deref().unwrap_or_default());
    set_texts(builder.reborrow().init_dns_servers(names.servers.len() as u32), &names.servers);
    set_texts(builder.reborrow().init_dns_search(names.search.len() as u32), &names.search);
    set_texts(builder.reborrow().init_dns_options(names.options.len() as u32), &names.options);
    let mut hosts = builder.init_hosts(names.hosts.len() as u32);
    for (n, (name, address)) in names.hosts.iter().enumerate() {
        let mut host = hosts.reborrow().get(n as u32);
        host.set_key(name);
        host.set_value(address);
    }
}

/// What a task is connected to.
pub fn set_status(mut builder: network_status::Builder<'_>, connected: &Connected) {
    builder.set_network(&connected.network);
    builder.set_device(INTERFACE);
    let outcome = &connected.outcome;
    builder.set_mac(&outcome.mac);
    set_texts(builder.reborrow().init_addresses(outcome.addresses.len() as u32), &outcome.addresses);
    set_texts(builder.reborrow().init_gateways(outcome.gateways.len() as u32), &outcome.gateways);
    let mut ports = builder.init_ports(connected.ports.len() as u32);
    for (n, port) in connected.ports.iter().enumerate() {
        set_port(ports.reborrow().get(n as u32), port);
    }
}
