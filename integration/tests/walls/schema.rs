//! What other languages need of the schema, beyond what its own compiler asks for.

use std::collections::{BTreeMap, BTreeSet};

use crate::{none, tracked};

const SCHEMA: &str = "schema/wire/capnp/";

#[test]
fn files_of_the_schema_import_each_other_in_no_circle() {
    let files: Vec<_> = tracked().into_iter().filter(|(path, _)| path.starts_with(SCHEMA)).collect();
    let imports: BTreeMap<_, _> = files.iter().map(|(path, text)| (&path[SCHEMA.len()..], imports(text))).collect();
    assert!(imports["gate.capnp"].contains("namespace.capnp"), "they are found: {imports:?}");
    let found = imports.keys().filter(|file| reach(&imports, file).contains(**file));
    let found: Vec<_> = found.map(|file| (*file).to_owned()).collect();
    none(
        "C++ has a header for each file, which can't include each other: let what names both stand in one file:",
        &found,
    );
}

/// The files that one names.
fn imports(text: &str) -> BTreeSet<&str> {
    text.split("import \"").skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// What it leads to.
fn reach<'a>(imports: &BTreeMap<&str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(next) = open.pop() {
        for file in imports.get(next).into_iter().flatten() {
            if reached.insert(*file) {
                open.push(file);
            }
        }
    }
    reached
}

#[test]
fn a_circle_is_found() {
    let text = "using A = import \"b.capnp\".A;\nusing Cxx = import \"/capnp/c++.capnp\";\n";
    assert_eq!(imports(text), BTreeSet::from(["b.capnp", "/capnp/c++.capnp"]));
    let way = |of: &'static str| BTreeSet::from([of]);
    let round = BTreeMap::from([("a", way("b")), ("b", way("c")), ("c", way("b"))]);
    assert!(reach(&round, "b").contains("b") && reach(&round, "c").contains("c") && !reach(&round, "a").contains("a"));
}
