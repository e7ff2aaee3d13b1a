//! The run job: a container's first process.

use std::{
    cell::RefCell,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use cofferdam_metadata::{
    Tx,
    records::{
        containers::{self, Container},
        tasks::{self, Task},
    },
};
use cofferdam_oci::RuntimeOptions;
use cofferdam_types::{Authority, Code, Error, Event, Id, Mount, Name, Namespace, Result};
use cofferdam_wire::{
    common_capnp::{input, output, stdio},
    convert::{life, set_labels, set_mounts},
    fdstream::Fds,
};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::{
    coming::{Coming, Entered},
    create::{self, cgroup_of},
    entry::{Entry, Process},
    filters::Brief,
    handle::Deps,
    intent::Intent,
    layout,
    link::{Link, Remote},
    messages::{Input, Output, RunRecord, Stdio},
    network::{self, Joined, Neighbour},
    patience::Patience,
    remove, restore,
    rights::streams_within,
    shim::{self, Connection, from_shim},
    spare::{Home, Spare, Spares},
    sweep,
};

/// How long a shim may take to make a container. Far beyond what any driver takes: it is for one that is stuck.
const MAKE: Duration = Duration::from_secs(60);

/// What a new task needs to know of its container.
pub(crate) struct Prepared {
    pub record: Container,
    pub run: RunRecord,
    pub cgroup: String,
    /// For the native driver without the rules of its seccomp profile, which are in `brief` as a program.
    pub spec: Spec,
    /// What a shim of this daemon's own version is told.
    pub brief: Option<Brief>,
    pub options: RuntimeOptions,
    /// Where the container is not on record yet: what its transaction has come to, and its snapshot's mounts.
    pub early: Option<(Entered, Vec<Mount>)>,
}

impl Prepared {
    fn terminal(&self) -> bool {
        self.spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false)
    }

    fn native(&self) -> bool {
        self.record.runtime == "native"
    }

    /// Whether the container has a namespace of this kind of its own.
    fn has_own(&self, typ: LinuxNamespaceType) -> bool {
        let namespaces = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        namespaces.is_some_and(|all| all.iter().any(|n| n.typ() == typ && n.path().is_none()))
    }

    /// Whether the native driver is to make a network namespace, in the host's user namespace.
    fn own_network(&self) -> bool {
        self.native() && self.has_own(LinuxNamespaceType::Network) && !self.has_own(LinuxNamespaceType::User)
    }

    /// See [`Entry::patience`].
    pub fn patience(&self, restores: bool) -> Patience {
        Patience::of(&self.spec, self.native(), restores, self.record.group.is_some())
    }

    /// See [`Entry::ends_at_once`].
    pub fn ends_at_once(&self) -> bool {
        self.native() && self.has_own(LinuxNamespaceType::Pid)
    }

    /// Where a runc-compatible binary keeps its state.
    fn runc_root<'a>(&'a self, deps: &'a Deps) -> &'a Path {
        self.options.root.as_deref().unwrap_or_else(|| deps.layout.runc())
    }

    /// Whether its cgroup is the one that goes by its name.
    pub fn has_own_cgroup(&self, deps: &Deps, ns: &Namespace) -> bool {
        self.cgroup == deps.layout.cgroup(ns, &self.record.id)
    }

    /// What it keeps of the container.
    pub fn runc(&self, deps: &Deps, ns: &Namespace) -> PathBuf {
        self.runc_root(deps).join(&**ns).join(&*self.record.id)
    }
}

/// Reads a container's record.
pub(crate) fn prepare(deps: &Deps, ns: &Namespace, id: &Id) -> Result<Prepared> {
    let record = containers::get(&deps.metadata.read()?, ns, id)?;
    understand(deps, ns, record, None)
}

/// The same of one that is not there yet.
pub(crate) fn prepare_early(deps: &Deps, ns: &Namespace, coming: &Coming) -> Result<Prepared> {
    understand(deps, ns, coming.record.clone(), Some((coming.entered.clone(), coming.mounts.clone())))
}

