//! Documents by their digests.

use std::collections::HashMap;

use cofferdam_types::{Algorithm, Descriptor, Digest, Error, Result, media};
use serde_json::{Value, json};

use crate::choose::Library;

#[derive(Default)]
pub struct Shelf(HashMap<Digest, Vec<u8>>);

impl Library for Shelf {
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let found = self.0.get(&descriptor.digest).cloned();
        found.ok_or_else(|| Error::not_found("blob", &descriptor.digest, "is not there"))
    }
}

impl Shelf {
    /// Puts one there; its descriptor.
    pub fn put(&mut self, media_type: &str, value: &Value) -> Value {
        let bytes = value.to_string().into_bytes();
        let descriptor = Descriptor::new(media_type, Digest::of(Algorithm::Sha256, &bytes), bytes.len() as u64);
        self.0.insert(descriptor.digest.clone(), bytes);
        json!(descriptor)
    }

    /// An image for a machine, of layers that are nowhere, each with its media type.
    pub fn image(&mut self, arch: &str, layers: &[(&str, &str)]) -> Value {
        let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        let diff_ids: Vec<_> = layers.iter().map(|(name, _)| digest(&format!("diff of {name}"))).collect();
        let config = json!({"os": "linux", "architecture": arch, "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.put(media::OCI_CONFIG, &config);
        let layers: Vec<_> = layers.iter().map(|(name, kind)| Descriptor::new(*kind, digest(name), 7)).collect();
        self.put(media::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": layers}))
    }

    pub fn index(&mut self, entries: &[Value]) -> Value {
        self.put(media::OCI_INDEX, &json!({"schemaVersion": 2, "manifests": entries}))
    }
}

/// The entry of an index, for a machine.
pub fn on(mut entry: Value, arch: &str) -> Value {
    entry["platform"] = json!({"os": "linux", "architecture": arch});
    entry
}
