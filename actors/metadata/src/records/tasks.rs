//! Tasks: what runs, or ran, in a container. Their events come from the shim's life record, not from here.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use cofferdam_types::{Error, Id, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::Record;
use crate::{Read, Tx, codec, table::Table};

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// Its shim is being started.
    Creating,
    /// Its first process waits to be started.
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl State {
    /// Whether it stands still.
    pub fn is_paused(self) -> bool {
        self == State::Paused
    }

    /// As a word, for those who are told that something can't be done in it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Creating => "being created",
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
        }
    }
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status, or 128 plus the signal.
    pub status: u32,
    /// When.
    pub at: Timestamp,
    /// Why, where it is not the process's own doing.
    pub reason: String,
}

/// What was told of another process of the container's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecTold {
    /// When it was created: another one may have its id later.
    pub created: Timestamp,
    /// Its pid.
    pub pid: u32,
    /// Whether its end was told too.
    pub ended: bool,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The container's id.
    pub id: Id,
    /// The id of its shim.
    pub shim: String,
    /// How far it is.
    pub state: State,
    /// Its first process; 0 before there is one.
    pub pid: u32,
    /// When it was created.
    pub created: Timestamp,
    /// When its record was changed last.
    pub updated: Timestamp,
    /// When it was started.
    pub started: Option<Timestamp>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether its output goes to a log.
    pub log: bool,
    /// Its connection to a network; none where it has no such.
    #[serde(default)]
    pub attachment: Option<Id>,
    /// How often it ran out of memory, as far as that was told.
    #[serde(default)]
    pub ooms: u64,
    /// When it did last.
    #[serde(default)]
    pub oomed: Timestamp,
    /// What was told of its other processes: each end is, once. `None`: by whoever wrote this, which kept no record of it.
    #[serde(default)]
    pub execs: Option<BTreeMap<String, ExecTold>>,
}

impl Record for Task {
    const TABLE: Table = Table::TASKS;
    const KIND: &'static str = "task";

    fn name(&self) -> Vec<u8> {
        self.id.as_bytes().to_vec()
    }
}

impl Task {
    /// A task that is being created.
    pub fn new(id: Id, shim: impl Into<String>) -> Task {
        Task {
            id,
            shim: shim.into(),
            state: State::Creating,
            pid: 0,
            created: Timestamp::default(),
            updated: Timestamp::default(),
            started: None,
            exit: None,
            terminal: false,
            log: false,
            attachment: None,
            ooms: 0,
            oomed: Timestamp::default(),
            execs: Some(BTreeMap::new()),
        }
    }
}

/// The task of this container, if there is one.
pub fn find(read: &dyn Read, ns: &Namespace, id: &str) -> Result<Option<Task>> {
    super::find(read, &codec::key(&[ns, id]))
}

/// The task of this container.
pub fn get(read: &dyn Read, ns: &Namespace, id: &str) -> Result<Task> {
    find(read, ns, id)?.ok_or_else(|| Error::not_found("task", id, "does not exist; start the container"))
}

/// Whether there is a row of this container's task, and be it one that can't be read.
pub fn exists(read: &dyn Read, ns: &Namespace, id: &str) -> Result<bool> {
    Ok(read.get(Table::TASKS, &codec::key(&[ns, id]))?.is_some())
}

/// Visits each with its namespace, whether or not that has a row, and what can't be read among them.
pub fn visit(read: &dyn Read, each: &mut dyn FnMut(Result<(Namespace, Task)>)) -> Result<()> {
    super::visit_all(read, b"", &mut |key, task: Result<Task>| {
        let named = |_| Error::data_loss(Task::KIND, key.escape_ascii(), "its key names no container");
        each(task.and_then(|task| match codec::parts(key).map_err(named)?[..] {
            [ns, id] if *id == *task.id => Ok((Namespace::new(ns).map_err(named)?, task)),
            _ => Err(named(Error::internal("task", "", ""))),
        }));
    })
}

/// A page of them, by id.
pub fn list(read: &dyn Read, ns: &Namespace, after: Option<&str>, max: usize) -> Result<Vec<Task>> {
    super::page(read, &codec::prefix(&[ns]), after, max)
}

/// The tasks of a stretch of containers, by id.
pub fn between(read: &dyn Read, ns: &Namespace, first: &Id, last: &Id) -> Result<Vec<Task>> {
    let (from, to) = (codec::key(&[ns, first]), codec::key(&[ns, last]));
    let mut found = Vec::new();
    read.range(Table::TASKS, Bound::Included(&from), Bound::Included(&to), &mut |key, value| {
        found.extend(super::readable(super::decode(key, value))?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// Creates the task of a container that exists.
pub fn create(tx: &mut Tx<'_>, ns: &Namespace, mut task: Task) -> Result<Task> {
    super::containers::require(tx, ns, &task.id)?;
    if find(tx, ns, &task.id)?.is_some() {
        return Err(Error::already_exists("task", &task.id, "is there already: delete it first"));
    }
    task.created = tx.now();
    store(tx, ns, task)
}

/// Replaces everything but the time of creation. One that has ended is not connected to a network any more.
pub fn update(tx: &mut Tx<'_>, ns: &Namespace, mut task: Task) -> Result<Task> {
    task.created = get(tx, ns, &task.id)?.created;
    store(tx, ns, task)
}

fn given_up(tx: &mut Tx<'_>, task: &Task) -> Result<()> {
    match &task.attachment {
        Some(id) => super::attachments::release(tx, id).map(drop),
        None => Ok(()),
    }
}

fn store(tx: &mut Tx<'_>, ns: &Namespace, mut task: Task) -> Result<Task> {
    task.updated = tx.now();
    if task.exit.is_some() {
        given_up(tx, &task)?;
    }
    super::save(tx, &codec::key(&[ns, &task.id]), &task)?;
    Ok(task)
}

/// The ended task of a container that has another id now, and no shim any more: `shim` is an id that none has.
pub fn rename(tx: &mut Tx<'_>, ns: &Namespace, id: &str, to: Id, shim: String) -> Result<Task> {
    let task = delete(tx, ns, id)?;
    store(tx, ns, Task { id: to, shim, ..task })
}

/// Removes a task and gives what was known of it.
pub fn delete(tx: &mut Tx<'_>, ns: &Namespace, id: &str) -> Result<Task> {
    let task = get(tx, ns, id)?;
    given_up(tx, &task)?;
    tx.remove(Table::TASKS, &codec::key(&[ns, id]))?;
    Ok(task)
}
