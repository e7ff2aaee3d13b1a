//! How the library's structs look as JSON, where the plain form would not read well.

use std::collections::BTreeMap;

use cofferdam_types::{Any, Timestamp};
use serde::{Serialize, Serializer};

/// A time as RFC 3339, `null` where it is "never".
pub fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    (time.0 != 0).then(|| time.to_rfc3339()).serialize(serializer)
}

/// Bytes that hold JSON, as that JSON; other bytes as a text.
pub fn bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    match serde_json::from_slice::<serde_json::Value>(bytes) {
        Ok(value) => value.serialize(serializer),
        Err(_) => String::from_utf8_lossy(bytes).serialize(serializer),
    }
}

/// An opaque payload, likewise.
pub fn any<S: Serializer>(any: &Any, serializer: S) -> Result<S::Ok, S::Error> {
    bytes(&any.value, serializer)
}

/// Several of them, by name.
pub fn anys<S: Serializer>(all: &BTreeMap<String, Any>, serializer: S) -> Result<S::Ok, S::Error> {
    struct One<'a>(&'a Any);
    impl Serialize for One<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            any(self.0, serializer)
        }
    }
    serializer.collect_map(all.iter().map(|(name, value)| (name, One(value))))
}

/// A text that holds JSON, as that JSON.
pub fn of_text<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    bytes(text.as_bytes(), serializer)
}

/// Whether there is no payload.
pub fn is_empty(any: &Any) -> bool {
    any.value.is_empty()
}

/// Names and their values, as one object.
pub fn map<S: Serializer>(pairs: &[(String, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}
