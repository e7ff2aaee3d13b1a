//! Where a test works: a namespace of its own, with one image, on the daemon that all share.

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use cofferdam_client::{
    Client, Container, ContainerRequest, ImportFormat, ImportOptions, Namespace, ProcessOptions, Stdio, Task,
};
use cofferdam_integration::{Arrivals, BUSYBOX, DEADLINE, Daemon, Registry, output};
use cofferdam_types::{Code, Result};
use futures::{FutureExt as _, future::LocalBoxFuture};
use tempfile::TempDir;

/// A test of the shared daemon.
pub type Test = for<'a> fn(&'a Place) -> LocalBoxFuture<'a, ()>;

/// Users that the image has besides its own: one to be named, and one whose group has another number.
const USERS: &str = "squid:x:31:31:squid:/var/cache/squid:/bin/false\nadm:x:3:4:adm:/var/adm:/bin/false\n";

/// The snapshot drivers that every daemon has.
pub const DRIVERS: [&str; 2] = ["overlay", "native"];

/// What all tests share: each thing is made for the first one that asks.
#[derive(Default)]
pub struct Suite {
    running: Option<PathBuf>,
    criu: bool,
    daemon: OnceLock<Daemon>,
    root: OnceLock<TempDir>,
    registry: OnceLock<Registry>,
}

impl Suite {
    /// Of the daemon that listens at this socket, or of one that is started for it, with criu or without.
    pub fn new(running: Option<PathBuf>, criu: bool) -> Suite {
        Suite { running, criu, ..Suite::default() }
    }

    fn socket(&self) -> PathBuf {
        let start = || match self.criu {
            true => Daemon::with_flags(Box::leak(Box::new(["--criu", cofferdam_integration::criu()]))),
            false => Daemon::start(),
        };
        self.running.clone().unwrap_or_else(|| self.daemon.get_or_init(start).socket())
    }

    /// A root file system.
    fn root(&self) -> PathBuf {
        let make = || {
            let dir = tempfile::Builder::new().prefix("acceptance-").tempdir().expect("a directory");
            let (from, to) = (cofferdam_integration::images().join("rootfs/busybox"), dir.path().join("root"));
            let copied = Command::new("cp").arg("-a").args([&from, &to]).status().expect("cp");
            assert!(copied.success(), "{} is copied", from.display());
            let file = to.join("etc/passwd");
            let users = std::fs::read_to_string(&file).expect("its users") + USERS;
            std::fs::write(&file, users).expect("more users");
            dir
        };
        self.root.get_or_init(make).path().join("root")
    }

    /// Runs a test. Whatever comes of it, nothing of it stays.
    pub async fn run(self: Arc<Suite>, test: Test) {
        let place = Place::enter(self).await;
        let limited = async { tokio::time::timeout(DEADLINE * 3, test(&place)).await.expect("the test hangs") };
        let done = AssertUnwindSafe(limited).catch_unwind().await;
        let left = place.leave().await;
        done.unwrap_or_else(|panic| resume_unwind(panic));
        left.expect("what the test made can be removed");
    }
}

/// The collector may have been there before.
fn gone(removed: Result<()>) -> Result<()> {
    removed.or_else(|error| if error.code == Code::NotFound { Ok(()) } else { Err(error) })
}

/// A connection, and a namespace with the image [`BUSYBOX`].
pub struct Place {
    suite: Arc<Suite>,
    name: String,
    pub client: Client,
    pub namespace: Namespace,
}

impl Place {
    async fn enter(suite: Arc<Suite>) -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("acceptance-p{}-n{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let client = Client::connect(suite.socket()).await.expect("a daemon listens");
        client.namespaces().create(&name, &Default::default()).await.expect("a namespace");
        let namespace = client.namespace(&name);
        let options = ImportOptions {
            name: BUSYBOX.into(),
            format: ImportFormat::Rootfs,
            command: vec!["/bin/sh".into()],
            ..ImportOptions::default()
        };
        let root = std::fs::File::open(suite.root()).expect("a root file system");
        namespace.images().import_fd(&options, root.into()).wait().await.expect("an image");
        Place { suite, name, client, namespace }
    }

