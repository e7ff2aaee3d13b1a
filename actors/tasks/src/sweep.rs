//! What a crash left, removed at the start: directories, shims, cgroups and containers that nobody comes back for.

use std::{collections::BTreeSet, path::PathBuf};

use cofferdam_metadata::records::{containers, namespaces, tasks};
use cofferdam_oci::runc;
use cofferdam_types::{Authority, Code, Error, Id, Namespace, Result};
use cofferdam_wire::life::file_name as life_file;
use tokio::sync::OwnedMutexGuard;

use crate::{actor::Ctx, handle::Deps, intent::Intent, layout, patience::Patience, recover::ANSWER, remove, shim};

/// Containers that were to go with their task, and have none: the daemon died between the two. Whoever asked for both is
/// told that the container isn't there, and asks anew.
pub(crate) fn unborn(deps: &Deps) -> Result<Vec<(Namespace, Id)>> {
    let view = deps.metadata.read()?;
    let mut found = Vec::new();
    for (ns, id) in containers::transient(&view)? {
        if tasks::find(&view, &ns, &id)?.is_none() {
            found.push((ns, id));
        }
    }
    Ok(found)
}

/// Logs without a container, and files of checkpoints that nobody waits for: a crash came between a commit and their removal,
/// or before one. Runs before any request is served, so that nothing is taken that is just being made. Gives the containers of
/// bundles without a task: what was making them may be at it still, so these stay until the shims are gone.
pub(crate) fn dirs(deps: &Deps, shims: &BTreeSet<String>, first: bool) -> Result<Vec<(Namespace, Id)>> {
    let mut unmade = Vec::new();
    let view = deps.metadata.read()?;
    let (bundles, logs) = deps.layout.kept();
    for (ns, id) in bundles {
        if tasks::find(&view, &ns, &id)?.is_none() {
            unmade.push((ns, id));
        }
    }
    // What is to be restored stays for as long as its shim does; what is being made is lost with the daemon.
    for name in deps.layout.checkpoints() {
        let shim = name.split_once('@').map_or("", |(shim, _)| shim);
        if first && !shims.contains(shim) {
            layout::remove(&deps.layout.checkpoint(&name))?;
        }
    }
    for (ns, id) in logs {
        if !containers::exists(&view, &ns, &id)? {
            layout::remove(&deps.layout.log_dir(&ns, &id))?;
        }
    }
    Ok(unmade)
}

/// Undoes what was made for a container that has no task, or is about to be by who is no more: what its bundle says, and the
/// bundle with it. Whether the cgroup that goes by its name `is_its_own` is asked: another's spec may name that.
pub(crate) async fn unmade(deps: &Deps, ns: &Namespace, id: &Id, is_its_own: impl FnOnce() -> bool) -> Result<()> {
    let bundle = deps.layout.bundle(ns, id);
    if !bundle.exists() {
        return Ok(());
    }
    let Intent { cgroup, kept, shim } = Intent::read(&bundle);
    // Who could put something into the cgroup still comes first; what runs there ends whether or not he lets go of it.
    let disowned = match shim {
        Some(shim) => disown(deps, &shim, ns, id).await,
        None => Ok(()),
    };
    let kept = kept.unwrap_or_else(|| deps.layout.runc_of(ns, id));
    match &cgroup {
        Some(cgroup) => {
            tracing::info!(cgroup, "a cgroup that was made for nobody on record is swept");
            remove::cleanup(cgroup, bundle.clone()).await?;
            deps.layout.prune_given(cgroup);
        }
        None => {
            if is_its_own() {
                clear(deps, ns, id).await?;
            }
            // A group that was there before is somebody's, and stays: what was begun in it goes alone.
            remove::end_first(kept.clone(), bundle.clone()).await?;
        }
    }
    layout::remove(&kept)?;
    disowned?;
    layout::remove(&bundle)
}

/// Removes the cgroup that goes by the name of a container without a task: who made it is dead, and it would be in the way of
/// the next.
pub(crate) async fn clear(deps: &Deps, ns: &Namespace, id: &Id) -> Result<()> {
    let bundle = deps.layout.bundle(ns, id);
    if runc::has_maker(&bundle) || deps.layout.has_cgroup(ns, id)? {
        return remove::cleanup(&deps.layout.cgroup(ns, id), bundle).await;
    }
    Ok(())
}

/// Has a shim that others have as well delete what it made for nobody on record, or is making: it would keep that for ever,
/// and with it the name. One that is gone has it no more.
async fn disown(deps: &Deps, shim: &str, ns: &Namespace, id: &Id) -> Result<()> {
    let connection = match shim::find(&deps.layout, shim) {
        Err(error) if error.code == Code::NotFound => return Ok(()),
        found => found?,
    };
    let late = || {
        let why = "was being made by a shim of its group, which doesn't answer: wait and try again";
        Error::unavailable("task", id, why)
    };
    let deleted = async {
        tokio::time::timeout(ANSWER, shim::hello(&connection.shim)).await.map_err(|_| late())??;
        let mut request = connection.shim.container_request();
        request.get().set_namespace(&**ns);
        request.get().set_id(&**id);
        let delete = request.send().pipeline.get_container().delete_request().send().promise;
        let deleted = tokio::time::timeout(Patience::unknown().kill, delete).await.map_err(|_| late())?;
        deleted.map(drop).map_err(shim::from_shim)
    };
    match deleted.await {
        // It has no such container, or has just died.
        Err(error) if !matches!((error.code, &*error.kind), (Code::NotFound, _) | (Code::Unavailable, "shim")) => {
            return Err(error);
        }
        _ => {}
    }
    let _ = std::fs::remove_file(deps.layout.shim(shim).join(life_file(id, "")));
    Ok(())
}

