//! `Leases` and `Lease` (namespace.capnp).

use std::rc::Rc;

use cofferdam_metadata::{
    Tx,
    records::{
        Resource,
        leases::{self as records, Lease as Record},
    },
};
use cofferdam_types::{Error, Keeper, Name, Result, Timestamp, filter};
use cofferdam_wire::{
    convert::{labels, set_labels, text, texts},
    lease_capnp::{lease_cursor, lease_info, resource, resource_cursor},
    namespace_capnp::{lease, leases},
};

use super::{Place, cursor::Cursor, filters, namespaces::Namespace, rpc};

/// The leases of a namespace.
pub struct Leases(pub Place);

fn set_info(mut builder: lease_info::Builder<'_>, record: &Record) {
    builder.set_id(&*record.id);
    set_labels(builder.reborrow().init_labels(record.labels.len() as u32), &record.labels);
    builder.set_created(record.created.0);
    builder.set_updated(record.updated.0);
    builder.set_expires(record.ends().unwrap_or_default().0);
}

fn end(time: u64) -> Option<Timestamp> {
    (time != 0).then_some(Timestamp(time))
}

impl Leases {
    fn hand_out(&self, id: Name) -> lease::Client {
        self.0.hand_out(Lease { place: self.0.clone(), id })
    }

    async fn write<R: Send + 'static>(&self, f: impl Fn(&mut Tx<'_>) -> Result<R> + Send + 'static) -> Result<R> {
        self.0.services().metadata.write(self.0.authority(), f).await
    }
}

impl leases::Server for Leases {
    async fn create(
        self: Rc<Self>,
        params: leases::CreateParams,
        mut results: leases::CreateResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let id = rpc(text(params.get_id()).and_then(Name::new))?;
        let mut record = Record::new(id.clone());
        record.labels = rpc(labels(params.get_labels()))?;
        record.expires = end(params.get_expires());
        let namespace = self.0.namespace.clone();
        rpc(self.write(move |tx| records::create(tx, &namespace, record.clone())).await)?;
        results.get().set_lease(self.hand_out(id));
        Ok(())
    }

    async fn get(self: Rc<Self>, params: leases::GetParams, mut results: leases::GetResults) -> capnp::Result<()> {
        let id = rpc(text(params.get()?.get_id()).and_then(Name::new))?;
        let view = rpc(self.0.services().metadata.read())?;
        rpc(records::get(&view, &self.0.namespace, &id))?;
        results.get().set_lease(self.hand_out(id));
        Ok(())
    }

    async fn list(self: Rc<Self>, params: leases::ListParams, mut results: leases::ListResults) -> capnp::Result<()> {
        let filters = rpc(filters(params.get()?.get_filters(), &["id", "labels.KEY"]))?;
        let (metadata, namespace) = (self.0.services().metadata.clone(), self.0.namespace.clone());
        let cursor = Cursor::new(
            Box::new(move |after, max| records::list(&metadata.read()?, &namespace, after, max)),
            |record: &Record| record.id.to_string(),
            move |record| {
                filters.matches(&|path: &[&str]| match path {
                    ["id"] => Some(record.id.as_str().into()),
                    ["labels", rest @ ..] => filter::label(&record.labels, rest),
                    _ => None,
                })
            },
        );
        results.get().set_cursor(self.0.hand_out(LeaseCursor(cursor)));
        Ok(())
    }

    async fn remove(self: Rc<Self>, params: leases::RemoveParams, _: leases::RemoveResults) -> capnp::Result<()> {
        let id = rpc(text(params.get()?.get_id()).and_then(Name::new))?;
        let namespace = self.0.namespace.clone();
        rpc(self.write(move |tx| records::delete(tx, &namespace, &id)).await)
    }
}

struct LeaseCursor(Cursor<Record>);

