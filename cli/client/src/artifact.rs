//! Artifacts, and images that are made of others.

use cofferdam_types::{Descriptor, Labels};
use cofferdam_wire::{
    convert::{descriptor, set_descriptor, set_labels},
    image_capnp::{artifact_options, convert_options},
};

use crate::{Image, Images, PullOptions, cursor::Cursor, job::Job};

/// A manifest of blobs that are in the content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArtifactOptions {
    /// host[:port]/path:tag.
    pub name: String,
    /// A media type; it may be empty where the config has one.
    pub artifact_type: String,
    /// The empty one otherwise.
    pub config: Option<Descriptor>,
    /// Its files.
    pub layers: Vec<Descriptor>,
    /// What it belongs to.
    pub subject: Option<Descriptor>,
    /// Of the manifest.
    pub annotations: Labels,
}

impl ArtifactOptions {
    fn fill(&self, mut builder: artifact_options::Builder<'_>) {
        builder.set_name(&self.name);
        builder.set_artifact_type(&self.artifact_type);
        if let Some(config) = &self.config {
            set_descriptor(builder.reborrow().init_config(), config);
        }
        let mut layers = builder.reborrow().init_layers(self.layers.len() as u32);
        for (n, layer) in self.layers.iter().enumerate() {
            set_descriptor(layers.reborrow().get(n as u32), layer);
        }
        if let Some(subject) = &self.subject {
            set_descriptor(builder.reborrow().init_subject(), subject);
        }
        set_labels(builder.init_annotations(self.annotations.len() as u32), &self.annotations);
    }
}

/// How an image is converted. What is left empty stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Of the new image.
    pub name: String,
    /// Of its layers: gzip, zstd or none.
    pub compression: String,
    /// Docker's media types become OCI's.
    pub oci: bool,
    /// That alone; all that is here otherwise.
    pub platform: String,
}

impl ConvertOptions {
    fn fill(&self, mut builder: convert_options::Builder<'_>) {
        builder.set_name(&self.name);
        builder.set_compression(&self.compression);
        builder.set_oci(self.oci);
        builder.set_platform(&self.platform);
    }
}

impl Images {
    /// Makes a manifest of blobs that are in the content, and names it.
    pub fn create_artifact(&self, options: &ArtifactOptions) -> Image {
        let mut request = self.client.create_artifact_request();
        options.fill(request.get().init_options());
        Image { link: self.link.clone(), client: request.send().pipeline.get_image() }
    }

    /// What a registry has that names this as its subject, of one artifact type; empty: of all.
    pub fn referrers(&self, options: &PullOptions, artifact_type: &str) -> Cursor<Descriptor> {
        let mut request = self.client.referrers_request();
        options.fill(request.get().init_options());
        request.get().set_artifact_type(artifact_type);
        Cursor::over_records(&self.link, request.send().pipeline.get_cursor(), descriptor)
    }
}

impl Image {
    /// Makes another image of it that holds the same files, packed otherwise.
    pub fn convert(&self, options: &ConvertOptions) -> Job {
        let mut request = self.client.convert_request();
        options.fill(request.get().init_options());
        Job { link: self.link.clone(), client: request.send().pipeline.get_job() }
    }
}
