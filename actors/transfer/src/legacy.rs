//! Images of docker's first schema become OCI ones (reference, section 8.8). Their manifests list layers by digest alone, the newest first,
//! each with a config in a text; what is signed in them is signed by nobody in particular, and isn't looked at.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
};

use base64::{
    Engine as _,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use cofferdam_content::Ingest;
use cofferdam_types::{
    Algorithm, Authority, Descriptor, Digest, Error, Limits, Name, Result,
    media::{self, Compression},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    Cancel, Job, PullOptions, Reference, Target,
    import::{Came, Taken, taken_in},
    job::Arrived,
    land::Landing,
    plan::composed,
    progress::{Counted, Phase},
    push::came_from,
    registry::Repository,
    transfer::Core,
    trust::Gate,
};

const KIND: &str = "image";
/// Two blocks of zeros, gzipped by Go: what docker put for a step that changed nothing.
const NOTHING: &str = "sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4";
/// JOSE leaves the padding away.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u64,
    fs_layers: Vec<Layer>,
    history: Vec<History>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    blob_sum: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct History {
    v1_compatibility: String,
}

/// A step, as far as it is read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Step {
    created: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    container_config: Option<Run>,
    throwaway: Option<bool>,
    #[serde(rename = "Size")]
    size: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Run {
    cmd: Option<Vec<String>>,
}

/// What is read of a manifest: the newest config, and the steps, the lowest first.
struct Read {
    newest: Map<String, Value>,
    steps: Vec<(Step, Digest)>,
}

fn refused(why: impl Into<String>) -> Error {
    Error::invalid(KIND, "", format!("its manifest of docker's first schema {}", why.into()))
}

/// What is signed: the manifest without its signatures. Its digest is what registries call it by.
fn payload(bytes: &[u8]) -> Result<Vec<u8>> {
    #[derive(Deserialize)]
    struct Signed {
        #[serde(default)]
        signatures: Vec<Signature>,
    }
    #[derive(Deserialize)]
    struct Signature {
        protected: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Protected {
        format_length: usize,
        format_tail: String,
    }
    let signed: Signed = serde_json::from_slice(bytes).map_err(|e| refused(format!("can't be read: {e}")))?;
    let Some(first) = signed.signatures.first() else { return Ok(bytes.to_vec()) };
    let odd = || refused("has a signature that doesn't say what it signs");
    let protected = BASE64.decode(&first.protected).map_err(|_| odd())?;
    let protected: Protected = serde_json::from_slice(&protected).map_err(|_| odd())?;
    let mut signed = bytes.get(..protected.format_length).ok_or_else(odd)?.to_vec();
    signed.extend(BASE64.decode(&protected.format_tail).map_err(|_| odd())?);
    Ok(signed)
}

fn read(payload: &[u8]) -> Result<Read> {
    let manifest: Manifest = serde_json::from_slice(payload).map_err(|e| refused(format!("can't be read: {e}")))?;
    if manifest.schema_version != 1 {
        return Err(refused("is of another schema"));
    }
    let (layers, history) = (manifest.fs_layers, manifest.history);
    let most = Limits::get().layers;
    if layers.len() != history.len() || layers.is_empty() || layers.len() as u64 > most {
        let (layers, steps) = (layers.len(), history.len());
        return Err(refused(format!(
            "has {layers} layers for {steps} steps: as many of both, 1 to {most}, make an image"
        )));
    }
    let newest = serde_json::from_str(&history[0].v1_compatibility);
    let newest = newest.map_err(|e| refused(format!("has a config that can't be read: {e}")))?;
    let mut steps = Vec::with_capacity(layers.len());
    for (layer, step) in layers.iter().zip(&history).rev() {
        let step = serde_json::from_str(&step.v1_compatibility);
        steps
            .push((step.map_err(|e| refused(format!("has a step that can't be read: {e}")))?, layer.blob_sum.parse()?));
    }
    Ok(Read { newest, steps })
}

/// Whether a step says itself that it has no files.
fn is_empty(step: &Step, blob: &Digest) -> bool {
    match step.throwaway {
        Some(throwaway) => throwaway || blob.to_string() == NOTHING,
        None => step.size == Some(0) || blob.to_string() == NOTHING,
    }
}

pub(crate) fn pull(
    core: &Core,
    job: &Job,
    auth: &Authority,
    options: &PullOptions,
    repository: &Repository,
    gate: Option<Gate>,
) -> Result<Vec<Arrived>> {
    let (name, word) = (Name::new(options.reference.to_string())?, job.word().child());
    let target = options.reference.target()?;
    let payload = payload(&repository.schema_1(&target)?)?;
    let digest = Digest::of(Algorithm::Sha256, &payload);
    if let Target::Digest(wanted) = &target
        && Digest::of(wanted.algorithm(), &payload) != *wanted
    {
        return Err(Error::data_loss(KIND, &name, format!("unexpected digest {digest}, expected {wanted}")));
    }
    gate.map(|gate| gate.admit(&digest, repository)).transpose()?;
    let name = match &target {
        Target::Tag(_) => name,
        Target::Digest(_) => called(core, job, auth, &options.reference, &digest, repository)?,
    };
    let Read { newest, steps } = read(&payload)?;
    job.board().stage("pulling");
    let mut came: HashMap<Digest, (Descriptor, Came)> = HashMap::new();
    let mut ingests = HashMap::new();
    for (step, blob) in &steps {
        if is_empty(step, blob) || came.contains_key(blob) {
            continue;
        }
        let (descriptor, found, ingest) = fetch(core, job, &word, repository, blob)?;
        ingests.insert(blob.clone(), ingest);
        came.insert(blob.clone(), (descriptor, found));
    }
    let (mut layers, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for (step, blob) in &steps {
        let layer = came.get(blob).filter(|(_, found)| !is_empty(step, blob) && !found.zeros);
        let mut entry: BTreeMap<&str, Value> = BTreeMap::new();
        let run = step.container_config.as_ref().and_then(|run| run.cmd.as_ref()).map(|cmd| cmd.join(" "));
        for (key, text) in
            [("created", &step.created), ("author", &step.author), ("comment", &step.comment), ("created_by", &run)]
        {
            if let Some(text) = text {
                entry.insert(key, json!(text));
            }
        }
        match layer {
            Some((descriptor, found)) => {
                layers.push(descriptor.clone());
                diff_ids.push(found.diff_id.clone());
            }
            None => drop(entry.insert("empty_layer", json!(true))),
        }
        history.push(entry);
    }
    let kept: Vec<Digest> = layers.iter().map(|layer| layer.digest.clone()).collect();
    ingests.retain(|digest, _| kept.contains(digest));
    let bytes = config(newest, &diff_ids, &history)?;
    let config = Descriptor::new(media::OCI_CONFIG, Digest::of(Algorithm::Sha256, &bytes), bytes.len() as u64);
    let choice = composed(media::OCI_MANIFEST, config, bytes, layers)?;
    if !options.platform.accepts(&choice.image.config.platform) {
        let why = format!("is for {}, not for {}", choice.image.config.platform, options.platform);
        return Err(Error::not_found(KIND, &name, why));
    }
    let landing = Landing {
        labels: came_from(&options.reference),
        ..Landing::new(core, job, &word, auth, options.driver.as_deref())
    };
    landing.land(&[name], &choice, &Taken(Mutex::new(ingests)))
}

/// What is made of a manifest that a digest names has a digest of its own: it is called by the tag that stands before it.
fn called(
    core: &Core,
    job: &Job,
    auth: &Authority,
    reference: &Reference,
    digest: &Digest,
    repository: &Repository,
) -> Result<Name> {
    let Some(tag) = reference.tag() else {
        let why = "becomes an image of another digest: write NAME:TAG@DIGEST, and it is called NAME:TAG here";
        return Err(Error::invalid(KIND, reference, why));
    };
    let name = Name::new(format!("{}:{tag}", reference.locator()))?;
    // Asked of the whole name before.
    if !auth.ceiling.images.has(&name, &[]) {
        return Err(Error::denied(KIND, &name, "is not among the images that this grant is for"));
    }
    core.trust.admit(job.namespace(), &name, digest, repository)?;
    Ok(name)
}

/// A blob, hashed and inflated in one pass.
fn fetch(
    core: &Core,
    job: &Job,
    word: &Cancel,
    repository: &Repository,
    blob: &Digest,
) -> Result<(Descriptor, Came, Ingest)> {
    let size = repository.size(blob)?;
    let board = job.board();
    let item = board.item(blob, size);
    board.phase(item, Phase::Fetching);
    let bare = Descriptor::new(media::OCI_LAYER_GZIP, blob.clone(), size);
    let inner = repository.blob(&bare, 0)?;
    let mut ingest = core.content.scratch(job.namespace(), blob.algorithm())?;
    let source = Counted { inner, board, number: item, cancel: word };
    let came = taken_in(source, &mut ingest).map_err(|e| e.context(format!("layer {blob}")))?;
    match ingest.digest_so_far() {
        found if found == *blob => {}
        found => {
            let why = format!("unexpected digest {found}: what came is not what was named");
            return Err(Error::data_loss("layer", blob, why));
        }
    }
    board.phase(item, Phase::Done);
    let media_type = match came.compression {
        Compression::None => media::OCI_LAYER,
        Compression::Gzip => media::OCI_LAYER_GZIP,
        Compression::Zstd => media::OCI_LAYER_ZSTD,
    };
    Ok((Descriptor { media_type: media_type.to_owned(), ..bare }, came, ingest))
}

/// The newest config, as OCI has it.
fn config(newest: Map<String, Value>, diff_ids: &[Digest], history: &[BTreeMap<&str, Value>]) -> Result<Vec<u8>> {
    let mut body: Map<String, Value> = Map::new();
    for key in ["created", "author", "architecture", "variant", "os", "os.version", "os.features", "config"] {
        if let Some(value) = newest.get(key).filter(|value| !value.is_null()) {
            body.insert(key.to_owned(), value.clone());
        }
    }
    body.entry("architecture").or_insert_with(|| json!("amd64"));
    body.entry("os").or_insert_with(|| json!("linux"));
    body.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
    body.insert("history".into(), json!(history));
    Ok(Value::Object(body).to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(layers: usize, history: &[Value]) -> Vec<u8> {
        let sums: Vec<_> = (0..layers)
            .map(|n| json!({ "blobSum": Digest::of(Algorithm::Sha256, n.to_string().as_bytes()) }))
            .collect();
        let history: Vec<_> = history.iter().map(|step| json!({ "v1Compatibility": step.to_string() })).collect();
        json!({ "schemaVersion": 1, "fsLayers": sums, "history": history }).to_string().into_bytes()
    }

    #[test]
    fn what_is_signed_is_what_was_there_before_the_signatures() {
        let plain = manifest(1, &[json!({ "id": "a" })]);
        assert_eq!(payload(&plain).unwrap(), plain);
        // As libtrust does it: the closing brace is the tail.
        let length = plain.len() - 1;
        let protected = json!({ "formatLength": length, "formatTail": BASE64.encode(&plain[length..]) }).to_string();
        let signature = json!([{ "header": {}, "signature": "AA", "protected": BASE64.encode(protected) }]);
        let signed = [&plain[..length], format!(",\"signatures\":{signature}}}").as_bytes()].concat();
        assert_eq!(payload(&signed).unwrap(), plain);
        for protected in ["!", "e30", &BASE64.encode(r#"{"formatLength":999999,"formatTail":"fQ"}"#)] {
            let signature = json!([{ "protected": protected }]);
            let bad = [&plain[..length], format!(",\"signatures\":{signature}}}").as_bytes()].concat();
            assert!(payload(&bad).is_err(), "{protected}");
        }
    }

    #[test]
    fn steps_are_turned_round_and_must_be_as_many_as_layers() {
        let steps = [json!({ "id": "new", "config": {} }), json!({ "id": "old", "created": "t" })];
        let read_back = read(&manifest(2, &steps)).unwrap();
        assert_eq!(read_back.steps[0].0.created.as_deref(), Some("t"));
        assert_eq!(read_back.newest["id"], json!("new"));
        assert!(read(&manifest(1, &steps)).is_err());
        assert!(read(&manifest(0, &[])).is_err());
        assert!(read(b"{\"schemaVersion\":2,\"fsLayers\":[],\"history\":[]}").is_err());
        assert!(read(&manifest(1, &[json!("text")])).is_err());
    }

    #[test]
    fn a_step_without_files_is_told() {
        let some = Digest::of(Algorithm::Sha256, b"x");
        let step = |value: Value| serde_json::from_value::<Step>(value).unwrap();
        for (value, empty) in [
            (json!({ "throwaway": true }), true),
            (json!({ "throwaway": false, "Size": 0 }), false),
            (json!({ "Size": 0 }), true),
            (json!({ "Size": 5 }), false),
            (json!({}), false),
        ] {
            assert_eq!(is_empty(&step(value.clone()), &some), empty, "{value}");
        }
        assert!(is_empty(&step(json!({})), &NOTHING.parse().unwrap()));
    }
}
