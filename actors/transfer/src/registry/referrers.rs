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

use super::{Ask, MAX_MANIFEST, Repository, http::join};
use crate::{Target, flights::Flights};

const ACCEPT_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Answers that one list may take, and what it may hold.
const MAX_PAGES: usize = 32;
const MAX_REFERRERS: usize = 4096;
/// How often a list that others write too is written.
const TRIES: u32 = 6;

/// Who is writing a list: of which repository, and of what belongs to what.
pub(crate) type Lists = Flights<(String, Digest)>;

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
                _ => return Err(self.http.unexpected("list of referrers", response)),
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
    pub(crate) fn push_referrer(
        &self,
        name: &str,
        descriptor: &Descriptor,
        bytes: &[u8],
        is: &Referrer,
        lists: &Lists,
    ) -> Result<()> {
        let response = self.put_manifest(name, descriptor, bytes)?;
        let noted = response.headers().get("oci-subject").and_then(|said| said.to_str().ok()?.parse::<Digest>().ok());
        if noted.is_some_and(|noted| noted == is.subject.digest) {
            return Ok(());
        }
        self.enlist(is, lists).map_err(|e| e.context("the list of what belongs to its subject"))
    }

    /// Adds it to the list under the tag. That is written whole, and nothing keeps two who add to it from each writing what the other
    /// hasn't seen. Of this daemon one at a time does; whether another client has written over it is looked for a while later, when
    /// one who had read the list before us has written it.
    fn enlist(&self, is: &Referrer, lists: &Lists) -> Result<()> {
        let (subject, ours) = (&is.subject.digest, &is.entry.digest);
        let (tag, key) = (fallback(subject), (self.http.place(), subject.clone()));
        let mut pause = self.http.limits.backoff;
        for tried in 0..=TRIES {
            let turn = lists.alone(&key, &self.cancel)?;
            let found = self.tagged(&tag)?;
            let listed = found.as_ref().map(|(index, bytes)| entries(index, bytes)).transpose()?.unwrap_or_default();
            if listed.iter().any(|entry| entry.digest == *ours) {
                return Ok(());
            }
            if tried == TRIES {
                break;
            }
            let body = with_entry(found.as_ref().map(|(_, bytes)| &**bytes), &is.entry)?;
            let index = Descriptor::new(media::OCI_INDEX, Digest::of(Algorithm::Sha256, &body), body.len() as u64);
            self.push_manifest(&tag, &index, &body)?;
            drop(turn);
            self.cancel.wait(pause)?;
            // Two who write over each other don't wait alike: no two add the same.
            pause += self.http.limits.backoff
                * (1 + ours.hex().as_bytes().get(tried as usize).map_or(0, |byte| u32::from(byte % 8)));
        }
        let why = format!("is written by others all the time, and each time without {ours}: try again");
        Err(self.http.error(Error::unavailable, format!("has a list of what belongs to {subject} that {why}")))
    }
}

