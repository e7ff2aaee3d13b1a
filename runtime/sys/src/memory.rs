//! Giving memory back.

/// Gives the heap's free pages back to the system. The allocator keeps what was freed for the next one who asks, and
/// each thread has a share of its own: after work that comes once an hour that is most of an idle daemon.
pub fn trim() {
    // SAFETY: malloc_trim(3) locks what it works on and touches no memory that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Lets go of this program's code: of what ran at the start, and of its neighbours, which the kernel maps along with it,
/// little is needed again. What is comes back from the page cache, without a disk.
pub fn trim_code() -> std::io::Result<()> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    // Each mapping is a line of its range, rights and file, and lines of `Name: value` behind it.
    let is_head = |line: &&str| !line.split(' ').next().is_some_and(|word| word.ends_with(':'));
    let mut lines = smaps.lines().peekable();
    while let Some(head) = lines.next() {
        let mut whole = false;
        while let Some(line) = lines.next_if(|line| !is_head(line)) {
            // A page of its own is one that somebody has changed, such as a debugger.
            whole |= line.strip_prefix("Anonymous:").is_some_and(|size| size.trim() == "0 kB");
        }
        let mut words = head.split_ascii_whitespace();
        let (Some(range), Some("r-xp"), Some(path)) = (words.next(), words.next(), words.nth(3)) else { continue };
        let number = |text: &str| usize::from_str_radix(text, 16).ok();
        let Some((start, end)) = range.split_once('-').and_then(|(s, e)| number(s).zip(number(e))) else { continue };
        if whole && program.as_os_str() == path {
            // SAFETY: a private mapping of a file, without pages of its own: each access finds the file's bytes, before
            // and after.
            if unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// This program's code: where it is, and what of it is in memory, in KiB.
    fn code() -> (std::ops::Range<usize>, usize) {
        let exe = std::fs::read_link("/proc/self/exe").unwrap().to_str().unwrap().to_owned();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !(line.contains("r-xp") && line.ends_with(&exe)));
        let (start, end) = lines.next().unwrap().split_once(' ').unwrap().0.split_once('-').unwrap();
        let number = |text: &str| usize::from_str_radix(text, 16).unwrap();
        let resident = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        (number(start)..number(end), resident.trim().trim_end_matches(" kB").parse().unwrap())
    }

    #[test]
    fn code_that_nobody_runs_is_let_go_of_and_comes_back() {
        let (range, _) = code();
        // SAFETY: it is mapped, for reading.
        let read = || range.clone().step_by(4096).map(|at| unsafe { *(at as *const u8) } as usize).sum();
        let (sum, (_, before)): (usize, _) = (read(), code());
        trim_code().unwrap();
        let (_, after) = code();
        assert!(after < before, "{after} of {before}");
        assert_eq!(sum, read());
    }
}
