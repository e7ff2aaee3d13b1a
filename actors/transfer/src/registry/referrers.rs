//! What names a manifest as its subject (OCI distribution-spec 1.1, "Listing Referrers" and "Pushing Manifests with Subject"): by
//! the API, and of a registry that hasn't got it by the tag that stands for it.

use cofferdam_images::{Document, document};
use cofferdam_types::{Algorithm, Code, Descriptor, Digest, Error, Result, media};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use ureq::{
    Body,
    http::{Method, Response, Uri},
};

use super::{
    Ask, MAX_MANIFEST, Repository,
    http::{Content, join},
};
use crate::Target;

const ACCEPT_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Answers that one list may take, and what it may hold.
const MAX_PAGES: usize = 32;
const MAX_REFERRERS: usize = 4096;

/// What a manifest says about itself to who lists what belongs to its subject.
pub struct Referrer {
    /// What it belongs to.
    pub subject: Descriptor,
    /// The entry of the list.
    pub entry: Descriptor,
}

/// What a manifest or an index names as its subject, if anything.
pub fn referrer(descriptor: &Descriptor, bytes: &[u8]) -> Result<Option<Referrer>> {
    let odd = |e: serde_json::Error| Error::invalid("document", &descriptor.digest, format!("its subject: {e}"));
    let whole: Value = serde_json::from_slice(bytes).map_err(odd)?;
    let Some(subject) = whole.get("subject").filter(|subject| !subject.is_null()) else { return Ok(None) };
    let subject: Descriptor = serde_json::from_value(subject.clone()).map_err(odd)?;
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let mut entry = Descriptor::new(&*descriptor.media_type, descriptor.digest.clone(), descriptor.size);
    // As the distribution-spec has it: where it doesn't say what it is, its config does.
    entry.artifact_type = text(&whole["artifactType"]).or_else(|| text(&whole["config"]["mediaType"]));
    if let Some(annotations) = whole.get("annotations").filter(|annotations| !annotations.is_null()) {
        entry.annotations = serde_json::from_value(annotations.clone()).map_err(odd)?;
    }
    Ok(Some(Referrer { subject, entry }))
}

/// The tag that stands for what refers to a manifest, where a registry can't tell.
fn fallback(subject: &Digest) -> String {
    format!("{}-{}", subject.algorithm().as_str(), subject.hex())
}

impl Repository {
    /// The manifest or index under a tag, if there is one.
    pub fn tagged(&self, tag: &str) -> Result<Option<(Descriptor, Vec<u8>)>> {
        let resolved = match self.resolve(&Target::Tag(tag.to_owned())) {
            Err(e) if e.code == Code::NotFound => return Ok(None),
            other => other?,
        };
        let bytes = match resolved.body {
            Some(bytes) => bytes,
            None => self.manifest(&resolved.descriptor)?,
        };
        Ok(Some((resolved.descriptor, bytes)))
    }

    /// What refers to a manifest, of one artifact type; empty: of all.
    pub fn referrers(&self, subject: &Digest, artifact_type: &str) -> Result<Vec<Descriptor>> {
        let query = match artifact_type {
            "" => String::new(),
            kind => format!("?artifactType={}", utf8_percent_encode(kind, NON_ALPHANUMERIC)),
        };
        let mut next = Some(self.http.uri("referrers", &format!("{subject}{query}"))?);
        let mut found: Vec<Descriptor> = Vec::new();
        let mut pages = 0;
        while let Some(uri) = next {
            pages += 1;
            if pages > MAX_PAGES || found.len() > MAX_REFERRERS {
                let why = format!("has more than {MAX_REFERRERS} of {subject}'s: ask for those of one type");
                return Err(self.http.error(Error::resource_exhausted, why));
            }
            let ask = || Ask {
                accept: Some(ACCEPT_INDEX),
                body_within: Some(self.http.limits.header),
                ..Ask::of(Method::GET, uri.clone())
            };
            let response = self.again(|| self.http.send(&ask()))?;
            match response.status().as_u16() {
                200 => {}
                // It doesn't know the question.
                404 | 405 | 501 if pages == 1 => {
                    let bytes = self.tagged(&fallback(subject))?;
                    found = bytes.map(|(index, bytes)| entries(&index, &bytes)).transpose()?.unwrap_or_default();
                    break;
                }
                _ => return Err(self.http.unexpected("what refers to it", response)),
            }
            next = following(&uri, &response);
            let bytes = self.bounded(response, MAX_MANIFEST)?;
            let index = Descriptor::new(media::OCI_INDEX, Digest::of(Algorithm::Sha256, &bytes), bytes.len() as u64);
            found.extend(entries(&index, &bytes)?);
        }
        // A registry may leave the choice to who asks.
        found.retain(|entry| artifact_type.is_empty() || entry.artifact_type.as_deref() == Some(artifact_type));
        Ok(found)
    }

