//! The handle that the other subsystems hold.

use std::time::Duration;

use cofferdam_content::Content;
use cofferdam_diff::Diff;
use cofferdam_kernel::{Kernel, Placement, Pool, Slot, SlotConfig};
use cofferdam_metadata::{
    Metadata,
    records::{
        content,
        images::{self, Image},
    },
};
use cofferdam_snapshots::Snapshots;
use cofferdam_types::{
    Authority, Code, Descriptor, Digest, Error, Labels, Name, Namespace, Pictures, Platform, Result,
};

use crate::{
    Check, Config, Manifest, Own, ResolvedImage, State, Unpack,
    actor::ImagesActor,
    document::{chain_ids, gc_labels},
    heal::Damaged,
    messages::{CheckContent, Documents, Platforms, Resolve, Size, States},
    recent::Recent,
    unpack::{self, Told},
};

/// Reading documents takes little time, and much of it only when they are hostile.
const THREADS: usize = 2;
const QUEUE: usize = 256;
/// One compares in the background; an operator's check doesn't wait for it.
const HEALERS: usize = 2;

/// Images: names, what they stand for, and what of it is unpacked. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    pub(crate) slot: Slot<ImagesActor>,
    pub(crate) meta: Metadata,
    pub(crate) content: Content,
    pub(crate) snapshots: Snapshots,
    pub(crate) diff: Diff,
    recent: Recent,
    /// Comparing and mending take as long as they are let.
    pub(crate) healing: Pool,
    pub(crate) damaged: Damaged,
}

impl Images {
    /// Hosts the actor.
    pub fn start(
        kernel: &Kernel,
        placement: Placement,
        meta: Metadata,
        content: Content,
        snapshots: Snapshots,
        diff: Diff,
    ) -> Images {
        let config = SlotConfig { heartbeat: Duration::from_secs(30), ..SlotConfig::new("images", placement) };
        let pool = Pool::new("images", THREADS, QUEUE);
        let theirs = content.clone();
        let slot = kernel.spawn(config, move || ImagesActor { content: theirs.clone(), pool: pool.clone() });
        let healing = Pool::new("healing", HEALERS, QUEUE);
        Images { slot, meta, content, snapshots, diff, recent: Recent::default(), healing, damaged: Damaged::default() }
    }

    /// The record of an image.
    pub fn get(&self, ns: &Namespace, name: &str) -> Result<Image> {
        images::get(&self.meta.read()?, ns, name)
    }

    /// A page of records, by name.
    pub fn list(&self, ns: &Namespace, after: Option<&str>, max: usize) -> Result<Vec<Image>> {
        images::list(&self.meta.read()?, ns, after, max)
    }

    /// Creates a record.
    pub async fn create(&self, auth: &Authority, ns: &Namespace, image: Image) -> Result<Image> {
        let ns = ns.clone();
        self.meta.write(auth, move |tx| images::create(tx, &ns, image.clone())).await
    }

    /// Replaces labels and target, or what `mask` names.
    pub async fn update(&self, auth: &Authority, ns: &Namespace, image: Image, mask: Vec<String>) -> Result<Image> {
        let ns = ns.clone();
        self.meta.write(auth, move |tx| images::update_fields(tx, &ns, image.clone(), &mask)).await
    }

    /// Creates a record or replaces it, as a pull does.
    pub async fn put(
        &self,
        auth: &Authority,
        ns: &Namespace,
        name: &Name,
        target: &Descriptor,
        labels: Labels,
    ) -> Result<Image> {
        let ns = ns.clone();
        let mut image = Image::new(name.clone(), target.clone());
        image.labels = labels;
        self.meta.write(auth, move |tx| put(tx, &ns, &image)).await
    }

