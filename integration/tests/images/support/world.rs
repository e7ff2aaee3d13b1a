//! A daemon, what is asked of it about images, and everything that it holds.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::Write,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, OnceLock},
};

use cofferdam_client::{
    Client, Container, ContainerRequest, ImportOptions, Job, Namespace, Output, PullOptions, RunRequest, Sink,
    Stdio as Streams, channel,
};
pub use cofferdam_integration::Registry;
use cofferdam_integration::{Daemon, Leftovers, images, until, until_async};
use cofferdam_types::{Code, Error, Result};
use serde_json::Value;

use super::{
    craft::{Files, pack},
    tree::{Tree, tree},
};

/// Nothing is collected by itself: what something that failed has left behind would be gone before anybody looks.
pub const STILL: &[&str] =
    &["--gc", "startup_delay=0,deletion_threshold=1000000000,mutation_threshold=0,period=0,disk_pressure=0"];

/// What a namespace shows and what the host has of it.
#[derive(Debug, Clone)]
pub struct Holdings {
    listed: BTreeSet<String>,
    host: Leftovers,
}

impl Holdings {
    /// What is here and was not there before.
    pub fn beyond(&self, before: &Holdings) -> Vec<String> {
        let mut found: Vec<_> = self.listed.difference(&before.listed).cloned().collect();
        found.extend(self.host.beyond(&before.host));
        found
    }
}

pub struct World {
    pub daemon: Daemon,
    pub client: Client,
    pub ns: Namespace,
}

impl World {
    pub async fn start() -> World {
        World::with(Daemon::with_flags(STILL)).await
    }

    /// With more flags for the daemon.
    pub async fn flags(more: &[&str]) -> World {
        let more = more.iter().map(|flag| &*Box::leak((*flag).to_owned().into_boxed_str()));
        World::with(Daemon::with_flags(STILL.iter().copied().chain(more).collect::<Vec<_>>().leak())).await
    }

    pub async fn with(daemon: Daemon) -> World {
        let client = daemon.client().await;
        let ns = client.namespace(daemon.namespace());
        World { daemon, client, ns }
    }

    /// A new connection, after the daemon was started again.
    pub async fn connect(&mut self) {
        self.client = self.daemon.client().await;
        self.ns = self.client.namespace(self.daemon.namespace());
    }

    /// Begins an import.
    pub fn import(&self, name: &str, source: OwnedFd) -> Job {
        self.import_with(&ImportOptions { name: name.into(), ..ImportOptions::default() }, source)
    }

    pub fn import_with(&self, options: &ImportOptions, source: OwnedFd) -> Job {
        self.ns.images().import_fd(options, source)
    }

    /// Imports through the twin for clients without descriptors.
    pub async fn import_stream(&self, name: &str, bytes: &[u8]) -> Result<Vec<String>> {
        let options = ImportOptions { name: name.into(), ..ImportOptions::default() };
        let (job, sink) = self.ns.images().import(&options);
        let pour = async {
            sink.write(bytes).await?;
            sink.end().await
        };
        let (poured, done) = tokio::join!(pour, job.wait());
        // A job that failed takes no more bytes: its own error says why.
        if done.is_ok() { poured.and(done) } else { done }
    }

    pub fn pull(&self, reference: &str) -> Job {
        self.pull_with(PullOptions { reference: reference.into(), ..PullOptions::default() })
    }

    pub fn pull_with(&self, options: PullOptions) -> Job {
        self.ns.images().pull(&options)
    }

    /// Everything, named so that what is new can be told.
    pub async fn holdings(&self) -> Holdings {
        let mut listed = BTreeSet::new();
        let none: [&str; 0] = [];
        let images = self.ns.images().list(&none).all().await.unwrap();
        listed.extend(images.into_iter().map(|image| format!("image {}", image.name)));
        let blobs = self.ns.content().list(&none).all().await.unwrap();
        listed.extend(blobs.into_iter().map(|blob| format!("blob {}", blob.digest)));
        let ingests = self.ns.content().ingests::<&str>(&[]).all().await.unwrap();
        listed.extend(ingests.into_iter().map(|ingest| format!("ingest {}", ingest.reference)));
        for driver in ["overlay", "native"] {
            let snapshots = self.ns.snapshots(driver).list(&none).all().await.unwrap();
            listed.extend(snapshots.into_iter().map(|snapshot| format!("{driver} snapshot {}", snapshot.key)));
        }
        let containers = self.ns.containers().list(&none).all().await.unwrap();
        listed.extend(containers.into_iter().map(|container| format!("container {}", container.id)));
        let jobs = self.ns.jobs().list().all().await.unwrap();
        listed.extend(jobs.into_iter().filter(|job| job.state == "running").map(|job| format!("job {}", job.id)));
        listed.extend(files(&self.daemon.root().join("content/blobs")).into_iter().map(|f| format!("file {f}")));
        Holdings { listed, host: self.daemon.leftovers() }
    }

    /// Waits until there is nothing that was not there before, and nothing is missing.
    pub async fn settles(&self, before: &Holdings) {
        until_async("only what was there before is there", || async {
            let now = self.holdings().await;
            let same = now.listed == before.listed && now.host.beyond(&before.host).is_empty();
            if !same {
                *LAST.lock().unwrap() = now.listed.symmetric_difference(&before.listed).cloned().collect();
                LAST.lock().unwrap().extend(now.host.beyond(&before.host));
            }
            same.then_some(())
        })
        .await;
        LAST.lock().unwrap().clear();
    }

