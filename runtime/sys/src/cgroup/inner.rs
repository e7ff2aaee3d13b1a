//! A group below another one, for some of its processes: so that these can be ended together, with all that came of them,
//! whoever their parents are by then.
//!
//! It lies in one hierarchy alone, the one that kills, and limits nothing: what holds for the group above holds for all that
//! is in it.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use cofferdam_types::{Error, Result};

use super::{Cgroup, Part, check_path, inherit_cpuset, join};
use crate::fd::{self, Scope};

impl Cgroup {
    /// The hierarchy that it lies in: the v2 one, or the freezer's, by which v1 kills.
    fn kills_by(&self) -> Option<&Part> {
        let unified = self.parts.iter().find(|part| part.hierarchy.unified);
        let freezer = || self.parts.iter().find(|part| part.hierarchy.controllers.iter().any(|c| c == "freezer"));
        unified.or_else(freezer).or_else(|| self.parts.last())
    }

    fn inner_path(&self, name: &str) -> Result<String> {
        let path = format!("{}/{name}", self.path);
        check_path(&path)?;
        if name.contains('/') {
            return Err(Error::invalid("cgroup", name.escape_default(), "is no name of one group"));
        }
        Ok(path)
    }

    /// The group of this name below, made if it isn't there.
    pub fn inner(&self, name: &str) -> Result<Cgroup> {
        let path = self.inner_path(name)?;
        let gone = || Error::not_found("cgroup", &self.path, "there is no such group");
        let hierarchy = self.kills_by().ok_or_else(gone)?.hierarchy.clone();
        let dir = join(&hierarchy.root, &path);
        let made = match std::fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => inherit_cpuset(&hierarchy, &dir, false).and_then(|()| fd::open_dir(&dir)),
        };
        let dir = made.map_err(|e| Error::io("cgroup", &path, "making it", &e))?;
        Ok(Cgroup { path, parts: vec![Part { hierarchy, dir }] })
    }

    /// The group of this name below, if it is there.
    pub fn find_inner(&self, name: &str) -> Result<Option<Cgroup>> {
        let path = self.inner_path(name)?;
        let Some(part) = self.kills_by() else { return Ok(None) };
        let hierarchy = part.hierarchy.clone();
        match fd::open_dir(&join(&hierarchy.root, &path)) {
            Ok(dir) => Ok(Some(Cgroup { path, parts: vec![Part { hierarchy, dir }] })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("cgroup", &path, "opening it", &e)),
        }
    }

    /// [`Cgroup::tasks_v1`] for a process that is to be in this group, and in the one below it where that lies.
    pub fn tasks_v1_with(&self, inner: &Cgroup) -> Result<Vec<OwnedFd>> {
        let open = |part: &Part| {
            let below = inner.parts.iter().find(|other| other.hierarchy == part.hierarchy);
            fd::open(below.unwrap_or(part).dir.as_fd(), "tasks".as_ref(), libc::O_WRONLY, 0, Scope::Beneath)
                .map_err(|e| Error::io("cgroup", &self.path, "opening tasks", &e))
        };
        self.parts.iter().filter(|part| !part.hierarchy.unified).map(open).collect()
    }

    /// Moves a process into it, with all that it has begun by now and not let go of.
    pub fn adopt(&self, pid: i32) -> Result<()> {
        let (mut open, mut seen) = (vec![pid], BTreeSet::new());
        while let Some(pid) = open.pop() {
            if !seen.insert(pid) {
                continue;
            }
            match self.add(pid) {
                // It has ended.
                Err(_) if !std::path::Path::new(&format!("/proc/{pid}")).exists() => {}
                added => added?,
            }
            open.extend(begun_by(pid));
        }
        Ok(())
    }
}

/// The children of a process.
fn begun_by(pid: i32) -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}
