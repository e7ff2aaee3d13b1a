//! `Grants` and `Grant` (namespace.capnp), and what a grant is to who holds it.

use std::{collections::BTreeSet, rc::Rc, sync::Arc};

use cofferdam_grants::{Live, NewGrant, Node};
use cofferdam_metadata::records::grants::Grant as Record;
use cofferdam_transfer::normalize;
use cofferdam_types::{
    Authority, Caveats, Ceiling, Digest, Error, Facet, GrantId, Id, Keeper, Nets, Pictures, Quota, Result, Right,
    Rights, Timestamp, Which,
};
use cofferdam_wire::{
    convert::{set_texts, text, texts},
    grant_capnp::{grant_cursor, grant_info, grant_options},
    namespace_capnp::{grant, grants},
};

use super::{
    Place,
    cursor::Cursor,
    exports,
    namespaces::Namespace,
    reach::Reach,
    rpc,
    session::{Held, Session},
    trail::{self, About},
};

/// What a connection has of a grant: a life of its own, which ends with the connection and with what it had it by.
fn hold(session: &Rc<Session>, node: &Arc<Node>, by: &Arc<Live>) -> Held {
    let caveats = &node.caveats;
    Held {
        authority: Authority {
            grants: node.path.clone(),
            ceiling: caveats.ceiling.clone(),
            peer: Some(session.peer),
            correlation: None,
            trace: None,
            keeper: Keeper::References,
        },
        grant: Live::below(&[by, &session.grant]),
        given: Some(by.clone()),
        reach: Reach::of(caveats),
        check: None,
        gone: None,
        deadline: None,
        calls: node.calls.clone(),
        about: About { namespace: Some(node.namespace.clone()), object: None },
    }
}

/// The namespace of a grant, as a connection has it.
pub fn place(session: &Rc<Session>, node: &Arc<Node>, by: &Arc<Live>) -> Place {
    Place { session: session.clone(), held: hold(session, node, by), namespace: node.namespace.clone() }
}

/// Those that come from the grant of the place.
pub struct Grants(pub Place);

impl Grants {
    /// Of a place whose grant may be passed on.
    pub fn of(place: &Place) -> Result<Grants> {
        if !place.held.reach.caveats.may_delegate {
            return Err(Error::denied("grant", "", "may not be passed on: ask who gave it for another"));
        }
        Ok(Grants(place.clone()))
    }

    fn hand_out(&self, id: GrantId) -> grant::Client {
        self.0.named("grant", id).hand_out(Grant { place: self.0.clone(), id })
    }
}

/// What is asked for.
fn new_grant(place: &Place, reader: grant_options::Reader<'_>) -> Result<NewGrant> {
    let some = |n: u64| (n != 0).then_some(n);
    let all = |list: Vec<String>| if list.is_empty() { Vec::new() } else { vec![list] };
    let facets: BTreeSet<Facet> =
        texts(reader.get_facets())?.iter().map(|text| Facet::parse(text)).collect::<Result<_>>()?;
    let mut rights = Vec::new();
    for word in texts(reader.get_rights())? {
        match Right::parse(&word)? {
            Right::Root => {
                let why = "is the operator's, and can't be handed out";
                return Err(Error::invalid("right", word, why));
            }
            right => rights.push(right),
        }
    }
    let rights = match (&*rights, facets.is_empty()) {
        ([], true) => Rights::of([Right::Read]),
        ([], false) => Rights::of(facets.iter().flat_map(|facet| facet.rights().iter())),
        (given, _) => Rights::of(given.iter().copied()),
    };
    let ids: BTreeSet<Id> = texts(reader.get_containers())?.into_iter().map(Id::new).collect::<Result<_>>()?;
    // A name is written out in full, as those of images are; a digest and a beginning stay what they are.
    let picture = |pattern: String| match pattern.ends_with('*') || pattern.parse::<Digest>().is_ok() {
        true => Ok(pattern),
        false => normalize(&pattern),
    };
    let nets = texts(reader.get_networks())?;
    if let Some(bad) = nets.iter().find(|net| net.is_empty() || net.len() > 256 || net.contains(char::is_control)) {
        let why = "is no network: give none, container, host, the path of a namespace, or the name of a network";
        return Err(Error::invalid("network", bad.escape_debug(), why));
    }
    let images = texts(reader.get_images())?.into_iter().map(picture).collect::<Result<_>>()?;
    let caveats = Caveats {
        rights,
        facets: if facets.is_empty() { Vec::new() } else { vec![facets] },
        containers: Which {
            ids: (!ids.is_empty()).then_some(ids),
            filters: all(texts(reader.get_filters())?),
            made_by: Vec::new(),
        },
        ceiling: Ceiling {
            host: rights.has(Right::Host),
            networks: rights.has(Right::Networks),
            memory: some(reader.get_memory()),
            nano_cpus: some(reader.get_nano_cpus()),
            pids: some(reader.get_pids()),
            storage: some(reader.get_storage()),
            images: Pictures(all(images)),
            nets: Nets(all(nets)),
        },
        quota: Quota {
            containers: some(reader.get_most_containers()),
            calls: some(reader.get_most_calls()),
            disk: some(reader.get_most_disk()),
        },
        not_after: some(reader.get_not_after()).map(Timestamp),
        may_delegate: reader.get_may_delegate(),
        may_save: reader.get_may_save(),
    };
    Ok(NewGrant {
        namespace: place.namespace.clone(),
        label: text(reader.get_label())?.to_owned(),
        caveats,
        uses: some(reader.get_uses()),
        own: reader.get_own(),
    })
}

