//! A running container becomes an image: what criu writes of its processes, its spec, and the layer of what was changed
//! in its files.
//!
//! It stands still until all of it is stored. Only then it is ended, where that is wanted: whatever fails before leaves
//! a container that runs on and no image, and what fails then leaves the image, which is whole.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd as _,
    path::Path,
};

use cofferdam_content::{Commit, Ingest};
use cofferdam_images::{Checkpoint, Image, content_labels, pack_spec};
use cofferdam_kernel::block_on;
use cofferdam_metadata::records::{Resource, events, images};
use cofferdam_tasks::{DumpOptions, Tasks};
use cofferdam_types::{
    Algorithm, Authority, Descriptor, Digest, Error, Event, Id, Labels, Name, Platform, Result, media,
};

use crate::{Cancel, Job, job::Arrived, progress::Phase, transfer::Core, trust::Nowhere};

/// How a container is checkpointed.
#[derive(Clone, Debug)]
pub struct CheckpointOptions {
    /// What the image is called.
    pub name: Name,
    /// It goes on afterwards; otherwise it is killed.
    pub leave_running: bool,
    /// What criu is to put up with.
    pub dump: DumpOptions,
}

/// The label by which checkpoints are told, as in the reference.
const LABEL: &str = "containerd.io/checkpoint";

pub(crate) fn checkpoint(
    core: &Core,
    job: &Job,
    auth: &Authority,
    tasks: &Tasks,
    id: &Id,
    options: &CheckpointOptions,
) -> Result<Vec<Arrived>> {
    let (ns, board, word) = (job.namespace(), job.board(), job.word());
    let taken = || Error::already_exists("image", &options.name, "is there already: choose another name");
    if images::find(&core.meta.read()?, ns, &options.name)?.is_some() {
        return Err(taken());
    }
    let gate = core.trust.open(ns, &options.name)?;
    let platform = Platform::host();
    let container = tasks.container(ns, id)?;
    if container.image.is_empty() {
        let why = "was made without an image: a checkpoint is one more layer of its image";
        return Err(Error::failed_precondition("container", id, why));
    }
    let image = block_on(core.images.resolve(ns, &Name::new(&*container.image)?, &platform))?;
    let snapshot = container.snapshot_key.clone();
    if let Some(key) = &snapshot {
        let made_on = core.images.snapshot_parent(ns, &container.driver, key)?;
        if made_on.as_deref() != image.top().map(Digest::to_string).as_deref() {
            let why = format!(
                "its image {} is not the one that it was made from any more: it can't be restored from that",
                container.image
            );
            return Err(Error::failed_precondition("container", id, why));
        }
    }
    board.stage("checkpointing");
    let held = block_on(tasks.dump(ns, id, auth.clone(), options.dump))?;
    word.check()?;
    board.stage("storing");
    let item = board.item("memory", 0);
    board.phase(item, Phase::Fetching);
    let mut commits = Vec::new();
    let memory = pack(&held.images(), core.content.scratch(ns, Algorithm::Sha256)?, word)?;
    board.advance(item, memory.offset());
    board.phase(item, Phase::Done);
    let criu = add(&mut commits, memory, media::CHECKPOINT_CRIU, Labels::new());
    let mut ingest = core.content.scratch(ns, Algorithm::Sha256)?;
    ingest.append(&pack_spec(&container.spec))?;
    let spec = add(&mut commits, ingest, media::CHECKPOINT_SPEC, Labels::new());
    let changes = match &snapshot {
        None => None,
        Some(key) => {
            let item = board.item("changed files", 0);
            board.phase(item, Phase::Fetching);
            let made = core.images.changes(ns, &container.driver, key, media::OCI_LAYER_GZIP, &|| word.check())?;
            board.advance(item, made.layer.size);
            board.phase(item, Phase::Done);
            Some((add(&mut commits, made.ingest, media::OCI_LAYER_GZIP, Labels::new()), made.diff_id))
        }
    };
    let made = Checkpoint {
        criu,
        spec,
        changes,
        runtime: held.runtime().to_owned(),
        tcp_established: options.dump.tcp_established,
        unix_sockets: options.dump.unix_sockets,
    };
    let manifest = &image.manifest;
    let bare = Descriptor::new(&*manifest.media_type, manifest.digest.clone(), manifest.size);
    let (target, bytes) = made.index(&bare, &container.image, &platform);
    gate.map(|gate| gate.admit(&target.digest, &Nowhere)).transpose()?;
    let mut ingest = core.content.scratch(ns, Algorithm::Sha256)?;
    ingest.append(&bytes)?;
    add(&mut commits, ingest, media::OCI_INDEX, content_labels(&target, &bytes)?);
    word.check()?;
    let wanted: Vec<Digest> = commits.iter().filter_map(|commit| commit.expected.clone()).collect();
    // Nothing refers to them before the name does.
    let needed = wanted.iter().chain([&image.manifest.digest]).cloned().map(Resource::Content).collect();
    let _pin = block_on(core.meta.pin(ns, needed))?;
    let new: Vec<Digest> = wanted.into_iter().filter(|digest| core.content.info(ns, digest).is_err()).collect();
    core.content.commit_many_blocking(auth, commits)?;
    let mut record = Image::new(options.name.clone(), target.clone());
    record.labels.insert(LABEL.into(), "true".into());
    let (namespace, container) = (ns.clone(), id.clone());
    let write = core.meta.write(auth, move |tx| {
        images::create(tx, &namespace, record.clone())?;
        let payload = serde_json::json!({ "container_id": container, "checkpoint": record.name });
        events::emit(tx, Event::new(&namespace, "/tasks/checkpointed", payload))
    });
    if let Err(error) = block_on(write) {
        for digest in &new {
            // It is collected later otherwise.
            let _ = block_on(core.content.delete(auth, ns, digest));
        }
        return Err(error);
    }
    if !options.leave_running {
        board.stage("ending");
        let ended = block_on(async {
            tasks.kill(ns, id, auth.clone(), String::new(), libc::SIGKILL as u32, true).await?;
            tasks.wait(ns, id, "").await
        });
        match ended {
            // It was to go with its end, and has.
            Err(error) if error.code != cofferdam_types::Code::NotFound => {
                // Taken back, it would be lost if the container has ended after all.
                let kept = format!("its checkpoint {} is stored, but it could not be ended: kill it", options.name);
                return Err(error.context(kept));
            }
            _ => {}
        }
    }
    block_on(held.release());
    Ok(vec![Arrived { name: options.name.clone(), target, manifest: image.manifest.digest, chain: None }])
}

