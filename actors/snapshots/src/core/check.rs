//! The check of every driver's directory.

use std::collections::BTreeSet;

use cofferdam_metadata::records::check;
use cofferdam_types::{Authority, Fault, Finding, Findings};

use super::{Arc, Area, Core, Metadata, Result, known};
use crate::messages::Check;

impl Core {
    /// See [`Check`].
    pub async fn check(&self, Check(repair): Check) -> Result<Vec<Finding>> {
        self.settled().await;
        let areas: Vec<Arc<Area>> = self.depots.iter().map(|depot| depot.area.clone()).collect();
        let meta = self.meta.clone();
        self.pool.run(move || compare(&areas, &meta, repair)).await
    }
}

fn compare(areas: &[Arc<Area>], meta: &Metadata, repair: bool) -> Result<Vec<Finding>> {
    let mut found = Findings::default();
    let mut left = BTreeSet::new();
    for area in areas {
        let driver = area.driver().name();
        let lost = area.check(|| known(&meta.read()?, driver), repair, &mut found)?;
        let gone = if repair { drop_lost(area, meta, &lost)? } else { BTreeSet::new() };
        for id in lost {
            let dropped = gone.contains(&id);
            let what = match (dropped, repair) {
                (true, _) => {
                    "the tree of a committed snapshot is gone, and its record was dropped: unpack or make it again"
                }
                (false, false) => {
                    "the tree of a committed snapshot is gone: --repair unpacks an image's layer again, and drops another's \
                     record if nothing lies on it"
                }
                (false, true) => {
                    "the tree of a committed snapshot is gone, and others lie on it: remove them, and check again"
                }
            };
            found.add(Fault::SnapshotLost, format!("snapshot/{driver}/{id}"), what, dropped);
        }
        // Drivers may share the trash.
        left.extend(area.left(repair)?);
    }
    for name in left {
        let why = "can't be deleted from the trash: the daemon's log says why";
        found.add(Fault::TrashLeft, format!("trash/{}", name.to_string_lossy()), why, false);
    }
    Ok(found.done())
}

/// Drops the records of trees that are gone, those that lie on others first.
fn drop_lost(area: &Area, meta: &Metadata, lost: &[u64]) -> Result<BTreeSet<u64>> {
    let driver = area.driver().name();
    let mut gone = BTreeSet::new();
    loop {
        let before = gone.len();
        for id in lost.iter().rev() {
            if gone.contains(id) {
                continue;
            }
            let dir = *id;
            match meta.write_blocking(&Authority::system(), move |tx| check::drop_dir(tx, driver, dir)) {
                Ok(()) => {
                    area.discard(dir)?;
                    gone.insert(dir);
                }
                Err(error) if error.code == cofferdam_types::Code::FailedPrecondition => {}
                Err(error) => return Err(error),
            }
        }
        if gone.len() == before {
            return Ok(gone);
        }
    }
}