fn understand(
    deps: &Deps,
    ns: &Namespace,
    record: Container,
    early: Option<(Entered, Vec<Mount>)>,
) -> Result<Prepared> {
    let id = &record.id;
    let run = serde_json::from_slice(&record.options).unwrap_or_default();
    let brief = if record.runtime == "native" { deps.filters.brief(&record.spec.value) } else { None };
    let spec: Spec = serde_json::from_slice(brief.as_ref().map_or(&record.spec.value, |brief| &brief.spec))
        .map_err(|e| Error::data_loss("container", id, format!("its stored spec can't be read: {e}")))?;
    let cgroup = cgroup_of(&spec).unwrap_or_else(|| deps.layout.cgroup(ns, id));
    let options = RuntimeOptions::read(&record.runtime_options)?;
    Ok(Prepared { record, run, cgroup, spec, brief, options, early })
}

/// Connects the task to its network and makes it. After an error nothing is left of either.
#[allow(clippy::too_many_arguments, reason = "one message, taken apart in one place")]
pub(crate) async fn create_task(
    deps: &Arc<Deps>,
    spares: &Rc<Spares>,
    auth: &Authority,
    ns: &Namespace,
    id: &Id,
    prepared: Prepared,
    neighbour: Option<Neighbour>,
    stdio: Stdio,
    log: bool,
    shared: Option<String>,
    checkpoint: Option<Name>,
) -> Result<(Rc<Entry>, Connection, Task)> {
    streams_within(&stdio, &auth.ceiling)?;
    if tasks::find(&deps.metadata.read()?, ns, id)?.is_some() {
        return Err(Error::failed_precondition("container", id, "has a task already: delete that first"));
    }
    // Not its shim's: that may be shared with others, who have networks of their own.
    let attachment = Id::new(shim::new_id()?)?;
    let joined = network::join(deps, auth, ns, id, &attachment, &prepared, neighbour).await?;
    let connected = joined.attached.clone();
    let made = make_task(deps, spares, auth, ns, id, prepared, joined, stdio, log, shared, checkpoint).await;
    if let (Err(_), Some(connected)) = (&made, connected) {
        deps.networks.give_up(vec![connected]).await;
    }
    made
}

