//! What each method needs, made from the schema's `$needs` when this crate is built.

use cofferdam_types::Right;

/// A method as an object has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// The interface of the object.
    pub own: u64,
    /// The interface that declares the method: that one, or one that it extends.
    pub interface: u64,
    /// The ordinal there.
    pub method: u16,
    /// The object's interface and the method.
    pub name: &'static str,
    /// What it needs.
    pub needs: Right,
}

include!(concat!(env!("OUT_DIR"), "/needs.rs"));

/// What a method needs; none where there is no such method.
pub fn needs(interface: u64, method: u16) -> Option<Right> {
    rights(interface).get(usize::from(method)).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use capnp::traits::HasTypeId as _;

    use super::*;
    use crate::{container_capnp, gate_capnp, shim_capnp};

    #[test]
    fn the_table_is_what_the_schema_says() {
        let root = gate_capnp::root::Client::TYPE_ID;
        assert_eq!(needs(root, 0), Some(Right::Root));
        let container = container_capnp::container::Client::TYPE_ID;
        assert_eq!((needs(container, 0), needs(container, 1)), (Some(Right::Read), Some(Right::Run)));
        assert_eq!((needs(container, 999), needs(7, 0)), (None, None));
        assert_eq!(needs(shim_capnp::shim::Client::TYPE_ID, 0), None, "a shim is no affair of clients");
        for method in METHODS {
            assert_eq!(needs(method.interface, method.method), Some(method.needs), "{}", method.name);
        }
        // A task is a process and more.
        let task = container_capnp::task::Client::TYPE_ID;
        let of_task: BTreeSet<_> = METHODS.iter().filter(|m| m.own == task).map(|m| m.name).collect();
        assert!(of_task.contains("Task.exec") && of_task.contains("Task.kill"), "{of_task:?}");
        let names: BTreeSet<_> = METHODS.iter().map(|method| method.name).collect();
        assert_eq!(names.len(), METHODS.len());
    }
}