/// Fills what is known of a grant.
pub fn set_info(mut builder: grant_info::Builder<'_>, node: &Node, record: &Record) {
    if let [.., parent, _] = &*node.path {
        builder.set_parent(parent.to_string());
    }
    builder.set_id(node.id().to_string());
    builder.set_namespace(&*node.namespace);
    builder.set_created(record.created.0);
    builder.set_by(record.by);
    builder.set_saved(record.token.is_some());
    builder.set_sealed(record.sealed_to.is_some());
    builder.set_sealed_to(record.sealed_to.unwrap_or_default());
    builder.set_used_up(record.uses == Some(0));
    builder.set_exported(record.exported.as_deref().unwrap_or_default());
    builder.set_holders(u32::try_from(node.live.held()).unwrap_or(u32::MAX));
    let words = |rights: Rights| rights.iter().map(Right::as_str).collect::<Vec<_>>();
    let left = words(node.caveats.rights);
    set_texts(builder.reborrow().init_rights(left.len() as u32), &left);
    let (own, left) = (&record.caveats, &node.caveats);
    let mut options = builder.init_options();
    options.set_label(&record.label);
    let facets: Vec<_> = own.facets.iter().flatten().map(|facet| facet.as_str()).collect();
    set_texts(options.reborrow().init_facets(facets.len() as u32), &facets);
    let rights = words(own.rights);
    set_texts(options.reborrow().init_rights(rights.len() as u32), &rights);
    let ids: Vec<_> = left.containers.ids.iter().flatten().map(|id| id.as_str()).collect();
    set_texts(options.reborrow().init_containers(ids.len() as u32), &ids);
    let filters: Vec<_> = own.containers.filters.iter().flatten().collect();
    set_texts(options.reborrow().init_filters(filters.len() as u32), &filters);
    options.set_own(own.containers.made_by.contains(&node.id()));
    let images: Vec<_> = own.ceiling.images.0.iter().flatten().collect();
    set_texts(options.reborrow().init_images(images.len() as u32), &images);
    let nets: Vec<_> = own.ceiling.nets.0.iter().flatten().collect();
    set_texts(options.reborrow().init_networks(nets.len() as u32), &nets);
    options.set_memory(left.ceiling.memory.unwrap_or_default());
    options.set_nano_cpus(left.ceiling.nano_cpus.unwrap_or_default());
    options.set_pids(left.ceiling.pids.unwrap_or_default());
    options.set_storage(left.ceiling.storage.unwrap_or_default());
    options.set_most_containers(left.quota.containers.unwrap_or_default());
    options.set_most_calls(left.quota.calls.unwrap_or_default());
    options.set_most_disk(left.quota.disk.unwrap_or_default());
    options.set_not_after(left.not_after.unwrap_or_default().0);
    options.set_uses(record.uses.unwrap_or_default());
    options.set_may_delegate(left.may_delegate);
    options.set_may_save(left.may_save);
}

impl grants::Server for Grants {
    async fn create(
        self: Rc<Self>,
        params: grants::CreateParams,
        mut results: grants::CreateResults,
    ) -> capnp::Result<()> {
        let new = rpc(new_grant(&self.0, params.get()?.get_options()?))?;
        trail::note(|| new.label.clone());
        trail::note(|| serde_json::to_string(&new.caveats).unwrap_or_default());
        let node = rpc(self.0.services().grants.create(self.0.authority(), new).await)?;
        trail::object("grant", node.id());
        results.get().set_grant(self.hand_out(node.id()));
        Ok(())
    }

    async fn get(self: Rc<Self>, params: grants::GetParams, mut results: grants::GetResults) -> capnp::Result<()> {
        let id = rpc(text(params.get()?.get_id()).and_then(str::parse))?;
        // One that gives nothing, since what it comes from is lost, can be taken back all the same.
        results.get().set_grant(self.hand_out(id));
        Ok(())
    }

    async fn list(self: Rc<Self>, _: grants::ListParams, mut results: grants::ListResults) -> capnp::Result<()> {
        let place = self.0.clone();
        let page = move |after: Option<&str>, max: usize| {
            let after =
                after.map(|path| path.split('/').map(str::parse).collect::<Result<Vec<GrantId>>>()).transpose()?;
            place.services().grants.list(place.authority(), &place.namespace, after.as_deref(), max)
        };
        let path = |node: &Arc<Node>| node.path.iter().map(GrantId::to_string).collect::<Vec<_>>().join("/");
        let cursor = Cursor::new(Box::new(page), path, |_| true);
        results.get().set_cursor(self.0.hand_out(GrantCursor { place: self.0.clone(), cursor }));
        Ok(())
    }
}

