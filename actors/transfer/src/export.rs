//! Images as an archive, which is two: an OCI layout in a tar archive, and what `docker load` reads.
//!
//! The bytes depend on nothing but the names, what they stand for, and what of that is here: entries are sorted, and carry no time and no
//! owner.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use cofferdam_kernel::block_on;
use cofferdam_types::{Authority, Descriptor, Digest, Error, Name, Pictures, Platform, Result, media};
use serde::Serialize;
use serde_json::json;

use crate::{
    Cancel, Job,
    gather::Gather,
    job::Arrived,
    plan::{FULL_NAME, REF_NAME, blob_path},
    progress::Phase,
    transfer::Core,
};

/// A reader that takes nothing for so long is given up: it holds one of the few threads that work on jobs.
const SILENCE: Duration = Duration::from_secs(300);
/// What a pipe takes without waiting when it says that it takes something (pipe(7)).
const PIECE: usize = 4096;

/// What to export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The images.
    pub names: Vec<Name>,
    /// The images for one platform alone; `None`: all that the names stand for, as far as it is here.
    pub platform: Option<Platform>,
}

pub(crate) fn export(
    core: &Core,
    job: &Job,
    auth: &Authority,
    options: &ExportOptions,
    to: OwnedFd,
) -> Result<Vec<Arrived>> {
    let (ns, board, word, chosen) = (job.namespace(), job.board(), job.word(), &auth.ceiling.images);
    board.stage("exporting");
    let mut names = options.names.clone();
    names.sort();
    names.dedup();
    let (mut blobs, mut entries, mut arrived) = (Vec::new(), Vec::new(), Vec::new());
    let mut loadable = Loadable::default();
    for name in &names {
        let target = core.images.get(ns, name)?.target;
        let mut found = Gather::here(core, job).of(core.images.own(chosen, ns, name, &target)?);
        let target = match &options.platform {
            None => target,
            Some(platform) => block_on(core.images.resolve_of(chosen, ns, name, platform))?.manifest,
        };
        found.add(&target)?;
        blobs.append(&mut found.blobs);
        loadable.add(core, job, chosen, name, options.platform.as_ref());
        entries.push(entry(name, &target));
        arrived.push(Arrived { name: name.clone(), manifest: target.digest.clone(), target, chain: None });
    }
    blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
    blobs.dedup_by(|a, b| a.digest == b.digest);
    let index = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries });
    let mut out = io::BufWriter::with_capacity(256 << 10, Patient::new(to, word)?);
    let mut tar = tar::Builder::new(&mut out);
    let fault = |e: io::Error| match e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(ours) => ours.clone(),
        None => Error::io("archive", "", "can't be written", &e),
    };
    let mut put = |path: &str, size: u64, bytes: &mut dyn Read| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        tar.append_data(&mut header, path, bytes).map_err(fault)
    };
    let marker: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
    put("oci-layout", marker.len() as u64, &mut &*marker)?;
    let index = index.to_string().into_bytes();
    put("index.json", index.len() as u64, &mut &*index)?;
    if let Some(manifest) = loadable.document() {
        put("manifest.json", manifest.len() as u64, &mut &*manifest)?;
    }
    for blob in &blobs {
        let item = board.item(&blob.digest, blob.size);
        board.phase(item, Phase::Fetching);
        // Verified on its way in; whoever imports verifies it again.
        put(&blob_path(&blob.digest), blob.size, &mut core.content.reader(ns, &blob.digest)?.take(blob.size))?;
        board.advance(item, blob.size);
        board.phase(item, Phase::Done);
    }
    tar.finish().map_err(fault)?;
    drop(tar);
    out.flush().map_err(fault)?;
    Ok(arrived)
}

/// What the index says of an image.
fn entry(name: &Name, target: &Descriptor) -> Descriptor {
    let mut entry = Descriptor { platform: None, ..target.clone() };
    entry.annotations.insert(FULL_NAME.into(), name.to_string());
    // A tag alone, as others write it, and read it.
    let last = name.rsplit('/').next().and_then(|last| last.split_once(':'));
    entry.annotations.insert(REF_NAME.into(), last.map_or_else(|| name.to_string(), |(_, tag)| tag.to_owned()));
    entry
}

/// The images that `docker load` finds: of each the one for the platform that was asked for, or the host's.
#[derive(Default)]
struct Loadable(BTreeMap<Digest, Load>);

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Load {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

impl Loadable {
    /// What has no such image, or not all of it here, is found by who reads the layout alone.
    fn add(&mut self, core: &Core, job: &Job, chosen: &Pictures, name: &Name, platform: Option<&Platform>) {
        let (ns, host) = (job.namespace(), Platform::host());
        let image = core.images.resolve_of(chosen, ns, name, platform.unwrap_or(&host));
        let Ok(image) = block_on(image) else { return };
        let mut parts = image.layers.iter().chain([&image.config_descriptor]);
        if !parts.all(|part| core.content.info(ns, &part.digest).is_ok()) {
            return;
        }
        let load = self.0.entry(image.manifest.digest.clone()).or_insert_with(|| Load {
            config: blob_path(&image.config_descriptor.digest),
            repo_tags: Vec::new(),
            layers: image.layers.iter().map(|layer| blob_path(&layer.digest)).collect(),
        });
        // A digest is no tag.
        if !name.contains('@') {
            load.repo_tags.push(name.to_string());
        }
    }

    fn document(&self) -> Option<Vec<u8>> {
        let all: Vec<&Load> = self.0.values().collect();
        if all.is_empty() { None } else { serde_json::to_vec(&all).ok() }
    }
}

/// A descriptor of the client's, whose other end may never read again: looked at in turns with the word that ends the
/// job.
struct Patient<'a> {
    file: File,
    /// A file takes all at once.
    regular: bool,
    word: &'a Cancel,
}

impl Patient<'_> {
    fn new(to: OwnedFd, word: &Cancel) -> Result<Patient<'_>> {
        let file = File::from(to);
        let meta = file.metadata().map_err(|e| Error::io("fd", "", "can't be examined", &e))?;
        if meta.is_dir() {
            return Err(Error::invalid("fd", "", "is a directory: give a file or a pipe"));
        }
        Ok(Patient { regular: meta.is_file(), file, word })
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        self.word.check().map_err(io::Error::other)?;
        if self.regular {
            return self.file.write(bytes);
        }
        let began = Instant::now();
        loop {
            self.word.check().map_err(io::Error::other)?;
            if began.elapsed() >= SILENCE {
                let why = format!("nobody took anything for {} seconds: given up", SILENCE.as_secs());
                return Err(io::Error::other(Error::deadline_exceeded("archive", "", why)));
            }
            match poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(200_u8)) {
                Ok(0) | Err(nix::Error::EINTR) => continue,
                Ok(_) => {}
                Err(e) => return Err(e.into()),
            }
            match self.file.write(&bytes[..bytes.len().min(PIECE)]) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
