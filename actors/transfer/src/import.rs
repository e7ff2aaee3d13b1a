//! Importing: what lies at hand becomes images.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread::available_parallelism,
    time::{Duration, Instant},
};

use cofferdam_content::Ingest;
use cofferdam_types::{Algorithm, Authority, Descriptor, Digest, Digester, Error, Result, media, media::Compression};

use crate::{
    Cancel, ImportOptions, Job, RootfsOptions, Source,
    choose::Choice,
    from_io,
    job::Arrived,
    land::{Landing, Supply},
    plan::{Lump, Planned, Shelf, plan},
    progress::{Counted, Phase},
    rootfs,
    source::{Layout, Outer, Section, Spool, sniff, walk},
    transfer::Core,
    trust::{Archive, Nowhere, Shown},
};

const BUFFER: usize = 256 << 10;
/// The most bytes that a packed root filesystem may inflate to.
const MAX_ROOTFS: u64 = 64 << 30;

/// Imports all images of an archive.
pub(crate) fn import(
    core: &Core,
    job: &Job,
    auth: &Authority,
    source: Source,
    options: &ImportOptions,
) -> Result<Vec<Arrived>> {
    let word = job.word().child();
    let lanes = available_parallelism().map_or(2, usize::from);
    let landing = Landing { lanes, ..Landing::new(core, job, &word, auth, options.driver.as_deref()) };
    job.board().stage("reading");
    let (platform, name, stored) = (&options.platform, options.name.as_deref(), options.driver.is_none());
    match open(source)? {
        Opened::Layout(layout) => {
            let images = plan(&layout, platform, name, stored)?;
            let shown = admitted(core, job, &images, &layout)?;
            job.board().stage("importing");
            let land = |image: &Planned| {
                let blobs = image.choice.image.layers.iter().chain(&image.choice.parts);
                let paths = blobs.map(|l| l.digest.clone()).zip(image.paths.clone());
                landing.land(&image.names, &image.choice, &AtHand { layout: &layout, paths: paths.collect() })
            };
            let arrived = images.iter().map(land).collect::<Result<Vec<_>>>()?.concat();
            kept(core, job, auth, shown);
            Ok(arrived)
        }
        Opened::Stream(file) => {
            let item = job.board().item("archive", file.metadata().map_or(0, |m| m.len()));
            job.board().phase(item, Phase::Fetching);
            let (outer, _) = Outer::new(stream(file, job, item, &word)).map_err(walk::broken)?;
            let spool = Spool::take(outer, &core.content, job.namespace())?;
            job.board().phase(item, Phase::Done);
            let images = plan(&spool, platform, name, stored)?;
            let shown = admitted(core, job, &images, &spool)?;
            job.board().stage("importing");
            let blobs = images.iter().flat_map(|image| image.choice.image.layers.iter().chain(&image.choice.parts));
            let blobs: HashSet<Digest> = blobs.map(|blob| blob.digest.clone()).collect();
            let taken = Taken(Mutex::new(spool.into_ingests(&blobs)?));
            let land = |image: &Planned| landing.land(&image.names, &image.choice, &taken);
            let arrived = images.iter().map(land).collect::<Result<Vec<_>>>()?.concat();
            kept(core, job, auth, shown);
            Ok(arrived)
        }
    }
}

/// Whether all of them may come in, by their own signatures.
fn admitted(core: &Core, job: &Job, images: &[Planned], shelf: &dyn Shelf) -> Result<Vec<(Digest, Shown)>> {
    let mut all = Vec::new();
    for image in images {
        let target = &image.choice.image.target.digest;
        for name in &image.names {
            all.push((target.clone(), core.trust.admit(job.namespace(), name, target, &Archive { shelf })?));
        }
    }
    Ok(all)
}

fn kept(core: &Core, job: &Job, auth: &Authority, shown: Vec<(Digest, Shown)>) {
    for (target, shown) in shown {
        shown.keep(core, auth, job.namespace(), &target);
    }
}

/// Makes an image of a root filesystem.
pub(crate) fn rootfs(
    core: &Core,
    job: &Job,
    auth: &Authority,
    source: Source,
    options: &RootfsOptions,
) -> Result<Vec<Arrived>> {
    let word = job.word().child();
    core.trust.open(job.namespace(), &options.name)?;
    let mut ingest = core.content.scratch(job.namespace(), Algorithm::Sha256)?;
    job.board().stage("packing");
    let length = match &source {
        Source::Directory(_) => 0,
        Source::Archive(fd) => nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_size.unsigned_abs()),
    };
    let item = job.board().item("root filesystem", length);
    job.board().phase(item, Phase::Fetching);
    let Came { compression, diff_id, .. } = match source {
        Source::Directory(dir) => {
            let mut out = io::BufWriter::with_capacity(BUFFER, Told { ingest: &mut ingest, job, item });
            cofferdam_diff::pack(dir.as_fd(), &mut out, &|| word.check())?;
            out.flush().map_err(|e| from_io("rootfs", "", "can't be packed", e))?;
            drop(out);
            Came { compression: Compression::None, diff_id: ingest.digest_so_far(), zeros: false }
        }
        Source::Archive(fd) => taken_in(stream(File::from(fd), job, item, &word), &mut ingest)?,
    };
    job.board().phase(item, Phase::Done);
    let media_type = match compression {
        Compression::None => media::OCI_LAYER,
        Compression::Gzip => media::OCI_LAYER_GZIP,
        Compression::Zstd => media::OCI_LAYER_ZSTD,
    };
    let layer = Descriptor::new(media_type, ingest.digest_so_far(), ingest.offset());
    let choice: Choice = rootfs::image(&options.platform, &options.config, layer.clone(), &diff_id)?;
    core.trust.admit(job.namespace(), &options.name, &choice.image.target.digest, &Nowhere)?;
    let taken = Taken(Mutex::new(HashMap::from([(layer.digest, ingest)])));
    let landing = Landing::new(core, job, &word, auth, options.driver.as_deref());
    landing.land(std::slice::from_ref(&options.name), &choice, &taken)
}

