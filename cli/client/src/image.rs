//! Images.

use std::{fmt, os::fd::OwnedFd, rc::Rc, time::Duration};

use cofferdam_types::{Descriptor, Labels, Platform, Result, Timestamp};
use cofferdam_wire::{
    convert::{descriptor, labels, platform, set_labels, set_texts, text, texts},
    error::{malformed, to_rpc},
    image_capnp::{
        self as wire, chooser, image, image_detail, image_info, image_report, images, import_options, platform_state,
        pruned_image, pull_options, push_options,
    },
};
use serde::Serialize;

use crate::{
    call::{Reply, done_by, reply_by},
    connect::Link,
    cursor::Cursor,
    job::Job,
    stdio::Sink,
};

/// A name for a manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageInfo {
    /// The name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// What it stands for.
    pub target: Descriptor,
    /// When it was made.
    #[serde(serialize_with = "crate::json::time")]
    pub created: Timestamp,
    /// When it was last changed.
    #[serde(serialize_with = "crate::json::time")]
    pub updated: Timestamp,
}

/// An image, resolved for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageDetail {
    /// The name, and what it stands for.
    pub info: ImageInfo,
    /// The manifest.
    pub manifest: Descriptor,
    /// The image config, JSON of the OCI image-spec.
    #[serde(serialize_with = "crate::json::bytes")]
    pub config: Vec<u8>,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Of all layers: the snapshot that containers start from.
    pub chain_id: String,
    /// Whether that is there in the default driver.
    pub unpacked: bool,
    /// Of manifest, config and layers as stored.
    pub size: u64,
    /// The platform.
    pub platform: Platform,
}

fn info(reader: image_info::Reader<'_>) -> Result<ImageInfo> {
    Ok(ImageInfo {
        name: text(reader.get_name())?.to_owned(),
        labels: labels(reader.get_labels())?,
        target: descriptor(reader.get_target().map_err(malformed)?)?,
        created: Timestamp(reader.get_created()),
        updated: Timestamp(reader.get_updated()),
    })
}

fn detail(reader: image_detail::Reader<'_>) -> Result<ImageDetail> {
    Ok(ImageDetail {
        info: info(reader.get_info().map_err(malformed)?)?,
        manifest: descriptor(reader.get_manifest().map_err(malformed)?)?,
        config: reader.get_config().map_err(malformed)?.to_vec(),
        layers: reader.get_layers().map_err(malformed)?.iter().map(descriptor).collect::<Result<_>>()?,
        chain_id: text(reader.get_chain_id())?.to_owned(),
        unpacked: reader.get_unpacked(),
        size: reader.get_size(),
        platform: platform(reader.get_platform().map_err(malformed)?)?,
    })
}

/// What is here of an image for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlatformState {
    /// What it is for.
    pub platform: Platform,
    /// Its manifest, whether that is here or not.
    pub manifest: Descriptor,
    /// How many blobs it needs.
    pub required: u32,
    /// Those of them that aren't here.
    pub missing: Vec<Descriptor>,
    /// Of all that it needs.
    pub size: u64,
    /// The snapshot drivers into which it is unpacked.
    pub drivers: Vec<String>,
}

/// What is here of an image, and who uses it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageReport {
    /// The name, and what it stands for.
    pub info: ImageInfo,
    /// In the order of the index.
    pub platforms: Vec<PlatformState>,
    /// Containers that were made from it, the first 256.
    pub users: Vec<String>,
    /// How many there are.
    pub user_count: u64,
    /// Other images that stand for the same, the first 256.
    pub names: Vec<String>,
    /// Why the platforms can't be told; empty where they can.
    pub damage: String,
}

/// An image that [`Images::prune`] looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PrunedImage {
    /// The name, and what it stood for.
    pub info: ImageInfo,
    /// Whether it is gone, or would be.
    pub removed: bool,
    /// Why it goes or stays, in a sentence.
    pub why: String,
}

