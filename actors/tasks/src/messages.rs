//! The protocol of the subsystem at a glance.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use actix::Message;
use cofferdam_metadata::records::{
    containers::Container,
    tasks::{Exit, State, Task},
};
use cofferdam_oci::spec::Options;
use cofferdam_sys::{metrics::Metrics, procfs};
use cofferdam_types::{Any, Authority, Finding, Id, Labels, Name, Namespace, Platform, Result, Timestamp};
use cofferdam_wire::{convert::Life, received::Received};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::{
    copy::Files,
    makers::Presence,
    network::NetworkRecord,
    restore::{DumpOptions, Dumped},
};

/// Where a process reads its standard input from.
#[derive(Debug, Default)]
pub enum Input {
    /// /dev/null.
    #[default]
    Null,
    /// A descriptor of the client's.
    Fd(Received),
    /// A pipe whose write end the shim keeps.
    Pipe,
    /// A FIFO of the host, by its path.
    Fifo(String),
    /// A file of the host, by its path.
    File(String),
}

/// Where what it writes goes.
#[derive(Debug, Default)]
pub enum Output {
    /// Nowhere.
    #[default]
    Null,
    /// A descriptor of the client's.
    Fd(Received),
    /// A FIFO of the host, by its path.
    Fifo(String),
    /// A file of the host, by its path.
    File(String),
}

/// A process's streams.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: Input,
    /// Descriptor 1, or the terminal's output.
    pub stdout: Output,
    /// Descriptor 2; unused with a terminal.
    pub stderr: Output,
    /// Of the terminal; zeros are the default.
    pub rows: u16,
    /// Of the terminal.
    pub columns: u16,
}

/// What makes a container.
#[derive(Clone, Debug)]
pub struct NewContainer {
    /// `None`: one is chosen.
    pub id: Option<Id>,
    /// The image's name, in the same namespace. Without it there is a `rootfs`, or a spec that names the root file system.
    pub image: Option<Name>,
    /// A directory of the host that is the root file system; only under the `host` right.
    pub rootfs: Option<String>,
    /// The platform to run it as.
    pub platform: Platform,
    /// The typed options.
    pub options: Options,
    /// A whole OCI runtime spec instead of the options; only under the `host` right.
    pub spec: Option<Vec<u8>>,
    /// Options of the runtime driver.
    pub runtime_options: Any,
    /// Free labels.
    pub labels: Labels,
    /// The runtime driver.
    pub runtime: String,
    /// The snapshot driver; empty is the default.
    pub driver: String,
    /// The most bytes that it may have for itself in its snapshot; 0 is no limit.
    pub storage: u64,
    /// See [`RunRecord`].
    pub remove_on_exit: bool,
    /// See [`RunRecord`].
    pub log: cofferdam_log::Options,
    /// Containers of one group share a shim.
    pub group: Option<Id>,
    /// The image is a checkpoint: files and process come from it.
    pub checkpoint: bool,
}

/// What the container's record keeps of how it was made (its opaque `options`).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunRecord {
    /// Container, task and snapshot go when the task has ended.
    #[serde(default)]
    pub remove_on_exit: bool,
    /// The number of the signal that asks it to end, as its image said when it was made.
    #[serde(default)]
    pub stop_signal: Option<u32>,
    /// How its output is kept, where its task has a log.
    #[serde(default)]
    pub log: cofferdam_log::Options,
    /// It was made from a spec of the client's own.
    #[serde(default)]
    pub own_spec: bool,
    /// Its network, and what it is told of names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkRecord>,
    /// The directory of the host that is its root file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<String>,
}

/// What of a container's record can change.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Free labels.
    pub labels: Labels,
    /// The OCI runtime spec; only under the `host` right.
    pub spec: Any,
    /// Payloads of others.
    pub extensions: BTreeMap<String, Any>,
}

/// Another process for a container.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub args: Vec<String>,
    /// On top of the container's.
    pub env: Vec<String>,
    /// Empty is the container's.
    pub workdir: String,
    /// Empty is the container's.
    pub user: String,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// On top of the container's; only under the `host` right.
    pub cap_add: Vec<String>,
    /// Of the container's.
    pub cap_drop: Vec<String>,
}

/// What is known of a process.
#[derive(Clone, Debug)]
pub struct ProcessState {
    /// How far it is.
    pub state: State,
    /// On the host; 0 when it has ended.
    pub pid: u32,
    /// When it was made.
    pub created: Timestamp,
    /// When it was started.
    pub started: Option<Timestamp>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// When the container ran out of memory last; 0 is never.
    pub oomed: Timestamp,
    /// How often it did.
    pub ooms: u64,
}

/// A process of a container, as the kernel shows it.
#[derive(Clone, Debug)]
pub struct ProcessEntry {
    /// Whether it is the container's first.
    pub first: bool,
    /// The exec whose process it is; empty for others.
    pub exec: String,
    /// What the kernel says. Its parent is 0 where that is none of the container's.
    pub process: procfs::Process,
}

/// A client that follows a process. Dropping it detaches.
#[derive(Debug)]
pub struct Attached {
    /// Turns `Some` with the reason when it ends.
    pub over: watch::Receiver<Option<String>>,
    /// Its fall is the detach.
    pub(crate) _hold: oneshot::Sender<()>,
}

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty),* $(,)? } -> $reply:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name {
            pub namespace: Namespace,
            pub id: Id,
            $($(#[$fdoc])* pub $field: $type,)*
        }
        impl Message for $name {
            type Result = Result<$reply>;
        }
    )*};
}

