//! The handle that the RPC layer holds.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cofferdam_grants::Grants;
use cofferdam_images::Images;
use cofferdam_kernel::{Fair, Kernel, Placement, Slot, SlotConfig};
use cofferdam_metadata::{
    Metadata,
    records::{
        containers::{self, Container},
        tasks::{self, Exit, Task},
    },
};
use cofferdam_networks::Networks;
use cofferdam_oci::apparmor;
use cofferdam_snapshots::Snapshots;
use cofferdam_sys::metrics::Metrics;
use cofferdam_types::{Authority, Code, Error, Finding, Id, Name, Namespace, Result};
use tokio::sync::{oneshot, watch};

use crate::{
    actor::TasksActor,
    children::Children,
    copy::{self, Arrival, CopyOptions, Files},
    filters::Filters,
    layout::Layout,
    makers::{Makers, Presence},
    messages::{
        Attach, Attached, ChangeContainer, Changes, Check, CloseStdin, CreateContainer, CreateTask, DeleteProcess,
        Dump, DumpShim, Exec, ExecRequest, Execs, Kill, Known, LogLost, Measure, NewContainer, Observe, OpenFiles,
        Pause, Pids, ProcessEntry, ProcessState, Processes, Query, Remove, Removed, Rename, Resize, ShimInfo,
        ShimState, Shims, Start, Stdin, Stdio, UpdateResources,
    },
    restore::{DumpOptions, Dumped},
    runtimes::Runtimes,
    shim::Program,
    users::Users,
};

/// Requests under way: each may wait for its shim.
const BOUND: usize = 4096;
/// Copies at a time, and how many more may wait.
const COPIES: usize = 8;
const COPIES_WAITING: usize = 32;
/// How long a waiter leaves alone who refused it.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a waiter bridges a crash of the actor.
const BRIDGE: Duration = Duration::from_secs(10);

/// What this subsystem asks of others, and where its files lie.
#[derive(Clone)]
pub struct Deps {
    /// Records.
    pub metadata: Metadata,
    /// Writable roots.
    pub snapshots: Snapshots,
    /// What containers are made from.
    pub images: Images,
    /// What containers are connected to.
    pub networks: Networks,
    /// Directories.
    pub layout: Layout,
    /// The shim program.
    pub shim: Program,
    /// Where journald listens.
    pub journal: PathBuf,
    /// How long a reader of what was deleted is waited for who takes nothing.
    pub drain: Duration,
    /// criu, whether or not it is there.
    pub criu: PathBuf,
    /// Loads the AppArmor profile of those who name none, where the host can have one.
    pub apparmor: Option<Arc<apparmor::Loader>>,
    /// What profiles compile to.
    pub filters: Filters,
    /// Users of images.
    pub users: Users,
    /// The shims.
    pub children: Children,
    /// Whose the containers are that have not started and go with their task.
    pub makers: Makers,
    /// With which processes end that were run through one.
    pub grants: Grants,
    /// Runtime binaries of others.
    pub runtimes: Runtimes,
}

/// Tasks and containers. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    slot: Slot<TasksActor>,
    deps: Arc<Deps>,
    /// Where files are copied. Apart from everything else: a file system of a container's may never answer.
    copies: Fair,
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident($($field:ident: $type:ty),*) = $message:ident -> $reply:ty;)*) => {$(
        $(#[$doc])*
        #[allow(clippy::too_many_arguments, reason = "one message, by its fields")]
        pub async fn $name(&self, ns: &Namespace, id: &Id, $($field: $type),*) -> Result<$reply> {
            self.slot.call($message { namespace: ns.clone(), id: id.clone(), $($field),* }).await
        }
    )*};
}

impl Tasks {
    /// Hosts the actor, which begins by looking for every task that is on record.
    pub fn start(kernel: &Kernel, placement: Placement, deps: Deps) -> Result<Tasks> {
        let config =
            SlotConfig { bound: BOUND, heartbeat: Duration::from_secs(10), ..SlotConfig::new("tasks", placement) };
        let deps = Arc::new(deps);
        let theirs = deps.clone();
        let first = AtomicBool::new(true);
        let slot = kernel.spawn(config, move || TasksActor::new(theirs.clone(), first.swap(false, Ordering::Relaxed)));
        Ok(Tasks { slot, deps, copies: Fair::new("copies", COPIES, COPIES_WAITING) })
    }

