//! `Namespaces` (gate.capnp) and `Namespace` (namespace.capnp).

use std::{rc::Rc, sync::Arc, time::Duration};

use cofferdam_metadata::{
    graph::Subject,
    records::namespaces::{self as records, NamespaceRecord},
};
use cofferdam_types::{Authority, Error, Filter, Namespace as Name, filter};
use cofferdam_wire::{
    convert::{labels, set_labels, text, texts},
    gate_capnp::{namespace_cursor, namespaces},
    namespace_capnp::{namespace, namespace_info},
};

use super::{
    Place,
    collector::{set_explanation, subject},
    containers::Containers,
    content::Content,
    credentials::Credentials,
    cursor::Cursor,
    events::Events,
    filters,
    grants::Grants,
    images::Images,
    jobs::Jobs,
    leases::Leases,
    networks::Networks,
    rpc,
    session::{Held, Session},
    snapshots::Snapshots,
    trail,
};
use crate::services::Services;

/// Every namespace.
pub struct Namespaces {
    pub session: Rc<Session>,
    pub held: Held,
}

impl Namespaces {
    fn hand_out(&self, name: Name) -> namespace::Client {
        let mut place = Place { session: self.session.clone(), held: self.held.clone(), namespace: name };
        place.held.about.namespace = Some(place.namespace.clone());
        place.clone().hand_out(Namespace(place))
    }
}

/// What namespaces can be chosen by.
pub const FIELDS: &[&str] = &["name", "labels.KEY"];

/// Whether one of the filters lets it through.
pub fn matches(filters: &Filter, record: &NamespaceRecord) -> bool {
    filters.matches(&|path: &[&str]| match path {
        ["name"] => Some(record.name.as_str().into()),
        ["labels", rest @ ..] => filter::label(&record.labels, rest),
        _ => None,
    })
}

/// Fills what is known of a namespace.
pub fn set_info(mut builder: namespace_info::Builder<'_>, record: &NamespaceRecord) {
    builder.set_name(&*record.name);
    set_labels(builder.reborrow().init_labels(record.labels.len() as u32), &record.labels);
    builder.set_created(record.created.0);
    builder.set_updated(record.updated.0);
}

impl namespaces::Server for Namespaces {
    async fn get(
        self: Rc<Self>,
        params: namespaces::GetParams,
        mut results: namespaces::GetResults,
    ) -> capnp::Result<()> {
        let name = rpc(Name::new(rpc(text(params.get()?.get_name()))?))?;
        // What is in it needs nothing of its own record, which may be one that can't be read.
        rpc(self.session.services.metadata.read().and_then(|view| records::require(&view, &name)))?;
        results.get().set_namespace(self.hand_out(name));
        Ok(())
    }

    async fn create(
        self: Rc<Self>,
        params: namespaces::CreateParams,
        mut results: namespaces::CreateResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let name = rpc(Name::new(rpc(text(params.get_name()))?))?;
        let labels = rpc(labels(params.get_labels()))?;
        trail::object("namespace", &name);
        let created = name.clone();
        let write = move |tx: &mut cofferdam_metadata::Tx<'_>| records::create(tx, &created, &labels);
        rpc(self.session.services.metadata.write(&self.held.authority, write).await)?;
        results.get().set_namespace(self.hand_out(name));
        Ok(())
    }

    async fn list(
        self: Rc<Self>,
        params: namespaces::ListParams,
        mut results: namespaces::ListResults,
    ) -> capnp::Result<()> {
        let filters = rpc(filters(params.get()?.get_filters(), FIELDS))?;
        let metadata = self.session.services.metadata.clone();
        let cursor = Cursor::new(
            Box::new(move |after, max| records::list(&metadata.read()?, after, max)),
            |record: &NamespaceRecord| record.name.to_string(),
            move |record| matches(&filters, record),
        );
        results.get().set_cursor(self.session.hand_out(NamespaceCursor(cursor), &self.held));
        Ok(())
    }