/// What [`Images::prune`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PruneReport {
    /// Images that are gone, or would be.
    pub removed: u64,
    /// Images that stay.
    pub kept: u64,
    /// Blobs that nothing keeps any more then.
    pub blobs: u64,
    /// Likewise.
    pub snapshots: u64,
    /// What these take up.
    pub bytes: u64,
}

fn state(reader: platform_state::Reader<'_>) -> Result<PlatformState> {
    Ok(PlatformState {
        platform: platform(reader.get_platform().map_err(malformed)?)?,
        manifest: descriptor(reader.get_manifest().map_err(malformed)?)?,
        required: reader.get_required(),
        missing: reader.get_missing().map_err(malformed)?.iter().map(descriptor).collect::<Result<_>>()?,
        size: reader.get_size(),
        drivers: texts(reader.get_drivers())?,
    })
}

fn report(reader: image_report::Reader<'_>) -> Result<ImageReport> {
    Ok(ImageReport {
        info: info(reader.get_info().map_err(malformed)?)?,
        platforms: reader.get_platforms().map_err(malformed)?.iter().map(state).collect::<Result<_>>()?,
        users: texts(reader.get_users())?,
        user_count: reader.get_user_count(),
        names: texts(reader.get_names())?,
        damage: text(reader.get_damage())?.to_owned(),
    })
}

fn pruned(reader: pruned_image::Reader<'_>) -> Result<PrunedImage> {
    Ok(PrunedImage {
        info: info(reader.get_info().map_err(malformed)?)?,
        removed: reader.get_removed(),
        why: text(reader.get_why())?.to_owned(),
    })
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Not at all.
    Never,
    /// If it is not there.
    #[default]
    Missing,
    /// Every time.
    Always,
}

/// A password or token. Its debug form doesn't show it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "Secret(none)" } else { "Secret(***)" })
    }
}

/// How an image is pulled. What is left empty is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullOptions {
    /// host[:port]/path[:tag][@digest]; the name of the image afterwards.
    pub reference: String,
    /// os/arch[/variant].
    pub platform: String,
    /// Only http.
    pub plain_http: bool,
    /// For basic authentication.
    pub user: String,
    /// Likewise.
    pub secret: Secret,
    /// Where to unpack.
    pub driver: String,
    /// Don't unpack.
    pub fetch_only: bool,
    /// PEM; trusted besides the host's own.
    pub ca_certificates: Vec<u8>,
    /// Fetched for these too.
    pub platforms: Vec<String>,
    /// Fetched for all that there are.
    pub all_platforms: bool,
    /// Bytes in a second at most; 0: no limit but the daemon's own.
    pub rate: u64,
    /// The largest window of a zstd layer, in bytes; 0: 32 MiB.
    pub zstd_window: u64,
    /// Manifests of docker's first schema are taken too.
    pub schema1: bool,
    /// PEM; what the registry is shown, with its key.
    pub client_certificate: Vec<u8>,
    /// Likewise.
    pub client_key: Secret,
}

/// What becomes of a part of an image that is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is fetched.
    Take,
    /// Neither it nor what it leads to.
    Skip,
    /// Nor anything after it.
    Stop,
}

struct Choosing<F>(F);

impl<F: AsyncFn(Descriptor, u16) -> Result<Verdict> + 'static> chooser::Server for Choosing<F> {
    async fn look(self: Rc<Self>, params: chooser::LookParams, mut results: chooser::LookResults) -> capnp::Result<()> {
        let params = params.get()?;
        let asked = descriptor(params.get_descriptor()?).map_err(to_rpc)?;
        let verdict = (self.0)(asked, params.get_depth()).await.map_err(to_rpc)?;
        results.get().set_verdict(match verdict {
            Verdict::Take => wire::Verdict::Take,
            Verdict::Skip => wire::Verdict::Skip,
            Verdict::Stop => wire::Verdict::Stop,
        });
        Ok(())
    }
}

