//! The typed options of a container (container.capnp, `ContainerOptions`).

use cofferdam_types::Labels;
use cofferdam_wire::{
    container_capnp::{bind_mount, container_options},
    convert::{set_labels, set_texts},
};

use crate::network::{Network, Networking};

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A path of the host: needs the `host` right.
    Host(String),
    /// A fresh tmpfs of at most so many bytes; 0 is the kernel's default.
    Tmpfs(u64),
}

/// A mount into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindMount {
    /// Absolute path in the container.
    pub target: String,
    /// What is mounted there.
    pub source: MountSource,
    /// Whether it can't be written.
    pub read_only: bool,
    /// More mount options, such as nosuid or rprivate.
    pub options: Vec<String>,
}

/// A resource limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// Such as RLIMIT_NOFILE.
    pub name: String,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// How a container runs. What is left empty is the image's choice, or the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerOptions {
    /// Replace the image's command; its entrypoint stays.
    pub args: Vec<String>,
    /// Replaces the image's entrypoint; an empty list is none at all.
    pub entrypoint: Option<Vec<String>>,
    /// `KEY=value`; a later one wins.
    pub env: Vec<String>,
    /// Where it starts.
    pub workdir: String,
    /// name, uid, name:group or uid:gid.
    pub user: String,
    /// Its host name.
    pub hostname: String,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether its root file system can't be written.
    pub read_only: bool,
    /// More mounts.
    pub mounts: Vec<BindMount>,
    /// Capabilities on top of the default ones.
    pub cap_add: Vec<String>,
    /// Capabilities taken away.
    pub cap_drop: Vec<String>,
    /// What it sees of networks.
    pub network: Network,
    /// What it wants of that, and what it is told of names.
    pub networking: Networking,
    /// Bytes; 0 is no limit.
    pub memory: u64,
    /// 1,000,000,000 is one processor; 0 is no limit.
    pub nano_cpus: u64,
    /// Processes; 0 is no limit.
    pub pids: u64,
    /// Whether set-uid programs work.
    pub allow_new_privileges: bool,
    /// No system call filter.
    pub seccomp_unconfined: bool,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Kernel settings of its namespaces.
    pub sysctls: Labels,
    /// OCI annotations.
    pub annotations: Labels,
    /// Of /dev/shm in bytes; 0 is 64 MiB.
    pub shm_size: u64,
    /// A user namespace of its own, with these ids.
    pub userns: Vec<IdMap>,
    /// -1000 to 1000; below 0 needs the `host` right.
    pub oom_score_adj: i32,
    /// Devices of the host: need the `host` right.
    pub devices: Vec<Device>,
    /// An AppArmor profile: needs the `host` right.
    pub apparmor: String,
    /// (pid, ipc or uts; `host`, or the path of a namespace): need the `host` right.
    pub namespaces: Vec<(String, String)>,
    /// The path of its cgroup: needs the `host` right.
    pub cgroup: String,
    /// linux.seccomp of an OCI spec (JSON), in place of the default filter: needs the `host` right.
    pub seccomp_profile: Vec<u8>,
}

/// A range of user and group ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// The first one in the container.
    pub container: u32,
    /// What that one is on the host.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// A device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its node on the host.
    pub host_path: String,
    /// Its node in the container; empty: the same.
    pub target: String,
    /// Made of r, w and m; empty is all.
    pub access: String,
}

impl ContainerOptions {
    pub(crate) fn fill(&self, mut builder: container_options::Builder<'_>) {
        set_texts(builder.reborrow().init_args(self.args.len() as u32), &self.args);
        if let Some(entrypoint) = &self.entrypoint {
            builder.set_replace_entrypoint(true);
            set_texts(builder.reborrow().init_entrypoint(entrypoint.len() as u32), entrypoint);
        }
        set_texts(builder.reborrow().init_env(self.env.len() as u32), &self.env);
        builder.set_workdir(&self.workdir);
        builder.set_user(&self.user);
        builder.set_hostname(&self.hostname);
        builder.set_terminal(self.terminal);
        builder.set_read_only(self.read_only);
        let mut mounts = builder.reborrow().init_mounts(self.mounts.len() as u32);
        for (n, mount) in self.mounts.iter().enumerate() {
            mount.fill(mounts.reborrow().get(n as u32));
        }
        set_texts(builder.reborrow().init_cap_add(self.cap_add.len() as u32), &self.cap_add);
        set_texts(builder.reborrow().init_cap_drop(self.cap_drop.len() as u32), &self.cap_drop);
        builder.set_network(match self.network {
            Network::Host => container_options::Network::Host,
            _ => container_options::Network::None,
        });
        self.networking.fill(&self.network, builder.reborrow().init_networking());
        builder.set_memory(self.memory);
        builder.set_nano_cpus(self.nano_cpus);
        builder.set_pids(self.pids);
        builder.set_allow_new_privileges(self.allow_new_privileges);
        builder.set_seccomp_unconfined(self.seccomp_unconfined);
        let mut rlimits = builder.reborrow().init_rlimits(self.rlimits.len() as u32);
        for (n, limit) in self.rlimits.iter().enumerate() {
            let mut rlimit = rlimits.reborrow().get(n as u32);
            rlimit.set_name(&limit.name);
            rlimit.set_soft(limit.soft);
            rlimit.set_hard(limit.hard);
        }
        set_labels(builder.reborrow().init_sysctls(self.sysctls.len() as u32), &self.sysctls);
        set_labels(builder.reborrow().init_annotations(self.annotations.len() as u32), &self.annotations);
        builder.set_shm_size(self.shm_size);
        let mut userns = builder.reborrow().init_userns(self.userns.len() as u32);
        for (n, range) in self.userns.iter().enumerate() {
            let mut map = userns.reborrow().get(n as u32);
            map.set_container(range.container);
            map.set_host(range.host);
            map.set_size(range.size);
        }
        builder.set_oom_score_adj(self.oom_score_adj);
        let mut devices = builder.reborrow().init_devices(self.devices.len() as u32);
        for (n, wish) in self.devices.iter().enumerate() {
            let mut device = devices.reborrow().get(n as u32);
            device.set_host_path(&wish.host_path);
            device.set_target(&wish.target);
            device.set_access(&wish.access);
        }
        builder.set_apparmor(&self.apparmor);
        let mut namespaces = builder.reborrow().init_namespaces(self.namespaces.len() as u32);
        for (n, (kind, place)) in self.namespaces.iter().enumerate() {
            let mut choice = namespaces.reborrow().get(n as u32);
            choice.set_kind(kind);
            choice.set_place(place);
        }
        builder.set_cgroup(&self.cgroup);
        builder.set_seccomp_profile(&self.seccomp_profile);
    }
}

impl BindMount {
    fn fill(&self, mut builder: bind_mount::Builder<'_>) {
        builder.set_target(&self.target);
        match &self.source {
            MountSource::Host(path) => builder.set_host_path(path),
            MountSource::Tmpfs(size) => builder.set_tmpfs(*size),
        }
        builder.set_read_only(self.read_only);
        set_texts(builder.init_options(self.options.len() as u32), &self.options);
    }
}
