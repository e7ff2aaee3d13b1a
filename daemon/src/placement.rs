//! Where each actor runs: the one table.
//!
//! A hop to an idle thread costs 50 to 100 microseconds, one on the same arbiter 1: what never blocks shares an
//! arbiter. What blocks in its mailbox (a commit, the start of a shim) has a thread of its own.

use cofferdam_kernel::Placement;

/// Those that hand all long work to pools of their own.
const KERNEL: Placement = Placement::Shared("kernel");

/// See the module.
pub struct Table {
    pub metadata: Placement,
    pub grants: Placement,
    pub audit: Placement,
    pub events: Placement,
    pub content: Placement,
    pub snapshots: Placement,
    pub diff: Placement,
    pub images: Placement,
    pub networks: Placement,
    pub tasks: Placement,
    pub transfer: Placement,
    pub gc: Placement,
}

/// The placement of this build.
pub const TABLE: Table = Table {
    metadata: Placement::Own,
    grants: KERNEL,
    audit: KERNEL,
    events: KERNEL,
    content: KERNEL,
    snapshots: KERNEL,
    diff: KERNEL,
    images: KERNEL,
    networks: KERNEL,
    tasks: Placement::Own,
    transfer: KERNEL,
    gc: KERNEL,
};
