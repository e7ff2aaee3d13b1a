//! What a client wants of a container (`ContainerOptions` in container.capnp), as the OCI side takes it.

use std::collections::BTreeMap;

use cofferdam_oci::spec::{self, Device, IdMap, Mount, Network, Options, Seccomp, Ulimit};
use cofferdam_types::{Error, Result};
use cofferdam_wire::{
    container_capnp::{bind_mount, container_options, device, id_map},
    convert::{labels, text, texts},
    error::malformed,
};

use super::networks;

/// Reads them.
pub fn read(reader: container_options::Reader<'_>) -> Result<Options> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let number = |n: u64| (n != 0).then_some(n);
    let entrypoint = texts(reader.get_entrypoint())?;
    let (network, wish, names) = networks::options(reader.get_networking().map_err(malformed)?)?;
    let mut ulimits = Vec::new();
    for limit in reader.get_rlimits().map_err(malformed)?.iter() {
        ulimits.push(Ulimit {
            name: text(limit.get_name())?.to_owned(),
            soft: limit.get_soft(),
            hard: limit.get_hard(),
        });
    }
    Ok(Options {
        args: texts(reader.get_args())?,
        entrypoint: reader.get_replace_entrypoint().then_some(entrypoint),
        env: texts(reader.get_env())?,
        cwd: some(text(reader.get_workdir())?),
        user: some(text(reader.get_user())?),
        tty: reader.get_terminal(),
        hostname: some(text(reader.get_hostname())?),
        mounts: reader.get_mounts().map_err(malformed)?.iter().map(mount).collect::<Result<_>>()?,
        readonly: reader.get_read_only(),
        cap_add: texts(reader.get_cap_add())?,
        cap_drop: texts(reader.get_cap_drop())?,
        memory: number(reader.get_memory()),
        cpus: number(reader.get_nano_cpus()).map(|n| n as f64 / 1e9),
        pids: number(reader.get_pids()),
        network: match (network, reader.get_network().map_err(|e| malformed(e.into()))?) {
            (Some(network), _) => network,
            (None, container_options::Network::None) => Network::None,
            (None, container_options::Network::Host) => Network::Host,
        },
        wish,
        names,
        no_new_privileges: !reader.get_allow_new_privileges(),
        seccomp: if reader.get_seccomp_unconfined() { Seccomp::Unconfined } else { Seccomp::Default },
        ulimits,
        sysctls: labels(reader.get_sysctls())?,
        shm_size: number(reader.get_shm_size()),
        annotations: labels(reader.get_annotations())?,
        userns: reader.get_userns().map_err(malformed)?.iter().map(id_map).collect(),
        oom_score_adj: Some(reader.get_oom_score_adj()).filter(|score| *score != 0),
        devices: reader.get_devices().map_err(malformed)?.iter().map(device).collect::<Result<_>>()?,
        apparmor: some(text(reader.get_apparmor())?),
        namespaces: namespaces(reader)?,
        cgroup: some(text(reader.get_cgroup())?),
        seccomp_profile: spec::seccomp_profile(reader.get_seccomp_profile().map_err(malformed)?)?,
        ..Options::default()
    })
}

fn id_map(reader: id_map::Reader<'_>) -> IdMap {
    IdMap { container: reader.get_container(), host: reader.get_host(), size: reader.get_size() }
}

fn device(reader: device::Reader<'_>) -> Result<Device> {
    Ok(Device {
        source: text(reader.get_host_path())?.to_owned(),
        target: text(reader.get_target())?.to_owned(),
        access: text(reader.get_access())?.to_owned(),
    })
}

fn namespaces(reader: container_options::Reader<'_>) -> Result<BTreeMap<String, String>> {
    let mut chosen = BTreeMap::new();
    for choice in reader.get_namespaces().map_err(malformed)?.iter() {
        let kind = text(choice.get_kind())?;
        if chosen.insert(kind.to_owned(), text(choice.get_place())?.to_owned()).is_some() {
            return Err(Error::invalid("options", "namespaces", format!("name {kind:?} twice")));
        }
    }
    Ok(chosen)
}

fn mount(reader: bind_mount::Reader<'_>) -> Result<Mount> {
    let target = text(reader.get_target())?.to_owned();
    let mut options = texts(reader.get_options())?;
    if reader.get_read_only() {
        options.push("ro".into());
    }
    Ok(match reader.which().map_err(|e| malformed(e.into()))? {
        bind_mount::HostPath(path) => Mount::Bind { source: text(path)?.to_owned(), target, options },
        bind_mount::Tmpfs(size) => {
            if size != 0 {
                options.push(format!("size={size}"));
            }
            Mount::Tmpfs { target, options }
        }
    })
}
