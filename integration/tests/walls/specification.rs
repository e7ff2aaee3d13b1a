//! A promise counts for as much as the test that shows it: each test that a document names exists, each promise names one,
//! and so does each property of the runtime spec.

use std::collections::BTreeSet;

use crate::{acceptance, none, tracked};

/// The documents that name tests, as `path.rs::name`.
const DOCUMENTS: &[&str] = &["SPECIFICATION.md", "SECURITY.md", "docs/acceptance.md", "docs/archives.md", DRIVERS];
const DRIVERS: &str = "docs/drivers.md";
/// Where a file is looked for whose directories that one doesn't name.
const NATIVE: &[&str] = &["runtime/oci/src/native/tests/", "runtime/oci/src/native/"];

#[test]
fn every_test_that_is_named_exists() {
    let files = tracked();
    let complaints: Vec<_> = documents(&files).flat_map(|(path, text)| missing(path, text, &files)).collect();
    none("A test was renamed or removed: name the one that shows it now, or take the promise back:", &complaints);
}

#[test]
fn every_promise_names_a_test() {
    let files = tracked();
    let text = documents(&files).find(|(path, _)| *path == "SPECIFICATION.md").unwrap().1;
    let complaints = unshown(text);
    none("A promise is a numbered line `**N.** ...` with the tests that show it below:", &complaints);
}

#[test]
fn every_property_names_a_test() {
    let files = tracked();
    let text = documents(&files).find(|(path, _)| *path == DRIVERS).unwrap().1;
    let complaints = untested(text);
    none("A row of a table of properties has a test, or says that it is `the same`:", &complaints);
}

#[test]
fn every_attack_of_the_catalogue_has_a_test_or_a_reason() {
    let files = tracked();
    let text = documents(&files).find(|(path, _)| *path == "SECURITY.md").unwrap().1;
    none("A row `| ID | attack | shown by |` names a test, or says `not there` and why:", &undefended(text));
}

/// The letters of the catalogue, and the ids that each has.
const CATALOGUE: &[(char, &[u32])] = &[
    ('A', &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]),
    ('M', &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ('D', &[1, 2, 3, 4, 5, 6, 7, 8]),
    ('F', &[1, 2, 3, 4]),
    ('P', &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ('L', &[1, 2, 3, 4, 5]),
    ('C', &[1, 9]),
    ('K', &[1, 2, 3]),
    ('X', &[1, 2, 3, 4, 5, 6, 7, 8]),
    ('R', &[1, 2, 3, 4, 5, 6, 7, 8]),
    ('S', &[1, 2, 3]),
    ('W', &[1, 2, 3, 4, 5, 6]),
    ('Z', &[1, 2, 3, 4, 5, 6, 7, 8]),
];

/// The attacks without a row, and the rows that show nothing.
fn undefended(text: &str) -> Vec<String> {
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() > 3)
        .collect();
    let ids = CATALOGUE.iter().flat_map(|(letter, numbers)| numbers.iter().map(move |n| format!("{letter}{n}")));
    ids.filter_map(|id| match rows.iter().find(|cells| cells[1] == id) {
        None => Some(format!("{id} has no row")),
        Some(cells) if references(cells[3]).next().is_none() && !cells[3].starts_with("not there") => {
            Some(format!("{id} names no test"))
        }
        Some(_) => None,
    })
    .collect()
}

fn documents(files: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    files.iter().map(|(path, text)| (&**path, &**text)).filter(|(path, _)| DOCUMENTS.contains(path))
}

/// The tests that a line names: what stands between backquotes and has the form `path.rs::name`.
fn references(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|quoted| quoted.split_once("::"))
        .filter(|(path, _)| path.ends_with(".rs"))
}

fn missing(document: &str, text: &str, files: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        for (path, name) in references(line) {
            let short = |file: &str| !path.contains('/') && NATIVE.iter().any(|dir| file == format!("{dir}{path}"));
            let named = files.iter().filter(|(file, _)| file == path || document == DRIVERS && short(file));
            let tests = named.map(|(file, source)| tests(file, source)).reduce(|all, more| &all | &more);
            let why = match tests {
                None => "no such file",
                Some(tests) if !tests.contains(name) => "no such test in it",
                Some(_) => continue,
            };
            found.push(format!("{document}:{}: {path}::{name}: {why}", n + 1));
        }
    }
    found
}

/// The names of the functions behind `#[test]`, with what else may stand in between; and those that a `tests! {}` makes, a row
/// `name: ...` each. The acceptance suite has a harness of its own, where a test is what takes the place that it is to work in.
fn tests<'a>(path: &str, source: &'a str) -> BTreeSet<&'a str> {
    if acceptance::module(path).is_some() {
        return acceptance::functions(source);
    }
    let mut names = BTreeSet::new();
    let mut marked = false;
    let rows = source.split("\ntests! {\n").skip(1).filter_map(|rest| rest.split("\n}").next()).flat_map(str::lines);
    let rows = rows.filter_map(|line| line.strip_prefix("    ")?.split_once(':')).map(|(name, _)| name);
    names.extend(rows.filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')));
    for line in source.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if marked && let Some((_, rest)) = line.split_once("fn ") {
            names.insert(rest.split('(').next().unwrap_or_default());
            marked = false;
        }
    }
    names
}

