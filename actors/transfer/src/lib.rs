//! Images from archives, directories and registries.
//!
//! Owns the jobs that bring images in and nothing on disk: blobs are content's, trees snapshots', names images'. It is
//! the one place of the daemon that speaks to registries, and it believes none of what they say.
//!
//! - [`Transfer`]: the handle. [`Transfer::pull`], [`Transfer::import`] and [`Transfer::rootfs`] begin a [`Job`], which
//!   has a name, a [`Progress`] and an end, and can be cancelled. A panic in a job is that job's own end.
//! - [`Transfer::checkpoint`] makes an image of a running container, [`Transfer::commit`] one of the files that were
//!   changed in it, and [`Transfer::export`] an archive of an image.
//! - A layer streams once: from the network or the archive into an ingest, hashed, and in the same pass into its tree.
//!   Layers go side by side, and of large ones parts, where it is the network that is waited for. What is there already is
//!   not fetched; what another job of the namespace is fetching from the same repository is waited for.
//! - Blobs become durable and visible together, then trees, then the name. A job that fails leaves nothing behind; one
//!   whose daemon died or was ended leaves ingests that the next pull resumes.
//! - [`Transfer::artifact`] makes a manifest of any blobs, [`Transfer::convert`] an image of another one that holds the same files.
//! - [`Trust`] says whose images come in: whatever gets a name is asked about first.
//! - [`registry`]: the client. Blocking, on the job's threads; a cancelled job closes its sockets.
//! - [`Reference`] is the strict grammar of names, [`normalize`] the operator's shorthand.

mod actor;
mod amend;
mod artifact;
mod ask;
mod cancel;
mod checkpoint;
mod choose;
mod commit;
mod convert;
mod documents;
mod errors;
mod export;
mod flights;
mod gather;
mod import;
mod job;
mod land;
mod lanes;
mod legacy;
pub mod messages;
mod parts;
mod plain;
mod plan;
mod progress;
mod pull;
mod push;
mod rate;
mod reference;
pub mod registry;
mod rootfs;
mod select;
mod settings;
mod source;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transfer;
mod trust;
mod unpack;

pub use actor::TransferActor;
pub use artifact::ArtifactOptions;
pub use ask::{Chooser, Question, Questions, Verdict};
pub use cancel::Cancel;
pub use checkpoint::CheckpointOptions;
pub use commit::CommitOptions;
pub use convert::ConvertOptions;
pub use errors::from_io;
pub use export::ExportOptions;
pub use job::{Arrived, Job, Status};
pub use progress::{Item, Phase, Progress};
pub use push::PushOptions;
pub use reference::{Reference, Target, normalize};
pub use registry::{Credentials, Endpoint, Explained, Identity, Limits, Proxies, Routes, Wallet, bound};
pub use rootfs::RootfsConfig;
pub use settings::Settings;
pub use source::Source;
pub use transfer::{Bounds, ImportOptions, PullOptions, RootfsOptions, Transfer};
pub use trust::Trust;
pub use unpack::UnpackOptions;
