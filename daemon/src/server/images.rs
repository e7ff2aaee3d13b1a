//! `Images` (image.capnp).

use std::{os::fd::OwnedFd, path::PathBuf, rc::Rc, time::Duration};

use cofferdam_images::{Prune, Pruned, Why};
use cofferdam_metadata::records::{containers, images::Image as Record};
use cofferdam_transfer::{
    Chooser, Credentials, Endpoint, Explained, ExportOptions, Identity, ImportOptions, Job as Handle, PullOptions,
    Reference, RootfsOptions, Source, Wallet, normalize,
};
use cofferdam_types::{
    Code, Error, Name, Platform, Result, Right,
    filter::{self, Filter},
};
use cofferdam_wire::{
    convert::{set_descriptor, set_labels, set_texts, text, texts},
    error::{from_rpc, malformed},
    image_capnp::{
        PullPolicy, export_options, image, image_cursor, image_info, images, import_options, pruned_image_cursor,
        pull_options, route_report,
    },
};

use super::{
    Place, archive,
    artifacts::{self, DescriptorCursor},
    bytes::{End, PipeSink, pipe},
    chooser,
    collector::placed,
    cursor::Cursor,
    ends, filters, foreign,
    image::Image,
    jobs,
    meter::Listed,
    rpc, trail, within,
};

/// What filters may name.
const FIELDS: [&str; 4] = ["name", "target.digest", "target.mediatype", "labels.KEY"];

/// Images in one archive.
const MAX_NAMES: usize = 256;
/// Platforms of one pull.
const MAX_PLATFORMS: usize = 64;

/// The images of a namespace.
pub struct Images(pub Place);

impl Images {
    /// The image that a client means: by its name as given, or written out in full.
    pub fn find(&self, text: &str) -> Result<Option<Name>> {
        for name in [Ok(text.to_owned()), normalize(text)].into_iter().flatten() {
            match self.0.services().images.get(&self.0.namespace, &name) {
                Ok(image) if !within::has_image(&self.0, &image) => {}
                Ok(_) => return Name::new(name).map(Some),
                Err(error) if error.code == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // That no image can have such a name says more than that none has it.
        normalize(text).map(|_| None)
    }

    /// The image that a client means: `not_found` if it isn't here.
    fn here(&self, text: &str) -> Result<Name> {
        let not_here = || Error::not_found("image", text, "is not here; `coffer image ls` lists those that are");
        self.find(text)?.ok_or_else(not_here)
    }

    fn export_options(&self, reader: export_options::Reader<'_>) -> Result<ExportOptions> {
        let names = texts(reader.get_names())?;
        if names.is_empty() || names.len() > MAX_NAMES {
            let why = format!("are {}: name 1 to {MAX_NAMES} images", names.len());
            return Err(Error::invalid("names", "", why));
        }
        let names = names.iter().map(|name| self.here(name)).collect::<Result<_>>()?;
        let of = text(reader.get_platform())?;
        Ok(ExportOptions { names, platform: if of.is_empty() { None } else { Some(platform(of)?) } })
    }

    fn hand_out(&self, name: Name) -> image::Client {
        let place = within::image(&self.0, &name);
        let held = place.held.clone();
        let object = Rc::new(Image { place, name: name.clone() });
        // So that it is known when it comes back, in `Containers.create`.
        self.0.session.remember_image(&object, self.0.namespace.clone(), name);
        self.0.session.hand_out_rc(object, &held)
    }
}

/// The name of an image that we handed out on this connection, if it lies in this namespace.
pub async fn recognise(place: &Place, client: image::Client) -> Result<Name> {
    let mut hook = client.client.hook.add_ref();
    if let Some(resolving) = hook.when_more_resolved() {
        // A failure further up the chain surfaces here, unchanged.
        hook = resolving.await.map_err(from_rpc)?;
    }
    while let Some(resolved) = hook.get_resolved() {
        hook = resolved;
    }
    let Some((namespace, name)) = place.session.recall_image(hook.get_ptr()) else {
        // What is broken says why when it is called; what answers is somebody else's.
        client.info_request().send().promise.await.map_err(from_rpc)?;
        return Err(Error::invalid(
            "image",
            "",
            "is not an image that this connection got: get it from this namespace",
        ));
    };
    if namespace != place.namespace {
        return Err(Error::invalid("image", &name, format!("lies in namespace {namespace}: get it from this one")));
    }
    Ok(name)
}

/// The platform that a client means.
pub fn platform(text: &str) -> Result<Platform> {
    if text.is_empty() { Ok(Platform::host()) } else { text.parse() }
}

/// The driver to unpack with.
fn driver(place: &Place, name: &str, unpack: bool) -> Option<String> {
    let usual = place.services().snapshots.drivers()[0];
    unpack.then(|| if name.is_empty() { usual } else { name }.to_owned())
}

/// What a client says of how a registry is spoken to.
pub struct Way<'a> {
    pub plain_http: bool,
    pub certificates: &'a [u8],
    pub user: &'a str,
    pub secret: &'a str,
    pub client_certificate: &'a [u8],
    pub client_key: &'a [u8],
}

impl Way<'_> {
    /// With what the operator and the namespace have for registries.
    pub fn endpoint(&self, place: &Place) -> Result<Endpoint> {
        let identity = match (self.client_certificate, self.client_key) {
            ([], []) => None,
            ([], _) | (_, []) => {
                let why = "is a certificate without its key, or a key alone: give both or neither";
                return Err(Error::invalid("client certificate", "", why));
            }
            (certificate, key) => Some(Identity { certificate: certificate.to_vec(), key: key.to_vec() }),
        };
        let (user, secret) = (self.user.to_owned(), self.secret.to_owned());
        Ok(Endpoint {
            plain_http: self.plain_http,
            ca: (!self.certificates.is_empty()).then(|| self.certificates.to_vec()),
            identity,
            credentials: (!user.is_empty() || !secret.is_empty()).then_some(Credentials { user, secret }),
            wallet: Wallet::of(&place.services().metadata, &place.namespace),
            routes: place.services().routes.clone(),
            ..Endpoint::default()
        })
    }
}

