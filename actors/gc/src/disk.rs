//! What lies below the root, measured: each blob and each tree, and the rest by what it is for. It only looks, at the names
//! that docs/format.md speaks of.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{CStr, CString},
    os::fd::BorrowedFd,
};

use cofferdam_metadata::{
    Metadata,
    graph::{Bytes, Owner, Root, Usage, usage},
};
use cofferdam_snapshots::walk::{Step, Visitor, file_type, walk};
use cofferdam_types::{Error, Result, Timestamp};
use nix::{
    errno::Errno,
    sys::stat::{FileStat, SFlag, fstat},
};

/// Whose the bytes below the root are. All sums together are what lies there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Those who keep something; a container's log is its own. And each namespace in which something is that nothing keeps.
    pub owners: Vec<Owner>,
    /// What several of them keep, once.
    pub shared: u64,
    /// All else, by what it is for.
    pub areas: BTreeMap<&'static str, u64>,
}

impl DiskUsage {
    /// Measures the root, and asks the records whose all that is.
    pub(crate) fn ask(meta: &Metadata, root: BorrowedFd<'_>) -> Result<DiskUsage> {
        let Disk { measured, mut logs, mut areas, .. } = Disk::measure(root)?;
        let Usage { mut owners, shared, unnamed } = usage(&meta.read()?, Timestamp::now(), &measured)?;
        for owner in &mut owners {
            if let Some(Root::Container(id)) = &owner.root {
                owner.alone += logs.remove(&(owner.namespace.to_string(), id.clone())).unwrap_or(0);
            }
        }
        for (area, bytes) in [("logs", logs.into_values().sum()), ("unnamed", unnamed)] {
            *areas.entry(area).or_default() += bytes;
        }
        Ok(DiskUsage { owners, shared, areas })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.owners.iter().map(|owner| owner.alone).chain(self.areas.values().copied()).sum::<u64>() + self.shared
    }
}

/// What a root takes up.
#[derive(Debug, Default)]
struct Disk {
    /// Blobs, and the directories of snapshots.
    measured: HashMap<Bytes, u64>,
    /// Logs, by namespace and container.
    logs: BTreeMap<(String, String), u64>,
    areas: BTreeMap<&'static str, u64>,
    path: Vec<CString>,
    linked: HashSet<(u64, u64)>,
}

impl Disk {
    /// What comes or goes meanwhile is in it or isn't.
    fn measure(root: BorrowedFd<'_>) -> Result<Disk> {
        let fault = |e: Errno| Error::io("root", "", "can't be measured", &e.into());
        let mut disk = Disk::default();
        disk.add(None, &fstat(root).map_err(fault)?);
        walk(root, &mut disk).map_err(fault)?;
        Ok(disk)
    }

    fn add(&mut self, name: Option<&CStr>, stat: &FileStat) {
        let size = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let path = self.path.iter().map(CString::as_c_str).chain(name).take(4);
        let path: Vec<_> = path.map(CStr::to_string_lossy).collect();
        let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
        let area = match path[..] {
            ["content", "blobs", algorithm, hex, ..] => {
                if let Ok(digest) = format!("{algorithm}:{hex}").parse() {
                    *self.measured.entry(Bytes::Blob(digest)).or_default() += size;
                    return;
                }
                "other"
            }
            ["snapshots", driver, number, ..] => {
                if let Ok(dir) = number.parse() {
                    *self.measured.entry(Bytes::Tree { driver: driver.into(), dir }).or_default() += size;
                    return;
                }
                "other"
            }
            ["logs", namespace, id, ..] => {
                *self.logs.entry((namespace.into(), id.into())).or_default() += size;
                return;
            }
            ["content", "ingest", ..] => "ingests",
            ["checkpoints", ..] => "checkpoints",
            ["events", ..] => "events",
            ["audit", ..] => "audit",
            ["trash", ..] => "trash",
            ["meta.redb"] => "records",
            ["reserve"] => "reserve",
            _ => "other",
        };
        *self.areas.entry(area).or_default() += size;
    }
}

impl Visitor for Disk {
    fn visit(&mut self, _: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> std::result::Result<Step, Errno> {
        let directory = file_type(stat) == SFlag::S_IFDIR;
        // A layer of erofs is seen twice: as an image, and mounted.
        let mounted = self.path.len() == 3 && self.path[1].as_c_str() == c"erofs" && name == c"layer";
        if mounted {
            return Ok(Step::Skip);
        }
        if directory || stat.st_nlink == 1 || self.linked.insert((stat.st_dev, stat.st_ino)) {
            self.add(Some(name), stat);
        }
        Ok(if directory { Step::Enter } else { Step::Skip })
    }

    fn entered(&mut self, name: &CStr) -> std::result::Result<(), Errno> {
        self.path.push(name.to_owned());
        Ok(())
    }

    fn leave(&mut self, _: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
        self.path.pop();
        Ok(())
    }
}