/// Starts the shim and has it make the first process, while the intent is committed: a crash in between leaves either
/// a record, which the next start looks into, or a shim's directory without one, which it sweeps.
#[allow(clippy::too_many_arguments, reason = "one message, taken apart in one place")]
async fn make_task(
    deps: &Arc<Deps>,
    spares: &Rc<Spares>,
    auth: &Authority,
    ns: &Namespace,
    id: &Id,
    prepared: Prepared,
    joined: Joined,
    stdio: Stdio,
    log: bool,
    shared: Option<String>,
    checkpoint: Option<Name>,
) -> Result<(Rc<Entry>, Connection, Task)> {
    let mounts = match &prepared.early {
        Some((_, mounts)) if prepared.record.snapshot_key.is_some() => mounts.clone(),
        _ => create::root_mounts(deps, ns, &prepared.record, &prepared.run).await?,
    };
    // A shim that others have as well is left as it is, whatever comes of this.
    let shared = match shared.map(|shim| (shim::find(&deps.layout, &shim), shim)) {
        Some((Ok(connection), shim)) => Some((shim, connection)),
        Some((Err(error), _)) if error.code != Code::NotFound => return Err(error),
        // It has just ended.
        _ => None,
    };
    let own = shared.is_none();
    let bundle_path = deps.layout.bundle(ns, id);
    let has_own_cgroup = || prepared.has_own_cgroup(deps, ns);
    sweep::unmade(deps, ns, id, has_own_cgroup).await?;
    let keeps_files = log && prepared.run.log.driver.format().is_some();
    let set_up = || {
        layout::make(&bundle_path)?;
        let shim = shared.as_ref().map(|(shim, _)| shim.clone());
        Intent::of(&deps.layout, &prepared.cgroup, &prepared.runc(deps, ns), shim)?.note(&bundle_path)?;
        joined.write(&bundle_path)?;
        let bundle = File::open(&bundle_path).map_err(|e| Error::io("bundle", id, "can't be opened", &e))?;
        Ok((bundle, if keeps_files { Some(deps.layout.open_log(ns, id)?) } else { None }))
    };
    let (bundle, log_dir) = set_up().inspect_err(|_: &Error| drop(layout::remove(&bundle_path)))?;
    // From here on until the shim is asked nothing can fail that doesn't come from a checkpoint.
    let spare = if own && checkpoint.is_none() { spares.take().await } else { None };
    spares.foresee(prepared.own_network() && joined.is_alone());
    let shim_id = match (&shared, &spare) {
        (Some((shim, _)), _) => shim.clone(),
        (None, Some(spare)) => spare.id.clone(),
        (None, None) => shim::new_id()?,
    };
    let discard = |_: &Error| {
        let _ = layout::remove(&deps.layout.restored(&shim_id, id));
        let _ = layout::remove(&bundle_path);
    };
    let source = match &checkpoint {
        None => None,
        Some(name) => Some(restore::lay_out(deps, auth, ns, name, &prepared, &shim_id).await.inspect_err(discard)?),
    };

    let mut task = Task::new(id.clone(), &shim_id);
    task.terminal = prepared.terminal();
    task.log = log;
    task.attachment = joined.attached.clone();
    if own && spare.is_none() {
        shim::place(&deps.layout.shim(&shim_id), &shim_id).inspect_err(discard)?;
    }
    let (namespace, intent, restored) = (ns.clone(), task.clone(), checkpoint.clone());
    let entered = prepared.early.as_ref().map(|(entered, _)| entered.clone());
    let commit = deps.metadata.write(auth, move |tx: &mut Tx<'_>| {
        entered.as_ref().map_or(Ok(()), |entered| entered.require(&intent.id))?;
        let task = tasks::create(tx, &namespace, intent.clone())?;
        let payload = serde_json::json!({
            "container_id": task.id, "io": { "terminal": task.terminal }, "checkpoint": restored,
        });
        cofferdam_metadata::records::events::emit(tx, Event::new(&namespace, "/tasks/create", payload))?;
        Ok(task)
    });
    // Of hooks something may go on running, a child of the shim.
    let plain = prepared.spec.hooks().is_none() && prepared.options == RuntimeOptions::default();
    let again = prepared.ends_at_once() && plain && checkpoint.is_none();
    let made = async {
        let (connection, child) = match (shared, spare) {
            (Some((_, connection)), _) => (connection, None),
            (None, spare) => {
                let (child, connection, used) = match spare {
                    Some(Spare { child, connection, used, .. }) => (child, connection, used),
                    None => {
                        let (child, connection) = shim::spawn(deps.layout.shim(&shim_id), deps, &shim_id).await?;
                        (child, connection, false)
                    }
                };
                if !used {
                    reap(deps, child, &connection);
                }
                (connection, Some(child))
            }
        };
        // Beside the shim's own start, if it was not made ahead.
        if has_own_cgroup() {
            sweep::clear(deps, ns, id).await?;
        }
        let request = connection.shim.create_request();
        let made = request_create(
            deps,
            request,
            &connection.fds,
            ns,
            id,
            &prepared,
            own,
            &joined,
            bundle.into(),
            &mounts,
            stdio,
            log,
            log_dir,
            source,
            auth,
        );
        let (container, life) = made.await?;
        Ok((connection, child, container, life))
    };
    let made = async {
        let late = || Error::deadline_exceeded("shim", &shim_id, "did not make the container in time");
        tokio::time::timeout(MAKE, made).await.unwrap_or_else(|_| Err(late()))
    };
    let (committed, made) = futures::future::join(commit, made).await;
    // On a failure nothing is left; the shim ends with its connection once it has no container.
    let (recorded, error) = match (committed, made) {
        (Ok(task), Ok((connection, child, container, life))) => {
            let child = child.filter(|_| again && prepared.record.group.is_none());
            let patience = prepared.patience(checkpoint.is_some());
            let home = child.map(|child| Home { spares: spares.clone(), child, connection: connection.clone() });
            let remote = Remote { container, fds: connection.fds.clone(), _close: connection.close.clone() };
            let entry = Entry {
                namespace: ns.clone(),
                id: id.clone(),
                shim: shim_id,
                attachment: joined.attached.clone(),
                group: prepared.record.group.clone(),
                ends_at_once: prepared.ends_at_once(),
                remove_on_exit: prepared.run.remove_on_exit,
                runc: prepared.runc(deps, ns),
                cgroup: prepared.cgroup,
                link: Link::there(remote),
                init: Process::new(life),
                execs: Default::default(),
                leaving: Default::default(),
                paused: Default::default(),
                home: RefCell::new(home),
                patience,
                starting: Default::default(),
                news: Default::default(),
                past: Default::default(),
                granted: Default::default(),
                removing: Default::default(),
                recorded: Default::default(),
            };
            return Ok((Rc::new(entry), connection, task));
        }
        (Err(error), Ok((_, _, container, _))) => {
            let limit = prepared.patience(false).kill;
            let deleted = tokio::time::timeout(limit, container.delete_request().send().promise).await;
            // What it can't delete goes with it.
            if own && !matches!(deleted, Ok(Ok(_))) {
                end_shim(deps, id, &shim_id).await;
            }
            (false, error)
        }
        (committed, Err(error)) => {
            // Of one that doesn't say why nobody knows how far it is.
            if own && matches!(error.code, Code::Unavailable | Code::DeadlineExceeded) {
                end_shim(deps, id, &shim_id).await;
            }
            (committed.is_ok(), error)
        }
    };
    // Whatever was said of it: what fails at making may fail at undoing too.
    if let Err(error) = sweep::unmade(deps, ns, id, has_own_cgroup).await {
        tracing::error!(container = %id, %error, "what was made of it is left behind until another attempt");
    }
    // The commit before the shim's directory: without that the task would be one of before a reboot.
    if recorded {
        let (namespace, id) = (ns.clone(), id.clone());
        let undo = move |tx: &mut Tx<'_>| match tasks::find(tx, &namespace, &id)? {
            Some(task) => remove::delete_record(tx, &namespace, &task),
            None => Ok(()),
        };
        remove::persist(deps, &Authority::system(), undo).await?;
    }
    if own {
        let _ = layout::remove(&deps.layout.shim(&shim_id));
    }
    let _ = layout::remove(&deps.layout.restored(&shim_id, id));
    Err(error)
}

