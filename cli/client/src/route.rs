//! The way to an image: which hosts a pull asks.

use cofferdam_types::Result;
use cofferdam_wire::{
    convert::{text, texts},
    error::malformed,
    image_capnp::{route_report, route_step},
};
use serde::Serialize;

use crate::{
    call::{Reply, reply},
    image::Images,
};

/// A host that is asked for an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStep {
    /// With its scheme and port, and the path before the repository.
    pub host: String,
    /// `pull`, `resolve`, `push`.
    pub capabilities: Vec<String>,
    /// The file that names it; empty: none does.
    pub source: String,
    /// Where what it is shown comes from: `stored`, `file` or `none`.
    pub credential: String,
    /// Without user and password; empty: none.
    pub proxy: String,
    /// Files of certificates.
    pub tls: Vec<String>,
    /// What must have happened before it is asked.
    pub when: String,
    /// Whether whoever answers is believed.
    pub unverified: bool,
    /// Whether it is the registry that the name says.
    pub own: bool,
}

/// The way of a pull.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteReport {
    /// The whole name.
    pub reference: String,
    /// In the order in which they are asked.
    pub steps: Vec<RouteStep>,
    /// Looked at for it, there or not.
    pub files: Vec<String>,
    /// What must be signed, in a sentence.
    pub trust: String,
}

fn route(reader: route_report::Reader<'_>) -> Result<RouteReport> {
    let step = |reader: route_step::Reader<'_>| -> Result<RouteStep> {
        Ok(RouteStep {
            host: text(reader.get_host())?.to_owned(),
            capabilities: texts(reader.get_capabilities())?,
            source: text(reader.get_source())?.to_owned(),
            credential: text(reader.get_credential())?.to_owned(),
            proxy: text(reader.get_proxy())?.to_owned(),
            tls: texts(reader.get_tls())?,
            when: text(reader.get_when())?.to_owned(),
            unverified: reader.get_unverified(),
            own: reader.get_own(),
        })
    };
    Ok(RouteReport {
        reference: text(reader.get_reference())?.to_owned(),
        steps: reader.get_steps().map_err(malformed)?.iter().map(step).collect::<Result<_>>()?,
        files: texts(reader.get_files())?,
        trust: text(reader.get_trust())?.to_owned(),
    })
}

impl Images {
    /// Which hosts a pull would ask, and how. Asks nobody.
    pub fn explain_route(&self, reference: &str) -> Reply<RouteReport> {
        let mut request = self.client.explain_route_request();
        request.get().set_reference(reference);
        reply(&self.link, request, |answer| route(answer.get_report().map_err(malformed)?))
    }
}
