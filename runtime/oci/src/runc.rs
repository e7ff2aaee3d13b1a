//! The driver that runs a runc-compatible binary (runc, crun, youki, a virtual machine's …).
//!
//! The root file system is mounted at `rootfs` in the bundle, in the mount namespace of the *caller*: it must be a
//! private one (the shim's), so that the host never sees the mount and it goes with the caller. [`Runtime::delete`]
//! unmounts it. The caller must be a child subreaper, since the binary ends before what it made.
//!
//! Every invocation has a cleared environment, its own process group, a deadline and a cap on what is read of its
//! output, and inherits nothing but its three streams.

mod command;
mod console;
mod kept;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use cofferdam_sys::{cgroup, fd, process, program, pty};
use cofferdam_types::{Code, Error, Result};
use oci_spec::runtime::{BoxBuilder, LinuxNamespaceType, LinuxResources, Process as ProcessSpec, Spec};

use self::{
    command::{Invocation, Streams},
    console::Console,
};
pub use command::{await_maker, has_maker};
pub use kept::kill_first;

use crate::{
    CheckpointRequest, Container, CreateRequest, ExecRequest, Process, RestoreFrom, Runtime, RuntimeOptions, Stdio,
    criu, native::Kept, rootfs, systemd,
};

/// How long one command of a binary may take.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How long what was killed may take to end before the binary is asked to kill it.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Names in a bundle.
const CONFIG: &str = "config.json";
const INIT_PID: &str = "init.pid";
const LOG: &str = "log.json";

/// A runc-compatible binary as a driver.
#[derive(Clone, Debug)]
pub struct RuncDriver {
    binary: PathBuf,
    root: PathBuf,
    deadline: Duration,
    options: RuntimeOptions,
    oom_score: Option<i32>,
    /// The criu that the binary is to find.
    criu: Option<PathBuf>,
}

