//! Hooks of a spec: programs that run at set points of a container's life, with its state on their standard input.
//!
//! Those of the runtime's namespace are programs of the host that run there, those of `createContainer` are programs of
//! the host in the container's namespaces, and those of `startContainer` are the container's own programs: each runs
//! just as another process of the container would, with no more rights. A hook that doesn't end in time is killed.

use std::{
    fs::File,
    io::{Seek, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use cofferdam_sys::{
    process,
    program::{self, Streams},
    userns::UserNamespace,
};
use cofferdam_types::{Error, Result};
use oci_spec::runtime::{ContainerState, Hook, Hooks as Spec, Process, State};

use super::launch::ChildrenIn;
use crate::CreateRequest;

/// For a hook that names no timeout: whoever waits for the container doesn't wait for ever.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How much of what a hook said is told.
const SAID: usize = 500;

/// How long the hooks may take that run outside the making of a container.
#[derive(Clone, Copy, Debug)]
pub struct HookTime {
    /// Those of its start.
    pub start: Duration,
    /// Those behind its end.
    pub stop: Duration,
}

/// That of the hooks that a spec has.
pub fn hook_time(spec: &oci_spec::runtime::Spec) -> HookTime {
    let sum = |hooks: &[Hook]| hooks.iter().fold(Duration::ZERO, |sum, hook| sum.saturating_add(timeout(hook)));
    let of = |which: fn(&Spec) -> &Option<Vec<Hook>>| {
        spec.hooks().as_ref().map_or(Duration::ZERO, |hooks| sum(list(which(hooks))))
    };
    HookTime { start: of(Spec::start_container).saturating_add(of(Spec::poststart)), stop: of(Spec::poststop) }
}

/// The hooks of a container that has any.
#[derive(Debug)]
pub(super) struct Hooks {
    spec: Spec,
    state: State,
    bundle: PathBuf,
    /// What a hook of `startContainer` runs as.
    process: Process,
}

/// The namespaces of a container that is being made.
pub(super) struct Inside<'a> {
    pub pid: i32,
    pub pidfd: &'a OwnedFd,
    /// Those that it has of its own.
    pub namespaces: i32,
    pub user: Option<&'a UserNamespace>,
}

impl Hooks {
    /// Those that a spec has.
    pub fn new(request: &CreateRequest<'_>) -> Option<Hooks> {
        let spec = request.spec.hooks().clone()?;
        let mut state = State::default();
        state
            .set_version(request.spec.version().clone())
            .set_id(request.id.to_string())
            .set_bundle(request.bundle_path.to_owned())
            .set_annotations(request.spec.annotations().clone());
        let process = request.spec.process().clone().unwrap_or_default();
        has_any(&spec).then(|| Hooks { spec, state, bundle: request.bundle_path.to_owned(), process })
    }

    /// Whether a spec has any.
    pub fn any(spec: &oci_spec::runtime::Spec) -> bool {
        spec.hooks().as_ref().is_some_and(has_any)
    }

    #[allow(deprecated)] // prestart is, but specs have it.
    fn prestart(&self) -> &[Hook] {
        list(self.spec.prestart())
    }

    /// Whether there are any that come before the change to the container's root.
    pub fn before_root(&self) -> bool {
        !(self.prestart().is_empty()
            && list(self.spec.create_runtime()).is_empty()
            && list(self.spec.create_container()).is_empty())
    }

    /// `prestart`, `createRuntime` and `createContainer`, while the container has its namespaces and mounts but not its
    /// root: the first that fails ends it.
    pub fn create(&self, inside: &Inside<'_>) -> Result<()> {
        let state = self.state(ContainerState::Creating, Some(inside.pid))?;
        for (kind, hook) in
            named("prestart", self.prestart()).chain(named("createRuntime", list(self.spec.create_runtime())))
        {
            self.outside(kind, hook, &state)?;
        }
        named("createContainer", list(self.spec.create_container()))
            .try_for_each(|(kind, hook)| self.in_namespaces(kind, hook, &state, inside))
    }

    /// `startContainer`: `run` makes each as a process of the container.
    pub fn start(&self, pid: i32, run: impl Fn(&Process, &Path, &File) -> Result<OwnedFd>) -> Result<()> {
        let hooks = list(self.spec.start_container());
        if hooks.is_empty() {
            return Ok(());
        }
        let state = self.state(ContainerState::Created, Some(pid))?;
        for (kind, hook) in named("startContainer", hooks) {
            let mut process = self.process.clone();
            let name = || vec![hook.path().to_string_lossy().into_owned()];
            process
                .set_args(Some(hook.args().clone().filter(|args| !args.is_empty()).unwrap_or_else(name)))
                .set_env(Some(hook.env().clone().unwrap_or_default()))
                .set_terminal(Some(false));
            let pidfd = run(&process, hook.path(), &input(&state)?).map_err(|e| failed(kind, hook, &e.to_string()))?;
            let fail = |e: std::io::Error| failed(kind, hook, &e.to_string());
            let in_time = process::ended_within(&pidfd, timeout(hook)).map_err(fail)?;
            if !in_time {
                process::pidfd_send_signal(&pidfd, libc::SIGKILL).map_err(fail)?;
            }
            let exit = process::waitid(&pidfd, true).map_err(fail)?;
            match exit.map(process::Exit::status) {
                _ if !in_time => return Err(late(kind, hook)),
                Some(0) => {}
                status => return Err(failed(kind, hook, &format!("ended with status {}", status.unwrap_or_default()))),
            }
        }
        Ok(())
    }

    /// `poststart`, once the program runs: the first that fails ends the container.
    pub fn started(&self, pid: i32) -> Result<()> {
        let hooks = list(self.spec.poststart());
        if hooks.is_empty() {
            return Ok(());
        }
        let state = self.state(ContainerState::Running, Some(pid))?;
        named("poststart", hooks).try_for_each(|(kind, hook)| self.outside(kind, hook, &state))
    }

    /// `poststop`, once nothing is left of it: all of them, whichever fails.
    pub fn stopped(&self) {
        let all = self.state(ContainerState::Stopped, None).map(|state| {
            for (kind, hook) in named("poststop", list(self.spec.poststop())) {
                if let Err(error) = self.outside(kind, hook, &state) {
                    tracing::warn!(container = %self.state.id(), %error, "a hook failed");
                }
            }
        });
        if let Err(error) = all {
            tracing::warn!(container = %self.state.id(), %error, "its hooks were not run");
        }
    }

    fn state(&self, status: ContainerState, pid: Option<i32>) -> Result<Vec<u8>> {
        let mut state = self.state.clone();
        state.set_status(status).set_pid(pid);
        serde_json::to_vec(&state).map_err(|e| Error::internal("hook", "", e.to_string()))
    }

    fn outside(&self, kind: &str, hook: &Hook, state: &[u8]) -> Result<()> {
        let mut command = command(hook);
        command.current_dir(&self.bundle);
        finish(kind, hook, command, state)
    }

    fn in_namespaces(&self, kind: &str, hook: &Hook, state: &[u8], inside: &Inside<'_>) -> Result<()> {
        let fail = |what: &str, e: std::io::Error| failed(kind, hook, &format!("{what}: {e}"));
        let _born_into = match inside.namespaces & libc::CLONE_NEWPID {
            0 => None,
            _ => Some(ChildrenIn::enter(inside.pidfd).map_err(|e| fail("entering the pid namespace", e))?),
        };
        let mut command = command(hook);
        let (pidfd, flags) = (inside.pidfd.as_raw_fd(), inside.namespaces & !libc::CLONE_NEWPID);
        let root = inside.user.map(UserNamespace::root);
        // SAFETY: the closure makes system calls and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                let check = |result: libc::c_long| match result {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                };
                check(libc::setns(pidfd, flags).into())?;
                if let Some((uid, gid)) = root {
                    check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()))?;
                    check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
                    check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
                }
                Ok(())
            });
        }
        finish(kind, hook, command, state)
    }
}