/// Ends a shim that made nothing that is kept.
async fn end_shim(deps: &Deps, id: &Id, shim: &str) {
    if let Err(error) = shim::kill(deps.layout.shim(shim)).await {
        tracing::error!(container = %id, %error, "a shim is left behind");
    }
}

/// Takes the shim's end in. It may outlive its first connection, where it has containers of others.
fn reap(deps: &Deps, child: u32, connection: &Connection) {
    let (children, ended) = (deps.children.clone(), connection.ended.clone());
    tokio::task::spawn_local(async move {
        ended.await;
        // It ends behind its last connection, or was killed.
        children.reap(child).await;
    });
}

#[allow(clippy::too_many_arguments, reason = "one message, filled in one place")]
async fn request_create(
    deps: &Deps,
    mut request: capnp::capability::Request<
        cofferdam_wire::shim_capnp::shim::create_params::Owned,
        cofferdam_wire::shim_capnp::shim::create_results::Owned,
    >,
    fds: &Fds,
    ns: &Namespace,
    id: &Id,
    prepared: &Prepared,
    own: bool,
    joined: &Joined,
    bundle: OwnedFd,
    mounts: &[cofferdam_types::Mount],
    streams: Stdio,
    log: bool,
    log_dir: Option<OwnedFd>,
    source: Option<restore::Source>,
    auth: &Authority,
) -> Result<(cofferdam_wire::shim_capnp::shim_container::Client, cofferdam_wire::convert::Life)> {
    let binary = deps.runtimes.find(&prepared.record.runtime)?;
    let mut create = request.get().init_request();
    create.set_namespace(&**ns);
    create.set_id(&**id);
    // One that others have already may be of an older version.
    let brief = prepared.brief.as_ref().filter(|_| own);
    match brief.filter(|_| joined.is_alone()) {
        Some(brief) => create.set_spec(&brief.spec),
        None => create.set_spec(joined.spec(prepared)),
    }
    create.set_filter(brief.map(|brief| &*brief.program).unwrap_or_default());
    set_mounts(create.reborrow().init_rootfs(mounts.len() as u32), mounts);
    create.set_runtime(&binary);
    create.set_runtime_root(prepared.runc_root(deps).to_string_lossy().as_ref());
    create.set_runtime_options(&prepared.record.runtime_options.value);
    create.set_terminal(prepared.terminal());
    if let Some(grant) = auth.grants.last() {
        create.set_grant(grant.to_string());
    }
    set_stdio(create.reborrow().init_stdio(), streams, fds);
    if log {
        create.set_log(true);
        let (options, mut logging) = (&prepared.run.log, create.reborrow().init_logging());
        logging.set_driver(options.driver.as_str());
        logging.set_max_size(options.max_size);
        logging.set_max_files(options.max_files);
        logging.set_journal(deps.journal.to_string_lossy().as_ref());
        if let Some(dir) = log_dir {
            logging.set_directory(fds.push(dir));
        }
        let attributes = options.attributes(&prepared.record.labels)?;
        set_labels(logging.init_attributes(attributes.len() as u32), &attributes);
    }
    create.set_bundle(fds.push(bundle));
    if let Some(restore::Source { dir, options, criu }) = source {
        create.set_restore(true);
        create.set_checkpoint(fds.push(dir));
        create.set_criu(criu.to_string_lossy().as_ref());
        create.set_tcp_established(options.tcp_established);
        create.set_unix_sockets(options.unix_sockets);
    }
    let answer = request.send().promise.await.map_err(from_shim)?;
    let answer = answer.get().map_err(from_shim)?;
    let life = life(answer.get_life().map_err(from_shim)?)?;
    Ok((answer.get_container().map_err(from_shim)?, life))
}

/// Fills a `Stdio` for a shim; the descriptors go along.
pub(crate) fn set_stdio(mut builder: stdio::Builder<'_>, streams: Stdio, fds: &Fds) {
    builder.set_rows(streams.rows);
    builder.set_columns(streams.columns);
    let mut stdin: input::Builder<'_> = builder.reborrow().init_stdin();
    match streams.stdin {
        Input::Null => stdin.set_null(()),
        Input::Fd(fd) => stdin.set_fd(fds.push(fd)),
        Input::Pipe => stdin.set_stream(()),
        Input::Fifo(path) => stdin.set_fifo(&path),
        Input::File(path) => stdin.set_file(&path),
    }
    let set = |mut out: output::Builder<'_>, wish: Output| match wish {
        Output::Null => out.set_null(()),
        Output::Fd(fd) => out.set_fd(fds.push(fd)),
        Output::Fifo(path) => out.set_fifo(&path),
        Output::File(path) => out.set_file(&path),
    };
    set(builder.reborrow().init_stdout(), streams.stdout);
    set(builder.init_stderr(), streams.stderr);
}
