//! A root filesystem becomes an image of one layer.
//!
//! A directory is packed as a plain tar and stays one: its digest is then its diff id, so it is hashed once and
//! packed by nothing, and every runtime reads it. (zstd would halve the disk space for a second hash, one more pass,
//! and a layer that older runtimes refuse; a push may pack it when that is worth something.) A tarball is taken as it
//! is, with whatever compression it has.

use cofferdam_types::{Algorithm, Descriptor, Digest, Instruction, Platform, Result, Timestamp, media};
use serde_json::{Map, Value, json};

use crate::{amend::apply, choose::Choice, plan::composed};

/// What an image from a root filesystem runs, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootfsConfig {
    /// The program to run when nothing else is said; a shell where neither it nor a change says one.
    pub cmd: Vec<String>,
    /// What else is to be said, in this order. Without another one there is a usual `PATH`.
    pub changes: Vec<Instruction>,
    /// When it says that it was made; `None`: now.
    pub created: Option<Timestamp>,
    /// Who made it.
    pub author: String,
    /// What for.
    pub comment: String,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The image of one layer.
pub(crate) fn image(platform: &Platform, config: &RootfsConfig, layer: Descriptor, diff_id: &Digest) -> Result<Choice> {
    let created = config.created.unwrap_or_else(Timestamp::now).to_rfc3339();
    let mut runs: Map<String, Value> = Map::new();
    runs.insert("Env".into(), json!([PATH]));
    if !config.cmd.is_empty() {
        runs.insert("Cmd".into(), json!(config.cmd));
    }
    config.changes.iter().try_for_each(|change| apply(change, &mut runs))?;
    if !runs.contains_key("Cmd") && !runs.contains_key("Entrypoint") {
        runs.insert("Cmd".into(), json!(["/bin/sh"]));
    }
    let mut made = json!({ "created": created, "created_by": "imported root filesystem" });
    let mut body = json!({
        "created": created,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": runs,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    if !config.author.is_empty() {
        made["author"] = json!(config.author);
        body["author"] = json!(config.author);
    }
    if !config.comment.is_empty() {
        made["comment"] = json!(config.comment);
    }
    body["history"] = json!([made]);
    if !platform.variant.is_empty() {
        body["variant"] = json!(platform.variant);
    }
    let bytes = body.to_string().into_bytes();
    let descriptor = Descriptor::new(media::OCI_CONFIG, Digest::of(Algorithm::Sha256, &bytes), bytes.len() as u64);
    composed(media::OCI_MANIFEST, descriptor, bytes, vec![layer])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_says_what_it_runs_on_and_what_it_runs() {
        let diff = Digest::of(Algorithm::Sha256, b"layer");
        let layer = Descriptor::new(media::OCI_LAYER, diff.clone(), 5);
        let platform = Platform::new("linux", "arm", "v7");
        let choice = image(&platform, &RootfsConfig::default(), layer.clone(), &diff).unwrap();
        assert_eq!(choice.image.config.platform, platform);
        assert_eq!(choice.image.chain_ids, std::slice::from_ref(&diff));
        let text = String::from_utf8(choice.image.config_bytes).unwrap();
        assert!(text.contains("\"Cmd\":[\"/bin/sh\"]") && text.contains(PATH), "{text}");
        let changes = vec![
            Instruction::Entrypoint(vec!["/init".into()]),
            Instruction::User("1:1".into()),
            Instruction::Env("PATH=/only".into()),
        ];
        let created = Some(Timestamp(1_000_000_000));
        let (author, comment) = ("ann".into(), "a note".into());
        let config = RootfsConfig { cmd: vec!["-v".into()], changes, created, author, comment };
        let made = || image(&platform, &config, layer.clone(), &diff).unwrap();
        let whole: Value = serde_json::from_slice(&made().image.config_bytes).unwrap();
        let runs = json!({ "Cmd": ["-v"], "Entrypoint": ["/init"], "User": "1:1", "Env": ["PATH=/only"] });
        assert_eq!((&whole["config"], &whole["author"]), (&runs, &json!("ann")));
        assert_eq!(whole["history"][0]["comment"], json!("a note"));
        assert_eq!(whole["history"][0]["created"], whole["created"]);
        assert_eq!(made().image.target, made().image.target, "the same time, the same image");
        let bad = RootfsConfig { changes: vec![Instruction::Expose("0".into())], ..RootfsConfig::default() };
        assert!(image(&platform, &bad, layer.clone(), &diff).is_err());
    }
}
