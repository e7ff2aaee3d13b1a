//! Control groups: v1, v2, and both side by side ("hybrid": v1 controllers, and a v2 hierarchy that has none or few).
//!
//! A group is named by one path, such as `/cofferdam/default/redis`, below the root of every hierarchy. Where there is
//! a v2 hierarchy at all it does the killing and the freezing, which need no controller.

use std::{
    collections::BTreeSet,
    ffi::CStr,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cofferdam_types::{Error, Result};

use crate::{
    fd::{self, Scope},
    mountinfo, xattr,
};

mod inner;
mod kill;

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its root directory.
    pub root: PathBuf,
    /// v1: what it controls (`cpu`, `cpuacct`, `name=systemd`). v2: empty; see [`Cgroup::controllers`].
    pub controllers: Vec<String>,
    /// Whether it is the v2 hierarchy.
    pub unified: bool,
}

/// Which hierarchies this host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// v1 first.
    pub hierarchies: Vec<Hierarchy>,
}

impl Layout {
    /// Reads the mount table.
    pub fn detect() -> Result<Layout> {
        let mounts = mountinfo::read().map_err(|e| Error::io("cgroup", "", "reading the mount table", &e))?;
        let layout = Layout::of(&mounts);
        if layout.hierarchies.is_empty() {
            return Err(Error::failed_precondition(
                "cgroup",
                "",
                "no cgroup file system is mounted: mount cgroup2 at /sys/fs/cgroup",
            ));
        }
        Ok(layout)
    }

    fn of(mounts: &[mountinfo::Info]) -> Layout {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for mount in mounts.iter().filter(|m| m.kind == "cgroup" || m.kind == "cgroup2") {
            let unified = mount.kind == "cgroup2";
            const FLAGS: &[&str] = &["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "none"];
            let mut controllers: Vec<String> = Vec::new();
            if !unified {
                let words =
                    mount.super_options.split(',').filter(|w| !FLAGS.contains(w) && !w.contains("release_agent"));
                controllers.extend(words.map(str::to_owned));
            }
            // The same hierarchy may be mounted twice.
            if !hierarchies.iter().any(|h| h.unified == unified && h.controllers == controllers) {
                hierarchies.push(Hierarchy { root: mount.point.clone(), controllers, unified });
            }
        }
        hierarchies.sort_by_key(|h| h.unified);
        Layout { hierarchies }
    }

    /// Whether any hierarchy is of v1.
    pub fn has_v1(&self) -> bool {
        self.hierarchies.iter().any(|h| !h.unified)
    }
}

/// One group, held open in every hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    hierarchy: Hierarchy,
    dir: OwnedFd,
}

