//! What the next container needs whoever it will be, made before it is asked for.

use std::{cell::RefCell, os::fd::OwnedFd};

use cofferdam_sys::{mount, network};
use cofferdam_types::{Error, Mount, Result};

use super::mounts;

/// Each part goes to the first container that needs it; what isn't there is made in time.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// It is as one that is made now, by the host's defaults of this moment.
    network: RefCell<Option<OwnedFd>>,
    /// File systems that nothing is in yet.
    mounts: RefCell<Vec<(Mount, OwnedFd)>>,
}

impl Ahead {
    /// Makes them for a container that has what every container has, and a network namespace of its own.
    pub fn make() -> Result<Ahead> {
        let fail = |e: std::io::Error| Error::io("namespace", "network", "making one ahead", &e);
        let network = network::fresh_beside().map_err(fail)?;
        let made = mounts::empty()?.into_iter().map(|wish| {
            let made = mount::detached(&wish)?;
            Ok((wish, made))
        });
        let mounts = made.collect::<Result<Vec<_>>>()?;
        Ok(Ahead { network: RefCell::new(Some(network.into())), mounts: RefCell::new(mounts) })
    }

    pub fn network(&self) -> Option<OwnedFd> {
        self.network.take()
    }

    /// A new file system, detached.
    pub fn mount(&self, wish: &Mount) -> Result<OwnedFd> {
        let mut mounts = self.mounts.borrow_mut();
        match mounts.iter().position(|(made, _)| made == wish) {
            Some(at) => Ok(mounts.swap_remove(at).1),
            None => mount::detached(wish),
        }
    }

    #[cfg(test)]
    pub fn left(&self) -> (Option<OwnedFd>, usize) {
        let network = self.network.borrow().as_ref().and_then(|fd| fd.try_clone().ok());
        (network, self.mounts.borrow().len())
    }
}
