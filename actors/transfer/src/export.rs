//! An image as an OCI layout in a tar archive.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use cofferdam_images::{MAX_DOCUMENT, children, document};
use cofferdam_types::{Code, Descriptor, Error, Name, Result, media};
use serde_json::json;

use crate::{
    Cancel, Job,
    job::Arrived,
    plan::{FULL_NAME, REF_NAME, blob_path},
    progress::Phase,
    transfer::Core,
};

/// A reader that takes nothing for so long is given up: it holds one of the few threads that work on jobs.
const SILENCE: Duration = Duration::from_secs(300);
/// What a pipe takes without waiting when it says that it takes something (pipe(7)).
const PIECE: usize = 4096;
/// Documents within documents.
const MAX_DEPTH: usize = 8;

pub(crate) fn export(core: &Core, job: &Job, name: &Name, to: OwnedFd) -> Result<Vec<Arrived>> {
    let (ns, board, word) = (job.namespace(), job.board(), job.word());
    let target = core.images.get(ns, name)?.target;
    board.stage("exporting");
    let mut found = Gather::here(core, job);
    found.add(&target)?;
    let mut entry = Descriptor { platform: None, ..target.clone() };
    entry.annotations.insert(FULL_NAME.into(), name.to_string());
    // A tag alone, as others write it, and read it.
    let last = name.rsplit('/').next().and_then(|last| last.split_once(':'));
    entry.annotations.insert(REF_NAME.into(), last.map_or_else(|| name.to_string(), |(_, tag)| tag.to_owned()));
    let index = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [entry] });
    let mut out = io::BufWriter::with_capacity(256 << 10, Patient::new(to, word)?);
    let mut tar = tar::Builder::new(&mut out);
    let fault = |e: io::Error| match e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(ours) => ours.clone(),
        None => Error::io("archive", name, "can't be written", &e),
    };
    let mut put = |path: &str, size: u64, bytes: &mut dyn Read| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size);
        tar.append_data(&mut header, path, bytes).map_err(fault)
    };
    let marker: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
    put("oci-layout", marker.len() as u64, &mut &*marker)?;
    let index = index.to_string().into_bytes();
    put("index.json", index.len() as u64, &mut &*index)?;
    for blob in &found.blobs {
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
    Ok(vec![Arrived { name: name.clone(), manifest: target.digest.clone(), target, chain: None }])
}

/// All that documents lead to.
pub(crate) struct Gather<'a> {
    core: &'a Core,
    job: &'a Job,
    /// Whether images of an index may be missing: they are for other platforms.
    partly: bool,
    seen: HashSet<cofferdam_types::Digest>,
    /// Each before what it leads to.
    pub blobs: Vec<Descriptor>,
}

impl<'a> Gather<'a> {
    /// What is here of it.
    pub fn here(core: &'a Core, job: &'a Job) -> Gather<'a> {
        Gather { core, job, partly: true, seen: HashSet::new(), blobs: Vec::new() }
    }

    /// All of it must be here.
    pub fn whole(core: &'a Core, job: &'a Job) -> Gather<'a> {
        Gather { partly: false, ..Gather::here(core, job) }
    }

    /// What one leads to, itself included.
    pub fn add(&mut self, top: &Descriptor) -> Result<()> {
        self.enter(top, false, 0)
    }

    fn enter(&mut self, blob: &Descriptor, spare: bool, depth: usize) -> Result<()> {
        self.job.word().check()?;
        if depth > MAX_DEPTH {
            return Err(Error::invalid("document", &blob.digest, format!("lies behind more than {MAX_DEPTH} others")));
        }
        if !self.seen.insert(blob.digest.clone()) {
            return Ok(());
        }
        let (content, ns) = (&self.core.content, self.job.namespace());
        match content.info(ns, &blob.digest) {
            Err(e) if e.code == Code::NotFound && spare => return Ok(()),
            Err(e) if e.code == Code::NotFound => {
                let of = blob.platform.as_ref().map(|platform| format!(" (for {platform})")).unwrap_or_default();
                let why = format!("is not here{of}, and belongs to the image: pull or import that again");
                return Err(Error::failed_precondition("blob", &blob.digest, why));
            }
            other => other?,
        };
        self.blobs.push(Descriptor::new(&*blob.media_type, blob.digest.clone(), blob.size));
        let kind = media::kind(&blob.media_type);
        if !matches!(kind, media::Kind::Manifest | media::Kind::Index) {
            return Ok(());
        }
        let bytes = content.read_verified(ns, &blob.digest, MAX_DOCUMENT)?;
        for child in children(&document(blob, &bytes)?) {
            let image = matches!(media::kind(&child.media_type), media::Kind::Manifest | media::Kind::Index);
            self.enter(&child, self.partly && image && kind == media::Kind::Index, depth + 1)?;
        }
        Ok(())
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
