//! How a task comes to its network and its names, before its shim is asked to make it.

use std::{
    fs::File,
    io::Write as _,
    net::IpAddr,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
};

use cofferdam_net::{Dns, Names, Wish, text_of_hosts, text_of_resolv};
use cofferdam_networks::Attach;
use cofferdam_oci::spec::{self, NAMES, Network, Options};
use cofferdam_types::{Authority, Ceiling, Error, Id, Namespace, Result};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

use crate::{actor::Ctx, handle::Deps, rights::net, run::Prepared, shim::from_shim};

/// The host's own; the second is that of a resolver which has the first point at itself.
const RESOLV: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What was asked for, of a container that has more than a loopback interface or was told names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkRecord {
    /// The network.
    pub network: Network,
    /// What is asked of it.
    pub wish: Wish,
    /// Names.
    pub names: Names,
}

impl NetworkRecord {
    pub(crate) fn of(options: &Options) -> Option<NetworkRecord> {
        let record = NetworkRecord {
            network: options.network.clone(),
            wish: options.wish.clone(),
            names: options.names.clone(),
        };
        (record != NetworkRecord::default()).then_some(record)
    }

    /// Whether its bundle has the files of [`NAMES`].
    fn makes_names(&self) -> bool {
        let options = Options { network: self.network.clone(), names: self.names.clone(), ..Options::default() };
        spec::makes_names(&options)
    }
}

/// What a task is made with.
#[derive(Default)]
pub(crate) struct Joined {
    /// The container's spec with the namespace in it, where that is not known before.
    spec: Option<Vec<u8>>,
    /// For its bundle.
    files: Vec<(&'static str, String)>,
    /// Whether a network is to be given up if nothing comes of the task.
    pub attached: Option<Id>,
    /// The namespace of another container: the spec names it by this descriptor.
    _held: Option<OwnedFd>,
}

impl Joined {
    pub fn spec<'a>(&'a self, prepared: &'a Prepared) -> &'a [u8] {
        self.spec.as_deref().unwrap_or(&prepared.record.spec.value)
    }

    /// Whether the container has a network of its own that nobody made yet.
    pub fn is_alone(&self) -> bool {
        self.spec.is_none()
    }

