//! Finding tasks again: after a restart of the daemon, a crash of the actor, a reboot.

use std::{collections::BTreeSet, fs::File, os::fd::AsFd as _, rc::Rc, time::Duration};

use cofferdam_metadata::records::{
    containers, namespaces,
    tasks::{self, Task},
};
use cofferdam_types::{Namespace, Result, Timestamp};
use cofferdam_wire::{
    convert::{Life, life},
    error::from_rpc,
    life as record,
};

use crate::{
    entry::{Entry, Process},
    handle::Deps,
    layout,
    link::{Link, Remote},
    remove, run,
    shim::{self, Connection},
};

/// A shim that doesn't answer within this is looked at again by nobody: its task is unavailable, alone.
const ANSWER: Duration = Duration::from_secs(5);
const PAGE: usize = 100;

/// Every task on record, in every namespace.
pub(crate) fn all(deps: &Deps) -> Result<Vec<(Namespace, Task)>> {
    let view = deps.metadata.read()?;
    let mut found = Vec::new();
    let mut last_ns: Option<String> = None;
    loop {
        let page = namespaces::list(&view, last_ns.as_deref(), PAGE)?;
        for namespace in &page {
            let mut last: Option<String> = None;
            loop {
                let tasks = tasks::list(&view, &namespace.name, last.as_deref(), PAGE)?;
                last = tasks.last().map(|task| task.id.to_string());
                let end = tasks.len() < PAGE;
                found.extend(tasks.into_iter().map(|task| (namespace.name.clone(), task)));
                if end {
                    break;
                }
            }
        }
        if page.len() < PAGE {
            return Ok(found);
        }
        last_ns = page.last().map(|namespace| namespace.name.to_string());
    }
}

/// What is known of a task before its shim was asked: enough to answer, or to wait.
pub(crate) fn entry(deps: &Deps, ns: &Namespace, task: &Task) -> Rc<Entry> {
    let prepared = run::prepare(deps, ns, &task.id).ok();
    let life = Life {
        pid: task.pid,
        created: task.created,
        started: task.started.unwrap_or_default(),
        exited: task.exit.as_ref().map(|exit| exit.at).unwrap_or_default(),
        status: task.exit.as_ref().map(|exit| exit.status).unwrap_or_default(),
        reason: task.exit.as_ref().map(|exit| exit.reason.clone()).unwrap_or_default(),
        ..Life::default()
    };
    Rc::new(Entry {
        namespace: ns.clone(),
        id: task.id.clone(),
        shim: task.shim.clone(),
        remove_on_exit: prepared.as_ref().is_some_and(|p| p.run.remove_on_exit),
        cgroup: prepared.map_or_else(|| deps.layout.cgroup(ns, &task.id), |p| p.cgroup),
        link: Link::looking(),
        init: Process::new(life),
        execs: Default::default(),
        paused: Default::default(),
        removing: Default::default(),
        recorded: Default::default(),
    })
}

/// Asks the task's shim. `None`: there is none any more, and the entry says how the task ended.
pub(crate) async fn find(deps: &Deps, entry: &Rc<Entry>) -> Option<Connection> {
    match tokio::time::timeout(ANSWER, ask(deps, entry)).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            tracing::info!(container = %entry.id, %error, "its shim is gone");
            lost(deps, entry);
            None
        }
        Err(_) => {
            tracing::error!(container = %entry.id, shim = %entry.shim, "its shim doesn't answer");
            entry.link.lose("its shim doesn't answer");
            None
        }
    }
}

async fn ask(deps: &Deps, entry: &Rc<Entry>) -> Result<Connection> {
    let connection = shim::find(&deps.layout, &entry.shim)?;
    shim::hello(&connection.shim).await?;
    let mut request = connection.shim.container_request();
    request.get().set_namespace(&*entry.namespace);
    request.get().set_id(&*entry.id);
    let container = request.send().pipeline.get_container();
    let answer = container.state_request().send().promise.await.map_err(from_rpc)?;
    let answer = answer.get().map_err(from_rpc)?;
    entry.paused.set(answer.get_paused());
    for process in answer.get_processes().map_err(from_rpc)?.iter() {
        let life = life(process)?;
        if life.id.is_empty() {
            entry.init.update(life);
        } else {
            entry.execs.borrow_mut().insert(life.id.clone(), Process::new(life));
        }
    }
    entry.link.found(Remote { container, fds: connection.fds.clone(), _close: connection.close.clone() });
    Ok(connection)
}

