//! Namespaces, and what hangs on each.

use std::{rc::Rc, time::Duration};

use cofferdam_types::{Labels, Result, Timestamp};
use cofferdam_wire::{
    convert::{labels, set_labels, set_texts, text},
    error::malformed,
    gate_capnp::namespaces,
    namespace_capnp::{namespace, namespace_info},
};
use serde::Serialize;

use crate::{
    call::{Reply, done_by, reply_by},
    collector::{Explanation, explained},
    connect::Link,
    container::Containers,
    content::Content,
    credential::Credentials,
    cursor::Cursor,
    event::Events,
    grant::Grants,
    image::Images,
    job::Jobs,
    lease::Leases,
    network::Networks,
    snapshot::Snapshots,
};

/// What a namespace is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceInfo {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// When it was made.
    #[serde(serialize_with = "crate::json::time")]
    pub created: Timestamp,
    /// When it was last changed.
    #[serde(serialize_with = "crate::json::time")]
    pub updated: Timestamp,
}

fn info(reader: namespace_info::Reader<'_>) -> Result<NamespaceInfo> {
    Ok(NamespaceInfo {
        name: text(reader.get_name())?.to_owned(),
        labels: labels(reader.get_labels())?,
        created: Timestamp(reader.get_created()),
        updated: Timestamp(reader.get_updated()),
    })
}

/// What [`Namespace::with`] lays over everything reached from there.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Your own name for what you are doing, for logs and audit.
    pub correlation_id: String,
    /// W3C Trace Context, "traceparent".
    pub trace_parent: String,
    /// Calls that take longer fail; `None` is no deadline.
    pub deadline: Option<Duration>,
}

/// All namespaces.
#[derive(Clone)]
pub struct Namespaces {
    pub(crate) link: Rc<Link>,
    pub(crate) client: namespaces::Client,
}

impl Namespaces {
    /// One that exists.
    pub fn get(&self, name: &str) -> Namespace {
        let mut request = self.client.get_request();
        request.get().set_name(name);
        Namespace { link: self.link.clone(), client: request.send().pipeline.get_namespace() }
    }

    /// Makes one, and says what it is.
    pub fn create(&self, name: &str, labels: &Labels) -> Reply<NamespaceInfo> {
        let mut request = self.client.create_request();
        request.get().set_name(name);
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        let made = Namespace { link: self.link.clone(), client: request.send().pipeline.get_namespace() };
        made.info().keeping(&made)
    }

    /// All that pass one of the filters.
    pub fn list<S: AsRef<str>>(&self, filters: &[S]) -> Cursor<NamespaceInfo> {
        let mut request = self.client.list_request();
        set_texts(request.get().init_filters(filters.len() as u32), filters);
        Cursor::of(&self.link, request.send().pipeline.get_cursor(), info)
    }

    /// Removes an empty one.
    pub fn remove(&self, name: &str) -> Reply<()> {
        let mut request = self.client.remove_request();
        request.get().set_name(name);
        done_by(&self.link, &self.client, request)
    }
}

/// A namespace.
#[derive(Clone)]
pub struct Namespace {
    pub(crate) link: Rc<Link>,
    pub(crate) client: namespace::Client,
}

impl Namespace {
    /// What it is.
    pub fn info(&self) -> Reply<NamespaceInfo> {
        reply_by(&self.link, &self.client, self.client.info_request(), |answer| {
            info(answer.get_info().map_err(malformed)?)
        })
    }

    /// Takes what is named, labels or labels.KEY, from `labels`; all of them where nothing is. An entry that is absent
    /// there is removed.
    pub fn update<S: AsRef<str>>(&self, labels: &Labels, fields: &[S]) -> Reply<NamespaceInfo> {
        let mut request = self.client.update_request();
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        set_texts(request.get().init_fields(fields.len() as u32), fields);
        reply_by(&self.link, &self.client, request, |answer| info(answer.get_info().map_err(malformed)?))
    }

    /// The same namespace, whose descendants carry the context.
    pub fn with(&self, context: &Context) -> Namespace {
        let mut request = self.client.with_request();
        let mut builder = request.get().init_context();
        builder.set_correlation_id(&context.correlation_id);
        builder.set_trace_parent(&context.trace_parent);
        let millis = context.deadline.map_or(0, |d| d.as_millis().clamp(1, u128::from(u64::MAX)) as u64);
        builder.set_deadline_millis(millis);
        Namespace { link: self.link.clone(), client: request.send().pipeline.get_namespace() }
    }

    /// Its images.
    pub fn images(&self) -> Images {
        Images { link: self.link.clone(), client: self.client.images_request().send().pipeline.get_images() }
    }

    /// Its containers.
    pub fn containers(&self) -> Containers {
        let client = self.client.containers_request().send().pipeline.get_containers();
        Containers { link: self.link.clone(), client }
    }

    /// The networks that its containers can be connected to.
    pub fn networks(&self) -> Networks {
        Networks { link: self.link.clone(), client: self.client.networks_request().send().pipeline.get_networks() }
    }

    /// Its content.
    pub fn content(&self) -> Content {
        Content { link: self.link.clone(), client: self.client.content_request().send().pipeline.get_content() }
    }

    /// Its snapshots in one driver; an empty name is the default driver.
    pub fn snapshots(&self, driver: &str) -> Snapshots {
        let mut request = self.client.snapshots_request();
        request.get().set_driver(driver);
        Snapshots { link: self.link.clone(), client: request.send().pipeline.get_snapshots() }
    }

    /// What happens in it.
    pub fn events(&self) -> Events {
        Events { link: self.link.clone(), client: self.client.events_request().send().pipeline.get_events() }
    }

    /// What was handed out of it.
    pub fn grants(&self) -> Grants {
        Grants { link: self.link.clone(), client: self.client.grants_request().send().pipeline.get_grants() }
    }

    /// What its pulls and pushes show to registries.
    pub fn credentials(&self) -> Credentials {
        let client = self.client.credentials_request().send().pipeline.get_credentials();
        Credentials { link: self.link.clone(), client }
    }

    /// Its leases.
    pub fn leases(&self) -> Leases {
        Leases { link: self.link.clone(), client: self.client.leases_request().send().pipeline.get_leases() }
    }

    /// What keeps something from being collected, or why it goes: an `image`, a `container`, a `lease`, of kind `content` a
    /// blob, of kind `snapshots/DRIVER` a snapshot.
    pub fn explain(&self, kind: &str, id: &str) -> Reply<Explanation> {
        let mut request = self.client.explain_request();
        request.get().set_type(kind);
        request.get().set_id(id);
        reply_by(&self.link, &self.client, request, |answer| explained(answer.get_explanation().map_err(malformed)?))
    }

    /// Its jobs.
    pub fn jobs(&self) -> Jobs {
        Jobs { link: self.link.clone(), client: self.client.jobs_request().send().pipeline.get_jobs() }
    }
}
