//! Which files of a tree must be in its layer although each of their names is as it was: those that share an inode with
//! other names than before. A tar can only say that of a name by naming all of them.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
};

use cofferdam_types::Result;
use nix::sys::stat::SFlag;

use crate::{
    create::{enter, fault, find, is_whiteout, kind, same, too_deep},
    pack::{MAX_DEPTH, Word, names},
};

/// Of a name of a file that has others, in one tree or the other: the inode in the lower tree, and how many names that
/// has, where the name was the same there.
type Below = Option<(u64, u64)>;

/// The inodes of the upper tree that are to be named anew. `overlay`: it only has what is not in the lower one.
pub fn changed(lower: Option<&OwnedFd>, upper: &OwnedFd, overlay: bool, word: Word<'_>) -> Result<HashSet<u64>> {
    let mut groups: HashMap<u64, Vec<Below>> = HashMap::new();
    if lower.is_none() {
        return Ok(HashSet::new());
    }
    walk(lower, upper, Path::new(""), overlay, word, &mut groups)?;
    let mut left: HashMap<u64, usize> = HashMap::new();
    for (inode, _) in groups.values().flatten().flatten() {
        *left.entry(*inode).or_default() += 1;
    }
    let changed = |group: &Vec<Below>| {
        let Some((inode, links)) = group.first().copied().flatten() else { return true };
        let together = group.iter().all(|name| name.is_some_and(|(other, _)| other == inode));
        // What shines through an overlay isn't seen here: its names are counted by the lower inode.
        let all = if overlay { links == group.len() as u64 } else { left.get(&inode) == Some(&group.len()) };
        !together || !all
    };
    Ok(groups.into_iter().filter(|(_, group)| changed(group)).map(|(inode, _)| inode).collect())
}

/// What is in a directory, and below it. One that isn't there in the lower tree has only names that are new; but they may be
/// links to others.
fn walk(
    lower: Option<&OwnedFd>,
    upper: &OwnedFd,
    path: &Path,
    overlay: bool,
    word: Word<'_>,
    groups: &mut HashMap<u64, Vec<Below>>,
) -> Result<()> {
    word()?;
    if path.components().count() > MAX_DEPTH {
        return Err(too_deep(path));
    }
    for name in names(upper).map_err(fault(path))? {
        let name = PathBuf::from(OsString::from_vec(name));
        let path = path.join(&name);
        let Some((handle, new)) = find(Some(upper), &name, &path)? else { continue };
        let old = find(lower, &name, &path)?.filter(|(_, old)| kind(old) == kind(&new));
        if kind(&new) == SFlag::S_IFDIR {
            let below = old.map(|(old, _)| enter(&old, &path)).transpose()?;
            walk(below.as_ref(), &enter(&handle, &path)?, &path, overlay, word, groups)?;
            continue;
        }
        let several = new.st_nlink > 1 || old.as_ref().is_some_and(|(_, old)| old.st_nlink > 1);
        if !several || (overlay && is_whiteout(&new)) {
            continue;
        }
        let below = match &old {
            Some((old, was)) if same(old, was, &handle, &new, &path)? => Some((was.st_ino, was.st_nlink)),
            _ => None,
        };
        groups.entry(new.st_ino).or_default().push(below);
    }
    Ok(())
}
