//! What a crash left, removed at the start: directories, shims, cgroups and containers that nobody comes back for.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use cofferdam_metadata::records::{containers, namespaces, tasks};
use cofferdam_types::{Authority, Id, Namespace, Result};
use tokio::sync::OwnedMutexGuard;

use crate::{actor::Ctx, handle::Deps, layout, recover::ANSWER, remove, shim};

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

/// Removes the bundle of what was never recorded, behind the cgroup that it was about to get.
pub(crate) async fn unmade(deps: &Deps, bundle: &Path) -> Result<()> {
    if let Some(cgroup) = deps.layout.intended(bundle) {
        tracing::info!(cgroup, "a cgroup that was made for nobody on record is swept");
        remove::cleanup(&cgroup, bundle.to_owned()).await?;
        deps.layout.prune_given(&cgroup);
    }
    layout::remove(bundle)
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
        // Shims first: what made a cgroup is dead by now.
        for (ns, id, turn) in unmade {
            let _turn = match turn {
                Some(turn) => turn,
                None => self.turn(&ns, &id).await,
            };
            let has_task = self.entries.borrow().contains_key(&(ns.clone(), id.clone()));
            if !has_task && let Err(error) = self::unmade(&self.deps, &self.deps.layout.bundle(&ns, &id)).await {
                tracing::error!(container = %id, %error, "a cgroup is left behind");
            }
        }
        for (ns, id) in self.deps.layout.cgroups() {
            let _turn = self.turn(&ns, &id).await;
            let path = self.deps.layout.cgroup(&ns, &id);
            // Some specs name their cgroup themselves, maybe such a one.
            let lies_there =
                |cgroup: &str| cgroup.strip_prefix(&*path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            let used = self.entries.borrow().values().any(|entry| lies_there(&entry.cgroup));
            if used {
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
