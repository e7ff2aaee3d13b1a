//! What a client may say about a container, as types. A raw spec is another matter, with another right.

use std::collections::BTreeMap;

use cofferdam_net::{Names, Wish};
use cofferdam_types::Id;
use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

/// How a container differs from what its image and our defaults say.
///
/// A field that is not known is an error and not passed over: it would be a wish that silently fails, or a restriction
/// that a newer daemon wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Replaces the image's `Cmd`; its entrypoint stays in front.
    pub args: Vec<String>,
    /// Replaces the image's entrypoint, and its `Cmd` with it; empty: there is none.
    pub entrypoint: Option<Vec<String>>,
    /// `KEY=value`, over the image's own.
    pub env: Vec<String>,
    /// The working directory; absolute.
    pub cwd: Option<String>,
    /// Who the process is, as [`crate::users::resolve`] reads it.
    pub user: Option<String>,
    /// Whether the process has a terminal.
    pub tty: bool,
    /// The host name; the container's id if not given.
    pub hostname: Option<String>,
    /// More mounts. One at the place of a default one replaces it.
    pub mounts: Vec<Mount>,
    /// Whether the root file system is read-only.
    pub readonly: bool,
    /// Capabilities over the default; `ALL` for every one.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default; `ALL` for every one.
    pub cap_drop: Vec<String>,
    /// At most so many bytes of memory.
    pub memory: Option<u64>,
    /// At most so much of the processors' time: `1.5` is one and a half.
    pub cpus: Option<f64>,
    /// The weight against others when processors are short: 2 to 262144, usually 1024.
    pub cpu_shares: Option<u64>,
    /// At most so many processes and threads.
    pub pids: Option<u64>,
    /// The network that the container sees.
    pub network: Network,
    /// What is asked of a network that is named.
    pub wish: Wish,
    /// What the container is told of names.
    pub names: Names,
    /// Whether set-uid programs and file capabilities are without effect. True unless said otherwise.
    pub no_new_privileges: bool,
    /// Which system calls are allowed.
    pub seccomp: Seccomp,
    /// Resource limits of processes (setrlimit(2)).
    pub ulimits: Vec<Ulimit>,
    /// Kernel parameters; those that belong to a namespace of the container alone.
    pub sysctls: BTreeMap<String, String>,
    /// The size of `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// Annotations of the spec. The image's labels do not become annotations.
    pub annotations: BTreeMap<String, String>,
    /// What its user and group ids are on the host, for a user namespace of its own; none: they are the host's.
    pub userns: Vec<IdMap>,
    /// How much sooner (or, below 0, later) than others it is killed when memory is short: -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// The AppArmor profile that its processes run under.
    pub apparmor: Option<String>,
    /// Namespaces (`pid`, `ipc`, `uts`) that are not its own: `host`, or the path of one.
    pub namespaces: BTreeMap<String, String>,
    /// The path of its cgroup, from the root of the hierarchies.
    pub cgroup: Option<String>,
    /// System calls that are allowed, in place of [`Seccomp::Default`].
    pub seccomp_profile: Option<LinuxSeccomp>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            args: Vec::new(),
            entrypoint: None,
            env: Vec::new(),
            cwd: None,
            user: None,
            tty: false,
            hostname: None,
            mounts: Vec::new(),
            readonly: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            memory: None,
            cpus: None,
            cpu_shares: None,
            pids: None,
            network: Network::None,
            wish: Wish::default(),
            names: Names::default(),
            no_new_privileges: true,
            seccomp: Seccomp::Default,
            ulimits: Vec::new(),
            sysctls: BTreeMap::new(),
            shm_size: None,
            annotations: BTreeMap::new(),
            userns: Vec::new(),
            oom_score_adj: None,
            devices: Vec::new(),
            apparmor: None,
            namespaces: BTreeMap::new(),
            cgroup: None,
            seccomp_profile: None,
        }
    }
}

/// One more process in a container: what is not said is as for its first one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExecOptions {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `KEY=value`, over the container's own.
    pub env: Vec<String>,
    /// The working directory; absolute.
    pub cwd: Option<String>,
    /// Who the process is.
    pub user: Option<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Capabilities that the container's first process doesn't have.
    pub cap_add: Vec<String>,
    /// Those of the first process that this one doesn't get.
    pub cap_drop: Vec<String>,
}

/// Which network a container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// One of its own with nothing in it but a loopback interface, which is up.
    #[default]
    None,
    /// The host's, with the host's `/etc/resolv.conf` and `/etc/hosts` bound in.
    Host,
    /// That of a network namespace of the host's, by path.
    Path(String),
    /// That of another container of its namespace, by id.
    Container(Id),
    /// One of its own that is connected to this network of the host's configuration.
    Named(String),
}

impl Network {
    /// Whether nobody else is in its network namespace.
    pub fn is_own(&self) -> bool {
        matches!(self, Network::None | Network::Named(_))
    }
}

/// Which system calls a container may make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// Those of [`crate::seccomp::default_profile`].
    #[default]
    Default,
    /// All.
    Unconfined,
}

/// A mount that a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Mount {
    /// A file or directory of the host.
    Bind {
        /// Where on the host; absolute.
        source: String,
        /// Where in the container; absolute.
        target: String,
        /// Such as `ro` or `noexec`; recursive and private unless said otherwise.
        #[serde(default)]
        options: Vec<String>,
    },
    /// Memory that goes with the container.
    Tmpfs {
        /// Where in the container; absolute.
        target: String,
        /// Such as `size=64m`; `noexec`, `nosuid` and `nodev` unless said otherwise.
        #[serde(default)]
        options: Vec<String>,
    },
}

/// A range of user and group ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdMap {
    /// The first one in the container.
    pub container: u32,
    /// What that one is on the host.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// A device of the host in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its node on the host; absolute.
    pub source: String,
    /// Its node in the container; the same if it is empty.
    #[serde(default)]
    pub target: String,
    /// Made of `r`, `w` and `m`; all if it is empty.
    #[serde(default)]
    pub access: String,
}

/// A resource limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// Such as `nofile` or `RLIMIT_NOFILE`.
    pub name: String,
    /// What applies.
    pub soft: u64,
    /// Up to which a process may raise it.
    pub hard: u64,
}
