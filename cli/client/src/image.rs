//! Images.

use std::{fmt, os::fd::OwnedFd, rc::Rc};

use cofferdam_types::{Descriptor, Labels, Platform, Result, Timestamp};
use cofferdam_wire::{
    convert::{descriptor, labels, platform, set_texts, text},
    error::malformed,
    image_capnp::{self as wire, image, image_detail, image_info, images, import_options, pull_options},
};
use serde::Serialize;

use crate::{
    call::{BLOCK, Cursor, Reply, done, reply},
    connect::Link,
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
}

impl PullOptions {
    fn fill(&self, mut builder: pull_options::Builder<'_>) {
        builder.set_reference(&self.reference);
        builder.set_platform(&self.platform);
        builder.set_plain_http(self.plain_http);
        builder.set_user(&self.user);
        builder.set_secret(&self.secret.0);
        builder.set_driver(&self.driver);
        builder.set_fetch_only(self.fetch_only);
        builder.set_ca_certificates(&self.ca_certificates);
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
        let (cursor, link) = (request.send().pipeline.get_cursor(), self.link.clone());
        Cursor::over_records(move || {
            let mut request = cursor.next_request();
            request.get().set_max(BLOCK);
            reply(&link, request, |answer| {
                let items = answer.get_items().map_err(malformed)?;
                Ok((items.iter().map(info).collect::<Result<_>>()?, answer.get_end()))
            })
        })
    }

    /// Removes a name. Containers made from it go on.
    pub fn remove(&self, name: &str) -> Reply<()> {
        let mut request = self.client.remove_request();
        request.get().set_name(name);
        done(&self.link, request)
    }
}

/// An image.
#[derive(Clone)]
pub struct Image {
    link: Rc<Link>,
    pub(crate) client: image::Client,
}

impl Image {
    /// What its name stands for.
    pub fn info(&self) -> Reply<ImageInfo> {
        reply(&self.link, self.client.info_request(), |answer| info(answer.get_info().map_err(malformed)?))
    }

    /// What it is for one platform; empty is the host's.
    pub fn detail(&self, platform: &str) -> Reply<ImageDetail> {
        let mut request = self.client.detail_request();
        request.get().set_platform(platform);
        reply(&self.link, request, |answer| detail(answer.get_detail().map_err(malformed)?))
    }

    /// Unpacks it, and gives the snapshot that containers start from.
    pub fn unpack(&self, platform: &str, driver: &str) -> Reply<String> {
        let mut request = self.client.unpack_request();
        request.get().set_platform(platform);
        request.get().set_driver(driver);
        reply(&self.link, request, |answer| Ok(text(answer.get_chain_id())?.to_owned()))
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
