//! A layer's bytes into a stage, and a chain of stages into layers: plain functions for worker threads.

use std::{
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use cofferdam_archive::{ApplyOptions, Limits, inflated};
use cofferdam_snapshots::Stage;
use cofferdam_types::{Algorithm, Code, Descriptor, Digest, Digester, Error, Result};

use crate::{
    differs,
    messages::{Extracted, Rung},
};

/// Refuses what is not a layer, and diff ids that can't be checked.
pub fn check(layer: &Descriptor, diff_id: &Digest) -> Result<()> {
    differs::readable(&layer.media_type).map_err(|e| e.context(format_args!("layer {}", layer.digest)))?;
    if diff_id.algorithm() != Algorithm::Sha256 {
        let why = format!("its config gives the diff id {diff_id}; only sha256 is supported there");
        return Err(Error::unimplemented("layer", &layer.digest, why));
    }
    Ok(())
}

/// Extracts the layer and verifies what it was. Its compression is told by its first bytes: labels have been wrong
/// before, and what counts is the diff id.
pub fn extract(
    source: impl Read + Send,
    layer: &Descriptor,
    diff_id: &Digest,
    stage: Stage,
    limits: &Limits,
    cancel: &AtomicBool,
) -> Result<Extracted> {
    check(layer, diff_id)?;
    let options = if stage.detached() { ApplyOptions::detached() } else { ApplyOptions::default() };
    // A stage is synced before it is committed.
    let options = ApplyOptions { flush: true, limits: limits.clone(), ..options };
    let applied = cofferdam_archive::apply(stage.tree(), source, &options, cancel)
        .map_err(|e| e.context(format_args!("layer {}", layer.digest)))?;
    same(layer, diff_id, &applied.diff_id)?;
    if applied.dropped_xattrs > 0 {
        let dropped = applied.dropped_xattrs;
        tracing::info!(layer = %layer.digest, dropped, "extended attributes that an image may not set were dropped");
    }
    Ok(Extracted { layer: layer.clone(), stage, applied })
}

/// Extracts a layer in place, on top of a whole tree.
pub fn onto(
    source: impl Read + Send,
    layer: &Descriptor,
    diff_id: &Digest,
    root: impl AsFd,
    limits: &Limits,
    cancel: &AtomicBool,
) -> Result<()> {
    check(layer, diff_id)?;
    let options = ApplyOptions { limits: limits.clone(), ..ApplyOptions::default() };
    let applied = cofferdam_archive::apply(root.as_fd(), source, &options, cancel)
        .map_err(|e| e.context(format_args!("layer {}", layer.digest)))?;
    same(layer, diff_id, &applied.diff_id)
}

fn same(layer: &Descriptor, expected: &Digest, found: &Digest) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let why = format!(
        "unpacks to {found}, but its image says {expected}: fetch it again; if it stays so, the image is wrong"
    );
    Err(Error::data_loss("layer", &layer.digest, why))
}

/// Inflates and hashes, and keeps nothing.
pub fn verify(
    source: impl Read,
    layer: &Descriptor,
    diff_id: &Digest,
    limits: &Limits,
    cancel: &AtomicBool,
) -> Result<()> {
    check(layer, diff_id)?;
    let failed = |e: io::Error| {
        if let Some(own) = e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
            return own.clone();
        }
        let mut error = Error::io("layer", &layer.digest, "inflate", &e);
        if error.code == Code::Internal {
            error.code = Code::DataLoss;
        }
        error
    };
    let limit = limits.max_bytes;
    let mut tar = inflated(source, limits, cancel).map_err(failed)?;
    let mut digester = Digester::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0_u64;
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::cancelled("layer", &layer.digest, "nobody waits for it any more"));
        }
        let count = match tar.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(failed(e)),
        };
        total += count as u64;
        if total > limit {
            return Err(Error::resource_exhausted(
                "layer",
                &layer.digest,
                format!("inflates to more than {limit} bytes"),
            ));
        }
        digester.update(&buffer[..count]);
    }
    same(layer, diff_id, &digester.finish())
}

