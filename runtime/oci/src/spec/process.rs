//! The process: what runs, as whom, where, with which environment and limits.

use std::os::fd::BorrowedFd;

use cofferdam_types::{Error, Result};
use oci_spec::{
    image::Config,
    runtime::{
        Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, PosixRlimit, PosixRlimitBuilder,
        PosixRlimitType, Process,
    },
};

use super::{
    ExecOptions, Options,
    check::{path, shown, wrong},
};
use crate::{caps, users};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// systemd's default, and so what daemons give containers today. The reference's hard limit of 1024 breaks databases,
/// which raise their own soft limit; a high *soft* limit breaks programs that use select(2) or close every descriptor.
///
/// Never more than we have ourselves: to raise a hard limit takes a capability that not every host leaves to root.
fn nofile() -> (u64, u64) {
    let most = own_descriptors();
    (most.min(1024), most.min(524_288))
}

fn own_descriptors() -> u64 {
    nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard)
}

/// The first process of a container.
pub(super) fn first(
    image: &Config,
    options: &Options,
    hostname: Option<&str>,
    set: caps::Set,
    look_up: impl FnOnce(&str) -> Result<users::User>,
) -> Result<Process> {
    let user = match options.user.as_deref() {
        Some(user) => look_up(user).map_err(|e| e.context("user"))?,
        None => look_up(image.user().as_deref().unwrap_or_default()).map_err(|e| e.context("the image's user"))?,
    };
    let mut env = Env::default();
    env.add("env", PATH)?;
    if let Some(hostname) = hostname {
        env.add("hostname", &format!("HOSTNAME={hostname}"))?;
    }
    for variable in image.env().iter().flatten() {
        env.add("env", variable).map_err(|e| e.context("the image's environment"))?;
    }
    for variable in &options.env {
        env.add("env", variable)?;
    }
    if options.tty {
        env.fill("TERM=", "xterm");
    }
    env.fill("HOME=", &user.home);

    let mut process = Process::default();
    process
        .set_terminal(Some(options.tty))
        .set_user(spec_user(&user))
        .set_args(Some(args(image, options)?))
        .set_env(Some(env.0))
        .set_cwd(cwd(image, options)?.into())
        .set_capabilities(Some(capabilities(set)?))
        .set_rlimits(Some(rlimits(options)?))
        .set_no_new_privileges(Some(options.no_new_privileges))
        .set_oom_score_adj(oom_score_adj(options)?)
        .set_apparmor_profile(apparmor(options)?);
    Ok(process)
}

fn oom_score_adj(options: &Options) -> Result<Option<i32>> {
    match options.oom_score_adj {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(wrong("oom_score_adj", format!("is {score}: between -1000 and 1000 are possible")))
        }
        score => Ok(score),
    }
}

fn apparmor(options: &Options) -> Result<Option<String>> {
    let Some(profile) = options.apparmor.as_deref() else { return Ok(None) };
    if profile.is_empty() || profile.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(wrong("apparmor", format!("is {}, which is no name of a profile", shown(profile))));
    }
    Ok(Some(profile.to_owned()))
}

/// One more process, made after the container's first one: the same limits and seccomp, and the same capabilities but for
/// what is changed of them. `root` is the container's root as it is now.
pub fn exec(first: &Process, options: &ExecOptions, root: BorrowedFd<'_>) -> Result<Process> {
    let mut process = first.clone();
    let mut env = Env(first.env().clone().unwrap_or_default());
    if options.tty {
        env.fill("TERM=", "xterm");
    }
    if let Some(user) = options.user.as_deref() {
        let user = users::resolve(root, user).map_err(|e| e.context("user"))?;
        env.0.retain(|variable| !variable.starts_with("HOME="));
        env.fill("HOME=", &user.home);
        process.set_user(spec_user(&user));
    }
    for variable in &options.env {
        env.add("env", variable)?;
    }
    if let Some(cwd) = options.cwd.as_deref() {
        process.set_cwd(path("cwd", cwd)?.into());
    }
    if !options.cap_add.is_empty() || !options.cap_drop.is_empty() {
        let own = first.capabilities().as_ref().and_then(|c| c.bounding().as_ref()).map(caps::Set::from);
        let set = own.unwrap_or_default().changed(&options.cap_add, &options.cap_drop)?;
        process.set_capabilities(Some(capabilities(set)?));
    }
    process.set_args(Some(checked_args(options.args.clone())?)).set_env(Some(env.0)).set_terminal(Some(options.tty));
    Ok(process)
}

fn spec_user(user: &users::User) -> oci_spec::runtime::User {
    let mut spec = oci_spec::runtime::User::default();
    spec.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(user.groups.clone()));
    spec
}

/// As users of Docker and containerd know it.
fn args(image: &Config, options: &Options) -> Result<Vec<String>> {
    let entrypoint = options.entrypoint.as_ref().or_else(|| image.entrypoint().as_ref());
    let cmd = match (options.args.is_empty(), &options.entrypoint) {
        (false, _) => Some(&options.args),
        // The image's arguments were meant for the image's entrypoint.
        (true, Some(_)) => None,
        (true, None) => image.cmd().as_ref(),
    };
    checked_args(entrypoint.into_iter().chain(cmd).flatten().cloned().collect())
}

