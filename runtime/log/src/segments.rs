//! The files of a log, by number.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

/// The name of a file; the first has none of a number.
pub(crate) fn name(number: u64) -> String {
    if number == 0 { "output.log".to_owned() } else { format!("output.{number}.log") }
}

fn number(name: &str) -> Option<u64> {
    if name == "output.log" {
        return Some(0);
    }
    let digits = name.strip_prefix("output.")?.strip_suffix(".log")?;
    digits.parse().ok().filter(|number: &u64| *number > 0 && number.to_string() == digits)
}

/// The numbers that are there, ascending; none where there is no directory.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        numbers.extend(entry?.file_name().to_str().and_then(number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The same through a directory that is held open.
pub(crate) fn list_in(dir: &OwnedFd) -> io::Result<Vec<u64>> {
    list(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())))
}

/// Opens a file for appending; makes it if it isn't there.
pub(crate) fn append(dir: &OwnedFd, number: u64) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    Ok(File::from(openat(dir, name(number).as_str(), flags, Mode::from_bits_truncate(0o600))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbers_and_nothing_else_is() {
        for it in [0, 1, 9, 10, u64::MAX] {
            assert_eq!(number(&name(it)), Some(it));
        }
        for other in ["output.0.log", "output.01.log", "output.-1.log", "output.log.1", "other.log", "output.x.log", ""]
        {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