fn pull_options_of(place: &Place, reader: pull_options::Reader<'_>) -> Result<PullOptions> {
    let (user, secret) = (text(reader.get_user())?, text(reader.get_secret())?);
    let certificates = reader.get_ca_certificates().map_err(malformed)?;
    let name = normalize(text(reader.get_reference())?)?;
    trail::object("image", &name);
    within::may_pull(place, &name, !reader.get_plain_http() && certificates.is_empty())?;
    Ok(PullOptions {
        reference: Reference::parse(&name)?,
        platform: platform(text(reader.get_platform())?)?,
        platforms: platforms(texts(reader.get_platforms())?)?,
        all_platforms: reader.get_all_platforms(),
        endpoint: Way {
            plain_http: reader.get_plain_http(),
            certificates,
            user,
            secret,
            client_certificate: reader.get_client_certificate().map_err(malformed)?,
            client_key: reader.get_client_key().map_err(malformed)?,
        }
        .endpoint(place)?,
        driver: driver(place, text(reader.get_driver())?, !reader.get_fetch_only()),
        rate: reader.get_rate(),
        zstd_window: reader.get_zstd_window(),
        chooser: None,
        schema1: reader.get_schema1(),
    })
}

/// Those that a client wants beside the one that it means.
fn platforms(texts: Vec<String>) -> Result<Vec<Platform>> {
    if texts.len() > MAX_PLATFORMS {
        let why = format!("are {}: name {MAX_PLATFORMS} at most, or ask for all", texts.len());
        return Err(Error::invalid("platforms", "", why));
    }
    texts.iter().map(|text| text.parse()).collect()
}