/// A list with one entry more. What others have put there stays as it is.
fn with_entry(list: Option<&[u8]>, entry: &Descriptor) -> Result<Vec<u8>> {
    let odd = |e: serde_json::Error| Error::invalid("document", &entry.digest, format!("its list: {e}"));
    let mut whole = match list {
        Some(bytes) => serde_json::from_slice(bytes).map_err(odd)?,
        None => json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [] }),
    };
    match whole["manifests"].as_array_mut() {
        Some(all) => all.push(json!(entry)),
        None => whole["manifests"] = json!([entry]),
    }
    Ok(whole.to_string().into_bytes())
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
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use super::*;
    use crate::{
        Cancel, Endpoint, Limits, Reference,
        registry::Access,
        testing::server::{Reply, Server},
    };

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

    type Kept = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

    /// A registry without the API that keeps manifests by their names; `after` is done behind each list that is written.
    fn plain(after: impl Fn(&mut BTreeMap<String, Vec<u8>>, &str) + Send + Sync + 'static) -> (Server, Kept) {
        let kept = Kept::default();
        let mine = kept.clone();
        let server = Server::new(move |seen| {
            let Some((_, name)) = seen.path().split_once("/manifests/") else { return Reply::new(404, "") };
            let mut kept = mine.lock().unwrap();
            if seen.method == "PUT" {
                let digest = Digest::of(Algorithm::Sha256, &seen.body).to_string();
                kept.insert(digest, seen.body.clone());
                kept.insert(name.to_owned(), seen.body.clone());
                if name.starts_with("sha256-") {
                    after(&mut kept, name);
                }
                return Reply::new(201, "");
            }
            match kept.get(name) {
                Some(bytes) => Reply::ok(bytes.clone())
                    .with("content-type", media::OCI_INDEX)
                    .with("docker-content-digest", Digest::of(Algorithm::Sha256, bytes)),
                None => Reply::new(404, ""),
            }
        });
        (server, kept)
    }

    fn repository(server: &Server) -> Repository {
        let reference = Reference::parse(&format!("{}/a/b:t", server.host())).unwrap();
        let limits = Limits { backoff: Duration::from_millis(1), ..Limits::default() };
        let endpoint = Endpoint { limits, ..Endpoint::default() };
        Repository::with(&reference, &endpoint, Access::Push(Vec::new()), &Cancel::new()).unwrap()
    }

    fn subject() -> Descriptor {
        Descriptor::new(media::OCI_MANIFEST, Digest::of(Algorithm::Sha256, b"s"), 1)
    }

    /// The n-th of those that belong to it.
    fn nth(n: usize) -> (Descriptor, Vec<u8>, Referrer) {
        let (descriptor, bytes) =
            described(&json!({ "schemaVersion": 2, "artifactType": format!("a/{n}"), "subject": subject() }));
        let is = referrer(&descriptor, &bytes).unwrap().unwrap();
        (descriptor, bytes, is)
    }

    fn push(server: &Server, n: usize, lists: &Lists) -> Result<Digest> {
        let (descriptor, bytes, is) = nth(n);
        let name = descriptor.digest.to_string();
        repository(server).push_referrer(&name, &descriptor, &bytes, &is, lists).map(|()| descriptor.digest)
    }

    fn listed(server: &Server) -> Vec<Digest> {
        let found = repository(server).referrers(&subject().digest, "").unwrap();
        let mut found: Vec<_> = found.into_iter().map(|entry| entry.digest).collect();
        found.sort();
        found
    }

    #[test]
    fn many_at_once_are_all_in_the_list() {
        let ((server, _), lists) = (plain(|_, _| ()), Lists::default());
        let mut pushed: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..24)
                .map(|n| {
                    scope.spawn({
                        let (server, lists) = (&server, &lists);
                        move || push(server, n, lists).unwrap()
                    })
                })
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        pushed.sort();
        assert_eq!(listed(&server), pushed);
        // Once more is the same.
        assert_eq!(push(&server, 3, &lists).unwrap(), nth(3).0.digest);
        assert_eq!(listed(&server).len(), 24);
    }

    #[test]
    fn what_another_client_writes_over_is_written_again() {
        let other = nth(99).2.entry;
        let others = {
            let entry = other.clone();
            move || with_entry(None, &entry).unwrap()
        };
        // Twice another one writes what it had read before ours was there.
        let (times, list) = (Mutex::new(0), others.clone());
        let (server, kept) = plain(move |kept, tag| {
            let mut times = times.lock().unwrap();
            *times += 1;
            if *times <= 2 {
                kept.insert(Digest::of(Algorithm::Sha256, &list()).to_string(), list());
                kept.insert(tag.to_owned(), list());
            }
        });
        let ours = push(&server, 1, &Lists::default()).unwrap();
        let mut both = vec![ours, other.digest.clone()];
        both.sort();
        assert_eq!(listed(&server), both);
        // What others have put beside the entries stays.
        let tag = fallback(&subject().digest);
        let mut list: Value = serde_json::from_slice(&kept.lock().unwrap()[&tag]).unwrap();
        list["annotations"] = json!({ "k": "v" });
        list["manifests"][0]["data"] = json!("e30=");
        let bytes = list.to_string().into_bytes();
        kept.lock().unwrap().insert(Digest::of(Algorithm::Sha256, &bytes).to_string(), bytes.clone());
        kept.lock().unwrap().insert(tag.clone(), bytes);
        push(&server, 2, &Lists::default()).unwrap();
        let after: Value = serde_json::from_slice(&kept.lock().unwrap()[&tag]).unwrap();
        assert_eq!((&after["annotations"], &after["manifests"][0]), (&list["annotations"], &list["manifests"][0]));
        assert_eq!(after["manifests"].as_array().unwrap().len(), 3);

        // One that does so each time is given up.
        let (server, _) = plain(move |kept, tag| {
            kept.insert(Digest::of(Algorithm::Sha256, &others()).to_string(), others());
            kept.insert(tag.to_owned(), others());
        });
        let error = push(&server, 1, &Lists::default()).unwrap_err();
        assert!(error.code == Code::Unavailable && error.message.contains("written by others"), "{error}");
    }
}
