//! overlayfs (kernel documentation, filesystems/overlayfs.rst): each tree holds one layer, stacked at mount time.

use std::{fs, os::fd::BorrowedFd};

use cofferdam_types::{Mount, Result};

use super::{Access, Driver, Trees, bind_of, failed, make_dir};

/// Features that a kernel may have on by default and that our trees must never be written or read with:
/// - `index` ties an upper directory to the inodes of one set of lower ones (ESTALE when it is mounted over a copy)
///   and refuses to share a lower tree that is also someone's upper one;
/// - `metacopy` leaves a file's data in a lower layer when only its mode changes, so that a committed tree would be
///   incomplete by itself and a diff of it wrong;
/// - `redirect_dir` turns the renaming of a directory into an extended attribute that names a path of the lower
///   layers: same objection, and a layer must never be able to point anywhere.
const UNWANTED: [&str; 3] = ["index", "metacopy", "redirect_dir"];

/// The default driver.
pub struct Overlay {
    /// `feature=off` for each of [`UNWANTED`] that this kernel has on. Where none is, options are exactly those of
    /// the reference.
    off: Vec<String>,
}

impl Overlay {
    /// A driver for the running kernel.
    pub fn detect() -> Overlay {
        let on = |name: &str| {
            fs::read_to_string(format!("/sys/module/overlay/parameters/{name}"))
                .is_ok_and(|value| matches!(value.trim(), "Y" | "1" | "on"))
        };
        Overlay { off: UNWANTED.iter().filter(|name| on(name)).map(|name| format!("{name}=off")).collect() }
    }
}

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn detached(&self) -> bool {
        true
    }

    fn scratch(&self) -> bool {
        true
    }

    fn make(&self, own: BorrowedFd<'_>, _parent: Option<BorrowedFd<'_>>) -> Result<()> {
        make_dir(own).map_err(failed)
    }

    fn mounts(&self, access: Access, trees: Trees<'_>) -> Vec<Mount> {
        self.stack(access, trees, |id| trees.tree(id))
    }
}

impl Overlay {
    /// The mounts of a snapshot, where the trees of ancestors are what `parent` says.
    pub fn stack(&self, access: Access, trees: Trees<'_>, parent: impl Fn(u64) -> String) -> Vec<Mount> {
        let mut options = match (access, trees.own, trees.parents) {
            (_, _, []) | (Access::Read, None, [_]) | (Access::Write, None, _) => {
                return bind_of(access, trees, parent);
            }
            (Access::Read, _, _) => Vec::new(),
            (Access::Write, Some(own), _) => {
                vec![format!("workdir={}", trees.work(own)), format!("upperdir={}", trees.tree(own))]
            }
        };
        let lower: Vec<String> = trees.parents.iter().map(|id| parent(*id)).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        options.extend(self.off.iter().cloned());
        vec![Mount { kind: "overlay".into(), source: "overlay".into(), options }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(access: Access, own: Option<u64>, parents: &[u64]) -> Vec<Mount> {
        Overlay { off: vec![] }.mounts(access, Trees { base: "/s/overlay", own, parents })
    }

    fn mount(kind: &str, source: &str, options: &[&str]) -> Vec<Mount> {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        vec![Mount { kind: kind.into(), source: source.into(), options }]
    }

    #[test]
    fn the_mount_table_of_the_reference() {
        assert_eq!(mounts(Access::Write, Some(1), &[]), mount("bind", "/s/overlay/1/fs", &["rw", "rbind"]));
        assert_eq!(mounts(Access::Read, Some(1), &[]), mount("bind", "/s/overlay/1/fs", &["ro", "rbind"]));
        assert_eq!(mounts(Access::Read, None, &[7]), mount("bind", "/s/overlay/7/fs", &["ro", "rbind"]));
        assert_eq!(
            mounts(Access::Read, None, &[7, 5]),
            mount("overlay", "overlay", &["lowerdir=/s/overlay/7/fs:/s/overlay/5/fs"])
        );
        assert_eq!(
            mounts(Access::Write, Some(9), &[7, 5]),
            mount(
                "overlay",
                "overlay",
                &["workdir=/s/overlay/9/work", "upperdir=/s/overlay/9/fs", "lowerdir=/s/overlay/7/fs:/s/overlay/5/fs"]
            )
        );
    }

    #[test]
    fn what_the_kernel_has_on_is_turned_off_at_the_end() {
        let driver = Overlay { off: vec!["index=off".into(), "metacopy=off".into()] };
        let mounts = driver.mounts(Access::Write, Trees { base: "/s", own: Some(2), parents: &[1] });
        assert_eq!(
            mounts[0].options,
            ["workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir=/s/1/fs", "index=off", "metacopy=off"]
        );
    }
}