impl PullOptions {
    pub(crate) fn fill(&self, mut builder: pull_options::Builder<'_>) {
        builder.set_reference(&self.reference);
        builder.set_platform(&self.platform);
        builder.set_plain_http(self.plain_http);
        builder.set_user(&self.user);
        builder.set_secret(&self.secret.0);
        builder.set_driver(&self.driver);
        builder.set_fetch_only(self.fetch_only);
        builder.set_schema1(self.schema1);
        builder.set_ca_certificates(&self.ca_certificates);
        builder.set_all_platforms(self.all_platforms);
        builder.set_rate(self.rate);
        builder.set_zstd_window(self.zstd_window);
        set_texts(builder.reborrow().init_platforms(self.platforms.len() as u32), &self.platforms);
        builder.set_client_certificate(&self.client_certificate);
        builder.set_client_key(self.client_key.0.as_bytes());
    }
}

/// How an image is pushed. What is left empty is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushOptions {
    /// host[:port]/path[:tag]; the image's own name otherwise.
    pub reference: String,
    /// os/arch[/variant]: the image for this alone.
    pub platform: String,
    /// Only http.
    pub plain_http: bool,
    /// For basic authentication, or to get a token.
    pub user: String,
    /// Likewise.
    pub secret: Secret,
    /// PEM; trusted besides the host's own.
    pub ca_certificates: Vec<u8>,
    /// Bytes of a blob in one request; 0: all.
    pub chunk: u64,
    /// Repositories of the same registry that may have its blobs.
    pub mount_from: Vec<String>,
    /// Layers too that aren't meant to be distributed.
    pub foreign: bool,
    /// PEM; what the registry is shown, with its key.
    pub client_certificate: Vec<u8>,
    /// Likewise.
    pub client_key: Secret,
}

impl PushOptions {
    fn fill(&self, mut builder: push_options::Builder<'_>) {
        builder.set_reference(&self.reference);
        builder.set_platform(&self.platform);
        builder.set_plain_http(self.plain_http);
        builder.set_user(&self.user);
        builder.set_secret(&self.secret.0);
        builder.set_ca_certificates(&self.ca_certificates);
        builder.set_chunk(self.chunk);
        builder.set_foreign(self.foreign);
        builder.set_client_certificate(&self.client_certificate);
        builder.set_client_key(self.client_key.0.as_bytes());
        set_texts(builder.init_mount_from(self.mount_from.len() as u32), &self.mount_from);
    }
}

/// What is imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImportFormat {
    /// An OCI layout or a docker archive, packed or not.
    #[default]
    Detect,
    /// A root file system: it becomes an image of one layer.
    Rootfs,
}

/// How an image is imported. What is left empty is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Of the image, where the archive names none; for a root file system it must be given.
    pub name: String,
    /// What it is.
    pub format: ImportFormat,
    /// os/arch[/variant].
    pub platform: String,
    /// Where to unpack.
    pub driver: String,
    /// Don't unpack.
    pub no_unpack: bool,
    /// For a root file system: the command of the image.
    pub command: Vec<String>,
    /// For a root file system: lines of a Dockerfile, such as `ENV A=b`.
    pub changes: Vec<String>,
    /// When the image says that it was made; now otherwise.
    pub created: Timestamp,
    /// Who made it.
    pub author: String,
    /// What for.
    pub comment: String,
}

impl ImportOptions {
    fn fill(&self, mut builder: import_options::Builder<'_>) {
        builder.set_name(&self.name);
        builder.set_format(match self.format {
            ImportFormat::Detect => import_options::Format::Detect,
            ImportFormat::Rootfs => import_options::Format::Rootfs,
        });
        builder.set_platform(&self.platform);
        builder.set_driver(&self.driver);
        builder.set_no_unpack(self.no_unpack);
        builder.set_created(self.created.0);
        builder.set_author(&self.author);
        builder.set_comment(&self.comment);
        set_texts(builder.reborrow().init_changes(self.changes.len() as u32), &self.changes);
        set_texts(builder.init_command(self.command.len() as u32), &self.command);
    }
}

/// The images of a namespace.
#[derive(Clone)]
pub struct Images {
    pub(crate) link: Rc<Link>,
    pub(crate) client: images::Client,
}