/// A tar that was taken in as it came.
pub(crate) struct Came {
    pub compression: Compression,
    /// Which tar it is.
    pub diff_id: Digest,
    /// There is nothing in it but its end.
    pub zeros: bool,
}

/// A tar of any compression into an ingest as it is, and which tar it is: told in one pass.
pub(crate) fn taken_in(source: impl Read + Send, ingest: &mut Ingest) -> Result<Came> {
    struct Tee<'a, R> {
        inner: R,
        ingest: &'a mut Ingest,
    }
    impl<R: Read> Read for Tee<'_, R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.inner.read(buffer)?;
            self.ingest.append(&buffer[..n]).map_err(io::Error::other)?;
            Ok(n)
        }
    }
    let mut tee = Tee { inner: source, ingest };
    let (mut outer, compression) = Outer::new(&mut tee).map_err(walk::broken)?;
    let mut digester = Digester::new(Algorithm::Sha256);
    // Not one header that is a tar's: better said now than by the extraction.
    let mut buffer = Vec::with_capacity(BUFFER);
    (&mut outer).take(512).read_to_end(&mut buffer).map_err(walk::broken)?;
    if buffer.iter().any(|b| *b != 0) {
        walk::Walk::new(Head(&buffer)).next()?;
    }
    digester.update(&buffer);
    let mut zeros = buffer.iter().all(|b| *b == 0);
    let mut total = buffer.len() as u64;
    let mut end = End::default();
    end.pass(&buffer);
    buffer.resize(BUFFER, 0);
    loop {
        let n = match outer.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(walk::broken(e)),
        };
        total += n as u64;
        if total > MAX_ROOTFS {
            return Err(Error::resource_exhausted("rootfs", "", format!("inflates to more than {MAX_ROOTFS} bytes")));
        }
        digester.update(&buffer[..n]);
        zeros = zeros && buffer[..n].iter().all(|b| *b == 0);
        end.pass(&buffer[..n]);
    }
    drop(outer);
    end.check()?;
    // What follows the last member of a compressed stream belongs to the blob's digest too.
    io::copy(&mut tee, &mut io::sink()).map_err(walk::broken)?;
    Ok(Came { compression, diff_id: digester.finish(), zeros })
}

/// The last block of a tar. Of a layer its digest says whether it is whole, of this one nobody else does: the extraction
/// sees where a member was cut, but not what is missing behind one.
#[derive(Default)]
struct End(Vec<u8>);

impl End {
    const BLOCK: usize = 512;

    fn pass(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(Self::BLOCK)..];
        let surplus = (self.0.len() + bytes.len()).saturating_sub(Self::BLOCK);
        self.0.drain(..surplus);
        self.0.extend_from_slice(bytes);
    }

    /// Two blocks of zeros end a tar; one is taken, as GNU tar does.
    fn check(&self) -> Result<()> {
        if self.0.len() == Self::BLOCK && self.0.iter().all(|b| *b == 0) {
            return Ok(());
        }
        let why = if self.0.is_empty() {
            "is empty: not even the end of a tar is in it"
        } else {
            "has no end (a block of zeros): it was cut off, make it anew"
        };
        Err(Error::data_loss("archive", "", why))
    }
}

struct Head<'a>(&'a [u8]);

impl Read for Head<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl walk::Input for Head<'_> {}

/// Counts what is written.
struct Told<'a> {
    ingest: &'a mut Ingest,
    job: &'a Job,
    item: usize,
}

