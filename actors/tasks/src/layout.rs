//! Where things lie: shims and bundles below the state directory, logs below the root directory, cgroups below one that
//! is this daemon's alone.

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use cofferdam_sys::cgroup;
use cofferdam_types::{Error, Id, Namespace, Result};

/// The directories of this subsystem. Namespaces and ids are strict: they are safe as path components.
#[derive(Clone, Debug)]
pub struct Layout {
    shims: PathBuf,
    spares: PathBuf,
    bundles: PathBuf,
    logs: PathBuf,
    runc: PathBuf,
    checkpoints: PathBuf,
    cgroups: String,
    host: Arc<OnceLock<cgroup::Layout>>,
    /// Namespaces in which something is done, until they are tidied up.
    stirs: Arc<Mutex<BTreeMap<Namespace, Stir>>>,
}

/// What is done in a namespace.
#[derive(Debug, Default)]
struct Stir {
    /// Tasks that are being made: what is empty there is not over.
    making: usize,
    /// How often something began or ended.
    moves: u64,
}

/// What is empty is removed when nothing was done for so long: who runs one container after the other finds what holds
/// them still there.
const QUIET: Duration = Duration::from_millis(200);

type Pairs = Vec<(Namespace, Id)>;

impl Layout {
    /// Makes the directories if they aren't there, for nobody but us. `instance` tells this daemon from others on the
    /// host.
    pub fn open(root: &Path, state: &Path, instance: &str) -> Result<Layout> {
        let layout = Layout {
            shims: state.join("shims"),
            spares: state.join("spares"),
            bundles: state.join("tasks"),
            logs: root.join("logs"),
            runc: state.join("runc"),
            checkpoints: root.join("checkpoints"),
            cgroups: format!("/cofferdam/{instance}"),
            host: Arc::default(),
            stirs: Arc::default(),
        };
        for dir in [&layout.shims, &layout.spares, &layout.bundles, &layout.logs, &layout.checkpoints] {
            make(dir)?;
        }
        Ok(layout)
    }

    /// A shim's directory.
    pub(crate) fn shim(&self, shim: &str) -> PathBuf {
        self.shims.join(shim)
    }

    /// The directory of a shim that was made ahead, until it is used.
    pub(crate) fn spare(&self, shim: &str) -> PathBuf {
        self.spares.join(shim)
    }

