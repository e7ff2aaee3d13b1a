//! Tasks that run and have no record: their shims wrote down what they hold. A start would end them.

use std::{collections::BTreeSet, path::Path};

use cofferdam_metadata::{
    View,
    rebuild::Rebuild,
    records::{
        attachments::{self, Stage},
        containers, namespaces,
        tasks::{self, Exit, State, Task},
    },
};
use cofferdam_types::{Id, Namespace, Result, Timestamp};
use cofferdam_wire::{convert::Life, life};

use super::names;
use crate::config::Config;

/// What shims hold.
#[derive(Debug, Default)]
pub struct Found {
    /// Tasks that were put on record again.
    pub again: usize,
    /// Shims with containers that no record names.
    pub unknown: Vec<String>,
}

/// Looks at what every shim holds.
pub fn find(new: &mut Rebuild, config: &Config) -> Result<Found> {
    let (mut found, shims) = (Found::default(), config.state.join("shims"));
    for shim in names(&shims) {
        let dir = shims.join(&shim);
        for file in names(&dir) {
            let Some(id) = file.strip_suffix(".life").filter(|id| !id.contains('@')) else { continue };
            let (Ok(id), Ok(life)) = (Id::new(id), read(&dir, &file)) else { continue };
            let view = new.read()?;
            if recorded(&view, &shim, &id)? {
                continue;
            }
            match alone(&view, &id)? {
                Some(ns) => {
                    let task = task(&view, &ns, &shim, id, &life, config)?;
                    new.write(move |tx| tasks::create(tx, &ns, task.clone()).map(drop))?;
                    found.again += 1;
                }
                None => found.unknown.push(format!("{shim}: {id}")),
            }
        }
    }
    Ok(found)
}

fn read(dir: &Path, file: &str) -> Result<Life> {
    let dir =
        cofferdam_sys::fd::open_dir(dir).map_err(|e| cofferdam_types::Error::io("shim", file, "its directory", &e))?;
    life::load(std::os::fd::AsFd::as_fd(&dir), file)
}

/// Whether a shim's container has its task on record.
fn recorded(view: &View, shim: &str, id: &Id) -> Result<bool> {
    for namespace in namespaces::list(view, None, usize::MAX)? {
        if tasks::find(view, &namespace.name, id)?.is_some_and(|task| task.shim == shim) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The namespace of the container of this name that has no task, if there is one such.
fn alone(view: &View, id: &Id) -> Result<Option<Namespace>> {
    let mut all = BTreeSet::new();
    for namespace in namespaces::list(view, None, usize::MAX)? {
        let ns = namespace.name;
        if containers::exists(view, &ns, id)? && tasks::find(view, &ns, id)?.is_none() {
            all.insert(ns);
        }
    }
    Ok(if all.len() == 1 { all.pop_first() } else { None })
}

fn task(view: &View, ns: &Namespace, shim: &str, id: Id, life: &Life, config: &Config) -> Result<Task> {
    let known = |time: Timestamp| (time.0 > 0).then_some(time);
    let exit = known(life.exited).map(|at| Exit { status: life.status, at, reason: life.reason.clone() });
    let started = known(life.started);
    let state = match (&exit, started) {
        (Some(_), _) => State::Stopped,
        (None, Some(_)) => State::Running,
        (None, None) => State::Created,
    };
    let attachment = attachments::list(view, None, usize::MAX)?
        .into_iter()
        .find(|one| one.namespace == *ns && one.container == id && one.stage == Stage::Attached);
    let log = config.root.join("logs").join(ns.as_str()).join(id.as_str()).is_dir();
    let (pid, ooms, oomed) = (life.pid, life.ooms, life.oomed);
    let attachment = attachment.map(|one| one.id);
    Ok(Task { state, pid, started, exit, log, attachment, ooms, oomed, execs: None, ..Task::new(id, shim) })
}
