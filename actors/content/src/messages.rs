//! What can be asked of the store through its mailbox. Reading and writing bytes is not among it: that goes through the
//! handles that it gives out.

use actix::Message;
use cofferdam_types::{Authority, Digest, Finding, Name, Namespace, Result};

use crate::{Commit, Ingest, IngestOptions, Removing, Swept};

/// Opens an ingest, or takes up what another writer left under its ref.
#[derive(Debug)]
pub struct Open {
    /// Who asks.
    pub authority: Authority,
    /// Where.
    pub namespace: Namespace,
    /// What is known of it.
    pub options: IngestOptions,
}

/// Makes blobs of ingests, all or none.
#[derive(Debug)]
pub struct CommitMany {
    /// Who asks.
    pub authority: Authority,
    /// The ingests.
    pub commits: Vec<Commit>,
}

/// Takes a blob from a namespace.
#[derive(Debug)]
pub struct Delete {
    /// Who asks.
    pub authority: Authority,
    /// From where.
    pub namespace: Namespace,
    /// Which.
    pub digest: Digest,
}

/// Removes the files of blobs that lost their last link in a commit of the caller's, who held the other from before that.
#[derive(Debug)]
pub struct Discard(pub Vec<Digest>, pub Removing);

/// Drops an ingest and what was written.
#[derive(Debug)]
pub struct Abort {
    /// Who asks.
    pub authority: Authority,
    /// Where.
    pub namespace: Namespace,
    /// Which.
    pub reference: Name,
}

/// Looks for what a crash left. The actor does so by itself when it starts.
#[derive(Debug)]
pub struct Sweep;

/// Compares records and files; with `true` puts right what can be.
#[derive(Debug)]
pub struct Check(pub bool);

macro_rules! replies {
    ($($message:ty => $reply:ty;)+) => {$(
        impl Message for $message {
            type Result = Result<$reply>;
        }
    )+};
}

replies! {
    Open => Ingest;
    CommitMany => Vec<Digest>;
    Delete => ();
    Discard => ();
    Abort => ();
    Sweep => Swept;
    Check => Vec<Finding>;
}
