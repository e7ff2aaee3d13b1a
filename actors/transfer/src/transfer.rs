//! The handle that the layer above holds, and what all jobs share.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cofferdam_archive::Budget;
use cofferdam_content::Content;
use cofferdam_images::{Images, Own};
use cofferdam_kernel::{Fair, Kernel, Placement, Pool, Slot, SlotConfig};
use cofferdam_metadata::{Metadata, records::namespaces};
use cofferdam_tasks::Tasks;
use cofferdam_types::{Authority, Descriptor, Digest, Error, Id, Name, Namespace, Platform, Result};

use crate::{
    ArtifactOptions, Cancel, CheckpointOptions, Chooser, CommitOptions, ConvertOptions, Endpoint, ExportOptions, Job,
    PushOptions, Reference, RootfsConfig, Settings, Source, Trust, UnpackOptions,
    actor::TransferActor,
    artifact, checkpoint, commit, convert,
    documents::Documents,
    export,
    flights::{Flights, Key},
    import,
    job::Jobs,
    messages::Begin,
    pull, push,
    rate::Rate,
    registry::{Lists, Repository},
    trust::Kept,
    unpack,
};

/// Jobs at once, and how many more may wait. Some may wait for registries that don't answer.
const JOBS: usize = 8;
const QUEUE: usize = 64;
/// What asks nobody is soon done: so many at once.
const LOCAL: usize = 2;
/// Images that are here and are being unpacked: each keeps several threads of others busy.
const UNPACKS: usize = 2;

/// What to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The name, in full (see [`crate::normalize`]).
    pub reference: Reference,
    /// The platform to take from an index, and to unpack.
    pub platform: Platform,
    /// These are fetched too.
    pub platforms: Vec<Platform>,
    /// All are fetched; the one for `platform`, if there is one, is unpacked.
    pub all_platforms: bool,
    /// How to speak to the registry.
    pub endpoint: Endpoint,
    /// The snapshot driver to unpack with; `None` only fetches.
    pub driver: Option<String>,
    /// Bytes in a second; 0: no limit but that of all pulls.
    pub rate: u64,
    /// The largest zstd window of a layer; 0: 32 MiB.
    pub zstd_window: u64,
    /// Asked about everything that is fetched.
    pub chooser: Option<Chooser>,
    /// Manifests of docker's first schema are taken too.
    pub schema1: bool,
}

/// How to import.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// What to call the image; `None`: as the archive says. An archive of several images takes their tags from it.
    pub name: Option<String>,
    /// The platform to take from an index.
    pub platform: Platform,
    /// The snapshot driver to unpack with; `None` only stores.
    pub driver: Option<String>,
}

/// How a root filesystem becomes an image.
#[derive(Clone, Debug)]
pub struct RootfsOptions {
    /// What to call the image.
    pub name: Name,
    /// What it is for.
    pub platform: Platform,
    /// What it runs.
    pub config: RootfsConfig,
    /// The snapshot driver to unpack with; `None` only stores.
    pub driver: Option<String>,
}

/// What the jobs share.
pub(crate) struct Core {
    pub meta: Metadata,
    pub content: Content,
    pub images: Images,
    pub flights: Flights<Key>,
    pub documents: Documents,
    /// Lists of what belongs to an image, by repository and image: a registry that doesn't keep them has them written whole.
    pub lists: Lists,
    pub jobs: Jobs,
    pub pool: Fair,
    /// For jobs that ask no registry, and are not soon done.
    pub unpacks: Fair,
    /// For the operator's questions to registries, which may not answer: they don't wait for jobs.
    pub asks: Pool,
    /// For what asks nobody: it waits for no registry.
    pub local: Pool,
    pub settings: Settings,
    /// Of all pulls together.
    pub rate: Rate,
    /// Of all layers on their way; shared with who inflates them.
    pub budget: Budget,
    /// The daemon is about to end: what jobs have so far is left to the next.
    pub closing: AtomicBool,
    pub trust: Trust,
}

impl Core {
    /// Whether a job may leave out a blob that the namespace has. Through a grant that chooses images it is as between namespaces:
    /// what did not come with those is brought, and so shown to be had.
    pub fn is_had(&self, auth: &Authority, ns: &Namespace, digest: &Digest) -> Result<bool> {
        let own = Own::of(&auth.ceiling.images);
        Ok(own.is_all() || own.find(&self.content, ns, digest)?.is_some())
    }
}

/// What all transfers of a daemon are held to.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// What pulls are held to.
    pub settings: Settings,
    /// What layers on their way hold; shared with who inflates them.
    pub budget: Budget,
    /// Whose images come in.
    pub trust: Trust,
}