/// How long the kernel may take to let go of a group whose processes were killed.
const PATIENCE: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Makes the group (and what lies above it) in every hierarchy. One that is there already is an error: its
    /// processes and limits would be somebody else's.
    pub fn create(layout: &Layout, path: &str) -> Result<Cgroup> {
        check_path(path)?;
        let mut group = Cgroup { path: path.to_owned(), parts: Vec::new() };
        for hierarchy in &layout.hierarchies {
            match create_in(hierarchy, path) {
                Ok(dir) => group.parts.push(Part { hierarchy: hierarchy.clone(), dir }),
                Err(e) => {
                    // Only the parts made here: the rest may be in use.
                    for part in &group.parts {
                        let _ = std::fs::remove_dir(join(&part.hierarchy.root, path));
                    }
                    if e.kind() == io::ErrorKind::AlreadyExists {
                        return Err(Error::already_exists("cgroup", path, "remove the container that it belongs to"));
                    }
                    return Err(Error::io("cgroup", path, format!("making it in {}", hierarchy.root.display()), &e));
                }
            }
        }
        Ok(group)
    }

    /// Whether any hierarchy has the group.
    pub fn exists(layout: &Layout, path: &str) -> Result<bool> {
        check_path(path)?;
        let is_there = |hierarchy: &Hierarchy| std::fs::symlink_metadata(join(&hierarchy.root, path)).is_ok();
        Ok(layout.hierarchies.iter().any(is_there))
    }

    /// Opens a group in whichever hierarchies it exists.
    pub fn open(layout: &Layout, path: &str) -> Result<Cgroup> {
        check_path(path)?;
        let mut parts = Vec::new();
        for hierarchy in &layout.hierarchies {
            match fd::open_dir(&join(&hierarchy.root, path)) {
                Ok(dir) => parts.push(Part { hierarchy: hierarchy.clone(), dir }),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("cgroup", path, "opening it", &e)),
            }
        }
        if parts.is_empty() {
            return Err(Error::not_found("cgroup", path, "there is no such group"));
        }
        Ok(Cgroup { path: path.to_owned(), parts })
    }

    /// The path below every hierarchy's root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The directory in the v2 hierarchy, for `CLONE_INTO_CGROUP`.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.parts.iter().find(|p| p.hierarchy.unified).map(|p| p.dir.as_fd())
    }

    /// Every hierarchy with its directory.
    pub fn parts(&self) -> impl Iterator<Item = (&Hierarchy, BorrowedFd<'_>)> {
        self.parts.iter().map(|p| (&p.hierarchy, p.dir.as_fd()))
    }

    /// What the v2 hierarchy controls for this group.
    pub fn controllers(&self) -> Result<Vec<String>> {
        match self.unified() {
            Some(dir) => Ok(self.read_at(dir, "cgroup.controllers")?.split_whitespace().map(str::to_owned).collect()),
            None => Ok(Vec::new()),
        }
    }

    /// The directory of a v1 controller.
    pub fn v1(&self, controller: &str) -> Option<BorrowedFd<'_>> {
        let has = |p: &&Part| p.hierarchy.controllers.iter().any(|c| c == controller);
        self.parts.iter().find(has).map(|p| p.dir.as_fd())
    }

    /// For a process that joins by itself: the files that it writes `0` to, one for each hierarchy.
    pub fn entrances(&self) -> Result<Vec<OwnedFd>> {
        let open = |part: &Part| {
            let file = fd::open_no_symlinks(&part.dir, Path::new("cgroup.procs"), libc::O_WRONLY, 0);
            file.map_err(|e| Error::io("cgroup", &self.path, "opening cgroup.procs", &e))
        };
        self.parts.iter().map(open).collect()
    }

    /// The files by which a thread joins the v1 hierarchies: it writes a `0` into each. (Into the v2 one it is cloned, or
    /// see [`Cgroup::add`].) A thread that moves itself is the one move for which the kernel takes no lock against every
    /// fork and exec of the host; to get that lock takes an RCU grace period, 4 to 15 ms.
    pub fn tasks_v1(&self) -> Result<Vec<OwnedFd>> {
        let open = |part: &Part| {
            fd::open(part.dir.as_fd(), "tasks".as_ref(), libc::O_WRONLY, 0, Scope::Beneath)
                .map_err(|e| Error::io("cgroup", &self.path, "opening tasks", &e))
        };
        self.parts.iter().filter(|part| !part.hierarchy.unified).map(open).collect()
    }

    /// Moves a process into every hierarchy.
    pub fn add(&self, pid: i32) -> Result<()> {
        let pid = pid.to_string();
        self.parts.iter().try_for_each(|part| self.write_at(part.dir.as_fd(), "cgroup.procs", &pid))
    }

    /// Writes a file of the group's directory `dir`.
    pub fn write_at(&self, dir: BorrowedFd<'_>, file: &str, value: &str) -> Result<()> {
        self.write_each_at(dir, file, [value])
    }

    /// Writes values to it one after the other.
    pub fn write_each_at<V: AsRef<str>>(
        &self,
        dir: BorrowedFd<'_>,
        file: &str,
        values: impl IntoIterator<Item = V>,
    ) -> Result<()> {
        let opened = fd::open(dir, file.as_ref(), libc::O_WRONLY, 0, Scope::Beneath);
        let mut opened =
            opened.map(File::from).map_err(|e| Error::io("cgroup", &self.path, format!("opening {file}"), &e))?;
        values.into_iter().try_for_each(|value| {
            let value = value.as_ref();
            opened.write_all(value.as_bytes()).map_err(|e| match e.raw_os_error() {
                Some(libc::EINVAL | libc::ERANGE) => {
                    Error::invalid("cgroup", &self.path, format!("the kernel doesn't take {value:?} for {file}"))
                }
                Some(libc::ENODEV) if file.starts_with("io.") || file.starts_with("blkio.") => {
                    let why = format!("{file} can't be {value:?}: the host has no such device (a partition is none)");
                    Error::failed_precondition("cgroup", &self.path, why)
                }
                Some(libc::EBUSY) => {
                    let why = format!("{file} can't be {value:?} now: more than that is in use");
                    Error::failed_precondition("cgroup", &self.path, why)
                }
                _ => Error::io("cgroup", &self.path, format!("writing {value:?} to {file}"), &e),
            })
        })
    }

    /// Reads a file of the group's directory `dir`.
    pub fn read_at(&self, dir: BorrowedFd<'_>, file: &str) -> Result<String> {
        let mut text = String::new();
        fd::open(dir, file.as_ref(), libc::O_RDONLY, 0, Scope::Beneath)
            .and_then(|fd| File::from(fd).take(1 << 20).read_to_string(&mut text))
            .map_err(|e| Error::io("cgroup", &self.path, format!("reading {file}"), &e))?;
        Ok(text)
    }

    /// The value of a key in a flat-keyed file such as `memory.events`.
    pub fn read_key(&self, dir: BorrowedFd<'_>, file: &str, key: &str) -> Result<Option<u64>> {
        let text = self.read_at(dir, file)?;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        Ok(lines.find(|(k, _)| *k == key).and_then(|(_, v)| v.trim().parse().ok()))
    }

    /// How often the group ran out of memory and something in it was killed.
    pub fn oom_kills(&self) -> Result<u64> {
        let count = match (self.v1("memory"), self.unified()) {
            (Some(dir), _) => self.read_key(dir, "memory.oom_control", "oom_kill")?,
            (None, Some(dir)) => self.read_key(dir, "memory.events", "oom_kill")?,
            (None, None) => None,
        };
        Ok(count.unwrap_or(0))
    }

    /// Whether the group stands still for want of memory: v1, where nobody is killed for it.
    pub fn under_oom(&self) -> Result<bool> {
        let Some(dir) = self.v1("memory") else { return Ok(false) };
        Ok(self.read_key(dir, "memory.oom_control", "under_oom")?.unwrap_or_default() != 0)
    }

    /// The pids of the group and of every group below it, in the caller's pid namespace.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        // The same processes are in every hierarchy; the last is v2 if there is one.
        if let Some(part) = self.parts.last() {
            let root = join(&part.hierarchy.root, &self.path);
            collect_pids(&root, 0, &mut pids)
                .map_err(|e| Error::io("cgroup", &self.path, "reading its processes", &e))?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// v1 processes die only once they run again; a group that isn't frozen is none the worse.
    fn thaw_v1(&self) {
        if let Some(dir) = self.v1("freezer") {
            let _ = self.write_at(dir, "freezer.state", "THAWED");
        }
    }

    /// Stops every process; returns when all have stopped.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, on: bool) -> Result<()> {
        let (dir, file, value, state, want) = match (self.unified(), self.v1("freezer")) {
            (Some(dir), _) => {
                let value = if on { "1" } else { "0" };
                (dir, "cgroup.freeze", value, "cgroup.events", format!("frozen {value}"))
            }
            (None, Some(dir)) => {
                let value = if on { "FROZEN" } else { "THAWED" };
                (dir, "freezer.state", value, "freezer.state", value.to_owned())
            }
            (None, None) => return Err(Error::unimplemented("cgroup", &self.path, "this host has no freezer")),
        };
        let end = Instant::now() + PATIENCE;
        loop {
            // v1 needs the word repeated while processes fork.
            self.write_at(dir, file, value)?;
            if self.read_at(dir, state)?.lines().any(|line| line == want) {
                return Ok(());
            }
            if Instant::now() > end {
                let _ = self.write_at(dir, file, if file == "cgroup.freeze" { "0" } else { "THAWED" });
                return Err(Error::deadline_exceeded("cgroup", &self.path, "its processes did not stop: it runs on"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Removes the group and all below it; one that is gone already is no error. Its processes must be dead or dying.
    pub fn remove(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        // The last process may still be on its way out.
        while !self.try_remove()? {
            if Instant::now() > end {
                return Err(Error::failed_precondition("cgroup", &self.path, "processes still run in it"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The same without waiting; false where something is in it.
    pub fn try_remove(&self) -> Result<bool> {
        for part in &self.parts {
            match remove_tree(&join(&part.hierarchy.root, &self.path), 0) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
                Err(e) => return Err(Error::io("cgroup", &self.path, "removing it", &e)),
            }
        }
        Ok(true)
    }

    /// The group of the v2 hierarchy, this one or one below it, that a process is in now.
    pub fn unified_of(&self, pid: i32) -> Result<OwnedFd> {
        let fail = |e: &io::Error| Error::io("cgroup", &self.path, format!("looking for that of process {pid}"), e);
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|e| fail(&e))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"));
        // What the process moved out of the group it must have had help for: nothing of ours follows.
        let below = path.and_then(|path| path.strip_prefix(&*self.path));
        let below = below.filter(|rest| rest.is_empty() || rest.starts_with('/'));
        match (below, self.unified()) {
            (Some(""), Some(dir)) => dir.try_clone_to_owned().map_err(|e| fail(&e)),
            (Some(rest), Some(dir)) => {
                fd::open_no_symlinks(dir, rest[1..].as_ref(), libc::O_DIRECTORY, 0).map_err(|e| fail(&e))
            }
            _ => Err(Error::failed_precondition("cgroup", &self.path, "its first process is not in it any more")),
        }
    }
}

/// Removes the groups above `path`, the nearest first, as long as they are empty; those of `keep` parts and fewer stay.
/// A group of somebody else's in one of them is a reason to stop, not an error.
pub fn prune_above(layout: &Layout, path: &str, keep: usize) -> Result<()> {
    prune(layout, path, |above, _| above.matches('/').count() > keep)
}

/// The same of those that [`Cgroup::create`] or [`make_above`] made on its way, whoever called it.
pub fn prune_made(layout: &Layout, path: &str) -> Result<()> {
    let made = |dir: &Path| fd::open_dir(dir).and_then(|dir| xattr::get(dir, MADE)).is_ok_and(|mark| mark.is_some());
    prune(layout, path, |_, dir| made(dir))
}

fn prune(layout: &Layout, path: &str, goes: impl Fn(&str, &Path) -> bool) -> Result<()> {
    check_path(path)?;
    for hierarchy in &layout.hierarchies {
        let mut above = path;
        while let Some((next, _)) = above.rsplit_once('/').filter(|(next, _)| !next.is_empty()) {
            above = next;
            let dir = join(&hierarchy.root, above);
            if !goes(above, &dir) {
                break;
            }
            match std::fs::remove_dir(dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                // The kernel says EBUSY for a group with groups in it, as for one with processes.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => break,
                Err(e) => return Err(Error::io("cgroup", above, "removing it", &e)),
                Ok(()) => {}
            }
        }
    }
    Ok(())
}

/// The names of the groups right below `path`, in any hierarchy.
pub fn below(layout: &Layout, path: &str) -> Result<BTreeSet<String>> {
    check_path(path)?;
    let mut names = BTreeSet::new();
    for hierarchy in &layout.hierarchies {
        match children(&join(&hierarchy.root, path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            found => {
                let found = found.map_err(|e| Error::io("cgroup", path, "listing it", &e))?;
                names.extend(found.iter().filter_map(|dir| dir.file_name()?.to_str().map(str::to_owned)));
            }
        }
    }
    Ok(names)
}

/// A path that stays below the root of its hierarchy and isn't the root itself.
fn check_path(path: &str) -> Result<()> {
    let good = path.starts_with('/')
        && path.len() < 1024
        && path[1..].split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\0', '\n']));
    good.then_some(()).ok_or_else(|| {
        Error::invalid("cgroup", path.escape_default(), "is not a cgroup path: write it like /cofferdam/default/redis")
    })
}

fn join(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// How long a group is tried to be made whose parents are removed by somebody meanwhile, since they were empty.
const TRY: Duration = Duration::from_secs(2);

/// What a group is marked with that was made only since another was to lie in it: nobody else knows whose it is.
const MADE: &CStr = c"trusted.cofferdam.made";

/// Makes the groups above `path` for somebody who is going to make that one, with the mark by which [`prune_made`] knows
/// them.
pub fn make_above(layout: &Layout, path: &str) -> Result<()> {
    check_path(path)?;
    layout.hierarchies.iter().try_for_each(|hierarchy| {
        patiently(|| create_above(hierarchy, path)).map_err(|e| {
            Error::io("cgroup", path, format!("making what it lies in, in {}", hierarchy.root.display()), &e)
        })
    })
}

/// The directory, made; those above it are made as needed.
fn create_in(hierarchy: &Hierarchy, path: &str) -> io::Result<OwnedFd> {
    patiently(|| try_create_in(hierarchy, path))
}

fn patiently<T>(make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + TRY;
    loop {
        match make() {
            // ENODEV: a file of a group that is gone.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) && Instant::now() < end => {}
            made => return made,
        }
    }
}

fn try_create_in(hierarchy: &Hierarchy, path: &str) -> io::Result<OwnedFd> {
    let dir = join(&hierarchy.root, path);
    match std::fs::create_dir(&dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            create_above(hierarchy, path)?;
            std::fs::create_dir(&dir)?;
        }
        Err(e) => return Err(e),
    }
    let opened = inherit_cpuset(hierarchy, &dir, false).and_then(|()| fd::open_dir(&dir));
    opened.inspect_err(|_| {
        let _ = std::fs::remove_dir(&dir);
    })
}

fn create_above(hierarchy: &Hierarchy, path: &str) -> io::Result<()> {
    let mut above = hierarchy.root.clone();
    let parts: Vec<&str> = path[1..].split('/').collect();
    enable_controllers(hierarchy, &above)?;
    for part in &parts[..parts.len() - 1] {
        above.push(part);
        match std::fs::create_dir(&above) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            made => {
                if made.is_ok() {
                    // Without the mark it stays, as one of somebody else's would.
                    let _ = fd::open_dir(&above).and_then(|dir| xattr::set(dir, MADE, b"1"));
                }
                // Whoever made it may not have come to this yet.
                inherit_cpuset(hierarchy, &above, true)?;
            }
        }
        enable_controllers(hierarchy, &above)?;
    }
    Ok(())
}

/// v2: what the parent has is handed down. A controller that can't be (the root of a container, a threaded group) is
/// left out; a limit that needs it then fails by name.
fn enable_controllers(hierarchy: &Hierarchy, dir: &Path) -> io::Result<()> {
    if !hierarchy.unified {
        return Ok(());
    }
    let available = std::fs::read_to_string(dir.join("cgroup.controllers"))?;
    for controller in available.split_whitespace() {
        let _ = std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// v1: a new cpuset is empty, and no process can join it before it has processors and memory nodes. Groups that only
/// hold others hand theirs down by themselves.
fn inherit_cpuset(hierarchy: &Hierarchy, dir: &Path, hand_down: bool) -> io::Result<()> {
    if dir == hierarchy.root || !hierarchy.controllers.iter().any(|c| c == "cpuset") {
        return Ok(());
    }
    let Some(above) = dir.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if std::fs::read_to_string(dir.join(file))?.trim().is_empty() {
            let mut given = std::fs::read_to_string(above.join(file))?;
            if given.trim().is_empty() {
                inherit_cpuset(hierarchy, above, true)?;
                given = std::fs::read_to_string(above.join(file))?;
            }
            std::fs::write(dir.join(file), given.trim())?;
        }
    }
    if hand_down {
        std::fs::write(dir.join("cgroup.clone_children"), "1")?;
    }
    Ok(())
}

/// Deeper than this a container may nest groups, but nothing of ours follows.
const MAX_DEPTH: usize = 64;

fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            all.push(entry.path());
        }
    }
    Ok(all)
}

fn collect_pids(dir: &Path, depth: usize, pids: &mut Vec<i32>) -> io::Result<()> {
    let list = match std::fs::read_to_string(dir.join("cgroup.procs")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        // A threaded group lists its processes in the domain above it only.
        Err(e) if e.raw_os_error() == Some(libc::ENOTSUP) => String::new(),
        other => other?,
    };
    pids.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    if depth < MAX_DEPTH {
        match children(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            below => below?.iter().try_for_each(|child| collect_pids(child, depth + 1, pids))?,
        }
    }
    Ok(())
}

/// Tries the plain case first: nearly no container makes groups of its own.
fn remove_tree(dir: &Path, depth: usize) -> io::Result<()> {
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) && depth < MAX_DEPTH => {
            let below = match children(dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            if below.is_empty() {
                return Err(e);
            }
            for child in below {
                remove_tree(&child, depth + 1)?;
            }
            match std::fs::remove_dir(dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
