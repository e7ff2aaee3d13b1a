//! The end of a task, and of all that belongs to a container.

use std::rc::Rc;

use cofferdam_metadata::{
    Tx,
    records::{
        containers, events, snapshots,
        snapshots::Removed,
        tasks::{self, Exit, State},
    },
};
use cofferdam_types::{Authority, Code, Error, Event, Id, Namespace, Result, Timestamp};
use cofferdam_wire::{convert::life, error::from_rpc};

use crate::{entry::Entry, handle::Deps, layout};

fn exit_payload(entry: &Entry, exec: &str, pid: u32, exit: &Exit) -> serde_json::Value {
    serde_json::json!({
        "container_id": entry.id,
        "id": if exec.is_empty() { entry.id.as_str() } else { exec },
        "pid": pid,
        "exit_status": exit.status,
        "exited_at": exit.at.to_rfc3339(),
        "reason": exit.reason,
    })
}

/// Puts the end of the first process into the tables, with its event.
fn record(tx: &mut Tx<'_>, ns: &Namespace, id: &Id, exit: &Exit, payload: serde_json::Value) -> Result<()> {
    let Some(mut task) = tasks::find(tx, ns, id)? else { return Ok(()) };
    if task.exit.is_some() {
        return Ok(());
    }
    task.state = State::Stopped;
    task.exit = Some(exit.clone());
    tasks::update(tx, ns, task)?;
    events::emit(tx, Event::new(ns, "/tasks/exit", payload))
}

/// Records an end. It is in the life record already: what waits for the process has been told.
pub(crate) async fn record_exit(deps: &Deps, entry: &Rc<Entry>, exec: &str) {
    let Ok(process) = entry.process(exec) else { return };
    let Some(exit) = process.ended() else { return };
    let pid = process.life.borrow().pid;
    let payload = exit_payload(entry, exec, pid, &exit);
    let (ns, id, first) = (entry.namespace.clone(), entry.id.clone(), exec.is_empty());
    let write = move |tx: &mut Tx<'_>| {
        if first {
            record(tx, &ns, &id, &exit, payload.clone())
        } else {
            events::emit(tx, Event::new(&ns, "/tasks/exit", payload.clone()))
        }
    };
    match deps.metadata.write(&Authority::system(), write).await {
        Ok(()) if first => {
            entry.recorded.send_replace(true);
        }
        Ok(()) => {}
        Err(error) => tracing::error!(container = %entry.id, %error, "an exit can't be recorded"),
    }
}

/// Has the shim delete the container: kills what runs, removes cgroups and mounts. A shim that is lost has nothing
/// left to delete.
async fn end_shim(deps: &Deps, entry: &Entry) -> Result<()> {
    let remote = match entry.link.remote().await {
        Ok(remote) => remote,
        Err(error) if error.code == Code::FailedPrecondition => return cleanup(deps, entry),
        Err(error) => return Err(error),
    };
    match remote.container.delete_request().send().promise.await.map_err(from_rpc) {
        Ok(answer) => {
            entry.init.update(life(answer.get().and_then(|a| a.get_life()).map_err(from_rpc)?)?);
            // Lets go of the connection, and with it ends the shim.
            entry.link.lose("its task was deleted");
            Ok(())
        }
        Err(error) if error.code == Code::Unavailable => cleanup(deps, entry),
        Err(error) => Err(error),
    }
}