fn checked_args(args: Vec<String>) -> Result<Vec<String>> {
    match args.first() {
        None => return Err(wrong("args", "are empty, and the image has no command either: say what to run")),
        Some(first) if first.is_empty() => return Err(wrong("args", "begin with an empty text: say what to run")),
        Some(_) => {}
    }
    if let Some(bad) = args.iter().find(|arg| arg.contains('\0')) {
        return Err(wrong("args", format!("hold a NUL byte: {}", shown(bad))));
    }
    Ok(args)
}

fn cwd(image: &Config, options: &Options) -> Result<String> {
    if let Some(cwd) = options.cwd.as_deref() {
        return path("cwd", cwd);
    }
    let cwd = image.working_dir().as_deref().unwrap_or_default();
    // In an image a relative one starts at the root, as everybody reads it.
    path("cwd", &format!("/{cwd}")).map_err(|e| e.context("the image's working directory"))
}

/// An environment without duplicates; what comes later wins, where the first stood.
#[derive(Default)]
struct Env(Vec<String>);

impl Env {
    fn add(&mut self, field: &'static str, variable: &str) -> Result<()> {
        let Some((key, value)) = variable.split_once('=') else {
            return Err(wrong(field, format!("has {}, which is not KEY=value", shown(variable))));
        };
        if key.is_empty() || key.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(wrong(
                field,
                format!("has a variable whose name is empty or holds blanks: {}", shown(variable)),
            ));
        }
        // A value may have several lines.
        if value.contains('\0') {
            return Err(wrong(field, format!("has a NUL byte in the value of {}", shown(key))));
        }
        match self.0.iter_mut().find(|v| v.split_once('=').is_some_and(|(k, _)| k == key)) {
            Some(place) => *place = variable.to_owned(),
            None => self.0.push(variable.to_owned()),
        }
        Ok(())
    }

    /// Sets what isn't set; `key` ends in `=`.
    fn fill(&mut self, key: &str, value: &str) {
        if !self.0.iter().any(|variable| variable.starts_with(key)) {
            self.0.push(format!("{key}{value}"));
        }
    }
}

/// Never inheritable and never ambient: a program without file capabilities run by a user other than root would get
/// them (CVE-2022-24769).
fn capabilities(set: caps::Set) -> Result<LinuxCapabilities> {
    LinuxCapabilitiesBuilder::default()
        .bounding(set.to_spec())
        .effective(set.to_spec())
        .permitted(set.to_spec())
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()
        .map_err(|e| Error::internal("spec", "capabilities", e.to_string()))
}

fn rlimits(options: &Options) -> Result<Vec<PosixRlimit>> {
    let mut limits: Vec<PosixRlimit> = Vec::new();
    for ulimit in &options.ulimits {
        let limit = rlimit(&ulimit.name, ulimit.soft, ulimit.hard)?;
        if limits.iter().any(|other| other.typ() == limit.typ()) {
            return Err(wrong("ulimits", format!("name {} twice", limit.typ())));
        }
        limits.push(limit);
    }
    let (soft, hard) = nofile();
    let nofile = rlimit("nofile", soft, hard)?;
    if !limits.iter().any(|limit| limit.typ() == nofile.typ()) {
        limits.push(nofile);
    }
    Ok(limits)
}

/// Of descriptors the kernel gives nobody more than `fs.nr_open`, and us no more than we have unless we may raise it.
/// `unlimited` is that.
fn descriptors(soft: u64, hard: u64) -> Result<(u64, u64)> {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let raise = 1 << caps::number(Capability::SysResource);
    let may_raise = cofferdam_sys::process::permitted_capabilities().is_ok_and(|own| own & raise != 0);
    let most = if may_raise { most.unwrap_or(1 << 20) } else { own_descriptors() };
    let cap = |number: u64| if number == u64::MAX { most } else { number };
    let (soft, hard) = (cap(soft), cap(hard));
    if soft.max(hard) > most {
        let why = format!("have nofile {}, and this host gives {most} at most", soft.max(hard));
        return Err(wrong("ulimits", why));
    }
    Ok((soft, hard))
}

fn rlimit(name: &str, soft: u64, hard: u64) -> Result<PosixRlimit> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("RLIMIT_") { upper } else { format!("RLIMIT_{upper}") };
    let unknown =
        |_| wrong("ulimits", format!("name {}, which is unknown; they look like nofile or nproc", shown(name)));
    let typ: PosixRlimitType = full.parse().map_err(unknown)?;
    if soft > hard {
        return Err(wrong("ulimits", format!("have a soft limit of {soft} over the hard limit of {hard} for {typ}")));
    }
    let (soft, hard) = match typ {
        PosixRlimitType::RlimitNofile => descriptors(soft, hard)?,
        _ => (soft, hard),
    };
    let limit = PosixRlimitBuilder::default().typ(typ).soft(soft).hard(hard).build();
    limit.map_err(|e| Error::internal("spec", "rlimits", e.to_string()))
}
