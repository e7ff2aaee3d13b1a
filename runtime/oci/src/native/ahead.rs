//! What the next container needs whoever it will be, made before it is asked for.

use std::{os::fd::OwnedFd, sync::Mutex};

use cofferdam_sys::{mount, network};
use cofferdam_types::{Error, Mount, Result};

use super::mounts;
use crate::runtime::locked;

/// Each part goes to the first container that needs it; what isn't there is made in time.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// It is as one that is made now, by the host's defaults of this moment.
    network: Mutex<Option<OwnedFd>>,
    /// File systems that nothing is in yet.
    mounts: Mutex<Vec<(Mount, OwnedFd)>>,
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
        Ok(Ahead { network: Mutex::new(Some(network.into())), mounts: Mutex::new(mounts) })
    }

    pub fn network(&self) -> Option<OwnedFd> {
        locked(&self.network).take()
    }

    /// A new file system, detached.
    pub fn mount(&self, wish: &Mount) -> Result<OwnedFd> {
        let mut mounts = locked(&self.mounts);
        match mounts.iter().position(|(made, _)| made == wish) {
            Some(at) => Ok(mounts.swap_remove(at).1),
            None => mount::detached(wish),
        }
    }

    #[cfg(test)]
    pub fn left(&self) -> (Option<OwnedFd>, usize) {
        let network = locked(&self.network).as_ref().and_then(|fd| fd.try_clone().ok());
        (network, locked(&self.mounts).len())
    }
}