/// What a lost shim left: its container's processes and cgroup.
pub(crate) fn cleanup(_deps: &Deps, entry: &Entry) -> Result<()> {
    let layout = cofferdam_sys::cgroup::Layout::detect()?;
    match cofferdam_sys::cgroup::Cgroup::open(&layout, &entry.cgroup) {
        Ok(cgroup) => {
            cgroup.kill()?;
            cgroup.remove()
        }
        Err(error) if error.code == Code::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn remove_dirs(deps: &Deps, ns: &Namespace, id: &Id, shim: Option<&str>) {
    let mut dirs = vec![deps.layout.bundle(ns, id)];
    dirs.extend(shim.map(|shim| deps.layout.shim(shim)));
    for dir in dirs {
        if let Err(error) = layout::remove(&dir) {
            tracing::warn!(%error, "a directory is left behind");
        }
    }
}

/// Forgets the ended task of a container, which stays.
pub(crate) async fn delete_task(deps: &Deps, auth: &Authority, entry: &Rc<Entry>) -> Result<Exit> {
    if entry.init.ended().is_none() && entry.state("")?.state != State::Created {
        let why = "is running: stop or kill it first";
        return Err(Error::failed_precondition("task", &entry.id, why));
    }
    entry.removing.set(true);
    end_shim(deps, entry).await.inspect_err(|_| entry.removing.set(false))?;
    let exit = entry.init.ended().unwrap_or_else(|| Exit { status: 0, at: Timestamp::now(), reason: String::new() });
    let payload = exit_payload(entry, "", entry.init.life.borrow().pid, &exit);
    let (ns, id, ended) = (entry.namespace.clone(), entry.id.clone(), exit.clone());
    deps.metadata
        .write(auth, move |tx: &mut Tx<'_>| {
            record(tx, &ns, &id, &ended, payload.clone())?;
            tasks::delete(tx, &ns, &id)?;
            events::emit(tx, Event::new(&ns, "/tasks/delete", payload.clone()))
        })
        .await?;
    remove_dirs(deps, &entry.namespace, &entry.id, Some(&entry.shim));
    deps.layout.tidy_soon(&entry.namespace);
    Ok(exit)
}

/// Removes container, task and snapshot in one commit, then their files.
pub(crate) async fn remove(
    deps: &Deps,
    auth: &Authority,
    ns: &Namespace,
    id: &Id,
    entry: Option<&Rc<Entry>>,
    force: bool,
) -> Result<()> {
    let container = containers::get(&deps.metadata.read()?, ns, id)?;
    let mut ended = None;
    if let Some(entry) = entry {
        if entry.init.ended().is_none() && entry.state("")?.state != State::Created && !force {
            let why = "has a running task: stop it first, or remove it by force";
            return Err(Error::failed_precondition("container", id, why));
        }
        entry.removing.set(true);
        end_shim(deps, entry).await.inspect_err(|_| entry.removing.set(false))?;
        let exit = entry.init.ended();
        ended = exit.map(|exit| (exit_payload(entry, "", entry.init.life.borrow().pid, &exit), exit));
    }
    let (namespace, key) = (ns.clone(), id.clone());
    let (driver, snapshot) = (container.driver.clone(), container.snapshot_key.clone());
    let removed: Option<Removed> = deps
        .metadata
        .write(auth, move |tx: &mut Tx<'_>| {
            if tasks::find(tx, &namespace, &key)?.is_some() {
                let mut payload = serde_json::json!({ "container_id": key });
                if let Some((known, exit)) = &ended {
                    record(tx, &namespace, &key, exit, known.clone())?;
                    payload = known.clone();
                }
                tasks::delete(tx, &namespace, &key)?;
                events::emit(tx, Event::new(&namespace, "/tasks/delete", payload))?;
            }
            containers::delete(tx, &namespace, &key)?;
            match &snapshot {
                Some(name) if snapshots::find(tx, &namespace, &driver, name)?.is_some() => {
                    snapshots::delete(tx, &namespace, &driver, name).map(Some)
                }
                _ => Ok(None),
            }
        })
        .await?;
    if let Some(removed) = removed {
        deps.snapshots.discard(removed).await?;
    }
    remove_dirs(deps, ns, id, entry.map(|entry| entry.shim.as_str()));
    if let Err(error) = layout::remove(&deps.layout.log_dir(ns, id)) {
        tracing::warn!(%error, "a log is left behind");
    }
    deps.layout.tidy_soon(ns);
    Ok(())
}