/// Completes the new layers of a chain, the lowest first. `blob` opens a layer again: a few can only be extracted on top
/// of what lies below them; `blame` hears how that went.
pub fn settle<R: Read + Send>(
    mut rungs: Vec<Rung>,
    blob: impl Fn(&Descriptor) -> Result<R>,
    blame: impl Fn(&Descriptor, Result<()>) -> Result<()>,
    limits: &Limits,
    cancel: &AtomicBool,
) -> Result<Vec<Option<Stage>>> {
    for i in 0..rungs.len() {
        let (below, rest) = rungs.split_at_mut(i);
        let Some(Rung::New(extracted)) = rest.first_mut() else { continue };
        if !extracted.stage.detached() {
            continue;
        }
        let parents: Vec<_> = below.iter().rev().map(Rung::tree).collect();
        let settled = cofferdam_archive::settle(extracted.stage.tree(), &parents, &extracted.applied, cancel);
        let settled = match settled {
            Err(e) if e.code == Code::FailedPrecondition && !parents.is_empty() => {
                tracing::info!(layer = %extracted.layer.digest, why = e.message, "extracting a layer again, on its parents");
                let layer = extracted.layer.clone();
                blame(&layer, blob(&layer).and_then(|blob| on_parents(extracted, &parents, blob, limits, cancel)))
            }
            other => other,
        };
        settled.map_err(|e| e.context(format_args!("layer {}", extracted.layer.digest)))?;
    }
    let stages = rungs.into_iter().map(|rung| match rung {
        Rung::There(_) => None,
        Rung::New(layer) => Some(layer.stage),
    });
    Ok(stages.collect())
}

/// Extracts a layer in place, through a mount on top of its parents.
fn on_parents(
    extracted: &mut Extracted,
    parents: &[BorrowedFd<'_>],
    source: impl Read + Send,
    limits: &Limits,
    cancel: &AtomicBool,
) -> Result<()> {
    let root = extracted.stage.on_parents(parents)?;
    let options = ApplyOptions { limits: limits.clone(), ..ApplyOptions::default() };
    let applied = cofferdam_archive::apply(root.as_fd(), source, &options, cancel)?;
    // The blob is the one that was verified, unless the disk has changed its mind.
    same(&extracted.layer, &extracted.applied.diff_id, &applied.diff_id)?;
    extracted.applied = applied;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use cofferdam_types::media;

    use super::*;

    fn layer(bytes: &[u8]) -> Descriptor {
        Descriptor::new(media::OCI_LAYER_GZIP, Digest::of(Algorithm::Sha256, bytes), bytes.len() as u64)
    }

    #[test]
    fn verification_reads_every_compression() {
        let tar = vec![7_u8; 100_000];
        let diff_id = Digest::of(Algorithm::Sha256, &tar);
        let (front, back) = tar.split_at(40_000);
        let mut gzip = Vec::new();
        for part in [front, back] {
            let mut encoder = flate2::write::GzEncoder::new(&mut gzip, flate2::Compression::fast());
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap();
        }
        let zstd = zstd::encode_all(&tar[..], 1).unwrap();
        let go = AtomicBool::new(false);
        for bytes in [&tar, &gzip, &zstd] {
            verify(&bytes[..], &layer(bytes), &diff_id, &Limits::default(), &go).unwrap();
            let other = Digest::of(Algorithm::Sha256, b"other");
            let error = verify(&bytes[..], &layer(bytes), &other, &Limits::default(), &go).unwrap_err();
            assert_eq!(error.code, Code::DataLoss);
            assert!(error.message.contains(&diff_id.to_string()) && error.message.contains(&other.to_string()));
        }
        assert_eq!(
            verify(&gzip[..gzip.len() - 9], &layer(&gzip), &diff_id, &Limits::default(), &go).unwrap_err().code,
            Code::DataLoss
        );
        let stop = AtomicBool::new(true);
        assert_eq!(
            verify(&tar[..], &layer(&tar), &diff_id, &Limits::default(), &stop).unwrap_err().code,
            Code::Cancelled
        );
    }

    #[test]
    fn what_is_no_layer_is_refused() {
        let diff_id = Digest::of(Algorithm::Sha256, b"");
        let config = Descriptor::new(media::OCI_CONFIG, diff_id.clone(), 1);
        assert_eq!(check(&config, &diff_id).unwrap_err().code, Code::Unimplemented);
        let odd = Digest::of(Algorithm::Sha512, b"");
        assert_eq!(check(&layer(b"x"), &odd).unwrap_err().code, Code::Unimplemented);
    }
}