struct GrantCursor {
    place: Place,
    cursor: Cursor<Arc<Node>>,
}

impl grant_cursor::Server for GrantCursor {
    async fn next(
        self: Rc<Self>,
        params: grant_cursor::NextParams,
        mut results: grant_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.cursor.next(params.get()?.get_max()))?;
        // One that was taken back meanwhile has no row any more.
        let known = |node: Arc<Node>| self.place.services().grants.record(&node).ok().map(|record| (node, record));
        let block: Vec<_> = block.into_iter().filter_map(known).collect();
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, (node, record)) in block.iter().enumerate() {
            set_info(items.reborrow().get(n as u32), node, record);
        }
        Ok(())
    }
}

/// Does something with a directory of the host, which may lie on a disk that takes its time, or never answers.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal("directory", "", e.to_string())))
}

/// One of them.
struct Grant {
    place: Place,
    id: GrantId,
}

impl Grant {
    fn node(&self) -> Result<Arc<Node>> {
        let node = self.place.services().grants.get(self.place.authority(), self.id)?;
        if node.namespace != self.place.namespace {
            let why = format!("begins in namespace {}: look for it there", node.namespace);
            return Err(Error::not_found("grant", self.id, why));
        }
        Ok(node)
    }
}

impl grant::Server for Grant {
    async fn info(self: Rc<Self>, _: grant::InfoParams, mut results: grant::InfoResults) -> capnp::Result<()> {
        let node = rpc(self.node())?;
        let record = rpc(self.place.services().grants.record(&node))?;
        let mut info = results.get().init_info();
        info.set_made(rpc(self.place.services().grants.made(&node))?);
        info.set_calling(node.calls.of(node.id()));
        info.set_stored(rpc(self.place.services().grants.stored(&node))?);
        set_info(info, &node, &record);
        Ok(())
    }

    async fn revoke(self: Rc<Self>, _: grant::RevokeParams, _: grant::RevokeResults) -> capnp::Result<()> {
        rpc(self.place.services().grants.revoke(self.place.authority(), self.id).await)
    }

    async fn save(self: Rc<Self>, params: grant::SaveParams, mut results: grant::SaveResults) -> capnp::Result<()> {
        let params = params.get()?;
        let sealed_to = params.get_sealed().then(|| params.get_sealed_to());
        trail::note(|| sealed_to.map_or_else(|| "for whoever has it".to_owned(), |uid| format!("for user {uid}")));
        let node = rpc(self.node())?;
        let token = rpc(self.place.services().grants.save(self.place.authority(), node.id(), sealed_to).await)?;
        results.get().set_token(token.reveal());
        Ok(())
    }

    async fn open(self: Rc<Self>, _: grant::OpenParams, mut results: grant::OpenResults) -> capnp::Result<()> {
        let node = rpc(self.node())?;
        let place = place(&self.place.session, &node, &node.live);
        results.get().set_namespace(place.clone().hand_out(Namespace(place)));
        Ok(())
    }

    async fn export(self: Rc<Self>, params: grant::ExportParams, _: grant::ExportResults) -> capnp::Result<()> {
        let directory = rpc(text(params.get()?.get_directory()))?.to_owned();
        trail::note(|| directory.clone());
        let services = self.place.services().clone();
        let (authority, node) = (self.place.authority().clone(), rpc(self.node())?);
        let id = node.id();
        // Beside the call: a client that leaves must not leave half of it.
        let done = tokio::task::spawn_local(async move {
            let _turn = services.exports.turn(id).await;
            let directory = aside(move || exports::resolve(&directory)).await?;
            services.grants.export(&authority, id, Some(directory.clone())).await?;
            let opening = services.clone();
            if let Err(error) = aside(move || opening.exports.open(&opening, &node, &directory)).await {
                // Nothing is there: nothing stays on record.
                services.grants.export(&authority, id, None).await?;
                return Err(error);
            }
            Ok(())
        });
        rpc(done.await.unwrap_or_else(|e| Err(Error::internal("grant", self.id, e.to_string()))))
    }

    async fn unexport(self: Rc<Self>, _: grant::UnexportParams, _: grant::UnexportResults) -> capnp::Result<()> {
        let services = self.place.services().clone();
        let (authority, id) = (self.place.authority().clone(), rpc(self.node())?.id());
        let done = tokio::task::spawn_local(async move {
            let _turn = services.exports.turn(id).await;
            services.exports.close(id);
            services.grants.export(&authority, id, None).await.map(drop)
        });
        rpc(done.await.unwrap_or_else(|e| Err(Error::internal("grant", self.id, e.to_string()))))
    }

    async fn explain(self: Rc<Self>, _: grant::ExplainParams, mut results: grant::ExplainResults) -> capnp::Result<()> {
        let methods = Reach::of(&rpc(self.node())?.caveats).methods();
        set_texts(results.get().init_methods(methods.len() as u32), &methods);
        Ok(())
    }
}
