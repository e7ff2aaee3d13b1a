//! `Snapshots` and `Snapshot` (snapshot.capnp).

use std::rc::Rc;

use cofferdam_snapshots::{Kind, Snapshot as Record};
use cofferdam_types::{Error, Labels, Name, Result, Right, filter};
use cofferdam_wire::{
    common_capnp::label,
    convert::{labels, set_labels, set_mounts, text, texts},
    snapshot_capnp::{snapshot, snapshot_cursor, snapshot_info, snapshots},
};

use super::{
    Place,
    bytes::{End, pipe, pump},
    changes::Pair,
    cursor::Cursor,
    filters, rpc,
};

/// The snapshots of a namespace in one driver.
pub struct Snapshots {
    place: Place,
    driver: String,
}

impl Snapshots {
    /// The empty name is the default driver.
    pub fn new(place: Place, driver: &str) -> Result<Snapshots> {
        let all = &place.services().snapshots;
        let drivers = all.drivers();
        let driver = if driver.is_empty() { drivers[0] } else { driver };
        if let Some(reason) = all.unfit(driver) {
            return Err(reason);
        }
        if !drivers.contains(&driver) {
            let why = format!("is not a driver of this daemon; there are {}", drivers.join(", "));
            return Err(Error::invalid("snapshot driver", driver, why));
        }
        let driver = driver.to_owned();
        Ok(Snapshots { place, driver })
    }

    fn hand_out(&self, key: Name) -> snapshot::Client {
        let place = self.place.named("snapshot", format_args!("{}/{key}", self.driver));
        place.clone().hand_out(Snapshot { place, driver: self.driver.clone(), key })
    }
}

fn kind(kind: Kind) -> snapshot_info::Kind {
    match kind {
        Kind::View => snapshot_info::Kind::View,
        Kind::Active => snapshot_info::Kind::Active,
        Kind::Committed => snapshot_info::Kind::Committed,
    }
}

fn set_info(mut builder: snapshot_info::Builder<'_>, record: &Record) {
    builder.set_key(&*record.key);
    builder.set_parent(record.parent.as_ref().map_or("", |parent| parent.as_str()));
    builder.set_kind(kind(record.kind));
    set_labels(builder.reborrow().init_labels(record.labels.len() as u32), &record.labels);
    builder.set_created(record.created.0);
    builder.set_updated(record.updated.0);
    builder.set_driver(&record.driver);
}

/// What a new snapshot is asked for with.
fn wish(
    key: capnp::Result<capnp::text::Reader<'_>>,
    parent: capnp::Result<capnp::text::Reader<'_>>,
    given: capnp::Result<capnp::struct_list::Reader<'_, label::Owned>>,
) -> Result<(Name, Option<Name>, Labels)> {
    let parent = Some(text(parent)?).filter(|parent| !parent.is_empty()).map(Name::new).transpose()?;
    Ok((Name::new(text(key)?)?, parent, labels(given)?))
}

impl snapshots::Server for Snapshots {
    async fn list(
        self: Rc<Self>,
        params: snapshots::ListParams,
        mut results: snapshots::ListResults,
    ) -> capnp::Result<()> {
        let known = ["key", "name", "parent", "kind", "labels.KEY"];
        let filters = rpc(filters(params.get()?.get_filters(), &known))?;
        let (handle, namespace) = (self.place.services().snapshots.clone(), self.place.namespace.clone());
        let driver = self.driver.clone();
        let cursor = Cursor::new(
            Box::new(move |after, max| handle.list(&namespace, &driver, after, max)),
            |record: &Record| record.key.to_string(),
            move |record| {
                filters.matches(&|path: &[&str]| match path {
                    ["key" | "name"] => Some(record.key.as_str().into()),
                    ["parent"] => record.parent.as_ref().map(|parent| parent.as_str().into()),
                    ["kind"] => Some(format!("{:?}", record.kind).to_lowercase().into()),
                    ["labels", rest @ ..] => filter::label(&record.labels, rest),
                    _ => None,
                })
            },
        );
        results.get().set_cursor(self.place.hand_out(SnapshotCursor(cursor)));
        Ok(())
    }