/// Begins an import, as the options say.
async fn begin_import(place: &Place, reader: import_options::Reader<'_>, fd: OwnedFd) -> Result<Handle> {
    let name = text(reader.get_name())?;
    if !name.is_empty() {
        trail::object("image", name);
    }
    let platform = platform(text(reader.get_platform())?)?;
    let driver = driver(place, text(reader.get_driver())?, !reader.get_no_unpack());
    let stat = nix::sys::stat::fstat(&fd).map_err(|e| Error::io("fd", "", "can't be examined", &e.into()))?;
    let directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL);
    let flags = flags.map_err(|e| Error::io("fd", "", "can't be examined", &e.into()))?;
    if flags & libc::O_ACCMODE == libc::O_WRONLY || flags & libc::O_PATH != 0 {
        return Err(Error::invalid("archive", "", "its descriptor is not open for reading"));
    }
    if directory && !place.held.reach.caveats.rights.has(Right::Host) {
        // What lies below it is opened by the daemon, who may read what the client may not.
        let why =
            "is a directory, which the daemon would read by its own rights: that needs the host right; send an archive";
        return Err(Error::denied("archive", "", why));
    }
    let source = if directory { Source::Directory(fd) } else { Source::Archive(fd) };
    let (transfer, authority) = (&place.services().transfer, place.authority());
    match reader.get_format().map_err(|e| malformed(e.into()))? {
        import_options::Format::Detect => {
            let name = (!name.is_empty()).then(|| name.to_owned());
            let options = ImportOptions { name, platform, driver };
            transfer.import(authority, &place.namespace, source, options).await
        }
        import_options::Format::Rootfs => {
            let config = artifacts::rootfs_config(reader)?;
            let options = RootfsOptions { name: Name::new(normalize(name)?)?, platform, config, driver };
            transfer.rootfs(authority, &place.namespace, source, options).await
        }
    }
}

pub fn set_info(mut builder: image_info::Builder<'_>, record: &Record) {
    builder.set_name(&*record.name);
    set_labels(builder.reborrow().init_labels(record.labels.len() as u32), &record.labels);
    set_descriptor(builder.reborrow().init_target(), &record.target);
    builder.set_created(record.created.0);
    builder.set_updated(record.updated.0);
}

impl images::Server for Images {
    async fn get(self: Rc<Self>, params: images::GetParams, mut results: images::GetResults) -> capnp::Result<()> {
        let name = rpc(text(params.get()?.get_name()))?;
        let not_here = || {
            Error::not_found("image", name, "is not here: pull or import it; `coffer image ls` lists those that are")
        };
        let found = rpc(self.find(name).and_then(|found| found.ok_or_else(not_here)))?;
        results.get().set_image(self.hand_out(found));
        Ok(())
    }

    async fn obtain(
        self: Rc<Self>,
        params: images::ObtainParams,
        mut results: images::ObtainResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let reader = params.get_options()?;
        let reference = rpc(text(reader.get_reference()))?;
        trail::object("image", reference);
        let here = rpc(self.find(reference))?;
        let name = match (params.get_policy()?, here) {
            (PullPolicy::Never | PullPolicy::Missing, Some(here)) => here,
            (PullPolicy::Never, None) => {
                let why = "is not here, and may not be pulled: pull or import it";
                return rpc(Err(Error::not_found("image", reference, why)));
            }
            (PullPolicy::Missing | PullPolicy::Always, _) if !self.0.held.reach.allows("Images.pull") => {
                let why =
                    "would have to be pulled, and this grant is not for that: ask for the facet pull, or for the image";
                return rpc(Err(Error::denied("image", reference, why)));
            }
            (PullPolicy::Missing | PullPolicy::Always, _) => {
                let options = rpc(pull_options_of(&self.0, reader))?;
                let transfer = &self.0.services().transfer;
                let job = rpc(transfer.pull(self.0.authority(), &self.0.namespace, options).await)?;
                ends::job(&self.0, &job);
                let arrived = rpc(job.wait().await)?;
                let nothing = || Error::internal("image", reference, "was pulled, but has no name");
                rpc(arrived.first().map(|image| image.name.clone()).ok_or_else(nothing))?
            }
        };
        results.get().set_image(self.hand_out(name));
        Ok(())
    }