    /// Where files lie.
    pub fn layout(&self) -> &Layout {
        &self.deps.layout
    }

    /// Makes a container's record and its writable snapshot; nothing runs yet. Its task can be made from when `placed` is
    /// told its id, beside the commit.
    pub async fn create_container(
        &self,
        auth: &Authority,
        ns: &Namespace,
        new: NewContainer,
        presence: Presence,
        placed: oneshot::Sender<Id>,
    ) -> Result<Container> {
        let (authority, namespace, new) = (auth.clone(), ns.clone(), Box::new(new));
        self.slot.call(CreateContainer { authority, namespace, new, presence, placed }).await
    }

    requests! {
        /// Makes the container's first process, ready but not started; from a `checkpoint` there is none before the start.
        create_task(
            authority: Authority, stdio: Stdio, log: bool, checkpoint: Option<Name>, presence: Presence
        ) = CreateTask -> Task;
        /// Writes what runs in the container into files. It stands still until the answer falls.
        dump(authority: Authority, options: DumpOptions) = Dump -> Dumped;
        /// Starts a process; gives its pid. The empty `exec` is the first one, here and below.
        start_process(authority: Authority, exec: String) = Start -> u32;
        /// Whether there is such a process, as far as anybody knows: while its shim is silent too.
        known(exec: String) = Known -> ();
        /// What is known of a process.
        query(exec: String) = Query -> ProcessState;
        /// The ids of the other processes.
        execs() = Execs -> Vec<String>;
        /// Signals a process, or all.
        kill(authority: Authority, exec: String, signal: u32, all: bool) = Kill -> ();
        /// Changes a terminal's size.
        resize(authority: Authority, exec: String, rows: u16, columns: u16) = Resize -> ();
        /// Ends a standard input that is a pipe.
        close_stdin(authority: Authority, exec: String) = CloseStdin -> ();
        /// The write end of a standard input that is a pipe.
        stdin(authority: Authority, exec: String) = Stdin -> OwnedFd;
        /// Follows what a process writes.
        attach(authority: Authority, exec: String, stdio: Stdio) = Attach -> Attached;
        /// Makes another process; gives its id.
        exec(authority: Authority, exec: Option<Id>, request: ExecRequest, stdio: Stdio) = Exec -> String;
        /// Forgets a process that has ended.
        delete_process(authority: Authority, exec: String) = DeleteProcess -> Exit;
        /// Freezes, or lets go on.
        pause(authority: Authority, pause: bool) = Pause -> ();
        /// Every pid.
        pids() = Pids -> Vec<u32>;
        /// Every process.
        processes() = Processes -> Vec<ProcessEntry>;
        /// What it uses and has used.
        metrics() = Measure -> Metrics;
        /// Changes limits: `linux.resources` of a spec. With or without a task, they are kept in the container's spec.
        update_resources(authority: Authority, resources: Vec<u8>) = UpdateResources -> ();
        /// How many bytes of output could not be kept, as far as its shim can be asked.
        log_lost() = LogLost -> u64;
        /// Changes the fields of its record that are named: `labels`, `labels.K`, `spec`, `extensions`, `extensions.K`; all
        /// where none is.
        change(authority: Authority, changes: Changes, fields: Vec<String>) = ChangeContainer -> Container;
        /// Gives it another id. Its task must have ended.
        rename(authority: Authority, to: Id) = Rename -> ();
        /// Removes container, task and snapshot in one commit.
        remove(authority: Authority, force: bool) = Remove -> ();
    }

    async fn open_files(&self, ns: &Namespace, id: &Id, authority: Authority) -> Result<Files> {
        self.slot.call(OpenFiles { namespace: ns.clone(), id: id.clone(), authority }).await
    }

    /// Packs what is at a path of the container into `out`, as a tar archive with one entry at its top. After an error what reads it
    /// must be closed: it may be waited for.
    pub async fn copy_out(&self, auth: &Authority, ns: &Namespace, id: &Id, path: String, out: OwnedFd) -> Result<()> {
        let files = self.open_files(ns, id, auth.clone()).await?;
        copy::take(files, path, out, &self.copies, auth.grants.first().copied()).await
    }

