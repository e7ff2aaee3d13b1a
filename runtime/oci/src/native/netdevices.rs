//! Network devices of the host's that a container gets: moved into its network namespace once that is there.
//!
//! The kernel gives a physical one back to the host when the namespace ends, and takes a virtual one away with it.

use std::{collections::BTreeSet, fs::File, io};

use cofferdam_sys::netdev::Place;
use cofferdam_types::{Error, Result};
use oci_spec::runtime::{Linux, LinuxNamespaceType};

const FIELD: &str = "linux.netDevices";

/// The names on the host with those in the container, in order.
fn wishes(linux: &Linux) -> Vec<(&str, &str)> {
    let devices = linux.net_devices().iter().flatten();
    let mut all: Vec<_> = devices
        .map(|(name, device)| (name.as_str(), device.name().as_deref().filter(|new| !new.is_empty()).unwrap_or(name)))
        .collect();
    all.sort_unstable();
    all
}

/// Whether there are any.
pub(super) fn any(linux: &Linux) -> bool {
    linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())
}

/// Refuses what makes no sense.
pub(super) fn check(linux: &Linux) -> Result<()> {
    let mut taken = BTreeSet::new();
    for (name, new) in wishes(linux) {
        for name in [name, new] {
            // What the kernel takes, but for patterns from which it makes a name itself.
            let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
            if name.is_empty() || name.len() > 15 || matches!(name, "." | "..") || name.contains(bad) {
                return Err(Error::invalid("spec", FIELD, format!("have {name:?}, which is no name of a device")));
            }
        }
        if !taken.insert(new) {
            return Err(Error::invalid("spec", FIELD, format!("give two devices the name {new}")));
        }
    }
    let own = linux.namespaces().iter().flatten().any(|n| n.typ() == LinuxNamespaceType::Network);
    if any(linux) && !own {
        let why = "need a network namespace to be moved into: add one to linux.namespaces";
        return Err(Error::invalid("spec", FIELD, why));
    }
    Ok(())
}

/// Devices that a container has, for as long as it might not come about.
#[derive(Debug)]
pub(super) struct Given {
    here: Place,
    there: Place,
    moved: Vec<Moved>,
}

#[derive(Debug)]
struct Moved {
    name: String,
    new: String,
    up: bool,
}

/// Moves the devices into the network namespace of a process: all of them, or on an error none.
pub(super) fn give(linux: &Linux, pid: i32) -> Result<Given> {
    let fail = |what: &'static str| move |e: io::Error| Error::io("spec", FIELD, what, &e);
    let here = Place::own().map_err(fail("opening the host's network namespace"))?;
    let there = File::open(format!("/proc/{pid}/ns/net")).and_then(Place::of);
    let there = there.map_err(fail("opening the container's network namespace"))?;
    if here.is(&there).map_err(fail("comparing network namespaces"))? {
        return Err(Error::invalid("spec", FIELD, "need a network namespace that is not the host's"));
    }
    let mut given = Given { here, there, moved: Vec::new() };
    for (name, new) in wishes(linux) {
        if let Err(error) = given.one(name, new) {
            given.take_back();
            return Err(error);
        }
    }
    Ok(given)
}

impl Given {
    fn one(&mut self, name: &str, new: &str) -> Result<()> {
        let found = self.here.find(name).map_err(|e| match e.raw_os_error() {
            Some(libc::ENODEV) => Error::not_found("network device", name, "is not in the host's network namespace"),
            _ => Error::io("network device", name, "looking for it", &e),
        })?;
        let moved = Moved { name: name.to_owned(), new: new.to_owned(), up: found.up };
        let given = self.here.give(name, &self.there, new, true);
        if given.is_ok() || self.here.find(name).is_err() {
            self.moved.push(moved);
        }
        given.map_err(|e| match e.raw_os_error() {
            Some(libc::EEXIST) => {
                let why = format!("can't be {new} in the container, where there is one of that name");
                Error::already_exists("network device", name, why)
            }
            _ => Error::io("network device", name, "moving it into the container", &e),
        })
    }

    /// The container came to nothing: the host has them again as they were.
    pub fn take_back(self) {
        for Moved { name, new, up } in self.moved.iter().rev() {
            if let Err(error) = self.there.give(new, &self.here, name, *up) {
                tracing::error!(device = %name, %error, "did not come back from a container that could not be made");
            }
        }
    }
}
