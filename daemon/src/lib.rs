//! The daemon: configuration, the placement of the actors, the sockets, and the RPC servers.
//!
//! A program can embed it ([`Daemon::start`]); `cofferd` is a small main around it. It owns no state of its own: every
//! fact lies with one of the actors, and what a client sees of them lies in [`server`].

pub mod access;
mod check;
mod claim;
pub mod config;
mod directories;
mod full;
mod placement;
mod quiet;
mod rebuild;
mod scrub;
mod server;
mod services;

use std::{
    fs::{DirBuilder, File},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::Path,
    sync::{Arc, atomic::AtomicU32},
};

use cofferdam_audit::Audit;
use cofferdam_content::Content;
use cofferdam_diff::{Budget, Diff, Room};
use cofferdam_events::Events;
use cofferdam_gc::Gc;
use cofferdam_grants::Grants;
use cofferdam_images::Images;
use cofferdam_kernel::{Kernel, Pool};
use cofferdam_metadata::Metadata;
use cofferdam_networks::Networks;
use cofferdam_snapshots::Snapshots;
use cofferdam_tasks::{Children, Deps, Filters, Layout, Makers, Program, Tasks, Users};
use cofferdam_transfer::{Bounds, Routes, Transfer};
use cofferdam_types::{Error, Result, Timestamp};

pub use rebuild::rebuild;

use crate::{
    config::{Config, SOCKET},
    full::Full,
    placement::TABLE,
    server::{Admission, Exports, Listener, Rooms},
    services::{Facts, Services},
};

/// A daemon that serves. Must be started on an actix system.
pub struct Daemon {
    kernel: Kernel,
    transfer: Transfer,
    snapshots: Snapshots,
    listener: Listener,
    quiet: tokio::task::JoinHandle<()>,
    scrub: Option<tokio::task::JoinHandle<()>>,
    /// Falls last.
    _claim: File,
}

impl Daemon {
    /// Starts the actors in their order and binds the socket. Clients are served from then on, also while tasks are
    /// still being looked for.
    pub fn start(config: &Config) -> Result<Daemon> {
        cofferdam_kernel::install_panic_hook();
        let uid = nix::unistd::geteuid();
        if !uid.is_root() {
            let why = format!(
                "runs as user {uid}, and must be root: it makes mounts, cgroups and namespaces; start it as root or by sudo"
            );
            return Err(Error::failed_precondition("daemon", "", why));
        }
        // Nothing that the daemon makes is for anybody else; sockets get their modes explicitly (F1).
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        if same(&config.root, &config.state) {
            let why = "is named for the root and for the state: what must last needs another directory than what ends with a \
                       reboot";
            return Err(Error::invalid("directory", config.state.display(), why));
        }
        let root = directories::root(&config.root)?;
        let state = directories::state(&config.state, &config.root)?;
        let claim = claim::claim(&config.state)?;
        if !config.shim.is_file() {
            let why = "the shim program is not there: build it, or name it with --shim";
            return Err(Error::not_found("shim", config.shim.display(), why));
        }
        config.limits.clone().choose();
        let kernel = Kernel::new()?;
        let metadata = Metadata::start(&kernel, TABLE.metadata, &config.root.join(directories::TABLES))?;
        let grants = Grants::start(&kernel, TABLE.grants, metadata.clone())?;
        root.keep();
        state.keep();
        let audit = Audit::start(
            &kernel,
            TABLE.audit,
            metadata.clone(),
            dir(&config.root.join("audit"))?,
            cofferdam_audit::RETENTION,
        )?;
        let events = Events::start(
            &kernel,
            TABLE.events,
            metadata.clone(),
            dir(&config.root.join("events"))?,
            cofferdam_events::RETENTION,
        )?;
        let content = Content::start(&kernel, TABLE.content, metadata.clone(), dir(&config.root.join("content"))?)?;
        let snapshots = Snapshots::start(&kernel, TABLE.snapshots, metadata.clone(), &config.root, config.snapshots)?;
        let budget = Budget::new(config.pulls.memory);
        let inflating = Room { budget: budget.clone(), most_window: config.pulls.zstd_window };
        let diff = Diff::start(&kernel, TABLE.diff, content.clone(), inflating);
        let images =
            Images::start(&kernel, TABLE.images, metadata.clone(), content.clone(), snapshots.clone(), diff.clone());
        let networks = cofferdam_networks::Config {
            configs: config.networks.configs.clone(),
            plugins: config.networks.plugins.clone(),
            pins: config.state.join("netns"),
        };
        let networks = Networks::start(&kernel, TABLE.networks, metadata.clone(), networks)?;
        let deps = Deps {
            metadata: metadata.clone(),
            snapshots: snapshots.clone(),
            images: images.clone(),
            networks: networks.clone(),
            layout: Layout::open(&config.root, &config.state, &metadata.instance()?)?,
            shim: Program::open(&config.shim)?,
            criu: config.criu.clone(),
            journal: config.journal.clone(),
            drain: config.drain,
            apparmor: cofferdam_oci::apparmor::Loader::detect().map(Arc::new),
            filters: Filters::default(),
            users: Users::default(),
            children: Children::default(),
            makers: Makers::default(),
            grants: grants.clone(),
            runtimes: config.runtimes.clone(),
        };
        let tasks = Tasks::start(&kernel, TABLE.tasks, deps)?;
        // Whoever reads the log learns of it before somebody is refused.
        if let Err(error) = config.trust.check() {
            tracing::error!(%error, "the policy is bad");
        }
        let transfer = Transfer::start(
            &kernel,
            TABLE.transfer,
            metadata.clone(),
            content.clone(),
            images.clone(),
            Bounds { settings: config.pulls.clone(), budget, trust: config.trust.clone() },
        );
        let gc = Gc::start(
            &kernel,
            TABLE.gc,
            metadata.clone(),
            content.clone(),
            snapshots.clone(),
            opened(&config.root)?,
            config.gc.clone(),
        );
        let connections = Arc::new(AtomicU32::new(0));
        let facts = Facts {
            started: Timestamp::now(),
            root: config.root.clone(),
            state: config.state.clone(),
            cgroups: cgroups()?,
            connections: connections.clone(),
        };
        let admission = Admission::new(room(config.connections), uid.as_raw(), connections);
        let rooms = Rooms::start();
        let pool = Pool::new("rpc", 4, 256);
        let services = Services {
            kernel: kernel.clone(),
            metadata,
            grants,
            access: Arc::new(config.access.clone()),
            audit,
            exports: Exports::new(rooms.handles(), admission.clone()),
            content,
            events,
            snapshots: snapshots.clone(),
            diff,
            images,
            networks,
            tasks,
            transfer: transfer.clone(),
            routes: Routes::new(Some(config.hosts.clone()), config.proxies.clone()),
            full: Full::new(&config.root, &config.state, gc.clone(), pool.clone()),
            gc,
            pool,
            quiet: Arc::default(),
            facts: Arc::new(facts),
        };
        let (pool, quiet) = (services.pool.clone(), services.quiet.clone());
        let scrubs = !config.scrub.is_zero() && services.metadata.writable().is_ok();
        let scrub = scrubs.then(|| tokio::task::spawn_local(scrub::watch(services.clone(), config.scrub)));
        // Containers that have one wait for it as they wait for nothing else.
        services.exports.open_all(&services)?;
        let listener = Listener::start(&config.state, SOCKET, rooms, services, admission, config.group)?;
        let quiet = tokio::task::spawn_local(async move { quiet.watch(async || quiet::trim(&pool).await).await });
        Ok(Daemon { kernel, transfer, snapshots, listener, quiet, scrub, _claim: claim })
    }