    /// Writes the files by which the container knows names. Anybody in it may read them.
    pub fn write(&self, bundle: &Path) -> Result<()> {
        for (name, text) in &self.files {
            let io = |e: std::io::Error| Error::io("bundle", name, "can't be written", &e);
            let mut file =
                File::options().write(true).create_new(true).mode(0o600).open(bundle.join(name)).map_err(io)?;
            file.write_all(text.as_bytes()).map_err(io)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            file.set_permissions(mode).map_err(io)?;
        }
        Ok(())
    }
}

/// A container whose network another one is to share.
pub(crate) struct Neighbour {
    netns: OwnedFd,
    /// The files of its bundle that say names.
    files: Vec<(&'static str, String)>,
}

impl Ctx {
    /// The container whose network this one shares, if it shares one: it must run.
    pub(crate) async fn neighbour(&self, ns: &Namespace, prepared: &Prepared) -> Result<Option<Neighbour>> {
        let Some(NetworkRecord { network: Network::Container(other), .. }) = &prepared.run.network else {
            return Ok(None);
        };
        let theirs = crate::run::prepare(&self.deps, ns, other)?;
        may_share(&theirs, &prepared.record.ceiling)?;
        let not_running =
            || Error::failed_precondition("container", other, "does not run: its network can't be shared");
        let entry = self.entries.borrow().get(&(ns.clone(), other.clone())).cloned().ok_or_else(not_running)?;
        let remote = entry.remote().await?;
        let pid = entry.init.life.borrow().pid;
        let opened = File::open(format!("/proc/{pid}/ns/net"));
        // Asked behind the opening: as long as its first process is there nobody else has its number.
        let answer = entry.answer(&remote, remote.container.state_request().send().promise).await?;
        let lives = answer.get().and_then(|a| a.get_processes()).map_err(from_shim)?.iter();
        let lives = lives.filter_map(|life| cofferdam_wire::convert::life(life).ok());
        let lives = lives.filter(|life| life.id.is_empty()).any(|life| life.pid == pid && life.exited.0 == 0);
        if !lives {
            return Err(not_running());
        }
        let netns = opened.map_err(|e| Error::io("container", other, "its network namespace can't be opened", &e))?;
        let bundle = self.deps.layout.bundle(ns, other);
        let read = |file: &'static str| Some((file, std::fs::read_to_string(bundle.join(file)).ok()?));
        let files = NAMES.iter().filter_map(|(_, file)| read(file)).collect();
        Ok(Some(Neighbour { netns: netns.into(), files }))
    }
}

/// Z3: who shares a network may do what it takes to be in it.
fn may_share(theirs: &Prepared, ceiling: &Ceiling) -> Result<()> {
    let id = &theirs.record.id;
    let denied = |place: &str, right: &str| {
        let why = format!("is in {place}: to share that needs the {right} right");
        Err(Error::denied("container", id, why))
    };
    let theirs_is = theirs.run.network.as_ref().map(|record| &record.network);
    if !ceiling.nets.has("container")
        || theirs_is.is_some_and(|theirs| *theirs != Network::None && !ceiling.nets.has(net(theirs)))
    {
        let why = "is in a network that is not among those of the grant through which the other was made";
        return Err(Error::denied("container", id, why));
    }
    match theirs_is {
        Some(Network::Container(_)) => {
            let why = "shares the network of another one itself: name that one";
            Err(Error::failed_precondition("container", id, why))
        }
        Some(Network::Named(_)) if ceiling.may_connect() => Ok(()),
        Some(Network::Named(_)) => denied("a network of the host's configuration", "networks"),
        Some(Network::None) | None if has_own(&theirs.record.spec.value) || ceiling.host => Ok(()),
        _ if ceiling.host => Ok(()),
        _ => denied("a network namespace of the host's", "host"),
    }
}

/// Whether the spec makes a network namespace of its own.
fn has_own(spec: &[u8]) -> bool {
    let Ok(spec) = serde_json::from_slice::<Spec>(spec) else { return false };
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|n| n.typ() == LinuxNamespaceType::Network && n.path().is_none())
}

/// Connects the task that is about to be made. After an error nothing is left.
pub(crate) async fn join(
    deps: &Deps,
    auth: &Authority,
    ns: &Namespace,
    id: &Id,
    attachment: &Id,
    prepared: &Prepared,
    neighbour: Option<Neighbour>,
) -> Result<Joined> {
    let Some(record) = &prepared.run.network else { return Ok(Joined::default()) };
    let (mut joined, mut addresses, mut dns) = (Joined::default(), Vec::new(), Dns::default());
    match (&record.network, neighbour) {
        (Network::Named(network), _) => {
            let request = Attach {
                authority: auth.clone(),
                id: attachment.clone(),
                namespace: ns.clone(),
                container: id.clone(),
                network: network.clone(),
                wish: record.wish.clone(),
            };
            let connected = deps.networks.attach(request).await?;
            joined.attached = Some(attachment.clone());
            joined.spec = Some(in_namespace(prepared, &connected.netns.to_string_lossy())?);
            addresses = connected.outcome.ips();
            dns = connected.outcome.dns;
        }
        (_, Some(neighbour)) => {
            let path = format!("/proc/{}/fd/{}", std::process::id(), neighbour.netns.as_raw_fd());
            joined.spec = Some(in_namespace(prepared, &path)?);
            joined.files = neighbour.files;
            joined._held = Some(neighbour.netns);
        }
        _ => {}
    }
    if record.makes_names() {
        let own = record.network != Network::Host;
        let files = names(prepared, record, &dns, &addresses, own);
        // Its host name is its own, whoever's network it shares.
        joined.files.retain(|(name, _)| *name != "hostname");
        let there: Vec<&str> = joined.files.iter().map(|(name, _)| *name).collect();
        let missing = files.into_iter().filter(|(name, _)| !there.contains(name)).collect::<Vec<_>>();
        joined.files.extend(missing);
    }
    Ok(joined)
}

/// The files of [`NAMES`].
fn names(
    prepared: &Prepared,
    record: &NetworkRecord,
    dns: &Dns,
    addresses: &[IpAddr],
    own: bool,
) -> Vec<(&'static str, String)> {
    let hostname = prepared.spec.hostname().clone().unwrap_or_default();
    let host: Vec<String> = RESOLV.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
    vec![
        ("resolv.conf", text_of_resolv(&record.names, dns, &host, own)),
        ("hosts", text_of_hosts(&record.names, &hostname, addresses)),
        ("hostname", format!("{hostname}\n")),
    ]
}

/// The container's spec with its network namespace at that path.
fn in_namespace(prepared: &Prepared, path: &str) -> Result<Vec<u8>> {
    let bad = |e: serde_json::Error| {
        Error::data_loss("container", &prepared.record.id, format!("its stored spec can't be read: {e}"))
    };
    let mut spec: serde_json::Value = serde_json::from_slice(&prepared.record.spec.value).map_err(bad)?;
    let namespaces = spec.pointer_mut("/linux/namespaces").and_then(|n| n.as_array_mut());
    let network = namespaces.into_iter().flatten().find(|namespace| namespace["type"] == "network");
    let missing = || Error::data_loss("container", &prepared.record.id, "its stored spec has no network namespace");
    network.ok_or_else(missing)?["path"] = path.into();
    serde_json::to_vec(&spec).map_err(bad)
}

#[cfg(test)]
mod tests {
    use cofferdam_metadata::records::containers::Container;
    use cofferdam_oci::RuntimeOptions;
    use cofferdam_types::{Any, Code};

