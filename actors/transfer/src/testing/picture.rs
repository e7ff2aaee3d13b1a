//! Small images, in every form in which they come.

use std::{fs, io::Write, path::Path};

use cofferdam_types::{Algorithm, Descriptor, Digest, media};
use serde_json::{Value, json};

/// An image for amd64 whose every blob is at hand.
pub struct Picture {
    pub layers: Vec<Vec<u8>>,
    pub tars: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

pub fn sha(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress, so that a layer of them takes a while.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..size.div_ceil(8)).flat_map(|_| next()).take(size).collect()
}

impl Picture {
    /// Two layers; the second replaces a file of the first.
    pub fn new(marker: &str) -> Picture {
        let lower = tar_of(&[("etc/name", b"lower"), ("etc/marker", marker.as_bytes()), ("big", &noise(700_000))]);
        Picture::of(vec![lower, tar_of(&[("etc/name", b"upper")])])
    }

    pub fn of(tars: Vec<Vec<u8>>) -> Picture {
        let layers: Vec<Vec<u8>> = tars.iter().map(|tar| gzip(tar)).collect();
        Picture::with(tars, layers, None)
    }

    /// As told, whether or not it fits together.
    pub fn with(tars: Vec<Vec<u8>>, layers: Vec<Vec<u8>>, diff_ids: Option<Vec<Digest>>) -> Picture {
        let diff_ids = diff_ids.unwrap_or_else(|| tars.iter().map(|tar| sha(tar)).collect());
        let config = json!({"os": "linux", "architecture": "amd64", "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes();
        let descriptors: Vec<Descriptor> =
            layers.iter().map(|l| Descriptor::new(media::OCI_LAYER_GZIP, sha(l), l.len() as u64)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
            "config": Descriptor::new(media::OCI_CONFIG, sha(&config), config.len() as u64), "layers": descriptors})
        .to_string()
        .into_bytes();
        Picture { layers, tars, config, manifest }
    }

    pub fn target(&self) -> Descriptor {
        Descriptor::new(media::OCI_MANIFEST, sha(&self.manifest), self.manifest.len() as u64)
    }

    pub fn chain(&self) -> Digest {
        let mut chain = None;
        for tar in &self.tars {
            chain = Some(Digest::chain(chain.as_ref(), &sha(tar)));
        }
        chain.unwrap()
    }

    pub fn blobs(&self) -> Vec<&[u8]> {
        self.layers.iter().chain([&self.config, &self.manifest]).map(Vec::as_slice).collect()
    }

    pub fn index(&self, ref_name: Option<&str>) -> Vec<u8> {
        let mut entry: Value = json!(self.target());
        if let Some(name) = ref_name {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes()
    }

    /// The files of an OCI layout.
    pub fn layout(&self, ref_name: Option<&str>) -> Vec<(String, Vec<u8>)> {
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), self.index(ref_name)),
        ];
        for blob in self.blobs() {
            files.push((format!("blobs/sha256/{}", sha(blob).hex()), blob.to_vec()));
        }
        files
    }

    /// A docker archive as skopeo and older dockers write it: plain layers, one of them behind a link, the manifest
    /// last.
    pub fn docker(&self, tags: &[&str]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, content).unwrap();
        };
        let mut paths = Vec::new();
        for (n, layer) in self.tars.iter().enumerate() {
            let name = format!("{}.tar", sha(layer).hex());
            add(&name, layer);
            paths.push(if n == 0 { "first/layer.tar".to_owned() } else { name });
        }
        let config = format!("{}.json", sha(&self.config).hex());
        add(&config, &self.config);
        add("repositories", b"{}");
        add("VERSION", b"1.0");
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, "first/layer.tar", format!("../{}.tar", sha(&self.tars[0]).hex())).unwrap();
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": paths}]).to_string();
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(manifest.len() as u64);
        tar.append_data(&mut header, "manifest.json", manifest.as_bytes()).unwrap();
        tar.into_inner().unwrap()
    }
}

pub fn tar_up(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(n, c)| (n.as_str(), c.as_slice())).collect();
    tar_of(&files)
}

pub fn write_down(dir: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}