/// One more blob.
fn add(commits: &mut Vec<Commit>, ingest: Ingest, kind: &str, labels: Labels) -> Descriptor {
    let descriptor = Descriptor::new(kind, ingest.digest_so_far(), ingest.offset());
    commits.push(Commit { ingest, size: Some(descriptor.size), expected: Some(descriptor.digest.clone()), labels });
    descriptor
}

/// The files that criu left in a directory, as a tar.
fn pack(dir: &Path, ingest: Ingest, word: &Cancel) -> Result<Ingest> {
    let fault = |e: io::Error| match e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(ours) => ours.clone(),
        None => Error::io("checkpoint", dir.display(), "can't be packed", &e),
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fault)? {
        names.push(entry.map_err(fault)?.file_name());
    }
    names.sort();
    let held = File::open(dir).map_err(fault)?;
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(256 << 10, Into { ingest, word }));
    for name in names {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK;
        let file = cofferdam_sys::fd::open_no_symlinks(held.as_fd(), Path::new(&name), flags, 0).map_err(fault)?;
        let file = File::from(file);
        let meta = file.metadata().map_err(fault)?;
        if !meta.is_file() {
            continue;
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o600);
        header.set_size(meta.len());
        tar.append_data(&mut header, &name, io::Read::take(file, meta.len())).map_err(fault)?;
    }
    let out = tar.into_inner().map_err(fault)?;
    out.into_inner().map(|into| into.ingest).map_err(|e| fault(e.into_error()))
}

struct Into<'a> {
    ingest: Ingest,
    word: &'a Cancel,
}

impl Write for Into<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.word.check().map_err(io::Error::other)?;
        self.ingest.append(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
