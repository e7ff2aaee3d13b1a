//! Archives and images made byte by byte, right or wrong.

use std::{fs, io::Write, path::Path};

use cofferdam_types::{Algorithm, Descriptor, Digest, media};
use serde_json::{Value, json};

pub const TIME: u64 = 1_600_000_000;

/// A tar that holds whatever it is told.
#[derive(Clone, Default)]
pub struct Tar {
    bytes: Vec<u8>,
    uid: u32,
}

impl Tar {
    pub fn new() -> Tar {
        Tar::default()
    }

    /// A header with every field given, and what follows it.
    pub fn raw(mut self, name: &[u8], flag: u8, link: &[u8], mode: u32, size: &[u8], data: &[u8]) -> Tar {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        block[108..115].copy_from_slice(format!("{:07o}", self.uid).as_bytes());
        block[116..123].copy_from_slice(format!("{:07o}", self.uid).as_bytes());
        block[124..124 + size.len()].copy_from_slice(size);
        block[136..147].copy_from_slice(format!("{TIME:011o}").as_bytes());
        block[156] = flag;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        sum(&mut block);
        self.bytes.extend_from_slice(&block);
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// Changes the last header, which must have no data.
    pub fn patch(mut self, at: usize, bytes: &[u8]) -> Tar {
        let start = self.bytes.len() - 512;
        let mut block: [u8; 512] = self.bytes[start..].try_into().unwrap();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        sum(&mut block);
        self.bytes[start..].copy_from_slice(&block);
        self
    }

    pub fn entry(self, name: &[u8], flag: u8, link: &[u8], mode: u32, data: &[u8]) -> Tar {
        let size = |n: usize| format!("{n:011o}\0").into_bytes();
        let long = |tar: Tar, flag, text: &[u8]| {
            let body = [text, b"\0"].concat();
            tar.raw(b"././@LongLink", flag, b"", 0, &size(body.len()), &body)
        };
        let tar = if name.len() > 99 { long(self, b'L', name) } else { self };
        let tar = if link.len() > 99 { long(tar, b'K', link) } else { tar };
        tar.raw(&name[..name.len().min(99)], flag, &link[..link.len().min(99)], mode, &size(data.len()), data)
    }

    pub fn file(self, name: &str, data: &str) -> Tar {
        self.entry(name.as_bytes(), b'0', b"", 0o644, data.as_bytes())
    }

    pub fn bytes(self, name: &str, data: &[u8]) -> Tar {
        self.entry(name.as_bytes(), b'0', b"", 0o644, data)
    }

    pub fn mode(self, name: &str, data: &str, mode: u32) -> Tar {
        self.entry(name.as_bytes(), b'0', b"", mode, data.as_bytes())
    }

    pub fn dir(self, name: &str, mode: u32) -> Tar {
        self.entry(name.as_bytes(), b'5', b"", mode, b"")
    }

    pub fn symlink(self, target: &str, name: &str) -> Tar {
        self.entry(name.as_bytes(), b'2', target.as_bytes(), 0o777, b"")
    }

    pub fn link(self, target: &str, name: &str) -> Tar {
        self.entry(name.as_bytes(), b'1', target.as_bytes(), 0o644, b"")
    }

    pub fn device(self, name: &str, flag: u8, mode: u32, major: u32, minor: u32) -> Tar {
        self.entry(name.as_bytes(), flag, b"", mode, b"")
            .patch(329, format!("{major:07o}\0").as_bytes())
            .patch(337, format!("{minor:07o}\0").as_bytes())
    }

    /// PAX records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.raw(b"pax", b'x', b"", 0o644, format!("{:011o}\0", body.len()).as_bytes(), &body)
    }

    /// Owner and group of what follows.
    pub fn owner(mut self, uid: u32) -> Tar {
        self.uid = uid;
        self
    }

    /// What there is, without an end.
    pub fn open(self) -> Vec<u8> {
        self.bytes
    }

    pub fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

fn sum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

pub fn sha(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// Bytes that do not compress.
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

/// The files of an OCI layout or of a docker archive: path to bytes, in order.
pub type Files = Vec<(String, Vec<u8>)>;

/// An image whose every blob is at hand. Its parts may be changed before it is put together.
#[derive(Clone)]
pub struct Picture {
    pub layers: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub media_type: String,
}

impl Picture {
    /// Of these layers, gzipped.
    pub fn of(tars: Vec<Vec<u8>>) -> Picture {
        Picture::with(tars.iter().map(|tar| gzip(tar)).collect(), tars.iter().map(|tar| sha(tar)).collect())
    }

    /// Two layers, the second of which replaces a file of the first; `size` bytes that take a while.
    pub fn sample(marker: &str, size: usize) -> Picture {
        let lower = Tar::new().file("etc/name", "lower").file("etc/marker", marker).bytes("big", &noise(size));
        Picture::of(vec![lower.end(), Tar::new().file("etc/name", "upper").end()])
    }

    /// As told, whether or not it fits together.
    pub fn with(layers: Vec<Vec<u8>>, diff_ids: Vec<Digest>) -> Picture {
        let kind = |layer: &[u8]| match layer {
            [0x1f, 0x8b, ..] => media::OCI_LAYER_GZIP,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => media::OCI_LAYER_ZSTD,
            _ => media::OCI_LAYER,
        };
        let descriptors: Vec<Descriptor> =
            layers.iter().map(|layer| Descriptor::new(kind(layer), sha(layer), layer.len() as u64)).collect();
        Picture::described(layers, json!(descriptors), diff_ids)
    }

    /// The same with the manifest's list of layers as told.
    pub fn described(layers: Vec<Vec<u8>>, descriptors: Value, diff_ids: Vec<Digest>) -> Picture {
        let config = json!({"os": "linux", "architecture": arch(), "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let manifest = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
            "config": Descriptor::new(media::OCI_CONFIG, sha(&config), config.len() as u64), "layers": descriptors});
        let manifest = manifest.to_string().into_bytes();
        Picture { layers, config, manifest, media_type: media::OCI_MANIFEST.to_owned() }
    }

    pub fn target(&self) -> Descriptor {
        Descriptor::new(&self.media_type, sha(&self.manifest), self.manifest.len() as u64)
    }

    pub fn blobs(&self) -> Vec<&[u8]> {
        self.layers.iter().chain([&self.config, &self.manifest]).map(Vec::as_slice).collect()
    }

    /// As an OCI layout.
    pub fn layout(&self) -> Files {
        layout(&json!([self.target()]), &self.blobs())
    }
}

/// Writes images as layouts that [`crate::support::world::Registry::push`] takes, each by its name.
pub fn shelf(dir: &Path, pictures: &[(&str, &Picture)]) {
    for (name, picture) in pictures {
        let mut target = json!(picture.target());
        target["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        write(&layout(&json!([target]), &picture.blobs()), &dir.join("oci").join(name));
    }
}

/// An OCI layout of these entries and blobs.
pub fn layout(entries: &Value, blobs: &[&[u8]]) -> Files {
    let index = json!({"schemaVersion": 2, "manifests": entries});
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index.to_string().into_bytes()),
    ];
    files.extend(blobs.iter().map(|blob| (format!("blobs/sha256/{}", sha(blob).hex()), blob.to_vec())));
    files
}

/// What Go, and the OCI, call this machine.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn pack(files: &Files) -> Vec<u8> {
    files.iter().fold(Tar::new(), |tar, (name, bytes)| tar.bytes(name, bytes)).end()
}

pub fn write(files: &Files, dir: &Path) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}
