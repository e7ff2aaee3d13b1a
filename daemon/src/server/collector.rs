//! `Collector`, and what is explained of a namespace (gc.capnp).

use std::rc::Rc;

use cofferdam_gc::{Item, Report};
use cofferdam_metadata::{
    graph::{Explanation, Owner, Subject},
    records::Resource,
};
use cofferdam_types::{Error, Id, Name, Result};
use cofferdam_wire::{
    convert::set_texts,
    gc_capnp::{byte_owner_cursor, collect_report, collected_cursor, collector, explanation},
};

use super::{
    cursor::Cursor,
    rpc,
    session::{Held, Session},
};

/// The collector.
pub struct Collector(pub Rc<Session>, pub Held);

/// So many records that can't be read are told.
const UNREADABLE: usize = 1000;

fn nanos(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn set_report(mut builder: collect_report::Builder<'_>, report: &Report) {
    builder.set_blobs(report.blobs);
    builder.set_snapshots(report.snapshots);
    builder.set_leases(report.leases);
    builder.set_bytes(report.bytes);
    builder.set_mark(nanos(report.mark));
    builder.set_sweep(nanos(report.sweep));
    builder.set_longest(nanos(report.longest));
    let unreadable: Vec<&String> = report.unreadable.iter().take(UNREADABLE).collect();
    set_texts(builder.init_unreadable(unreadable.len() as u32), &unreadable);
}

impl collector::Server for Collector {
    async fn collect(
        self: Rc<Self>,
        params: collector::CollectParams,
        mut results: collector::CollectResults,
    ) -> capnp::Result<()> {
        let gc = &self.0.services.gc;
        let report = rpc(if params.get()?.get_rehearse() { gc.rehearse().await } else { gc.collect().await })?;
        set_report(results.get().init_report(), &report);
        results.get().set_cursor(self.0.hand_out(CollectedCursor(placed(report.items)), &self.1));
        Ok(())
    }

    async fn usage(
        self: Rc<Self>,
        _: collector::UsageParams,
        mut results: collector::UsageResults,
    ) -> capnp::Result<()> {
        let found = rpc(self.0.services.gc.usage().await)?;
        let mut builder = results.get().init_usage();
        builder.set_total(found.total());
        builder.set_shared(found.shared);
        let mut areas = builder.init_areas(found.areas.len() as u32);
        for (n, (name, bytes)) in found.areas.iter().enumerate() {
            let mut area = areas.reborrow().get(n as u32);
            area.set_name(name);
            area.set_bytes(*bytes);
        }
        let cursor = ByteOwnerCursor(placed(found.owners));
        results.get().set_cursor(self.0.hand_out(cursor, &self.1));
        Ok(())
    }
}

/// A cursor over what is in memory. It goes on behind a key: here the place in the list.
pub fn placed<T: Clone + 'static>(items: Vec<T>) -> Cursor<(usize, T)> {
    let items: Vec<(usize, T)> = items.into_iter().enumerate().collect();
    let page = move |after: Option<&str>, max: usize| {
        let from = after.and_then(|after| after.parse::<usize>().ok()).map_or(0, |after| after + 1);
        Ok(items.iter().skip(from).take(max).cloned().collect())
    };
    Cursor::new(Box::new(page), |(n, _): &(usize, T)| n.to_string(), |_| true)
}

struct ByteOwnerCursor(Cursor<(usize, Owner)>);

impl byte_owner_cursor::Server for ByteOwnerCursor {
    async fn next(
        self: Rc<Self>,
        params: byte_owner_cursor::NextParams,
        mut results: byte_owner_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.0.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, (_, owner)) in block.iter().enumerate() {
            let mut entry = items.reborrow().get(n as u32);
            let (kind, id) = match &owner.root {
                Some(root) => root.words(),
                None => ("nothing", ""),
            };
            entry.set_namespace(owner.namespace.as_str());
            entry.set_type(kind);
            entry.set_id(id);
            entry.set_alone(owner.alone);
            entry.set_shared(owner.shared);
        }
        Ok(())
    }
}

struct CollectedCursor(Cursor<(usize, Item)>);

impl collected_cursor::Server for CollectedCursor {
    async fn next(
        self: Rc<Self>,
        params: collected_cursor::NextParams,
        mut results: collected_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.0.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, (_, item)) in block.iter().enumerate() {
            let mut entry = items.reborrow().get(n as u32);
            entry.set_namespace(item.namespace.as_str());
            entry.set_type(item.resource.kind());
            entry.set_id(item.resource.id());
            entry.set_bytes(item.bytes);
        }
        Ok(())
    }
}

/// What a client asks about.
pub fn subject(kind: &str, id: &str) -> Result<Subject> {
    Ok(match kind {
        "image" => Subject::Image(Name::new(id)?),
        "container" => Subject::Container(Id::new(id)?),
        "lease" => Subject::Lease(Name::new(id)?),
        _ => Subject::Resource(Resource::parse(kind, id).map_err(|e| match &*e.kind {
            "resource" => {
                let why =
                    "is no kind of thing: give image, container, lease, content, or snapshots/ and a driver's name";
                Error::invalid("type", kind, why)
            }
            _ => e,
        })?),
    })
}

pub fn set_explanation(mut builder: explanation::Builder<'_>, from: &Explanation) {
    builder.set_stays(from.stays);
    builder.set_why(&from.why);
    builder.set_blobs(from.blobs);
    builder.set_snapshots(from.snapshots);
    builder.set_bytes(from.bytes);
    let mut chain = builder.init_chain(from.chain.len() as u32);
    for (n, step) in from.chain.iter().enumerate() {
        let mut entry = chain.reborrow().get(n as u32);
        entry.set_type(&step.kind);
        entry.set_id(&step.id);
        entry.set_by(&step.by);
    }
}
