//! What was handed out of a namespace, what it leaves of what its giver has, and how it is taken back.
//!
//! Grants owns the table of grants, and in memory the tree of those that are live. It never looks at a call: the RPC layer
//! asks a grant's [`Live`] at each, which is one atomic load however deep the grant lies, and checks its caveats.
//!
//! - **A grant is its path.** What it reaches is what all grants on the path leave ([`cofferdam_types::Caveats::and`]): that is worked out
//!   when it becomes live, from the rows, so that no row can say more than the one above it. One whose parent has no row is
//!   not live.
//! - **Revoking** marks the grant and all that come from it, and so ends the calls that are under way through them, before the commit
//!   that removes their rows; the answer comes after that. A daemon that dies between the two has not answered, and the grant is there again.
//! - **The end of its time** is a revocation that nobody asked for.
//! - **A token** has 256 random bits. The row has its digest; the token stands in one answer and nowhere else.
//! - **A connection** that gets a grant has a [`Live`] of its own below it, which ends with either.
//!
//! The tree outlives a crash of the actor: what is held by connections can't be made anew. The actor is there for what must
//! be finished when its client has gone, and for time.

mod actor;
mod calls;
mod core;
mod handle;
mod live;
pub mod messages;
#[cfg(test)]
mod tests;
mod token;
mod tree;

pub use calls::{Calls, UnderWay};
pub use handle::Grants;
pub use live::{End, Live};
pub use messages::NewGrant;
pub use token::Token;
pub use tree::Node;