    async fn remove(
        self: Rc<Self>,
        params: namespaces::RemoveParams,
        _: namespaces::RemoveResults,
    ) -> capnp::Result<()> {
        let name = rpc(Name::new(rpc(text(params.get()?.get_name()))?))?;
        trail::object("namespace", &name);
        let (services, authority) = (self.session.services.clone(), self.held.authority.clone());
        // Beside the call: a client that leaves must not leave files either.
        let removal = tokio::task::spawn_local(async move { remove(&services, &authority, name).await });
        rpc(removal.await.unwrap_or_else(|e| Err(Error::internal("namespace", "", format!("its removal ended: {e}")))))
    }
}

async fn remove(services: &Services, authority: &Authority, name: Name) -> cofferdam_types::Result<()> {
    let write = move |tx: &mut cofferdam_metadata::Tx<'_>| records::delete(tx, &name);
    let removing = services.content.removing().await;
    let emptied = services.metadata.write(authority, write).await?;
    // It is gone. What can't be removed now the next start sweeps.
    if let Err(error) = services.content.discard(emptied.blobs, removing).await {
        tracing::warn!(%error, "blobs of a removed namespace stay until the next start");
    }
    for snapshot in emptied.snapshots {
        if let Err(error) = services.snapshots.discard(snapshot).await {
            tracing::warn!(%error, "a snapshot of a removed namespace stays until the next start");
        }
    }
    Ok(())
}

struct NamespaceCursor(Cursor<NamespaceRecord>);

impl namespace_cursor::Server for NamespaceCursor {
    async fn next(
        self: Rc<Self>,
        params: namespace_cursor::NextParams,
        mut results: namespace_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.0.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, record) in block.iter().enumerate() {
            set_info(items.reborrow().get(n as u32), record);
        }
        Ok(())
    }
}

/// The most bytes of a correlation id: it stands in every line of the log about its calls.
const CORRELATION: usize = 256;

/// W3C Trace Context, 3.2: version, trace id, parent id and flags, in lower case.
fn is_trace_parent(text: &str) -> bool {
    let hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([2, 32, 16, 2]) && parts.iter().all(|part| hex(part))
}

/// One namespace.
pub struct Namespace(pub Place);

impl namespace::Server for Namespace {
    async fn info(self: Rc<Self>, _: namespace::InfoParams, mut results: namespace::InfoResults) -> capnp::Result<()> {
        let view = rpc(self.0.services().metadata.read())?;
        set_info(results.get().init_info(), &rpc(records::get(&view, &self.0.namespace))?);
        Ok(())
    }

    async fn update(
        self: Rc<Self>,
        params: namespace::UpdateParams,
        mut results: namespace::UpdateResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (labels, fields) = (rpc(labels(params.get_labels()))?, rpc(texts(params.get_fields()))?);
        let name = self.0.namespace.clone();
        let write = move |tx: &mut cofferdam_metadata::Tx<'_>| records::update(tx, &name, &labels, &fields);
        let record = rpc(self.0.services().metadata.write(self.0.authority(), write).await)?;
        set_info(results.get().init_info(), &record);
        Ok(())
    }

    async fn with(
        self: Rc<Self>,
        params: namespace::WithParams,
        mut results: namespace::WithResults,
    ) -> capnp::Result<()> {
        let context = params.get()?.get_context()?;
        let mut place = self.0.clone();
        let correlation = rpc(text(context.get_correlation_id()))?;
        if correlation.len() > CORRELATION {
            let why = format!("has {} bytes: at most {CORRELATION} are allowed", correlation.len());
            return rpc(Err(Error::invalid("context", "correlationId", why)));
        }
        if !correlation.is_empty() {
            place.held.authority.correlation = Some(Arc::from(correlation));
        }
        let trace = rpc(text(context.get_trace_parent()))?;
        if !trace.is_empty() {
            if !is_trace_parent(trace) {
                let why = "is not of the form 00-<32 hex digits>-<16 hex digits>-<2 hex digits>";
                return rpc(Err(Error::invalid("context", "traceParent", why)));
            }
            place.held.authority.trace = Some(Arc::from(trace));
        }
        if context.get_deadline_millis() != 0 {
            place.held.deadline = Some(Duration::from_millis(context.get_deadline_millis()));
        }
        results.get().set_namespace(place.clone().hand_out(Namespace(place)));
        Ok(())
    }

