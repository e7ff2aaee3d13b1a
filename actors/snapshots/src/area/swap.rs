//! Layers whose trees are replaced: who looked for the directories that he lies on before that looks again.

use super::*;

/// How many replacements are under way, and how many are over.
#[derive(Default)]
pub(super) struct Swaps {
    under_way: AtomicU64,
    over: AtomicU64,
}

impl Area {
    /// To be asked before it is looked for the directories that a snapshot lies on.
    pub fn swaps(&self) -> u64 {
        self.swaps.over.load(Ordering::SeqCst)
    }

    /// Whether one of them may have been replaced since, or is just being.
    pub fn swapped(&self, since: u64) -> bool {
        // In this order: who isn't under way any more is over.
        self.swaps.under_way.load(Ordering::SeqCst) > 0 || self.swaps() != since
    }

    /// A layer's tree is being replaced, until this is dropped.
    pub fn swap(self: &Arc<Area>) -> Swap {
        self.swaps.under_way.fetch_add(1, Ordering::SeqCst);
        Swap(self.clone())
    }
}

/// See [`Area::swap`].
pub struct Swap(Arc<Area>);

impl Drop for Swap {
    fn drop(&mut self) {
        self.0.swaps.over.fetch_add(1, Ordering::SeqCst);
        self.0.swaps.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers;

    #[test]
    fn replacements_side_by_side_are_seen_from_the_first_to_the_last() {
        let root = tempfile::tempdir().unwrap();
        private_dir(&root.path().join("snapshots")).unwrap();
        let trash = Trash::start(private_dir(&root.path().join("trash")).unwrap()).unwrap();
        let driver = drivers::all().into_iter().find(|driver| driver.name() == "native").unwrap();
        let area = Arc::new(Area::open(root.path(), driver, trash, 0, Box::new(|_| Ok(false))).unwrap());
        let before = area.swaps();
        assert!(!area.swapped(before));
        let (one, other) = (area.swap(), area.swap());
        let between = area.swaps();
        assert!(area.swapped(before) && area.swapped(between));
        drop(one);
        assert!(area.swapped(before) && area.swapped(between) && area.swapped(area.swaps()), "one is under way");
        drop(other);
        assert!(area.swapped(before) && area.swapped(between), "it looked while they were under way");
        assert!(!area.swapped(area.swaps()));
    }
}
