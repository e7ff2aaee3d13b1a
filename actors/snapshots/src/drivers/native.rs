//! Full copies: works on every filesystem and kernel; shares blocks where the filesystem can (reflinks).

use std::os::fd::{AsFd, BorrowedFd};

use cofferdam_types::{Mount, Result};

use super::{Access, Driver, Trees, bind, failed, make_dir};
use crate::{copy::copy_tree, walk::open_dir};

/// The driver that copies.
pub struct Native;

impl Driver for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn detached(&self) -> bool {
        false
    }

    fn scratch(&self) -> bool {
        false
    }

    fn make(&self, own: BorrowedFd<'_>, parent: Option<BorrowedFd<'_>>) -> Result<()> {
        make_dir(own).map_err(failed)?;
        let Some(parent) = parent else { return Ok(()) };
        copy_tree(parent, open_dir(own, c"fs").map_err(failed)?.as_fd())
    }

    fn mounts(&self, access: Access, trees: Trees<'_>) -> Vec<Mount> {
        bind(access, trees)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn always_one_bind() {
        let source = |access, own, parents: &[u64]| {
            let mounts = Native.mounts(access, Trees { base: "/s", own, parents });
            (mounts[0].source.clone(), mounts[0].options.clone())
        };
        assert_eq!(source(Access::Write, Some(3), &[2, 1]), ("/s/3/fs".into(), vec!["rw".into(), "rbind".into()]));
        assert_eq!(source(Access::Read, None, &[2, 1]), ("/s/2/fs".into(), vec!["ro".into(), "rbind".into()]));
    }
}
