//! What may be in the repository: nothing at the top but what is named here, and no word that only makes sense on the
//! machine where a change was written.

use crate::{none, tracked};

/// The names at the top, besides those that begin with a dot.
const TOP: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "schema",
    "actors",
    "runtime",
    "daemon",
    "cli",
    "integration",
    "deploy",
    "docs",
    "README.md",
    "ARCHITECTURE.md",
    "SPECIFICATION.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "LICENSE",
];

/// Paths of one machine, hosts that software is fetched from (which of them is a matter of a machine's configuration)
/// and words about who did the work. Each is in two halves, so that this list doesn't hold them.
const WORDS: &[(&str, &str)] = &[
    ("/wo", "rk/"),
    ("/tmp/des", "ign"),
    ("/tmp/tar", "get"),
    ("/root/.ca", "rgo"),
    ("crates", ".io/"),
    ("crates", ".io\""),
    ("deb.deb", "ian.org"),
    ("archive.ubu", "ntu.com"),
    ("pypi", ".org"),
    ("proxy.gol", "ang.org"),
    ("registry.npm", "js.org"),
    ("static.rust", "-lang.org"),
    ("sub", "agent"),
    ("help", "er-"),
];

#[test]
fn nothing_else_is_at_the_top() {
    let paths: Vec<_> = tracked().into_iter().map(|(path, _)| path).collect();
    none("The top of the repository is for what every reader looks for; put this into a folder:", &strangers(&paths));
}

#[test]
fn nothing_speaks_of_one_machine() {
    none("Only true on one machine, or of how a change came to be:", &local(&tracked()));
}

fn strangers(paths: &[String]) -> Vec<String> {
    let mut tops: Vec<_> = paths.iter().map(|path| path.split('/').next().unwrap_or_default().to_owned()).collect();
    tops.retain(|top| !top.starts_with('.') && !TOP.contains(&top.as_str()));
    tops.dedup();
    tops
}

fn local(files: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files {
        for (n, line) in text.lines().enumerate() {
            if path == "Cargo.lock" && line.starts_with("source = \"registry+") {
                continue;
            }
            for (a, b) in WORDS {
                if line.to_lowercase().contains(&format!("{a}{b}")) {
                    found.push(format!("{path}:{}: {}", n + 1, line.trim()));
                }
            }
        }
    }
    found
}

#[test]
fn a_stranger_at_the_top_is_found() {
    let paths = ["Cargo.toml", ".ci/run", "docs/a.md", "notes.md", "tools/a/b", "tools/c"].map(str::to_owned);
    assert_eq!(strangers(&paths), ["notes.md", "tools"]);
}

#[test]
fn a_word_of_one_machine_is_found() {
    let file = |path: &str, text: &str| [(path.to_owned(), text.to_owned())];
    for (a, b) in WORDS {
        assert_eq!(local(&file("a.md", &format!("one\n see {a}{b}\n"))), [format!("a.md:2: see {a}{b}")]);
        assert_eq!(local(&file("a.md", &format!("{a} {b}"))), [""; 0]);
    }
    let lock = format!("source = \"registry+https://{}{}index\"", "crates", ".io/");
    assert_eq!(local(&file("Cargo.lock", &lock)), [""; 0]);
    assert_eq!(local(&file("a.toml", &lock)).len(), 1);
}
