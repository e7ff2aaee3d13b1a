//! Whose images come in: the operator's policy, and what shows that an image is one of them.
//!
//! Each way in asks here before anything of an image is fetched, stored, unpacked or named: a pull, an import, a tag, and what is made
//! here (a root file system, a commit, a checkpoint, a conversion, an artifact). What can't be found out is refused.
//!
//! What showed it is kept beside the image, as blobs that its manifest refers to: another name under the same rule needs no
//! registry then. It proves itself anew each time, so it doesn't matter who put it there.

mod policy;
mod signature;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use cofferdam_images::{Document, MAX_DOCUMENT, content_labels, document};
use cofferdam_kernel::block_on;
use cofferdam_types::{Algorithm, Authority, Code, Descriptor, Digest, Error, Labels, Namespace, Result, media};

use crate::{choose::Page, plan::REF_NAME, registry::Repository, transfer::Core};

use policy::{Demand, Policy, Rule, repository};
use signature::{ARTIFACT, MAX_PAYLOAD, claims, why_not};

/// The labels of a manifest that refer to what shows whose it is.
const KEPT: &str = "containerd.io/gc.ref.content.cosign.";
/// Documents that are looked at for one image.
const MAX_DOCUMENTS: usize = 32;
/// Signatures that are looked at for one image.
const MAX_CLAIMS: usize = 64;

/// The operator's policy. It is read when it is asked: what stands in the file counts from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    path: Option<PathBuf>,
    /// It must be there.
    named: bool,
}

/// Where signatures of an image may be.
pub(crate) trait Evidence {
    /// Manifests that may hold some.
    fn manifests(&self, target: &Digest) -> Result<Vec<Page>>;
    /// The bytes of a small blob.
    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>>;
}

/// What is made here: nobody has signed it.
pub(crate) struct Nowhere;

/// The rule for a name.
#[derive(Debug)]
pub(crate) struct Gate {
    rule: Rule,
    name: String,
    policy: String,
}

/// What showed that an image may come in.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pages: Vec<Page>,
}

impl Trust {
    /// No policy: everything comes in.
    pub fn none() -> Trust {
        Trust { path: None, named: false }
    }

    /// What stands in a file. Where it isn't there, everything comes in unless it was `named`.
    pub fn of(path: PathBuf, named: bool) -> Trust {
        Trust { path: Some(path), named }
    }

    /// Whether the policy can be read: for the log, at the start.
    pub fn check(&self) -> Result<()> {
        self.policy().map(drop)
    }

    fn policy(&self) -> Result<Option<Policy>> {
        let Some(path) = &self.path else { return Ok(None) };
        match path.symlink_metadata() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !self.named => Ok(None),
            _ => Policy::read(path).map(Some),
        }
    }

    /// The rule for a name, in a sentence.
    pub fn explain(&self, ns: &Namespace, name: &str) -> String {
        match self.gate(ns, name) {
            Ok(Some(gate)) => gate.sentence(),
            Ok(None) => "there is no policy: everything comes in".into(),
            Err(error) => error.to_string(),
        }
    }

    /// The rule for what is to have this name; an error where nothing may.
    pub(crate) fn open(&self, ns: &Namespace, name: &str) -> Result<Option<Gate>> {
        let gate = self.gate(ns, name)?;
        match gate {
            Some(gate) if matches!(gate.rule.demand, Demand::Reject) => Err(gate.refuse("lets nothing in")),
            other => Ok(other),
        }
    }

    fn gate(&self, ns: &Namespace, name: &str) -> Result<Option<Gate>> {
        let Some(policy) = self.policy()? else { return Ok(None) };
        let shown = self.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        Ok(Some(Gate { rule: policy.rule(ns, name), name: name.to_owned(), policy: shown }))
    }

    /// [`Trust::open`] and [`Gate::admit`] at once.
    pub(crate) fn admit(&self, ns: &Namespace, name: &str, target: &Digest, evidence: &dyn Evidence) -> Result<Shown> {
        let Some(gate) = self.open(ns, name)? else { return Ok(Shown::default()) };
        gate.admit(target, evidence)
    }
}