    async fn pull(self: Rc<Self>, params: images::PullParams, mut results: images::PullResults) -> capnp::Result<()> {
        let options = rpc(pull_options_of(&self.0, params.get()?.get_options()?))?;
        let transfer = &self.0.services().transfer;
        let job = rpc(transfer.pull(self.0.authority(), &self.0.namespace, options).await)?;
        results.get().set_job(jobs::begun(&self.0, job));
        Ok(())
    }

    async fn fetch(
        self: Rc<Self>,
        params: images::FetchParams,
        mut results: images::FetchResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (chooser, questions) = Chooser::new();
        let options = rpc(pull_options_of(&self.0, params.get_options()?))?;
        let options = PullOptions { chooser: Some(chooser), ..options };
        let theirs = params.get_chooser()?;
        let transfer = &self.0.services().transfer;
        let job = rpc(transfer.pull(self.0.authority(), &self.0.namespace, options).await)?;
        tokio::task::spawn_local(chooser::ask(questions, theirs));
        results.get().set_job(jobs::begun(&self.0, job));
        Ok(())
    }

    async fn import_fd(
        self: Rc<Self>,
        params: images::ImportFdParams,
        mut results: images::ImportFdResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let source = rpc(self.0.session.fds.take(params.get_source()))?;
        let source = rpc(foreign::archive(source, &self.0.session.files).await)?;
        let job = rpc(begin_import(&self.0, params.get_options()?, source).await)?;
        results.get().set_job(jobs::begun(&self.0, job));
        Ok(())
    }

    async fn import(
        self: Rc<Self>,
        params: images::ImportParams,
        mut results: images::ImportResults,
    ) -> capnp::Result<()> {
        let (read, write) = rpc(pipe(End::Write))?;
        let job = rpc(begin_import(&self.0, params.get()?.get_options()?, read).await)?;
        results.get().set_job(jobs::begun(&self.0, job));
        results.get().set_sink(self.0.hand_out(rpc(PipeSink::new(write, None))?));
        Ok(())
    }

    async fn list(self: Rc<Self>, params: images::ListParams, mut results: images::ListResults) -> capnp::Result<()> {
        let filters = rpc(filters(params.get()?.get_filters(), &FIELDS))?;
        let (handle, namespace) = (self.0.services().images.clone(), self.0.namespace.clone());
        let place = self.0.clone();
        let cursor = Cursor::new(
            Box::new(move |after, max| handle.list(&namespace, after, max)),
            |record: &Record| record.name.to_string(),
            move |record| within::has_image(&place, record) && selected(&filters, record),
        );
        results.get().set_cursor(self.0.hand_out(ImageCursor(cursor)));
        Ok(())
    }

    async fn remove(self: Rc<Self>, params: images::RemoveParams, _: images::RemoveResults) -> capnp::Result<()> {
        let given = rpc(text(params.get()?.get_name()))?;
        trail::object("image", given);
        let name = rpc(self.here(given))?;
        rpc(self.0.services().images.remove(self.0.authority(), &self.0.namespace, &name).await)
    }

    async fn tag(self: Rc<Self>, params: images::TagParams, mut results: images::TagResults) -> capnp::Result<()> {
        let params = params.get()?;
        let (source, replace) = (rpc(text(params.get_source()))?, params.get_replace());
        let name = rpc(text(params.get_name()).and_then(normalize))?;
        trail::object("image", &name);
        let source = rpc(self.here(source))?;
        let (services, namespace) = (self.0.services(), &self.0.namespace);
        let target = rpc(services.images.get(namespace, &source))?.target;
        if !self.0.held.reach.caveats.ceiling.images.has(&name, &[&target.digest]) {
            let why = "would not be among the images that this grant is for";
            return rpc(Err(Error::denied("image", &name, why)));
        }
        let name = rpc(Name::new(name))?;
        rpc(services.transfer.may_name(namespace, &name, &target.digest).await)?;
        rpc(services.images.tag(self.0.authority(), namespace, &source, &name, &target.digest, replace).await)?;
        results.get().set_image(self.hand_out(name));
        Ok(())
    }

