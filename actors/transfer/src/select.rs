//! All that a name leads to, or what of it somebody chooses.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
};

use cofferdam_images::{Document, document};
use cofferdam_types::{Descriptor, Digest, Error, Platform, Result, media};

use crate::{
    Verdict,
    choose::{Library, Page},
    registry::MAX_MANIFEST,
};

/// Documents within documents.
const MAX_DEPTH: u16 = 8;
/// Documents of one pull, and the bytes of all of them.
const MAX_DOCUMENTS: usize = 1000;
const MAX_BYTES: usize = 32 << 20;

/// What is fetched.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Manifests, indexes and configs, each before what it leads to.
    pub pages: Vec<Page>,
    /// All else.
    pub blobs: Vec<Descriptor>,
    /// Nothing was left out but images for other platforms.
    pub whole: bool,
}

/// Asked about everything on the way.
pub(crate) type Ask<'a> = &'a dyn Fn(&Descriptor, u16) -> Result<Verdict>;

/// All that `target` leads to; of an index the images for `platforms` alone, if there are any.
pub(crate) fn select(
    library: &dyn Library,
    target: &Descriptor,
    platforms: Option<&[Platform]>,
    ask: Ask<'_>,
) -> Result<Selection> {
    let selection = Selection { whole: true, ..Selection::default() };
    let mut walk = Walk { library, platforms, ask, seen: HashSet::new(), bytes: 0, stopped: false, selection };
    walk.enter(target, 0, false)?;
    Ok(walk.selection)
}

struct Walk<'a> {
    library: &'a dyn Library,
    platforms: Option<&'a [Platform]>,
    ask: Ask<'a>,
    seen: HashSet<Digest>,
    bytes: usize,
    stopped: bool,
    selection: Selection,
}

impl Walk<'_> {
    fn enter(&mut self, one: &Descriptor, depth: u16, config: bool) -> Result<()> {
        if self.stopped || !self.seen.insert(one.digest.clone()) {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            let why = format!("lies behind more than {MAX_DEPTH} others");
            return Err(Error::invalid("document", &one.digest, why));
        }
        match (self.ask)(one, depth)? {
            Verdict::Take => {}
            left_out => {
                self.stopped = left_out == Verdict::Stop;
                self.selection.whole = false;
                return Ok(());
            }
        }
        let document_like = matches!(media::kind(&one.media_type), media::Kind::Manifest | media::Kind::Index);
        let small = config && one.size <= MAX_MANIFEST;
        if !document_like && !small {
            self.selection.blobs.push(one.clone());
            return Ok(());
        }
        let bytes = self.library.document(one)?;
        self.bytes += bytes.len();
        if self.selection.pages.len() >= MAX_DOCUMENTS || self.bytes > MAX_BYTES {
            let why =
                format!("leads to more than {MAX_DOCUMENTS} documents or {MAX_BYTES} bytes of them: name platforms");
            return Err(Error::resource_exhausted("document", &one.digest, why));
        }
        let read = if config { None } else { Some(document(one, &bytes)?) };
        self.selection.pages.push((one.clone(), bytes));
        match read {
            None => Ok(()),
            Some(Document::Manifest(manifest)) => {
                self.enter(&manifest.config, depth + 1, true)?;
                manifest.layers.iter().try_for_each(|layer| self.enter(layer, depth + 1, false))
            }
            Some(Document::Index(entries)) => {
                self.kept(entries).iter().try_for_each(|entry| self.enter(entry, depth + 1, false))
            }
        }
    }

    /// Of an index: for each platform the first that is for it, and what doesn't say for which it is.
    fn kept(&self, entries: Vec<Descriptor>) -> Vec<Descriptor> {
        let Some(platforms) = self.platforms else { return entries };
        let mut open: Vec<&Platform> = platforms.iter().collect();
        let keep = |entry: &Descriptor| match &entry.platform {
            None => true,
            Some(platform) => {
                let before = open.len();
                open.retain(|wanted| !wanted.accepts(platform));
                open.len() < before
            }
        };
        entries.into_iter().filter(keep).collect()
    }
}

