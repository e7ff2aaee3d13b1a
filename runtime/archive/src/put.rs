//! Files that are put into a tree that is used, rather than a layer of one.

use std::{ffi::OsString, os::unix::ffi::OsStrExt as _, path::PathBuf};

use cofferdam_sys::userns::IdMaps;
use cofferdam_types::Result;

use crate::{
    header::refused,
    reader::{Entry, Type},
    tree::{clean, join},
};

/// Where an archive's files go, and to whom. What would mark a deletion in a layer is a file like any other, and what is a
/// directory stays one: no entry takes its place, nor does a directory take the place of anything else.
#[derive(Clone, Debug, Default)]
pub struct Put {
    /// The directory, from the root. Links of the tree on the way are followed within it.
    pub at: PathBuf,
    /// In place of the first name of each path.
    pub name: Option<OsString>,
    /// Owner and group of all, in place of those that the archive says.
    pub owner: Option<(u32, u32)>,
    /// The tree is seen from outside of this user namespace, and the archive's ids are those inside.
    pub ids: Option<IdMaps>,
}

impl Put {
    /// The entry as it is to be made; `None` for the directory itself, which is there.
    pub(crate) fn entry(&self, mut entry: Entry) -> Result<Option<Entry>> {
        let Some(path) = self.place(&clean(&entry.path)) else { return Ok(None) };
        entry.path = path;
        if matches!(entry.kind, Type::Link) {
            // To the directory itself: a hard link that is refused as such.
            entry.link = self.place(&clean(&entry.link)).unwrap_or_default();
        }
        if let Some((uid, gid)) = self.owner {
            (entry.uid, entry.gid) = (uid, gid);
        }
        if let Some(ids) = &self.ids {
            let Some(owner) = ids.outer(entry.uid, entry.gid) else {
                let why = format!("is of {}:{}, whom its user namespace doesn't have", entry.uid, entry.gid);
                return Err(refused(&entry.path, why));
            };
            (entry.uid, entry.gid) = owner;
            for (key, value) in &mut entry.xattrs {
                if key == b"security.capability" {
                    *value = ids.capability_outside(value);
                }
            }
        }
        Ok(Some(entry))
    }

    /// The path in the tree of a path in the archive.
    pub(crate) fn place(&self, path: &[u8]) -> Option<Vec<u8>> {
        if path.is_empty() {
            return None;
        }
        let at = clean(self.at.as_os_str().as_bytes());
        let Some(name) = &self.name else { return Some(join(&at, path)) };
        let rest = path.iter().position(|byte| *byte == b'/').map_or(&b""[..], |slash| &path[slash..]);
        Some([join(&at, name.as_bytes()), rest.to_vec()].concat())
    }
}

/// Says that what is there stays.
pub(crate) fn stays<T>(path: &[u8], directory: bool) -> Result<T> {
    Err(refused(
        path,
        match directory {
            true => "is a directory: nothing but a directory can be put there",
            false => "is no directory: a directory can't be put there",
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_is_replaced_and_no_path_leads_above() {
        let placed = |at: &str, name: Option<&str>, path: &str| {
            let put = Put { at: at.into(), name: name.map(OsString::from), ..Put::default() };
            put.place(&clean(path.as_bytes())).map(|path| String::from_utf8(path).unwrap())
        };
        for (at, name, path, place) in [
            ("", None, "a/b", Some("a/b")),
            ("d/e", None, "./a", Some("d/e/a")),
            ("d", Some("x"), "a/b/c", Some("d/x/b/c")),
            ("d", Some("x"), "a", Some("d/x")),
            ("", Some("x"), "a/", Some("x")),
            ("d", None, "../../a", Some("d/a")),
            ("d", Some("x"), "a/../../b", Some("d/x")),
            ("d", None, "./", None),
            ("d", Some("x"), "..", None),
        ] {
            assert_eq!(placed(at, name, path).as_deref(), place, "{at} {name:?} {path}");
        }
    }
}
