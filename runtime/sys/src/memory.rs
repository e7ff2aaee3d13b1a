//! Giving memory back.

/// Gives the heap's free pages back to the system. The allocator keeps what was freed for the next one who asks, and
/// each thread has a share of its own: after work that comes once an hour that is most of an idle daemon.
pub fn trim() {
    // SAFETY: malloc_trim(3) locks what it works on and touches no memory that is in use.
    unsafe { libc::malloc_trim(0) };
}
