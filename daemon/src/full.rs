//! What is said with the error of a full disk: which file system it is, how full, whose the bytes on it are, and what helps.
//!
//! The layers that meet it know one file. It is put together where an error leaves for the client, within a bound of time:
//! an error that waits is worse than one that says less.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cofferdam_gc::{DiskUsage, Gc};
use cofferdam_kernel::Pool;
use cofferdam_metadata::graph::{Owner, Root};
use cofferdam_sys::mountinfo;
use cofferdam_types::{Error, show_size};
use nix::sys::statvfs::fstatvfs;

/// How long an error waits for it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a measurement is good, at least, and how many times as long as it took: a large root is not walked all the time.
const GOOD: (Duration, u32) = (Duration::from_secs(10), 20);
/// Owners that are named.
const NAMED: usize = 4;
/// A file system with more room than this, and than a tenth of it, is not the one: a client's own file may lie on another.
const ROOMY: u64 = 64 << 20;

/// Explains full disks.
pub struct Full {
    root: PathBuf,
    state: PathBuf,
    gc: Gc,
    pool: Pool,
    measured: Mutex<Option<Measured>>,
    /// Held by the one that measures.
    measuring: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
struct Measured {
    text: Arc<str>,
    until: Instant,
}

impl Full {
    /// Of these two directories.
    pub fn new(root: &Path, state: &Path, gc: Gc, pool: Pool) -> Arc<Full> {
        let (measured, measuring) = (Mutex::default(), Arc::default());
        Arc::new(Full { root: root.into(), state: state.into(), gc, pool, measured, measuring })
    }

    /// Adds to an error what is known of the disk, and has the collector look whether it can help.
    pub async fn explain(self: &Arc<Full>, error: Error) -> Error {
        self.gc.met_full_disk();
        let (root, state) = (self.root.clone(), self.state.clone());
        let place = self.pool.run(move || Ok(fullest(&root, &state)));
        let place = tokio::time::timeout(PATIENCE, place).await.ok().and_then(Result::ok).flatten();
        let Some(place) = place else { return error };
        // The state directory has nothing that an owner could give back.
        let owners = if place.is_root { self.owners().await } else { None };
        add(error, &place.text, owners.as_deref())
    }