impl RuncDriver {
    /// A driver that runs `binary` and lets it keep its state in `root`, one directory per namespace. Both are
    /// absolute; `root` is made with mode 0700 if it isn't there.
    pub fn new(binary: impl Into<PathBuf>, root: impl Into<PathBuf>) -> Result<RuncDriver> {
        let (binary, root) = (binary.into(), root.into());
        for path in [&binary, &root] {
            if !path.is_absolute() {
                return Err(Error::invalid("runtime", path.display(), "must be an absolute path"));
            }
        }
        let meta = std::fs::metadata(&binary)
            .map_err(|e| Error::io("runtime", binary.display(), "looking for the binary", &e))?;
        if !meta.is_file() {
            return Err(Error::invalid("runtime", binary.display(), "is not a file: name a runc-compatible binary"));
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(|e| Error::io("runtime root", root.display(), "making the directory", &e))?;
        Ok(RuncDriver {
            binary,
            root,
            deadline: DEADLINE,
            options: RuntimeOptions::default(),
            oom_score: None,
            criu: None,
        })
    }

    /// The same with another deadline for each invocation.
    pub fn with_deadline(self, deadline: Duration) -> RuncDriver {
        RuncDriver { deadline, ..self }
    }

    /// The same with a container's runtime options; where they name a root, it was given to [`RuncDriver::new`].
    pub fn with_options(self, options: RuntimeOptions) -> RuncDriver {
        RuncDriver { options, ..self }
    }

    /// The same whose processes start with this `oom_score_adj` instead of the caller's own.
    pub fn with_oom_score(self, score: Option<i32>) -> RuncDriver {
        RuncDriver { oom_score: score, ..self }
    }

    /// The same for what criu does: its `criu` is checked, and gets its time.
    fn with_criu(&self, criu: &Path) -> Result<RuncDriver> {
        criu::require(criu)?;
        Ok(RuncDriver { deadline: criu::DEADLINE, criu: Some(criu.to_owned()), ..self.clone() })
    }

    fn run(&self, place: &Place<'_>, args: &[&str], streams: Streams) -> Result<Vec<u8>> {
        let root = self.root.join(place.namespace);
        let global = self.global();
        let invocation = Invocation {
            binary: &self.binary,
            root: &root,
            bundle: place.bundle,
            id: place.id,
            deadline: self.deadline,
            global: &global,
            oom_score: self.oom_score,
            criu: self.criu.as_deref(),
            makes: args.first().is_some_and(|verb| matches!(*verb, "create" | "restore")),
        };
        invocation.run(args, streams)
    }

    /// The arguments in front of the command that every invocation has.
    fn global(&self) -> Vec<&OsStr> {
        let mut args = Vec::new();
        if self.options.systemd_cgroup {
            args.push(OsStr::new("--systemd-cgroup"));
        }
        if let Some(criu) = &self.options.criu_path {
            args.extend([OsStr::new("--criu"), criu.as_os_str()]);
        }
        args
    }

    fn act(&self, container: &Container, args: &[&str]) -> Result<Vec<u8>> {
        self.run(&Place::of(container), args, Streams::Captured)
    }

    /// Makes a process: runs `args` (to which the pid file, the console and the id are added) and takes what it made.
    /// The `size` is that of the terminal, if there is one.
    fn make(
        &self,
        place: &Place<'_>,
        args: &[&str],
        pid_file: &str,
        stdio: &Stdio<'_>,
        size: Option<(u16, u16)>,
    ) -> Result<Process> {
        let io = |what: &str, e: &std::io::Error| Error::io("container", place.id, what, e);
        let pid_path = utf8(&place.bundle.join(pid_file))?;
        let mut args = args.to_vec();
        args.extend(["--pid-file", &pid_path]);
        let (console, console_path);
        let streams = match stdio {
            Stdio::Terminal { .. } => {
                let made = Console::new(place.bundle)?;
                console_path = utf8(made.path())?;
                args.extend(["--console-socket", &console_path]);
                console = Some(made);
                Streams::Captured
            }
            Stdio::Fds { stdin, stdout, stderr } => {
                console = None;
                let own = |fd: &BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|e| io("duplicating its streams", &e));
                Streams::Passed([own(stdin)?, own(stdout)?, own(stderr)?])
            }
        };
        args.push(place.id);
        self.run(place, &args, streams)?;
        let pid = read_pid(place.bundle, pid_file).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                let why = "ended well but made no process: it is not a runc-compatible runtime";
                Error::failed_precondition("runtime", self.binary.display(), why)
            }
            _ => io("reading its pid", &e),
        })?;
        let pidfd = process::pidfd_open(pid).map_err(|e| io("opening its pidfd", &e))?;
        let console = console.map(|socket| socket.receive()).transpose();
        let sized = console.and_then(|console| {
            if let (Some(console), Some((rows, cols))) = (&console, size) {
                pty::resize(console, rows, cols).map_err(|e| io("setting the size of its terminal", &e))?;
            }
            Ok(console)
        });
        match sized {
            Ok(console) => Ok(Process { pid, pidfd, console }),
            Err(e) => {
                // It runs, and nobody would ever know of it.
                let _ = process::pidfd_send_signal(&pidfd, libc::SIGKILL);
                let _ = process::waitid(&pidfd, true);
                Err(e)
            }
        }
    }

    /// Makes a container by `args`, to which the bundle and the rest are added.
    fn begin(&self, request: &CreateRequest<'_>, args: &[&str]) -> Result<Container> {
        refuse_mapped(request)?;
        let place = Place { namespace: request.namespace, id: request.id, bundle: request.bundle_path };
        let state = self.root.join(place.namespace).join(place.id);
        if state.exists() {
            // Before anything is touched: the failure of this create must not remove that container.
            return Err(Error::already_exists(
                "container",
                request.id,
                "exists in this runtime already: delete it first",
            ));
        }
        let made = (|| {
            made_above(request);
            let mut spec = request.spec.clone();
            if let Some(process) = spec.process_mut() {
                set_terminal(process, &request.stdio);
            }
            rootfs::mount(request.bundle, request.rootfs)?;
            write(request.bundle, CONFIG, &json(&spec)?)?;
            let bundle = utf8(request.bundle_path)?;
            let size = request.stdio.size(request.spec.process().as_ref());
            let args = [args, &["--bundle", &bundle]].concat();
            self.make(&place, &args, INIT_PID, &request.stdio, size)
        })();
        let init = made.map_err(|e| about(e, request.spec.process().as_ref())).inspect_err(|_| {
            if let Err(left) = program::regardless(|| self.remove(&place)) {
                tracing::warn!(container = %request.id, error = %left, "a failed create left something behind");
            }
        })?;
        let cgroup = request.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
        Ok(Container {
            id: request.id.clone(),
            namespace: request.namespace.clone(),
            cgroup: cgroup.map_or_else(
                || format!("/{}", request.id),
                |path| systemd::path(&path.to_string_lossy()).unwrap_or_else(|| path.to_string_lossy().into_owned()),
            ),
            bundle: request.bundle_path.to_owned(),
            init,
            kept: Kept::default(),
        })
    }

    /// Removes what is left of a container, as far as it is there.
    fn remove(&self, place: &Place<'_>) -> Result<()> {
        match self.run(place, &["delete", "--force", place.id], Streams::Captured) {
            Err(e) if e.code != Code::NotFound => return Err(e),
            _ => {}
        }
        let fail = |what: &str, e: &std::io::Error| Error::io("container", place.id, what, e);
        // Nothing of the container runs any more.
        rootfs::unmount(place.bundle).map_err(|e| fail("unmounting its root", &e))?;
        for file in [CONFIG, INIT_PID, LOG] {
            absent_is_fine(std::fs::remove_file(place.bundle.join(file)))
                .map_err(|e| fail("removing its files", &e))?;
        }
        Ok(())
    }
}