    async fn images(
        self: Rc<Self>,
        _: namespace::ImagesParams,
        mut results: namespace::ImagesResults,
    ) -> capnp::Result<()> {
        results.get().set_images(self.0.hand_out(Images(self.0.clone())));
        Ok(())
    }

    async fn containers(
        self: Rc<Self>,
        _: namespace::ContainersParams,
        mut results: namespace::ContainersResults,
    ) -> capnp::Result<()> {
        results.get().set_containers(self.0.hand_out(Containers(self.0.clone())));
        Ok(())
    }

    async fn content(
        self: Rc<Self>,
        _: namespace::ContentParams,
        mut results: namespace::ContentResults,
    ) -> capnp::Result<()> {
        results.get().set_content(self.0.hand_out(Content(self.0.clone())));
        Ok(())
    }

    async fn snapshots(
        self: Rc<Self>,
        params: namespace::SnapshotsParams,
        mut results: namespace::SnapshotsResults,
    ) -> capnp::Result<()> {
        let driver = rpc(text(params.get()?.get_driver()))?;
        let object = rpc(Snapshots::new(self.0.clone(), driver))?;
        results.get().set_snapshots(self.0.hand_out(object));
        Ok(())
    }

    async fn events(
        self: Rc<Self>,
        _: namespace::EventsParams,
        mut results: namespace::EventsResults,
    ) -> capnp::Result<()> {
        results.get().set_events(self.0.hand_out(Events(self.0.clone())));
        Ok(())
    }

    async fn jobs(self: Rc<Self>, _: namespace::JobsParams, mut results: namespace::JobsResults) -> capnp::Result<()> {
        results.get().set_jobs(self.0.hand_out(Jobs(self.0.clone())));
        Ok(())
    }

    async fn networks(
        self: Rc<Self>,
        _: namespace::NetworksParams,
        mut results: namespace::NetworksResults,
    ) -> capnp::Result<()> {
        results.get().set_networks(self.0.hand_out(Networks(self.0.clone())));
        Ok(())
    }

    async fn leases(
        self: Rc<Self>,
        _: namespace::LeasesParams,
        mut results: namespace::LeasesResults,
    ) -> capnp::Result<()> {
        results.get().set_leases(self.0.hand_out(Leases(self.0.clone())));
        Ok(())
    }

    async fn grants(
        self: Rc<Self>,
        _: namespace::GrantsParams,
        mut results: namespace::GrantsResults,
    ) -> capnp::Result<()> {
        let object = rpc(Grants::of(&self.0))?;
        results.get().set_grants(self.0.hand_out(object));
        Ok(())
    }

    async fn credentials(
        self: Rc<Self>,
        _: namespace::CredentialsParams,
        mut results: namespace::CredentialsResults,
    ) -> capnp::Result<()> {
        results.get().set_credentials(self.0.hand_out(Credentials(self.0.clone())));
        Ok(())
    }

    async fn explain(
        self: Rc<Self>,
        params: namespace::ExplainParams,
        mut results: namespace::ExplainResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let mut subject = rpc(text(params.get_type()).and_then(|kind| subject(kind, text(params.get_id())?)))?;
        if let Subject::Image(name) = &mut subject
            && let Some(full) = rpc(Images(self.0.clone()).find(name))?
        {
            *name = full;
        }
        let (metadata, ns) = (self.0.services().metadata.clone(), self.0.namespace.clone());
        // All records of the namespace are read for it.
        let asked = self.0.services().pool.run(move || metadata.explain(&ns, &subject)).await;
        set_explanation(results.get().init_explanation(), &rpc(asked)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_parents_have_one_form() {
        assert!(is_trace_parent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-02",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473\n-00f067aa0ba902b7-01",
        ] {
            assert!(!is_trace_parent(bad), "{bad:?}");
        }
    }
}
