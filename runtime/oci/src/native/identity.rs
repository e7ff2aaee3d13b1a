//! From a process spec to the steps that make a clone that process: streams, user, rights, limits, command.

use std::{
    ffi::CString,
    os::fd::{AsRawFd, RawFd},
};

use cofferdam_sys::userns::UserNamespace;
use cofferdam_types::{Error, Result};
use oci_spec::runtime::{LinuxSeccomp, PosixRlimit, Process};

use super::{
    step::{Command, Step},
    user,
};
use crate::{Stdio, caps, seccomp};

/// Where a command without a slash is looked for if the environment doesn't say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A seccomp filter, ready to load.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

impl Filter {
    /// `compiled`: what the profile compiles to, if that is known.
    pub fn new(profile: &LinuxSeccomp, compiled: Option<&[libc::sock_filter]>) -> Result<Filter> {
        let program = compiled.map_or_else(|| seccomp::compile(profile), |program| Ok(program.to_vec()))?;
        Ok(Filter { program, flags: seccomp::flags(profile)? })
    }
}

/// Whether the new process is a container's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It gets /dev/console, and waits for the start.
    Init,
    /// One more.
    Exec,
}

/// The steps that give the process its streams. Before these, descriptors of the host are still open; after, none.
pub(super) fn streams(
    process: &Process,
    stdio: &Stdio<'_>,
    role: Role,
    user: Option<&UserNamespace>,
    steps: &mut Vec<Step>,
) -> Result<()> {
    if process.terminal().unwrap_or(false) != matches!(stdio, Stdio::Terminal { .. }) {
        return Err(Error::invalid("spec", "process.terminal", "does not agree with the streams that are given"));
    }
    let uid = process.user().uid();
    if let Some((rows, cols)) = stdio.size(Some(process)) {
        steps.push(Step::Terminal { rows, cols, uid, console: role == Role::Init });
    }
    let fds = match stdio {
        Stdio::Fds { stdin, stdout, stderr } => {
            let raw: [RawFd; 3] = [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()];
            Some(raw)
        }
        Stdio::Terminal { .. } => None,
    };
    if let Some(user) = user {
        user::own_pipes(process, stdio, user)?;
    }
    let uid = if user.is_some() { 0 } else { uid };
    steps.push(Step::Streams { fds, uid });
    Ok(())
}

/// The steps from the streams to the program.
pub(super) fn identity(
    id: &str,
    process: &Process,
    filter: Option<&Filter>,
    role: Role,
    namespace: Option<&UserNamespace>,
    steps: &mut Vec<Step>,
) -> Result<()> {
    let user = process.user();
    let limits = limits(process)?;
    let capabilities = capabilities(process, namespace.is_some())?;
    if let Some(namespace) = namespace {
        user::check(process, namespace)?;
    }
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let load = || filter.map(|f| Step::Seccomp { filter: f.program.clone(), flags: f.flags });
    let cwd = c_string("process.cwd", &process.cwd().to_string_lossy())?;

    steps.push(Step::Keyring(c_string("container", &format!("_ses.{id}"))?));
    if !limits.is_empty() {
        steps.push(Step::Limits(limits));
    }
    steps.push(Step::WorkingDirectory { path: cwd.clone(), early: true });
    if !no_new_privileges {
        // Loading it takes CAP_SYS_ADMIN then.
        steps.extend(load());
    }
    steps.push(Step::Bounding { keep: capabilities.bounding });
    steps.push(Step::User {
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask().unwrap_or(0o022),
    });
    steps.push(Step::Capabilities {
        effective: capabilities.effective,
        permitted: capabilities.permitted,
        inheritable: capabilities.inheritable,
        ambient: capabilities.ambient,
    });
    steps.push(Step::WorkingDirectory { path: cwd, early: false });
    if no_new_privileges {
        steps.push(Step::NoNewPrivileges);
    }
    if role == Role::Init {
        steps.push(Step::Ready);
    }
    if no_new_privileges {
        // As late as can be: the fewer of our own calls a profile has to allow, the better.
        steps.extend(load());
    }
    steps.push(Step::Execute(command(process)?));
    Ok(())
}

