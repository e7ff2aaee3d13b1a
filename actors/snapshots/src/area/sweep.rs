//! What every start does with what the daemon before it has left.

use std::{collections::BTreeMap, os::fd::AsFd as _};

use cofferdam_types::Result;

use super::{Area, Known, lock, numbers};

/// So many are told of one by one.
const TOLD: usize = 20;

impl Area {
    /// Directories without a record go to the trash, records without a directory get it again (see the module above) or are
    /// reported as lost. `known` is asked after the listing, so that what is made meanwhile is not taken for garbage. What
    /// was there before the daemon is not committed while this goes on, and one sweep goes on at a time. Returns the ids of
    /// lost trees.
    pub fn sweep(&self, known: impl FnOnce() -> Result<BTreeMap<u64, Known>>) -> Result<Vec<u64>> {
        let (driver, found) = (self.driver.name(), numbers(self.dir.as_fd())?);
        let live = lock(&self.live).clone();
        let known = known()?;
        let old = |id: &u64| !self.is_new(*id) && !live.contains(id);
        let mut told = 0..TOLD;
        for id in found.iter().filter(|id| old(id) && !known.contains_key(id)) {
            if told.next().is_some() {
                tracing::info!(driver, id, "a directory without a record goes to the trash");
            }
            match self.discard(*id) {
                // Mounts that nobody knows of may be in the way of others.
                Err(error) if self.driver.attaches() => return Err(error),
                Err(error) => tracing::error!(driver, id, %error, "it stays until the next start"),
                Ok(()) => {}
            }
        }
        let mut lost = Vec::new();
        for (id, record) in known.into_iter().filter(|(id, _)| old(id)) {
            let there = found.contains(&id);
            let settled = if there { self.settle(id, record == Known::Content) } else { Ok(()) };
            if let Err(error) = &settled {
                tracing::error!(driver, id, %error, "can't bring a directory into its form");
            }
            if there && settled.is_ok() && self.is_there(id) {
                continue;
            }
            match record {
                Known::Nothing => {}
                Known::Content => lost.push(id),
                Known::Scratch(parent) => {
                    let restored = self.restore(id, parent);
                    // On a full disk, or one that fails, the others start all the same; and this one when there is room.
                    if let Some((error, _)) = restored.err().zip(told.next()) {
                        tracing::error!(driver, id, %error, "an active snapshot has no directory");
                    }
                }
            }
        }
        Ok(lost)
    }

    /// Whether it was made by this daemon.
    pub fn is_new(&self, id: u64) -> bool {
        id >= self.first
    }

    /// Whether a tree is there.
    pub fn is_there(&self, id: u64) -> bool {
        self.tree(id).is_ok()
    }

    /// Makes the directory of an active snapshot again, if it is not there. It may copy the parent's tree.
    pub fn restore(&self, id: u64, parent: Option<u64>) -> Result<()> {
        if self.is_there(id) {
            return Ok(());
        }
        // The sweep and whoever wants to use it may come to it at once.
        let _restoring = lock(&self.restoring);
        if self.is_there(id) {
            return Ok(());
        }
        tracing::info!(driver = self.driver.name(), id, "an active snapshot lost its directory: made again, empty");
        let Err(error) = self.make_at(id, self.driver.scratch(), parent) else { return Ok(()) };
        // A lost parent is reported by itself and must not keep the others from starting.
        tracing::error!(driver = self.driver.name(), id, %error, "can't fill it from its parent");
        if self.is_there(id) { Ok(()) } else { self.make_at(id, self.driver.scratch(), None) }
    }
}