/// Jobs that move images. Cheap to clone.
#[derive(Clone)]
pub struct Transfer {
    core: Arc<Core>,
    slot: Slot<TransferActor>,
}

impl Transfer {
    /// Hosts the actor.
    pub fn start(
        kernel: &Kernel,
        placement: Placement,
        meta: Metadata,
        content: Content,
        images: Images,
        bounds: Bounds,
    ) -> Transfer {
        let Bounds { settings, budget, trust } = bounds;
        let core = Arc::new(Core {
            meta,
            content,
            images,
            flights: Flights::default(),
            documents: Documents::default(),
            lists: Lists::default(),
            jobs: Jobs::default(),
            pool: Fair::new("transfer", JOBS, QUEUE),
            unpacks: Fair::new("unpack", UNPACKS, QUEUE),
            asks: Pool::new("transfer-ask", JOBS, QUEUE),
            local: Pool::new("transfer-local", LOCAL, QUEUE),
            rate: Rate::new(settings.rate),
            settings,
            budget,
            closing: AtomicBool::new(false),
            trust,
        });
        let slot = kernel.spawn(SlotConfig::new("transfer", placement), {
            let core = core.clone();
            move || TransferActor(core.clone())
        });
        Transfer { core, slot }
    }

    /// Begins to pull an image from a registry.
    pub async fn pull(&self, auth: &Authority, ns: &Namespace, options: PullOptions) -> Result<Job> {
        options.reference.target()?;
        let most = self.core.settings.zstd_window;
        if options.zstd_window > most {
            let why = format!(
                "asks for a zstd window of more than the {most} bytes that this daemon allows (--pull zstd_window=)"
            );
            return Err(Error::invalid("pull", &options.reference, why));
        }
        let subject = options.reference.to_string();
        let by = auth.clone();
        self.begin(auth, "pull", subject, ns, move |core, job| pull::pull(core, job, &by, &options)).await
    }

    /// Begins to import the images of an archive.
    pub async fn import(
        &self,
        auth: &Authority,
        ns: &Namespace,
        source: Source,
        options: ImportOptions,
    ) -> Result<Job> {
        let subject = options.name.clone().unwrap_or_else(|| "archive".into());
        let by = auth.clone();
        self.begin(auth, "import", subject, ns, move |core, job| import::import(core, job, &by, source, &options)).await
    }

    /// Begins to make an image of a root filesystem: a directory, or a tar in any compression.
    pub async fn rootfs(
        &self,
        auth: &Authority,
        ns: &Namespace,
        source: Source,
        options: RootfsOptions,
    ) -> Result<Job> {
        let subject = options.name.to_string();
        let by = auth.clone();
        self.begin(auth, "import", subject, ns, move |core, job| import::rootfs(core, job, &by, source, &options)).await
    }

    /// Begins to make an image of a running container.
    pub async fn checkpoint(
        &self,
        auth: &Authority,
        ns: &Namespace,
        tasks: &Tasks,
        id: &Id,
        options: CheckpointOptions,
    ) -> Result<Job> {
        let (by, tasks, id) = (auth.clone(), tasks.clone(), id.clone());
        let subject = id.to_string();
        let work = move |core: &Core, job: &Job| checkpoint::checkpoint(core, job, &by, &tasks, &id, &options);
        self.begin(auth, "checkpoint", subject, ns, work).await
    }

    /// Begins to make an image of what was changed in a container.
    pub async fn commit(
        &self,
        auth: &Authority,
        ns: &Namespace,
        tasks: &Tasks,
        id: &Id,
        options: CommitOptions,
    ) -> Result<Job> {
        let (by, tasks, id) = (auth.clone(), tasks.clone(), id.clone());
        let subject = id.to_string();
        let work = move |core: &Core, job: &Job| commit::commit(core, job, &by, &tasks, &id, &options);
        self.begin(auth, "commit", subject, ns, work).await
    }

    /// Begins to write images into a descriptor, as an OCI layout in a tar archive that `docker load` reads too.
    pub async fn export(&self, auth: &Authority, ns: &Namespace, options: ExportOptions, to: OwnedFd) -> Result<Job> {
        let subject = match &*options.names {
            [name] => name.to_string(),
            names => format!("{} images", names.len()),
        };
        let by = auth.clone();
        self.begin(auth, "export", subject, ns, move |core, job| export::export(core, job, &by, &options, to)).await
    }