impl Gate {
    /// Whether an image may have the name.
    pub fn admit(&self, target: &Digest, evidence: &dyn Evidence) -> Result<Shown> {
        match &self.rule.demand {
            Demand::Nothing => Ok(Shown::default()),
            Demand::Reject => Err(self.refuse("lets nothing in")),
            Demand::Digest(digests) if digests.contains(target) => Ok(Shown::default()),
            Demand::Digest(_) => Err(self.refuse(&format!("has a list of digests, and {target} is not among them"))),
            Demand::Signature { keys, repositories } => {
                let own = [repository(&self.name)];
                let repositories = if repositories.is_empty() { &own[..] } else { repositories.as_slice() };
                let unknown = |e: Error| match e.code {
                    Code::Cancelled => e,
                    _ => {
                        e.context(format!("the signatures of {target}, without which it may not come in, can't be had"))
                    }
                };
                let mut reasons: Vec<String> = Vec::new();
                let mut left = MAX_CLAIMS;
                for (descriptor, bytes) in evidence.manifests(target).map_err(unknown)?.into_iter().take(MAX_DOCUMENTS)
                {
                    // A document that is none is no signature.
                    for claim in claims(&descriptor, &bytes).unwrap_or_default() {
                        let Some(rest) = left.checked_sub(1) else { break };
                        left = rest;
                        let payload = evidence.blob(&claim.payload).map_err(unknown)?;
                        match why_not(&claim, &payload, keys, target, repositories) {
                            None => return Ok(Shown { pages: vec![(claim.payload, payload), (descriptor, bytes)] }),
                            Some(why) if !reasons.contains(&why) => reasons.push(why),
                            Some(_) => {}
                        }
                    }
                }
                reasons.truncate(4);
                let found = if reasons.is_empty() { "there is none".to_owned() } else { reasons.join(", ") };
                Err(self.refuse(&format!("wants {target} to be signed by {}: {found}", listed(keys))))
            }
        }
    }

    fn refuse(&self, why: &str) -> Error {
        let whose = match self.rule.prefix.as_str() {
            "" => "the rule for all names".to_owned(),
            prefix => format!("the rule for {prefix}"),
        };
        let why = format!("is refused by the policy {}: {whose} {why}", self.policy);
        Error::denied("image", &self.name, why)
    }

    fn sentence(&self) -> String {
        let whose = if self.rule.prefix.is_empty() { "all names" } else { &self.rule.prefix };
        let wants = match &self.rule.demand {
            Demand::Nothing => "everything comes in".to_owned(),
            Demand::Reject => "nothing comes in".to_owned(),
            Demand::Digest(digests) => format!("{} digests come in", digests.len()),
            Demand::Signature { keys, .. } => format!("what is signed by {} comes in", listed(keys)),
        };
        format!("by the rule for {whose} in {}: {wants}", self.policy)
    }
}

fn listed(keys: &[signature::Key]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

impl Shown {
    /// Keeps it beside the image, which is in the namespace by now. What comes of that is not what the job is about.
    pub fn keep(self, core: &Core, auth: &Authority, ns: &Namespace, target: &Digest) {
        if let Err(error) = self.kept(core, auth, ns, target) {
            tracing::warn!(%target, %error, "what shows whose an image is can't be kept beside it");
        }
    }

    fn kept(self, core: &Core, auth: &Authority, ns: &Namespace, target: &Digest) -> Result<()> {
        let Some((top, _)) = self.pages.last().cloned() else { return Ok(()) };
        for (descriptor, bytes) in &self.pages {
            let labels = if *descriptor == top { content_labels(descriptor, bytes)? } else { Labels::new() };
            core.content.put_bytes_blocking(auth, ns, descriptor.digest.algorithm(), bytes, labels)?;
        }
        let key = format!("{KEPT}{}", top.digest.hex());
        let (labels, fields) = ([(key.clone(), top.digest.to_string())].into(), vec![format!("labels.{key}")]);
        block_on(core.content.update(auth, ns, target, labels, fields)).map(drop)
    }
}

impl Evidence for Nowhere {
    fn manifests(&self, _: &Digest) -> Result<Vec<Page>> {
        Ok(Vec::new())
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        Err(Error::not_found("blob", &descriptor.digest, "is not there"))
    }
}

/// What was kept beside an image of a namespace.
pub(crate) struct Kept<'a> {
    pub core: &'a Core,
    pub ns: &'a Namespace,
}

