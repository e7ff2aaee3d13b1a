//! `Image` (image.capnp).

use std::rc::Rc;

use cofferdam_images::State;
use cofferdam_metadata::records::{containers, images as records};
use cofferdam_transfer::{ExportOptions, Job, PushOptions, Reference, UnpackOptions, normalize};
use cofferdam_types::{Error, Labels, Name, Result};
use cofferdam_wire::{
    convert::{labels, set_descriptor, set_platform, set_texts, text, texts},
    error::malformed,
    image_capnp::{image, platform_state, push_options},
};

use super::{
    Place, archive, artifacts, ends,
    images::{Way, platform, set_info},
    jobs, rpc, within,
};

/// How many names of others an answer has.
const NAMES: usize = 256;

/// One image. It holds a name, not what the name stood for when it was handed out.
pub struct Image {
    pub place: Place,
    pub name: Name,
}

/// Who has to do with an image, beside itself.
#[derive(Default)]
struct Others {
    users: Vec<String>,
    count: u64,
    names: Vec<String>,
}

impl Image {
    /// Those that the grant reaches.
    async fn others(&self) -> Result<Others> {
        let view = self.place.services().metadata.read()?;
        let caveats = &self.place.held.reach.caveats;
        let (which, pictures) = (caveats.containers.clone(), caveats.ceiling.images.clone());
        let (namespace, name) = (self.place.namespace.clone(), self.name.clone());
        // As many records as there are containers: not on the thread that serves.
        let look = move || {
            let mut others = Others::default();
            containers::made_from(&view, &namespace, &name, &mut |container| {
                if which.has(&container.subject()) {
                    others.count += 1;
                    if others.users.len() < NAMES {
                        others.users.push(container.id.to_string());
                    }
                }
            })?;
            let own = records::get(&view, &namespace, &name)?.target.digest;
            let same = |other: &records::Image| {
                other.target.digest == own && other.name != name && pictures.has(&other.name, &[&own])
            };
            let same = records::list(&view, &namespace, None, usize::MAX)?.into_iter().filter(same);
            others.names = same.map(|other| other.name.to_string()).take(NAMES).collect();
            Ok(others)
        };
        self.place.services().pool.run(look).await
    }

    /// All that its name stands for, in an archive.
    fn all(&self) -> ExportOptions {
        ExportOptions { names: vec![self.name.clone()], platform: None }
    }

    fn push_options(&self, reader: push_options::Reader<'_>) -> Result<PushOptions> {
        let to = text(reader.get_reference())?;
        let to = if to.is_empty() { self.name.to_string() } else { normalize(to)? };
        let certificates = reader.get_ca_certificates().map_err(malformed)?;
        // Where it goes is bounded like where it comes from.
        within::may_pull(&self.place, &to, !reader.get_plain_http() && certificates.is_empty())?;
        let of = text(reader.get_platform())?;
        Ok(PushOptions {
            name: self.name.clone(),
            reference: Reference::parse(&to)?,
            endpoint: Way {
                plain_http: reader.get_plain_http(),
                certificates,
                user: text(reader.get_user())?,
                secret: text(reader.get_secret())?,
                client_certificate: reader.get_client_certificate().map_err(malformed)?,
                client_key: reader.get_client_key().map_err(malformed)?,
            }
            .endpoint(&self.place)?,
            platform: if of.is_empty() { None } else { Some(platform(of)?) },
            chunk: reader.get_chunk(),
            mount_from: texts(reader.get_mount_from())?,
            foreign: reader.get_foreign(),
        })
    }

    /// Begins to unpack it.
    async fn unpacking(&self, of: Result<&str>, driver: Result<&str>) -> Result<Job> {
        let (services, driver) = (self.place.services(), driver?);
        let driver = if driver.is_empty() { services.snapshots.drivers()[0] } else { driver }.to_owned();
        let options = UnpackOptions { name: self.name.clone(), platform: platform(of?)?, driver };
        services.transfer.unpack(self.place.authority(), &self.place.namespace, options).await
    }

    /// The drivers that have all its layers.
    fn unpacked(&self, state: &State) -> Result<Vec<&'static str>> {
        let services = self.place.services();
        let mut drivers = Vec::new();
        for driver in services.snapshots.drivers() {
            if state.top.is_some() && services.images.is_unpacked(&self.place.namespace, driver, state.top.as_ref())? {
                drivers.push(driver);
            }
        }
        Ok(drivers)
    }
}

fn set_state(mut builder: platform_state::Builder<'_>, state: &State, drivers: &[&str]) {
    set_platform(builder.reborrow().init_platform(), &state.platform);
    set_descriptor(builder.reborrow().init_manifest(), &state.manifest);
    builder.set_required(state.required.len() as u32);
    let mut missing = builder.reborrow().init_missing(state.missing.len() as u32);
    for (n, part) in state.missing.iter().enumerate() {
        set_descriptor(missing.reborrow().get(n as u32), part);
    }
    builder.set_size(state.size());
    set_texts(builder.init_drivers(drivers.len() as u32), drivers);
}

impl image::Server for Image {
    async fn info(self: Rc<Self>, _: image::InfoParams, mut results: image::InfoResults) -> capnp::Result<()> {
        let record = rpc(self.place.services().images.get(&self.place.namespace, &self.name))?;
        set_info(results.get().init_info(), &record);
        Ok(())
    }

