//! The commands, one file per noun; those of containers that have more to them have a file of their own.

pub mod attach;
pub mod checkpoint;
pub mod commit;
pub mod container;
pub mod content;
pub mod cp;
pub mod diff;
pub mod env;
pub mod events;
pub mod exec;
pub mod foreground;
pub mod gc;
pub mod image;
pub mod job;
pub mod lease;
pub mod lifecycle;
pub mod logs;
pub mod namespace;
pub mod network;
pub mod run;
pub mod shim;
pub mod snapshot;
pub mod stats;
pub mod system;
pub mod top;
pub mod update;
