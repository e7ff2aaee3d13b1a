//! Whether a container or an image is one that a grant chooses.

use std::rc::Rc;

use cofferdam_metadata::{
    Read,
    records::{containers as records, images::Image},
};
use cofferdam_oci::spec::Network;
use cofferdam_tasks::NewContainer;
use cofferdam_types::{Error, Id, Name, Result, Subject};
use futures::future::LocalBoxFuture;

use super::Place;

/// The place of a container's objects: where the grant chooses, each of their calls asks whether it still reaches it, and what was
/// begun ends when it doesn't.
pub fn container(place: &Place, id: &Id) -> Place {
    let mut place = place.named("container", id);
    (place.held.check, place.held.gone) = (None, None);
    if !place.held.reach.caveats.containers.is_all() {
        let (asked, asked_id) = (place.clone(), id.clone());
        let check = move || match asked.services().metadata.read() {
            Ok(view) => reached(&asked, &view, &asked_id),
            Err(error) => Err(error),
        };
        place.held.check = Some(Rc::new(check));
        // Without the session: who waits may do so for longer than there is one.
        let (grants, reach) = (place.services().grants.clone(), place.held.reach.clone());
        let (namespace, id) = (place.namespace.clone(), id.clone());
        let gone = move || -> LocalBoxFuture<'static, Error> {
            let (grants, reach, namespace, id) = (grants.clone(), reach.clone(), namespace.clone(), id.clone());
            Box::pin(async move {
                grants.until_left(&reach.caveats.containers, &namespace, &id).await;
                missing(&id)
            })
        };
        place.held.gone = Some(Rc::new(gone));
    }
    place
}

/// As if it weren't there: that it is, is none of the holder's business.
fn missing(id: &Id) -> Error {
    Error::not_found("container", id, "does not exist")
}

/// Whether the grant reaches a container. One that isn't there is for the call itself to miss.
pub fn reached(place: &Place, read: &dyn Read, id: &Id) -> Result<()> {
    let which = &place.held.reach.caveats.containers;
    if which.is_all() {
        return Ok(());
    }
    match records::head(read, &place.namespace, id)? {
        Some(record) if !which.has(&record.subject()) => Err(missing(id)),
        _ => Ok(()),
    }
}

/// Whether what is to be made would be within reach of the grant that makes it, and asks for nothing of what is not.
pub fn may_make(place: &Place, new: &NewContainer) -> Result<()> {
    let which = &place.held.reach.caveats.containers;
    if which.is_all() {
        return Ok(());
    }
    let denied = |why: &str| Err(Error::denied("container", new.id.as_deref().unwrap_or_default(), why));
    let subject = Subject {
        id: new.id.as_ref(),
        image: new.image.as_deref().unwrap_or_default(),
        runtime: if new.runtime.is_empty() { "native" } else { &new.runtime },
        labels: &new.labels,
        made_by: &place.authority().grants,
    };
    if !which.has(&subject) {
        return denied("would not be among the containers that this grant is for: see what it chooses by id or label");
    }
    if new.group.is_some() {
        return denied("asks for a group, which it would share with containers that this grant may not reach");
    }
    if let Network::Container(other) = &new.options.network {
        let view = place.services().metadata.read()?;
        records::require(&view, &place.namespace, other)?;
        reached(place, &view, other)?;
    }
    Ok(())
}

/// Whether a container stays within reach under another id.
pub fn may_rename(place: &Place, id: &Id, to: &Id) -> Result<()> {
    let which = &place.held.reach.caveats.containers;
    if which.is_all() {
        return Ok(());
    }
    let Some(record) = records::head(&place.services().metadata.read()?, &place.namespace, id)? else { return Ok(()) };
    if which.has(&Subject { id: Some(to), ..record.subject() }) {
        return Ok(());
    }
    Err(Error::denied("container", to, "is no id of those that this grant is for"))
}

/// Whether a grant reaches an image.
pub fn has_image(place: &Place, image: &Image) -> bool {
    place.held.reach.caveats.ceiling.images.has(&image.name, &[&image.target.digest])
}

/// Whether an image of this name may be got from a registry, and in which way.
pub fn may_pull(place: &Place, name: &str, plain: bool) -> Result<()> {
    let images = &place.held.reach.caveats.ceiling.images;
    if images.is_all() {
        return Ok(());
    }
    if !images.has(name, &[]) {
        return Err(Error::denied("image", name, "is not among the images that this grant is for"));
    }
    if !plain {
        let why = "is asked for by a way of your own: how its registry is reached is for who gave the grant to say";
        return Err(Error::denied("image", name, why));
    }
    Ok(())
}

/// The place of an image's object: where the grant chooses, each call asks whether it still reaches what the name stands for.
pub fn image(place: &Place, name: &Name) -> Place {
    let mut place = place.named("image", name);
    if !place.held.reach.caveats.ceiling.images.is_all() {
        let (asked, name) = (place.clone(), name.clone());
        let check = move || match asked.services().images.get(&asked.namespace, &name)? {
            image if has_image(&asked, &image) => Ok(()),
            _ => Err(Error::not_found("image", &name, "is not here")),
        };
        place.held.check = Some(Rc::new(check));
    }
    place
}