/// A container and where it lies.
struct Place<'a> {
    namespace: &'a str,
    id: &'a str,
    bundle: &'a Path,
}

impl<'a> Place<'a> {
    fn of(container: &'a Container) -> Place<'a> {
        Place { namespace: &container.namespace, id: &container.id, bundle: &container.bundle }
    }
}

impl Runtime for RuncDriver {
    fn name(&self) -> &'static str {
        "runc"
    }

    fn is_slow(&self, _: &Spec) -> bool {
        true
    }

    fn create(&self, request: &CreateRequest<'_>) -> Result<Container> {
        let mut args = vec!["create"];
        args.extend(self.options.no_pivot.then_some("--no-pivot"));
        args.extend(self.options.no_new_keyring.then_some("--no-new-keyring"));
        self.begin(request, &args)
    }

    fn checkpoint(&self, request: &CheckpointRequest) -> Result<()> {
        let driver = self.with_criu(&request.criu)?;
        let (images, work) = (utf8(&request.dir.join(criu::IMAGES))?, utf8(&request.dir.join(criu::WORK))?);
        let mut args =
            vec!["checkpoint", "--leave-running", "--file-locks", "--image-path", &images, "--work-path", &work];
        args.extend(request.tcp_established.then_some("--tcp-established"));
        args.extend(request.unix_sockets.then_some("--ext-unix-sk"));
        args.push(&request.id);
        let place = Place { namespace: &request.namespace, id: &request.id, bundle: &request.bundle };
        let done = driver.run(&place, &args, Streams::Captured);
        done.map(drop).map_err(|e| told(e, &request.dir.join(criu::WORK).join("dump.log")))
    }

    fn restore(&self, request: &CreateRequest<'_>, from: &RestoreFrom<'_>) -> Result<Container> {
        let driver = self.with_criu(from.criu)?;
        let (images, work) = (utf8(&from.dir.join(criu::IMAGES))?, utf8(&from.dir.join(criu::WORK))?);
        let mut args = vec!["restore", "--detach", "--file-locks", "--image-path", &images, "--work-path", &work];
        args.extend(from.tcp_established.then_some("--tcp-established"));
        args.extend(from.unix_sockets.then_some("--ext-unix-sk"));
        driver.begin(request, &args).map_err(|e| told(e, &from.dir.join(criu::WORK).join("restore.log")))
    }

