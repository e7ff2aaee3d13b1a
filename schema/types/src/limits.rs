//! What an image may say and cost. It comes from strangers: all of it is bounded, by the operator where the usual bounds don't
//! fit.

use std::sync::OnceLock;

use crate::{Error, Result};

/// The bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a manifest or an index.
    pub manifest: u64,
    /// Bytes of a config.
    pub config: u64,
    /// Arrays and objects of a document, one within the other.
    pub nesting: u64,
    /// Values of a document.
    pub values: u64,
    /// Entries of an index.
    pub platforms: u64,
    /// Indexes, one within the other.
    pub indexes: u64,
    /// Documents that are read to find an image.
    pub documents: u64,
    /// Layers of an image.
    pub layers: u64,
    /// Entries of a layer, counting the directories that are made because an entry lies in them.
    pub entries: u64,
    /// Bytes that a layer may inflate to.
    pub inflated: u64,
    /// How many times larger than its packed form a layer may be, behind its first 256 MiB.
    pub ratio: u64,
    /// Bytes of a path.
    pub path: u64,
    /// Names on a path.
    pub levels: u64,
    /// Bytes of paths that a layer makes us remember to its end.
    pub names: u64,
}

/// The usual ones; those of documents are those of registries.
pub const USUAL: Limits = Limits {
    manifest: 4 << 20,
    config: 4 << 20,
    nesting: 32,
    values: 100_000,
    platforms: 1000,
    indexes: 4,
    documents: 256,
    // As many as overlayfs stacks.
    layers: 500,
    entries: 1_000_000,
    inflated: 64 << 30,
    ratio: 200,
    path: 4096,
    levels: 256,
    names: 128 << 20,
};

static CHOSEN: OnceLock<Limits> = OnceLock::new();

impl Default for Limits {
    fn default() -> Limits {
        USUAL
    }
}

impl Limits {
    /// Those of this process.
    pub fn get() -> &'static Limits {
        CHOSEN.get().unwrap_or(&USUAL)
    }

    /// Makes these the ones of this process; the first that are count.
    pub fn choose(self) {
        let _ = CHOSEN.set(self);
    }

    /// Changes some: `KEY=VALUE`, several with a comma between them.
    pub fn set(&mut self, text: &str) -> Result<()> {
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // What documents may have is read into memory, recursed into, or stacked by the kernel: there is an end to that.
            let (field, most) = match key {
                "manifest" => (&mut self.manifest, USUAL.manifest),
                "config" => (&mut self.config, USUAL.config),
                "nesting" => (&mut self.nesting, 100),
                "values" => (&mut self.values, 1_000_000),
                "platforms" => (&mut self.platforms, 10_000),
                "indexes" => (&mut self.indexes, 8),
                "documents" => (&mut self.documents, 10_000),
                "layers" => (&mut self.layers, USUAL.layers),
                "entries" => (&mut self.entries, 1 << 32),
                "inflated" => (&mut self.inflated, 1 << 50),
                "ratio" => (&mut self.ratio, 1 << 20),
                "path" => (&mut self.path, USUAL.path),
                "levels" => (&mut self.levels, USUAL.levels),
                "names" => (&mut self.names, 4 << 30),
                _ => {
                    let why = "is no limit of images: manifest, config, nesting, values, platforms, indexes, documents, layers, \
                               entries, inflated, ratio, path, levels and names are";
                    return Err(Error::invalid("option", key, why));
                }
            };
            let read = value.parse().ok().filter(|number| (1..=most).contains(number));
            *field = read.ok_or_else(|| Error::invalid("option", key, format!("needs a number, 1 to {most}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_changed_one_by_one() {
        let mut limits = Limits::default();
        limits.set("layers=3,ratio=10").unwrap();
        limits.set("path=100").unwrap();
        assert_eq!(limits, Limits { layers: 3, ratio: 10, path: 100, ..USUAL });
        for (text, key) in [
            ("layer=3", "layer"),
            ("layers=0", "layers"),
            ("layers=501", "layers"),
            ("ratio=x", "ratio"),
            ("path", "path"),
        ] {
            assert_eq!(limits.set(text).unwrap_err().id, key, "{text}");
        }
        assert_eq!(Limits::get(), &USUAL);
    }
}
