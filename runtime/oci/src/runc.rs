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
#[cfg(test)]
mod tests;

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use cofferdam_sys::{fd, mount, process, pty};
use cofferdam_types::{Code, Error, Mount, Result};
use oci_spec::runtime::{BoxBuilder, LinuxNamespaceType, LinuxResources, Process as ProcessSpec};

use self::{
    command::{Invocation, Streams},
    console::Console,
};
use crate::{Container, CreateRequest, ExecRequest, Process, Runtime, RuntimeOptions, Stdio, native::Kept, systemd};

const DEADLINE: Duration = Duration::from_secs(30);

/// Names in a bundle.
const CONFIG: &str = "config.json";
const INIT_PID: &str = "init.pid";
const ROOTFS: &str = "rootfs";
/// There while we have mounts at `rootfs`: one that the caller made is not ours to unmount.
const MOUNTED: &str = "rootfs.mounted";
const LOG: &str = "log.json";

/// A runc-compatible binary as a driver.
#[derive(Clone, Debug)]
pub struct RuncDriver {
    binary: PathBuf,
    root: PathBuf,
    deadline: Duration,
    options: RuntimeOptions,
    oom_score: Option<i32>,
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
        Ok(RuncDriver { binary, root, deadline: DEADLINE, options: RuntimeOptions::default(), oom_score: None })
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
                let made = Console::new(&self.root)?;
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

    /// Removes what is left of a container, as far as it is there.
    fn remove(&self, place: &Place<'_>) -> Result<()> {
        match self.run(place, &["delete", "--force", place.id], Streams::Captured) {
            Err(e) if e.code != Code::NotFound => return Err(e),
            _ => {}
        }
        let fail = |what: &str, e: &std::io::Error| Error::io("container", place.id, what, e);
        if place.bundle.join(MOUNTED).exists() {
            let root = place.bundle.join(ROOTFS);
            // Nothing of the container runs any more; a lazy unmount gets past whoever else looks into it.
            while unmount(&root).map_err(|e| fail("unmounting its root", &e))? {}
            match std::fs::remove_dir(&root) {
                // A directory of the caller's, with something in it under our mount.
                Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
                result => absent_is_fine(result).map_err(|e| fail("removing the mount point of its root", &e))?,
            }
        }
        for file in [CONFIG, INIT_PID, LOG, MOUNTED] {
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

    fn create(&self, request: &CreateRequest<'_>) -> Result<Container> {
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
            let mut spec = request.spec.clone();
            if let Some(process) = spec.process_mut() {
                set_terminal(process, &request.stdio);
            }
            mount_root(request.bundle, request.rootfs)?;
            write(request.bundle, CONFIG, &json(&spec)?)?;
            let bundle = utf8(request.bundle_path)?;
            let size = request.stdio.size(request.spec.process().as_ref());
            let mut args = vec!["create", "--bundle", &bundle];
            args.extend(self.options.no_pivot.then_some("--no-pivot"));
            args.extend(self.options.no_new_keyring.then_some("--no-new-keyring"));
            self.make(&place, &args, INIT_PID, &request.stdio, size)
        })();
        let init = made.map_err(|e| about(e, request.spec.process().as_ref())).inspect_err(|_| {
            if let Err(left) = self.remove(&place) {
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

    fn start(&self, container: &mut Container) -> Result<()> {
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
        made
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
        match self.act(container, &["kill", "--all", &container.id, "9"]) {
            Err(e) if process::is_alive(&container.init.pidfd) => return Err(e),
            _ => {}
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

/// Mounts the layers of the root, in order, at `rootfs` in the bundle.
fn mount_root(bundle: BorrowedFd<'_>, mounts: &[Mount]) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    let fail = |what: &str, e: &std::io::Error| Error::io("mount", ROOTFS, what, e);
    match nix::sys::stat::mkdirat(bundle, ROOTFS, nix::sys::stat::Mode::S_IRWXU) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(e) => return Err(fail("making the mount point", &e.into())),
    }
    write(bundle, MOUNTED, b"")?;
    for wanted in mounts {
        let detached = mount::detached(wanted)?;
        // Opened anew each time: a mount on top of the one before, not under it.
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let target = fd::open_no_symlinks(bundle, Path::new(ROOTFS), flags, 0).map_err(|e| fail("opening it", &e))?;
        attach(&detached, &target).map_err(|e| fail("attaching the root file system", &e))?;
    }
    Ok(())
}

fn attach(detached: &OwnedFd, target: &OwnedFd) -> std::io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to) = (detached.as_raw_fd(), target.as_raw_fd());
    // SAFETY: the strings are static and the descriptors are held by the caller.
    match unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Takes the uppermost mount off; false when there was none.
fn unmount(path: &Path) -> std::io::Result<bool> {
    use nix::{errno::Errno, mount::MntFlags};
    match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn absent_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
