//! The client library: connect, typed handles, streams, errors, and a run in one round trip.
//!
//! ```no_run
//! # async fn example() -> cofferdam_client::Result<()> {
//! use cofferdam_client::{Client, RunRequest};
//!
//! let client = Client::connect("/run/cofferdam/cofferd.sock").await?;
//! let mut request = RunRequest::new("default", "docker.io/library/busybox:latest");
//! request.container.options.args = vec!["true".into()];
//! request.container.remove_on_exit = true;
//! let run = client.run(request)?;
//! println!("{} ended with {}", run.id(), run.wait().await?.status);
//! # Ok(()) }
//! ```
//!
//! **Where it runs.** Cap'n Proto RPC is single-threaded: use a tokio current-thread runtime and a
//! [`tokio::task::LocalSet`] ([`block_on`] makes both). Handles are cheap to clone and stay on their thread.
//!
//! **Calls go out when they are made.** A method sends its request before it returns. One that gives a handle, such as
//! [`Containers::get`], gives it at once: it stands for an answer that has yet to come, so a chain of handles costs one
//! round trip, and what goes wrong anywhere in it comes out of the first thing that is awaited. One that gives a value
//! returns a [`Reply`]; dropping that cancels the call where it waits.
//!
//! **Errors** are [`Error`]: a stable [`Code`], the thing it is about, and what to do. A lost connection is of kind
//! `connection` ([`is_lost`]).
//!
//! **Deadlines.** [`Namespace::with`] lays a [`Context`] over everything that is reached from there: a call that takes longer
//! than its deadline fails with `deadline_exceeded`. What waits for something to happen is not bound by it: [`Reply::within`] bounds
//! that, and whatever a daemon that stands still doesn't answer; or drop the [`Reply`].
//!
//! **Bytes.** Descriptors of yours go to the daemon in band ([`Input::Fd`], [`Output::Fd`]), so bytes never pass the
//! daemon and survive its restart. Whoever has none uses streams: [`channel`] and [`Sink`].
//!
//! **Less than everything.** [`Client::connect`] gives what the daemon's policy grants on that socket, which for the operator is
//! all of it. [`Grants`] hands out less, and takes it back; who has a token of a grant begins with [`Client::restore`], and
//! who can connect to a socket that is one with [`Client::connect`]. Both find a client with one namespace, in which
//! everything is where it is for anybody else; what the grant doesn't cover is `denied`.
//!
//! ```no_run
//! # async fn example() -> cofferdam_client::Result<()> {
//! use cofferdam_client::{Client, GrantOptions};
//!
//! let operator = Client::connect("/run/cofferdam/cofferd.sock").await?;
//! let grants = operator.namespace("shop").grants();
//! let options = GrantOptions { facets: vec!["logs".into()], containers: vec!["web".into()], ..Default::default() };
//! let grant = grants.create(&options);
//! let token = grant.save(None).await?;
//!
//! // Somewhere else, and that is all that can be done there.
//! let reader = Client::restore("/run/cofferdam/cofferd.sock", &token).await?;
//! let logs = reader.namespace("shop").containers().get("web").logs(false, |_| Ok(()));
//! # drop(logs);
//! grant.revoke().await?;
//! # Ok(()) }
//! ```
//!
//! **When the connection is lost** all handles of it are dead, and [`Client::again`] makes another one with the same grant. A
//! [`Reconnecting`] does that by itself, and a [`Sturdy`] handle is found again there:
//!
//! ```no_run
//! # async fn example(token: &str) -> cofferdam_client::Result<()> {
//! let shop = cofferdam_client::Client::restore("/run/cofferdam/cofferd.sock", token).await?.reconnecting();
//! let web = shop.sturdy(|client| client.namespace("").containers().get("web"));
//! // The daemon may be restarted while this waits.
//! let exit = web.ask(async |web| web.task().wait().await).await?;
//! # drop(exit);
//! # Ok(()) }
//! ```
//!
//! No call is repeated unless that was asked for, with one exception: [`Run`] finds its container again after the daemon was
//! restarted.
//!
//! **Examples** that are run by the tests lie in `cli/client/examples`: a run with streams, a grant and what it refuses, a log
//! that is followed across the daemon's restart, and a deadline.

mod artifact;
mod audit;
mod call;
mod collector;
mod commit;
mod connect;
mod container;
mod content;
mod credential;
mod cursor;
mod docker;
mod event;
mod exits;
mod grant;
mod image;
mod job;
mod json;
mod lease;
mod logs;
mod metrics;
mod namespace;
mod network;
mod options;
mod process;
mod route;
mod run;
mod snapshot;
mod stdio;
mod sturdy;
mod system;
#[cfg(test)]
mod tests;

pub use artifact::{ArtifactOptions, ConvertOptions};
pub use audit::{Audit, AuditCursor, AuditFault, AuditFilter, AuditRecord, AuditReport};
pub use call::Reply;
pub use cofferdam_types::{Any, Code, Error, Instruction, Labels, Result, Timestamp};
pub use collector::{ByteOwner, CollectReport, Collected, Collector, DiskUsage, Explanation, ReferenceStep};
pub use commit::CommitOptions;
pub use connect::{Client, DaemonInfo, block_on, is_lost};
pub use container::{Container, ContainerChanges, ContainerInfo, ContainerRequest, Containers, RUNTIME_OPTIONS};
pub use content::{Blob, BlobInfo, Content, Ingest, IngestInfo};
pub use credential::{CredentialInfo, CredentialKind, Credentials};
pub use cursor::Cursor;
pub use docker::{DockerConfig, DockerCredential, registry_of};
pub use event::{Events, FROM_NOW, Gap, Subscription};
pub use grant::{Grant, GrantInfo, GrantOptions, Grants};
pub use image::{
    Image, ImageDetail, ImageInfo, ImageReport, Images, ImportFormat, ImportOptions, PlatformState, PruneReport,
    PrunedImage, PullOptions, PullPolicy, PushOptions, Secret, Verdict,
};
pub use job::{Job, JobInfo, JobItem, Jobs};
pub use lease::{Lease, LeaseInfo, Leases, Resource};
pub use logs::{LogOptions, LogPosition, LogRecord, LogStream};
pub use metrics::{Cpu, Hugetlb, Io, Memory, Metrics, Pids, ProcessInfo};
pub use namespace::{Context, Namespace, NamespaceInfo, Namespaces};
pub use network::{Network, NetworkInfo, NetworkStatus, Networking, Networks, PortMapping, Protocol};
pub use options::{BindMount, ContainerOptions, Device, IdMap, MountSource, Rlimit};
pub use process::{Attachment, CheckpointOptions, Exit, Process, ProcessOptions, State, Status, Task, TaskInfo};
pub use route::{RouteReport, RouteStep};
pub use run::{Again, Run, RunRequest, random_id};
pub use snapshot::{Change, ChangeKind, Layer, Snapshot, SnapshotInfo, SnapshotKind, Snapshots};
pub use stdio::{Input, Output, Receiver, Sink, Stdio, channel};
pub use sturdy::{Reconnecting, Sturdy};
pub use system::{ActorStatus, Finding, ShimContainer, ShimInfo, ShimProcess, ShimState, System, SystemStatus};
