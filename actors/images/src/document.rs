//! Manifests, indexes and configs: what is believed of them, and what is refused.

use cofferdam_types::{Descriptor, Digest, Error, Labels, Limits, Platform, Result, media};
use oci_spec::image::ImageConfiguration;
use serde_json::{Map, Value, json};

use crate::json;

const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
];

/// A manifest or an index.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is taken apart at once")]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Images for several platforms.
    Index(Vec<Descriptor>),
}

/// One image.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its config.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// Reads what `descriptor` names. The caller has verified that `bytes` have its digest.
pub fn document(descriptor: &Descriptor, bytes: &[u8]) -> Result<Document> {
    let digest = &descriptor.digest;
    let refuse = |why: String| Error::invalid("document", digest, why);
    if SCHEMA_1.contains(&descriptor.media_type.as_str()) {
        return Err(schema_1(digest));
    }
    let kind = media::kind(&descriptor.media_type);
    if !matches!(kind, media::Kind::Manifest | media::Kind::Index) {
        return Err(refuse(format!(
            "has media type {:?}, which is neither a manifest nor an index",
            descriptor.media_type
        )));
    }
    sized(descriptor, bytes)?;
    let map = json::parse(digest, bytes)?;
    let says = map.get("mediaType").and_then(Value::as_str);
    if map.contains_key("fsLayers")
        || says.is_some_and(|m| SCHEMA_1.contains(&m))
        || map.get("schemaVersion") == Some(&1.into())
    {
        return Err(schema_1(digest));
    }
    if map.get("schemaVersion") != Some(&2.into()) {
        return Err(refuse("does not say `schemaVersion` 2".into()));
    }
    // A document that can be read as either may be read differently by whoever checked it (CVE-2021-41190).
    if let Some(says) = map.get("mediaType")
        && says.as_str() != Some(&descriptor.media_type)
    {
        return Err(refuse(format!("says that it is {says}, but was handed over as {:?}", descriptor.media_type)));
    }
    let (foreign, ours): (&[&str], &str) =
        if kind == media::Kind::Index { (&["config", "layers"], "manifests") } else { (&["manifests"], "config") };
    if let Some(name) = foreign.iter().find(|name| map.contains_key(**name)) {
        return Err(refuse(format!("has both `{ours}` and `{name}`: it could be read as a manifest or as an index")));
    }
    if kind == media::Kind::Index {
        let entries: Vec<Descriptor> = list(digest, &map, "manifests", Limits::get().platforms)?;
        return Ok(Document::Index(entries));
    }
    let config: Descriptor = json::field(digest, &map, "config")?;
    checked(digest, &config)?;
    let layers = list(digest, &map, "layers", Limits::get().layers)?;
    Ok(Document::Manifest(Manifest { config, layers }))
}

fn schema_1(digest: &Digest) -> Error {
    Error::unimplemented(
        "document",
        digest,
        "is a Docker image manifest of schema version 1, which is not supported: push the image again with a tool of this decade",
    )
}

fn sized(descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
    if descriptor.size == bytes.len() as u64 {
        return Ok(());
    }
    let why = format!("has {} bytes where its descriptor says {}", bytes.len(), descriptor.size);
    Err(Error::data_loss("document", &descriptor.digest, why))
}

fn list(digest: &Digest, map: &Map<String, Value>, name: &str, most: u64) -> Result<Vec<Descriptor>> {
    // As Go writes a list that was never filled.
    if map.get(name) == Some(&Value::Null) {
        return Ok(Vec::new());
    }
    if let Some(Value::Array(values)) = map.get(name)
        && values.len() as u64 > most
    {
        return Err(Error::invalid(
            "document",
            digest,
            format!("`{name}` has {} entries: at most {most}", values.len()),
        ));
    }
    let entries: Vec<Descriptor> = json::field(digest, map, name)?;
    entries.iter().try_for_each(|entry| checked(digest, entry))?;
    Ok(entries)
}

fn checked(document: &Digest, descriptor: &Descriptor) -> Result<()> {
    let refuse = |why: &str| Err(Error::invalid("document", document, format!("entry {}: {why}", descriptor.digest)));
    if !word(&descriptor.media_type, "/+.-_;= ") || descriptor.media_type.is_empty() {
        return refuse("its media type is empty, too long or has strange characters");
    }
    if i64::try_from(descriptor.size).is_err() {
        return refuse("its size is not one that a file can have");
    }
    if let Some(p) = &descriptor.platform
        && !platform_is_plain(p)
    {
        return refuse("its platform has characters that a platform can't have");
    }
    Ok(())
}

