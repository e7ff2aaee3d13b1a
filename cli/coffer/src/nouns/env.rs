//! The variables that a process gets.

use std::io::Read as _;

use crate::{args::Args, failure::Failure, units};

/// The most of a file of variables: more of them no call to the daemon takes.
const MAX_FILE: u64 = 1 << 20;

/// The variables of the files, then those of the flags, so that a flag wins.
pub fn env(args: &Args) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for path in args.all("env-file") {
        let text = read(path).map_err(|e| Failure::io(&format!("--env-file {path}"), e))?;
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let variable =
                units::env(line).map_err(|why| Failure::usage(format!("--env-file {path}: {line:?}: {why}")))?;
            all.extend(variable);
        }
    }
    all.extend(args.read_all("env", units::env)?.into_iter().flatten());
    Ok(all)
}

/// A file, which may be a device or a pipe without an end.
fn read(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!("has more than {MAX_FILE} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands;

    #[test]
    fn files_of_variables() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "# comment\nA=1\n\nB=two words\nSURELY_NOT_SET_HERE\n").unwrap();
        let path = path.to_str().unwrap();
        let words = |path: &str| ["run", "-e", "A=3", "--env-file", path, "x"].map(str::to_owned).to_vec();
        let read = |path: &str| env(&commands::parse(words(path)).unwrap());
        assert_eq!(read(path).unwrap(), ["A=1", "B=two words", "A=3"]);
        assert!(read("/dev/zero").unwrap_err().text.contains("more than"));
        assert!(read("/nonexistent/env").unwrap_err().text.contains("/nonexistent/env"));
    }
}
