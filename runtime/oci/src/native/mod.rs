//! The driver that makes containers itself, with clone3 from a single-threaded process.
//!
//! [`check`] refuses what it can't honour. [`plan`] and [`identity`] turn the rest into steps, with everything prepared
//! that needs the host or memory; [`launch`] clones a child that walks them ([`child`]) and says where it failed.
//! Mounts are made detached and attached in the container's own mount namespace: the host's table never shows them.

mod ahead;
mod before;
mod check;
mod child;
mod child_fs;
mod copyup;
mod furnish;
mod hooks;
mod identity;
mod launch;
mod mounts;
mod netdevices;
mod nodes;
mod plan;
mod properties;
mod rdt;
mod resources;
mod step;
#[cfg(test)]
mod tests;
mod user;

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Mutex,
};

use cofferdam_sys::{
    cgroup::{Cgroup, Layout},
    process,
    userns::UserNamespace,
};
use cofferdam_types::{Code, Error, Result};
use oci_spec::runtime::{Capability, LinuxNamespaceType, LinuxResources, Process as ProcessSpec, Spec};

pub use check::{check, check_resources};
pub use hooks::{HookTime, hook_time};

use self::{
    ahead::Ahead,
    hooks::{Hooks, Inside},
    identity::{Filter, Role},
    launch::{Launched, Place},
    properties::Call,
    rdt::Class,
    step::Step,
};
pub(crate) use plan::{open_namespace, sysctl_path};

use crate::{
    CheckpointRequest, Container, CreateRequest, ExecRequest, Process, RestoreFrom, Runtime, RuntimeOptions, Stdio,
    criu, rootfs, runtime::locked,
};

/// The native driver.
#[derive(Debug)]
pub struct Native {
    layout: Layout,
    keyring: bool,
    oom_score: Option<i32>,
    ahead: Ahead,
}

/// What the native driver keeps of a container.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) cgroup: Option<Cgroup>,
    class: Option<Class>,
    /// Namespaces that the container has of its own.
    join: i32,
    filter: Option<Filter>,
    user: Option<UserNamespace>,
    /// What the first process and all others have alike.
    shared: Vec<Call>,
    /// An overlay, until it is let go of: the container's own mounts of it end when its processes have, and the last
    /// one syncs the disk. The end of a process is not to wait for that.
    pub(crate) root: Mutex<Option<OwnedFd>>,
    /// The mount namespace, until the end of the first process has been told: the kernel would take it down before it
    /// lets anybody see that end, and waits for every processor to do so.
    pub(crate) mounts: Mutex<Option<OwnedFd>>,
    /// Until its end has been told to them.
    hooks: Mutex<Option<Hooks>>,
    /// Until it is started: the child, and the steps that it has yet to walk (with those before it left in, since the
    /// child counts from the first).
    waiting: Mutex<Option<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    launched: Launched,
    steps: Vec<Step>,
    command: String,
}

impl Native {
    /// Finds out what this host has.
    pub fn new() -> Result<Native> {
        Ok(Native { layout: Layout::detect()?, keyring: true, oom_score: None, ahead: Ahead::default() })
    }

    /// The same with a container's runtime options; an error names one that is for other drivers.
    pub fn with_options(self, options: &RuntimeOptions) -> Result<Native> {
        options.check_native()?;
        Ok(Native { keyring: !options.no_new_keyring, ..self })
    }

    /// The same with a network namespace and file systems made ahead: the first container that needs new ones has them
    /// sooner by most of a millisecond.
    pub fn ahead(self) -> Result<Native> {
        Ok(Native { ahead: Ahead::make()?, ..self })
    }

    /// The same whose processes start with this `oom_score_adj`, where their spec has none, instead of the caller's.
    pub fn with_oom_score(self, score: Option<i32>) -> Native {
        Native { oom_score: score, ..self }
    }

    fn identity(
        &self,
        id: &str,
        process: &ProcessSpec,
        filter: Option<&Filter>,
        role: Role,
        user: Option<&UserNamespace>,
        steps: &mut Vec<Step>,
    ) -> Result<()> {
        identity::identity(id, process, filter, role, user, steps)?;
        if !self.keyring {
            steps.retain(|step| !matches!(step, Step::Keyring(_)));
        }
        Ok(())
    }

