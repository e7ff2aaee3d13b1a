//! Snapshots of an image that is here.

use std::{collections::HashMap, sync::Arc};

use cofferdam_images::Step;
use cofferdam_kernel::block_on;
use cofferdam_types::{Authority, Digest, Name, Platform, Result};

use crate::{Job, job::Arrived, progress::Phase, transfer::Core};

/// What to unpack.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    /// The image.
    pub name: Name,
    /// For which platform.
    pub platform: Platform,
    /// The snapshot driver.
    pub driver: String,
}

pub(crate) fn unpack(core: &Core, job: &Job, auth: &Authority, options: &UnpackOptions) -> Result<Vec<Arrived>> {
    let (ns, board) = (job.namespace(), job.board());
    board.stage("unpacking");
    let image = block_on(core.images.resolve_of(&auth.ceiling.images, ns, &options.name, &options.platform))?;
    let mut items: HashMap<Digest, usize> = HashMap::new();
    for layer in &image.layers {
        items.entry(layer.digest.clone()).or_insert_with(|| board.item(&layer.digest, layer.size));
    }
    let shown = job.clone();
    let told = move |blob: &Digest, step| {
        let phase = match step {
            Step::Begun => Phase::Unpacking,
            Step::Over => Phase::Done,
        };
        items.get(blob).into_iter().for_each(|item| shown.board().phase(*item, phase));
    };
    let work = core.images.unpack(auth, ns, &image, &options.driver, Some(Arc::new(told)));
    let chain = block_on(job.word().until(work))?;
    Ok(vec![Arrived { name: options.name.clone(), target: image.target, manifest: image.manifest.digest, chain }])
}