/// A shim that has a task on record.
#[derive(Clone, Debug)]
pub struct ShimInfo {
    /// Its id.
    pub id: String,
    /// Where its containers lie.
    pub namespace: Namespace,
    /// there, looking, mute or lost.
    pub state: &'static str,
    /// What it holds.
    pub containers: Vec<Id>,
    /// Which they belong to.
    pub group: Option<Id>,
}

/// What a shim says of itself.
#[derive(Clone, Debug, Default)]
pub struct ShimState {
    /// Of the protocol that it speaks.
    pub version: u32,
    /// Its process.
    pub pid: u32,
    /// When it was started.
    pub started: Timestamp,
    /// How many descriptors it has open.
    pub descriptors: u32,
    /// Bytes.
    pub resident: u64,
    /// Bytes, with what it shares with others in parts.
    pub proportional: u64,
    /// Who talks to it, the asker included.
    pub connections: u32,
    /// What it holds.
    pub containers: Vec<ShimContainer>,
}

/// A container, as its shim knows it.
#[derive(Clone, Debug)]
pub struct ShimContainer {
    /// Where it lies.
    pub namespace: String,
    /// Its id.
    pub id: String,
    /// What made it.
    pub driver: String,
    /// Whether it is frozen.
    pub paused: bool,
    /// Its processes, the first one first.
    pub processes: Vec<Life>,
}

/// Every shim that has a task on record.
#[derive(Debug)]
pub(crate) struct Shims;

impl Message for Shims {
    type Result = Result<Vec<ShimInfo>>;
}

/// Compares records and directories; with `true` removes what no record names.
#[derive(Debug)]
pub(crate) struct Check(pub bool);

impl Message for Check {
    type Result = Result<Vec<Finding>>;
}

/// Asks a shim how it is.
#[derive(Debug)]
pub(crate) struct DumpShim(pub String);

impl Message for DumpShim {
    type Result = Result<(ShimInfo, ShimState)>;
}

/// Makes the record and the writable snapshot.
#[derive(Debug)]
pub(crate) struct CreateContainer {
    pub authority: Authority,
    pub namespace: Namespace,
    pub new: Box<NewContainer>,
    pub presence: Presence,
    /// Told its id when it only waits for its commit: its task can be asked for.
    pub placed: oneshot::Sender<Id>,
}

impl Message for CreateContainer {
    type Result = Result<Container>;
}

messages! {
    /// Makes the first process.
    CreateTask { authority: Authority, stdio: Stdio, log: bool, checkpoint: Option<Name>, presence: Presence } -> Task;
    /// Writes what runs in the container into files, and lets it stand still.
    Dump { authority: Authority, options: DumpOptions } -> Dumped;
    /// Opens the root file system for a copy.
    OpenFiles { authority: Authority } -> Files;
    /// Starts a process; the empty `exec` is the first one, here and below.
    Start { authority: Authority, exec: String } -> u32;
    /// Follows a process to its end.
    Observe { exec: String } -> watch::Receiver<Option<Exit>>;
    /// Whether there is such a process, as far as anybody knows: while its shim is silent too.
    Known { exec: String } -> ();
    /// What is known of a process.
    Query { exec: String } -> ProcessState;
    /// The ids of the other processes.
    Execs {} -> Vec<String>;
    /// Signals a process, or all.
    Kill { authority: Authority, exec: String, signal: u32, all: bool } -> ();
    /// Changes a terminal's size.
    Resize { authority: Authority, exec: String, rows: u16, columns: u16 } -> ();
    /// Ends a standard input that is a pipe.
    CloseStdin { authority: Authority, exec: String } -> ();
    /// The write end of a standard input that is a pipe.
    Stdin { authority: Authority, exec: String } -> OwnedFd;
    /// Follows what a process writes.
    Attach { authority: Authority, exec: String, stdio: Stdio } -> Attached;
    /// Makes another process; gives its id.
    Exec { authority: Authority, exec: Option<Id>, request: ExecRequest, stdio: Stdio } -> String;
    /// Forgets a process that has ended.
    DeleteProcess { authority: Authority, exec: String } -> Exit;
    /// Freezes, or lets go on.
    Pause { authority: Authority, pause: bool } -> ();
    /// Every pid.
    Pids {} -> Vec<u32>;
    /// Every process.
    Processes {} -> Vec<ProcessEntry>;
    /// What it uses and has used.
    Measure {} -> Metrics;
    /// Changes limits, those of the record too.
    UpdateResources { authority: Authority, resources: Vec<u8> } -> ();
    /// How many bytes of output could not be kept.
    LogLost {} -> u64;
    /// Changes the fields of its record that are named.
    ChangeContainer { authority: Authority, changes: Changes, fields: Vec<String> } -> Container;
    /// Gives it another id.
    Rename { authority: Authority, to: Id } -> ();
    /// Removes container, task and snapshot.
    Remove { authority: Authority, force: bool } -> ();
    /// Turns true when the container is gone.
    Removed {} -> watch::Receiver<bool>;
}
