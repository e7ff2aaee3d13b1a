//! Attachments: which container is connected to which network. A row is there from before the first plugin runs until
//! after the last one has undone its work, whatever becomes of the container meanwhile: it belongs to no namespace.

use cofferdam_types::{Error, Id, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::Record;
use crate::{Read, Tx, codec, table::Table};

/// How far an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// Its plugins are about to run, or run.
    Attaching,
    /// The container is connected.
    Attached,
    /// What its plugins did is to be undone.
    Releasing,
}

/// An attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Of the connection alone: each task has another, and names it.
    pub id: Id,
    /// The container's namespace.
    pub namespace: Namespace,
    /// The container's id.
    pub container: Id,
    /// The network's name.
    pub network: String,
    /// How far it is.
    pub stage: Stage,
    /// The network's configuration and what was asked of it: JSON, opaque here.
    #[serde(with = "serde_bytes")]
    pub config: Vec<u8>,
    /// What the last of its plugins that did answered: JSON, opaque here; empty before the first.
    #[serde(with = "serde_bytes")]
    pub answer: Vec<u8>,
    /// When it was begun.
    pub created: Timestamp,
}

impl Record for Attachment {
    const TABLE: Table = Table::ATTACHMENTS;
    const KIND: &'static str = "attachment";

    fn name(&self) -> Vec<u8> {
        self.id.as_bytes().to_vec()
    }
}

/// The attachment of this id, if there is one.
pub fn find(read: &dyn Read, id: &str) -> Result<Option<Attachment>> {
    super::find(read, id.as_bytes())
}

/// Whether there is a row of this id, and be it one that can't be read.
pub fn exists(read: &dyn Read, id: &str) -> Result<bool> {
    Ok(read.get(Table::ATTACHMENTS, id.as_bytes())?.is_some())
}

/// A page of them, by id.
pub fn list(read: &dyn Read, after: Option<&str>, max: usize) -> Result<Vec<Attachment>> {
    super::page(read, b"", after, max)
}

/// Records the intent to connect.
pub fn create(tx: &mut Tx<'_>, mut attachment: Attachment) -> Result<Attachment> {
    if find(tx, &attachment.id)?.is_some() {
        return Err(Error::already_exists("attachment", &attachment.id, "is there already"));
    }
    attachment.stage = Stage::Attaching;
    attachment.created = tx.now();
    save(tx, &attachment)?;
    Ok(attachment)
}

/// Records what a plugin answered, and with the last one that it is connected. One that is to be released meanwhile is
/// not connected any more.
pub fn answered(tx: &mut Tx<'_>, id: &str, answer: &[u8], last: bool) -> Result<Attachment> {
    let found = find(tx, id)?.filter(|attachment| attachment.stage != Stage::Releasing);
    let Some(mut attachment) = found else {
        return Err(Error::cancelled("attachment", id, "was given up while it was made"));
    };
    if last {
        attachment.stage = Stage::Attached;
    }
    attachment.answer = answer.to_vec();
    save(tx, &attachment)?;
    Ok(attachment)
}

/// Records that it is to be undone. Whether there is one.
pub fn release(tx: &mut Tx<'_>, id: &str) -> Result<bool> {
    let Some(mut attachment) = find(tx, id)? else { return Ok(false) };
    if attachment.stage != Stage::Releasing {
        attachment.stage = Stage::Releasing;
        save(tx, &attachment)?;
    }
    Ok(true)
}

/// Forgets it: all is undone.
pub fn delete(tx: &mut Tx<'_>, id: &str) -> Result<()> {
    if find(tx, id)?.is_some() {
        tx.remove(Table::ATTACHMENTS, id.as_bytes())?;
    }
    Ok(())
}

fn save(tx: &mut Tx<'_>, attachment: &Attachment) -> Result<()> {
    super::save(tx, &codec::key(&[&attachment.id]), attachment)
}
