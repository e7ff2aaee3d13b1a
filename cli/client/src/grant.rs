//! Grants: what is handed out of a namespace, to be taken back.

use std::rc::Rc;

use cofferdam_types::{Result, Timestamp};
use cofferdam_wire::{
    convert::{set_texts, text, texts},
    error::malformed,
    grant_capnp::{grant_info, grant_options},
    namespace_capnp::{grant, grants},
};
use serde::Serialize;

use crate::{
    call::{Reply, done_by, reply_by},
    connect::Link,
    cursor::Cursor,
    namespace::Namespace,
};

/// What a grant leaves of what its giver has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantOptions {
    /// What people call it.
    pub label: String,
    /// What may be done: `observer`, `logs`, `exec`, `kill`, `events`, `metrics`, `backup`, `pull`, `deploy`.
    pub facets: Vec<String>,
    /// `read`, `write`, `run`, `networks`, `host`; none: what the facets take.
    pub rights: Vec<String>,
    /// Only these containers.
    pub containers: Vec<String>,
    /// Only those that pass one of these.
    pub filters: Vec<String>,
    /// Only those that are made through it.
    pub own: bool,
    /// Only these images: names, beginnings with `*` behind them, digests.
    pub images: Vec<String>,
    /// Only these networks: `none`, `container`, `host`, paths of namespaces, names; none: all that the rights allow.
    pub networks: Vec<String>,
    /// The most memory of a container, in bytes; 0 is no bound.
    pub memory: u64,
    /// The most of the processors, in thousand millionths of one; 0 is no bound.
    pub nano_cpus: u64,
    /// The most processes; 0 is no bound.
    pub pids: u64,
    /// The most bytes written; 0 is no bound.
    pub storage: u64,
    /// When it ends by itself.
    #[serde(serialize_with = "crate::json::time")]
    pub not_after: Timestamp,
    /// How often its token may be used; 0 is as often as one likes. Of one that is there: how often yet, see
    /// [`GrantInfo::used_up`].
    pub uses: u64,
    /// Its holder may make grants that come from it.
    pub may_delegate: bool,
    /// And may have tokens made for those.
    pub may_save: bool,
    /// How many containers there may be at once that were made through it or what comes from it; 0 is no bound.
    pub most_containers: u64,
    /// How many calls may be under way at once, those that wait included; 0 is no bound.
    pub most_calls: u64,
    /// How many bytes of the disk what came through it may have; 0 is no bound.
    pub most_disk: u64,
}

/// What a grant is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantInfo {
    /// Its id, which gives nothing.
    pub id: String,
    /// The one that it comes from; empty: the operator.
    pub parent: String,
    /// Where it begins.
    pub namespace: String,
    /// What it leaves.
    pub options: GrantOptions,
    /// What is left of the rights.
    pub rights: Vec<String>,
    /// When it was made.
    #[serde(serialize_with = "crate::json::time")]
    pub created: Timestamp,
    /// The user who made it.
    pub by: u32,
    /// There is a token.
    pub saved: bool,
    /// The only user who may use that.
    pub sealed_to: Option<u32>,
    /// The directory in which a socket is it.
    pub exported: String,
    /// How many connections have it, and grants come from it.
    pub holders: u32,
    /// How many containers there are that were made through it or what comes from it. Told by [`Grant::info`].
    pub made: u64,
    /// How many calls are under way, where it bounds them itself. Told by [`Grant::info`].
    pub calling: u64,
    /// How many bytes of the disk are taken by what came through it. Told by [`Grant::info`].
    pub stored: u64,
    /// Its token was used as often as it may be: `uses` is 0 then, too.
    pub used_up: bool,
}

fn set_options(mut builder: grant_options::Builder<'_>, options: &GrantOptions) {
    builder.set_label(&options.label);
    set_texts(builder.reborrow().init_facets(options.facets.len() as u32), &options.facets);
    set_texts(builder.reborrow().init_rights(options.rights.len() as u32), &options.rights);
    set_texts(builder.reborrow().init_containers(options.containers.len() as u32), &options.containers);
    set_texts(builder.reborrow().init_filters(options.filters.len() as u32), &options.filters);
    set_texts(builder.reborrow().init_images(options.images.len() as u32), &options.images);
    set_texts(builder.reborrow().init_networks(options.networks.len() as u32), &options.networks);
    builder.set_own(options.own);
    builder.set_memory(options.memory);
    builder.set_nano_cpus(options.nano_cpus);
    builder.set_pids(options.pids);
    builder.set_storage(options.storage);
    builder.set_not_after(options.not_after.0);
    builder.set_uses(options.uses);
    builder.set_may_delegate(options.may_delegate);
    builder.set_may_save(options.may_save);
    builder.set_most_containers(options.most_containers);
    builder.set_most_calls(options.most_calls);
    builder.set_most_disk(options.most_disk);
}

