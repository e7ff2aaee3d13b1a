//! Runtime specs: from an image's configuration and typed options to what a driver runs.
//!
//! The defaults are those of containerd's generator with what has been learned since: inheritable capabilities are
//! empty, no new privileges, a seccomp profile, a cgroup namespace, more of /proc and /sys masked.
//!
//! Of the image's configuration its environment, entrypoint, command, working directory, user and stop signal count.
//! Its volumes make no mounts: what an image calls a volume is a directory like any other here (the data of an
//! anonymous volume would outlive the container with nobody to know of it). Its labels, ports and health check say
//! nothing to a runtime.

mod check;
mod devices;
mod linux;
mod mounts;
mod namespaces;
mod options;
mod process;

#[cfg(test)]
mod tests;

use cofferdam_types::{Id, Result};
use oci_spec::{
    image::{Config, ImageConfiguration},
    runtime::{LinuxSeccomp, Root, Spec},
};

use self::check::{clean, shown, wrong};
use crate::{caps, users};

pub use linux::{MAX_PIDS, MIN_MEMORY};
pub(crate) use mounts::all as mounts_of;
pub use mounts::{NAMES, makes_names};
pub use options::{Device, ExecOptions, IdMap, Mount, Network, Options, Seccomp, Ulimit};
pub use process::exec;

/// The oldest version of the runtime spec that has all we use: old runtimes take it as well as new ones.
const VERSION: &str = "1.0.2";
/// What sethostname(2) takes.
const MAX_HOSTNAME: usize = 64;
const MAX_ANNOTATIONS: usize = 64 << 10;

/// Annotations with these prefixes are orders to runc, crun, criu and Kata (unit properties, handlers, files of the host, what a
/// hypervisor is started with). They come with a raw spec and its right, not by the way. No list of what runtimes of others
/// obey is whole: for those every annotation takes the `host` right.
const ORDERS: &[&str] =
    &["org.systemd.property.", "org.criu.", "run.oci.", "io.podman.", "module.wasm.", "io.katacontainers."];

/// Generates the spec of container `id`, to run in the cgroup of that path. `look_up` finds a user in its root file system
/// (see [`users::resolve`]); the spec's own `root.path` is `rootfs` in the bundle.
///
/// Every error names the option that is wrong.
pub fn generate(
    cgroup: &str,
    id: &Id,
    image: &ImageConfiguration,
    options: &Options,
    look_up: impl FnOnce(&str) -> Result<users::User>,
) -> Result<Spec> {
    let none = Config::default();
    let image = image.config().as_ref().unwrap_or(&none);
    namespaces::check(options)?;
    network(options)?;
    let hostname = hostname(id, options)?;
    let capabilities = caps::Set::adjusted(&options.cap_add, &options.cap_drop)?;
    let process = process::first(image, options, hostname.as_deref(), capabilities, look_up)?;
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(options.readonly));
    namespaces::covers(options, process.user())?;
    let cgroup = namespaces::cgroup(options)?.unwrap_or_else(|| cgroup.to_owned());
    let mut spec = Spec::default();
    spec.set_version(VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(hostname.filter(|_| !options.namespaces.contains_key("uts")))
        .set_mounts(Some(mounts::all(options)?))
        .set_linux(Some(linux::linux(&cgroup, options, capabilities)?))
        .set_annotations(Some(annotations(options)?.into_iter().collect()))
        .set_process(Some(process));
    Ok(spec)
}

/// The signal that asks a container of this image to end: SIGTERM unless the image says otherwise.
pub fn stop_signal(image: &ImageConfiguration) -> Result<i32> {
    match image.config().as_ref().and_then(|config| config.stop_signal().as_deref()).filter(|s| !s.is_empty()) {
        Some(text) => signal(text).ok_or_else(|| {
            wrong("stop_signal", format!("of the image is {}; signals look like SIGTERM or 15", shown(text)))
        }),
        None => Ok(libc::SIGTERM),
    }
}

