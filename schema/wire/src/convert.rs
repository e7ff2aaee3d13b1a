//! Between the schema's structs and the domain's words.

use capnp::{struct_list, text_list};
use cofferdam_types::{Any, Descriptor, Error, Labels, Mount, Platform, Result, Timestamp};

use crate::{common_capnp as common, error::malformed, event_capnp, shim_capnp};

/// A text field.
pub fn text(field: capnp::Result<capnp::text::Reader<'_>>) -> Result<&str> {
    field.map_err(malformed)?.to_str().map_err(|e| Error::invalid("message", "", format!("holds a text that is {e}")))
}

/// A list of texts.
pub fn texts(list: capnp::Result<text_list::Reader<'_>>) -> Result<Vec<String>> {
    list.map_err(malformed)?.iter().map(|t| text(t).map(str::to_owned)).collect()
}

/// Fills a list of texts that was initialised with as many.
pub fn set_texts<S: AsRef<str>>(mut list: text_list::Builder<'_>, texts: &[S]) {
    for (n, text) in texts.iter().enumerate() {
        list.set(n as u32, text.as_ref());
    }
}

/// Labels; a key that comes twice is refused.
pub fn labels(list: capnp::Result<struct_list::Reader<'_, common::label::Owned>>) -> Result<Labels> {
    let mut labels = Labels::new();
    for label in list.map_err(malformed)?.iter() {
        let (key, value) = (text(label.get_key())?.to_owned(), text(label.get_value())?.to_owned());
        if labels.insert(key.clone(), value).is_some() {
            return Err(Error::invalid("label", key, "is given twice"));
        }
    }
    Ok(labels)
}

/// Fills a list of labels that was initialised with as many.
pub fn set_labels<'a>(
    mut list: struct_list::Builder<'_, common::label::Owned>,
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
) {
    for (n, (key, value)) in labels.into_iter().enumerate() {
        let mut label = list.reborrow().get(n as u32);
        label.set_key(key);
        label.set_value(value);
    }
}

/// A platform.
pub fn platform(reader: common::platform::Reader<'_>) -> Result<Platform> {
    Ok(Platform::new(text(reader.get_os())?, text(reader.get_architecture())?, text(reader.get_variant())?))
}

/// Fills a platform.
pub fn set_platform(mut builder: common::platform::Builder<'_>, platform: &Platform) {
    builder.set_os(&platform.os);
    builder.set_architecture(&platform.architecture);
    builder.set_variant(&platform.variant);
}

/// A descriptor.
pub fn descriptor(reader: common::descriptor::Reader<'_>) -> Result<Descriptor> {
    let mut descriptor =
        Descriptor::new(text(reader.get_media_type())?, text(reader.get_digest())?.parse()?, reader.get_size());
    descriptor.annotations = labels(reader.get_annotations())?;
    descriptor.artifact_type =
        Some(text(reader.get_artifact_type())?).filter(|kind| !kind.is_empty()).map(str::to_owned);
    if reader.has_platform() {
        descriptor.platform = Some(platform(reader.get_platform().map_err(malformed)?)?);
    }
    Ok(descriptor)
}

/// Fills a descriptor.
pub fn set_descriptor(mut builder: common::descriptor::Builder<'_>, descriptor: &Descriptor) {
    builder.set_media_type(&descriptor.media_type);
    builder.set_digest(descriptor.digest.to_string());
    builder.set_size(descriptor.size);
    set_labels(builder.reborrow().init_annotations(descriptor.annotations.len() as u32), &descriptor.annotations);
    if let Some(kind) = &descriptor.artifact_type {
        builder.set_artifact_type(kind);
    }
    if let Some(platform) = &descriptor.platform {
        set_platform(builder.init_platform(), platform);
    }
}

/// An opaque payload.
pub fn any(reader: common::any::Reader<'_>) -> Result<Any> {
    Ok(Any {
        type_url: text(reader.get_type_url())?.to_owned(),
        value: reader.get_value().map_err(malformed)?.to_vec(),
    })
}

/// Fills an opaque payload.
pub fn set_any(mut builder: common::any::Builder<'_>, any: &Any) {
    builder.set_type_url(&any.type_url);
    builder.set_value(&any.value);
}

/// A mount list.
pub fn mounts(list: capnp::Result<struct_list::Reader<'_, common::mount::Owned>>) -> Result<Vec<Mount>> {
    list.map_err(malformed)?
        .iter()
        .map(|mount| {
            Ok(Mount {
                kind: text(mount.get_type())?.to_owned(),
                source: text(mount.get_source())?.to_owned(),
                options: texts(mount.get_options())?,
            })
        })
        .collect()
}

/// Fills a mount list that was initialised with as many.
pub fn set_mounts(mut list: struct_list::Builder<'_, common::mount::Owned>, mounts: &[Mount]) {
    for (n, mount) in mounts.iter().enumerate() {
        let mut builder = list.reborrow().get(n as u32);
        builder.set_type(&mount.kind);
        builder.set_source(&mount.source);
        set_texts(builder.init_options(mount.options.len() as u32), &mount.options);
    }
}

/// Fills an event.
pub fn set_event(mut builder: event_capnp::event::Builder<'_>, event: &cofferdam_types::Event) {
    builder.set_sequence(event.sequence);
    builder.set_timestamp(event.timestamp.0);
    builder.set_namespace(&*event.namespace);
    builder.set_topic(&event.topic);
    builder.set_payload(event.payload.to_string());
}

/// What became of one process (`Life` of shim.capnp).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// Empty for the first process, else the exec's id.
    pub id: String,
    /// On the host.
    pub pid: u32,
    /// When it was made.
    pub created: Timestamp,
    /// When it was started; 0 before.
    pub started: Timestamp,
    /// When it ended; 0 before.
    pub exited: Timestamp,
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// Empty for an ordinary end.
    pub reason: String,
    /// The signal that ended it, or 0.
    pub signal: u32,
    /// When the last of its output was where it belongs; 0 before.
    pub output_end: Timestamp,
    /// When the container ran out of memory last; 0: never.
    pub oomed: Timestamp,
    /// How often it did.
    pub ooms: u64,
    /// The grant through which it was run; empty: none.
    pub grant: String,
    /// It was deleted, and only its end is still there.
    pub deleted: bool,
}

/// Reads a life.
pub fn life(reader: shim_capnp::life::Reader<'_>) -> Result<Life> {
    Ok(Life {
        id: text(reader.get_id())?.to_owned(),
        pid: reader.get_pid(),
        created: Timestamp(reader.get_created()),
        started: Timestamp(reader.get_started()),
        exited: Timestamp(reader.get_exited()),
        status: reader.get_status(),
        reason: text(reader.get_reason())?.to_owned(),
        signal: reader.get_signal(),
        output_end: Timestamp(reader.get_output_end()),
        oomed: Timestamp(reader.get_oomed()),
        ooms: reader.get_ooms(),
        grant: text(reader.get_grant())?.to_owned(),
        deleted: reader.get_deleted(),
    })
}

/// Fills a life.
pub fn set_life(mut builder: shim_capnp::life::Builder<'_>, life: &Life) {
    builder.set_id(&life.id);
    builder.set_pid(life.pid);
    builder.set_created(life.created.0);
    builder.set_started(life.started.0);
    builder.set_exited(life.exited.0);
    builder.set_status(life.status);
    builder.set_reason(&life.reason);
    builder.set_signal(life.signal);
    builder.set_output_end(life.output_end.0);
    builder.set_oomed(life.oomed.0);
    builder.set_ooms(life.ooms);
    builder.set_grant(&life.grant);
    builder.set_deleted(life.deleted);
}