    async fn get(
        self: Rc<Self>,
        params: snapshots::GetParams,
        mut results: snapshots::GetResults,
    ) -> capnp::Result<()> {
        let key = rpc(Name::new(rpc(text(params.get()?.get_key()))?))?;
        rpc(self.place.services().snapshots.stat(&self.place.namespace, &self.driver, &key))?;
        results.get().set_snapshot(self.hand_out(key));
        Ok(())
    }

    async fn prepare(
        self: Rc<Self>,
        params: snapshots::PrepareParams,
        mut results: snapshots::PrepareResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (key, parent, labels) = rpc(wish(params.get_key(), params.get_parent(), params.get_labels()))?;
        let (all, ns, auth) = (&self.place.services().snapshots, &self.place.namespace, self.place.authority());
        rpc(all.prepare(&auth.by_hand(), ns, &self.driver, &key, parent.as_ref(), labels).await)?;
        results.get().set_snapshot(self.hand_out(key));
        Ok(())
    }

    async fn view(
        self: Rc<Self>,
        params: snapshots::ViewParams,
        mut results: snapshots::ViewResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (key, parent, labels) = rpc(wish(params.get_key(), params.get_parent(), params.get_labels()))?;
        let (all, ns, auth) = (&self.place.services().snapshots, &self.place.namespace, self.place.authority());
        rpc(all.view(&auth.by_hand(), ns, &self.driver, &key, parent.as_ref(), labels).await)?;
        results.get().set_snapshot(self.hand_out(key));
        Ok(())
    }
}

struct SnapshotCursor(Cursor<Record>);