/// The shim is gone: its life record says what it still saw; otherwise the container dies with it, now.
pub(crate) fn lost(deps: &Deps, entry: &Rc<Entry>) {
    entry.link.lose("its shim is gone");
    let end = |process: &Process, exec: &str| {
        if process.ended().is_some() {
            return;
        }
        let dir = File::open(deps.layout.shim(&entry.shim));
        let seen =
            dir.as_ref().ok().and_then(|dir| record::load(dir.as_fd(), &record::file_name(&entry.id, exec)).ok());
        let mut life = seen.unwrap_or_else(|| process.life.borrow().clone());
        if life.exited == Timestamp(0) {
            life.exited = Timestamp::now();
            life.status = 128 + libc::SIGKILL as u32;
            // The state directory ends with a reboot: no directory, no host that the shim could have run on.
            life.reason = if dir.is_ok() { "shim lost" } else { "host restarted" }.to_owned();
        }
        process.update(life);
    };
    if let Err(error) = remove::cleanup(deps, entry) {
        tracing::error!(container = %entry.id, %error, "what its lost shim left can't be removed");
    }
    for (exec, process) in entry.execs.borrow().iter() {
        end(process, exec);
    }
    end(&entry.init, "");
}

/// Bundles without a task and logs without a container: a crash came between a commit and their removal, or before one.
/// Runs before any request is served, so that nothing is taken that is just being made.
pub(crate) fn sweep_dirs(deps: &Deps) -> Result<()> {
    let view = deps.metadata.read()?;
    let (bundles, logs) = deps.layout.kept();
    for (ns, id) in bundles {
        if tasks::find(&view, &ns, &id)?.is_none() {
            layout::remove(&deps.layout.bundle(&ns, &id))?;
        }
    }
    for (ns, id) in logs {
        if containers::find(&view, &ns, &id)?.is_none() {
            layout::remove(&deps.layout.log_dir(&ns, &id))?;
        }
    }
    Ok(())
}

/// Shims whose tasks have no record: an intent that was never committed, or a removal that was not finished. Those who
/// still run are told to end.
pub(crate) async fn sweep(deps: &Deps, known: &BTreeSet<String>) {
    let ids = deps.layout.shim_ids().unwrap_or_default();
    for id in ids.into_iter().filter(|id| !known.contains(id)) {
        // A connection is enough for a shim without a container: it ends behind it. One with a container has its life
        // record beside it, by name.
        if let Ok(connection) = shim::find(&deps.layout, &id) {
            for (namespace, container) in orphans(deps, &id) {
                let mut request = connection.shim.container_request();
                request.get().set_namespace(&namespace);
                request.get().set_id(&container);
                let container = request.send().pipeline.get_container();
                let delete = container.delete_request().send().promise;
                let _ = tokio::time::timeout(ANSWER, delete).await;
            }
        }
        tracing::info!(shim = %id, "a shim without a task is swept");
        let _ = layout::remove(&deps.layout.shim(&id));
    }
    deps.layout.tidy_all();
}

/// The containers that an unrecorded shim may hold: those of its life records, in any namespace.
fn orphans(deps: &Deps, shim: &str) -> Vec<(String, String)> {
    let Ok(entries) = std::fs::read_dir(deps.layout.shim(shim)) else { return Vec::new() };
    let ids: Vec<String> = entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".life").filter(|id| !id.contains('@')).map(str::to_owned))
        .collect();
    let names = deps.metadata.read().and_then(|view| namespaces::list(&view, None, 1000)).unwrap_or_default();
    let all = |id: &String| names.iter().map(|ns| (ns.name.to_string(), id.clone())).collect::<Vec<_>>();
    ids.iter().flat_map(all).collect()
}
