//! What each method needs, and what a call of it leaves in the audit log, made from the schema's `$needs` and `$audit` when
//! this crate is built.

use std::sync::LazyLock;

use cofferdam_types::Right;

/// What a call leaves in the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trail {
    /// Nothing, unless it is refused.
    None,
    /// A record, on disk soon.
    Use,
    /// A record, on disk before the answer: it gives authority, and is refused where it can't be recorded.
    Give,
    /// A record, on disk before the answer: it takes authority back, and is done all the same.
    Take,
}

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
    /// What a call of it leaves.
    pub leaves: Trail,
}

include!(concat!(env!("OUT_DIR"), "/needs.rs"));
include!(concat!(env!("OUT_DIR"), "/shapes.rs"));

/// What a method takes and gives, for who calls it without knowing it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The interface that declares the method.
    pub interface: u64,
    /// The ordinal there.
    pub method: u16,
    /// Words of data in its parameters.
    pub data: u16,
    /// Pointers in its parameters.
    pub pointers: u16,
    /// Those of them that are texts.
    pub texts: &'static [u32],
    /// The objects that it gives: where they stand in its results, and their interfaces.
    pub gives: &'static [(u32, u64)],
}

/// What a method takes and gives; none where there is no such method.
pub fn shape(interface: u64, method: u16) -> Option<&'static Shape> {
    SHAPES.iter().find(|shape| (shape.interface, shape.method) == (interface, method))
}

/// The objects that a method gives, as [`Shape::gives`] says. Asked at every call.
pub fn gives(interface: u64, method: u16) -> &'static [(u32, u64)] {
    static GIVING: LazyLock<Vec<&'static Shape>> = LazyLock::new(|| {
        let mut giving: Vec<_> = SHAPES.iter().filter(|shape| !shape.gives.is_empty()).collect();
        giving.sort_by_key(|shape| (shape.interface, shape.method));
        giving
    });
    let found = GIVING.binary_search_by_key(&(interface, method), |shape| (shape.interface, shape.method));
    found.map_or(&[], |at| GIVING[at].gives)
}

/// What a method needs; none where there is no such method.
pub fn needs(interface: u64, method: u16) -> Option<Right> {
    rights(interface).get(usize::from(method)).copied()
}

/// What a call of a method leaves.
pub fn leaves(interface: u64, method: u16) -> Trail {
    trails(interface).get(usize::from(method)).copied().unwrap_or(Trail::None)
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
            assert!(shape(method.interface, method.method).is_some(), "{}", method.name);
            assert_eq!(leaves(method.interface, method.method), method.leaves, "{}", method.name);
        }
        // A task is a process and more.
        let task = container_capnp::task::Client::TYPE_ID;
        let of_task: BTreeSet<_> = METHODS.iter().filter(|m| m.own == task).map(|m| m.name).collect();
        assert!(of_task.contains("Task.exec") && of_task.contains("Task.kill"), "{of_task:?}");
        let shape = shape(root, 0).unwrap();
        assert_eq!(shape.gives, [(0, gate_capnp::namespaces::Client::TYPE_ID)]);
        let names: BTreeSet<_> = METHODS.iter().map(|method| method.name).collect();
        assert_eq!(names.len(), METHODS.len());
    }

    // What gives authority or runs code is on record, whoever comes to change the schema.
    #[test]
    fn authority_and_code_leave_a_trail() {
        let trail = |name: &str| METHODS.iter().find(|method| method.name == name).map(|method| method.leaves);
        for (leaves, names) in [
            (Trail::Give, &["Gate.restore", "Grants.create", "Grant.save", "Grant.export"][..]),
            (Trail::Take, &["Grant.revoke", "Grant.unexport"]),
            (
                Trail::Use,
                &[
                    "Gate.enter",
                    "Containers.create",
                    "Containers.createFromSpec",
                    "Container.createTask",
                    "Task.start",
                    "Task.exec",
                    "Process.start",
                    "Task.kill",
                    "Task.attach",
                    "Task.stdin",
                    "System.crash",
                ],
            ),
        ] {
            for name in names {
                assert_eq!(trail(name), Some(leaves), "{name}");
            }
        }
        for method in METHODS {
            let looks = method.needs == Right::Read;
            assert!(!looks || method.leaves == Trail::None, "{} only looks", method.name);
            // What touches the host, or runs code, but for these, which feed or end what was recorded.
            let feeds = ["resize", "closeStdin", "delete"].iter().any(|end| method.name.ends_with(end));
            let strong = matches!(method.needs, Right::Host | Right::Run);
            assert!(!strong || feeds || method.leaves != Trail::None, "{} leaves nothing", method.name);
        }
    }
}
