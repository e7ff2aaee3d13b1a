//! What is here of images, who uses them, and what nobody does.

use std::time::Duration;

use cofferdam_client::{ImageDetail, ImageReport, PlatformState};
use cofferdam_types::{Descriptor, Platform};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    args::{Command, Positional, Times, many, switch, value},
    cx::{Cx, Table, line},
    failure::Failure,
    nouns::container::{Failures, show_each},
    progress::short_name,
    units::{counted, show_size, span},
};

/// `coffer image check`.
pub static CHECK: Command = Command {
    path: &["image", "check"],
    about: "say what is here of images, for each platform",
    positionals: &[Positional { name: "NAME", times: Times::Any }],
    flags: &[
        many("filter", None, "FILTER", "such as name~=REGEX or labels.KEY==VALUE"),
        switch("quiet", Some('q'), "names of the complete ones alone"),
    ],
    notes: "Without a NAME all images. STATUS: complete (all blobs are here), incomplete (how many of them are), missing (its manifest\n\
            isn't). An image is complete if it is so for the host's platform, or for all that it has of.\n\
            -o json: one array",
    failure: 1,
    action: |cx| Box::pin(check(cx)),
};

fn shown(platform: &Platform) -> String {
    let parts = [&platform.os, &platform.architecture, &platform.variant];
    parts.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("/")
}

fn status(state: &PlatformState) -> String {
    let here = state.required as usize - state.missing.len().min(state.required as usize);
    match state.missing.len() {
        0 => "complete".into(),
        _ if here == 0 => "missing".into(),
        _ => format!("incomplete ({here}/{})", state.required),
    }
}

fn is_complete(report: &ImageReport) -> bool {
    let host = Platform::host();
    match report.platforms.iter().find(|state| host.accepts(&state.platform)) {
        Some(state) => state.missing.is_empty(),
        None => !report.platforms.is_empty() && report.platforms.iter().all(|state| state.missing.is_empty()),
    }
}

async fn check(cx: Cx) -> Result<i32, Failure> {
    let images = cx.namespace().await?.images();
    let names: Vec<String> = match cx.args.from(0) {
        [] => images.list(cx.args.all("filter")).all().await?.into_iter().map(|info| info.name).collect(),
        _ if !cx.args.all("filter").is_empty() => {
            return Err(Failure::usage("image check: give names, or --filter"));
        }
        names => names.to_vec(),
    };
    let (mut failures, mut reports) = (Failures::default(), Vec::new());
    for block in names.chunks(64) {
        let asked: Vec<_> = block.iter().map(|name| images.get(name).report(false)).collect();
        for answer in asked {
            match answer.await {
                Ok(report) => reports.push(report),
                Err(error) => failures.add(error),
            }
        }
    }
    if cx.args.has("quiet") {
        cx.names(reports.iter().filter(|report| is_complete(report)).map(|report| report.info.name.as_str()))?;
        return failures.end(0);
    }
    if cx.json {
        cx.document(&reports)?;
        return failures.end(0);
    }
    let mut table = Table::new(&["NAME", "DIGEST", "PLATFORM", "STATUS", "SIZE", "UNPACKED"]);
    for report in &reports {
        let (name, digest) = (&report.info.name, short_name(&report.info.target.digest.to_string()));
        for state in &report.platforms {
            let drivers = if state.drivers.is_empty() { "-".into() } else { state.drivers.join(",") };
            let size = show_size(state.size);
            table.row([name.clone(), digest.clone(), shown(&state.platform), status(state), size, drivers]);
        }
        if report.platforms.is_empty() {
            let status = if report.damage.is_empty() { "no image" } else { "missing" };
            table.row([name.clone(), digest, "-".into(), status.into(), "-".into(), "-".into()]);
        }
    }
    if !reports.is_empty() || names.is_empty() {
        table.print()?;
    }
    failures.end(0)
}

/// `coffer image inspect`.
pub static INSPECT: Command = Command {
    path: &["image", "inspect"],
    about: "show all that is known of images, as JSON",
    positionals: &[Positional { name: "NAME", times: Times::Many }],
    flags: &[value("platform", None, "OS/ARCH[/VARIANT]", "other than the host's")],
    notes: "Its configuration, its layers, how each came to be (history), what there is for which platform, and who uses it.\n\
            one JSON document for each; -o json puts each on one line",
    failure: 1,
    action: |cx| Box::pin(inspect(cx)),
};

/// All that is known.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inspected {
    #[serde(flatten)]
    detail: ImageDetail,
    history: Vec<Step>,
    platforms: Vec<PlatformState>,
    users: Vec<String>,
    user_count: u64,
    names: Vec<String>,
}