/// `SIGTERM`, `term`, `15` and `SIGRTMIN+3`.
fn signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    for (name, base) in [("RTMIN", libc::SIGRTMIN()), ("RTMAX", libc::SIGRTMAX())] {
        if let Some(offset) = bare.strip_prefix(name) {
            let offset: i32 = if offset.is_empty() { 0 } else { offset.parse().ok()? };
            return base.checked_add(offset).filter(|s| (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(s));
        }
    }
    format!("SIG{bare}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

/// Whether what is said of networks goes together.
fn network(options: &Options) -> Result<()> {
    options.wish.check()?;
    options.names.check()?;
    match &options.network {
        Network::Path(path) => drop(check::path("network", path)?),
        Network::Named(name) => cofferdam_net::check_name("network", name)?,
        _ => {}
    }
    let named = matches!(options.network, Network::Named(_));
    for (what, said) in [
        ("ports", !options.wish.ports.is_empty()),
        ("addresses", !options.wish.addresses.is_empty()),
        ("mac", options.wish.mac.is_some()),
    ] {
        if said && !named {
            return Err(wrong(what, "need a network that can give them: name one"));
        }
    }
    // Its processes could do nothing to a namespace that belongs to the host's user namespace, nor see a sysfs of it.
    if !options.userns.is_empty() && !matches!(options.network, Network::None | Network::Host) {
        return Err(wrong("userns", "goes with the network none or host alone: others are made outside of it"));
    }
    if matches!(options.network, Network::Container(_)) && !options.names.is_empty() {
        return Err(wrong("network", "is another container's, whose names it has: give these to that one"));
    }
    Ok(())
}

/// `None` if the name is that of a namespace which somebody else has named.
fn hostname(id: &Id, options: &Options) -> Result<Option<String>> {
    if let Some(uts) = options.namespaces.get("uts") {
        if options.hostname.is_some() {
            return Err(wrong("hostname", "can't be given with a uts namespace that is not the container's own"));
        }
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        return Ok(host.filter(|_| uts == namespaces::HOST));
    }
    let Some(name) = options.hostname.as_deref() else {
        let cut = id.as_str().get(..MAX_HOSTNAME).unwrap_or(id);
        return Ok(Some(cut.trim_end_matches(['.', '-', '_']).to_owned()));
    };
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if name.len() > MAX_HOSTNAME || name.starts_with('-') || !name.split('.').all(label) {
        return Err(wrong(
            "hostname",
            format!("is {}: it must be 1 to {MAX_HOSTNAME} letters, digits, `-`, `_` and single dots", shown(name)),
        ));
    }
    Ok(Some(name.to_owned()))
}

/// Reads a filter of system calls as `linux.seccomp` of a spec has it; nothing is none.
pub fn seccomp_profile(json: &[u8]) -> Result<Option<LinuxSeccomp>> {
    if json.is_empty() {
        return Ok(None);
    }
    let bad = |e| wrong("seccomp_profile", format!("is not what linux.seccomp of an OCI spec can be: {e}"));
    serde_json::from_slice(json).map(Some).map_err(bad)
}

fn annotations(options: &Options) -> Result<std::collections::BTreeMap<String, String>> {
    let total: usize = options.annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    if total > MAX_ANNOTATIONS {
        return Err(wrong("annotations", format!("have {total} bytes: at most {MAX_ANNOTATIONS} are allowed")));
    }
    for (key, value) in &options.annotations {
        if clean("annotations", key)?.is_empty() || value.contains('\0') {
            return Err(wrong("annotations", format!("have an empty key or a NUL byte: {}", shown(key))));
        }
        if ORDERS.iter().any(|prefix| key.starts_with(prefix)) {
            return Err(wrong("annotations", format!("have {}, which orders a runtime to do something", shown(key))));
        }
    }
    Ok(options.annotations.clone())
}
