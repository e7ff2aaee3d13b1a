//! Rows that can't be read: each is told, and passed over. What lies behind it is found all the same.

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
};

use cofferdam_types::{Code, Error, Event, Fault, Finding, Findings, Result};

use super::{
    Record, attachments::Attachment, containers, credentials::Credential, images::Image, ingests::Ingest,
    namespaces::NamespaceRecord,
};
use crate::{
    Read, codec,
    table::{Table, scan},
};

/// So many are told of one by one: a list is asked for every second, and a log is no place for a whole table.
const MOST: usize = 1000;
/// Of this process, by kind and id.
static TOLD: Mutex<BTreeSet<(String, String)>> = Mutex::new(BTreeSet::new());

/// Tells of a row that was passed over, once.
pub fn tell(error: &Error) {
    let news = {
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < MOST && told.insert((error.kind.to_string(), error.id.clone()))
    };
    if news {
        tracing::error!(%error, "a record is passed over: `coffer system check` lists all that can't be read");
    }
}

/// What a row says, for who can go on without it; one that can't be read is told. Other errors, and damage to the file itself (which
/// is of the kind `metadata`), are passed on.
pub fn readable<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.code == Code::DataLoss && error.kind != "metadata" => {
            tell(&error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The rows that can't be read of the kinds that [`super::check`] compares with nothing.
pub fn rest(read: &dyn Read) -> Result<Vec<Finding>> {
    let mut found = Findings::default();
    each::<NamespaceRecord>(read, &mut found)?;
    each::<Image>(read, &mut found)?;
    each::<Ingest>(read, &mut found)?;
    each::<Attachment>(read, &mut found)?;
    each::<Credential>(read, &mut found)?;
    each::<Event>(read, &mut found)?;
    scan(read, Table::SPECS, b"", None, &mut |key, row| {
        if let Err(error) = containers::read_spec(key, row) {
            add(&mut found, "spec", &error);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found.done())
}

fn each<R: Record>(read: &dyn Read, found: &mut Findings) -> Result<()> {
    super::visit_all(read, b"", &mut |key, row: Result<R>| {
        // The key of an event is a number.
        let key = if R::TABLE == Table::OUTBOX { codec::number(key).map(drop) } else { codec::parts(key).map(drop) };
        if let Err(error) = row.and(key) {
            add(found, R::KIND, &error);
        }
    })
}

fn add(found: &mut Findings, kind: &str, error: &Error) {
    found.add(Fault::RecordUnreadable, format!("{kind}/{}", error.id), error.message.clone(), false);
}