impl lease_cursor::Server for LeaseCursor {
    async fn next(
        self: Rc<Self>,
        params: lease_cursor::NextParams,
        mut results: lease_cursor::NextResults,
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

struct Lease {
    place: Place,
    id: Name,
}

impl Lease {
    fn record(&self) -> Result<Record> {
        records::get(&self.place.services().metadata.read()?, &self.place.namespace, &self.id)
    }

    async fn write<R: Send + 'static>(
        &self,
        f: impl Fn(&mut Tx<'_>, &cofferdam_types::Namespace, &Name) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let (namespace, id) = (self.place.namespace.clone(), self.id.clone());
        let write = move |tx: &mut Tx<'_>| f(tx, &namespace, &id);
        self.place.services().metadata.write(self.place.authority(), write).await
    }
}

fn named(reader: capnp::Result<resource::Reader<'_>>) -> Result<Resource> {
    let reader = reader.map_err(cofferdam_wire::error::malformed)?;
    Resource::parse(text(reader.get_type())?, text(reader.get_id())?)
}

impl lease::Server for Lease {
    async fn info(self: Rc<Self>, _: lease::InfoParams, mut results: lease::InfoResults) -> capnp::Result<()> {
        set_info(results.get().init_info(), &rpc(self.record())?);
        Ok(())
    }

    async fn namespace(
        self: Rc<Self>,
        _: lease::NamespaceParams,
        mut results: lease::NamespaceResults,
    ) -> capnp::Result<()> {
        let mut place = self.place.clone();
        place.held.authority.keeper = Keeper::Lease(self.id.clone());
        results.get().set_namespace(place.clone().hand_out(Namespace(place)));
        Ok(())
    }

    async fn update(
        self: Rc<Self>,
        params: lease::UpdateParams,
        mut results: lease::UpdateResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (labels, expires) = (rpc(labels(params.get_labels()))?, end(params.get_expires()));
        let fields = rpc(texts(params.get_fields()))?;
        let write = self.write(move |tx, ns, id| records::update_fields(tx, ns, id, &labels, expires, &fields));
        set_info(results.get().init_info(), &rpc(write.await)?);
        Ok(())
    }

    async fn add(self: Rc<Self>, params: lease::AddParams, _: lease::AddResults) -> capnp::Result<()> {
        let resource = rpc(named(params.get()?.get_resource()))?;
        rpc(self.write(move |tx, ns, id| records::hold(tx, ns, id, &resource)).await)
    }

    async fn drop(self: Rc<Self>, params: lease::DropParams, _: lease::DropResults) -> capnp::Result<()> {
        let resource = rpc(named(params.get()?.get_resource()))?;
        let write = self.write(move |tx, ns, id| match records::release(tx, ns, id, &resource)? {
            true => Ok(()),
            false => Err(Error::not_found("resource", resource.id(), format!("is not held by lease {id}"))),
        });
        rpc(write.await)
    }

    async fn resources(
        self: Rc<Self>,
        _: lease::ResourcesParams,
        mut results: lease::ResourcesResults,
    ) -> capnp::Result<()> {
        rpc(self.record())?;
        let (metadata, namespace, id) =
            (self.place.services().metadata.clone(), self.place.namespace.clone(), self.id.clone());
        let page = move |after: Option<&str>, max: usize| {
            let after = after.and_then(|after| after.split_once(' '));
            let after = after.map(|(kind, id)| Resource::parse(kind, id)).transpose()?;
            records::resources(&metadata.read()?, &namespace, &id, after.as_ref(), max)
        };
        let key = |resource: &Resource| format!("{} {}", resource.kind(), resource.id());
        results.get().set_cursor(self.place.hand_out(ResourceCursor(Cursor::new(Box::new(page), key, |_| true))));
        Ok(())
    }
}

struct ResourceCursor(Cursor<Resource>);

impl resource_cursor::Server for ResourceCursor {
    async fn next(
        self: Rc<Self>,
        params: resource_cursor::NextParams,
        mut results: resource_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.0.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, resource) in block.iter().enumerate() {
            let mut item = items.reborrow().get(n as u32);
            item.set_type(resource.kind());
            item.set_id(resource.id());
        }
        Ok(())
    }
}