    /// The error of a job that must fail, which names its code, says `word`, and leaves nothing behind.
    pub async fn refused(&self, what: &str, before: &Holdings, job: Job, code: Code, word: &str) -> Error {
        let error = match job.wait().await {
            Ok(names) => panic!("{what}: made {names:?}"),
            Err(error) => error,
        };
        assert_eq!(error.code, code, "{what}: {error}");
        assert!(error.to_string().contains(word), "{what}: {error} should say {word:?}");
        assert!(!error.message.is_empty(), "{what}: {error:?} says nothing");
        let info = job.info().await.unwrap();
        assert_eq!(info.state, if code == Code::Cancelled { "cancelled" } else { "failed" }, "{what}");
        self.settles(before).await;
        error
    }

    /// The root file system that a container of the image gets, without what is mounted into it.
    pub async fn container_tree(&self, image: &str, driver: &str) -> Tree {
        let images = self.ns.images();
        let mut request = ContainerRequest { driver: driver.into(), ..ContainerRequest::default() };
        // Never started: whatever the image has is enough.
        request.options.entrypoint = Some(Vec::new());
        request.options.args = vec!["/bin/true".into()];
        // A working directory that is missing would be made.
        request.options.workdir = "/".into();
        let container = self.ns.containers().create(&images.get(image), &request);
        let task = container.create_task(Streams::default(), false);
        let pid = match task.state().await {
            Ok(state) => state.pid,
            Err(error) => panic!("{image}: {error}"),
        };
        let root = root_of(pid);
        let found = tree(Path::new(&format!("/proc/self/fd/{}", root.as_raw_fd())));
        drop(root);
        container.remove(true).await.unwrap();
        found
    }

    /// A container with nothing in it yet.
    pub fn container(&self, image: &str, id: &str, args: &[&str]) -> Container {
        let mut request = ContainerRequest { id: id.into(), ..ContainerRequest::default() };
        request.options.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        self.ns.containers().create(&self.ns.images().get(image), &request)
    }

    /// Runs a command in an image to its end: its status and what it wrote.
    pub async fn run(&self, image: &str, args: &[&str]) -> Result<(u32, String)> {
        self.run_with(image, args, |_| {}).await
    }

    pub async fn run_with(
        &self,
        image: &str,
        args: &[&str],
        change: impl FnOnce(&mut RunRequest),
    ) -> Result<(u32, String)> {
        let mut request = RunRequest::new(self.daemon.namespace(), image);
        request.container.options.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        request.container.remove_on_exit = true;
        let (stdout, output) = collected();
        let (stderr, errors) = collected();
        request.stdio.stdout = Output::Stream(stdout);
        request.stdio.stderr = Output::Stream(stderr);
        change(&mut request);
        let exit = self.client.run(request)?.wait().await?;
        Ok((exit.status, output.await.unwrap() + &errors.await.unwrap()))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what differed last: {:#?}", LAST.lock().unwrap());
        }
    }
}

/// What [`World::settles`] still saw: for the one who reads why it failed.
static LAST: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A way for text to come, and all that comes.
fn collected() -> (Sink, tokio::task::JoinHandle<String>) {
    let (sink, mut chunks) = channel();
    let read = async move {
        let mut text = Vec::new();
        while let Some(chunk) = chunks.next().await {
            text.extend(chunk);
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    (sink, tokio::task::spawn_local(read))
}

/// A container's root as its own mount namespace has it, with nothing on it.
fn root_of(pid: u32) -> OwnedFd {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt")).unwrap();
    let enter = move || {
        // A thread that shares its working directory with others may not change its mount namespace.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        cofferdam_sys::mount::clone_tree(File::open("/").unwrap(), false).unwrap()
    };
    std::thread::spawn(enter).join().unwrap()
}

fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { files(&path) } else { vec![path.display().to_string()] }
        })
        .collect()
}

/// An entry of the list of test images.
#[derive(Clone, Debug)]
pub struct Listed {
    pub name: String,
    pub kind: String,
    pub path: PathBuf,
    pub layers: usize,
}

/// All test images.
pub fn listed() -> Vec<Listed> {
    let text = std::fs::read(images().join("manifest.json")).unwrap();
    let list: Vec<Value> = serde_json::from_slice(&text).unwrap();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    list.iter()
        .map(|entry| Listed {
            name: text(entry, "name"),
            kind: text(entry, "kind"),
            path: images().join(text(entry, "path")),
            layers: usize::try_from(entry["layers"].as_u64().unwrap()).unwrap(),
        })
        .collect()
}

pub fn directory(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

pub fn opened(path: &Path) -> OwnedFd {
    File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).into()
}

/// A file with these bytes that has no name any more.
pub fn file_of(bytes: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.into()
}

/// A pipe with these bytes, written by a thread that does not mind if nobody reads to the end.
pub fn pipe_of(bytes: Vec<u8>) -> OwnedFd {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    std::thread::spawn(move || drop(File::from(write).write_all(&bytes)));
    read
}

/// The files of an image as the tar of their layout, in a file.
pub fn packed(files: &Files) -> OwnedFd {
    file_of(&pack(files))
}

/// What umoci unpacks of a test image, which it is asked for once.
pub fn umoci(image: &str) -> Arc<Tree> {
    static KNOWN: OnceLock<Mutex<HashMap<String, Arc<Tree>>>> = OnceLock::new();
    let mut known = KNOWN.get_or_init(Mutex::default).lock().unwrap();
    let unpack = || {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("bundle");
        let layout = format!("{}:latest", images().join("oci").join(image).display());
        tool("umoci", &["unpack", "--image", &layout, bundle.to_str().unwrap()]);
        Arc::new(tree(&bundle.join("rootfs")))
    };
    known.entry(image.to_owned()).or_insert_with(unpack).clone()
}

/// Runs a program of the host, which must succeed.
pub fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}: run deploy/setup"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Waits for a line on loopback.
pub fn connect(port: u16) -> std::net::TcpStream {
    until("somebody listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok())
}
