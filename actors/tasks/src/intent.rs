//! What is about to be made for a task, noted in its bundle before anything is: until the task is on record nobody else would
//! know whose it is. What goes by namespace and id, as all that is ours does, needs no note.

use std::path::{Path, PathBuf};

use cofferdam_sys::cgroup::Cgroup;
use cofferdam_types::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;

const NAME: &str = "intent";

/// See the module.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Intent {
    /// Its cgroup.
    pub cgroup: Option<String>,
    /// What a runtime keeps of it where a client said.
    pub kept: Option<PathBuf>,
    /// The shim of others that makes it.
    pub shim: Option<String>,
}

impl Intent {
    /// Of a task that gets this cgroup, of which a runtime keeps this, and which this shim makes, if others have that as
    /// well. What is there already is not made, and is somebody's.
    pub fn of(layout: &Layout, cgroup: &str, kept: &Path, shim: Option<String>) -> Result<Intent> {
        let there = |cgroup: &str| Cgroup::exists(layout.host()?, cgroup);
        let cgroup = if layout.is_ours(cgroup) || there(cgroup)? { None } else { Some(cgroup.to_owned()) };
        let named = !kept.starts_with(layout.runc()) && !kept.exists();
        Ok(Intent { cgroup, kept: named.then(|| kept.to_owned()), shim })
    }

    /// Writes it down, if there is anything to say.
    pub fn note(&self, bundle: &Path) -> Result<()> {
        if *self == Intent::default() {
            return Ok(());
        }
        let fail = |e: std::io::Error| Error::io("bundle", bundle.display(), "its intent can't be noted", &e);
        std::fs::write(bundle.join(NAME), serde_json::to_vec(self).map_err(|e| fail(e.into()))?).map_err(fail)
    }

    /// What was noted. With half a note nothing was made yet.
    pub fn read(bundle: &Path) -> Intent {
        std::fs::read(bundle.join(NAME)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_ours_and_not_there_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path(), dir.path(), "test").unwrap();
        let bundle = dir.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        let noted = |cgroup: &str, kept: &Path, shim: Option<&str>| {
            let _ = std::fs::remove_file(bundle.join(NAME));
            Intent::of(&layout, cgroup, kept, shim.map(str::to_owned)).unwrap().note(&bundle).unwrap();
            Intent::read(&bundle)
        };
        let ours = layout.runc().join("shop/box");
        assert_eq!(noted("/cofferdam/test/shop/box", &ours, None), Intent::default());
        assert!(!bundle.join(NAME).exists(), "the ordinary one costs no file");
        // What is there.
        let path = format!("/there-{}", std::process::id());
        let there = Cgroup::create(layout.host().unwrap(), &path).unwrap();
        assert_eq!(noted(&path, dir.path(), None), Intent::default());
        there.remove().unwrap();
        let (cgroup, kept) = (format!("/nobody-{}", std::process::id()), dir.path().join("root/shop/box"));
        let all = Intent { cgroup: Some(cgroup.clone()), kept: Some(kept.clone()), shim: Some("1234".into()) };
        assert_eq!(noted(&cgroup, &kept, Some("1234")), all);
        std::fs::write(bundle.join(NAME), "{\"cgroup\": \"/some").unwrap();
        assert_eq!(Intent::read(&bundle), Intent::default());
    }
}