    fn cgroup<'c>(&self, container: &'c Container) -> Result<&'c Cgroup> {
        container
            .kept
            .cgroup
            .as_ref()
            .ok_or_else(|| Error::failed_precondition("container", &container.id, "was not made by the native driver"))
    }

    /// Runs another process; `program` in place of the one that its arguments name.
    fn spawn(&self, container: &Container, request: &ExecRequest<'_>, program: Option<&Path>) -> Result<Process> {
        let cgroup = self.cgroup(container)?;
        let group = request.group.map(|name| cgroup.inner(name)).transpose()?;
        let fail = |e: std::io::Error| Error::io("container", &container.id, "duplicating its pidfd", &e);
        let init = container.init.pidfd.try_clone().map_err(fail)?;
        let join = container.kept.join;
        let [initial, last] = properties::affinity(request.process)?;
        let mut steps = vec![Step::Gate, Step::Undumpable];
        steps.extend(initial);
        let joins = group.as_ref().map_or_else(|| cgroup.tasks_v1(), |group| cgroup.tasks_v1_with(group))?;
        steps.extend(joins.into_iter().map(Step::Join));
        steps.extend(last);
        steps.append(&mut properties::labels(request.process)?);
        let pid_namespace = (join & libc::CLONE_NEWPID != 0).then_some(&container.init.pidfd);
        let flags = join & !libc::CLONE_NEWPID;
        let user = container.kept.user.as_ref();
        if user.is_some() {
            steps.push(Step::Raise(identity::limits(request.process)?));
        }
        steps.push(Step::Enter { fd: init, flags, what: "the namespaces of the first process (does it run?)".into() });
        steps.extend(user.map(user::root));
        identity::streams(request.process, &request.stdio, Role::Exec, user, &mut steps)?;
        steps.extend(container.kept.shared.iter().cloned().map(Step::Call));
        let filter = container.kept.filter.as_ref();
        self.identity(&container.id, request.process, filter, Role::Exec, user, &mut steps)?;
        if let (Some(program), Some(Step::Execute(command))) = (program, steps.last_mut()) {
            command.candidates = vec![identity::c_string("path", &program.to_string_lossy())?];
        }
        let born_in = group.as_ref().filter(|group| group.unified().is_some());
        let neighbour = born_in.is_none().then_some(container.init.pid);
        let place = Place { cgroup: born_in.unwrap_or(cgroup), neighbour, class: container.kept.class.as_ref() };
        let launched = launch::launch(&steps, 0, pid_namespace, &place, request.process, self.oom_score);
        let mut launched = launched.map_err(|e| match process::is_alive(&container.init.pidfd) {
            false => Error::failed_precondition("container", &container.id, "its first process has ended"),
            true => e,
        })?;
        if let Err(e) = launched.wait_running(&steps, &command(Some(request.process))) {
            launched.destroy();
            return Err(about(&container.id)(e));
        }
        let console = launched.console.take();
        Ok(Process { pid: launched.child.pid, pidfd: launched.child.pidfd, console })
    }

    /// Runs a hook of the container's own.
    fn hook(&self, container: &Container, process: &ProcessSpec, program: &Path, input: &File) -> Result<OwnedFd> {
        let null = File::options().write(true).open("/dev/null");
        let null = null.map_err(|e| Error::io("fd", "/dev/null", "can't be opened", &e))?;
        let stdio = Stdio::Fds { stdin: input.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
        let request = ExecRequest { id: &container.id, process, stdio, group: None };
        self.spawn(container, &request, Some(program)).map(|process| process.pidfd)
    }
}

