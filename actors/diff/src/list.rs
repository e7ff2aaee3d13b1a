//! What differs between two trees, as a list that is read in blocks: each begins where the one before ended, so that no
//! list is too long to be kept.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use cofferdam_kernel::Pool;
use cofferdam_snapshots::Changes;
use cofferdam_types::{Error, Result};
use nix::sys::stat::FileStat;

use crate::{
    create::{Report, Trees, compare, links},
    handle::CancelOnDrop,
    pack::Word,
};

/// What became of something in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It is another than before, or something in it is.
    Changed,
    /// It is gone, with all that was in it.
    Deleted,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What became of it.
    pub kind: ChangeKind,
    /// What: a path below the root; empty for the root itself.
    pub path: PathBuf,
}

/// What was changed in a snapshot, and how far that was told.
pub struct Listing {
    pool: Pool,
    trees: Arc<Changes>,
    /// Found at the first block.
    links: Arc<OnceLock<HashSet<u64>>>,
    after: Option<PathBuf>,
    end: bool,
}

impl Listing {
    pub(crate) fn new(pool: Pool, trees: Changes) -> Listing {
        Listing { pool, trees: Arc::new(trees), links: Arc::default(), after: None, end: false }
    }

    /// The next `max` changes at most, and whether those were the last. A directory comes before what is in it, and is
    /// there if anything in it is. Dropped, it stops, and the block comes again.
    pub async fn next(&mut self, max: usize) -> Result<(Vec<Change>, bool)> {
        if self.end {
            return Ok((Vec::new(), true));
        }
        let cancel = CancelOnDrop::default();
        let (trees, links, after, flag) = (self.trees.clone(), self.links.clone(), self.after.clone(), cancel.flag());
        let work = move || block(&trees, &links, after.as_deref(), max, &flag);
        let (block, end) = self.pool.run(work).await?;
        self.end = end;
        self.after = block.last().map(|last| last.path.clone()).or_else(|| self.after.take());
        Ok((block, end))
    }
}

fn block(
    changes: &Changes,
    known: &OnceLock<HashSet<u64>>,
    after: Option<&Path>,
    max: usize,
    cancel: &AtomicBool,
) -> Result<(Vec<Change>, bool)> {
    let word = || match cancel.load(Ordering::Relaxed) {
        true => Err(Error::cancelled("list", "", "nobody waits for it any more")),
        false => Ok(()),
    };
    let lower = changes.lower.as_ref().map(OwnedFd::as_fd);
    let trees = Trees { lower, upper: changes.upper.as_fd(), overlay: changes.overlay };
    if known.get().is_none() {
        let _ = known.set(links(&trees, &word)?);
    }
    let nothing = HashSet::new();
    // One more than is told says whether there is more.
    let mut list = List { word: &word, found: Vec::new(), entered: Vec::new(), max: max + 1 };
    compare(&trees, known.get().unwrap_or(&nothing), after, &mut list)?;
    let end = list.found.len() <= max;
    list.found.truncate(max);
    Ok((list.found, end))
}

struct List<'a> {
    word: Word<'a>,
    found: Vec<Change>,
    /// Directories above that are told as soon as something in them is.
    entered: Vec<PathBuf>,
    max: usize,
}

impl List<'_> {
    fn put(&mut self, kind: ChangeKind, path: &Path) {
        let above = self.entered.drain(..).map(|path| Change { kind: ChangeKind::Changed, path });
        self.found.extend(above.chain([Change { kind, path: path.to_owned() }]));
    }
}

impl Report for List<'_> {
    fn check(&self) -> Result<()> {
        (self.word)()
    }

    fn full(&self) -> bool {
        self.found.len() >= self.max
    }

    fn folder(&mut self, _dir: &OwnedFd, _stat: &FileStat, path: &Path, new: bool) -> Result<()> {
        self.put(if new { ChangeKind::Added } else { ChangeKind::Changed }, path);
        Ok(())
    }

    fn leaf(&mut self, _handle: &OwnedFd, _stat: &FileStat, path: PathBuf, new: bool) -> Result<()> {
        self.put(if new { ChangeKind::Added } else { ChangeKind::Changed }, &path);
        Ok(())
    }

    fn gone(&mut self, path: &Path) -> Result<()> {
        self.put(ChangeKind::Deleted, path);
        Ok(())
    }

    fn enter(&mut self, path: &Path) -> Result<()> {
        self.entered.push(path.to_owned());
        Ok(())
    }

    fn leave(&mut self, path: &Path) {
        if self.entered.last().is_some_and(|last| last == path) {
            self.entered.pop();
        }
    }
}

/// The whole list, read in blocks.
#[cfg(test)]
pub(crate) fn told(changes: &Changes, max: usize) -> Vec<String> {
    let (known, go) = (OnceLock::new(), AtomicBool::new(false));
    let (mut told, mut after) = (Vec::new(), None::<PathBuf>);
    loop {
        let (found, end) = block(changes, &known, after.as_deref(), max, &go).unwrap();
        assert!(found.len() <= max && (end || found.len() == max));
        after = found.last().map(|last| last.path.clone()).or(after);
        told.extend(found.iter().map(|change| {
            let letter = match change.kind {
                ChangeKind::Added => 'A',
                ChangeKind::Changed => 'C',
                ChangeKind::Deleted => 'D',
            };
            format!("{letter} /{}", change.path.display())
        }));
        if end {
            return told;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn trees() -> (tempfile::TempDir, Changes) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for root in ["old", "new"] {
            for path in ["a/b/c/d", "a/b/c/e", "gone/x", "same/y", "turn/z"] {
                let file = at(root).join(path);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, path).unwrap();
                fs::File::open(&file).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
            }
        }
        fs::write(at("new/a/b/c/e"), "changed").unwrap();
        fs::create_dir(at("new/a/b/n")).unwrap();
        fs::write(at("new/a/b/n/f"), "").unwrap();
        fs::remove_dir_all(at("new/gone")).unwrap();
        fs::remove_dir_all(at("new/turn")).unwrap();
        fs::write(at("new/turn"), "a file now").unwrap();
        let open = |name: &str| OwnedFd::from(fs::File::open(at(name)).unwrap());
        let changes = Changes { lower: Some(open("old")), upper: open("new"), overlay: false };
        (dir, changes)
    }

    const TOLD: [&str; 8] =
        ["C /a", "C /a/b", "C /a/b/c", "C /a/b/c/e", "A /a/b/n", "A /a/b/n/f", "D /gone", "C /turn"];

    #[test]
    fn blocks_of_any_size_make_the_same_list() {
        let (_dir, changes) = trees();
        for max in 1..=9 {
            assert_eq!(told(&changes, max), TOLD, "{max} at once");
        }
    }

    #[test]
    fn of_a_tree_on_nothing_all_is_new_and_of_one_on_itself_nothing() {
        let (dir, changes) = trees();
        let alone = Changes { lower: None, ..changes };
        let lines = told(&alone, 3);
        assert!(lines.iter().all(|line| line.starts_with('A')), "{lines:?}");
        assert_eq!((&*lines[0], lines.len()), ("A /", 11));
        let open = || OwnedFd::from(fs::File::open(dir.path().join("old")).unwrap());
        assert_eq!(told(&Changes { lower: Some(open()), upper: open(), overlay: false }, 2), [""; 0]);
    }

    #[test]
    fn a_list_that_nobody_waits_for_ends() {
        let (_dir, changes) = trees();
        let stop = AtomicBool::new(true);
        let error = block(&changes, &OnceLock::new(), None, 10, &stop).unwrap_err();
        assert_eq!(error.code, cofferdam_types::Code::Cancelled);
    }
}
