//! What docker's first manifests need of a registry: themselves, and the sizes of blobs, which they don't say.

use cofferdam_types::{Digest, Error, Result};
use ureq::http::Method;

use super::{Ask, MAX_MANIFEST, Repository, media_type};
use crate::Target;

const ACCEPT: &str =
    "application/vnd.docker.distribution.manifest.v1+prettyjws, application/vnd.docker.distribution.manifest.v1+json";

impl Repository {
    /// The bytes of a manifest of docker's first schema, as they come.
    pub fn schema_1(&self, target: &Target) -> Result<Vec<u8>> {
        let uri = self.http.uri("manifests", &target.to_string())?;
        let ask = || Ask {
            accept: Some(ACCEPT),
            body_within: Some(self.http.limits.header),
            ..Ask::of(Method::GET, uri.clone())
        };
        let response = self.again(|| self.http.send(&ask()))?;
        if response.status() != 200 {
            return Err(self.http.unexpected("manifest", response));
        }
        match media_type(&response) {
            Some(kind) if ACCEPT.split(", ").any(|one| one == kind) || kind == "application/json" => {}
            other => {
                let why = format!("sent {other:?} where a manifest of docker's first schema was");
                return Err(self.http.error(Error::data_loss, why));
            }
        }
        self.bounded(response, MAX_MANIFEST)
    }

    /// How large a blob is.
    pub fn size(&self, blob: &Digest) -> Result<u64> {
        let uri = self.http.uri("blobs", &blob.to_string())?;
        let response = self.again(|| self.http.send(&Ask::of(Method::HEAD, uri.clone())))?;
        if response.status() != 200 {
            return Err(self.http.unexpected("blob", response));
        }
        let said = response.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
        said.ok_or_else(|| self.http.error(Error::data_loss, format!("doesn't say how large {blob} is")))
    }
}