    async fn export_fd(
        self: Rc<Self>,
        params: images::ExportFdParams,
        mut results: images::ExportFdResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let target = rpc(self.0.session.fds.take(params.get_target()))?;
        let options = rpc(self.export_options(params.get_options()?))?;
        results.get().set_job(rpc(archive::into_fd(&self.0, options, target).await)?);
        Ok(())
    }

    async fn export(
        self: Rc<Self>,
        params: images::ExportParams,
        mut results: images::ExportResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let options = rpc(self.export_options(params.get_options()?))?;
        results.get().set_job(rpc(archive::into_sink(&self.0, options, params.get_sink()?).await)?);
        Ok(())
    }

    async fn explain_route(
        self: Rc<Self>,
        params: images::ExplainRouteParams,
        mut results: images::ExplainRouteResults,
    ) -> capnp::Result<()> {
        let name = rpc(text(params.get()?.get_reference()).and_then(normalize))?;
        // Which ways there are is told for what may be pulled, and for nothing else.
        rpc(within::may_pull(&self.0, &name, true))?;
        let (reference, services) = (rpc(Reference::parse(&name))?, self.0.services());
        let (routes, wallet) = (services.routes.clone(), Wallet::of(&services.metadata, &self.0.namespace));
        let (trust, namespace, full) = (services.transfer.trust().clone(), self.0.namespace.clone(), name.clone());
        let explained = move || Ok((routes.explain(&reference, &wallet)?, trust.explain(&namespace, &full)));
        let ((steps, files), rule) = rpc(services.pool.run(explained).await)?;
        let mut report = results.get().init_report();
        report.set_trust(&rule);
        set_route(report, &name, &steps, &files);
        Ok(())
    }

    async fn prune(
        self: Rc<Self>,
        params: images::PruneParams,
        mut results: images::PruneResults,
    ) -> capnp::Result<()> {
        let options = params.get()?.get_options()?;
        let filters = rpc(filters(options.get_filters(), &FIELDS))?;
        let pictures = self.0.held.reach.caveats.ceiling.images.clone();
        let chosen =
            move |record: &Record| pictures.has(&record.name, &[&record.target.digest]) && selected(&filters, record);
        let options =
            Prune { unchanged: Duration::from_nanos(options.get_unchanged()), rehearse: options.get_rehearse() };
        let (services, namespace) = (self.0.services(), &self.0.namespace);
        let (looked, freed) = rpc(services.images.prune(self.0.authority(), namespace, options, chosen).await)?;
        let mut report = results.get().init_report();
        let removed = looked.iter().filter(|one| one.removed).count();
        report.set_removed(removed as u64);
        report.set_kept((looked.len() - removed) as u64);
        report.set_blobs(freed.blobs);
        report.set_snapshots(freed.snapshots);
        report.set_bytes(freed.bytes);
        let keeps = |one: &Pruned| size_of::<Pruned>() + one.image.name.len() + one.image.target.media_type.len();
        let Some(kept) = self.0.session.meter.keep_list(looked.iter().map(keeps).sum()) else {
            let why = "keeps more places in lists than is allowed, and is cut";
            return rpc(Err(Error::resource_exhausted("connection", "", why)));
        };
        let cursor = PrunedImageCursor { place: self.0.clone(), cursor: placed(looked), _kept: kept };
        results.get().set_cursor(self.0.hand_out(cursor));
        Ok(())
    }

    async fn create_artifact(
        self: Rc<Self>,
        params: images::CreateArtifactParams,
        mut results: images::CreateArtifactResults,
    ) -> capnp::Result<()> {
        let options = rpc(artifacts::artifact_options(params.get()?.get_options()?))?;
        let name = options.name.clone();
        let transfer = &self.0.services().transfer;
        rpc(transfer.artifact(self.0.authority(), &self.0.namespace, options).await)?;
        results.get().set_image(self.hand_out(name));
        Ok(())
    }