    /// Begins to push an image to a registry.
    pub async fn push(&self, auth: &Authority, ns: &Namespace, options: PushOptions) -> Result<Job> {
        options.reference.target()?;
        let (by, subject) = (auth.clone(), options.reference.to_string());
        self.begin(auth, "push", subject, ns, move |core, job| push::push(core, job, &by, &options)).await
    }

    /// Begins to make another image of one, that holds the same files.
    pub async fn convert(&self, auth: &Authority, ns: &Namespace, options: ConvertOptions) -> Result<Job> {
        let (by, subject) = (auth.clone(), options.source.to_string());
        self.begin(auth, "convert", subject, ns, move |core, job| convert::convert(core, job, &by, &options)).await
    }

    /// Begins to make snapshots of an image that is here.
    pub async fn unpack(&self, auth: &Authority, ns: &Namespace, options: UnpackOptions) -> Result<Job> {
        let (by, subject) = (auth.clone(), options.name.to_string());
        let work = move |core: &Core, job: &Job| unpack::unpack(core, job, &by, &options);
        self.begin_in(|core| &core.unpacks, auth, "unpack", subject, ns, work).await
    }

    /// Makes a manifest of blobs that are here, and names it.
    pub async fn artifact(&self, auth: &Authority, ns: &Namespace, options: ArtifactOptions) -> Result<Descriptor> {
        let (core, auth, ns) = (self.core.clone(), auth.clone(), ns.clone());
        self.core.local.run(move || artifact::create(&core, &auth, &ns, &options)).await
    }

    /// What a registry has that names a manifest as its subject, of one artifact type; empty: of all. Dropped, it stops.
    pub async fn referrers(
        &self,
        auth: &Authority,
        reference: Reference,
        endpoint: Endpoint,
        artifact_type: String,
    ) -> Result<Vec<Descriptor>> {
        let target = reference.target()?;
        let over = Over(Cancel::new());
        let word = over.0.clone();
        let ask = move || {
            let repository = Repository::new(&reference, &endpoint, &word)?;
            let subject = repository.resolve(&target)?.descriptor.digest;
            repository.referrers(&subject, &artifact_type)
        };
        match auth.grants.first() {
            None => self.core.asks.run(ask).await,
            // Of a registry of the caller's choice, that may not answer.
            grant => self.core.pool.run(grant.copied(), ask).await,
        }
    }

    /// Whether what is here already may have a name, by what was kept beside it.
    pub async fn may_name(&self, ns: &Namespace, name: &Name, target: &Digest) -> Result<()> {
        let (core, ns, name, target) = (self.core.clone(), ns.clone(), name.clone(), target.clone());
        let ask = move || core.trust.admit(&ns, &name, &target, &Kept { core: &core, ns: &ns }).map(drop);
        self.core.local.run(ask).await
    }

    /// The operator's policy.
    pub fn trust(&self) -> &Trust {
        &self.core.trust
    }

    /// A job of the namespace.
    pub fn job(&self, ns: &Namespace, id: u64) -> Result<Job> {
        self.core.jobs.find(ns, id)
    }

    /// A page of the namespace's jobs, running or lately ended, from the one after `after` on.
    pub fn jobs(&self, ns: &Namespace, after: u64, max: usize) -> Vec<Job> {
        self.core.jobs.list(ns, after, max)
    }

    /// Ends every job, for the daemon's own end: the next goes on with what was fetched. (A crash of the actor ends none.)
    pub fn cancel_all(&self) {
        self.core.closing.store(true, Ordering::Release);
        self.core.jobs.cancel_all();
    }

    async fn begin(
        &self,
        auth: &Authority,
        kind: &'static str,
        subject: String,
        ns: &Namespace,
        work: impl FnOnce(&Core, &Job) -> Result<Vec<crate::Arrived>> + Send + 'static,
    ) -> Result<Job> {
        self.begin_in(|core| &core.pool, auth, kind, subject, ns, work).await
    }

    async fn begin_in(
        &self,
        pool: fn(&Core) -> &Fair,
        auth: &Authority,
        kind: &'static str,
        subject: String,
        ns: &Namespace,
        work: impl FnOnce(&Core, &Job) -> Result<Vec<crate::Arrived>> + Send + 'static,
    ) -> Result<Job> {
        // Before anything is fetched for it.
        namespaces::require(&self.core.meta.read()?, ns)?;
        let whose = auth.grants.first().copied();
        self.slot.call(Begin { pool, kind, subject, namespace: ns.clone(), whose, work: Box::new(work) }).await
    }
}

/// Ends what it is the word of when nobody waits for it any more.
struct Over(Cancel);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
