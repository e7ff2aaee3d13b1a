//! The life of tasks and their processes.
//!
//! A task is the running instance of a container: one shim, the container's first process, and the processes executed in
//! it. This subsystem owns the shims' directories and bundles below the state directory and the logs below the root
//! directory. It never owns a process: a shim does, and outlives the daemon. Nor a snapshot: it asks for one.
//!
//! - [`Tasks`] is the handle. Every request is a message to the actor, whose handler works in a future of its own: a
//!   client that goes away cancels its waiting, never the work.
//! - A hung shim blocks its own task's requests alone.
//! - What became of a process is in the shim's life record before anybody hears of it; the task record and the events
//!   follow from that.
//! - The start after a crash and the ordinary start are the same: every task record without an end is looked for, side
//!   by side, while requests are served; those for a task that is still being looked for wait for it.

mod actor;
mod change;
mod check;
mod children;
mod coming;
mod copy;
mod create;
mod departed;
mod entry;
mod exec;
mod filters;
mod follow;
mod granted;
mod handle;
mod inspect;
mod intent;
mod layout;
mod limits;
mod link;
mod makers;
mod messages;
mod network;
mod patience;
mod pause;
mod recover;
mod remove;
mod restore;
mod rights;
mod run;
mod runtimes;
mod shim;
mod shims;
mod spare;
mod start;
mod sweep;
mod told;
mod users;

pub use children::Children;
pub use copy::{Arrival, CopyOptions};
pub use filters::Filters;
pub use handle::{Deps, Tasks};
pub use layout::Layout;
pub use makers::{Makers, Presence};
pub use messages::{
    Attached, Changes, ExecRequest, Input, NewContainer, Output, ProcessEntry, ProcessState, RunRecord, ShimContainer,
    ShimInfo, ShimState, Stdio,
};
pub use network::NetworkRecord;
pub use restore::{DumpOptions, Dumped};
pub use runtimes::Runtimes;
pub use shim::Program;
pub use users::Users;