    /// Those of shims that were made ahead.
    pub(crate) fn spares(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.spares)
            .map_or_else(|_| Vec::new(), |all| all.filter_map(|e| Some(e.ok()?.path())).collect())
    }

    /// Where runc-compatible runtimes keep their own state.
    pub(crate) fn runc(&self) -> &Path {
        &self.runc
    }

    /// The files of a checkpoint that a shim is to restore.
    pub(crate) fn restored(&self, shim: &str, id: &Id) -> PathBuf {
        self.checkpoint(&format!("{shim}@{id}"))
    }

    /// The files of a checkpoint by their name: of one that is being made, or as above.
    pub(crate) fn checkpoint(&self, name: &str) -> PathBuf {
        self.checkpoints.join(name)
    }

    /// Every checkpoint that has files.
    pub(crate) fn checkpoints(&self) -> Vec<String> {
        names(&self.checkpoints)
    }

    /// Every shim that has a directory.
    pub(crate) fn shim_ids(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.shims)
            .map_err(|e| Error::io("directory", self.shims.display(), "can't be listed", &e))?;
        Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
    }

    /// Every task that has a bundle, and every container that has a log.
    pub(crate) fn kept(&self) -> (Pairs, Pairs) {
        (pairs(&self.bundles), pairs(&self.logs))
    }

    /// A task's bundle.
    pub(crate) fn bundle(&self, namespace: &Namespace, id: &Id) -> PathBuf {
        self.bundles.join(&**namespace).join(&**id)
    }

    /// Where a container's log lies.
    pub fn log_dir(&self, namespace: &Namespace, id: &Id) -> PathBuf {
        self.logs.join(&**namespace).join(&**id)
    }

    /// The cgroup of a container whose spec names none. Several daemons of one host may run containers of the same
    /// namespace and id.
    pub(crate) fn cgroup(&self, namespace: &Namespace, id: &Id) -> String {
        format!("{}/{namespace}/{id}", self.cgroups)
    }

    /// Whether a cgroup lies below the one that is this daemon's alone.
    pub(crate) fn is_ours(&self, cgroup: &str) -> bool {
        cgroup.strip_prefix(&*self.cgroups).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The host's hierarchies, which stay as they are. One without any serves what needs none.
    pub(crate) fn host(&self) -> Result<&cgroup::Layout> {
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let found = cgroup::Layout::detect()?;
        Ok(self.host.get_or_init(|| found))
    }

    /// Whether a container has that cgroup.
    pub(crate) fn has_cgroup(&self, namespace: &Namespace, id: &Id) -> Result<bool> {
        cgroup::Cgroup::exists(self.host()?, &self.cgroup(namespace, id))
    }

    /// Every container that has a cgroup of ours.
    pub(crate) fn cgroups(&self) -> Pairs {
        let Ok(host) = self.host() else { return Pairs::new() };
        let names = |path: &str| cgroup::below(host, path).unwrap_or_default().into_iter();
        let namespaces = names(&self.cgroups).filter_map(|name| Namespace::new(name).ok());
        let pairs = namespaces.flat_map(|ns| {
            let ids = names(&format!("{}/{ns}", self.cgroups)).filter_map(|id| Id::new(id).ok());
            ids.map(|id| (ns.clone(), id)).collect::<Vec<_>>()
        });
        pairs.collect()
    }

    /// Every container of which a runc-compatible binary keeps its state here.
    pub(crate) fn runc_kept(&self) -> Pairs {
        pairs(&self.runc)
    }

    /// The state that a runc-compatible binary keeps of a container, unless the container names another place.
    pub(crate) fn runc_of(&self, namespace: &Namespace, id: &Id) -> PathBuf {
        self.runc.join(&**namespace).join(&**id)
    }

    /// Removes what a runc-compatible binary kept of a container. Where a client named the place, a directory that is
    /// something else is left alone.
    pub(crate) fn remove_runc(&self, dir: &Path) -> Result<()> {
        let is_state = || ["state.json", "status"].iter().any(|name| dir.join(name).is_file());
        if dir.starts_with(&self.runc) || is_state() { remove(dir) } else { Ok(()) }
    }

    /// While the answer lives a task is being made in that namespace, and nothing is tidied up around it.
    pub(crate) fn making(&self, namespace: &Namespace) -> Making {
        let mut stirs = self.stirs();
        let stir = stirs.entry(namespace.clone()).or_default();
        stir.making += 1;
        stir.moves += 1;
        Making { layout: self.clone(), namespace: namespace.clone() }
    }

    fn stirs(&self) -> MutexGuard<'_, BTreeMap<Namespace, Stir>> {
        self.stirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what holds the things of a namespace's containers, where it is empty: directories and cgroups.
    pub(crate) fn tidy(&self, namespace: &Namespace) {
        let mut stirs = self.stirs();
        if stirs.get(namespace).is_some_and(|stir| stir.making > 0) {
            return;
        }
        stirs.remove(namespace);
        for dir in [&self.bundles, &self.logs, &self.runc].map(|dir| dir.join(&**namespace)) {
            match std::fs::remove_dir(&dir) {
                Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                    tracing::warn!(dir = %dir.display(), error = %e, "an empty directory is left behind");
                }
                _ => {}
            }
        }
        // What other namespaces share goes only when no container is being made anywhere.
        let keep = if stirs.values().all(|stir| stir.making == 0) { 0 } else { self.cgroups.matches('/').count() };
        let child = format!("{}/{namespace}/-", self.cgroups);
        if let Err(error) = self.host().and_then(|host| cgroup::prune_above(host, &child, keep)) {
            tracing::warn!(%error, "an empty cgroup is left behind");
        }
    }

    /// Removes what had to be made above a cgroup that a client named, where it is empty again. What is ours waits for
    /// [`Layout::tidy`].
    pub(crate) fn prune_given(&self, cgroup: &str) {
        if self.is_ours(cgroup) {
            return;
        }
        if let Err(error) = self.host().and_then(|host| cgroup::prune_made(host, cgroup)) {
            tracing::warn!(%error, "an empty cgroup is left behind");
        }
    }

    /// [`Layout::tidy`] once it is quiet there. Something of the namespace's has just gone.
    pub(crate) fn tidy_soon(&self, namespace: &Namespace) {
        let moves = {
            let mut stirs = self.stirs();
            let stir = stirs.entry(namespace.clone()).or_default();
            stir.moves += 1;
            stir.moves
        };
        let (layout, namespace) = (self.clone(), namespace.clone());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(QUIET).await;
            let quiet = layout.stirs().get(&namespace).is_some_and(|stir| stir.moves == moves);
            if quiet {
                layout.tidy(&namespace);
            }
        });
    }

    /// [`Layout::tidy`] for every namespace that has anything: what a crash left.
    pub(crate) fn tidy_all(&self) {
        let mut namespaces = self
            .host()
            .and_then(|host| cgroup::below(host, &self.cgroups))
            .inspect_err(|error| tracing::warn!(%error, "cgroups can't be looked through"))
            .unwrap_or_default();
        namespaces.extend([&self.bundles, &self.logs, &self.runc].into_iter().flat_map(|dir| names(dir)));
        namespaces.into_iter().filter_map(|name| Namespace::new(name).ok()).for_each(|ns| self.tidy(&ns));
    }

    /// Gives a log another name beside its own. Whoever holds it open goes on with both.
    pub(crate) fn link_log(&self, namespace: &Namespace, id: &Id, to: &Id) -> Result<()> {
        let (old, new) = (self.log_dir(namespace, id), self.log_dir(namespace, to));
        remove(&new)?;
        let files = names(&old);
        if files.is_empty() {
            return Ok(());
        }
        make(&new)?;
        let mut links = files.iter().map(|file| std::fs::hard_link(old.join(file), new.join(file)));
        links.try_for_each(|linked| linked.map_err(|e| Error::io("log", to, "can't be named", &e)))
    }

    /// The directory of a container's log, made if it isn't there.
    pub(crate) fn open_log(&self, namespace: &Namespace, id: &Id) -> Result<OwnedFd> {
        let dir = self.log_dir(namespace, id);
        make(&dir)?;
        Ok(File::open(&dir).map_err(|e| Error::io("log", id, "can't be opened", &e))?.into())
    }
}