    fn start(&self, container: &Container) -> Result<()> {
        // Whether it runs or waits is not known. As a caller of the native runtime finds it: dead, for the caller to reap.
        let kill = |_: &Error| drop(process::pidfd_send_signal(&container.init.pidfd, libc::SIGKILL));
        self.act(container, &["start", &container.id]).map(drop).inspect_err(kill)
    }

    fn exec(&self, container: &Container, request: &ExecRequest<'_>) -> Result<Process> {
        let place = Place::of(container);
        let bundle = fd::open_dir(&container.bundle)
            .map_err(|e| Error::io("container", &container.id, "opening its bundle", &e))?;
        let mut process: ProcessSpec = request.process.clone();
        set_terminal(&mut process, &request.stdio);
        // Not a name that is another's: ids have no `/`, and ours all begin alike.
        let (file, pid_file) = (format!("exec-{}.json", request.id), format!("exec-{}.pid", request.id));
        write(bundle.as_fd(), &file, &json(&process)?)?;
        let path = utf8(&container.bundle.join(&file))?;
        let size = request.stdio.size(Some(request.process));
        let made = self.make(&place, &["exec", "--process", &path, "--detach"], &pid_file, &request.stdio, size);
        for name in [&file, &pid_file] {
            let _ = std::fs::remove_file(container.bundle.join(name));
        }
        let made = made?;
        if let Some(group) = request.group {
            // It runs already: what it has begun and left behind by now is out of sight.
            let placed = container.adopt(made.pid, group);
            placed.inspect_err(|_| drop(process::pidfd_send_signal(&made.pidfd, libc::SIGKILL)))?;
        }
        Ok(made)
    }

    fn kill(&self, container: &Container, signal: i32) -> Result<()> {
        if !process::is_alive(&container.init.pidfd) {
            return Ok(());
        }
        match self.act(container, &["kill", &container.id, &signal.to_string()]) {
            // It ended meanwhile.
            Err(_) if !process::is_alive(&container.init.pidfd) => Ok(()),
            result => result.map(drop),
        }
    }

    fn kill_all(&self, container: &Container) -> Result<()> {
        // What the kernel can do needs no program that may hang. Of processes that are elsewhere the binary alone knows.
        let killed = container.kill_cgroup();
        // What its first process left may be there all the same, and there is nobody else who knows of it.
        let killed = killed.or_else(|e| if e.code == Code::NotFound { Ok(()) } else { Err(e) });
        if process::ended_within(&container.init.pidfd, AT_ONCE).unwrap_or_default() {
            return killed;
        }
        match self.act(container, &["kill", "--all", &container.id, "9"]) {
            Err(e) if process::is_alive(&container.init.pidfd) => return Err(e),
            Err(_) => killed?,
            Ok(_) => {}
        }
        // Frozen processes of a v1 cgroup die when they thaw. That it isn't paused is the usual answer.
        let _ = self.act(container, &["resume", &container.id]);
        Ok(())
    }

    fn pause(&self, container: &Container) -> Result<()> {
        self.act(container, &["pause", &container.id]).map(drop)
    }

    fn resume(&self, container: &Container) -> Result<()> {
        self.act(container, &["resume", &container.id]).map(drop)
    }