/// A step of the history (OCI image-spec, config.md), with the layer that it made.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    #[serde(flatten)]
    told: Told,
    layer: Option<Descriptor>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Told {
    created: Option<String>,
    created_by: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    empty_layer: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    // An entry may be null.
    history: Option<Vec<Option<Told>>>,
}

/// Steps and layers, paired as far as they go: histories are often wrong about how many there are.
fn history(config: &[u8], layers: &[Descriptor]) -> Vec<Step> {
    let told = serde_json::from_slice::<Config>(config).unwrap_or_default().history.unwrap_or_default();
    let mut layers = layers.iter();
    let steps = told.into_iter().map(Option::unwrap_or_default).map(|told| {
        let layer = if told.empty_layer { None } else { layers.next().cloned() };
        Step { told, layer }
    });
    let mut steps: Vec<Step> = steps.collect();
    steps.extend(layers.map(|layer| Step { told: Told::default(), layer: Some(layer.clone()) }));
    steps
}

async fn inspect(cx: Cx) -> Result<i32, Failure> {
    let images = cx.namespace().await?.images();
    let platform = cx.args.text("platform");
    show_each(&cx, async |name| {
        let image = images.get(name);
        let (detail, report) = (image.detail(&platform), image.report(true));
        let (detail, report) = (detail.await?, report.await?);
        let history = history(&detail.config, &detail.layers);
        let ImageReport { platforms, users, user_count, names, .. } = report;
        Ok(Inspected { detail, history, platforms, users, user_count, names })
    })
    .await
}

/// `coffer image prune`.
pub static PRUNE: Command = Command {
    path: &["image", "prune"],
    about: "remove images that no container was made from",
    positionals: &[],
    flags: &[
        many("filter", None, "FILTER", "only these, such as name~=REGEX or labels.KEY==VALUE"),
        value("older-than", None, "SPAN", "only what was last changed so long ago, such as 24h or 30d"),
        switch("dry-run", None, "say what would go and why, and remove nothing"),
        switch("sync", None, "wait until what nothing keeps then is removed"),
    ],
    notes: "Says of each image whether it goes and why. Without --sync blobs and snapshots go soon after.\n\
            -o json: an object with the sums, and items",
    failure: 1,
    action: |cx| Box::pin(prune(cx)),
};

async fn prune(cx: Cx) -> Result<i32, Failure> {
    let unchanged = cx.args.read("older-than", span)?.unwrap_or(Duration::ZERO);
    let dry = cx.args.has("dry-run");
    if dry && cx.args.has("sync") {
        return Err(Failure::usage(
            "image prune: --dry-run removes nothing, so there is nothing to wait for: leave out --sync",
        ));
    }
    let images = cx.namespace().await?.images();
    let (report, cursor) = images.prune(cx.args.all("filter"), unchanged, dry).await?;
    let items = cursor.all().await?;
    if cx.args.has("sync") {
        cx.client().await?.collector().collect(false).await?;
    }
    if cx.json {
        let mut document = json!(report);
        document["items"] = json!(items);
        cx.document(&document)?;
        return Ok(0);
    }
    if !items.is_empty() {
        let mut table = Table::new(&["NAME", "", "WHY"]);
        for item in items {
            let word = match (item.removed, dry) {
                (true, false) => "removed",
                (true, true) => "would go",
                (false, _) => "stays",
            };
            table.row([item.info.name, word.into(), item.why]);
        }
        table.print()?;
        line("")?;
    }
    let (blobs, snapshots) = (counted(report.blobs, "blob"), counted(report.snapshots, "snapshot"));
    let word = if dry { "would go" } else { "removed" };
    let sum = counted(report.removed, "image");
    line(&format!("{sum} {word}; nothing keeps {blobs} and {snapshots} then, {}", show_size(report.bytes)))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_paired_with_layers_as_far_as_it_goes() {
        let layer = |n: char| {
            let digest = format!("sha256:{}", n.to_string().repeat(64)).parse().unwrap();
            Descriptor::new("application/vnd.oci.image.layer.v1.tar", digest, 1)
        };
        let layers = [layer('a'), layer('b')];
        let config = br#"{"history":[{"created_by":"one"},{"created_by":"env","empty_layer":true},null]}"#;
        let steps = history(config, &layers);
        let digests: Vec<_> = steps.iter().map(|step| step.layer.as_ref().map(|layer| &layer.digest)).collect();
        assert_eq!(digests, [Some(&layers[0].digest), None, Some(&layers[1].digest)]);
        // Without a history, with one that is too short, with one that is too long.
        assert_eq!(history(b"{}", &layers).len(), 2);
        assert_eq!(history(br#"{"history":[{}]}"#, &layers).len(), 2);
        assert_eq!(history(br#"{"history":[{},{},{}]}"#, &layers).len(), 3);
        assert!(history(br#"{"history":null}"#, &[]).is_empty());
    }
}
