//! OCI runtime specs and the drivers that run them.
//!
//! [`spec`] makes a runtime spec from an image's configuration and typed options; a driver behind [`Runtime`] makes a
//! container of it. [`native`] is ours and the default; [`runc`] runs a runc-compatible binary. Everything here is
//! synchronous and belongs in a single-threaded process (the shim): the native driver clones.

pub mod apparmor;
pub mod caps;
pub mod criu;
pub mod native;
mod options;
mod rootfs;
pub mod runc;
mod runtime;
pub mod seccomp;
pub mod spec;
pub mod systemd;
pub mod update;
pub mod users;

pub use options::RuntimeOptions;
pub use runtime::{CheckpointRequest, Container, CreateRequest, ExecRequest, Process, RestoreFrom, Runtime, Stdio};
