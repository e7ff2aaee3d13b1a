//! Images, end to end through the client library: imported and pulled in every form, compared with what another tool
//! unpacks, run, and refused where they are wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a failure is a panic")]

mod again;
mod artifacts;
mod bad;
mod btrfs;
mod confined;
mod contract;
mod converts;
mod disk;
mod engine;
mod entries;
mod erofs;
mod exports;
mod faults;
mod imports;
mod inside;
mod interop;
mod legacy;
mod limits;
mod pulls;
mod pushes;
mod reboot;
mod rootfs;
mod routes;
mod support;
mod trust;
