//! Leases.

use std::rc::Rc;

use cofferdam_types::{Labels, Result, Timestamp};
use cofferdam_wire::{
    convert::{labels, set_labels, set_texts, text},
    error::malformed,
    lease_capnp::{lease_info, resource},
    namespace_capnp::{lease, leases},
};
use serde::Serialize;

use crate::{
    call::{Reply, done_by, reply_by},
    connect::Link,
    cursor::Cursor,
    namespace::Namespace,
};

/// What a lease is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseInfo {
    /// Its id.
    pub id: String,
    /// Its labels.
    pub labels: Labels,
    /// When it was made.
    #[serde(serialize_with = "crate::json::time")]
    pub created: Timestamp,
    /// When it was last changed.
    #[serde(serialize_with = "crate::json::time")]
    pub updated: Timestamp,
    /// When it ends by itself.
    #[serde(serialize_with = "crate::json::time")]
    pub expires: Timestamp,
}

/// What a lease holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Resource {
    /// `content`, or `snapshots/` and the driver's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// A digest, or a key.
    pub id: String,
}

fn info(reader: lease_info::Reader<'_>) -> Result<LeaseInfo> {
    Ok(LeaseInfo {
        id: text(reader.get_id())?.to_owned(),
        labels: labels(reader.get_labels())?,
        created: Timestamp(reader.get_created()),
        updated: Timestamp(reader.get_updated()),
        expires: Timestamp(reader.get_expires()),
    })
}

fn set_resource(mut builder: resource::Builder<'_>, resource: &Resource) {
    builder.set_type(&resource.kind);
    builder.set_id(&resource.id);
}

/// The leases of a namespace.
#[derive(Clone)]
pub struct Leases {
    pub(crate) link: Rc<Link>,
    pub(crate) client: leases::Client,
}

impl Leases {
    /// Makes one, which ends at `expires`, or when it is removed.
    pub fn create(&self, id: &str, labels: &Labels, expires: Option<Timestamp>) -> Lease {
        let mut request = self.client.create_request();
        request.get().set_id(id);
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        request.get().set_expires(expires.unwrap_or_default().0);
        Lease { link: self.link.clone(), client: request.send().pipeline.get_lease() }
    }

    /// One that is there.
    pub fn get(&self, id: &str) -> Lease {
        let mut request = self.client.get_request();
        request.get().set_id(id);
        Lease { link: self.link.clone(), client: request.send().pipeline.get_lease() }
    }

    /// All that pass one of the filters.
    pub fn list<S: AsRef<str>>(&self, filters: &[S]) -> Cursor<LeaseInfo> {
        let mut request = self.client.list_request();
        set_texts(request.get().init_filters(filters.len() as u32), filters);
        Cursor::of(&self.link, request.send().pipeline.get_cursor(), info)
    }

    /// Removes one. What it held stays until it is collected.
    pub fn remove(&self, id: &str) -> Reply<()> {
        let mut request = self.client.remove_request();
        request.get().set_id(id);
        done_by(&self.link, &self.client, request)
    }
}

/// A lease.
#[derive(Clone)]
pub struct Lease {
    link: Rc<Link>,
    client: lease::Client,
}

impl Lease {
    /// What it is.
    pub fn info(&self) -> Reply<LeaseInfo> {
        reply_by(&self.link, &self.client, self.client.info_request(), |answer| {
            info(answer.get_info().map_err(malformed)?)
        })
    }

    /// Its namespace: what is made through it is held by the lease.
    pub fn namespace(&self) -> Namespace {
        let client = self.client.namespace_request().send().pipeline.get_namespace();
        Namespace { link: self.link.clone(), client }
    }

    /// Takes what is named, labels, labels.KEY or expires; all where nothing is.
    pub fn update<S: AsRef<str>>(&self, labels: &Labels, expires: Option<Timestamp>, fields: &[S]) -> Reply<LeaseInfo> {
        let mut request = self.client.update_request();
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        request.get().set_expires(expires.unwrap_or_default().0);
        set_texts(request.get().init_fields(fields.len() as u32), fields);
        reply_by(&self.link, &self.client, request, |answer| info(answer.get_info().map_err(malformed)?))
    }

    /// Has it hold something, which need not exist yet.
    pub fn add(&self, resource: &Resource) -> Reply<()> {
        let mut request = self.client.add_request();
        set_resource(request.get().init_resource(), resource);
        done_by(&self.link, &self.client, request)
    }

    /// Has it let go of something.
    pub fn release(&self, resource: &Resource) -> Reply<()> {
        let mut request = self.client.drop_request();
        set_resource(request.get().init_resource(), resource);
        done_by(&self.link, &self.client, request)
    }

    /// What it holds.
    pub fn resources(&self) -> Cursor<Resource> {
        Cursor::of(&self.link, self.client.resources_request().send().pipeline.get_cursor(), held)
    }
}

fn held(reader: resource::Reader<'_>) -> Result<Resource> {
    Ok(Resource { kind: text(reader.get_type())?.to_owned(), id: text(reader.get_id())?.to_owned() })
}
