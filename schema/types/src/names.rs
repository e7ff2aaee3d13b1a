//! Names: which are strict (they may become path components) and which are opaque.

use std::{borrow::Borrow, collections::BTreeMap, fmt, ops::Deref, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Key and value pairs that clients attach to things.
pub type Labels = BTreeMap<String, String>;

const MAX_ID: usize = 76;
const MAX_NAME: usize = 1024;
/// The most bytes of a label, key and value together.
pub const MAX_LABEL: usize = 4096;
/// Of one thing, all of them together: it is in every list that names it.
const MAX_LABELS: usize = 256 << 10;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the text.
            pub fn new(text: impl Into<String>) -> Result<$name> {
                let text = text.into();
                match $check(&text) {
                    None => Ok($name(text)),
                    Some(why) => {
                        let shown: String = text.chars().take(MAX_ID).collect();
                        Err(Error::invalid($kind, shown, why))
                    }
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<$name> {
                $name::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<$name> {
                $name::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The id of a container, a task or an exec: strict, so it may become a path component.
    Id, "id", id_error
);
name!(
    /// The name of a namespace: strict, so it may become a path component.
    Namespace, "namespace", namespace_error
);
name!(
    /// An image name, snapshot key, ingest ref or lease id: opaque, and never a path component.
    Name, "name", name_error
);

impl Namespace {
    /// The namespace that always exists.
    pub fn default_namespace() -> Namespace {
        Namespace("default".to_owned())
    }
}

fn id_error(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("is empty: give 1 to 76 characters".into());
    }
    if text.len() > MAX_ID {
        return Some(format!("has {} bytes: at most {MAX_ID} are allowed", text.len()));
    }
    let good = text.split(['.', '_', '-']).all(|run| !run.is_empty() && run.bytes().all(|b| b.is_ascii_alphanumeric()));
    (!good).then(|| "must be letters and digits with single '.', '_' or '-' between them".into())
}

fn namespace_error(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("is empty: give 2 to 76 characters".into());
    }
    if text.len() > MAX_ID {
        return Some(format!("has {} bytes: at most {MAX_ID} are allowed", text.len()));
    }
    let part = |p: &str| {
        // After one or more dashes a letter must follow, as in the reference.
        let b = p.as_bytes();
        b.len() >= 2
            && b[0].is_ascii_alphabetic()
            && b[b.len() - 1] != b'-'
            && b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-')
            && b.windows(2).all(|w| w[0] != b'-' || w[1] == b'-' || w[1].is_ascii_alphabetic())
    };
    (!text.split('.').all(part)).then(|| {
        "must be dot-separated words of two or more letters, digits and inner dashes, each starting with a letter"
            .into()
    })
}

fn name_error(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("is empty".into());
    }
    if text.len() > MAX_NAME {
        return Some(format!("has {} bytes: at most {MAX_NAME} are allowed", text.len()));
    }
    text.contains('\0').then(|| "holds a NUL byte".into())
}

/// Checks every label: key and value together have at most 4,096 bytes, all of them 256 KiB, and no key is empty.
pub fn validate_labels(labels: &Labels) -> Result<()> {
    for (key, value) in labels {
        let total = key.len() + value.len();
        let shown: String = key.chars().take(10).collect();
        if total > MAX_LABEL {
            return Err(Error::invalid(
                "label",
                shown,
                format!("key and value have {total} bytes: at most {MAX_LABEL}"),
            ));
        }
        if key.is_empty() {
            return Err(Error::invalid("label", shown, "has an empty key"));
        }
    }
    let total: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > MAX_LABELS {
        let why = format!("would have {total} bytes together: at most {MAX_LABELS}, remove some");
        return Err(Error::invalid("labels", "", why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_reference() {
        let long = "a".repeat(76);
        for good in [
            "default",
            "Default",
            "default-default",
            "containerd.io",
            "foo.boo",
            "swarmkit.docker.io",
            "0912341234",
            "task.0.0123456789",
            "underscores_are_allowed",
            &long,
        ] {
            assert!(Id::new(good).is_ok(), "{good}");
        }
        let longer = "a".repeat(77);
        for bad in [
            "",
            ".foo..foo",
            "foo/foo",
            "foo/..",
            "foo..foo",
            "foo.-boo",
            "-foo.boo",
            "foo.boo-",
            "but__double",
            "zn--e9.org",
            "default--default",
            "..",
            ".",
            "a\0b",
            "a\n",
            &longer,
        ] {
            assert!(Id::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn namespaces_follow_the_reference() {
        let long = "a".repeat(76);
        for good in [
            "default",
            "Default",
            "default-default",
            "default--default",
            "containerd.io",
            "foo.boo",
            "swarmkit.docker.io",
            "zn--e9.org",
            &long,
        ] {
            assert!(Namespace::new(good).is_ok(), "{good}");
        }
        let longer = "a".repeat(77);
        for bad in [
            "",
            ".foo..foo",
            "foo/foo",
            "foo/..",
            "foo..foo",
            "foo.-boo",
            "foo.-boo.bar",
            "-foo.boo",
            "foo.boo-",
            "under_score",
            "0912341234",
            "task.0.0123456789",
            "a",
            &longer,
        ] {
            assert!(Namespace::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_have_a_limit() {
        let label = |k: usize, v: usize| Labels::from([("k".repeat(k), "v".repeat(v))]);
        assert!(validate_labels(&label(1, 4095)).is_ok());
        assert!(validate_labels(&label(4096, 1)).is_err());
        assert!(validate_labels(&label(0, 1)).is_err());
        let many = |count: usize| (0..count).map(|n| (format!("{n:04}"), "v".repeat(1020))).collect::<Labels>();
        assert!(validate_labels(&many(256)).is_ok());
        assert!(validate_labels(&many(257)).unwrap_err().message.contains("remove some"));
    }
}