fn read_options(reader: grant_options::Reader<'_>) -> Result<GrantOptions> {
    Ok(GrantOptions {
        label: text(reader.get_label())?.to_owned(),
        facets: texts(reader.get_facets())?,
        rights: texts(reader.get_rights())?,
        containers: texts(reader.get_containers())?,
        filters: texts(reader.get_filters())?,
        own: reader.get_own(),
        images: texts(reader.get_images())?,
        networks: texts(reader.get_networks())?,
        memory: reader.get_memory(),
        nano_cpus: reader.get_nano_cpus(),
        pids: reader.get_pids(),
        storage: reader.get_storage(),
        not_after: Timestamp(reader.get_not_after()),
        uses: reader.get_uses(),
        may_delegate: reader.get_may_delegate(),
        may_save: reader.get_may_save(),
        most_containers: reader.get_most_containers(),
        most_calls: reader.get_most_calls(),
        most_disk: reader.get_most_disk(),
    })
}

pub(crate) fn info(reader: grant_info::Reader<'_>) -> Result<GrantInfo> {
    Ok(GrantInfo {
        id: text(reader.get_id())?.to_owned(),
        parent: text(reader.get_parent())?.to_owned(),
        namespace: text(reader.get_namespace())?.to_owned(),
        options: read_options(reader.get_options().map_err(malformed)?)?,
        rights: texts(reader.get_rights())?,
        made: reader.get_made(),
        calling: reader.get_calling(),
        stored: reader.get_stored(),
        used_up: reader.get_used_up(),
        created: Timestamp(reader.get_created()),
        by: reader.get_by(),
        saved: reader.get_saved(),
        sealed_to: reader.get_sealed().then(|| reader.get_sealed_to()),
        exported: text(reader.get_exported())?.to_owned(),
        holders: reader.get_holders(),
    })
}

/// The grants of a namespace that come from what you have.
#[derive(Clone)]
pub struct Grants {
    pub(crate) link: Rc<Link>,
    pub(crate) client: grants::Client,
}

impl Grants {
    /// Makes one.
    pub fn create(&self, options: &GrantOptions) -> Grant {
        let mut request = self.client.create_request();
        set_options(request.get().init_options(), options);
        Grant { link: self.link.clone(), client: request.send().pipeline.get_grant() }
    }

    /// One that is there.
    pub fn get(&self, id: &str) -> Grant {
        let mut request = self.client.get_request();
        request.get().set_id(id);
        Grant { link: self.link.clone(), client: request.send().pipeline.get_grant() }
    }

    /// All, each before those that come from it.
    pub fn list(&self) -> Cursor<GrantInfo> {
        Cursor::of(&self.link, self.client.list_request().send().pipeline.get_cursor(), info)
    }
}

/// A grant that comes from what you have.
#[derive(Clone)]
pub struct Grant {
    link: Rc<Link>,
    client: grant::Client,
}

impl Grant {
    /// What it is.
    pub fn info(&self) -> Reply<GrantInfo> {
        reply_by(&self.link, &self.client, self.client.info_request(), |answer| {
            info(answer.get_info().map_err(malformed)?)
        })
    }

    /// Takes it back, with all that come from it.
    pub fn revoke(&self) -> Reply<()> {
        done_by(&self.link, &self.client, self.client.revoke_request())
    }

    /// Makes a token of it; sealed, only that user can use it. It is told once.
    pub fn save(&self, sealed_to: Option<u32>) -> Reply<String> {
        let mut request = self.client.save_request();
        request.get().set_sealed(sealed_to.is_some());
        request.get().set_sealed_to(sealed_to.unwrap_or_default());
        reply_by(&self.link, &self.client, request, |answer| Ok(text(answer.get_token())?.to_owned()))
    }

    /// The namespace, as its holder has it.
    pub fn open(&self) -> Namespace {
        Namespace { link: self.link.clone(), client: self.client.open_request().send().pipeline.get_namespace() }
    }

    /// Every method that its holder can call, as `Container.logs`.
    pub fn explain(&self) -> Reply<Vec<String>> {
        reply_by(&self.link, &self.client, self.client.explain_request(), |answer| texts(answer.get_methods()))
    }

    /// Makes a socket in a directory of the daemon's host, which is the grant.
    pub fn export(&self, directory: &str) -> Reply<()> {
        let mut request = self.client.export_request();
        request.get().set_directory(directory);
        done_by(&self.link, &self.client, request)
    }

    /// Removes the socket.
    pub fn unexport(&self) -> Reply<()> {
        done_by(&self.link, &self.client, self.client.unexport_request())
    }
}