/// See [`Layout::making`].
pub(crate) struct Making {
    layout: Layout,
    namespace: Namespace,
}

impl Drop for Making {
    fn drop(&mut self) {
        if let Some(stir) = self.layout.stirs().get_mut(&self.namespace) {
            stir.making -= 1;
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// The directories two levels down, whose names are a namespace and an id. What has other names is not ours.
fn pairs(dir: &Path) -> Vec<(Namespace, Id)> {
    let mut found = Vec::new();
    for namespace in names(dir) {
        let Ok(ns) = Namespace::new(namespace) else { continue };
        let ids = names(&dir.join(&*ns)).into_iter().filter_map(|id| Id::new(id).ok());
        found.extend(ids.map(|id| (ns.clone(), id)));
    }
    found
}

/// Makes a directory and its parents, mode 0700.
pub(crate) fn make(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::io("directory", dir.display(), "can't be made", &e))
}

/// Removes a directory with all in it; one that isn't there is fine.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("directory", dir.display(), "can't be removed", &e))
        }
        _ => Ok(()),
    }
}

/// A socket's path through its directory's descriptor: names outgrow sun_path (unix(7)).
pub(crate) fn through(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_goes_unless_a_task_is_being_made_there() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path(), dir.path(), &format!("test-{}", std::process::id())).unwrap();
        let (ns, id) = (Namespace::new("shop").unwrap(), Id::new("box").unwrap());
        let (log, bundle) = (layout.log_dir(&ns, &id), layout.bundle(&ns, &id));
        make(&log).unwrap();
        make(&bundle).unwrap();
        remove(&bundle).unwrap();
        let above = |dir: &Path| dir.parent().unwrap().exists();
        let (first, second) = (layout.making(&ns), layout.making(&ns));
        layout.tidy(&ns);
        drop(first);
        layout.tidy(&ns);
        assert!(above(&bundle), "a task is being made");
        drop(second);
        layout.tidy(&ns);
        assert!(!above(&bundle) && log.exists(), "only what is empty goes");
        remove(&log).unwrap();
        layout.tidy_all();
        assert!(!above(&log));
    }
}