    /// Stores a manifest that has a subject; of a registry that takes no notice of that it is added to the tag that stands for it.
    pub fn push_referrer(&self, name: &str, descriptor: &Descriptor, bytes: &[u8], is: &Referrer) -> Result<()> {
        let uri = self.http.uri("manifests", name)?;
        let content = || Content::Bytes(&descriptor.media_type, bytes);
        let response =
            self.again(|| self.http.send(&Ask { content: content(), ..Ask::of(Method::PUT, uri.clone()) }))?;
        if !matches!(response.status().as_u16(), 200..=204) {
            return Err(self.http.unexpected("the manifest", response));
        }
        let noted = response.headers().get("oci-subject").and_then(|said| said.to_str().ok()?.parse::<Digest>().ok());
        if noted.is_some_and(|noted| noted == is.subject.digest) {
            return Ok(());
        }
        let tag = fallback(&is.subject.digest);
        let mut list = match self.tagged(&tag)? {
            Some((index, bytes)) => entries(&index, &bytes)?,
            None => Vec::new(),
        };
        if list.iter().any(|entry| entry.digest == descriptor.digest) {
            return Ok(());
        }
        list.push(is.entry.clone());
        let body = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": list });
        let body = body.to_string().into_bytes();
        let index = Descriptor::new(media::OCI_INDEX, Digest::of(Algorithm::Sha256, &body), body.len() as u64);
        self.push_manifest(&tag, &index, &body).map_err(|e| e.context("the list of what belongs to its subject"))
    }
}

fn entries(index: &Descriptor, bytes: &[u8]) -> Result<Vec<Descriptor>> {
    match document(index, bytes)? {
        Document::Index(entries) => Ok(entries),
        Document::Manifest(_) => {
            let why = "stands where a list of what refers to an image should, and is none";
            Err(Error::data_loss("document", &index.digest, why))
        }
    }
}

/// Where the list goes on: `Link: <place>; rel="next"` (RFC 8288).
fn following(base: &Uri, response: &Response<Body>) -> Option<Uri> {
    let link = response.headers().get("link")?.to_str().ok()?;
    let (place, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    rest.contains("rel=\"next\"").then(|| join(base, place))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(value: &Value) -> (Descriptor, Vec<u8>) {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        (Descriptor::new(media::OCI_MANIFEST, digest, bytes.len() as u64), bytes)
    }

    #[test]
    fn a_manifest_says_what_it_belongs_to_and_what_it_is() {
        let subject =
            json!({ "mediaType": media::OCI_MANIFEST, "digest": Digest::of(Algorithm::Sha256, b"s"), "size": 1 });
        let (descriptor, bytes) = described(&json!({ "artifactType": "a/b", "config": { "mediaType": "c/d" },
            "subject": subject, "annotations": { "k": "v" } }));
        let is = referrer(&descriptor, &bytes).unwrap().unwrap();
        assert_eq!((is.subject.size, is.entry.artifact_type.as_deref()), (1, Some("a/b")));
        assert_eq!((is.entry.annotations["k"].as_str(), &is.entry.digest), ("v", &descriptor.digest));
        let (descriptor, bytes) = described(&json!({ "config": { "mediaType": "c/d" }, "subject": subject }));
        assert_eq!(referrer(&descriptor, &bytes).unwrap().unwrap().entry.artifact_type.as_deref(), Some("c/d"));
        for none in [json!({}), json!({ "subject": null })] {
            let (descriptor, bytes) = described(&none);
            assert!(referrer(&descriptor, &bytes).unwrap().is_none());
        }
        let (descriptor, bytes) = described(&json!({ "subject": { "digest": "sha256:../.." } }));
        assert!(referrer(&descriptor, &bytes).is_err());
    }
}