/// Reads each document once.
pub(crate) struct Cached<'a> {
    inner: &'a dyn Library,
    read: RefCell<HashMap<Digest, Vec<u8>>>,
}

impl<'a> Cached<'a> {
    pub fn new(inner: &'a dyn Library) -> Cached<'a> {
        Cached { inner, read: RefCell::default() }
    }
}

impl Library for Cached<'_> {
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if let Some(bytes) = self.read.borrow().get(&descriptor.digest) {
            return Ok(bytes.clone());
        }
        let bytes = self.inner.document(descriptor)?;
        self.read.borrow_mut().insert(descriptor.digest.clone(), bytes.clone());
        Ok(bytes)
    }
}

/// What was selected, and nothing else.
impl Library for Selection {
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let found = self.pages.iter().find(|(page, _)| page.digest == descriptor.digest);
        found
            .map(|(_, bytes)| bytes.clone())
            .ok_or_else(|| Error::not_found("document", &descriptor.digest, "was left out"))
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::{Algorithm, Code};

    use super::*;
    use crate::testing::shelf::{Shelf, on};

    /// Three images upon one layer.
    fn index(shelf: &mut Shelf) -> Descriptor {
        let entries = ["amd64", "arm64", "s390x"]
            .map(|arch| on(shelf.image(arch, &[("base", media::OCI_LAYER), (arch, media::OCI_LAYER)]), arch));
        serde_json::from_value(shelf.index(&entries)).unwrap()
    }

    fn all(_: &Descriptor, _: u16) -> Result<Verdict> {
        Ok(Verdict::Take)
    }

    #[test]
    fn all_images_or_those_for_some_platforms() {
        let mut shelf = Shelf::default();
        let index = index(&mut shelf);
        let found = select(&shelf, &index, None, &all).unwrap();
        // What they share is there once.
        assert_eq!((found.pages.len(), found.blobs.len(), found.whole), (7, 4, true));
        assert_eq!(found.pages[0].0.digest, index.digest);
        let some = ["linux/arm64", "linux/s390x"].map(|text| text.parse::<Platform>().unwrap());
        let found = select(&shelf, &index, Some(&some), &all).unwrap();
        assert_eq!((found.pages.len(), found.blobs.len(), found.whole), (5, 3, true));
        let cached = Cached::new(&shelf);
        assert_eq!(select(&cached, &index, None, &all).unwrap().pages.len(), 7);
        assert!(found.document(&found.pages[1].0).is_ok());
        let other = Descriptor::new("text/plain", Digest::of(Algorithm::Sha256, b"?"), 1);
        assert_eq!(found.document(&other).unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn what_is_skipped_leads_to_nothing_and_a_stop_ends_it() {
        let mut shelf = Shelf::default();
        let index = index(&mut shelf);
        let asked = RefCell::new(Vec::new());
        let skip = |one: &Descriptor, depth: u16| {
            asked.borrow_mut().push(depth);
            let arm = one.platform.as_ref().is_some_and(|p| p.architecture == "arm64");
            Ok(if arm { Verdict::Skip } else { Verdict::Take })
        };
        let found = select(&shelf, &index, None, &skip).unwrap();
        assert_eq!((found.pages.len(), found.blobs.len(), found.whole), (5, 3, false));
        assert_eq!(asked.into_inner(), [0, 1, 2, 2, 2, 1, 1, 2, 2]);
        let stop = |one: &Descriptor, _: u16| {
            Ok(if media::kind(&one.media_type) == media::Kind::Manifest { Verdict::Stop } else { Verdict::Take })
        };
        let found = select(&shelf, &index, None, &stop).unwrap();
        assert_eq!((found.pages.len(), found.blobs.len(), found.whole), (1, 0, false));
        let nothing = select(&shelf, &index, None, &|_, _| Ok(Verdict::Skip)).unwrap();
        assert!(nothing.pages.is_empty() && !nothing.whole);
        let fails = |_: &Descriptor, _: u16| Err(Error::unavailable("chooser", "", "is gone"));
        assert_eq!(select(&shelf, &index, None, &fails).unwrap_err().code, Code::Unavailable);
    }
}
