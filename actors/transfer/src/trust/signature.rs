//! Signatures as cosign makes them: a payload that names a digest ("simple signing"), signed by a key, in a layer of a manifest
//! whose annotation is the signature.

use std::{fmt, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use cofferdam_images::{Document, document};
use cofferdam_types::{Descriptor, Digest, Result};
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use serde::Deserialize;

use super::policy::{bad, repository, trusted_file};

/// A layer that is a payload.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation of a payload that holds its signature.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// What a payload says that it is.
const TYPE: &str = "cosign container image signature";
/// The artifact type of a signature that names its image as its subject.
pub(super) const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// A payload has some hundred bytes.
pub(super) const MAX_PAYLOAD: u64 = 64 << 10;

/// What stands before the point of a P-256 key, and before the bytes of an Ed25519 one (RFC 5480, RFC 8410): there is one way to
/// write each.
const P256: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
const EDWARDS: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// A public key.
pub(super) struct Key {
    /// For messages: its file.
    shown: String,
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Key {
    /// Of a PEM file, as `cosign generate-key-pair` and `openssl pkey -pubout` write it.
    pub fn read(path: &Path) -> Result<Key> {
        Key::parse(&path.display().to_string(), &trusted_file(path)?).map_err(|why| bad(path, why.into()))
    }

    fn parse(shown: &str, pem: &[u8]) -> Result<Key, &'static str> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| "is not a public key in PEM form")?;
        let (algorithm, bytes): (&'static dyn VerificationAlgorithm, &[u8]) =
            match (der.strip_prefix(P256), der.strip_prefix(EDWARDS)) {
                (Some(point), _) if point.len() == 65 => (&ECDSA_P256_SHA256_ASN1, point),
                (_, Some(bytes)) if bytes.len() == 32 => (&ED25519, bytes),
                _ => return Err("is neither an ECDSA key on P-256 nor an Ed25519 key"),
            };
        Ok(Key { shown: shown.to_owned(), algorithm, bytes: bytes.to_vec() })
    }

    fn has_signed(&self, payload: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.bytes).verify(payload, signature).is_ok()
    }
}

/// Where a signature is: the payload's descriptor, and the signature of it.
pub(super) struct Claim {
    pub payload: Descriptor,
    signature: Vec<u8>,
}

/// What a manifest claims to be signatures. What it has of other kinds is passed over.
pub(super) fn claims(descriptor: &Descriptor, bytes: &[u8]) -> Result<Vec<Claim>> {
    let Document::Manifest(manifest) = document(descriptor, bytes)? else { return Ok(Vec::new()) };
    let claim = |layer: Descriptor| {
        let signature = STANDARD.decode(layer.annotations.get(SIGNATURE)?).ok()?;
        (layer.media_type == PAYLOAD && layer.size <= MAX_PAYLOAD).then_some(Claim { payload: layer, signature })
    };
    Ok(manifest.layers.into_iter().filter_map(claim).collect())
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Why a claim is none; nothing where one of the keys has signed these bytes, and they name this image.
pub(super) fn why_not(
    claim: &Claim,
    payload: &[u8],
    keys: &[Key],
    target: &Digest,
    repositories: &[String],
) -> Option<String> {
    if Digest::of(claim.payload.digest.algorithm(), payload) != claim.payload.digest {
        return Some("what is signed is damaged".into());
    }
    // First who says it, then what is said: nothing of a stranger's is read.
    if !keys.iter().any(|key| key.has_signed(payload, &claim.signature)) {
        return Some("one is by another key".into());
    }
    let Ok(Payload { critical }) = serde_json::from_slice(payload) else {
        return Some("one signs what is no signature of an image".into());
    };
    if critical.kind != TYPE {
        return Some(format!("one signs a {:?}", critical.kind));
    }
    if critical.image.digest != target.to_string() {
        return Some("one is for another image".into());
    }
    let of = repository(&critical.identity.reference);
    if of.is_empty() || !repositories.contains(&of) {
        return Some(format!("one is for the repository {:?}", critical.identity.reference));
    }
    None
}

#[cfg(test)]
mod tests {
    use cofferdam_types::{Algorithm, media};
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
    };
    use serde_json::json;

    use super::*;

    fn pem(prefix: &[u8], bytes: &[u8]) -> Vec<u8> {
        let der = STANDARD.encode([prefix, bytes].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n").into_bytes()
    }

    /// A key, and who signs by it.
    type Signer = (Key, Box<dyn Fn(&[u8]) -> Vec<u8>>);

    fn p256() -> Signer {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref(), &random).unwrap();
        let key = Key::parse("p256.pub", &pem(P256, pair.public_key().as_ref())).unwrap();
        (key, Box::new(move |bytes| pair.sign(&random, bytes).unwrap().as_ref().to_vec()))
    }

    fn edwards() -> Signer {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let key = Key::parse("ed25519.pub", &pem(EDWARDS, pair.public_key().as_ref())).unwrap();
        (key, Box::new(move |bytes| pair.sign(bytes).as_ref().to_vec()))
    }

    fn payload(digest: &Digest, reference: &str, kind: &str) -> Vec<u8> {
        json!({ "critical": { "identity": { "docker-reference": reference },
            "image": { "docker-manifest-digest": digest }, "type": kind }, "optional": null })
        .to_string()
        .into_bytes()
    }

    fn claim(payload: &[u8], signature: Vec<u8>) -> Claim {
        let digest = Digest::of(Algorithm::Sha256, payload);
        Claim { payload: Descriptor::new(PAYLOAD, digest, payload.len() as u64), signature }
    }

    #[test]
    fn what_one_of_the_keys_has_signed_counts_and_nothing_else() {
        let target = Digest::of(Algorithm::Sha256, b"image");
        let ours = ["h.io/app".to_owned()];
        for (signer, other) in [(p256(), edwards()), (edwards(), p256())] {
            let ((key, sign), (stranger, forge)) = (signer, other);
            let keys = [stranger, key];
            let judged =
                |text: Vec<u8>, signature: Vec<u8>| why_not(&claim(&text, signature), &text, &keys, &target, &ours);
            let good = payload(&target, "h.io/app:1", TYPE);
            assert_eq!(judged(good.clone(), sign(&good)), None);
            assert_eq!(judged(good.clone(), forge(&good)), None, "by the other of the two");
            let why = |text: Vec<u8>| judged(text.clone(), sign(&text)).unwrap();
            assert!(why(payload(&Digest::of(Algorithm::Sha256, b"old"), "h.io/app", TYPE)).contains("another image"));
            assert!(why(payload(&target, "h.io/app2", TYPE)).contains("h.io/app2"));
            assert!(why(payload(&target, "h.io/app", "atomic container signature")).contains("atomic"));
            assert!(why(b"{}".to_vec()).contains("no signature"));
            // One bit of the signature, and one of what is signed.
            let mut bent = sign(&good);
            *bent.last_mut().unwrap() ^= 1;
            assert!(judged(good.clone(), bent).unwrap().contains("another key"));
            let mut changed = good.clone();
            changed[0] = b' ';
            assert!(judged(changed, sign(&good)).unwrap().contains("another key"));
            assert!(why_not(&claim(b"x", sign(b"x")), &good, &keys, &target, &ours).unwrap().contains("damaged"));
            assert!(why_not(&claim(&good, sign(&good)), &good, &keys[..1], &target, &ours).is_some());
        }
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        for bad in [&b"nonsense"[..], &pem(P256, &[4; 64]), &pem(EDWARDS, &[4; 33]), &pem(b"\x30", &[1; 60]), b""] {
            assert!(Key::parse("x", bad).is_err());
        }
    }

    #[test]
    fn of_a_manifest_only_payloads_with_a_signature_are_claims() {
        let text = payload(&Digest::of(Algorithm::Sha256, b"image"), "h.io/app", TYPE);
        let layer = |media_type: &str, signature: serde_json::Value, size: u64| {
            json!({ "mediaType": media_type, "digest": Digest::of(Algorithm::Sha256, &text), "size": size,
                "annotations": { SIGNATURE: signature } })
        };
        let manifest = json!({ "schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
            "config": { "mediaType": media::OCI_CONFIG, "digest": Digest::of(Algorithm::Sha256, b"{}"), "size": 2 },
            "layers": [layer(PAYLOAD, json!("AAAA"), 9), layer("text/plain", json!("AAAA"), 9),
                layer(PAYLOAD, json!("!"), 9), layer(PAYLOAD, json!("AAAA"), 1 << 20)] });
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let found = claims(&Descriptor::new(media::OCI_MANIFEST, digest, bytes.len() as u64), &bytes).unwrap();
        assert_eq!((found.len(), found[0].signature.as_slice()), (1, &[0, 0, 0][..]));
    }
}
