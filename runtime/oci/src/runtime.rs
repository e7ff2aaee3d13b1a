//! What every driver can do with a container, whoever makes it.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use cofferdam_sys::{
    cgroup::{Cgroup, Layout},
    oom::OomWatch,
};
use cofferdam_types::{Id, Mount, Namespace, Result};
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec, Spec};
use serde::{Deserialize, Serialize};

use crate::native::Kept;

/// Where a process's standard streams lead.
#[derive(Clone, Copy, Debug)]
pub enum Stdio<'a> {
    /// To these descriptors; they stay the caller's.
    Fds {
        /// Descriptor 0.
        stdin: BorrowedFd<'a>,
        /// Descriptor 1.
        stdout: BorrowedFd<'a>,
        /// Descriptor 2.
        stderr: BorrowedFd<'a>,
    },
    /// To a terminal that is made inside the container; its master comes back as [`Process::console`].
    /// With neither height nor width it is as large as the spec's `process.consoleSize`, or else 24 by 80.
    Terminal {
        /// Height in characters.
        rows: u16,
        /// Width in characters.
        cols: u16,
    },
}

impl Stdio<'_> {
    /// The size of the terminal, if it is one: as asked for, else the spec's, else 24 by 80.
    pub(crate) fn size(&self, process: Option<&ProcessSpec>) -> Option<(u16, u16)> {
        let Stdio::Terminal { rows, cols } = *self else { return None };
        if (rows, cols) != (0, 0) {
            return Some((rows, cols));
        }
        let within = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        let named = process.and_then(|process| process.console_size());
        let named = named.map(|size| (within(size.height()), within(size.width()))).filter(|size| *size != (0, 0));
        Some(named.unwrap_or((24, 80)))
    }
}

/// Everything that a driver needs to make a container.
#[derive(Debug)]
pub struct CreateRequest<'a> {
    /// The container's id.
    pub id: &'a Id,
    /// The namespace that it lies in.
    pub namespace: &'a Namespace,
    /// The bundle directory; relative paths of the spec start here.
    pub bundle: BorrowedFd<'a>,
    /// The same directory by name, for drivers that hand it to a program.
    pub bundle_path: &'a Path,
    /// What to make.
    pub spec: &'a Spec,
    /// What to mount, in order, as the root file system; empty: the spec's `root.path` is it already.
    pub rootfs: &'a [Mount],
    /// The first process's streams.
    pub stdio: Stdio<'a>,
    /// What the spec's seccomp profile compiles to, if somebody has compiled it.
    pub filter: Option<&'a [libc::sock_filter]>,
}

/// What is to be checkpointed. Plain data: another process than the container's parent does it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointRequest {
    /// The container's id.
    pub id: Id,
    /// The namespace that it lies in.
    pub namespace: Namespace,
    /// The bundle directory.
    pub bundle: PathBuf,
    /// Its cgroup.
    pub cgroup: String,
    /// Its first process.
    pub pid: i32,
    /// What it was made from.
    pub spec: Spec,
    /// A directory of ours alone: the images come into [`crate::criu::IMAGES`] in it.
    pub dir: PathBuf,
    /// criu.
    pub criu: PathBuf,
    /// Established TCP connections are kept.
    pub tcp_established: bool,
    /// Unix sockets whose other end is outside are kept.
    pub unix_sockets: bool,
}

/// What a container is restored from.
#[derive(Clone, Copy, Debug)]
pub struct RestoreFrom<'a> {
    /// A directory of ours alone, with [`crate::criu::IMAGES`] in it.
    pub dir: &'a Path,
    /// criu.
    pub criu: &'a Path,
    /// There may be established TCP connections in it.
    pub tcp_established: bool,
    /// There may be unix sockets in it whose other end is outside.
    pub unix_sockets: bool,
}

/// One more process for a container.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// Names the process in errors and in files of a driver.
    pub id: &'a Id,
    /// What to run.
    pub process: &'a ProcessSpec,
    /// Its streams.
    pub stdio: Stdio<'a>,
    /// The name of a group below the container's that it is to be in, with all that comes of it; made if it isn't there.
    pub group: Option<&'a str>,
}

/// A process that the caller is to reap (it is a child, or a subreaper's orphan).
#[derive(Debug)]
pub struct Process {
    /// Its pid in the caller's pid namespace.
    pub pid: i32,
    /// Good for signals, for waiting and for polling.
    pub pidfd: OwnedFd,
    /// The master of its terminal, where it has one.
    pub console: Option<OwnedFd>,
}

/// A container that a driver made. The plain fields are what a caller must keep on disk to find it again.
#[derive(Debug)]
pub struct Container {
    /// The container's id.
    pub id: Id,
    /// The namespace that it lies in.
    pub namespace: Namespace,
    /// Its cgroup, as a path below every hierarchy's root: `/cofferdam/default/redis`.
    pub cgroup: String,
    /// The bundle directory.
    pub bundle: PathBuf,
    /// Its first process.
    pub init: Process,
    /// What the native driver keeps; other drivers leave it empty.
    pub(crate) kept: Kept,
}

impl Container {
    fn with_cgroup<T>(&self, f: impl FnOnce(&Cgroup) -> Result<T>) -> Result<T> {
        match &self.kept.cgroup {
            Some(cgroup) => f(cgroup),
            None => f(&Cgroup::open(&Layout::detect()?, &self.cgroup)?),
        }
    }

