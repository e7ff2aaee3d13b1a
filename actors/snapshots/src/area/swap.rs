//! Layers whose trees are replaced: who looked for the directories that he lies on before that looks again.

use super::*;

impl Area {
    /// To be asked before it is looked for the directories that a snapshot lies on.
    pub fn swaps(&self) -> u64 {
        self.swaps.load(Ordering::SeqCst)
    }

    /// Whether one of them may have been replaced since, or is just being.
    pub fn swapped(&self, since: u64) -> bool {
        !since.is_multiple_of(2) || self.swaps() != since
    }

    /// A layer's tree is being replaced, until this is dropped.
    pub fn swap(self: &Arc<Area>) -> Swap {
        self.swaps.fetch_add(1, Ordering::SeqCst);
        Swap(self.clone())
    }
}

/// See [`Area::swap`].
pub struct Swap(Arc<Area>);

impl Drop for Swap {
    fn drop(&mut self) {
        self.0.swaps.fetch_add(1, Ordering::SeqCst);
    }
}
