//! What the daemon is told at its start.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use cofferdam_gc::Settings as Gc;
use cofferdam_net::Plugins;
use cofferdam_snapshots::Settings;
use cofferdam_tasks::Runtimes;
use cofferdam_transfer::{Proxies, Settings as Pulls, Trust};
use cofferdam_types::{Error, Limits, Result};

use crate::access::Access;

/// The command line, in full: an appliance fills this in itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Acknowledged facts.
    pub root: PathBuf,
    /// What ends with a reboot; the socket lies here.
    pub state: PathBuf,
    /// The shim program.
    pub shim: PathBuf,
    /// criu, for checkpoints; it need not be there.
    pub criu: PathBuf,
    /// Runtime binaries of others that whoever may make containers may choose by name.
    pub runtimes: Runtimes,
    /// The group whose members can connect to the socket; none: the daemon's own.
    pub group: Option<u32>,
    /// What others than the operator are granted by connecting.
    pub access: Access,
    /// How many connections may be open.
    pub connections: u32,
    /// Where journald listens, for containers that log to it.
    pub journal: PathBuf,
    /// How long a reader of a deleted process is waited for who takes nothing.
    pub drain: Duration,
    /// Where networks are configured, and what makes them.
    pub networks: Networks,
    /// The table of hosts by which registries are reached.
    pub hosts: PathBuf,
    /// The proxies by which they are reached.
    pub proxies: Proxies,
    /// When the collector collects.
    pub gc: Gc,
    /// How much time is between two passes over all blobs; zero: there are none.
    pub scrub: Duration,
    /// What pulls are held to.
    pub pulls: Pulls,
    /// Whose images come in.
    pub trust: Trust,
    /// What an image may say and cost.
    pub limits: Limits,
    /// What all snapshot drivers are held to.
    pub snapshots: Settings,
    /// What is logged, as tracing-subscriber's `EnvFilter` reads it.
    pub log: String,
}

/// Networks of the host, as CNI has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks {
    /// The directory of configurations.
    pub configs: PathBuf,
    /// Plugins, and how long each may take.
    pub plugins: Plugins,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Serve.
    Run(Box<Config>),
    /// Make new tables from what is readable in damaged ones.
    Rebuild(Box<Config>),
    /// Print this and end.
    Print(String),
}

const HELP: &str = "\
cofferd: the container daemon

Usage: cofferd [--root DIR] [--state DIR] [--shim FILE] [--criu FILE] [--runtime NAME[=FILE]]... [--connections NUMBER]
               [--group GID] [--access WHO=NAMESPACE/LABEL]... [--journal SOCKET] [--drain-timeout SECONDS]
               [--cni-config DIR] [--cni-plugins DIR[:DIR]...] [--cni-timeout SECONDS] [--hosts DIR] [--scrub SECONDS]
               [--gc KEY=VALUE[,...]]... [--pull KEY=VALUE[,...]]... [--trust FILE]
               [--image-limits KEY=VALUE[,...]]... [--verity] [--rebuild] [--log FILTER]

  --root DIR            what must last (default /var/lib/cofferdam)
  --state DIR           what ends with a reboot, and the socket cofferd.sock (default /run/cofferdam)
  --shim FILE           the shim program (default: coffer-shim beside this program)
  --criu FILE           the program that checkpoints and restores (default: criu in the system's own directories)
  --runtime NAME[=FILE] a runc-compatible runtime that whoever may make containers may choose by this name: this binary, or one
                        of that name in the system's own directories; NAME= takes a name away. There are runc, crun and youki;
                        any other takes the right to the host
  --connections NUMBER  how many may be open at once (default 1024); other users than its own have three quarters of
                        them at most, and one user an eighth
  --group GID           whose members can connect to the socket, beside the daemon's own user; they have nothing by that
  --access WHO=NAMESPACE/LABEL  what somebody else is granted on the socket: the grant of that label that the operator made in that
                        namespace. WHO is user:UID or group:GID, as the kernel says who connects; docs/grants.md says more
  --journal SOCKET      where journald listens, for containers that log to it (default /run/systemd/journal/socket)
  --drain-timeout SECONDS
                        how long a reader who takes nothing of what a deleted container wrote keeps it waiting for him (default 300)
  --cni-config DIR      where networks are configured (default /etc/cni/net.d)
  --cni-plugins DIRS    where CNI plugins lie, directories with a colon between them (default
                        /opt/cni/bin:/usr/lib/cni:/usr/libexec/cni)
  --cni-timeout SECONDS how long one run of a plugin may take before it is killed (default 60)
  --hosts DIR           how registries are reached: a directory for each, with a hosts.toml as containerd's (default
                        /etc/cofferdam/hosts.d); docs/registries.md says more
  --gc KEY=VALUE        when blobs and snapshots that nothing keeps are collected; several with a comma between them. The
                        keys are containerd's: pause_threshold (0.02: the share of the time that it may take),
                        deletion_threshold (0: how many removals make it collect; 0: each), mutation_threshold (100: how
                        many writes do), schedule_delay (1s), startup_delay (100ms), and period (1h: at the latest, if
                        anything was written) and disk_pressure (0.9: from this share of the disk in use on, whatever was
                        written). 0 turns one off; docs/gc.md says more
  --scrub SECONDS       how much time goes by between two passes that compare all blobs with their digests, and unpacked layers
                        with their blobs (default 604800, a week); 0: there are none
  --pull KEY=VALUE      what pulls are held to; several with a comma between them: rate (0: bytes a second of all of them together, such as
                        20M; 0 is no limit), idle (30: seconds after which a layer that brings nothing is given up), memory (44M: what
                        layers on their way hold together, beside a little for each) and zstd_window (128M: the largest window that a
                        pull may ask for; without asking it has 32M)
  --trust FILE          the policy that says whose images come in, in JSON (default /etc/cofferdam/trust.json; where that isn't
                        there, everything does); docs/trust.md says more
  --image-limits KEY=VALUE
                        what an image may say and cost; several with a comma between them; docs/images.md says which there are
  --verity              seal each layer by fs-verity when it is committed, or refuse it: only the snapshot driver erofs can, which is
                        the default then; it takes a kernel and a file system that have it; docs/snapshots.md says more
  --rebuild             serve nobody, but make a new meta.redb from what is readable in a damaged one and from what lies on
                        disk, and say what became of it; docs/check.md says more
  --log FILTER          what is logged to standard error, such as info or cofferd=debug (default warn)
  --version             the version
  --help                this text

