//! Seccomp: the default profile, and the compiler from a profile to the program that the kernel runs.
//!
//! Own, because no library does it all: libseccomp would be a C library in a static shim, and `seccompiler` knows one
//! action for all listed calls and one architecture per program.

mod bpf;
mod compile;
mod profile;
mod tables;

#[cfg(test)]
mod against;
#[cfg(test)]
mod tests;

pub use compile::{NATIVE, compile, compile_for, flags, unknown};
pub use profile::default_profile;
