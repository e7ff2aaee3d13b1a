//! The plain words of the domain.
//!
//! Every other crate speaks in these types: what a [`Digest`] is, what makes an [`Id`] valid, how an [`Error`] is
//! written on the wire, what [`Authority`] a message carries. There is no Cap'n Proto here, no actor and no system
//! call: a word is parsed once, at the edge, and is valid from then on.

mod authority;
mod caveats;
mod descriptor;
mod digest;
mod error;
mod event;
pub mod filter;
mod finding;
mod halfway;
mod instruction;
mod limits;
pub mod media;
mod names;
mod peer;
mod platform;
mod rights;
mod size;
mod spec;
mod time;

pub use authority::{Authority, Ceiling, GrantId, Keeper};
pub use caveats::{CHOOSABLE, Caveats, Facet, Nets, Pictures, Quota, Subject, Which};
pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, Digester};
pub use error::{COMES_BACK, Code, Error, Result};
pub use event::Event;
pub use filter::Filter;
pub use finding::{Fault, Finding, Findings};
pub use instruction::{Instruction, instructions};
pub use limits::{Limits, USUAL};
pub use names::{Id, Labels, MAX_LABEL, Name, Namespace, validate_labels};
pub use peer::Peer;
pub use platform::Platform;
pub use rights::{Right, Rights};
pub use size::show_size;
pub use spec::{Any, Mount};
pub use time::Timestamp;
