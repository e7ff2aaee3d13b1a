//! Who signs images as cosign does: by openssl, pushed by skopeo.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use cofferdam_types::{Descriptor, Digest, media};
use serde_json::json;
use tempfile::TempDir;

use super::{
    craft::{Files, sha, write},
    world::tool,
};

pub const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// A key of its own.
pub struct Signer {
    dir: TempDir,
    edwards: bool,
}

/// The manifest of a signature, and its other blobs.
pub struct Signature {
    pub manifest: Vec<u8>,
    pub blobs: Vec<Vec<u8>>,
}

impl Signer {
    /// ECDSA on P-256, as cosign makes them; or Ed25519.
    pub fn new(edwards: bool) -> Signer {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer { dir, edwards };
        let (key, public) = (signer.path("key"), signer.public());
        let kind: &[&str] = match edwards {
            true => &["-algorithm", "ED25519"],
            false => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        };
        tool("openssl", &[&["genpkey", "-out", key.to_str().unwrap()], kind].concat());
        tool("openssl", &["pkey", "-in", key.to_str().unwrap(), "-pubout", "-out", public.to_str().unwrap()]);
        fs::set_permissions(&public, fs::Permissions::from_mode(0o644)).unwrap();
        signer
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The file of its public key.
    pub fn public(&self) -> PathBuf {
        self.path("key.pub")
    }

    /// In base64.
    fn sign(&self, payload: &[u8]) -> String {
        let (key, text, signature) = (self.path("key"), self.path("text"), self.path("signature"));
        let [key, text, signature] = [&key, &text, &signature].map(|path| path.to_str().unwrap());
        fs::write(text, payload).unwrap();
        match self.edwards {
            true => tool("openssl", &["pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", text, "-out", signature]),
            false => tool("openssl", &["dgst", "-sha256", "-sign", key, "-out", signature, text]),
        };
        tool("openssl", &["base64", "-A", "-in", signature]).trim().to_owned()
    }

    /// Of an image that is called so.
    pub fn signature(&self, image: &Digest, reference: &str, subject: Option<&Descriptor>) -> Signature {
        let payload = json!({ "critical": { "identity": { "docker-reference": reference },
            "image": { "docker-manifest-digest": image }, "type": "cosign container image signature" },
            "optional": null });
        let payload = payload.to_string().into_bytes();
        let config = json!({ "architecture": "", "os": "", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [sha(&payload)] } });
        let config = config.to_string().into_bytes();
        let mut layer = Descriptor::new(PAYLOAD, sha(&payload), payload.len() as u64);
        layer.annotations.insert("dev.cosignproject.cosign/signature".into(), self.sign(&payload));
        let mut body = json!({ "schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
            "config": Descriptor::new(media::OCI_CONFIG, sha(&config), config.len() as u64), "layers": [layer] });
        if let Some(subject) = subject {
            body["subject"] = json!(subject);
            body["artifactType"] = json!(ARTIFACT);
        }
        Signature { manifest: body.to_string().into_bytes(), blobs: vec![payload, config] }
    }

    /// Signs an image of a registry, in cosign's place for it.
    pub fn push(&self, repository: &str, image: &Digest, reference: &str) {
        let dir = tempfile::tempdir().unwrap();
        let tag = format!("sha256-{}.sig", image.hex());
        let files = self.signature(image, reference, None).layout(&tag);
        write(&files, dir.path());
        skopeo(dir.path(), &tag, &format!("{repository}:{tag}"));
    }
}

impl Signature {
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(media::OCI_MANIFEST, sha(&self.manifest), self.manifest.len() as u64)
    }

    pub fn all(&self) -> Vec<&[u8]> {
        self.blobs.iter().chain([&self.manifest]).map(Vec::as_slice).collect()
    }

    fn layout(&self, tag: &str) -> Files {
        let mut entry = self.descriptor();
        entry.annotations.insert("org.opencontainers.image.ref.name".into(), tag.into());
        super::craft::layout(&json!([entry]), &self.all())
    }
}

/// Copies what a layout has under a tag to a registry.
pub fn skopeo(layout: &Path, tag: &str, to: &str) {
    let from = format!("oci:{}:{tag}", layout.display());
    let output = Command::new("skopeo")
        .args(["copy", "-q", "--dest-tls-verify=false", &from])
        .arg(format!("docker://{to}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