impl Images {
    /// One that is there.
    pub fn get(&self, name: &str) -> Image {
        let mut request = self.client.get_request();
        request.get().set_name(name);
        Image { link: self.link.clone(), client: request.send().pipeline.get_image() }
    }

    /// One that is pulled first if the policy says so.
    pub fn obtain(&self, options: &PullOptions, policy: PullPolicy) -> Image {
        let mut request = self.client.obtain_request();
        options.fill(request.get().init_options());
        request.get().set_policy(match policy {
            PullPolicy::Never => wire::PullPolicy::Never,
            PullPolicy::Missing => wire::PullPolicy::Missing,
            PullPolicy::Always => wire::PullPolicy::Always,
        });
        Image { link: self.link.clone(), client: request.send().pipeline.get_image() }
    }

    /// Pulls one.
    pub fn pull(&self, options: &PullOptions) -> Job {
        let mut request = self.client.pull_request();
        options.fill(request.get().init_options());
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }

    /// Pulls what `choose` takes. It is asked about everything that the image consists of, from the top, with the number of
    /// documents that it lies behind; what it doesn't answer within 10 s ends the pull. What is incomplete isn't unpacked.
    pub fn fetch<F>(&self, options: &PullOptions, choose: F) -> Job
    where
        F: AsyncFn(Descriptor, u16) -> Result<Verdict> + 'static,
    {
        let mut request = self.client.fetch_request();
        options.fill(request.get().init_options());
        request.get().set_chooser(capnp_rpc::new_client(Choosing(choose)));
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }

    /// Imports from a directory, a file or a pipe of yours.
    pub fn import_fd(&self, options: &ImportOptions, source: OwnedFd) -> Job {
        let mut request = self.client.import_fd_request();
        options.fill(request.get().init_options());
        request.get().set_source(self.link.fds.push(source));
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }

    /// Imports what you write into the sink.
    pub fn import(&self, options: &ImportOptions) -> (Job, Sink) {
        let mut request = self.client.import_request();
        options.fill(request.get().init_options());
        let pipeline = request.send().pipeline;
        (Job { link: self.link.clone(), client: pipeline.get_job() }, Sink::new(&self.link, pipeline.get_sink()))
    }

    /// All that pass one of the filters.
    pub fn list<S: AsRef<str>>(&self, filters: &[S]) -> Cursor<ImageInfo> {
        let mut request = self.client.list_request();
        set_texts(request.get().init_filters(filters.len() as u32), filters);
        Cursor::over_records(&self.link, request.send().pipeline.get_cursor(), info)
    }

    /// Gives what `source` stands for another name; one that stands for something else only with `replace`.
    pub fn tag(&self, source: &str, name: &str, replace: bool) -> Image {
        let mut request = self.client.tag_request();
        request.get().set_source(source);
        request.get().set_name(name);
        request.get().set_replace(replace);
        Image { link: self.link.clone(), client: request.send().pipeline.get_image() }
    }

    /// Writes several into one archive: a file or a pipe of yours. With a platform the images for that alone.
    pub fn export_fd<S: AsRef<str>>(&self, names: &[S], platform: &str, target: OwnedFd) -> Job {
        let mut request = self.client.export_fd_request();
        let mut options = request.get().init_options();
        set_texts(options.reborrow().init_names(names.len() as u32), names);
        options.set_platform(platform);
        request.get().set_target(self.link.fds.push(target));
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }

    /// The same into a sink of yours, see [`crate::channel`].
    pub fn export<S: AsRef<str>>(&self, names: &[S], platform: &str, sink: Sink) -> Job {
        let mut request = self.client.export_request();
        let mut options = request.get().init_options();
        set_texts(options.reborrow().init_names(names.len() as u32), names);
        options.set_platform(platform);
        request.get().set_sink(sink.client);
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }

