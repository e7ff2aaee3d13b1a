//! What no record names any more goes where no start sweeps it: what a container wrote may be in it.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use cofferdam_metadata::{
    View,
    records::{containers, snapshots},
};
use cofferdam_types::{Error, Id, Namespace, Result};

use super::names;

/// Its directory in the root.
pub const NAME: &str = "aside";

/// Moves trees of snapshots and logs of containers that no record names. Says how many.
pub fn put(view: &View, root: &Path) -> Result<u64> {
    let mut moved = 0;
    let mut take = |from: &Path, to: &Path| {
        let fault = |e: std::io::Error| Error::io("directory", from.display(), "putting it aside", &e);
        DirBuilder::new().recursive(true).mode(0o700).create(to.parent().unwrap_or(to)).map_err(fault)?;
        fs::rename(from, to).map_err(fault)?;
        moved += 1;
        Ok(())
    };
    let (trees, logs) = (root.join("snapshots"), root.join("logs"));
    let to = root.join(NAME);
    for driver in names(&trees) {
        let known = snapshots::dirs(view, &driver)?;
        for number in names(&trees.join(&driver)) {
            let from = trees.join(&driver).join(&number);
            // One that was made ahead is empty.
            if number.parse().is_ok_and(|number| !known.contains(&number)) && !names(&from.join("fs")).is_empty() {
                take(&from, &to.join("snapshots").join(&driver).join(&number))?;
            }
        }
    }
    for namespace in names(&logs) {
        for id in names(&logs.join(&namespace)) {
            let (Ok(ns), Ok(container)) = (Namespace::new(&*namespace), Id::new(&*id)) else { continue };
            if containers::find(view, &ns, &container)?.is_none() {
                take(&logs.join(&namespace).join(&id), &to.join("logs").join(&namespace).join(&id))?;
            }
        }
    }
    Ok(moved)
}
