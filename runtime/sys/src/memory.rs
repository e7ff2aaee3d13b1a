//! Giving memory back.

/// Gives the heap's free pages back to the system. The allocator keeps what was freed for the next one who asks, and
/// each thread has a share of its own: after work that comes once an hour that is most of an idle daemon.
pub fn trim() {
    // SAFETY: malloc_trim(3) locks what it works on and touches no memory that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Has all threads share one heap, for a program whose others come and go: each would leave one behind.
pub fn one_heap() {
    // SAFETY: mallopt(3) sets a number, under the allocator's own lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives back what the deepest calls so far have left below the stack's end. For a program's first thread alone: the
/// stacks of others have no name in the maps.
pub fn trim_stack() -> std::io::Result<()> {
    /// More than what is called from here takes.
    const MARGIN: usize = 8 << 10;
    const PAGE: usize = 4096;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).and_then(|line| line.split('-').next());
    let Some(lowest) = stack.and_then(|start| usize::from_str_radix(start, 16).ok()) else { return Ok(()) };
    let here = (&raw const lowest) as usize;
    let end = here.saturating_sub(MARGIN) / PAGE * PAGE;
    // Another thread's variables lie elsewhere.
    if lowest < end && here - lowest < 64 << 20 {
        // SAFETY: the range is of this thread's stack, and wholly below all frames that there are or are entered before
        // the call returns: nothing in it is read before it is written.
        let done = unsafe { libc::madvise(lowest as *mut libc::c_void, end - lowest, libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}
