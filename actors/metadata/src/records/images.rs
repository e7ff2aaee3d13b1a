//! Images: a name and the descriptor that it stands for (reference, section 8.1).

use cofferdam_types::{Ceiling, Descriptor, Error, Event, Labels, Name, Namespace, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Record, Resource, events, namespaces, resource};
use crate::{
    Read, Tx, codec,
    fields::{self, Path},
    table::Table,
};

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name.
    pub name: Name,
    /// Free labels.
    pub labels: Labels,
    /// What it stands for.
    pub target: Descriptor,
    /// When it was created.
    pub created: Timestamp,
    /// When it was changed last.
    pub updated: Timestamp,
    /// The bounds of the authority that created it.
    pub ceiling: Ceiling,
}

impl Record for Image {
    const TABLE: Table = Table::IMAGES;
    const KIND: &'static str = "image";

    fn name(&self) -> Vec<u8> {
        self.name.as_bytes().to_vec()
    }
}

impl Image {
    /// An image without labels.
    pub fn new(name: Name, target: Descriptor) -> Image {
        Image {
            name,
            labels: Labels::new(),
            target,
            created: Timestamp::default(),
            updated: Timestamp::default(),
            ceiling: Ceiling::default(),
        }
    }

    fn check(&mut self) -> Result<()> {
        if self.target.size == 0 {
            return Err(Error::invalid("image", &self.name, "its target has no size"));
        }
        if self.target.media_type.is_empty() {
            return Err(Error::invalid("image", &self.name, "its target has no media type"));
        }
        super::checked_labels(&mut self.labels)
    }

    /// Who writes a digest behind a name believes that it stands for that and nothing else.
    fn check_name(&self) -> Result<()> {
        let digest = &self.target.digest;
        match self.name.split_once('@') {
            Some((_, named)) if named != digest.to_string() => {
                let why = format!("names another digest than {digest}, which it would stand for: give that, or a tag");
                Err(Error::invalid("image", &self.name, why))
            }
            _ => Ok(()),
        }
    }

    /// What it keeps.
    pub(crate) fn refers(&self) -> Vec<Resource> {
        let mut refers: Vec<_> = Resource::from_labels(&self.labels)
            .into_iter()
            .filter(|r| matches!(r, Resource::Snapshot { .. })) // As in the reference.
            .collect();
        refers.push(Resource::Content(self.target.digest.clone()));
        refers
    }
}

/// The image, if it exists.
pub fn find(read: &dyn Read, ns: &Namespace, name: &str) -> Result<Option<Image>> {
    super::find(read, &codec::key(&[ns, name]))
}

/// The image.
pub fn get(read: &dyn Read, ns: &Namespace, name: &str) -> Result<Image> {
    find(read, ns, name)?.ok_or_else(|| Error::not_found("image", name, "does not exist; pull or import it"))
}

/// A page of them, by name.
pub fn list(read: &dyn Read, ns: &Namespace, after: Option<&str>, max: usize) -> Result<Vec<Image>> {
    super::page(read, &codec::prefix(&[ns]), after, max)
}

/// Creates an image.
pub fn create(tx: &mut Tx<'_>, ns: &Namespace, mut image: Image) -> Result<Image> {
    namespaces::require(tx, ns)?;
    image.check()?;
    image.check_name()?;
    if find(tx, ns, &image.name)?.is_some() {
        return Err(Error::already_exists("image", &image.name, "is there already: choose another name or remove it"));
    }
    image.created = tx.now();
    image.ceiling = tx.authority().ceiling.clone();
    store(tx, ns, image, "/images/create")
}

/// Replaces labels and target.
pub fn update(tx: &mut Tx<'_>, ns: &Namespace, mut image: Image) -> Result<Image> {
    let old = get(tx, ns, &image.name)?;
    image.check()?;
    // What has got such a name already keeps it.
    if image.target.digest != old.target.digest {
        image.check_name()?;
    }
    image.created = old.created;
    image.ceiling = old.ceiling.intersect(&tx.authority().ceiling);
    store(tx, ns, image, "/images/update")
}

/// Takes from `given` the fields that `mask` names (`labels`, `labels.K`, `target`); with an empty mask both.
pub fn update_fields(tx: &mut Tx<'_>, ns: &Namespace, given: Image, mask: &[String]) -> Result<Image> {
    if mask.is_empty() {
        return update(tx, ns, given);
    }
    let mut image = get(tx, ns, &given.name)?;
    for path in fields::paths(mask) {
        match path {
            Path::Whole("labels") => image.labels.clone_from(&given.labels),
            Path::Entry("labels", key) => fields::entry(&mut image.labels, &given.labels, key),
            Path::Whole("target") => image.target = given.target.clone(),
            path => return Err(fields::immutable("image", &given.name, &path)),
        }
    }
    update(tx, ns, image)
}

/// Gives what an image stands for another name, with its labels; one that stands for something else already only with `replace`.
pub fn tag(tx: &mut Tx<'_>, ns: &Namespace, source: &str, name: Name, replace: bool) -> Result<Image> {
    let source = get(tx, ns, source)?;
    // Another name is no way round the bounds of who made the first.
    let ceiling = source.ceiling.intersect(&tx.authority().ceiling);
    let image = Image { labels: source.labels, created: tx.now(), ceiling, ..Image::new(name, source.target) };
    image.check_name()?;
    match find(tx, ns, &image.name)? {
        None => store(tx, ns, image, "/images/create"),
        Some(old) if old.target.digest == image.target.digest => Ok(old),
        Some(old) if replace => {
            let ceiling = image.ceiling.intersect(&old.ceiling);
            store(tx, ns, Image { created: old.created, ceiling, ..image }, "/images/update")
        }
        Some(_) => {
            let why = "stands for another image: remove it, or say that it is to be replaced (`--replace`)";
            Err(Error::already_exists("image", &image.name, why))
        }
    }
}

/// Removes an image; its content stays until it is collected.
pub fn delete(tx: &mut Tx<'_>, ns: &Namespace, name: &str) -> Result<()> {
    get(tx, ns, name)?;
    tx.remove(Table::IMAGES, &codec::key(&[ns, name]))?;
    events::emit(tx, Event::new(ns, "/images/delete", serde_json::json!({ "name": name })))
}

fn store(tx: &mut Tx<'_>, ns: &Namespace, mut image: Image, topic: &str) -> Result<Image> {
    image.updated = tx.now();
    super::save(tx, &codec::key(&[ns, &image.name]), &image)?;
    resource::touch(tx, ns, image.refers());
    let payload = serde_json::json!({ "name": image.name, "labels": image.labels });
    events::emit(tx, Event::new(ns, topic, payload))?;
    Ok(image)
}
