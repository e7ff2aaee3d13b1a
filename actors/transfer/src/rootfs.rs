//! A root filesystem becomes an image of one layer.
//!
//! A directory is packed as a plain tar and stays one: its digest is then its diff id, so it is hashed once and
//! packed by nothing, and every runtime reads it. (zstd would halve the disk space for a second hash, one more pass,
//! and a layer that older runtimes refuse; a push may pack it when that is worth something.) A tarball is taken as it
//! is, with whatever compression it has.

use std::collections::BTreeMap;

use cofferdam_types::{Algorithm, Descriptor, Digest, Platform, Result, Timestamp, media};
use serde::{Deserialize, Serialize};

use crate::{choose::Choice, plan::composed};

/// What an image from a root filesystem runs, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsConfig {
    /// The program to run when nothing else is said; a shell if empty.
    pub cmd: Vec<String>,
    /// What comes before it.
    pub entrypoint: Vec<String>,
    /// Environment, as `NAME=value`; a usual `PATH` if empty.
    pub env: Vec<String>,
    /// Where it starts.
    pub working_dir: String,
    /// Who runs it.
    pub user: String,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The image of one layer.
pub(crate) fn image(platform: &Platform, config: &RootfsConfig, layer: Descriptor, diff_id: &Digest) -> Result<Choice> {
    let or = |given: &[String], usual: &str| if given.is_empty() { vec![usual.to_owned()] } else { given.to_vec() };
    let created = Timestamp::now().to_rfc3339();
    let mut runs = serde_json::json!({ "Env": or(&config.env, PATH) });
    if config.cmd.is_empty() && config.entrypoint.is_empty() {
        runs["Cmd"] = serde_json::json!(["/bin/sh"]);
    } else {
        runs["Cmd"] = serde_json::json!(config.cmd);
    }
    for (key, given) in [("WorkingDir", &config.working_dir), ("User", &config.user)] {
        if !given.is_empty() {
            runs[key] = serde_json::json!(given);
        }
    }
    if !config.entrypoint.is_empty() {
        runs["Entrypoint"] = serde_json::json!(config.entrypoint);
    }
    if !config.labels.is_empty() {
        runs["Labels"] = serde_json::json!(config.labels);
    }
    let mut body = serde_json::json!({
        "created": created,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": runs,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": created, "created_by": "imported root filesystem" }],
    });
    if !platform.variant.is_empty() {
        body["variant"] = serde_json::json!(platform.variant);
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
        let config = RootfsConfig { entrypoint: vec!["/init".into()], user: "1:1".into(), ..RootfsConfig::default() };
        let text = String::from_utf8(image(&platform, &config, layer, &diff).unwrap().image.config_bytes).unwrap();
        assert!(text.contains("\"Entrypoint\":[\"/init\"]") && text.contains("\"User\":\"1:1\""), "{text}");
    }
}
