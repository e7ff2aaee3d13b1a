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
use cofferdam_types::{Error, Id, Namespace, Result, Timestamp};

use super::names;

/// Its directory in the root.
pub const NAME: &str = "aside";

/// Moves trees of snapshots and logs of containers that no record names. Says how many.
pub fn put(view: &View, root: &Path) -> Result<u64> {
    let mut moved = 0;
    let mut take = |from: &Path, to: &Path| -> Result<()> {
        let fault = |e: std::io::Error| Error::io("directory", from.display(), "putting it aside", &e);
        DirBuilder::new().recursive(true).mode(0o700).create(to.parent().unwrap_or(to)).map_err(fault)?;
        fs::rename(from, to).map_err(fault)?;
        moved += 1;
        Ok(())
    };
    let (trees, logs) = (root.join("snapshots"), root.join("logs"));
    // Numbers and ids are given again: what another rebuilding put there may have the same.
    let to = root.join(NAME).join(Timestamp::now().0.to_string());
    for driver in names(&trees) {
        let known = snapshots::dirs(view, &driver)?;
        for number in names(&trees.join(&driver)) {
            let from = trees.join(&driver).join(&number);
            if number.parse().is_ok_and(|number| !known.contains(&number)) && !was_made_ahead(&from) {
                take(&from, &to.join("snapshots").join(&driver).join(&number))?;
            }
        }
    }
    for namespace in names(&logs) {
        for id in names(&logs.join(&namespace)) {
            let (Ok(ns), Ok(container)) = (Namespace::new(&*namespace), Id::new(&*id)) else { continue };
            if !containers::exists(view, &ns, &container)? {
                take(&logs.join(&namespace).join(&id), &to.join("logs").join(&namespace).join(&id))?;
            }
        }
    }
    Ok(moved)
}

/// Whether nothing was ever put into a directory: a tree that is there and empty, and no image of one. What can't be read
/// is not taken for that.
fn was_made_ahead(dir: &Path) -> bool {
    let is_empty = |path: &Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    let has = |name: &str| fs::symlink_metadata(dir.join(name)).is_ok();
    is_empty(dir) || is_empty(&dir.join("fs")) && !has("image") && !has("image.new")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_empty_was_made_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(was_made_ahead(dir.path()));
        fs::create_dir_all(at("fs")).unwrap();
        fs::create_dir_all(at("work")).unwrap();
        assert!(was_made_ahead(dir.path()));
        fs::write(at("fs/note"), "").unwrap();
        assert!(!was_made_ahead(dir.path()));
        fs::remove_file(at("fs/note")).unwrap();
        // A tree of the erofs driver that was committed.
        fs::write(at("image"), "").unwrap();
        assert!(!was_made_ahead(dir.path()));
        fs::remove_dir(at("fs")).unwrap();
        assert!(!was_made_ahead(dir.path()));
        fs::remove_file(at("image")).unwrap();
        assert!(!was_made_ahead(dir.path()), "what is in the place of its tree is not known");
    }
}