    async fn detail(
        self: Rc<Self>,
        params: image::DetailParams,
        mut results: image::DetailResults,
    ) -> capnp::Result<()> {
        let platform = rpc(text(params.get()?.get_platform()).and_then(platform))?;
        let (services, namespace) = (self.place.services(), &self.place.namespace);
        let record = rpc(services.images.get(namespace, &self.name))?;
        let chosen = &self.place.held.reach.caveats.ceiling.images;
        let resolved = rpc(services.images.resolve_of(chosen, namespace, &self.name, &platform).await)?;
        let driver = services.snapshots.drivers()[0];
        let unpacked = rpc(services.images.is_unpacked(namespace, driver, resolved.top()))?;
        let mut detail = results.get().init_detail();
        set_info(detail.reborrow().init_info(), &record);
        set_descriptor(detail.reborrow().init_manifest(), &resolved.manifest);
        detail.set_config(&resolved.config_bytes);
        let mut layers = detail.reborrow().init_layers(resolved.layers.len() as u32);
        for (n, layer) in resolved.layers.iter().enumerate() {
            set_descriptor(layers.reborrow().get(n as u32), layer);
        }
        detail.set_chain_id(resolved.top().map(ToString::to_string).unwrap_or_default());
        detail.set_unpacked(unpacked);
        let parts = resolved.layers.iter().chain([&resolved.manifest, &resolved.config_descriptor]);
        detail.set_size(parts.map(|part| part.size).sum());
        set_platform(detail.init_platform(), &resolved.config.platform);
        Ok(())
    }

    async fn export_fd(
        self: Rc<Self>,
        params: image::ExportFdParams,
        mut results: image::ExportFdResults,
    ) -> capnp::Result<()> {
        let target = rpc(self.place.session.fds.take(params.get()?.get_target()))?;
        results.get().set_job(rpc(archive::into_fd(&self.place, self.all(), target).await)?);
        Ok(())
    }

    async fn export(
        self: Rc<Self>,
        params: image::ExportParams,
        mut results: image::ExportResults,
    ) -> capnp::Result<()> {
        let sink = params.get()?.get_sink()?;
        results.get().set_job(rpc(archive::into_sink(&self.place, self.all(), sink).await)?);
        Ok(())
    }

    async fn unpack(
        self: Rc<Self>,
        params: image::UnpackParams,
        mut results: image::UnpackResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let job = rpc(self.unpacking(text(params.get_platform()), text(params.get_driver())).await)?;
        ends::job(&self.place, &job);
        let arrived = rpc(job.wait().await)?;
        let chain = arrived.first().and_then(|image| image.chain.as_ref());
        results.get().set_chain_id(chain.map(ToString::to_string).unwrap_or_default());
        Ok(())
    }

    async fn start_unpack(
        self: Rc<Self>,
        params: image::StartUnpackParams,
        mut results: image::StartUnpackResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let job = rpc(self.unpacking(text(params.get_platform()), text(params.get_driver())).await)?;
        results.get().set_job(jobs::begun(&self.place, job));
        Ok(())
    }

    async fn update(
        self: Rc<Self>,
        params: image::UpdateParams,
        mut results: image::UpdateResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (labels, mut fields): (Labels, Vec<String>) =
            (rpc(labels(params.get_labels()))?, rpc(texts(params.get_fields()))?);
        if fields.is_empty() {
            fields.push("labels".into());
        }
        // What a name stands for changes by a pull, an import or a tag: those look at what they get.
        if fields.iter().any(|field| field == "target") {
            let why = "can't be changed: tag another image with this name, and replace it";
            return rpc(Err(Error::invalid("field", "target", why)));
        }
        let (services, namespace) = (self.place.services(), &self.place.namespace);
        let old = rpc(services.images.get(namespace, &self.name))?;
        let given = records::Image { labels, ..old };
        let changed = rpc(services.images.update(self.place.authority(), namespace, given, fields).await)?;
        set_info(results.get().init_info(), &changed);
        Ok(())
    }

    async fn report(
        self: Rc<Self>,
        params: image::ReportParams,
        mut results: image::ReportResults,
    ) -> capnp::Result<()> {
        let (services, namespace) = (self.place.services(), &self.place.namespace);
        let record = rpc(services.images.get(namespace, &self.name))?;
        let chosen = &self.place.held.reach.caveats.ceiling.images;
        let own = rpc(services.images.own(chosen, namespace, &self.name, &record.target))?;
        let states = services.images.states(namespace, &record.target, own).await;
        let others = if params.get()?.get_others() { rpc(self.others().await)? } else { Others::default() };
        let mut report = results.get().init_report();
        set_info(report.reborrow().init_info(), &record);
        match &states {
            Ok(states) => {
                let mut list = report.reborrow().init_platforms(states.len() as u32);
                for (n, state) in states.iter().enumerate() {
                    set_state(list.reborrow().get(n as u32), state, &rpc(self.unpacked(state))?);
                }
            }
            Err(error) => report.set_damage(error.to_string()),
        }
        report.set_user_count(others.count);
        set_texts(report.reborrow().init_users(others.users.len() as u32), &others.users);
        set_texts(report.init_names(others.names.len() as u32), &others.names);
        Ok(())
    }

    async fn push(self: Rc<Self>, params: image::PushParams, mut results: image::PushResults) -> capnp::Result<()> {
        let options = rpc(self.push_options(params.get()?.get_options()?))?;
        let job =
            rpc(self.place.services().transfer.push(self.place.authority(), &self.place.namespace, options).await)?;
        results.get().set_job(jobs::begun(&self.place, job));
        Ok(())
    }

    async fn convert(
        self: Rc<Self>,
        params: image::ConvertParams,
        mut results: image::ConvertResults,
    ) -> capnp::Result<()> {
        let options = rpc(artifacts::convert_options(&self.name, params.get()?.get_options()?))?;
        let transfer = &self.place.services().transfer;
        let job = rpc(transfer.convert(self.place.authority(), &self.place.namespace, options).await)?;
        results.get().set_job(jobs::begun(&self.place, job));
        Ok(())
    }
}
