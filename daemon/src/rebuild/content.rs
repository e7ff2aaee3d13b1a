//! Blobs that lie on disk: those of images are put back on record where they belong, the rest in a namespace of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Read as _, copy},
    path::Path,
};

use cofferdam_images::{MAX_DOCUMENT, children, content_labels, document};
use cofferdam_metadata::{
    Tx, View,
    rebuild::Rebuild,
    records::{
        content::{self, Link},
        images, namespaces,
    },
};
use cofferdam_types::{Algorithm, Descriptor, Digest, Digester, Error, Labels, Namespace, Result, media};

use super::names;

/// Where the blobs are put that belong to nobody.
pub const NAMESPACE: &str = "recovered";

/// What was put on record.
#[derive(Debug, Default)]
pub struct Registered {
    /// Blobs that an image refers to.
    pub of_images: usize,
    /// Blobs that nothing refers to.
    pub others: usize,
    /// What an image refers to, and isn't there.
    pub lost: Vec<String>,
}

/// Puts all blobs on record that are on disk and what their names say.
pub fn register(new: &mut Rebuild, root: &Path) -> Result<Registered> {
    let blobs = root.join("content/blobs");
    let (mut found, mut missing) = (Registered::default(), BTreeSet::new());
    let view = new.read()?;
    for namespace in namespaces::list(&view, None, usize::MAX)? {
        let ns = namespace.name;
        let links = of_images(&view, &ns, &blobs, &mut missing)?;
        found.of_images += links.len();
        link(new, ns, links)?;
    }
    found.lost = missing.iter().map(Digest::to_string).collect();
    let view = new.read()?;
    let mut others = Vec::new();
    let recorded = recorded(&view)?;
    for algorithm in Algorithm::ALL {
        for name in names(&blobs.join(algorithm.as_str())) {
            let Ok(digest) = format!("{}:{name}", algorithm.as_str()).parse::<Digest>() else { continue };
            if !recorded.contains(&digest)
                && let Some(size) = verified(&blobs, &digest)
            {
                others.push(Link::new(digest, size));
            }
        }
    }
    found.others = others.len();
    if !others.is_empty() {
        let ns = Namespace::new(NAMESPACE)?;
        let name = ns.clone();
        new.write(move |tx| match namespaces::find(tx, &name)? {
            Some(_) => Ok(()),
            None => namespaces::create(tx, &name, &Labels::new()).map(drop),
        })?;
        link(new, ns, others)?;
    }
    Ok(found)
}

fn link(new: &mut Rebuild, ns: Namespace, links: Vec<Link>) -> Result<()> {
    new.write(move |tx: &mut Tx<'_>| links.iter().try_for_each(|link| content::create(tx, &ns, link.clone()).map(drop)))
}

/// All that a namespace has: the counts are made when the rest is there.
fn recorded(view: &View) -> Result<BTreeSet<Digest>> {
    let mut all = BTreeSet::new();
    for namespace in namespaces::list(view, None, usize::MAX)? {
        all.extend(content::list(view, &namespace.name, None, usize::MAX)?.into_iter().map(|link| link.digest));
    }
    Ok(all)
}

/// What images refer to and is on disk, and has no record.
fn of_images(view: &View, ns: &Namespace, blobs: &Path, missing: &mut BTreeSet<Digest>) -> Result<Vec<Link>> {
    let mut next: Vec<Descriptor> =
        images::list(view, ns, None, usize::MAX)?.into_iter().map(|image| image.target).collect();
    let (mut seen, mut links) = (BTreeSet::new(), BTreeMap::new());
    while let Some(descriptor) = next.pop() {
        let digest = &descriptor.digest;
        if !seen.insert(digest.clone()) {
            continue;
        }
        let known = content::find(view, ns, digest)?.is_some();
        let size = if known { Some(descriptor.size) } else { verified(blobs, digest) };
        let Some(size) = size else {
            missing.insert(digest.clone());
            continue;
        };
        let mut labels = Labels::new();
        if matches!(media::kind(&descriptor.media_type), media::Kind::Manifest | media::Kind::Index) {
            match read(blobs, digest).and_then(|bytes| Ok((content_labels(&descriptor, &bytes)?, bytes))) {
                Ok((refers, bytes)) => {
                    labels = refers;
                    let below = children(&document(&descriptor, &bytes)?);
                    // Of an index only some entries were ever fetched.
                    let fetched = |one: &Descriptor| {
                        media::kind(&descriptor.media_type) == media::Kind::Manifest
                            || path(blobs, &one.digest).exists()
                    };
                    next.extend(below.into_iter().filter(fetched));
                }
                Err(error) => tracing::warn!(%digest, %error, "what it refers to can't be found out"),
            }
        }
        if !known {
            links.insert(digest.clone(), Link { labels, ..Link::new(digest.clone(), size) });
        }
    }
    Ok(links.into_values().collect())
}

fn path(blobs: &Path, digest: &Digest) -> std::path::PathBuf {
    blobs.join(digest.algorithm().as_str()).join(digest.hex())
}

fn read(blobs: &Path, digest: &Digest) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path(blobs, digest)).and_then(|file| file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|e| Error::io("blob", digest, "reading it", &e))
}

/// The size of a blob that is on disk, and what its name says.
fn verified(blobs: &Path, digest: &Digest) -> Option<u64> {
    let mut file = File::open(path(blobs, digest)).ok()?;
    let mut digester = Digester::new(digest.algorithm());
    let size = copy(&mut file, &mut Hashed(&mut digester)).ok()?;
    (digester.finish() == *digest).then_some(size)
}

struct Hashed<'a>(&'a mut Digester);

impl std::io::Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