    /// [`Images::put`] of several names without labels, in one commit, in which `also` writes first.
    pub async fn put_all(
        &self,
        auth: &Authority,
        ns: &Namespace,
        names: &[Name],
        target: &Descriptor,
        also: impl Fn(&mut cofferdam_metadata::Tx<'_>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let ns = ns.clone();
        let images: Vec<Image> = names.iter().map(|name| Image::new(name.clone(), target.clone())).collect();
        let write = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            also(tx)?;
            images.iter().try_for_each(|image| put(tx, &ns, image).map(drop))
        };
        self.meta.write(auth, write).await
    }

    /// Gives what an image stands for another name, with its labels. It must still be what was looked at: `expected`.
    pub async fn tag(
        &self,
        auth: &Authority,
        ns: &Namespace,
        source: &Name,
        name: &Name,
        expected: &Digest,
        replace: bool,
    ) -> Result<Image> {
        let (ns, source, name, expected) = (ns.clone(), source.clone(), name.clone(), expected.clone());
        let write = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            if images::get(tx, &ns, &source)?.target.digest != expected {
                let why = "stands for another image since it was looked at: try again";
                return Err(Error::failed_precondition("image", &source, why));
            }
            images::tag(tx, &ns, &source, name.clone(), replace)
        };
        self.meta.write(auth, write).await
    }

    /// Removes a record. Content and snapshots go when they are collected.
    pub async fn remove(&self, auth: &Authority, ns: &Namespace, name: &Name) -> Result<()> {
        let (ns, name) = (ns.clone(), name.clone());
        self.meta.write(auth, move |tx| images::delete(tx, &ns, &name)).await
    }

    /// The image of this name for a platform.
    pub async fn resolve(&self, ns: &Namespace, name: &Name, platform: &Platform) -> Result<ResolvedImage> {
        self.resolve_of(&Pictures::default(), ns, name, platform).await
    }

    /// The same for who may have those that `chosen` says: of what is the image's own ([`Images::own`]).
    pub async fn resolve_of(
        &self,
        chosen: &Pictures,
        ns: &Namespace,
        name: &Name,
        platform: &Platform,
    ) -> Result<ResolvedImage> {
        let target = self.get(ns, name)?.target;
        let own = self.own(chosen, ns, name, &target)?;
        let image = match own.is_all() {
            true => self.resolve_target(ns, &target, platform).await,
            // So is one that is chosen by the digest of its manifest, behind whatever index.
            false => match self.resolve_target(ns, &target, platform).await {
                Ok(image) if chosen.has("", &[&image.manifest.digest]) => Ok(image),
                _ => self.resolve_own(ns, &target, platform, own).await,
            },
        };
        image.map(|image| ResolvedImage { name: Some(name.clone()), ..image }).map_err(|e| match &*e.kind {
            // Its digest means nothing to who asked by a name.
            "image" => Error { id: name.to_string(), ..e },
            _ => e.context(format_args!("image {name}")),
        })
    }

    /// The image for a platform behind a descriptor, all of whose documents are in the namespace.
    pub async fn resolve_target(
        &self,
        ns: &Namespace,
        target: &Descriptor,
        platform: &Platform,
    ) -> Result<ResolvedImage> {
        if let Some(image) = self.recent.find(&self.meta.read()?, ns, target, platform)? {
            return Ok(image);
        }
        let image = self.slot.call(question(ns, target, platform)).await?;
        self.recent.keep(platform, &image);
        Ok(image)
    }

    /// What the image for a platform takes in the content store: index, manifest, config and layers.
    pub async fn size(&self, ns: &Namespace, target: &Descriptor, platform: &Platform) -> Result<u64> {
        self.slot.call(Size(question(ns, target, platform))).await
    }

    /// The platforms that there are images for behind a descriptor.
    pub async fn platforms(&self, ns: &Namespace, target: &Descriptor) -> Result<Vec<Platform>> {
        self.slot.call(Platforms { namespace: ns.clone(), target: target.clone() }).await
    }

    /// What of the image for a platform is in the namespace.
    pub async fn check(&self, ns: &Namespace, target: &Descriptor, platform: &Platform) -> Result<Check> {
        self.slot.call(CheckContent(question(ns, target, platform))).await
    }

    /// What is here of the images behind a descriptor, for each platform, as far as it is its own.
    pub async fn states(&self, ns: &Namespace, target: &Descriptor, own: Own) -> Result<Vec<State>> {
        self.slot.call(States { namespace: ns.clone(), target: target.clone(), own }).await
    }

    /// Whether a chain (an image's [`ResolvedImage::top`]) is unpacked for the namespace.
    pub fn is_unpacked(&self, ns: &Namespace, driver: &str, top: Option<&Digest>) -> Result<bool> {
        unpack::is_unpacked(self, ns, driver, top)
    }

    /// Gives every document behind `target` that is there the labels that keep its children from being collected, in
    /// one commit. For content that came without (an import, a client's own ingests); a pull sets them as it goes
    /// ([`crate::content_labels`]).
    pub async fn label(&self, auth: &Authority, ns: &Namespace, target: &Descriptor) -> Result<()> {
        let documents = self.slot.call(Documents { namespace: ns.clone(), target: target.clone() }).await?;
        let ns = ns.clone();
        let write = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            for (digest, children) in &documents {
                let labels = gc_labels(children);
                let mask: Vec<_> = labels.keys().map(|key| format!("labels.{key}")).collect();
                if !mask.is_empty() {
                    match content::update(tx, &ns, digest, &labels, &mask) {
                        Err(e) if e.code != Code::NotFound => return Err(e),
                        _ => {}
                    }
                }
            }
            Ok(())
        };
        self.meta.write(auth, write).await
    }

    /// Unpacks an image whose blobs are all in the namespace, and tells how far it is. Unpacked already, there is nothing to do.
    pub async fn unpack(
        &self,
        auth: &Authority,
        ns: &Namespace,
        image: &ResolvedImage,
        driver: &str,
        told: Option<Told>,
    ) -> Result<Option<Digest>> {
        let layers = rows(&image.layers, &image.config, &image.chain_ids);
        let config = &image.config_descriptor.digest;
        let pin = Unpack::pin(self, ns, driver, config, &layers).await?;
        Unpack::begin(self, auth, ns, driver, config, layers, pin)?.tell(told).finish(None).await
    }

    /// Begins to unpack an image whose layers are about to arrive; see [`Unpack`].
    pub async fn begin_unpack(
        &self,
        auth: &Authority,
        ns: &Namespace,
        manifest: &Manifest,
        config: &Config,
        driver: &str,
    ) -> Result<Unpack> {
        let chain = chain_ids(manifest, config)?;
        let layers = rows(&manifest.layers, config, &chain);
        let pin = Unpack::pin(self, ns, driver, &manifest.config.digest, &layers).await?;
        Unpack::begin(self, auth, ns, driver, &manifest.config.digest, layers, pin)?.open().await
    }
}

/// Creates a record or replaces it.
pub(crate) fn put(tx: &mut cofferdam_metadata::Tx<'_>, ns: &Namespace, image: &Image) -> Result<Image> {
    match images::find(tx, ns, &image.name)? {
        None => images::create(tx, ns, image.clone()),
        Some(_) => images::update(tx, ns, image.clone()),
    }
}

fn rows(layers: &[Descriptor], config: &Config, chain: &[Digest]) -> Vec<(Descriptor, Digest, Digest)> {
    let rows = layers.iter().zip(&config.diff_ids).zip(chain);
    rows.map(|((layer, diff_id), chain)| (layer.clone(), diff_id.clone(), chain.clone())).collect()
}

pub(crate) fn question(ns: &Namespace, target: &Descriptor, platform: &Platform) -> Resolve {
    Resolve { namespace: ns.clone(), target: target.clone(), platform: platform.clone(), own: Own::default() }
}