    /// Empties the namespace and removes it.
    async fn leave(self) -> Result<()> {
        const ALL: [&str; 0] = [];
        let Place { client, namespace, name, .. } = self;
        for container in namespace.containers().list(&ALL).all().await? {
            namespace.containers().get(&container.id).remove(true).await?;
        }
        for image in namespace.images().list(&ALL).all().await? {
            namespace.images().remove(&image.name).await?;
        }
        for driver in DRIVERS {
            let snapshots = namespace.snapshots(driver);
            let mut list = snapshots.list(&ALL).all().await?;
            while !list.is_empty() {
                // Those that no other one lies on.
                let parents: Vec<_> = list.iter().map(|snapshot| snapshot.parent.clone()).collect();
                for snapshot in list.iter().filter(|snapshot| !parents.contains(&snapshot.key)) {
                    gone(snapshots.get(&snapshot.key).remove().await)?;
                }
                list.retain(|snapshot| parents.contains(&snapshot.key));
            }
        }
        for blob in namespace.content().list(&ALL).all().await? {
            gone(namespace.content().remove(&blob.digest.to_string()).await)?;
        }
        for ingest in namespace.content().ingests(&ALL).all().await? {
            gone(namespace.content().abort(&ingest.reference).await)?;
        }
        client.namespaces().remove(&name).await
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.suite.socket()
    }

    /// The root file system of its image, on the host.
    pub fn root(&self) -> PathBuf {
        self.suite.root()
    }

    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace, seen by another client.
    pub async fn elsewhere(&self) -> Namespace {
        Client::connect(self.socket()).await.unwrap().namespace(&self.name)
    }

    /// A registry that has busybox.
    pub fn registry(&self) -> &Registry {
        self.suite.registry.get_or_init(|| Registry::start(&[], &["busybox"]))
    }

    /// The container `box`, which runs a shell script and has no task yet.
    pub fn container(&self, script: &str) -> Container {
        self.with(script, |_| {})
    }

    /// [`Place::container`], and something about it changed.
    pub fn with(&self, script: &str, change: impl FnOnce(&mut ContainerRequest)) -> Container {
        let mut request = ContainerRequest { id: "box".into(), ..ContainerRequest::default() };
        request.options.args = sh(script).args;
        change(&mut request);
        self.namespace.containers().create(&self.namespace.images().get(BUSYBOX), &request)
    }

    /// One that sleeps until it is killed, with its task.
    pub async fn asleep(&self) -> (Container, Task) {
        let container = self.container("exec sleep 1000");
        let task = container.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        (container, task)
    }
}

/// A shell script as a process.
pub fn sh(script: &str) -> ProcessOptions {
    ProcessOptions { args: ["sh", "-c", script].map(String::from).into(), ..ProcessOptions::default() }
}

/// Streams of which what is written arrives.
pub fn heard() -> (Stdio, Arrivals) {
    let (stdout, arrivals) = output();
    (Stdio { stdout, ..Stdio::default() }, arrivals)
}

/// Kills a task, and waits for its end.
pub async fn end(task: &Task) {
    task.kill(9, false).await.unwrap();
    assert_eq!(task.wait().await.unwrap().status, 137);
}

/// Whether a process runs; one that ended and is not yet taken in doesn't.
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // One that exits runs nothing any more. The first of a PID namespace goes on exiting until the others are reaped, by
    // whoever inherits them from a shim that was killed: the host's init, when that comes to it.
    let exits = fields[6].parse::<u32>().unwrap() & PF_EXITING != 0;
    !exits && !matches!(fields[0], "Z" | "X")
}

/// Of the flags in /proc/PID/stat (include/linux/sched.h).
const PF_EXITING: u32 = 4;
