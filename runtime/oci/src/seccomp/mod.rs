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

pub use compile::{NATIVE, compile, compile_for, flags, lets_start, unknown};
use libc::sock_filter;
pub use profile::default_profile;

const INSTRUCTION: usize = size_of::<sock_filter>();

/// A program as it lies in memory, for another process of the same host.
pub fn to_bytes(program: &[sock_filter]) -> Vec<u8> {
    let bytes = |i: &sock_filter| {
        let [c0, c1] = i.code.to_ne_bytes();
        let [k0, k1, k2, k3] = i.k.to_ne_bytes();
        [c0, c1, i.jt, i.jf, k0, k1, k2, k3]
    };
    program.iter().flat_map(bytes).collect()
}

/// The program that [`to_bytes`] was given; what is no whole instruction is left out, and the kernel refuses what makes no
/// sense.
pub fn from_bytes(bytes: &[u8]) -> Vec<sock_filter> {
    let (instructions, _) = bytes.as_chunks::<INSTRUCTION>();
    let read = |&[c0, c1, jt, jf, k0, k1, k2, k3]: &[u8; INSTRUCTION]| sock_filter {
        code: u16::from_ne_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_ne_bytes([k0, k1, k2, k3]),
    };
    instructions.iter().map(read).collect()
}
