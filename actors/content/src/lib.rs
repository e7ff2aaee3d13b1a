//! Blobs by digest, and the ingests that become blobs.
//!
//! Content owns the directory `content/`: `blobs/<algorithm>/<hex>`, whole, verified and read-only, and `ingest/<id>`,
//! bytes on their way in. It never owns what blobs mean (manifests and layers are images' and diff's) nor their
//! records, which are metadata's and reach disk by metadata's one writer.
//!
//! - **Knowing a digest grants nothing.** A namespace sees a blob only through its own link, and gets one by presenting
//!   the bytes. They are stored once.
//! - [`Ingest`]: the one writer of a ref. It counts and hashes what passes; what it leaves is taken up by the next who
//!   opens the ref, after hashing what came since its hash was kept. Bytes go from the job that receives them to the file on that job's own
//!   thread, never through a mailbox. [`Ahead`]: others of the job, who write what comes later.
//! - A commit is durable when it answers: the bytes are moved into place and synced with their directory, then the
//!   record makes them visible. Many blobs share one sync and one commit ([`Content::commit_many`]), which a job may
//!   share with what else it does ([`Content::place`]).
//! - [`BlobReader`]: reading at any offset. It outlives the blob's deletion.
//! - A deletion drops the link first; the file goes with the last one. Both hold the digest's reservation, which a
//!   commit of the same digest takes too.
//! - The start sweeps what a crash left, beside ordinary work. The start after a crash of the actor is the same; open
//!   ingests and readers do not notice it.

mod actor;
mod ahead;
mod check;
mod commit;
mod files;
mod handle;
mod held;
mod ingest;
mod kept;
pub mod messages;
mod placed;
mod reader;
mod scrub;
mod store;
mod sweep;

#[cfg(test)]
mod tests;

pub use actor::ContentActor;
pub use ahead::Ahead;
pub use cofferdam_metadata::records::content::Link as Info;
pub use commit::Commit;
pub use handle::{Content, field};
pub use ingest::{Ingest, IngestOptions};
pub use placed::Placed;
pub use reader::{BlobReader, Whole};
pub use scrub::Scrub;
pub use store::{Removing, Status};
pub use sweep::Swept;