    fn measured(&self) -> Option<Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was measured last, if it can't be measured in time.
    async fn owners(self: &Arc<Full>) -> Option<Arc<str>> {
        let last = self.measured();
        if let Some(last) = last.filter(|last| Instant::now() < last.until) {
            return Some(last.text);
        }
        if let Ok(turn) = self.measuring.clone().try_lock_owned() {
            let this = self.clone();
            // It goes on where nobody waits for it any more: the next error has it.
            let measure = tokio::task::spawn_local(async move {
                let (_turn, begun) = (turn, Instant::now());
                let Ok(usage) = this.gc.usage().await else { return };
                let until = Instant::now() + GOOD.0.max(begun.elapsed() * GOOD.1);
                let measured = Measured { text: largest(&usage, &this.root).into(), until };
                *this.measured.lock().unwrap_or_else(PoisonError::into_inner) = Some(measured);
            });
            let _ = tokio::time::timeout(PATIENCE, measure).await;
        }
        self.measured().map(|measured| measured.text)
    }
}

fn add(mut error: Error, place: &str, owners: Option<&str>) -> Error {
    error.message += &format!("; {place}");
    if let Some(owners) = owners {
        error.message += &format!(", of which {owners}");
    }
    error.message += "; coffer gc frees what nothing keeps, coffer system df says whose all of it is";
    error
}

struct Place {
    text: String,
    is_root: bool,
}

/// The one of both file systems that has less room, if it is one of them that is full.
fn fullest(root: &Path, state: &Path) -> Option<Place> {
    let look = |path: &Path, is_root| {
        let dir = cofferdam_sys::fd::open_dir(path).ok()?;
        let fs = fstatvfs(&dir).ok()?;
        let block = fs.fragment_size() as u64;
        let (size, free) = (fs.blocks() as u64 * block, fs.blocks_available() as u64 * block);
        // A file system that makes inodes as they are wanted says that it has none.
        let inodes = fs.files() > 0 && fs.files_available() == 0;
        let room = if inodes { 0 } else { free };
        if room > ROOMY && room > size / 10 {
            return None;
        }
        let free = if inodes { "no inode".to_owned() } else { show_size(free) };
        let text = format!("{} has {free} free of {}", mounted(&dir, path), show_size(size));
        Some((room, Place { text, is_root }))
    };
    let both = [look(root, true), look(state, false)];
    both.into_iter().flatten().min_by_key(|(room, _)| *room).map(|(_, place)| place)
}

/// What an operator calls the file system that a directory lies on.
fn mounted(dir: &impl std::os::fd::AsRawFd, path: &Path) -> String {
    let id = mountinfo::id_of_fd("self", dir.as_raw_fd()).ok().flatten();
    let mount = mountinfo::read().ok().and_then(|all| all.into_iter().find(|mount| Some(mount.id) == id));
    mount.map_or_else(
        || format!("the file system of {}", path.display()),
        |mount| format!("{} ({} on {})", mount.point.display(), mount.kind, mount.source.to_string_lossy()),
    )
}

/// The sum of what lies below the root, and the largest parts of it.
fn largest(usage: &DiskUsage, root: &Path) -> String {
    let mut parts: Vec<(u64, String)> = usage.owners.iter().map(|owner| (owner.alone, name(owner))).collect();
    parts.push((usage.shared, "what several keep".into()));
    parts.extend(usage.areas.iter().map(|(area, bytes)| (*bytes, format!("[{area}]"))));
    // Those of one name are one: what nothing keeps, where it was lost twice.
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (bytes, name) in parts {
        *sums.entry(name).or_default() += bytes;
    }
    let mut sums: Vec<_> = sums.into_iter().filter(|(_, bytes)| *bytes > 0).collect();
    sums.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let named: Vec<_> = sums.iter().take(NAMED).map(|(name, bytes)| format!("{} {name}", show_size(*bytes))).collect();
    let rest = if sums.len() > NAMED { " and less of others" } else { "" };
    format!("{} lie in {} ({}{rest})", show_size(usage.total()), root.display(), named.join(", "))
}

fn name(owner: &Owner) -> String {
    let namespace = &owner.namespace;
    match &owner.root {
        None => format!("that nothing keeps in namespace {namespace}"),
        Some(Root::Hand) => format!("made by hand in namespace {namespace}"),
        Some(Root::Label) => format!("labelled containerd.io/gc.root in namespace {namespace}"),
        Some(Root::Unreadable) => format!("of records that can't be read in namespace {namespace}"),
        Some(root) => {
            let (kind, id) = root.words();
            format!("{kind} {namespace}/{id}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_owners_are_named_and_the_file_system_by_its_mount() {
        let owner = |root, alone| Owner { namespace: "default".parse().unwrap(), root, alone, shared: 7 };
        let usage = DiskUsage {
            owners: vec![
                owner(Some(Root::Container("box".parse().unwrap())), 40 << 20),
                owner(None, 3 << 20),
                owner(Some(Root::Hand), 0),
            ],
            shared: 2 << 20,
            areas: BTreeMap::from([("events", 4096), ("records", 1 << 20)]),
        };
        assert_eq!(
            largest(&usage, Path::new("/root")),
            "46.0 MiB lie in /root (40.0 MiB container default/box, 3.0 MiB that nothing keeps in namespace default, \
             2.0 MiB what several keep, 1.0 MiB [records] and less of others)"
        );
        let place = fullest(Path::new("/proc"), Path::new("/dev")).unwrap();
        assert!(place.is_root && place.text.starts_with("/proc (proc on "), "{}", place.text);
        let error = add(
            Error::resource_exhausted("blob", "x", "no space"),
            "/disk (ext4 on /dev/x) has 0 B free of 1 GiB",
            None,
        );
        assert!(
            error.message.starts_with("no space; /disk (ext4 on /dev/x) has 0 B free of 1 GiB; coffer gc"),
            "{error}"
        );
    }
}
