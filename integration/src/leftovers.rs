//! What containers need on a host, and what must be gone with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use cofferdam_sys::{cgroup::Layout, mountinfo};

use crate::Daemon;

/// Directories that the daemon makes ahead for snapshots to come: empty, and of no container.
const STOCK: usize = 4;

/// Everything of one daemon that a container, a task, an image or a transfer in the making has on the host: snapshot
/// directories (but for the empty ones made ahead), ingests, trash, mounts, cgroups, processes, network namespaces, named
/// pipes, and the directories of shims, bundles and logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers(BTreeSet<String>);

impl Leftovers {
    /// Counts.
    pub fn count(daemon: &Daemon) -> Leftovers {
        let (root, state) = (daemon.root(), daemon.state());
        let mut found = BTreeSet::new();
        for driver in children(&root.join("snapshots")) {
            let (empty, full): (Vec<_>, Vec<_>) = children(&driver)
                .into_iter()
                .filter(|dir| !dir.ends_with("trash"))
                .partition(|dir| is_empty(&dir.join("fs")));
            found.extend(full.iter().map(|dir| format!("snapshot {}", dir.display())));
            // Which of the empty ones are ahead and which were left can't be told apart: their number can.
            found.extend((STOCK..empty.len()).map(|n| format!("empty snapshot {n} of {}", driver.display())));
        }
        for (what, dir, depth) in [
            ("ingest", root.join("content/ingest"), 1),
            ("trash", root.join("trash"), 1),
            ("trash", root.join("snapshots/erofs/trash"), 1),
            ("checkpoint", root.join("checkpoints"), 1),
            ("log", root.join("logs"), 2),
            ("logs of", root.join("logs"), 1),
            ("shim", state.join("shims"), 1),
            ("network namespace", state.join("netns"), 1),
            ("bundle", state.join("tasks"), 2),
            ("bundles of", state.join("tasks"), 1),
            ("runc", state.join("runc"), 2),
            ("runc of", state.join("runc"), 1),
        ] {
            found.extend(below(&dir, depth).iter().map(|path| format!("{what} {}", path.display())));
        }
        found.extend(fifos(&state).iter().map(|path| format!("pipe {}", path.display())));
        // One is the daemon's own, there for as long as it runs.
        let own = daemon.root().join("snapshots/erofs");
        let mounts = mounts(daemon.path()).into_iter().filter(|path| *path != own);
        found.extend(mounts.map(|path| format!("mount {}", path.display())));
        found.extend(cgroups(daemon.namespace()).iter().map(|path| format!("cgroup {path}")));
        found.extend(processes(daemon.path()).iter().map(|(pid, name)| format!("process {pid} {name}")));
        Leftovers(found)
    }

    /// What is here and was not there before.
    pub fn beyond(&self, before: &Leftovers) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).map_or_else(|_| Vec::new(), |all| all.filter_map(|e| Some(e.ok()?.path())).collect())
}

fn below(dir: &Path, depth: usize) -> Vec<PathBuf> {
    let here = children(dir);
    if depth == 1 { here } else { here.iter().flat_map(|dir| below(dir, depth - 1)).collect() }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut all| all.next().is_none())
}

/// Named pipes anywhere below a directory.
fn fifos(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in children(dir) {
        match path.symlink_metadata().map(|meta| meta.file_type()) {
            Ok(kind) if kind.is_fifo() => found.push(path),
            Ok(kind) if kind.is_dir() => found.extend(fifos(&path)),
            _ => {}
        }
    }
    found
}

/// How many descriptors of each kind a process has open: of files the kind is the path, of all else what it is.
pub fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for fd in children(Path::new(&format!("/proc/{pid}/fd"))) {
        let Ok(target) = std::fs::read_link(fd) else { continue };
        let target = target.to_string_lossy();
        // `socket:[12345]`
        let kind = if target.starts_with('/') { &*target } else { target.split(":[").next().unwrap_or_default() };
        *found.entry(kind.to_owned()).or_default() += 1;
    }
    found
}

/// Mounts of this mount namespace below a directory.
pub fn mounts(dir: &Path) -> Vec<PathBuf> {
    let table = mountinfo::read().expect("the mount table can be read");
    table.into_iter().map(|mount| mount.point).filter(|point| point.starts_with(dir)).collect()
}

/// The cgroups of a namespace and of its containers, in any hierarchy and of any daemon: a container's stands before
/// its namespace's.
pub fn cgroups(namespace: &str) -> Vec<String> {
    let layout = Layout::detect().expect("there are cgroups");
    let mut found = BTreeSet::new();
    for hierarchy in &layout.hierarchies {
        for above in children(&hierarchy.root.join("cofferdam")).iter().map(|daemon| daemon.join(namespace)) {
            let below = children(&above);
            for group in below.iter().chain([&above]).filter(|group| group.is_dir()) {
                let path = group.strip_prefix(&hierarchy.root).expect("it lies below its root");
                found.insert(format!("/{}", path.display()));
            }
        }
    }
    found.into_iter().rev().collect()
}

/// Processes whose working directory lies below `dir`, alive or not yet reaped: a daemon's shims, but for one that was
/// made ahead.
pub fn processes(dir: &Path) -> Vec<(i32, String)> {
    processes_in(dir, |cwd| !cwd.components().any(|part| part.as_os_str() == "spares"))
}

/// The same, with those that were made ahead.
pub fn all_processes(dir: &Path) -> Vec<(i32, String)> {
    processes_in(dir, |_| true)
}

fn processes_in(dir: &Path, counts: impl Fn(&Path) -> bool) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for process in children(Path::new("/proc")) {
        let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok()) else { continue };
        let Ok(cwd) = std::fs::read_link(process.join("cwd")) else { continue };
        // A removed directory is shown with a suffix, which `starts_with` on its parents does not mind.
        if cwd.starts_with(dir) && counts(&cwd) {
            let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default().trim().to_owned();
            found.push((pid, name));
        }
    }
    found
}
