//! The table of mutants fits the code that it mutates: a check that was rewritten needs its mutant rewritten too.

use std::collections::BTreeSet;

use crate::{none, root, tracked};

#[test]
fn every_mutant_still_fits_and_names_a_test() {
    let files = tracked();
    let table = std::fs::read_to_string(root().join("integration/mutants/table")).unwrap();
    none("Say in integration/mutants/table what stands there now, or which test it is:", &stale(&table, &files));
}

#[test]
fn one_that_fits_no_more_is_found() {
    let files = [("a.rs".to_owned(), "let here = 1;\n#[test]\nfn shows() {}\nlet twice; let twice;\n".to_owned())];
    let mutant = |old: &str, new: &str, by: &str| format!("== it\nin a.rs\n- {old}\n+ {new}\nby {by}\n");
    let found = |text: &str| stale(text, &files).len();
    assert_eq!(found(&mutant("here = 1", "here = 2", "a.rs::shows")), 0);
    assert_eq!(found(&mutant("gone = 1", "here = 2", "a.rs::shows")), 1);
    assert_eq!(found(&mutant("twice", "once", "a.rs::shows")), 1);
    assert_eq!(found(&mutant("here = 1", "here = 1", "a.rs::shows")), 1);
    assert_eq!(found(&mutant("here = 1", "here = 2", "a.rs::other")), 1);
    assert_eq!(found(&mutant("here = 1", "here = 2", "b.rs::shows")), 1);
    assert_eq!(found("== it\nin a.rs\n"), 1);
}

fn stale(table: &str, files: &[(String, String)]) -> Vec<String> {
    let find = |path: &str| files.iter().find(|(file, _)| file == path).map(|(_, text)| text);
    let mut found = Vec::new();
    let mutants: Vec<&str> = table.split("\n== ").skip(usize::from(!table.starts_with("== "))).collect();
    for mutant in &mutants {
        let what = mutant.lines().next().unwrap_or_default().trim_start_matches("== ");
        let line = |mark: &str| mutant.lines().find_map(|line| line.strip_prefix(mark));
        let (Some(file), Some(old), Some(new), Some(by)) = (line("in "), line("- "), line("+ "), line("by ")) else {
            found.push(format!("{what}: a line is missing"));
            continue;
        };
        let count = find(file).map_or(0, |text| text.matches(old).count());
        if count != 1 || old == new {
            found.push(format!("{what}: {file} has it {count} times"));
        }
        let named = by.split_once("::").and_then(|(path, name)| Some((find(path)?, name)));
        if !named.is_some_and(|(text, name)| text.contains(&format!("fn {name}()"))) {
            found.push(format!("{what}: there is no test {by}"));
        }
    }
    let names: BTreeSet<&str> = mutants.iter().filter_map(|mutant| mutant.lines().next()).collect();
    if names.len() != mutants.len() {
        found.push("two have one description".into());
    }
    found
}