/// The rows of tables with the column `test` that have nothing in it.
fn untested(text: &str) -> Vec<String> {
    let (mut column, mut rows, mut found) = (None, 0, Vec::new());
    for (n, line) in text.lines().enumerate() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if !line.starts_with('|') {
            column = None;
        } else if let Some(place) = cells.iter().position(|cell| *cell == "test") {
            column = Some(place);
        } else if let Some(cell) = column.and_then(|place| cells.get(place)).filter(|cell| **cell != "---") {
            rows += 1;
            if references(cell).next().is_none() && !cell.starts_with("the same") && *cell != "the refusal: the same" {
                found.push(format!("{DRIVERS}:{}: {}", n + 1, cells[1]));
            }
        }
    }
    if rows == 0 {
        found.push("there is no property".to_owned());
    }
    found
}

/// The number of a promise, if the line begins one.
fn number(line: &str) -> Option<usize> {
    line.strip_prefix("**")?.split_once(".**")?.0.parse().ok()
}

/// Promises without a test, and numbers that don't count up from 1 (a number, once given, is not given again).
fn unshown(text: &str) -> Vec<String> {
    let mut promises: Vec<(usize, usize)> = Vec::new();
    for line in text.lines() {
        if let Some(number) = number(line) {
            promises.push((number, 0));
        }
        if let Some((_, shown)) = promises.last_mut() {
            *shown += references(line).count();
        }
    }
    let mut found: Vec<_> =
        promises.iter().filter(|(_, shown)| *shown == 0).map(|(n, _)| format!("{n} names no test")).collect();
    found.extend(promises.windows(2).filter(|w| w[1].0 <= w[0].0).map(|w| format!("{} follows {}", w[1].0, w[0].0)));
    if promises.is_empty() {
        found.push("there is no promise".to_owned());
    }
    found
}

#[test]
fn a_test_that_is_gone_is_found() {
    let source = "#[test]\nfn shown() {}\n\n#[test]\n#[should_panic]\nasync fn other() {}\n\nfn not_one() {}\n";
    let files = [("a/src/b.rs".to_owned(), source.to_owned())];
    let found = |text: &str| missing("D.md", text, &files);
    assert_eq!(found("see `a/src/b.rs::shown`, `a/src/b.rs::other`, `a/src/b.rs` and `x::y`\n"), [""; 0]);
    let made = "tests! {\n    row: 1;\n    other_row:\n        2;\n}\n\nfn x() { y: 1 }\n";
    let files = [("a/src/b.rs".to_owned(), source.to_owned()), ("c.rs".to_owned(), format!("\n{made}"))];
    let found = |text: &str| missing("D.md", text, &files);
    assert_eq!(found("see `c.rs::row` and `c.rs::other_row`\n"), [""; 0]);
    assert_eq!(found("see `c.rs::y`\n"), ["D.md:1: c.rs::y: no such test in it"]);
    assert_eq!(
        found("one\n| `a/src/b.rs::not_one` | `a/src/c.rs::shown` |\n"),
        ["D.md:2: a/src/b.rs::not_one: no such test in it", "D.md:2: a/src/c.rs::shown: no such file"]
    );
}

#[test]
fn the_drivers_tests_have_short_names() {
    let source = "#[test]\nfn shown() {}\n".to_owned();
    let files = [("runtime/oci/src/native/tests/b.rs".to_owned(), source)];
    assert_eq!(missing(DRIVERS, "`b.rs::shown`", &files), [""; 0]);
    assert_eq!(missing(DRIVERS, "`b.rs::gone`", &files).len(), 1);
    assert_eq!(missing("SPECIFICATION.md", "`b.rs::shown`", &files).len(), 1);
}

#[test]
fn a_property_without_a_test_is_found() {
    let table = |cell: &str| format!("| property | test | on |\n| --- | --- | --- |\n| `a` | {cell} | any |\n");
    for good in ["`a.rs::b`", "the same", "life: `a.rs::b`"] {
        assert_eq!(untested(&table(good)), [""; 0]);
    }
    assert_eq!(untested(&table("later")), ["docs/drivers.md:3: `a`"]);
    assert_eq!(untested("| key | value |\n| --- | --- |\n| a | b |\n"), ["there is no property"]);
}

#[test]
fn an_attack_without_a_test_is_found() {
    let all = CATALOGUE.iter().map(|(_, numbers)| numbers.len()).sum::<usize>();
    assert_eq!(undefended("").len(), all);
    let text = "| A1 | links | `a.rs::a1` |\n| A2 | more | later |\n| D6 | mirrors | not there: none |\n";
    let found = undefended(text);
    assert_eq!((found.len(), found[0].as_str()), (all - 2, "A2 names no test"));
}

#[test]
fn a_promise_without_a_test_is_found() {
    let good = "text `a.rs::no`\n\n**1.** One.\n- `a.rs::b`\n\n**3.** Three, by `a.rs::c`.\n";
    assert_eq!(unshown(good), [""; 0]);
    assert_eq!(unshown("**1.** One.\n- later\n**2.** Two.\n- `a.rs::b`\n"), ["1 names no test"]);
    assert_eq!(unshown("**2.** `a.rs::b`\n**2.** `a.rs::b`\n"), ["2 follows 2"]);
    assert_eq!(unshown("nothing"), ["there is no promise"]);
}
