//! Acceptance, contract, security and crash tests; benches.
//!
//! This library is what they share: a private daemon for one test ([`Daemon`]), what a host has that it should not have
//! ([`Leftovers`]), and waiting with a deadline ([`until`]). It builds nothing: the programs lie in
//! `COFFERDAM_BIN_DIR`, or in the directory above the test's own (`target/<profile>`); the images lie in
//! `target/test-images`, made by `deploy/images`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a failure is a panic")]

mod daemon;
mod disk;
mod faults;
mod files;
mod leftovers;
mod platter;
mod registry;
mod runtimes;
mod streams;
mod wait;

pub use daemon::{BUSYBOX, Daemon};
pub use disk::{Mounted, Powered, btrfs_disk, fill, small_disk, small_disk_with, small_state};
pub use faults::{Asked, Fault, Faults};
pub use files::{binary, clients, criu, images, older_programs, programs};
pub use leftovers::{Leftovers, all_processes, cgroups, descriptors, processes};
pub use platter::{Image, Platter, Record};
pub use registry::{Cache, Registry};
pub use runtimes::{crun, program, script};
pub use streams::{Arrivals, input, output, pipe, terminal, write};
pub use wait::{DEADLINE, bounded, count, is_long, skipped, until, until_async};
