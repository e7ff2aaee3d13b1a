//! Whose namespaces and cgroup a container lives in, where they are not its own.

use cofferdam_types::{Error, Result};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceType as Kind, User};

use super::{
    IdMap, Network, Options,
    check::{path, shown, wrong},
};

/// The host's own namespace.
pub(super) const HOST: &str = "host";
/// What the kernel takes.
const MAX_RANGES: usize = 340;

/// Refuses what can't be.
pub(super) fn check(options: &Options) -> Result<()> {
    for (kind, place) in &options.namespaces {
        if !["pid", "ipc", "uts"].contains(&kind.as_str()) {
            return Err(wrong("namespaces", format!("have {}: pid, ipc and uts can be chosen", shown(kind))));
        }
        if place != HOST {
            path("namespaces", place)?;
        }
    }
    if options.userns.len() > MAX_RANGES {
        return Err(wrong("userns", format!("has {} ranges: at most {MAX_RANGES} are possible", options.userns.len())));
    }
    for (n, a) in options.userns.iter().enumerate() {
        let end = |first: u32| u64::from(first) + u64::from(a.size);
        if a.size == 0 || end(a.container) > u64::from(u32::MAX) || end(a.host) > u64::from(u32::MAX) {
            let why = format!(
                "has the range {}:{}:{}, which holds no ids or ends above them all",
                a.container, a.host, a.size
            );
            return Err(wrong("userns", why));
        }
        let overlap = |a: u32, b: u32, sizes: (u32, u32)| {
            u64::from(a) < u64::from(b) + u64::from(sizes.1) && u64::from(b) < u64::from(a) + u64::from(sizes.0)
        };
        for b in &options.userns[..n] {
            let sizes = (a.size, b.size);
            if overlap(a.container, b.container, sizes) || overlap(a.host, b.host, sizes) {
                return Err(wrong("userns", "has two ranges that overlap"));
            }
        }
    }
    if !options.userns.is_empty() && options.namespaces.contains_key("ipc") {
        return Err(wrong("userns", "doesn't go with an ipc namespace that is not the container's own"));
    }
    Ok(())
}

/// Refuses a user whom the container's user namespace doesn't have.
pub(super) fn covers(options: &Options, user: &User) -> Result<()> {
    if options.userns.is_empty() {
        return Ok(());
    }
    let groups = user.additional_gids().iter().flatten().copied();
    match [user.uid(), user.gid()].into_iter().chain(groups).find(|id| !has(&options.userns, *id)) {
        Some(id) => Err(wrong("userns", format!("has no id {id}, which the container's user or group is: map it"))),
        None => Ok(()),
    }
}

/// Whether one of the ranges has the id.
pub(super) fn has(map: &[IdMap], id: u32) -> bool {
    map.is_empty() || map.iter().any(|range| id >= range.container && id - range.container < range.size)
}

/// The cgroup that was chosen.
pub(super) fn cgroup(options: &Options) -> Result<Option<String>> {
    let Some(chosen) = options.cgroup.as_deref() else { return Ok(None) };
    let chosen = path("cgroup", chosen)?;
    if chosen == "/" || chosen.contains(':') {
        return Err(wrong("cgroup", "is the root of the hierarchy, or holds a colon: give a path like /a/b"));
    }
    Ok(Some(chosen))
}

/// The namespaces of a spec: each with the path of one that is there already.
pub(super) fn all(options: &Options) -> Vec<(Kind, Option<String>)> {
    let mut all = Vec::new();
    for (kind, name) in [(Kind::Pid, "pid"), (Kind::Ipc, "ipc"), (Kind::Uts, "uts")] {
        match options.namespaces.get(name).map(String::as_str) {
            Some(HOST) => {}
            place => all.push((kind, place.map(str::to_owned))),
        }
    }
    all.extend([(Kind::Mount, None), (Kind::Cgroup, None)]);
    match &options.network {
        Network::Host => {}
        Network::Path(path) => all.push((Kind::Network, Some(path.clone()))),
        _ => all.push((Kind::Network, None)),
    }
    if !options.userns.is_empty() {
        all.push((Kind::User, None));
    }
    all
}

/// The ranges of a spec.
pub(super) fn mappings(options: &Options) -> Result<Option<Vec<LinuxIdMapping>>> {
    let mapping = |range: &IdMap| {
        let builder = LinuxIdMappingBuilder::default().container_id(range.container).host_id(range.host);
        builder.size(range.size).build().map_err(|e| Error::internal("spec", "uidMappings", e.to_string()))
    };
    let all = options.userns.iter().map(mapping).collect::<Result<Vec<_>>>()?;
    Ok(Some(all).filter(|all| !all.is_empty()))
}