fn platform_is_plain(p: &Platform) -> bool {
    [&p.os, &p.architecture, &p.variant, &p.os_version].into_iter().chain(&p.os_features).all(|part| word(part, ".-_+"))
}

/// Short, and of letters, digits and `others` alone: fit to be shown, logged and compared.
fn word(text: &str, others: &str) -> bool {
    text.len() <= 255 && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c)) && !text.contains("..")
}

/// An image's config, as far as the daemon reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// All of it.
    pub image: ImageConfiguration,
    /// What it was built for.
    pub platform: Platform,
    /// The digests of the layers' tars, the lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Reads the config that `descriptor` names. The caller has verified that `bytes` have its digest.
pub fn config(descriptor: &Descriptor, bytes: &[u8]) -> Result<Config> {
    let digest = &descriptor.digest;
    let refuse = |why: String| Error::invalid("image config", digest, why);
    if media::kind(&descriptor.media_type) != media::Kind::Config {
        let why = format!("has media type {:?}: this is an artifact, not an image that can run", descriptor.media_type);
        return Err(Error::failed_precondition("image config", digest, why));
    }
    sized(descriptor, bytes)?;
    let mut map = json::parse_within(digest, bytes, Limits::get().config)?;
    fill(&mut map);
    let text = |name: &str| map.get(name).and_then(Value::as_str).unwrap_or_default();
    let platform = Platform::new(text("os"), text("architecture"), text("variant"));
    if !platform_is_plain(&platform) {
        return Err(refuse("its platform has characters that a platform can't have".into()));
    }
    let image: ImageConfiguration =
        serde_json::from_value(Value::Object(map)).map_err(|e| refuse(format!("can't be read: {e}")))?;
    let most = Limits::get().layers;
    if image.rootfs().diff_ids().len() as u64 > most {
        return Err(refuse(format!("names more than {most} layers")));
    }
    let diff_ids = image.rootfs().diff_ids().iter().map(|text| text.parse()).collect::<Result<_>>()?;
    Ok(Config { image, platform, diff_ids })
}

/// What Go leaves out, or writes as null, is empty.
fn fill(config: &mut Map<String, Value>) {
    if let Some(Value::Object(rootfs)) = config.get_mut("rootfs") {
        let diff_ids = rootfs.entry("diff_ids").or_insert(Value::Null);
        if diff_ids.is_null() {
            *diff_ids = json!([]);
        }
    }
    if let Some(Value::Array(history)) = config.get_mut("history") {
        history.iter_mut().filter(|step| step.is_null()).for_each(|step| *step = json!({}));
    }
}

/// The chain ids of an image, the lowest first; fails unless each layer has its diff id.
pub fn chain_ids(manifest: &Manifest, config: &Config) -> Result<Vec<Digest>> {
    let (layers, diffs) = (manifest.layers.len(), config.diff_ids.len());
    if layers != diffs {
        let why = format!("names {diffs} diff ids for {layers} layers");
        return Err(Error::invalid("image config", &manifest.config.digest, why));
    }
    let mut chain: Vec<Digest> = Vec::with_capacity(diffs);
    for diff_id in &config.diff_ids {
        chain.push(Digest::chain(chain.last(), diff_id));
    }
    Ok(chain)
}

/// What a document refers to, in the order in which the reference labels it: a manifest's config, then its layers;
/// an index's entries.
pub fn children(document: &Document) -> Vec<Descriptor> {
    match document {
        Document::Manifest(m) => std::iter::once(&m.config).chain(&m.layers).cloned().collect(),
        Document::Index(entries) => entries.clone(),
    }
}

/// The labels by which a blob keeps its children from being collected.
pub fn gc_labels(children: &[Descriptor]) -> Labels {
    children
        .iter()
        .enumerate()
        .map(|(i, c)| (format!("containerd.io/gc.ref.content.{i}"), c.digest.to_string()))
        .collect()
}

/// The label by which an image's config keeps its topmost layer from being collected.
pub fn gc_snapshot_label(driver: &str) -> String {
    format!("containerd.io/gc.ref.snapshot.{driver}")
}

#[cfg(test)]
mod tests {
    use cofferdam_types::{Algorithm, Code, USUAL};
    use serde_json::json;

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn read(media_type: &str, value: &Value) -> Result<Document> {
        let bytes = value.to_string();
        document(&Descriptor::new(media_type, digest(&bytes), bytes.len() as u64), bytes.as_bytes())
    }