    /// Waits until every actor is up.
    pub async fn ready(&self) -> Result<()> {
        self.kernel.ready().await
    }

    /// Ends in order: no more clients, then the actors in reverse. Containers go on.
    pub async fn stop(self) {
        self.listener.stop();
        self.quiet.abort();
        self.scrub.iter().for_each(tokio::task::JoinHandle::abort);
        // A crash of their actor ends no job; the end of the daemon does.
        self.transfer.cancel_all();
        self.kernel.stop().await;
        self.snapshots.close();
    }
}

/// How many connections there can be: half of the descriptors are for all else that a daemon opens.
fn room(wanted: u32) -> u32 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    // The soft limit is for programs that use select(2).
    let most = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    let room = u32::try_from(most / 2).unwrap_or(u32::MAX);
    if room < wanted {
        tracing::warn!("{room} connections at most and not {wanted}: the limit of descriptors is {most}");
    }
    wanted.min(room)
}

/// What kind of cgroup hierarchies this host has.
fn cgroups() -> Result<&'static str> {
    let layout = cofferdam_sys::cgroup::Layout::detect()?;
    Ok(match (layout.has_v1(), layout.hierarchies.iter().any(|h| h.unified)) {
        (true, true) => "hybrid",
        (true, false) => "v1",
        (false, _) => "v2",
    })
}

/// Whether both are one directory, by whatever names.
fn same(a: &Path, b: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    a == b || file(a).is_some_and(|one| file(b) == Some(one))
}

/// One of the root's own.
fn dir(path: &Path) -> Result<OwnedFd> {
    let failed = |e: std::io::Error| Error::io("directory", path.display(), "can't be made", &e);
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let dir = opened(path)?;
    cofferdam_sys::fd::make_private(&dir).map_err(failed)?;
    Ok(dir)
}

fn opened(path: &Path) -> Result<OwnedFd> {
    let opened = File::open(path).map_err(|e| Error::io("directory", path.display(), "can't be opened", &e))?;
    Ok(opened.into())
}