impl snapshot_cursor::Server for SnapshotCursor {
    async fn next(
        self: Rc<Self>,
        params: snapshot_cursor::NextParams,
        mut results: snapshot_cursor::NextResults,
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

struct Snapshot {
    place: Place,
    driver: String,
    key: Name,
}

impl Snapshot {
    /// It and another one, or its parent where `base` is empty.
    fn beside(&self, base: capnp::Result<capnp::text::Reader<'_>>) -> Result<Pair<'_>> {
        let base = Some(text(base)?).filter(|base| !base.is_empty()).map(Name::new).transpose()?;
        Ok(Pair { place: &self.place, driver: &self.driver, key: &self.key, base })
    }

    /// Refuses what two mounts can't show.
    async fn at_rest(&self) -> Result<()> {
        let services = self.place.services();
        // The other driver's is a directory, which any number of mounts may show.
        if services.snapshots.detached(&self.driver)? {
            services.tasks.check_at_rest(&self.place.namespace, &self.driver, &self.key).await?;
        }
        Ok(())
    }
}

impl snapshot::Server for Snapshot {
    async fn info(self: Rc<Self>, _: snapshot::InfoParams, mut results: snapshot::InfoResults) -> capnp::Result<()> {
        let record = rpc(self.place.services().snapshots.stat(&self.place.namespace, &self.driver, &self.key))?;
        set_info(results.get().init_info(), &record);
        Ok(())
    }

    async fn usage(self: Rc<Self>, _: snapshot::UsageParams, mut results: snapshot::UsageResults) -> capnp::Result<()> {
        let snapshots = &self.place.services().snapshots;
        let usage = rpc(snapshots.usage(&self.place.namespace, &self.driver, &self.key).await)?;
        results.get().set_size(usage.size);
        results.get().set_inodes(usage.inodes);
        Ok(())
    }

    async fn remove(self: Rc<Self>, _: snapshot::RemoveParams, _: snapshot::RemoveResults) -> capnp::Result<()> {
        let snapshots = &self.place.services().snapshots;
        rpc(snapshots.remove(self.place.authority(), &self.place.namespace, &self.driver, &self.key).await)
    }

    async fn limit(self: Rc<Self>, params: snapshot::LimitParams, _: snapshot::LimitResults) -> capnp::Result<()> {
        if self.place.held.reach.caveats.quota.disk.is_some() {
            let why = "can't have its limit changed through this grant, which has so much of the disk: it counts as it was made";
            return rpc(Err(Error::denied("snapshot", &self.key, why)));
        }
        let (all, bytes) = (&self.place.services().snapshots, params.get()?.get_bytes());
        rpc(all.limit(self.place.authority(), &self.place.namespace, &self.driver, &self.key, bytes).await)
    }

    async fn mounts(
        self: Rc<Self>,
        _: snapshot::MountsParams,
        mut results: snapshot::MountsResults,
    ) -> capnp::Result<()> {
        let (all, auth) = (&self.place.services().snapshots, self.place.authority());
        rpc(all.ready(&self.place.namespace, &self.driver, &self.key).await)?;
        let mounts = rpc(all.mounts_for(auth, &self.place.namespace, &self.driver, &self.key))?;
        rpc(self.at_rest().await)?;
        set_mounts(results.get().init_mounts(mounts.len() as u32), &mounts);
        Ok(())
    }

    async fn mount_fd(
        self: Rc<Self>,
        _: snapshot::MountFdParams,
        mut results: snapshot::MountFdResults,
    ) -> capnp::Result<()> {
        let services = self.place.services();
        if !self.place.held.reach.caveats.rights.has(Right::Host) {
            // Nothing takes it back: whoever has it would go on reading when his grant has ended, and could give it to others.
            let why = "is handed over as a mount, which outlives every grant: that needs the host right. `diffTo` gives what is in it";
            return rpc(Err(Error::denied("snapshot", &self.key, why)));
        }
        rpc(self.at_rest().await)?;
        let (all, ns) = (services.snapshots.clone(), self.place.namespace.clone());
        let (driver, key) = (self.driver.clone(), self.key.clone());
        rpc(all.ready(&ns, &driver, &key).await)?;
        let mount = rpc(services.pool.run(move || all.mount(&ns, &driver, &key)).await)?;
        results.get().set_mount(self.place.session.fds.push(mount));
        Ok(())
    }

    async fn changes(
        self: Rc<Self>,
        params: snapshot::ChangesParams,
        mut results: snapshot::ChangesResults,
    ) -> capnp::Result<()> {
        let pair = rpc(self.beside(params.get()?.get_base()))?;
        results.get().set_cursor(rpc(pair.list().await)?);
        Ok(())
    }

    async fn diff(
        self: Rc<Self>,
        params: snapshot::DiffParams,
        mut results: snapshot::DiffResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (media_type, labels) = (rpc(text(params.get_media_type()))?, rpc(labels(params.get_labels()))?);
        let pair = rpc(self.beside(params.get_base()))?;
        rpc(pair.store(media_type, labels, results.get().init_layer()).await)
    }

    async fn diff_fd(
        self: Rc<Self>,
        params: snapshot::DiffFdParams,
        mut results: snapshot::DiffFdResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let target = rpc(self.place.session.fds.take(params.get_target()))?;
        let pair = rpc(self.beside(params.get_base()))?;
        rpc(pair.pour(rpc(text(params.get_media_type()))?, target, results.get().init_layer()).await)
    }

    async fn diff_to(
        self: Rc<Self>,
        params: snapshot::DiffToParams,
        mut results: snapshot::DiffToResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (pair, media_type) = (rpc(self.beside(params.get_base()))?, rpc(text(params.get_media_type()))?);
        let (read, write) = rpc(pipe(End::Read))?;
        let poured = pair.pour(media_type, write, results.get().init_layer());
        let (poured, pumped) = tokio::join!(poured, pump(&self.place.session.meter, read, params.get_sink()?));
        // Whoever takes no more is told so; otherwise what went wrong with the layer comes first.
        rpc(poured.and(pumped))
    }

    async fn commit(
        self: Rc<Self>,
        params: snapshot::CommitParams,
        mut results: snapshot::CommitResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let name = rpc(text(params.get_name()).and_then(Name::new))?;
        let labels = rpc(labels(params.get_labels()))?;
        let (all, auth) = (&self.place.services().snapshots, self.place.authority());
        rpc(all.commit(&auth.by_hand(), &self.place.namespace, &self.driver, &name, &self.key, labels).await)?;
        let place = self.place.named("snapshot", format_args!("{}/{name}", self.driver));
        let committed = Snapshot { place: place.clone(), driver: self.driver.clone(), key: name };
        results.get().set_snapshot(place.hand_out(committed));
        Ok(())
    }

    async fn update(
        self: Rc<Self>,
        params: snapshot::UpdateParams,
        mut results: snapshot::UpdateResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (labels, fields) = (rpc(labels(params.get_labels()))?, rpc(texts(params.get_fields()))?);
        let (all, auth) = (&self.place.services().snapshots, self.place.authority());
        let record = rpc(all.update(auth, &self.place.namespace, &self.driver, &self.key, labels, fields).await)?;
        set_info(results.get().init_info(), &record);
        Ok(())
    }
}
