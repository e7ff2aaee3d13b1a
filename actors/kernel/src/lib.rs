//! Slots, supervision, health, ordered start and stop.
//!
//! The kernel hosts actors and knows none of them by name. It owns the threads they run on (arbiters), starts them in
//! the order in which they were spawned, watches them by heartbeat, starts them again after a crash, and stops them in
//! reverse. It never owns a subsystem's state: an actor's start reads what is on disk, so the start after a crash and
//! the ordinary start are the same code.
//!
//! - [`Slot`]: the handle that callers hold; valid across restarts, bounded, and never waits for a dead actor.
//! - [`Kernel`]: where slots are made, and what is told about them.
//! - [`Pool`]: bounded worker threads for what must not run in a mailbox's thread.
//!
//! What a caller sees when an actor crashes while it works: `unavailable`, with the text of the panic. A handler that
//! hangs cannot be killed (it is a thread): its slot is declared down, the thread is abandoned and counted, and the
//! actor starts anew on another.
//!
//! actix's own `Supervisor` does not survive a panic and its `SyncArbiter` loses a thread to each; neither is used.

mod backoff;
mod fair;
mod host;
mod kernel;
mod panics;
mod pool;
mod slot;
mod supervise;
#[cfg(test)]
mod tests;

pub use fair::Fair;
pub use futures::executor::block_on;
pub use host::Placement;
pub use kernel::{Kernel, SlotConfig, SlotStatus};
pub use panics::{install_panic_hook, panic_text};
pub use pool::Pool;
pub use slot::{Health, Hosted, Slot, Work};