impl Evidence for Kept<'_> {
    fn manifests(&self, target: &Digest) -> Result<Vec<Page>> {
        let labels = match self.core.content.info(self.ns, target) {
            Err(e) if e.code == Code::NotFound => return Ok(Vec::new()),
            other => other?.labels,
        };
        let named = labels.iter().filter(|(key, _)| key.starts_with(KEPT));
        let digests = named.filter_map(|(_, value)| value.parse::<Digest>().ok()).take(MAX_DOCUMENTS);
        let mut pages = Vec::new();
        for digest in digests {
            match self.core.content.read_verified(self.ns, &digest, MAX_DOCUMENT) {
                Ok(bytes) => pages.push((Descriptor::new(media::OCI_MANIFEST, digest, bytes.len() as u64), bytes)),
                Err(e) if e.code == Code::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(pages)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.core.content.read_verified(self.ns, &descriptor.digest, MAX_PAYLOAD)
    }
}

/// A registry: by cosign's tag, and by what names the image as its subject.
impl Evidence for Repository {
    fn manifests(&self, target: &Digest) -> Result<Vec<Page>> {
        let tag = format!("{}-{}.sig", target.algorithm().as_str(), target.hex());
        let mut pages: Vec<Page> = self.tagged(&tag)?.into_iter().collect();
        let referrers = self.referrers(target, ARTIFACT)?;
        for entry in referrers.iter().filter(|entry| media::kind(&entry.media_type) == media::Kind::Manifest) {
            if pages.len() == MAX_DOCUMENTS {
                break;
            }
            let bare = Descriptor::new(&*entry.media_type, entry.digest.clone(), entry.size);
            let bytes = self.manifest(&bare)?;
            pages.push((bare, bytes));
        }
        Ok(pages)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.small_blob(descriptor)
    }
}

/// The layout of an archive: an entry that is tagged as cosign tags it, or called by its `save` what it is.
pub(crate) struct Archive<'a> {
    pub shelf: &'a dyn crate::plan::Shelf,
}

/// Whether an entry of a layout belongs to another image: as a signature and the like.
pub(crate) fn is_attachment(entry: &Descriptor) -> bool {
    let tag = entry.annotations.get(REF_NAME).map(|name| name.rsplit(':').next().unwrap_or(name));
    let tagged = tag.and_then(|tag| tag.strip_prefix("sha256-")).and_then(|rest| rest.split_once('.'));
    let by_tag = tagged.is_some_and(|(hex, end)| hex.len() == 64 && ["sig", "att", "sbom"].contains(&end));
    by_tag || entry.annotations.get("kind").is_some_and(|kind| SAVED.contains(&kind.as_str()))
}

/// What `cosign save` calls what it puts beside an image.
const SAVED: [&str; 2] = ["dev.cosignproject.cosign/sigs", "dev.cosignproject.cosign/atts"];

impl Evidence for Archive<'_> {
    fn manifests(&self, _: &Digest) -> Result<Vec<Page>> {
        let Some(bytes) = self.shelf.small("index.json", MAX_DOCUMENT)? else { return Ok(Vec::new()) };
        let own = Descriptor::new(media::OCI_INDEX, Digest::of(Algorithm::Sha256, &bytes), bytes.len() as u64);
        let Document::Index(entries) = document(&own, &bytes)? else { return Ok(Vec::new()) };
        let mut pages = Vec::new();
        for entry in entries.into_iter().filter(is_attachment).take(MAX_DOCUMENTS) {
            let bytes = self.blob(&entry)?;
            pages.push((Descriptor::new(&*entry.media_type, entry.digest, entry.size), bytes));
        }
        Ok(pages)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        crate::plan::verified(self.shelf, descriptor)
    }
}
