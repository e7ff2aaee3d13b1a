//! Payloads that the daemon keeps without reading, and mounts.

use serde::{Deserialize, Serialize};

/// An opaque payload and what it is (the reference's `Any`: type URL and bytes).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Any {
    /// Names the type and encoding.
    pub type_url: String,
    /// The payload.
    pub value: Vec<u8>,
}

impl Any {
    /// Whether there is nothing in it, not even a type.
    pub fn is_empty(&self) -> bool {
        self.type_url.is_empty() && self.value.is_empty()
    }
}

/// One mount of a list that is applied in order onto one target: mount(2)'s type, source and options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Such as `overlay` or `bind`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The source.
    pub source: String,
    /// Flags and data, each one option.
    pub options: Vec<String>,
}
