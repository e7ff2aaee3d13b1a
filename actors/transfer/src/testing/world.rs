//! Every actor below, in a directory of its own, and what is left in it.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::OwnedFd,
    path::Path,
    time::Duration,
};

use cofferdam_content::Content;
use cofferdam_diff::Diff;
use cofferdam_images::Images;
use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{
    Metadata,
    records::{
        self,
        grants::{self, Grant},
    },
};
use cofferdam_snapshots::Snapshots;
use cofferdam_types::{Authority, Caveats, Code, Digest, Error, GrantId, Labels, Name, Namespace, Platform, Result};

use crate::{
    Arrived, Bounds, Endpoint, ImportOptions, Job, Limits, PullOptions, Reference, Settings, Source, Transfer, Trust,
};

pub struct World {
    pub kernel: Kernel,
    pub meta: Metadata,
    pub content: Content,
    pub snapshots: Snapshots,
    pub images: Images,
    pub transfer: Transfer,
    pub root: tempfile::TempDir,
}

pub fn run(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

/// What must not wait for what never comes.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    actix_rt::time::timeout(Duration::from_secs(60), what).await.expect("it waits for what never comes")
}

pub fn ns() -> Namespace {
    Namespace::default_namespace()
}

pub fn second() -> Namespace {
    Namespace::new("second").unwrap()
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn auth() -> Authority {
    Authority::system()
}

pub fn amd64() -> Platform {
    Platform::new("linux", "amd64", "")
}

/// All that the disk and the records hold.
#[derive(Debug, PartialEq)]
pub struct Holdings {
    pub images: Vec<String>,
    pub blobs: usize,
    pub ingests: usize,
    pub files: usize,
    pub trees: usize,
    pub layers: usize,
}

impl World {
    pub async fn start() -> World {
        World::with(Trust::none()).await
    }

    pub async fn with(trust: Trust) -> World {
        let root = tempfile::tempdir().unwrap();
        let kernel = Kernel::new().unwrap();
        let place = Placement::Shared("test");
        let meta = Metadata::start(&kernel, place, &root.path().join("meta.redb")).unwrap();
        let dir = OwnedFd::from(File::open(root.path()).unwrap());
        let content = Content::start(&kernel, place, meta.clone(), dir).unwrap();
        let snapshots = Snapshots::start(&kernel, place, meta.clone(), root.path(), Default::default()).unwrap();
        let diff = Diff::start(&kernel, place, content.clone(), Default::default());
        let images = Images::start(&kernel, place, meta.clone(), content.clone(), snapshots.clone(), diff);
        let transfer = Transfer::start(
            &kernel,
            place,
            meta.clone(),
            content.clone(),
            images.clone(),
            Bounds { settings: Settings::default(), budget: Default::default(), trust },
        );
        kernel.ready().await.unwrap();
        let make =
            |tx: &mut cofferdam_metadata::Tx<'_>| records::namespaces::create(tx, &second(), &Labels::new()).map(drop);
        meta.write(&auth(), make).await.unwrap();
        World { kernel, meta, content, snapshots, images, transfer, root }
    }

    /// Who works through a grant that is there.
    pub async fn holder(&self) -> Authority {
        let grant = Grant::new(GrantId(7), ns(), Caveats::none());
        let make = move |tx: &mut cofferdam_metadata::Tx<'_>| grants::create(tx, &[], grant.clone()).map(drop);
        self.meta.write(&auth(), make).await.unwrap();
        Authority { grants: [GrantId(7)].into(), ..auth() }
    }

    pub async fn stop(self) {
        self.transfer.cancel_all();
        self.kernel.stop().await;
    }

    /// Waits until what failed has been cleared away: stages are dropped by threads that end after the job does, and the
    /// trash is emptied behind.
    pub async fn quiet(&self) {
        let busy = || self.trees() > self.snapshots.list(&ns(), "overlay", None, 1000).unwrap().len();
        for _ in 0..1000 {
            if !busy() {
                return;
            }
            actix_rt::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("trees stay behind");
    }

    pub fn holdings(&self) -> Holdings {
        let mut blobs = self.content.list(&ns(), None, 1000).unwrap().len();
        blobs += self.content.list(&second(), None, 1000).unwrap().len();
        Holdings {
            images: self.images.list(&ns(), None, 1000).unwrap().into_iter().map(|i| i.name.into()).collect(),
            blobs,
            ingests: self.content.statuses(&ns(), None, 1000).unwrap().len()
                + entries(&self.root.path().join("ingest")),
            files: files(&self.root.path().join("blobs")),
            trees: self.trees(),
            layers: self.snapshots.list(&ns(), "overlay", None, 1000).unwrap().len(),
        }
    }

    /// Directories of the driver that a record can refer to (it keeps empty ones in stock).
    fn trees(&self) -> usize {
        let driver = self.root.path().join("snapshots/overlay");
        let has_something = |dir: &Path| fs::read_dir(dir.join("fs")).is_ok_and(|mut d| d.next().is_some());
        fs::read_dir(driver).unwrap().filter(|e| has_something(&e.as_ref().unwrap().path())).count()
    }

    pub async fn import(&self, source: Source, name: Option<&str>) -> Result<Vec<Arrived>> {
        self.import_with(source, name, Some("overlay")).await
    }

    pub async fn import_with(&self, source: Source, name: Option<&str>, driver: Option<&str>) -> Result<Vec<Arrived>> {
        let options =
            ImportOptions { name: name.map(str::to_owned), platform: amd64(), driver: driver.map(str::to_owned) };
        self.transfer.import(&auth(), &ns(), source, options).await?.wait().await
    }

    pub async fn begin_pull(&self, ns: &Namespace, reference: &str, endpoint: Endpoint) -> Job {
        let options = pulling(reference, endpoint);
        self.transfer.pull(&auth(), ns, options).await.unwrap()
    }

    pub async fn pull(&self, reference: &str, endpoint: Endpoint) -> Result<Vec<Arrived>> {
        self.begin_pull(&ns(), reference, endpoint).await.wait().await
    }

    /// A file of an unpacked image, through a mount of it.
    pub async fn read(&self, chain: &Digest, path: &str) -> String {
        let key = Name::new("look").unwrap();
        let parent = Name::new(chain.to_string()).unwrap();
        let mounts = self.snapshots.view(&auth(), &ns(), "overlay", &key, Some(&parent), Labels::new()).await.unwrap();
        let mounted = cofferdam_sys::mount::detached(&mounts[0]).unwrap();
        let flags = nix::libc::O_RDONLY;
        let file =
            cofferdam_sys::fd::open(&mounted, Path::new(path), flags, 0, cofferdam_sys::fd::Scope::InRoot).unwrap();
        let text = std::io::read_to_string(File::from(file)).unwrap();
        drop(mounted);
        self.snapshots.remove(&auth(), &ns(), "overlay", &key).await.unwrap();
        text
    }
}

pub fn pulling(reference: &str, endpoint: Endpoint) -> PullOptions {
    PullOptions {
        reference: Reference::parse(reference).unwrap(),
        platform: amd64(),
        platforms: Vec::new(),
        all_platforms: false,
        endpoint,
        driver: Some("overlay".into()),
        rate: 0,
        zstd_window: 0,
        chooser: None,
        schema1: false,
    }
}

pub fn quick() -> Endpoint {
    let limits = Limits { backoff: Duration::from_millis(1), ..Limits::default() };
    Endpoint { limits, ..Endpoint::default() }
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn files(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.map(|e| e.unwrap().path()).map(|p| if p.is_dir() { files(&p) } else { 1 }).sum()
}

pub fn as_file(bytes: &[u8]) -> Source {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Source::Archive(file.into())
}

/// The bytes through a pipe, written by a thread that does not mind if nobody reads to the end.
pub fn as_pipe(bytes: Vec<u8>) -> Source {
    let (read, write) = nix::unistd::pipe().unwrap();
    std::thread::spawn(move || {
        let _ = File::from(write).write_all(&bytes);
    });
    Source::Archive(read)
}

pub fn as_dir(path: &Path) -> Source {
    Source::Directory(cofferdam_sys::fd::open_dir(path).unwrap())
}

pub fn fails(what: Result<impl std::fmt::Debug>, code: Code, word: &str) -> Error {
    let error = what.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert!(error.to_string().contains(word), "{error} should say {word:?}");
    error
}