#[allow(deprecated)] // prestart is, but specs have it.
fn has_any(spec: &Spec) -> bool {
    let lists = [spec.prestart(), spec.create_runtime(), spec.create_container(), spec.start_container()];
    lists.into_iter().chain([spec.poststart(), spec.poststop()]).any(|hooks| !list(hooks).is_empty())
}

fn list(hooks: &Option<Vec<Hook>>) -> &[Hook] {
    hooks.as_deref().unwrap_or_default()
}

fn named<'h>(kind: &'static str, hooks: &'h [Hook]) -> impl Iterator<Item = (&'static str, &'h Hook)> {
    hooks.iter().map(move |hook| (kind, hook))
}

fn command(hook: &Hook) -> std::process::Command {
    let mut command = program::command(hook.path());
    if let Some((name, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(rest);
    }
    for (key, value) in hook.env().iter().flatten().filter_map(|variable| variable.split_once('=')) {
        command.env(key, value);
    }
    command
}

fn timeout(hook: &Hook) -> Duration {
    hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map_or(TIMEOUT, Duration::from_secs)
}

/// A file to be read from its beginning.
fn input(state: &[u8]) -> Result<File> {
    let fail = |e: std::io::Error| Error::io("hook", "", "passing it the state", &e);
    let memory = nix::sys::memfd::memfd_create(c"state", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(memory.map_err(|e| fail(e.into()))?);
    file.write_all(state).and_then(|()| file.rewind()).map_err(fail)?;
    Ok(file)
}

fn finish(kind: &str, hook: &Hook, command: std::process::Command, state: &[u8]) -> Result<()> {
    let ended = program::run(command, Streams::Input(input(state)?), timeout(hook));
    let ended = ended.map_err(|e| failed(kind, hook, &e.to_string()))?.ok_or_else(|| late(kind, hook))?;
    if ended.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&ended.output).chars().take(SAID).collect();
    let said: String = said.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let why = if said.is_empty() { ended.status.to_string() } else { format!("{}: {said}", ended.status) };
    Err(failed(kind, hook, &why))
}

fn failed(kind: &str, hook: &Hook, why: &str) -> Error {
    Error::failed_precondition("hook", hook.path().display(), format!("of {kind} failed: {why}"))
}

fn late(kind: &str, hook: &Hook) -> Error {
    let message = format!("of {kind} took longer than {:?} and was killed", timeout(hook));
    Error::deadline_exceeded("hook", hook.path().display(), message)
}
