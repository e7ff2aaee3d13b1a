//! What the actor is asked. What only reads records is not here: the handle does it on the caller's thread.

use std::sync::Arc;

use actix::Message;
use cofferdam_metadata::{
    Tx,
    records::snapshots::{Kind, Removed, Usage},
};
use cofferdam_sys::fd::Witness;
use cofferdam_types::{Authority, Digest, Finding, Labels, Mount, Name, Namespace, Result};

use crate::{Reserved, Stage, Staged, Turn};

/// Make the directory of a snapshot that the caller will record.
pub struct Reserve {
    /// Where.
    pub namespace: Namespace,
    /// With which driver.
    pub driver: String,
    /// Under which key.
    pub key: Name,
    /// On top of what.
    pub parent: Option<Name>,
    /// Active or View.
    pub kind: Kind,
    /// Free labels.
    pub labels: Labels,
}

/// Make a snapshot, directory and record.
pub struct Prepare {
    /// Who asks.
    pub authority: Authority,
    /// What for.
    pub reserve: Reserve,
}

/// Turn an active snapshot into a committed one.
pub struct Commit {
    /// Who asks.
    pub authority: Authority,
    /// Where.
    pub namespace: Namespace,
    /// With which driver.
    pub driver: String,
    /// The name that it gets.
    pub name: Name,
    /// The key that it had.
    pub key: Name,
    /// Its new labels.
    pub labels: Labels,
}

/// Remove a snapshot that has no children.
pub struct Remove {
    /// Who asks.
    pub authority: Authority,
    /// Where.
    pub namespace: Namespace,
    /// With which driver.
    pub driver: String,
    /// Which one.
    pub key: Name,
}

/// Throw away the directory of a record whose removal has been committed.
pub struct Discard(pub Removed);

/// Take the size of an active snapshot.
pub struct Measure {
    /// With which driver.
    pub driver: String,
    /// Which directory.
    pub dir: u64,
}

/// Bound what may be written into a directory.
pub struct Limit {
    /// With which driver.
    pub driver: String,
    /// Which directory.
    pub dir: u64,
    /// The most that it may have for itself; 0 is no bound.
    pub bytes: u64,
}

/// Make the directory of a layer that the daemon unpacks.
pub struct StageLayer {
    /// With which driver.
    pub driver: String,
    /// Which layer, and the turn to unpack it.
    pub turn: Turn,
    /// The chain id below it.
    pub parent: Option<Digest>,
    /// The directory of the parent, where that is a stage itself.
    pub under: Option<u64>,
    /// Wait while another namespace unpacks it.
    pub alone: bool,
}

/// Make the directory of a layer that is there, once more.
pub struct StageAgain {
    /// With which driver.
    pub driver: String,
    /// Which layer.
    pub chain: Digest,
    /// The chain id below it.
    pub parent: Option<Digest>,
}

/// Put a stage that is filled in the place of a layer's tree.
pub struct ReplaceLayer {
    /// With which driver.
    pub driver: String,
    /// Of which layer, and its new tree.
    pub stage: Stage,
    /// The directory of the tree that it replaces.
    pub old: u64,
    /// That one is gone: nothing can go on lying on it.
    pub lost: bool,
}

/// A layer of a chain that is being committed.
pub struct ChainLayer {
    /// Its chain id.
    pub chain: Digest,
    /// The chain id below it.
    pub parent: Option<Digest>,
    /// Its labels in the namespace.
    pub labels: Labels,
    /// Its tree, if it is new; otherwise the one that is there is linked.
    pub stage: Option<Stage>,
}

/// More to write in the same commit.
pub type Also = Box<dyn Fn(&mut Tx<'_>) -> Result<()> + Send>;

/// Make a chain of layers durable and visible in a namespace, at once.
pub struct CommitLayers {
    /// Who asks.
    pub authority: Authority,
    /// Where.
    pub namespace: Namespace,
    /// With which driver.
    pub driver: String,
    /// The lowest first.
    pub layers: Vec<ChainLayer>,
    /// Who hears of what else is to be made durable with their trees, where there are new ones.
    pub heard: Option<Arc<Witness>>,
    /// What else to write.
    pub also: Also,
}

/// Compare records and directories; with `true` put right what can be.
pub struct Check(pub bool);

/// What each is answered with.
macro_rules! answers {
    ($($message:ty => $answer:ty),* $(,)?) => {$(
        impl Message for $message {
            type Result = $answer;
        }
    )*};
}

answers! {
    Reserve => Result<Reserved>,
    Prepare => Result<Vec<Mount>>,
    Commit => Result<()>,
    Remove => Result<()>,
    Discard => Result<()>,
    Measure => Result<Usage>,
    Limit => Result<()>,
    StageLayer => Result<Staged>,
    StageAgain => Result<Stage>,
    ReplaceLayer => Result<()>,
    CommitLayers => Result<()>,
    Check => Result<Vec<Finding>>,
}