/// Makes the first process of a container in a cgroup that exists.
fn launch_init(
    native: &Native,
    request: &CreateRequest<'_>,
    cgroup: &Cgroup,
    class: Option<&Class>,
    hooks: Option<&Hooks>,
) -> Result<(Process, Kept)> {
    let process = request.spec.process().as_ref();
    let process = process.ok_or_else(|| Error::invalid("spec", "process", "is missing"))?;
    let linux = request.spec.linux().as_ref();
    if let Some(resources) = linux.and_then(|l| l.resources().as_ref()) {
        resources::apply(cgroup, resources)?;
    }
    resources::devices(cgroup, linux.and_then(|l| l.resources().as_ref()))?;
    let filter = filter(request)?;
    let user = linux.map(user::namespace).transpose()?.flatten();
    let shared = linux.map(properties::shared).transpose()?.unwrap_or_default();
    let before_root = hooks.is_some_and(Hooks::before_root);
    let mut plan = plan::plan(request, cgroup, user.as_ref(), &native.ahead, before_root)?;
    identity::streams(process, &request.stdio, Role::Init, user.as_ref(), &mut plan.steps)?;
    // The terminal is made before /dev may become read-only, the streams are connected after the last use of the
    // root's descriptor.
    let streams = plan.steps.pop();
    plan::seal(request.spec, &mut plan)?;
    plan.steps.extend(streams);
    plan.steps.extend(shared.iter().cloned().map(Step::Call));
    native.identity(request.id, process, filter.as_ref(), Role::Init, user.as_ref(), &mut plan.steps)?;
    let pid_namespace = plan.pid_namespace.as_ref();
    let place = Place { cgroup, neighbour: None, class };
    let mut launched = launch::launch(&plan.steps, plan.flags, pid_namespace, &place, process, native.oom_score)?;
    let mut given = None;
    let moved = match linux.filter(|linux| netdevices::any(linux)) {
        Some(linux) => launched.wait_paused(&plan.steps).and_then(|()| {
            given = Some(netdevices::give(linux, launched.child.pid)?);
            launched.release()
        }),
        None => Ok(()),
    };
    let told = moved.and_then(|()| match hooks.filter(|_| before_root) {
        Some(hooks) => launched.wait_paused(&plan.steps).and_then(|()| {
            let (pid, pidfd) = (launched.child.pid, &launched.child.pidfd);
            hooks.create(&Inside { pid, pidfd, namespaces: plan.join, user: user.as_ref() })?;
            launched.release()
        }),
        None => Ok(()),
    });
    let pidfd = told.and_then(|()| launched.wait_ready(&plan.steps)).and_then(|()| {
        let pidfd = launched.child.pidfd.try_clone();
        pidfd.map_err(|e| Error::io("container", request.id, "duplicating its pidfd", &e))
    });
    let pidfd = match pidfd {
        Ok(pidfd) => pidfd,
        Err(e) => {
            given.into_iter().for_each(netdevices::Given::take_back);
            launched.destroy();
            return Err(e);
        }
    };
    let init = Process { pid: launched.child.pid, pidfd, console: launched.console.take() };
    // From here on only the last steps are of interest; what the others hold (mounts, descriptors) is in use by
    // the child or not needed any more.
    let mut steps = plan.steps;
    let mut root = None;
    let ready = steps.iter().position(|s| matches!(s, Step::Ready)).unwrap_or(0);
    for step in &mut steps[..ready] {
        if let Step::Root(mount) = std::mem::replace(step, Step::Gate) {
            root = Some(mount);
        }
    }
    // Anything else may be on a disk of somebody's who wants it back when the processes have ended.
    let root = root.filter(|_| matches!(request.rootfs, [one] if one.kind == "overlay"));
    let held = root.is_some() && plan.flags & libc::CLONE_NEWNS != 0 && !can_mount(process);
    let held = held && !has_foreign_mounts(request);
    let mounts = held.then(|| process::mount_namespace(&init.pidfd).ok()).flatten();
    let (root, mounts) = (Mutex::new(root), Mutex::new(mounts));
    let waiting = Mutex::new(Some(Waiting { launched, steps, command: command(Some(process)) }));
    let hooks = Mutex::default();
    Ok((init, Kept { cgroup: None, class: None, join: plan.join, filter, user, shared, root, mounts, hooks, waiting }))
}

/// Whether its first process is to be in a pid namespace that is there already.
fn joins_pids(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|one| one.typ() == LinuxNamespaceType::Pid && one.path().is_some())
}

/// Whether its processes can mount what the spec doesn't say.
fn can_mount(process: &ProcessSpec) -> bool {
    let bounding = process.capabilities().as_ref().and_then(|all| all.bounding().as_ref());
    bounding.is_some_and(|all| all.contains(&Capability::SysAdmin))
}

/// Whether something of the host's is mounted in it, other than what lies in its bundle.
fn has_foreign_mounts(request: &CreateRequest<'_>) -> bool {
    let foreign = |mount: &oci_spec::runtime::Mount| {
        let kernels = mount.typ().as_deref().is_some_and(|typ| KERNELS.contains(&typ));
        let ours = mount.source().as_ref().is_some_and(|source| source.starts_with(request.bundle_path));
        !kernels && !ours
    };
    request.spec.mounts().iter().flatten().any(foreign)
}

/// File systems that lie on no disk.
const KERNELS: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];