    /// Lets go of the root file system of one that is deleted, which may take as long as a sync of its disk.
    pub fn release_root(&self) {
        self.release_mounts();
        drop(locked(&self.kept.root).take());
    }

    /// Lets go of the mounts of one that has ended, for which the kernel takes half a millisecond.
    pub fn release_mounts(&self) {
        drop(locked(&self.kept.mounts).take());
    }

    /// Signals every process that is in its cgroup. It is for the kernel to say which those are: no program is asked, and a
    /// pid that has passed to another process is not in it.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        self.with_cgroup(|cgroup| cgroup.signal_all(signal))
    }

    /// Kills all that is in a group of processes that were run together; see [`ExecRequest::group`].
    pub fn kill_group(&self, name: &str) -> Result<()> {
        self.with_cgroup(|cgroup| cgroup.find_inner(name)?.map_or(Ok(()), |group| cgroup.kill_inner(&group)))
    }

    /// Removes such a group if it is empty; whether it is gone.
    pub fn remove_group(&self, name: &str) -> Result<bool> {
        self.with_cgroup(|cgroup| cgroup.find_inner(name)?.map_or(Ok(true), |group| group.try_remove()))
    }

    /// Puts a process into such a group that a program of others has begun, with what that has begun by now.
    pub(crate) fn adopt(&self, pid: i32, name: &str) -> Result<()> {
        self.with_cgroup(|cgroup| cgroup.inner(name)?.adopt(pid))
    }

    /// Lets a process that was killed die though the others stand still.
    pub fn let_die(&self, pid: i32) -> Result<()> {
        self.with_cgroup(|cgroup| cgroup.let_die(pid))
    }

    /// Kills all that is in its cgroup.
    pub(crate) fn kill_cgroup(&self) -> Result<()> {
        self.with_cgroup(Cgroup::kill)
    }

    /// How often something in it was killed for want of memory.
    pub fn oom_kills(&self) -> Result<u64> {
        self.with_cgroup(Cgroup::oom_kills)
    }

    /// Whether it stands still for want of memory, with nobody to be killed for it.
    pub fn under_oom(&self) -> Result<bool> {
        self.with_cgroup(Cgroup::under_oom)
    }

    /// The news of that; `None` where the host counts no memory.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        self.with_cgroup(OomWatch::new)
    }
}

/// What nobody holds across a call that can fail half-way: it is whole whatever became of who held it.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A driver: makes containers and acts on those it made.
///
/// Calls block. They belong in a process that is a child subreaper and leaves alone, while one is at work, which of its
/// children it doesn't know. One may be made from a thread of its own, which lives until the call is over: what it starts
/// dies with that thread. Calls for one container come one after the other, but for those that signal it.
pub trait Runtime: Send + Sync {
    /// The driver's name, for errors and records.
    fn name(&self) -> &'static str;

    /// Whether it is a program of somebody else's: then whatever it is asked for takes as long as that does.
    fn is_foreign(&self) -> bool {
        true
    }

    /// Whether to make this, to start and to remove what was made may take long. Otherwise it takes milliseconds.
    fn is_slow(&self, spec: &Spec) -> bool;

    /// Makes the container, set up to the last detail but for the program itself. On an error nothing is left of it.
    fn create(&self, request: &CreateRequest<'_>) -> Result<Container>;

    /// Starts the program, and says whether that worked: `not_found command/…` if there is no such file,
    /// `failed_precondition command/…` if it can't be executed. A container whose start failed has a dead init and can be deleted.
    fn start(&self, container: &Container) -> Result<()>;

    /// Writes what runs in a container, paused or not, into images. It stays as it is. May take as long as its memory
    /// takes to be written.
    fn checkpoint(&self, request: &CheckpointRequest) -> Result<()>;

    /// Makes the container with what runs in it from images; it runs when this returns. On an error nothing is left of
    /// it.
    fn restore(&self, request: &CreateRequest<'_>, from: &RestoreFrom<'_>) -> Result<Container>;

    /// Runs one more process in a container that is running.
    fn exec(&self, container: &Container, request: &ExecRequest<'_>) -> Result<Process>;

    /// Sends a signal to the first process. A process that is gone already is no error.
    fn kill(&self, container: &Container, signal: i32) -> Result<()>;

    /// Kills every process of the container, paused or not.
    fn kill_all(&self, container: &Container) -> Result<()>;

    /// Stops every process where it is; returns when all have stopped.
    fn pause(&self, container: &Container) -> Result<()>;

    /// Lets them go on.
    fn resume(&self, container: &Container) -> Result<()>;

    /// Changes limits; what `resources` doesn't name stays as it is.
    fn update(&self, container: &Container, resources: &LinuxResources) -> Result<()>;

    /// The pids of every process, in the caller's pid namespace.
    fn pids(&self, container: &Container) -> Result<Vec<i32>>;

    /// Removes what the driver made if that needs no waiting, as where all that ran has ended; whether it was done.
    fn delete_at_once(&self, _container: &Container) -> Result<bool> {
        Ok(false)
    }

    /// Kills what still runs and removes what the driver made (cgroups, files). May be repeated.
    fn delete(&self, container: &Container) -> Result<()>;
}