    use super::*;
    use crate::messages::RunRecord;

    fn prepared(spec: &str, network: Option<Network>) -> Prepared {
        let spec = Any { type_url: "spec".into(), value: spec.as_bytes().to_vec() };
        let network = network.map(|network| NetworkRecord { network, ..NetworkRecord::default() });
        let run = RunRecord { network, ..RunRecord::default() };
        let record = Container::new(Id::new("box").unwrap(), "native", spec);
        let (cgroup, options) = (String::new(), RuntimeOptions::default());
        Prepared { record, run, cgroup, spec: Default::default(), brief: None, options, early: None }
    }

    const OWN: &str = r#"{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"pid"},{"type":"network"}]}}"#;
    const NONE: &str = r#"{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"pid"}]}}"#;
    const OTHERS: &str = r#"{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"network","path":"/x"}]}}"#;

    // Z3 of the negative tests: another way to the same.
    #[test]
    fn what_is_shared_takes_the_same_right() {
        let named = Some(Network::Named("blue".into()));
        let path = Some(Network::Path("/x".into()));
        let networks = Ceiling { networks: true, ..Ceiling::default() };
        for (spec, network, least) in [
            (OWN, None, 0),
            (OWN, named, 1),
            (NONE, Some(Network::Host), 2),
            (OTHERS, path, 2),
            (NONE, None, 2),
            (OTHERS, None, 2),
        ] {
            let theirs = prepared(spec, network);
            for (rights, ceiling) in [&Ceiling::default(), &networks, &Ceiling::FULL].into_iter().enumerate() {
                let shared = may_share(&theirs, ceiling);
                assert_eq!(shared.is_ok(), rights >= least, "{spec} {ceiling:?}");
                assert!(shared.is_ok() || shared.is_err_and(|e| e.code == Code::Denied));
            }
        }
        let sharer = prepared(OWN, Some(Network::Container(Id::new("other").unwrap())));
        assert_eq!(may_share(&sharer, &Ceiling::FULL).unwrap_err().code, Code::FailedPrecondition);
    }

    #[test]
    fn a_namespace_is_put_into_the_spec_and_nothing_else_changes() {
        let spec = in_namespace(&prepared(OWN, None), "/run/x").unwrap();
        let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
        let expected = serde_json::json!([{ "type": "pid" }, { "type": "network", "path": "/run/x" }]);
        assert_eq!((&spec["linux"]["namespaces"], &spec["ociVersion"]), (&expected, &"1.0.2".into()));
        assert_eq!(in_namespace(&prepared(NONE, None), "/run/x").unwrap_err().code, Code::DataLoss);
    }
}