    fn entry(media_type: &str, text: &str) -> Value {
        json!({"mediaType": media_type, "digest": digest(text), "size": text.len()})
    }

    fn manifest() -> Value {
        json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": entry(media::OCI_CONFIG, "c"),
            "layers": [entry(media::OCI_LAYER_GZIP, "1"), entry(media::OCI_LAYER, "2")]})
    }

    fn index() -> Value {
        let mut one = entry(media::OCI_MANIFEST, "m");
        one["platform"] = json!({"os": "linux", "architecture": "arm", "variant": "v7", "os.features": ["a"]});
        json!({"schemaVersion": 2, "manifests": [one, entry(media::OCI_MANIFEST, "n")]})
    }

    #[test]
    fn manifests_and_indexes_are_read() {
        let Document::Manifest(m) = read(media::OCI_MANIFEST, &manifest()).unwrap() else { panic!("not a manifest") };
        assert_eq!((m.config.digest.clone(), m.layers.len()), (digest("c"), 2));
        let labels = gc_labels(&children(&Document::Manifest(m)));
        assert_eq!(labels["containerd.io/gc.ref.content.0"], digest("c").to_string());
        assert_eq!(labels["containerd.io/gc.ref.content.2"], digest("2").to_string());
        let Document::Index(entries) = read(media::OCI_INDEX, &index()).unwrap() else { panic!("not an index") };
        assert_eq!(entries[0].platform.as_ref().unwrap().to_string(), "linux/arm/v7");
    }

    #[test]
    fn m1_a_union_of_manifest_and_index_is_refused() {
        let mut both = manifest();
        both["manifests"] = json!([]);
        assert_eq!(read(media::OCI_MANIFEST, &both).unwrap_err().code, Code::InvalidArgument);
        let mut both = index();
        both["layers"] = json!([]);
        assert!(read(media::OCI_INDEX, &both).is_err());
        both.as_object_mut().unwrap().remove("layers");
        both["config"] = entry(media::OCI_CONFIG, "c");
        assert!(read(media::OCI_INDEX, &both).is_err());
    }

    #[test]
    fn m2_a_document_that_says_it_is_something_else_is_refused() {
        assert!(read(media::DOCKER_MANIFEST, &manifest()).is_err());
        assert!(read(media::OCI_INDEX, &manifest()).is_err());
        let mut odd = manifest();
        odd["mediaType"] = json!(["application/vnd.oci.image.manifest.v1+json"]);
        assert!(read(media::OCI_MANIFEST, &odd).is_err());
        assert!(read("application/octet-stream", &manifest()).is_err());
    }

    #[test]
    fn m3_bad_digests_are_refused() {
        let hex = digest("c").hex().to_owned();
        for bad in [
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{}", hex.to_uppercase()),
            format!("md5:{hex}"),
            "sha256:../../../../etc/passwd".into(),
            hex.clone(),
            String::new(),
        ] {
            let mut m = manifest();
            m["layers"][1]["digest"] = json!(bad);
            assert!(read(media::OCI_MANIFEST, &m).is_err(), "{bad}");
        }
    }

    #[test]
    fn m4_negative_and_lying_sizes_are_refused() {
        for bad in [json!(-1), json!(1.5), json!("1"), json!(u64::MAX), Value::Null] {
            let mut m = manifest();
            m["config"]["size"] = bad.clone();
            assert!(read(media::OCI_MANIFEST, &m).is_err(), "{bad}");
        }
        let bytes = manifest().to_string();
        let lying = Descriptor::new(media::OCI_MANIFEST, digest(&bytes), bytes.len() as u64 + 1);
        assert_eq!(document(&lying, bytes.as_bytes()).unwrap_err().code, Code::DataLoss);
    }

    #[test]
    fn m5_a_crowd_of_children_is_refused() {
        let crowd: Vec<Value> = (0..=USUAL.platforms).map(|i| entry(media::OCI_MANIFEST, &i.to_string())).collect();
        assert!(read(media::OCI_INDEX, &json!({"schemaVersion": 2, "manifests": crowd})).is_err());
        let mut m = manifest();
        m["layers"] = (0..=USUAL.layers).map(|i| entry(media::OCI_LAYER, &i.to_string())).collect();
        assert!(read(media::OCI_MANIFEST, &m).is_err());
    }

    fn config_of(value: &Value) -> Result<Config> {
        let bytes = value.to_string();
        config(&Descriptor::new(media::OCI_CONFIG, digest(&bytes), bytes.len() as u64), bytes.as_bytes())
    }

    fn image_config(diff_ids: &[Digest]) -> Value {
        json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Env": ["A=b"], "Cmd": ["sh"]}})
    }

    #[test]
    fn m6_each_layer_has_its_diff_id() {
        let Document::Manifest(m) = read(media::OCI_MANIFEST, &manifest()).unwrap() else { panic!("not a manifest") };
        let (a, b) = (digest("a"), digest("b"));
        let chain = chain_ids(&m, &config_of(&image_config(&[a.clone(), b.clone()])).unwrap()).unwrap();
        assert_eq!(chain, [a.clone(), Digest::chain(Some(&a), &b)]);
        for wrong in [vec![], vec![a.clone()], vec![a.clone(), b.clone(), a]] {
            assert!(chain_ids(&m, &config_of(&image_config(&wrong)).unwrap()).is_err());
        }
    }

    #[test]
    fn what_go_leaves_empty_is_read_and_m6_holds_of_it() {
        let mut m = manifest();
        m["annotations"] = Value::Null;
        m["layers"][0]["annotations"] = Value::Null;
        m["layers"][0]["urls"] = Value::Null;
        assert!(read(media::OCI_MANIFEST, &m).is_ok());
        m["layers"] = Value::Null;
        let Document::Manifest(scratch) = read(media::OCI_MANIFEST, &m).unwrap() else { panic!("not a manifest") };
        assert!(scratch.layers.is_empty());
        let mut i = index();
        i["manifests"] = Value::Null;
        assert_eq!(read(media::OCI_INDEX, &i).unwrap(), Document::Index(Vec::new()));
        // What isn't there at all makes it another document.
        for (mut value, media_type, name) in
            [(manifest(), media::OCI_MANIFEST, "layers"), (index(), media::OCI_INDEX, "manifests")]
        {
            value.as_object_mut().unwrap().remove(name);
            assert!(read(media_type, &value).is_err(), "{name}");
        }
        let mut c = image_config(&[]);
        c["history"] = json!([null, { "created_by": "x" }]);
        c["config"] = Value::Null;
        assert_eq!(config_of(&c).unwrap().image.history().as_ref().map(Vec::len), Some(2));
        c["history"] = Value::Null;
        c["rootfs"]["diff_ids"] = Value::Null;
        let none = config_of(&c).unwrap();
        assert!(chain_ids(&scratch, &none).unwrap().is_empty());
        c["rootfs"].as_object_mut().unwrap().remove("diff_ids");
        assert_eq!(config_of(&c).unwrap().diff_ids, none.diff_ids);
        let Document::Manifest(two) = read(media::OCI_MANIFEST, &manifest()).unwrap() else { panic!("not a manifest") };
        assert!(chain_ids(&two, &none).is_err());
        let one = config_of(&image_config(&[digest("a")])).unwrap();
        assert!(chain_ids(&scratch, &one).is_err());
    }

    #[test]
    fn m7_platforms_with_paths_or_control_bytes_are_refused() {
        for bad in ["../../x", "a/b", "a\nb", "a\u{1b}[2J", "a\0", "a b"] {
            for name in ["os", "architecture", "variant", "os.version"] {
                let mut i = index();
                i["manifests"][0]["platform"][name] = json!(bad);
                assert!(read(media::OCI_INDEX, &i).is_err(), "{name} {bad:?}");
            }
            let mut c = image_config(&[]);
            c["architecture"] = json!(bad);
            assert!(config_of(&c).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn schema_version_1_is_refused_by_name() {
        let old = json!({"schemaVersion": 1, "fsLayers": [], "history": []});
        for media_type in [SCHEMA_1[0], SCHEMA_1[1], media::DOCKER_MANIFEST] {
            let error = read(media_type, &old).unwrap_err();
            assert_eq!(error.code, Code::Unimplemented);
            assert!(error.message.contains("schema version 1"), "{error}");
        }
    }

    #[test]
    fn an_artifact_is_not_an_image() {
        let bytes = b"{}";
        let odd = Descriptor::new("application/vnd.oci.empty.v1+json", digest("{}"), 2);
        assert_eq!(config(&odd, bytes).unwrap_err().code, Code::FailedPrecondition);
    }
}