    fn update(&self, container: &Container, resources: &LinuxResources) -> Result<()> {
        let fail = |e: &std::io::Error| Error::io("container", &container.id, "passing its resources", e);
        let memory = nix::sys::memfd::memfd_create(c"resources", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let mut file = File::from(memory.map_err(|e| fail(&e.into()))?);
        file.write_all(&json(resources)?).map_err(|e| fail(&e))?;
        std::io::Seek::rewind(&mut file).map_err(|e| fail(&e))?;
        let args = ["update", "--resources", "-", &container.id];
        self.run(&Place::of(container), &args, Streams::Input(file)).map(drop)
    }

    fn pids(&self, container: &Container) -> Result<Vec<i32>> {
        let output = self.act(container, &["ps", "--format", "json", &container.id])?;
        let pids: Option<Vec<i32>> = serde_json::from_slice(&output)
            .map_err(|e| Error::internal("container", &container.id, format!("`ps` gave no list of pids: {e}")))?;
        Ok(pids.unwrap_or_default())
    }

    fn delete(&self, container: &Container) -> Result<()> {
        self.remove(&Place::of(container))
    }
}

/// The binary would have to reach the root as somebody of the container, through directories that are closed to all, and
/// find files there that belong to nobody it knows.
fn refuse_mapped(request: &CreateRequest<'_>) -> Result<()> {
    let user = LinuxNamespaceType::User;
    let linux = request.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    if request.rootfs.is_empty() || !linux.is_some_and(|all| all.iter().any(|n| n.typ() == user)) {
        return Ok(());
    }
    let why = "the ids of its root file system are mapped by the native runtime alone: use that";
    Err(Error::unimplemented("spec", "linux.namespaces user", why))
}

/// Makes what the container's cgroup is to lie in, so that it is known to be ours and can go with the container. Where it
/// can't be made the binary makes it, or says why it can't, and it stays.
fn made_above(request: &CreateRequest<'_>) {
    let path = request.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    // systemd's names are no paths: it removes its slices by itself.
    let Some(path) = path.and_then(|path| path.to_str()).filter(|path| path.starts_with('/')) else { return };
    if let Err(error) = cgroup::Layout::detect().and_then(|layout| cgroup::make_above(&layout, path)) {
        tracing::debug!(container = %request.id, %error, "what its cgroup lies in is left to the runtime");
    }
}

/// The binary makes the terminal in its size: a process that runs at once would see another before we could set it.
fn set_terminal(process: &mut ProcessSpec, stdio: &Stdio<'_>) {
    process.set_terminal(Some(matches!(stdio, Stdio::Terminal { .. })));
    if let Some((rows, cols)) = stdio.size(Some(process)) {
        let size = BoxBuilder::default().height(rows).width(cols).build();
        process.set_console_size(size.ok());
    }
}

/// Not every binary says which command it can't execute.
fn about(mut error: Error, process: Option<&ProcessSpec>) -> Error {
    if error.kind == "command" && error.id.is_empty() {
        let name = process.and_then(|process| process.args().as_ref()?.first().cloned());
        error.id = name.unwrap_or_default();
    }
    error
}

/// What criu says of a failure, where it says something: the binary only names its log.
fn told(error: Error, log: &Path) -> Error {
    let errors = criu::errors(log);
    if errors.is_empty() {
        return error;
    }
    Error::failed_precondition("container", &error.id, format!("criu can't do it: {}", errors.join("; ")))
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::internal("spec", "", e.to_string()))
}

fn utf8(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Error::invalid("bundle", path.display(), "is not UTF-8"))?;
    Ok(text.to_owned())
}

/// Writes a new file; a symlink or anything else in its place is removed, not followed (F4).
fn write(bundle: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> Result<()> {
    let fail = |e: &std::io::Error| Error::io("bundle", name, "writing", e);
    let _ = nix::unistd::unlinkat(bundle, name, nix::unistd::UnlinkatFlags::NoRemoveDir);
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    let file = fd::open_no_symlinks(bundle, Path::new(name), flags, 0o600).map_err(|e| fail(&e))?;
    File::from(file).write_all(bytes).map_err(|e| fail(&e))
}

fn read_pid(bundle: &Path, name: &str) -> std::io::Result<i32> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(bundle.join(name))?;
    let mut text = String::new();
    file.take(32).read_to_string(&mut text)?;
    text.trim().parse().ok().filter(|pid| *pid > 0).ok_or_else(|| std::io::Error::other("the pid file holds no pid"))
}

fn absent_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