fn filter(request: &CreateRequest<'_>) -> Result<Option<Filter>> {
    let profile = request.spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    profile.map(|profile| Filter::new(profile, request.filter)).transpose()
}

/// The class of service of a container that is to have one.
fn class(request: &CreateRequest<'_>) -> Result<Option<Class>> {
    let rdt = request.spec.linux().as_ref().and_then(|l| l.intel_rdt().as_ref());
    rdt.map(|rdt| Class::new(&rdt::root()?, rdt, request.id)).transpose()
}

/// The cgroup of a container whose spec doesn't name one.
fn cgroup_path(request: &CreateRequest<'_>) -> String {
    let named = request.spec.linux().as_ref().and_then(|l| l.cgroups_path().as_ref());
    match named.map(|p| p.to_string_lossy()).filter(|p| !p.is_empty()) {
        Some(path) if path.starts_with('/') => path.into_owned(),
        Some(path) => format!("/{path}"),
        None => format!("/cofferdam/{}/{}", request.namespace, request.id),
    }
}

fn command(process: Option<&ProcessSpec>) -> String {
    process.and_then(|p| p.args().as_ref()?.first().cloned()).unwrap_or_default()
}

/// What to say of a first process that was killed while it was being set up, where that was for want of memory.
fn starved(cgroup: &Cgroup, error: Error) -> Error {
    if error.code != Code::Unavailable || cgroup.oom_kills().unwrap_or_default() == 0 {
        return error;
    }
    let why = "is too little for the container's first process to be set up: give more";
    Error::failed_precondition("spec", "linux.resources.memory.limit", why)
}

/// Names the container in errors that come from deeper down.
fn about(container: &str) -> impl Fn(Error) -> Error + '_ {
    move |mut e| {
        if e.kind == "container" && e.id.is_empty() {
            e.id = container.to_owned();
        }
        e
    }
}

const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Container>();
    fn is_sync<T: Sync>() {}
    is_sync::<Container>();
};

