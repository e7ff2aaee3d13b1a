//! Full copies: works on every filesystem and kernel; shares blocks where the filesystem can (reflinks).

use std::os::fd::BorrowedFd;

use cofferdam_types::{Mount, Result};

use super::{Access, Driver, Trees, bind};
use crate::copy::copy_tree;

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

    fn populate(&self, tree: BorrowedFd<'_>, parent: BorrowedFd<'_>) -> Result<()> {
        copy_tree(parent, tree)
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
