//! Artifacts, and images that are made of others (image.capnp).

use cofferdam_transfer::{ArtifactOptions, ConvertOptions, Endpoint, Reference, RootfsConfig, normalize};
use cofferdam_types::{Descriptor, Error, Name, Result, Timestamp, instructions, media::Compression};
use cofferdam_wire::{
    convert::{descriptor, labels, set_descriptor, text, texts},
    error::malformed,
    image_capnp::{artifact_options, convert_options, descriptor_cursor, import_options, pull_options},
};

use super::{
    Place,
    cursor::Cursor,
    images::{Way, platform},
    rpc, trail, within,
};

/// Lines that change a config.
const MAX_CHANGES: u32 = 1000;

pub fn artifact_options(reader: artifact_options::Reader<'_>) -> Result<ArtifactOptions> {
    let name = normalize(text(reader.get_name())?)?;
    trail::object("image", &name);
    let one = |given: bool, reader| if given { descriptor(reader).map(Some) } else { Ok(None) };
    Ok(ArtifactOptions {
        name: Name::new(name)?,
        artifact_type: text(reader.get_artifact_type())?.to_owned(),
        config: one(reader.has_config(), reader.get_config().map_err(malformed)?)?,
        layers: reader.get_layers().map_err(malformed)?.iter().map(descriptor).collect::<Result<_>>()?,
        subject: one(reader.has_subject(), reader.get_subject().map_err(malformed)?)?,
        annotations: labels(reader.get_annotations())?,
    })
}

pub fn convert_options(source: &Name, reader: convert_options::Reader<'_>) -> Result<ConvertOptions> {
    let name = normalize(text(reader.get_name())?)?;
    trail::note(|| format!("to {name}"));
    let compression = match text(reader.get_compression())? {
        "" => None,
        "gzip" => Some(Compression::Gzip),
        "zstd" => Some(Compression::Zstd),
        "none" => Some(Compression::None),
        other => return Err(Error::invalid("compression", other, "is not one of gzip, zstd and none")),
    };
    let of = text(reader.get_platform())?;
    Ok(ConvertOptions {
        source: source.clone(),
        name: Name::new(name)?,
        compression,
        oci: reader.get_oci(),
        platform: if of.is_empty() { None } else { Some(platform(of)?) },
    })
}

/// What a root file system is to become.
pub fn rootfs_config(reader: import_options::Reader<'_>) -> Result<RootfsConfig> {
    let lines = reader.get_changes().map_err(malformed)?;
    if lines.len() > MAX_CHANGES {
        return Err(Error::invalid("changes", "", format!("are {}, and may be {MAX_CHANGES}", lines.len())));
    }
    let mut changes = Vec::new();
    for line in texts(Ok(lines))? {
        let read = instructions(&line).map_err(|why| Error::invalid("change", &line, why))?;
        changes.extend(read);
    }
    let created = reader.get_created();
    Ok(RootfsConfig {
        cmd: texts(reader.get_command())?,
        changes,
        created: (created != 0).then_some(Timestamp(created)),
        author: text(reader.get_author())?.to_owned(),
        comment: text(reader.get_comment())?.to_owned(),
    })
}

/// Whose registry is asked what belongs to an image, and how.
pub fn subject(place: &Place, reader: pull_options::Reader<'_>) -> Result<(Reference, Endpoint)> {
    let name = normalize(text(reader.get_reference())?)?;
    trail::object("image", &name);
    let certificates = reader.get_ca_certificates().map_err(malformed)?;
    within::may_pull(place, &name, !reader.get_plain_http() && certificates.is_empty())?;
    let (user, secret) = (text(reader.get_user())?, text(reader.get_secret())?);
    let way = Way {
        plain_http: reader.get_plain_http(),
        certificates,
        user,
        secret,
        client_certificate: reader.get_client_certificate().map_err(malformed)?,
        client_key: reader.get_client_key().map_err(malformed)?,
    };
    Ok((Reference::parse(&name)?, way.endpoint(place)?))
}

pub struct DescriptorCursor(pub Cursor<(usize, Descriptor)>);

impl descriptor_cursor::Server for DescriptorCursor {
    async fn next(
        self: std::rc::Rc<Self>,
        params: descriptor_cursor::NextParams,
        mut results: descriptor_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.0.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, (_, one)) in block.iter().enumerate() {
            set_descriptor(items.reborrow().get(n as u32), one);
        }
        Ok(())
    }
}
