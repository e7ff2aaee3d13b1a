//! The contract with clients and shims, as code.
//!
//! `capnp/*.capnp` is the manual of the API; this crate holds what the compiler makes of it, the conversions between
//! its structs and the domain's words ([`convert`]), the form of errors ([`error`]), the stream that carries file
//! descriptors in band ([`fdstream`]) and the set-up of a connection ([`connect`]). `frozen.txt` lists every id,
//! ordinal and type that was ever published: a test allows additions only.

pub mod buffered;
pub mod connect;
pub mod convert;
pub mod error;
pub mod fdstream;
pub mod life;
pub mod needs;
pub mod received;

/// The version of the API that [`gate_capnp::gate`]'s `hello` speaks.
pub const API_VERSION: u32 = 1;
/// The version of the shim protocol.
pub const SHIM_VERSION: u32 = 1;

macro_rules! generated {
    ($($name:ident),*) => {$(
        #[allow(
            missing_docs,
            unused_qualifications,
            clippy::all,
            clippy::pedantic,
            clippy::unwrap_used,
            clippy::todo,
            clippy::unimplemented,
            rustdoc::all
        )]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
        }
    )*};
}

generated!(
    common_capnp,
    audit_capnp,
    gate_capnp,
    namespace_capnp,
    grant_capnp,
    job_capnp,
    image_capnp,
    content_capnp,
    snapshot_capnp,
    event_capnp,
    lease_capnp,
    gc_capnp,
    credential_capnp,
    container_capnp,
    metrics_capnp,
    system_capnp,
    shim_capnp
);