Registries are reached by the proxies that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY in its environment say.

One daemon per root directory, and per state directory. It runs as root, and grants everything on its socket to its own uid and nothing to
anybody else, unless --access says so.
";

/// The socket's name in the state directory.
pub const SOCKET: &str = "cofferd.sock";

/// Where the policy is looked for.
const TRUST: &str = "/etc/cofferdam/trust.json";

/// A fixed path, not the daemon's environment: what runs as root is not up to a variable.
fn criu() -> PathBuf {
    let dirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
    let found = dirs.iter().map(|dir| PathBuf::from(dir).join("criu")).find(|path| path.is_file());
    found.unwrap_or_else(|| PathBuf::from("/usr/sbin/criu"))
}

/// Reads the arguments behind the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|dir| dir.join("coffer-shim")));
    let mut config = Config {
        root: PathBuf::from("/var/lib/cofferdam"),
        state: PathBuf::from("/run/cofferdam"),
        shim: beside.unwrap_or_else(|| PathBuf::from("coffer-shim")),
        criu: criu(),
        runtimes: Runtimes::default(),
        access: Access::default(),
        group: None,
        connections: 1024,
        journal: PathBuf::from(cofferdam_log::JOURNAL),
        drain: Duration::from_secs(300),
        networks: Networks {
            configs: PathBuf::from("/etc/cni/net.d"),
            plugins: Plugins {
                dirs: ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"].map(PathBuf::from).to_vec(),
                deadline: Duration::from_secs(60),
            },
        },
        hosts: PathBuf::from("/etc/cofferdam/hosts.d"),
        proxies: Proxies::of(|name| std::env::var(name).ok())?,
        gc: Gc::default(),
        scrub: Duration::from_secs(7 * 24 * 3600),
        pulls: Pulls::default(),
        trust: Trust::of(PathBuf::from(TRUST), false),
        limits: Limits::default(),
        snapshots: Settings::default(),
        log: std::env::var("COFFERD_LOG").unwrap_or_else(|_| "warn".into()),
    };
    let (mut args, mut rebuild) = (args.into_iter(), false);
    while let Some(arg) = args.next() {
        let name = arg.to_string_lossy().into_owned();
        let (name, inline) = match name.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(OsString::from(value))),
            None => (name, None),
        };
        let mut value = || {
            let missing = || Error::invalid("option", &name, "needs a value; see cofferd --help");
            inline.clone().or_else(|| args.next()).ok_or_else(missing)
        };
        match name.as_str() {
            "--root" => config.root = value()?.into(),
            "--state" => config.state = value()?.into(),
            "--shim" => config.shim = value()?.into(),
            "--criu" => config.criu = value()?.into(),
            "--runtime" => config.runtimes.set(&value()?.to_string_lossy())?,
            "--group" => {
                let wrong = || Error::invalid("option", "--group", "needs the number of a group");
                config.group = Some(value()?.to_string_lossy().parse().map_err(|_| wrong())?);
            }
            "--access" => config.access.add(&value()?.to_string_lossy())?,
            "--connections" => {
                let number = value()?.to_string_lossy().parse().ok().filter(|number| *number > 0);
                let wrong = || Error::invalid("option", "--connections", "needs a number, 1 or more");
                config.connections = number.ok_or_else(wrong)?;
            }
            "--journal" => config.journal = value()?.into(),
            "--drain-timeout" => {
                let number = value()?.to_string_lossy().parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
                let wrong = || Error::invalid("option", "--drain-timeout", "needs a number of seconds, 1 to 86400");
                config.drain = Duration::from_secs(number.ok_or_else(wrong)?);
            }
            "--cni-config" => config.networks.configs = value()?.into(),
            "--cni-plugins" => {
                config.networks.plugins.dirs = std::env::split_paths(&value()?).filter(|dir| dir != "").collect();
                if config.networks.plugins.dirs.is_empty() {
                    return Err(Error::invalid("option", "--cni-plugins", "names no directory"));
                }
            }
            "--cni-timeout" => {
                let number = value()?.to_string_lossy().parse().ok().filter(|seconds| (1..=3600).contains(seconds));
                let wrong = || Error::invalid("option", "--cni-timeout", "needs a number of seconds, 1 to 3600");
                config.networks.plugins.deadline = Duration::from_secs(number.ok_or_else(wrong)?);
            }
            "--hosts" => config.hosts = value()?.into(),
            "--gc" => config.gc.set(&value()?.to_string_lossy())?,
            "--scrub" => {
                let wrong = || Error::invalid("option", "--scrub", "needs a number of seconds; 0 is never");
                config.scrub = Duration::from_secs(value()?.to_string_lossy().parse().map_err(|_| wrong())?);
            }
            "--pull" => config.pulls.set(&value()?.to_string_lossy())?,
            "--trust" => {
                let path = PathBuf::from(value()?);
                let failed = |e| Error::io("path", path.display(), "has no absolute form", &e);
                config.trust = Trust::of(std::path::absolute(&path).map_err(failed)?, true);
            }
            "--image-limits" => config.limits.set(&value()?.to_string_lossy())?,
            "--verity" if inline.is_none() => config.snapshots.verity = true,
            "--log" => config.log = value()?.to_string_lossy().into_owned(),
            "--rebuild" => rebuild = true,
            "--version" => return Ok(Command::Print(format!("cofferd {}\n", env!("CARGO_PKG_VERSION")))),
            "--help" | "-h" => return Ok(Command::Print(HELP.into())),
            _ => return Err(Error::invalid("option", name, "is not known; see cofferd --help")),
        }
    }
    // Shims and containers outlive any working directory: everything is named absolutely.
    let Config { root, state, shim, criu, journal, hosts, networks: Networks { configs, plugins }, .. } = &mut config;
    for path in [root, state, shim, criu, journal, hosts, configs].into_iter().chain(&mut plugins.dirs) {
        *path =
            std::path::absolute(&*path).map_err(|e| Error::io("path", path.display(), "has no absolute form", &e))?;
    }
    let config = Box::new(config);
    Ok(if rebuild { Command::Rebuild(config) } else { Command::Run(config) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Command> {
        parse(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_are_read_in_both_forms() {
        let Command::Run(config) = words("--root /a --state=/b --log debug --connections 7 --journal=/c").unwrap()
        else {
            panic!("a run")
        };
        assert_eq!((config.root, config.state), (PathBuf::from("/a"), PathBuf::from("/b")));
        assert_eq!((config.log.as_str(), config.connections), ("debug", 7));
        assert_eq!(config.journal, PathBuf::from("/c"));
        assert_eq!(config.drain, Duration::from_secs(300));
        let Command::Run(config) = words("--drain-timeout 7").unwrap() else { panic!("a run") };
        assert_eq!(config.drain, Duration::from_secs(7));
        assert_eq!(words("--drain-timeout 0").unwrap_err().id, "--drain-timeout");
        assert!(config.shim.ends_with("coffer-shim"));
    }

    #[test]
    fn what_others_are_granted_is_said() {
        let Command::Run(config) =
            words("--group 8 --access user:7=default/watcher --access=group:8=default/logs").unwrap()
        else {
            panic!("a run")
        };
        let mut wanted = Access::default();
        ["user:7=default/watcher", "group:8=default/logs"].iter().for_each(|rule| wanted.add(rule).unwrap());
        assert_eq!((config.access, config.group), (wanted, Some(8)));
        assert_eq!(words("--group staff").unwrap_err().id, "--group");
        assert_eq!(words("--access everybody").unwrap_err().kind, "access");
    }

    #[test]
    fn runtimes_have_names() {
        let Command::Run(config) = words("--runtime kata=/opt/kata --runtime=runc= --runtime mine").unwrap() else {
            panic!("a run")
        };
        let mut wanted = Runtimes::default();
        ["kata=/opt/kata", "runc=", "mine"].iter().for_each(|text| wanted.set(text).unwrap());
        assert_eq!(config.runtimes, wanted);
        assert_eq!(words("--runtime kata=relative").unwrap_err().kind, "runtime");
    }

    #[test]
    fn plugins_lie_in_directories() {
        let line = "--cni-config /c --cni-plugins /a::/b --cni-timeout 5";
        let Command::Run(config) = words(line).unwrap() else { panic!("a run") };
        assert_eq!(config.networks.configs, PathBuf::from("/c"));
        assert_eq!(config.networks.plugins.dirs, ["/a", "/b"].map(PathBuf::from));
        assert_eq!(config.networks.plugins.deadline, Duration::from_secs(5));
    }

    #[test]
    fn hosts_lie_in_a_directory() {
        for (line, dir) in [("", "/etc/cofferdam/hosts.d"), ("--hosts /h", "/h"), ("--hosts=/h/i", "/h/i")] {
            let Command::Run(config) = words(line).unwrap() else { panic!("a run") };
            assert_eq!(config.hosts, PathBuf::from(dir), "{line}");
        }
    }

    #[test]
    fn the_collector_has_keys() {
        let line = "--gc period=10m,mutation_threshold=7 --gc=disk_pressure=0";
        let Command::Run(config) = words(line).unwrap() else { panic!("a run") };
        assert_eq!((config.gc.period, config.gc.mutation_threshold), (Duration::from_secs(600), 7));
        assert_eq!((config.gc.disk_pressure, config.gc.deletion_threshold), (0.0, 0));
        assert_eq!(words("--gc nonsense=1").unwrap_err().id, "nonsense");
    }

    #[test]
    fn passes_have_a_time_between_them_or_there_are_none() {
        for (line, seconds) in [("", 7 * 24 * 3600), ("--scrub 60", 60), ("--scrub=0", 0)] {
            let Command::Run(config) = words(line).unwrap() else { panic!("a run") };
            assert_eq!(config.scrub, Duration::from_secs(seconds), "{line}");
        }
        assert_eq!(words("--scrub often").unwrap_err().id, "--scrub");
    }

    #[test]
    fn pulls_are_held_to_something() {
        let Command::Run(config) = words("--pull rate=1M,idle=5 --pull=memory=32M").unwrap() else { panic!("a run") };
        assert_eq!((config.pulls.rate, config.pulls.idle), (1 << 20, Duration::from_secs(5)));
        assert_eq!((config.pulls.memory, config.pulls.zstd_window), (32 << 20, 128 << 20));
        assert_eq!(words("--pull nonsense=1").unwrap_err().id, "nonsense");
    }

    #[test]
    fn layers_are_sealed_where_that_is_wanted() {
        for (line, verity) in [("", false), ("--verity --log debug", true)] {
            let Command::Run(config) = words(line).unwrap() else { panic!("a run") };
            assert_eq!(config.snapshots.verity, verity, "{line}");
        }
        assert_eq!(words("--verity=no").unwrap_err().id, "--verity");
    }

    #[test]
    fn limits_of_images_are_changed_by_their_keys() {
        let line = "--image-limits layers=7,ratio=10 --image-limits=path=100 --trust /x";
        let Command::Run(config) = words(line).unwrap() else { panic!("a run") };
        assert_eq!((config.limits.layers, config.limits.ratio, config.limits.path), (7, 10, 100));
        assert!(config.trust.check().is_err(), "one that is named must be there");
        assert_eq!(words("--image-limits nonsense=1").unwrap_err().id, "nonsense");
    }

    #[test]
    fn a_rebuild_has_the_directories_of_the_daemon() {
        let Command::Rebuild(config) = words("--root /a --rebuild --state /b").unwrap() else { panic!("a rebuild") };
        assert_eq!((config.root, config.state), (PathBuf::from("/a"), PathBuf::from("/b")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(words("--rot /a").unwrap_err().id, "--rot");
        for wrong in ["--connections 0", "--connections many", "--connections=-1"] {
            assert!(words(wrong).unwrap_err().message.contains("needs a number"), "{wrong}");
        }
        for wrong in ["--cni-timeout 0", "--cni-timeout x", "--cni-timeout 99999", "--cni-plugins :"] {
            assert!(words(wrong).unwrap_err().id.starts_with("--cni"), "{wrong}");
        }
        assert!(words("--root").unwrap_err().message.contains("needs a value"));
        assert!(matches!(words("--help").unwrap(), Command::Print(text) if text.contains("--state DIR")));
    }
}