    /// Looks where a tar archive is to be unpacked in the container.
    pub async fn copy_in(&self, auth: &Authority, ns: &Namespace, id: &Id, options: CopyOptions) -> Result<Arrival> {
        let files = self.open_files(ns, id, auth.clone()).await?;
        let (pool, whose) = (self.copies.clone(), auth.grants.first().copied());
        self.copies.run(whose, move || Arrival::new(files, &options, pool, whose)).await
    }

    /// Every shim that has a task on record, by id.
    pub async fn shims(&self) -> Result<Vec<ShimInfo>> {
        self.slot.call(Shims).await
    }

    /// Compares records and directories. With `repair` what no record names is removed.
    pub async fn check(&self, repair: bool) -> Result<Vec<Finding>> {
        self.slot.call(Check(repair)).await
    }

    /// What a shim says of itself.
    pub async fn shim(&self, id: &str) -> Result<(ShimInfo, ShimState)> {
        self.slot.call(DumpShim(id.to_owned())).await
    }

    /// The record of a container.
    pub fn container(&self, ns: &Namespace, id: &Id) -> Result<Container> {
        containers::get(&self.deps.metadata.read()?, ns, id)
    }

    /// Checks that no container runs in a snapshot: what two mounts make of one writable tree is undefined. Containers name
    /// their snapshots by their own ids.
    pub async fn check_at_rest(&self, ns: &Namespace, driver: &str, key: &Name) -> Result<()> {
        let Ok(id) = Id::new(key.as_str()) else { return Ok(()) };
        let find = || containers::head(&self.deps.metadata.read()?, ns, &id);
        if find()?.is_none_or(|c| c.driver != driver || c.snapshot_key.as_ref() != Some(key)) {
            return Ok(());
        }
        let state = match self.query(ns, &id, String::new()).await {
            Ok(process) => process.state,
            Err(error) if error.code == Code::NotFound => match tasks::find(&self.deps.metadata.read()?, ns, &id)? {
                Some(task) => task.state,
                None => return Ok(()),
            },
            Err(error) => return Err(error),
        };
        if state == tasks::State::Stopped {
            return Ok(());
        }
        let state = state.as_str();
        let why = format!(
            "is mounted by container {id}, which is {state}: mount it when that has ended, or copy files with \"cp\""
        );
        Err(Error::failed_precondition("snapshot", key, why))
    }

    /// Waits for the end of a process. Crashes of the actor meanwhile are bridged: it finds the process again.
    pub async fn wait(&self, ns: &Namespace, id: &Id, exec: &str) -> Result<Exit> {
        loop {
            let observe = Observe { namespace: ns.clone(), id: id.clone(), exec: exec.to_owned() };
            match self.slot.call(observe).await {
                Ok(mut exit) => {
                    let seen = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
                    if let Some(exit) = seen {
                        return Ok(exit);
                    }
                    // The sender fell: the process was deleted, which the next answer says, or the actor crashed.
                    self.up().await?;
                }
                Err(error) if error.code == Code::Unavailable => self.up().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until a container is gone.
    pub async fn removed(&self, ns: &Namespace, id: &Id) -> Result<()> {
        loop {
            let mut gone = match self.slot.call(Removed { namespace: ns.clone(), id: id.clone() }).await {
                Ok(gone) => gone,
                Err(error) if error.code == Code::NotFound => return Ok(()),
                Err(error) if error.code == Code::Unavailable => {
                    self.up().await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if gone.wait_for(|gone| *gone).await.is_ok() {
                return Ok(());
            }
            self.up().await?;
        }
    }

    /// Waits until the actor is up again. Who was refused for another reason is not to ask in a circle.
    async fn up(&self) -> Result<()> {
        tokio::time::sleep(PAUSE).await;
        let mut health = self.slot.watch();
        let up = health.wait_for(|health| matches!(health, cofferdam_kernel::Health::Up));
        match tokio::time::timeout(BRIDGE, up).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::unavailable("actor", "tasks", "did not come back")),
        }
    }
}

/// The exit of a process, as a watch that turns `Some`.
pub(crate) type ExitWatch = watch::Sender<Option<Exit>>;