    async fn referrers(
        self: Rc<Self>,
        params: images::ReferrersParams,
        mut results: images::ReferrersResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let (reference, endpoint) = rpc(artifacts::subject(&self.0, params.get_options()?))?;
        let artifact_type = rpc(text(params.get_artifact_type()))?.to_owned();
        let found =
            rpc(self.0.services().transfer.referrers(self.0.authority(), reference, endpoint, artifact_type).await)?;
        results.get().set_cursor(self.0.hand_out(DescriptorCursor(placed(found))));
        Ok(())
    }
}

fn set_route(mut report: route_report::Builder<'_>, name: &str, steps: &[Explained], files: &[PathBuf]) {
    report.set_reference(name);
    let shown = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    set_texts(report.reborrow().init_files(files.len() as u32), &shown(files));
    let mut list = report.init_steps(steps.len() as u32);
    for (n, step) in steps.iter().enumerate() {
        let mut item = list.reborrow().get(n as u32);
        item.set_host(&step.host);
        let can = step.can.words();
        set_texts(item.reborrow().init_capabilities(can.len() as u32), &can);
        item.set_source(step.source.as_ref().map(|path| path.display().to_string()).unwrap_or_default());
        item.set_credential(step.credential);
        item.set_proxy(step.proxy.as_deref().unwrap_or_default());
        set_texts(item.reborrow().init_tls(step.tls.len() as u32), &shown(&step.tls));
        item.set_when(&step.when);
        item.set_unverified(step.unverified);
        item.set_own(step.own);
    }
}

struct PrunedImageCursor {
    place: Place,
    cursor: Cursor<(usize, Pruned)>,
    _kept: Listed,
}

impl PrunedImageCursor {
    fn why(&self, why: &Why) -> Result<String> {
        Ok(match why {
            Why::Unused => "no container was made from it".to_owned(),
            Why::Unknown => "a container can't be read, and may have been made from it".to_owned(),
            Why::Young => "was changed since".to_owned(),
            // Which one is not everybody's business.
            Why::Used(id) => {
                match containers::head(&self.place.services().metadata.read()?, &self.place.namespace, id)? {
                    Some(container) if self.place.held.reach.caveats.containers.has(&container.subject()) => {
                        format!("container {id} was made from it")
                    }
                    _ => "a container was made from it".to_owned(),
                }
            }
        })
    }

    /// With all that is on record of it, as long as it is there.
    fn whole(&self, pruned: &Pruned) -> Result<Record> {
        match self.place.services().images.get(&self.place.namespace, &pruned.image.name) {
            Ok(image) if image.target.digest == pruned.image.target.digest => Ok(image),
            Err(error) if error.code != Code::NotFound => Err(error),
            _ => Ok(pruned.image.clone()),
        }
    }
}

impl pruned_image_cursor::Server for PrunedImageCursor {
    async fn next(
        self: Rc<Self>,
        params: pruned_image_cursor::NextParams,
        mut results: pruned_image_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.cursor.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, (_, pruned)) in block.iter().enumerate() {
            let mut item = items.reborrow().get(n as u32);
            set_info(item.reborrow().init_info(), &rpc(self.whole(pruned))?);
            item.set_removed(pruned.removed);
            item.set_why(rpc(self.why(&pruned.why))?);
        }
        Ok(())
    }
}

fn selected(filters: &Filter, record: &Record) -> bool {
    filters.matches(&|path: &[&str]| match path {
        ["name"] => Some(record.name.as_str().into()),
        ["target", "digest"] => Some(record.target.digest.to_string().into()),
        ["target", "mediatype"] => Some(record.target.media_type.as_str().into()),
        ["labels", rest @ ..] => filter::label(&record.labels, rest),
        _ => None,
    })
}

struct ImageCursor(Cursor<Record>);

impl image_cursor::Server for ImageCursor {
    async fn next(
        self: Rc<Self>,
        params: image_cursor::NextParams,
        mut results: image_cursor::NextResults,
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
