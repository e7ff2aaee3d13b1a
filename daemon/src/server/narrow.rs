//! The `Root` and the `Namespaces` of who holds a grant: the way to its namespace, and nothing beside it.
//!
//! They are there so that every client finds what a grant gives where it would look for it. Both are behind the guard with all rights,
//! since the schema says that a `Root` needs them; what they lead to has the grant's.

use std::rc::Rc;

use cofferdam_metadata::records::namespaces as records;
use cofferdam_types::{Error, Labels, Namespace as Name, Timestamp};
use cofferdam_wire::{
    convert::text,
    gate_capnp::{namespace_cursor, namespaces, root},
};

use super::{
    Place, filters,
    namespaces::{FIELDS, Namespace, matches, set_info},
    rpc,
};

/// The top of what a grant gives.
pub struct Root(pub Place);

/// One namespace, as if there were no other.
struct Namespaces(Place);

fn denied(what: &'static str) -> capnp::Error {
    let why = "is the operator's: this grant begins in one namespace";
    cofferdam_wire::error::to_rpc(Error::denied("method", what, why))
}

impl root::Server for Root {
    async fn namespaces(
        self: Rc<Self>,
        _: root::NamespacesParams,
        mut results: root::NamespacesResults,
    ) -> capnp::Result<()> {
        let object = Namespaces(self.0.clone());
        results.get().set_namespaces(self.0.session.hand_out(object, &self.0.held.way()));
        Ok(())
    }

    async fn system(self: Rc<Self>, _: root::SystemParams, _: root::SystemResults) -> capnp::Result<()> {
        Err(denied("Root.system"))
    }

    async fn collector(self: Rc<Self>, _: root::CollectorParams, _: root::CollectorResults) -> capnp::Result<()> {
        Err(denied("Root.collector"))
    }

    async fn audit(self: Rc<Self>, _: root::AuditParams, _: root::AuditResults) -> capnp::Result<()> {
        Err(denied("Root.audit"))
    }
}

impl namespaces::Server for Namespaces {
    async fn get(
        self: Rc<Self>,
        params: namespaces::GetParams,
        mut results: namespaces::GetResults,
    ) -> capnp::Result<()> {
        let name = rpc(text(params.get()?.get_name()))?;
        if !name.is_empty() && rpc(Name::new(name))? != self.0.namespace {
            let why = format!("is not within reach of this grant, which begins in {}", self.0.namespace);
            return rpc(Err(Error::not_found("namespace", name, why)));
        }
        results.get().set_namespace(self.0.hand_out(Namespace(self.0.clone())));
        Ok(())
    }

    async fn create(self: Rc<Self>, _: namespaces::CreateParams, _: namespaces::CreateResults) -> capnp::Result<()> {
        Err(denied("Namespaces.create"))
    }

    async fn list(
        self: Rc<Self>,
        params: namespaces::ListParams,
        mut results: namespaces::ListResults,
    ) -> capnp::Result<()> {
        let filters = rpc(filters(params.get()?.get_filters(), FIELDS))?;
        let view = rpc(self.0.services().metadata.read())?;
        let whole = self.0.held.reach.allows("Namespace.info");
        // That it is there everybody knows who holds something of it. The rest is told here to whom it is told elsewhere.
        let told = |record: records::NamespaceRecord| match whole {
            true => record,
            false => records::NamespaceRecord {
                labels: Labels::new(),
                created: Timestamp::default(),
                updated: Timestamp::default(),
                ..record
            },
        };
        let record = rpc(records::find(&view, &self.0.namespace))?.map(told).filter(|record| matches(&filters, record));
        results.get().set_cursor(self.0.session.hand_out(Cursor(record), &self.0.held.way()));
        Ok(())
    }

    async fn remove(self: Rc<Self>, _: namespaces::RemoveParams, _: namespaces::RemoveResults) -> capnp::Result<()> {
        Err(denied("Namespaces.remove"))
    }
}

struct Cursor(Option<records::NamespaceRecord>);

impl namespace_cursor::Server for Cursor {
    async fn next(
        self: Rc<Self>,
        _: namespace_cursor::NextParams,
        mut results: namespace_cursor::NextResults,
    ) -> capnp::Result<()> {
        let mut answer = results.get();
        answer.set_end(true);
        let mut items = answer.init_items(u32::from(self.0.is_some()));
        if let Some(record) = &self.0 {
            set_info(items.reborrow().get(0), record);
        }
        Ok(())
    }
}