impl Write for Told<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.ingest.append(bytes).map_err(io::Error::other)?;
        self.job.board().advance(self.item, bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Opened {
    /// Any part can be read at any time.
    Layout(Layout),
    /// It comes once.
    Stream(File),
}

fn open(source: Source) -> Result<Opened> {
    let fd: OwnedFd = match source {
        Source::Directory(dir) => return Ok(Opened::Layout(Layout::Directory(dir))),
        Source::Archive(fd) => fd,
    };
    let file = File::from(fd);
    let meta = file.metadata().map_err(|e| Error::io("archive", "", "can't be looked at", &e))?;
    if meta.is_dir() {
        return Err(Error::invalid("archive", "", "is a directory: hand it over as one"));
    }
    if meta.is_file() && sniff(&file).map_err(walk::broken)? == Compression::None {
        return Layout::tar(Arc::new(file), meta.len()).map(Opened::Layout);
    }
    Ok(Opened::Stream(file))
}

/// A file that is read once from its beginning, or a pipe from where it is.
fn stream<'a>(file: File, job: &'a Job, number: usize, cancel: &'a Cancel) -> Counted<'a, Box<dyn Read + Send>> {
    let inner: Box<dyn Read + Send> = match file.metadata() {
        Ok(meta) if meta.is_file() => Box::new(Section::new(Arc::new(file), 0, meta.len())),
        _ => Box::new(Patient { file, cancel: cancel.clone(), silence: SILENCE }),
    };
    Counted { inner, board: job.board(), number, cancel }
}

/// A pipe or socket whose other end may never write again: looked at in turns with the word that ends the job.
struct Patient {
    file: File,
    cancel: Cancel,
    silence: Duration,
}

/// A pipe that brings nothing for so long is given up: it holds one of the few threads that work on jobs.
const SILENCE: Duration = Duration::from_secs(300);

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let began = Instant::now();
        loop {
            self.cancel.check().map_err(io::Error::other)?;
            if began.elapsed() >= self.silence {
                let why = format!("brought nothing for {} seconds and was given up", self.silence.as_secs());
                return Err(io::Error::other(Error::deadline_exceeded("archive", "", why)));
            }
            let ready = poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)], PollTimeout::from(200_u8));
            match ready {
                Ok(0) | Err(nix::Error::EINTR) => continue,
                Ok(_) => {}
                Err(e) => return Err(e.into()),
            }
            match self.file.read(buffer) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                other => return other,
            }
        }
    }
}

impl Shelf for Layout {
    fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.read(path, limit)
    }

    fn layer(&self, path: &str) -> Result<Option<Lump>> {
        let Some(mut part) = Layout::open(self, path)? else { return Ok(None) };
        let mut head = Vec::new();
        part.section.clone().take(4).read_to_end(&mut head).map_err(walk::broken)?;
        let compression = Compression::sniff(&head);
        // A plain layer is verified by its diff id on its way in; a packed one has no name but its hash.
        let digest = match compression {
            Compression::None => None,
            _ => {
                let mut digester = Digester::new(Algorithm::Sha256);
                let mut buffer = vec![0; BUFFER];
                loop {
                    match part.section.read(&mut buffer).map_err(walk::broken)? {
                        0 => break Some(digester.finish()),
                        n => digester.update(&buffer[..n]),
                    }
                }
            }
        };
        Ok(Some(Lump { size: part.size, compression, digest }))
    }
}

impl Shelf for Spool {
    fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.file(path)?.map(|file| self.read(file, path, limit)).transpose()
    }

    fn layer(&self, path: &str) -> Result<Option<Lump>> {
        Ok(self.file(path)?.map(|file| Lump {
            size: file.size,
            compression: file.compression,
            digest: Some(file.digest.clone()),
        }))
    }
}

/// Layers that can be read from where they are.
struct AtHand<'a> {
    layout: &'a Layout,
    paths: HashMap<Digest, String>,
}

impl Supply for AtHand<'_> {
    fn open<'s>(&'s self, layer: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send + 's>> {
        let lacks = || Error::data_loss("archive", "", format!("lacks {}, which it refers to", layer.digest));
        let path = self.paths.get(&layer.digest).ok_or_else(lacks)?;
        let mut part = self.layout.open(path)?.ok_or_else(lacks)?;
        if part.size != layer.size {
            let message = format!("has {} bytes for {}, which has {}", part.size, layer.digest, layer.size);
            return Err(Error::data_loss("archive", "", message));
        }
        walk::Input::skip(&mut part.section, offset).map_err(walk::broken)?;
        Ok(Box::new(part.section))
    }
}

/// Layers that have been taken in already.
pub(crate) struct Taken(pub Mutex<HashMap<Digest, Ingest>>);

impl Supply for Taken {
    fn open<'s>(&'s self, layer: &Descriptor, _offset: u64) -> Result<Box<dyn Read + Send + 's>> {
        Err(Error::data_loss("archive", "", format!("lacks {}, which it refers to", layer.digest)))
    }

    fn ingested(&self, layer: &Descriptor) -> Option<Ingest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&layer.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_brings_nothing_is_given_up_and_a_slow_one_is_not() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let silence = Duration::from_millis(10);
        let mut patient = Patient { file: read.into(), cancel: Cancel::new(), silence };
        nix::unistd::write(&write, b"slow").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(patient.read(&mut buffer).unwrap(), 4);
        let error = walk::broken(patient.read(&mut buffer).unwrap_err());
        assert_eq!(error.code, cofferdam_types::Code::DeadlineExceeded, "{error}");
        assert!(error.message.contains("brought nothing"), "{error}");
        patient.cancel.cancel();
        assert_eq!(walk::broken(patient.read(&mut buffer).unwrap_err()).code, cofferdam_types::Code::Cancelled);
    }
}
