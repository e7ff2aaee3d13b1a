//! The acceptance suite and its table are one: what docs/acceptance.md names is run, what is run stands there, and each
//! test is called what its reference is called.

use std::collections::BTreeSet;

use crate::{none, tracked};

const TABLE: &str = "docs/acceptance.md";
/// Where the lists of tests are; the tests lie in modules beside it.
const LISTS: &str = "integration/tests/acceptance/main.rs";

#[test]
fn the_table_and_the_suite_are_one() {
    let files = tracked();
    let text = |wanted: &str| &*files.iter().find(|(path, _)| path == wanted).unwrap().1;
    let complaints = check(text(TABLE), text(LISTS));
    none("The table of acceptance tests has a row for each test, and a test for each row:", &complaints);
}

/// The tests that the suite's lists name, as `module::name`.
pub fn listed(source: &str) -> Vec<&str> {
    let lists = source.split("= tests![").skip(1).filter_map(|rest| rest.split(']').next());
    lists.flat_map(|list| list.split(',').map(str::trim).filter(|name| !name.is_empty())).collect()
}

/// The tests of a module: functions that are given a place or a daemon, and give nothing.
pub fn functions(source: &str) -> BTreeSet<&str> {
    let given = ["(place: &Place) {", "(daemon: &Daemon) {"];
    let heads = source.lines().filter_map(|line| line.strip_prefix("pub async fn "));
    heads.filter_map(|head| given.iter().find_map(|given| head.strip_suffix(given))).collect()
}

/// If a file is part of the suite: its module.
pub fn module(path: &str) -> Option<&str> {
    path.strip_prefix(LISTS.trim_end_matches("main.rs"))?.strip_suffix(".rs")
}

/// Reference, if there is one, module and name of each row.
fn rows(table: &str) -> Vec<(Option<&str>, String)> {
    table
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter_map(|line| {
            let test = line.split('`').nth(1)?;
            let (path, name) = test.split_once("::")?;
            let reference = line.split('|').nth(1).map(str::trim).filter(|cell| !cell.starts_with('`'));
            Some((reference, format!("{}::{name}", module(path)?)))
        })
        .collect()
}

/// TestContainerCloseIO is container_close_io, TestUserNamespaces/WritableRootFS is user_namespaces_writable_root_fs.
fn snake(reference: &str) -> String {
    let letters: Vec<char> = reference.strip_prefix("Test").unwrap_or(reference).chars().collect();
    let mut name = String::new();
    for (n, letter) in letters.iter().enumerate() {
        let lower = |at: usize| letters.get(at).is_some_and(char::is_ascii_lowercase);
        // A word begins behind a small letter, and with the last capital before one.
        if n > 0 && letter.is_ascii_uppercase() && letters[n - 1] != '/' && (lower(n - 1) || lower(n + 1)) {
            name.push('_');
        }
        name.push(if *letter == '/' { '_' } else { letter.to_ascii_lowercase() });
    }
    name
}

fn check(table: &str, lists: &str) -> Vec<String> {
    let (rows, tests) = (rows(table), listed(lists));
    let mut found = Vec::new();
    for (reference, test) in &rows {
        if !tests.contains(&&**test) {
            found.push(format!("{test} is not in the lists of {LISTS}"));
        }
        if let Some(reference) = reference
            && test.split("::").nth(1) != Some(&snake(reference))
        {
            found.push(format!("{test} should be called {}", snake(reference)));
        }
    }
    for test in &tests {
        match rows.iter().filter(|(_, row)| row == test).count() {
            1 => {}
            n => found.push(format!("{test} has {n} rows in {TABLE}")),
        }
    }
    if tests.is_empty() {
        found.push(format!("{LISTS} lists nothing"));
    }
    found
}

#[test]
fn a_row_without_a_test_and_a_test_without_a_row_are_found() {
    let lists =
        "const A: &[X] = tests![\n    one::new_thing,\n    two::other,\n];\nconst B: &[X] = tests![two::last,];\n";
    let row = |reference: &str, test: &str| format!("| {reference} | `integration/tests/acceptance/{test}` | it |\n");
    let good = row("TestNewThing", "one.rs::new_thing") + &row("TestOther", "two.rs::other");
    let last = "| `integration/tests/acceptance/two.rs::last` | ours alone |\n";
    assert_eq!(check(&(good.clone() + last), lists), [""; 0]);
    assert_eq!(check(&good, lists), [format!("two::last has 0 rows in {TABLE}")]);
    assert_eq!(check(&(good.clone() + last + last), lists), [format!("two::last has 2 rows in {TABLE}")]);
    let gone = row("TestGone", "one.rs::gone");
    assert_eq!(check(&(good.clone() + last + &gone), lists), [format!("one::gone is not in the lists of {LISTS}")]);
    let misnamed = good.replace("TestOther", "TestAnother");
    assert_eq!(check(&(misnamed + last), lists), ["two::other should be called another"]);
    assert_eq!(check("", ""), [format!("{LISTS} lists nothing")]);
}

#[test]
fn what_is_no_test_is_not_taken_for_one() {
    let source = "pub async fn a(place: &Place) {\npub async fn b(daemon: &Daemon) {\nasync fn c(place: &Place) {\n\
                  pub async fn d(place: &Place) -> Task {\npub async fn e(task: &Task) {\n";
    assert_eq!(functions(source).into_iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(module("integration/tests/acceptance/tasks.rs"), Some("tasks"));
    assert_eq!(module("integration/tests/lifecycle/exec.rs"), None);
}

#[test]
fn names_are_made_of_words() {
    for (reference, name) in [
        ("TestContainerCloseIO", "container_close_io"),
        ("TestOCIExportAndImport", "oci_export_and_import"),
        ("TestContainerUserID", "container_user_id"),
        ("TestUserNamespaces/WritableRootFS", "user_namespaces_writable_root_fs"),
    ] {
        assert_eq!(snake(reference), name);
    }
}