    /// Removes images that no container was made from: those that pass one of the filters and were last changed so long ago. With
    /// `rehearse` nothing is removed.
    pub async fn prune<S: AsRef<str>>(
        &self,
        filters: &[S],
        unchanged: Duration,
        rehearse: bool,
    ) -> Result<(PruneReport, Cursor<PrunedImage>)> {
        let mut request = self.client.prune_request();
        let mut options = request.get().init_options();
        set_texts(options.reborrow().init_filters(filters.len() as u32), filters);
        options.set_unchanged(u64::try_from(unchanged.as_nanos()).unwrap_or(u64::MAX));
        options.set_rehearse(rehearse);
        let (report, cursor) = reply_by(&self.link, &self.client, request, |answer| {
            let report = answer.get_report().map_err(malformed)?;
            let report = PruneReport {
                removed: report.get_removed(),
                kept: report.get_kept(),
                blobs: report.get_blobs(),
                snapshots: report.get_snapshots(),
                bytes: report.get_bytes(),
            };
            Ok((report, answer.get_cursor().map_err(malformed)?))
        })
        .await?;
        Ok((report, Cursor::over_records(&self.link, cursor, pruned)))
    }

    /// Removes a name. Containers made from it go on.
    pub fn remove(&self, name: &str) -> Reply<()> {
        let mut request = self.client.remove_request();
        request.get().set_name(name);
        done_by(&self.link, &self.client, request)
    }
}

/// An image.
#[derive(Clone)]
pub struct Image {
    pub(crate) link: Rc<Link>,
    pub(crate) client: image::Client,
}

impl Image {
    /// What its name stands for.
    pub fn info(&self) -> Reply<ImageInfo> {
        reply_by(&self.link, &self.client, self.client.info_request(), |answer| {
            info(answer.get_info().map_err(malformed)?)
        })
    }

    /// What it is for one platform; empty is the host's.
    pub fn detail(&self, platform: &str) -> Reply<ImageDetail> {
        let mut request = self.client.detail_request();
        request.get().set_platform(platform);
        reply_by(&self.link, &self.client, request, |answer| detail(answer.get_detail().map_err(malformed)?))
    }

    /// Changes the labels that `fields` names ("labels", or "labels.KEY").
    pub fn update(&self, labels: &Labels, fields: &[String]) -> Reply<ImageInfo> {
        let mut request = self.client.update_request();
        set_labels(request.get().init_labels(labels.len() as u32), labels);
        set_texts(request.get().init_fields(fields.len() as u32), fields);
        reply_by(&self.link, &self.client, request, |answer| info(answer.get_info().map_err(malformed)?))
    }

    /// Sends it to a registry.
    pub fn push(&self, options: &PushOptions) -> Job {
        let mut request = self.client.push_request();
        options.fill(request.get().init_options());
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }

    /// What is here of it, for each platform; with `others` who uses it, and what else stands for the same.
    pub fn report(&self, others: bool) -> Reply<ImageReport> {
        let mut request = self.client.report_request();
        request.get().set_others(others);
        reply_by(&self.link, &self.client, request, |answer| report(answer.get_report().map_err(malformed)?))
    }

    /// Unpacks it, and gives the snapshot that containers start from.
    pub fn unpack(&self, platform: &str, driver: &str) -> Reply<String> {
        let mut request = self.client.unpack_request();
        request.get().set_platform(platform);
        request.get().set_driver(driver);
        reply_by(&self.link, &self.client, request, |answer| Ok(text(answer.get_chain_id())?.to_owned()))
    }

    /// The same as a job, which can be watched.
    pub fn start_unpack(&self, platform: &str, driver: &str) -> Job {
        let mut request = self.client.start_unpack_request();
        request.get().set_platform(platform);
        request.get().set_driver(driver);
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }

    /// Writes it as an OCI layout in a tar archive into a file or a pipe of yours.
    pub fn export_fd(&self, target: OwnedFd) -> Job {
        let mut request = self.client.export_fd_request();
        request.get().set_target(self.link.fds.push(target));
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }

    /// The same into a sink of yours, see [`crate::channel`].
    pub fn export(&self, sink: Sink) -> Job {
        let mut request = self.client.export_request();
        request.get().set_sink(sink.client);
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }
}