/// Shims that have a directory and no task on record. Asked before any request is served, as above.
pub(crate) fn unknown(deps: &Deps, known: &BTreeSet<String>) -> Vec<String> {
    let ids = deps.layout.shim_ids().unwrap_or_default();
    ids.into_iter().filter(|id| !known.contains(id)).collect()
}

impl Ctx {
    /// Removes the rest, beside ordinary work. `unborn` and `unmade` come with their turns, which nobody else gets before they
    /// are gone: a shim that was making one, by the same paths and under the same name, would undo what another makes. One of
    /// both kinds has its turn among the former.
    pub(crate) async fn sweep(
        &self,
        shims: Vec<String>,
        spares: Vec<PathBuf>,
        orphans: Vec<Id>,
        unborn: Vec<(Namespace, Id, OwnedMutexGuard<()>)>,
        unmade: Vec<(Namespace, Id, Option<OwnedMutexGuard<()>>)>,
    ) {
        futures::future::join_all(shims.iter().map(|id| end(&self.deps, id))).await;
        for spare in spares {
            if let Err(error) = shim::kill(spare.clone()).await.and_then(|()| layout::remove(&spare)) {
                tracing::warn!(%error, "a shim that was made ahead is left behind");
            }
        }
        if !orphans.is_empty() {
            // Beside the rest: a plugin may take its time.
            let networks = self.deps.networks.clone();
            tokio::task::spawn_local(async move { networks.give_up(orphans).await });
        }
        for (ns, id, turn) in unborn {
            tracing::info!(container = %id, "was to go with its task and has none: it goes");
            match remove::remove(&self.deps, &Authority::system(), &ns, &id, None, true).await {
                Ok(()) => self.removed(&ns, &id),
                Err(error) => tracing::error!(container = %id, %error, "it can't be removed"),
            }
            drop(turn);
        }
        // Shims first: what made a cgroup is dead by now. Of those that others have one may be at something else.
        let unmade = unmade.into_iter().map(async |(ns, id, turn)| {
            let _turn = match turn {
                Some(turn) => turn,
                None => self.turn(&ns, &id).await,
            };
            let has_task = self.entries.borrow().contains_key(&(ns.clone(), id.clone()));
            let is_its_own = || !self.uses(&self.deps.layout.cgroup(&ns, &id));
            if !has_task && let Err(error) = self::unmade(&self.deps, &ns, &id, is_its_own).await {
                tracing::error!(container = %id, %error, "what was being made of it is left behind");
            }
        });
        futures::future::join_all(unmade).await;
        for (ns, id) in self.deps.layout.cgroups() {
            let _turn = self.turn(&ns, &id).await;
            let path = self.deps.layout.cgroup(&ns, &id);
            if self.uses(&path) {
                continue;
            }
            tracing::info!(cgroup = path, "a cgroup without a task is swept");
            if let Err(error) = remove::cleanup(&path, self.deps.layout.bundle(&ns, &id)).await {
                tracing::error!(%error, "a cgroup is left behind");
            }
        }
        for (ns, id) in self.deps.layout.runc_kept() {
            let _turn = self.turn(&ns, &id).await;
            let state = self.deps.layout.runc_of(&ns, &id);
            let used = self.entries.borrow().values().any(|entry| entry.runc == state);
            if !used && let Err(error) = self.deps.layout.remove_runc(&state) {
                tracing::warn!(%error, "the state of a runtime is left behind");
            }
        }
        self.deps.layout.tidy_all();
    }

    /// Whether a task has a cgroup there, or below: some specs name theirs themselves, maybe one that looks like another's.
    fn uses(&self, path: &str) -> bool {
        let lies_there =
            |cgroup: &str| cgroup.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.entries.borrow().values().any(|entry| lies_there(&entry.cgroup))
    }
}

/// Ends a shim without a task: an intent that was never committed, or a removal that was not finished.
async fn end(deps: &Deps, id: &str) {
    if let Ok(connection) = shim::find(&deps.layout, id) {
        // What it holds has its life record beside it, by name.
        let deletes = orphans(deps, id).into_iter().map(|(namespace, container)| {
            let mut request = connection.shim.container_request();
            request.get().set_namespace(&namespace);
            request.get().set_id(&container);
            request.send().pipeline.get_container().delete_request().send().promise
        });
        let _ = tokio::time::timeout(ANSWER, futures::future::join_all(deletes)).await;
    }
    tracing::info!(shim = id, "a shim without a task is swept");
    if let Err(error) = shim::kill(deps.layout.shim(id)).await {
        tracing::error!(%error, "a shim is left behind");
        return;
    }
    if let Err(error) = layout::remove(&deps.layout.shim(id)) {
        tracing::warn!(%error, "a directory is left behind");
    }
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
