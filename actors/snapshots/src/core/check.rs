//! The check of every driver's directory.

use std::collections::{BTreeMap, BTreeSet};

use cofferdam_metadata::records::check;
use cofferdam_types::{Authority, Code, Error, Fault, Finding, Findings, Name, Namespace};

use super::{Arc, Area, Core, Metadata, Result, known};
use crate::messages::Check;

impl Core {
    /// See [`Check`].
    pub async fn check(&self, Check(repair): Check) -> Result<Vec<Finding>> {
        self.settled().await;
        let areas: Vec<Arc<Area>> = self.depots.iter().map(|depot| depot.area.clone()).collect();
        let meta = self.meta.clone();
        self.pool.run(move || Ok(compare(&areas, &meta, repair))).await
    }
}

fn compare(areas: &[Arc<Area>], meta: &Metadata, repair: bool) -> Vec<Finding> {
    let mut found = Findings::beside(meta.writable().is_ok());
    let mut left = BTreeSet::new();
    for area in areas {
        let driver = area.driver().name();
        // One driver's directory that can't be looked at keeps nobody from the others'.
        if let Err(error) = compare_one(area, meta, repair, &mut found) {
            found.unchecked(format!("snapshots/{driver}"), &error);
        }
        // Drivers may share the trash.
        match area.left(repair) {
            Ok(those) => left.extend(those),
            Err(error) => found.unchecked(format!("trash/{driver}"), &error),
        }
    }
    for name in left {
        let why = "can't be deleted from the trash: the daemon's log says why";
        found.add(Fault::TrashLeft, format!("trash/{}", name.to_string_lossy()), why, false);
    }
    found.done()
}

fn compare_one(area: &Area, meta: &Metadata, repair: bool, found: &mut Findings) -> Result<()> {
    let driver = area.driver().name();
    let lost = area.check(|| known(&meta.read()?, driver), repair, meta.writable().is_err(), found)?;
    // Before they are dropped: nobody knows the number of a directory.
    let names = if lost.is_empty() { BTreeMap::new() } else { check::snapshots_in(&meta.read()?, driver, &lost)? };
    let stay = if repair { drop_lost(area, meta, &lost, &names) } else { Ok(BTreeMap::new()) };
    for id in lost {
        let stays = match &stay {
            Ok(stay) => stay.get(&id),
            Err(error) => Some(error),
        };
        let then = match stays {
            _ if !repair => {
                "--repair unpacks an image's layer again, and drops another's record if nothing lies on it".to_owned()
            }
            None => "its record was dropped: unpack or make it again".to_owned(),
            Some(error) if error.code == Code::FailedPrecondition => {
                format!("it is in use ({error}): remove what lies on it, the topmost first, and check again")
            }
            Some(error) => format!("its record stays, since {error}"),
        };
        let (place, dropped) = (format!("snapshot/{driver}/{id}"), repair && stays.is_none());
        let whose = whose(names.get(&id).map_or(&[], Vec::as_slice));
        found.add(
            Fault::SnapshotLost,
            &place,
            format!("the tree of a committed snapshot{whose} is gone: {then}"),
            dropped,
        );
        if dropped && let Err(error) = area.discard(id) {
            found.stray(Fault::SnapshotUnrecorded, place, "no snapshot has this directory any more", Some(Err(error)));
        }
    }
    Ok(())
}

/// What it is called, and where: of many names the first ones.
fn whose(names: &[(Namespace, Name)]) -> String {
    const MOST: usize = 3;
    let mut told: Vec<String> = names.iter().take(MOST).map(|(ns, key)| format!("{key} of namespace {ns}")).collect();
    if names.len() > MOST {
        told.push(format!("{} more names", names.len() - MOST));
    }
    if told.is_empty() { String::new() } else { format!(" ({})", told.join(", ")) }
}

/// Drops the records of trees that are gone, those that lie on others first. Says which can't be dropped.
fn drop_lost(
    area: &Area,
    meta: &Metadata,
    lost: &[u64],
    snapshots: &BTreeMap<u64, Vec<(Namespace, Name)>>,
) -> Result<BTreeMap<u64, Error>> {
    let driver = area.driver().name();
    let drop_one = |dir: u64| {
        let those = snapshots.get(&dir).cloned().unwrap_or_default();
        match meta.write_blocking(&Authority::system(), move |tx| check::drop_dir(tx, driver, dir, &those))? {
            true => Ok(()),
            false => Err(Error::data_loss("snapshot", dir, "another refers to it, which is new or can't be read")),
        }
    };
    let mut left: Vec<u64> = lost.iter().rev().copied().collect();
    loop {
        let (before, mut stay) = (left.len(), BTreeMap::new());
        left.retain(|dir| drop_one(*dir).is_err_and(|error| stay.insert(*dir, error).is_none()));
        if left.len() == before {
            return Ok(stay);
        }
    }
}
