//! OCI content descriptors (image-spec, "OCI Content Descriptors").

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Digest, Platform};

/// What something is, which bytes it is, and how many. Field names in JSON are those of the image-spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type.
    pub media_type: String,
    /// Which bytes.
    pub digest: Digest,
    /// How many.
    pub size: u64,
    /// Where else the bytes may be had; never with credentials.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free annotations.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: the platform that the entry is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// In an artifact: what kind it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor with nothing optional.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
        }
    }
}

/// Go writes a list or an object that was never filled as null.
fn or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn what_go_leaves_empty_is_absent() {
        let digest = Digest::of(crate::Algorithm::Sha256, b"x");
        let bare = Descriptor::new("a/b", digest.clone(), 1);
        let read = |urls, annotations| {
            let value =
                json!({ "mediaType": "a/b", "digest": digest, "size": 1, "urls": urls, "annotations": annotations });
            from_value::<Descriptor>(value)
        };
        assert_eq!(read(json!(null), json!(null)).unwrap(), bare);
        let full = read(json!(["http://x"]), json!({ "k": "v" })).unwrap();
        assert_eq!((full.urls.len(), full.annotations["k"].as_str()), (1, "v"));
        assert!(read(json!([null]), json!({})).is_err() && read(json!([]), json!({ "k": null })).is_err());
    }
}