impl Runtime for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn is_foreign(&self) -> bool {
        false
    }

    fn is_slow(&self, spec: &Spec) -> bool {
        // Those who are in a pid namespace can stop whoever is born into it.
        Hooks::any(spec) || joins_pids(spec)
    }

    fn create(&self, request: &CreateRequest<'_>) -> Result<Container> {
        check(request.spec)?;
        let cgroup = Cgroup::create(&self.layout, &cgroup_path(request))?;
        let class = class(request).inspect_err(|_| drop(cgroup.remove()))?;
        let hooks = Hooks::new(request);
        let (init, mut kept) = match launch_init(self, request, &cgroup, class.as_ref(), hooks.as_ref()) {
            Ok(launched) => launched,
            Err(e) => {
                let e = starved(&cgroup, e);
                class.inspect(Class::remove);
                if let Err(left) = cgroup.remove() {
                    tracing::warn!(container = %request.id, error = %left, "the cgroup of a failed create is left behind");
                }
                if let Some(hooks) = hooks {
                    hooks.stopped();
                }
                return Err(about(request.id)(e));
            }
        };
        let path = cgroup.path().to_owned();
        kept.cgroup = Some(cgroup);
        kept.class = class;
        kept.hooks = Mutex::new(hooks);
        Ok(Container {
            id: request.id.clone(),
            namespace: request.namespace.clone(),
            cgroup: path,
            bundle: request.bundle_path.to_owned(),
            init,
            kept,
        })
    }

    fn start(&self, container: &Container) -> Result<()> {
        let waiting = locked(&container.kept.waiting).take();
        let mut waiting = waiting.ok_or_else(|| {
            Error::failed_precondition("container", &container.id, "is started already: create another one")
        })?;
        let mut run = || {
            let hooks = locked(&container.kept.hooks);
            let pid = container.init.pid;
            if let Some(hooks) = &*hooks {
                hooks.start(pid, |process, path, input| self.hook(container, process, path, input))?;
            }
            waiting.launched.release()?;
            waiting.launched.wait_running(&waiting.steps, &waiting.command).map_err(about(&container.id))?;
            hooks.as_ref().map_or(Ok(()), |hooks| hooks.started(pid))
        };
        // The caller reaps it.
        let killed = |e| match &container.kept.cgroup {
            Some(cgroup) => starved(cgroup, e),
            None => e,
        };
        run().map_err(killed).inspect_err(|_| drop(process::pidfd_send_signal(&container.init.pidfd, libc::SIGKILL)))
    }

    fn checkpoint(&self, request: &CheckpointRequest) -> Result<()> {
        criu::dump::dump(&self.layout, request)
    }

    fn restore(&self, request: &CreateRequest<'_>, from: &RestoreFrom<'_>) -> Result<Container> {
        check(request.spec)?;
        criu::restore::check(request)?;
        let linux = request.spec.linux().as_ref();
        let shared = linux.map(properties::shared).transpose()?.unwrap_or_default();
        let filter = filter(request)?;
        let join = linux.and_then(|l| l.namespaces().as_ref()).into_iter().flatten().map(|n| n.typ() as i32);
        let join = join.fold(0, |all, flag| all | flag);
        let cgroup = Cgroup::create(&self.layout, &cgroup_path(request))?;
        let restored = rootfs::Mounted::new(request).and_then(|root| {
            criu::restore::restore(request, from, &cgroup, root.path(), || {
                let limits = linux.and_then(|l| l.resources().as_ref());
                limits.map_or(Ok(()), |limits| resources::apply(&cgroup, limits))?;
                resources::devices(&cgroup, limits)
            })
        });
        let init = restored.inspect_err(|_| {
            // Whatever of it was there already, and criu.
            if let Err(left) = cgroup.kill().and_then(|()| cgroup.remove()) {
                tracing::warn!(container = %request.id, error = %left, "a failed restore left something behind");
            }
        })?;
        Ok(Container {
            id: request.id.clone(),
            namespace: request.namespace.clone(),
            cgroup: cgroup.path().to_owned(),
            bundle: request.bundle_path.to_owned(),
            init,
            kept: Kept { cgroup: Some(cgroup), join, filter, shared, ..Kept::default() },
        })
    }

    fn exec(&self, container: &Container, request: &ExecRequest<'_>) -> Result<Process> {
        check::check_process(request.process)?;
        if locked(&container.kept.waiting).is_some() {
            return Err(Error::failed_precondition("container", &container.id, "is not started yet: start it first"));
        }
        // It would stand still before it could tell us that it is there, and we with it.
        if self.cgroup(container)?.is_frozen().unwrap_or_default() {
            return Err(Error::failed_precondition(
                "container",
                &container.id,
                "stands still: nothing can be started in it",
            ));
        }
        self.spawn(container, request, None)
    }

    fn kill(&self, container: &Container, signal: i32) -> Result<()> {
        match process::pidfd_send_signal(&container.init.pidfd, signal) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            Err(e) => Err(Error::io("container", &container.id, format!("sending signal {signal}"), &e)),
            Ok(()) => Ok(()),
        }
    }

    fn kill_all(&self, container: &Container) -> Result<()> {
        self.cgroup(container)?.kill()
    }

    fn pause(&self, container: &Container) -> Result<()> {
        self.cgroup(container)?.freeze()
    }

    fn resume(&self, container: &Container) -> Result<()> {
        self.cgroup(container)?.thaw()
    }

    fn update(&self, container: &Container, resources: &LinuxResources) -> Result<()> {
        let cgroup = self.cgroup(container)?;
        check::check_resources(resources)?;
        let before = before::Before::take(cgroup);
        let applied = resources::apply(cgroup, resources).and_then(|()| match resources.devices() {
            Some(_) => resources::devices(cgroup, Some(resources)),
            None => Ok(()),
        });
        applied.inspect_err(|_| before.restore()).map_err(about(&container.id))
    }

    fn pids(&self, container: &Container) -> Result<Vec<i32>> {
        self.cgroup(container)?.pids()
    }

    fn delete(&self, container: &Container) -> Result<()> {
        let cgroup = self.cgroup(container)?;
        match cgroup.pids() {
            Ok(pids) if pids.is_empty() => {}
            _ => cgroup.kill()?,
        }
        cgroup.remove()?;
        container.kept.class.as_ref().inspect(|class| class.remove());
        let hooks = locked(&container.kept.hooks).take();
        if let Some(hooks) = hooks {
            hooks.stopped();
        }
        Ok(())
    }

    fn delete_at_once(&self, container: &Container) -> Result<bool> {
        let cgroup = self.cgroup(container)?;
        // Who has hooks waits for them.
        if locked(&container.kept.hooks).is_some() || !cgroup.pids()?.is_empty() || !cgroup.try_remove()? {
            return Ok(false);
        }
        container.kept.class.as_ref().inspect(|class| class.remove());
        Ok(true)
    }
}
