//! Field masks (reference, section 2.1): which parts of a record an update touches.

use std::collections::BTreeMap;

use cofferdam_types::{Error, Labels, Result};

/// One path of a mask.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Path<'a> {
    /// `field`: all of it.
    Whole(&'a str),
    /// `field.key`: one entry of a map. The key is everything after the first dot, so it may hold dots.
    Entry(&'a str, &'a str),
}

/// The paths of a mask; none: every mutable part is replaced.
pub(crate) fn paths(mask: &[String]) -> impl Iterator<Item = Path<'_>> {
    mask.iter().map(|path| match path.split_once('.') {
        Some((field, key)) => Path::Entry(field, key),
        None => Path::Whole(path),
    })
}

/// The error for a path that is unknown or immutable.
pub(crate) fn immutable(kind: &'static str, id: &str, path: &Path<'_>) -> Error {
    let path = match path {
        Path::Whole(field) => (*field).to_owned(),
        Path::Entry(field, key) => format!("{field}.{key}"),
    };
    Error::invalid(kind, id, format!("cannot update \"{path}\" field"))
}

/// Takes one entry of a map from `given`; absent there it is removed.
pub(crate) fn entry<V: Clone>(current: &mut BTreeMap<String, V>, given: &BTreeMap<String, V>, key: &str) {
    match given.get(key) {
        Some(value) => current.insert(key.to_owned(), value.clone()),
        None => current.remove(key),
    };
}

/// Labels with an empty value are never stored: setting one to "" deletes it.
pub(crate) fn prune(labels: &mut Labels) {
    labels.retain(|_, value| !value.is_empty());
}

/// Applies a mask that may name labels alone.
pub(crate) fn labels(
    kind: &'static str,
    id: &str,
    current: &mut Labels,
    given: &Labels,
    mask: &[String],
) -> Result<()> {
    if mask.is_empty() {
        current.clone_from(given);
    }
    for path in paths(mask) {
        match path {
            Path::Whole("labels") => current.clone_from(given),
            Path::Entry("labels", key) => entry(current, given, key),
            path => return Err(immutable(kind, id, &path)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Labels {
        text.split_whitespace().filter_map(|kv| kv.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn masks_follow_the_reference() {
        let given = map("a=2 c.d/e=5 f=");
        for (mask, expected) in [
            (vec![], "a=2 c.d/e=5"),
            (vec!["labels"], "a=2 c.d/e=5"),
            (vec!["labels.a"], "a=2 b=1"),
            (vec!["labels.b"], "a=1"),
            (vec!["labels.c.d/e"], "a=1 b=1 c.d/e=5"),
            (vec!["labels.f", "labels.a"], "a=2 b=1"),
        ] {
            let mask: Vec<String> = mask.into_iter().map(String::from).collect();
            let mut current = map("a=1 b=1");
            labels("image", "x", &mut current, &given, &mask).unwrap();
            prune(&mut current);
            assert_eq!(current, map(expected), "{mask:?}");
        }
        for bad in ["parent", "name", "label.x", ""] {
            let error = labels("image", "x", &mut map(""), &given, &[bad.to_owned()]).unwrap_err();
            assert!(error.message.contains("cannot update"), "{error}");
        }
    }
}
