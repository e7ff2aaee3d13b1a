//! What keeps the parts apart and the rules kept: the layers, the rules that no compiler checks, what may be in the
//! repository at all, and that what is promised is shown. Each check is a function from text to complaints, so that a
//! test can also show it complain.

// All of this is test code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod acceptance;
mod fuzz;
mod layers;
mod lints;
mod mutants;
mod repository;
mod schema;
mod source;
mod specification;
#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::{path::Path, process::Command};

/// The top of the repository.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// What a program prints, run at the top of the repository.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The tracked files that exist, with their contents; what isn't text is left out.
fn tracked() -> Vec<(String, String)> {
    let listing = output("git", &["ls-files", "-z"]);
    let files: Vec<_> = listing
        .split_terminator('\0')
        .filter_map(|path| Some((path.to_owned(), std::fs::read_to_string(root().join(path)).ok()?)))
        .collect();
    assert!(files.iter().any(|(path, _)| path == "Cargo.toml"), "git lists no files of this repository");
    files
}

/// Fails with all complaints at once.
#[track_caller]
fn none(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}\n  {}", complaints.join("\n  "));
}