struct Capabilities {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

/// The resource limits of a process.
pub(super) fn limits(process: &Process) -> Result<Vec<(u32, libc::rlimit)>> {
    process.rlimits().iter().flatten().map(limit).collect()
}

fn capabilities(process: &Process, in_user_namespace: bool) -> Result<Capabilities> {
    let Some(spec) = process.capabilities() else {
        return Ok(Capabilities { bounding: 0, effective: 0, permitted: 0, inheritable: 0, ambient: 0 });
    };
    let bits = |set: &Option<_>| set.as_ref().map_or(0, |set| caps::Set::from(set).bits());
    let all = Capabilities {
        bounding: bits(spec.bounding()),
        effective: bits(spec.effective()),
        permitted: bits(spec.permitted()),
        // Ambient ones can't be had without.
        inheritable: bits(spec.inheritable()) | bits(spec.ambient()),
        ambient: bits(spec.ambient()),
    };
    // Whoever enters a user namespace has all of its capabilities.
    let own = if in_user_namespace { Ok(u64::MAX) } else { cofferdam_sys::process::permitted_capabilities() };
    let own = own.map_err(|e| Error::io("capability", "", "reading this process's own", &e))?;
    let wanted = all.effective | all.permitted | all.inheritable | all.ambient;
    if let Some(bit) = (0..64).find(|bit| wanted & !own & 1 << bit != 0) {
        let name =
            [spec.permitted(), spec.effective(), spec.inheritable(), spec.ambient()].into_iter().flatten().flatten();
        let name = name.copied().find(|c| caps::number(*c) == bit).map_or("?", caps::name);
        return Err(Error::failed_precondition(
            "capability",
            name,
            "can't be given: the daemon doesn't have it itself; leave it out or start the daemon with it",
        ));
    }
    if all.effective & !all.permitted != 0 || all.ambient & !all.permitted != 0 {
        return Err(Error::invalid(
            "spec",
            "process.capabilities",
            "effective or ambient has capabilities that permitted doesn't have: add them there",
        ));
    }
    Ok(all)
}

fn limit(spec: &PosixRlimit) -> Result<(u32, libc::rlimit)> {
    let name = spec.typ().to_string();
    let resource = cofferdam_sys::process::rlimit(&name)
        .ok_or_else(|| Error::unimplemented("spec", format!("process.rlimits {name}"), "is unknown"))?;
    if spec.soft() > spec.hard() {
        return Err(Error::invalid("spec", format!("process.rlimits {name}"), "the soft limit is above the hard one"));
    }
    Ok((resource, libc::rlimit { rlim_cur: spec.soft(), rlim_max: spec.hard() }))
}

/// Of several values of a variable the last: to a C program the first would count, to others the last.
fn last_of_each(env: &[String]) -> Vec<String> {
    let name = |variable: &'_ str| variable.split('=').next().unwrap_or_default().to_owned();
    let later: Vec<String> = env.iter().map(|variable| name(variable)).collect();
    let last = |at: usize| !later[at + 1..].contains(&later[at]);
    env.iter().enumerate().filter(|(at, _)| last(*at)).map(|(_, variable)| variable.clone()).collect()
}

/// The command, with every path where it may lie.
fn command(process: &Process) -> Result<Command> {
    let strings = |field: &'static str, list: &Option<Vec<String>>| {
        list.iter().flatten().map(|s| c_string(field, s)).collect::<Result<Vec<_>>>()
    };
    let arguments = strings("process.args", process.args())?;
    let environment = strings("process.env", &process.env().as_ref().map(|env| last_of_each(env)))?;
    let name = process.args().as_ref().and_then(|a| a.first()).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Error::invalid("spec", "process.args", "is empty: name a command"))?;
    let mut candidates = Vec::new();
    if name.contains('/') {
        candidates.push(c_string("process.args", name)?);
    } else {
        let path = process.env().iter().flatten().rev().find_map(|v| v.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        // A relative directory would mean whatever the working directory happens to hold.
        for directory in path.split(':').filter(|d| d.starts_with('/')) {
            candidates.push(c_string("process.args", &format!("{}/{name}", directory.trim_end_matches('/')))?);
        }
    }
    Ok(Command::new(candidates, arguments, environment))
}

pub(super) fn c_string(field: &'static str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid("spec", field, "holds a NUL byte"))
}
