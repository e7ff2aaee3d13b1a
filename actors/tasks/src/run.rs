//! The run job: a container from an image, and the container's first process.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use cofferdam_images::ResolvedImage;
use cofferdam_log::{Driver, Journal};
use cofferdam_metadata::{
    Tx,
    records::{
        containers::{self, Container},
        snapshots,
        tasks::{self, Task},
    },
};
use cofferdam_oci::{
    RuntimeOptions,
    spec::{self, Options},
    systemd,
};
use cofferdam_types::{Any, Authority, Code, Error, Event, Id, Name, Namespace, Result};
use cofferdam_wire::{
    common_capnp::{input, output, stdio},
    convert::{life, set_labels, set_mounts},
    fdstream::Fds,
};
use oci_spec::runtime::Spec;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    entry::{Entry, Process},
    handle::Deps,
    layout,
    link::{Link, Remote},
    messages::{Input, NewContainer, Output, RunRecord, Stdio},
    remove,
    rights::{streams_within, within},
    shim::{self, Connection, from_shim},
};

/// The type of the spec that a record keeps (reference, section 14.4).
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// How long a shim may take to make a container. Far beyond what any driver takes: it is for one that is stuck.
const MAKE: Duration = Duration::from_secs(60);

/// Makes record and snapshot. The directory is there before the commit that makes both visible.
pub(crate) async fn create(deps: &Deps, auth: &Authority, ns: &Namespace, new: NewContainer) -> Result<Container> {
    within(&new, &auth.ceiling)?;
    let attributes = new.log.attributes(&new.labels)?;
    let options = RuntimeOptions::read(&new.runtime_options)?;
    if matches!(&*new.runtime, "" | "native") {
        options.check_native()?;
    }
    let id = match new.id {
        Some(id) => id,
        None => Id::new(shim::new_id()?)?,
    };
    if containers::find(&deps.metadata.read()?, ns, &id)?.is_some() {
        return Err(Error::already_exists("container", &id, containers::TAKEN));
    }
    if new.log.driver == Driver::Journald {
        Journal::open(&deps.journal, ns, &id, &attributes)?;
    }
    let image = deps.images.resolve(ns, &new.image, &new.platform).await?;
    let driver = if new.driver.is_empty() { deps.snapshots.drivers()[0].to_owned() } else { new.driver };
    let parent = parent(deps, auth, ns, &image, &driver).await?;
    let key = Name::new(id.as_str())?;
    let reserved = match deps.snapshots.reserve(ns, &driver, &key, parent.as_ref(), false).await {
        // Whose container it is was made meanwhile.
        Err(e) if e.code == Code::AlreadyExists && containers::find(&deps.metadata.read()?, ns, &id)?.is_some() => {
            return Err(Error::already_exists("container", &id, containers::TAKEN));
        }
        other => other?,
    };

    let cgroup = deps.layout.cgroup(ns, &id);
    let cgroup = if options.systemd_cgroup { systemd::named(&cgroup) } else { cgroup };
    let spec = match &new.spec {
        Some(raw) => given(raw, &id, cgroup)?,
        None => generate(cgroup, &id, &image, &new.options, &reserved.mounts)?,
    };
    let stop_signal = Some(stop_signal(&id, &image));
    let run = RunRecord { remove_on_exit: new.remove_on_exit, stop_signal, log: new.log };
    let mut record = Container::new(
        id,
        if new.runtime.is_empty() { "native".to_owned() } else { new.runtime },
        Any { type_url: SPEC_TYPE.to_owned(), value: spec },
    );
    record.labels = new.labels;
    record.image = new.image.to_string();
    record.runtime_options = new.runtime_options;
    record.driver = driver;
    record.group = new.group;
    record.snapshot_key = Some(key);
    record.options = serde_json::to_vec(&run).map_err(|e| Error::internal("container", "", e.to_string()))?;
    let namespace = ns.clone();
    deps.metadata
        .write(auth, move |tx: &mut Tx<'_>| {
            let record = containers::create(tx, &namespace, record.clone())?;
            snapshots::create(tx, &namespace, reserved.record.clone())?;
            Ok(record)
        })
        .await
}

/// The snapshot that containers of the image start from; unpacks the image if it isn't there.
async fn parent(
    deps: &Deps,
    auth: &Authority,
    ns: &Namespace,
    image: &ResolvedImage,
    driver: &str,
) -> Result<Option<Name>> {
    let Some(top) = image.chain_ids.last() else { return Ok(None) };
    let name = Name::new(top.to_string())?;
    if snapshots::find(&deps.metadata.read()?, ns, driver, &name)?.is_none() {
        deps.images.unpack(auth, ns, image, driver).await?;
    }
    Ok(Some(name))
}

/// A spec of the client's own. One that names no cgroup gets ours: what the record says is then true of every driver.
pub(crate) fn given(raw: &[u8], id: &Id, cgroup: String) -> Result<Vec<u8>> {
    let bad = |e: serde_json::Error| Error::invalid("spec", id, format!("is not an OCI runtime spec: {e}"));
    let spec: Spec = serde_json::from_slice(raw).map_err(bad)?;
    if cgroup_of(&spec).is_some() { Ok(raw.to_vec()) } else { with_cgroup(raw, id, cgroup) }
}

/// A spec with this cgroup: as it came, with what our own types don't know.
pub(crate) fn with_cgroup(raw: &[u8], id: &Id, cgroup: String) -> Result<Vec<u8>> {
    let bad = |e: serde_json::Error| Error::invalid("spec", id, format!("is not an OCI runtime spec: {e}"));
    let mut whole: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(raw).map_err(bad)?;
    let linux = whole.entry("linux").or_insert(serde_json::Value::Null);
    if linux.is_null() {
        *linux = serde_json::json!({});
    }
    let linux = linux.as_object_mut().ok_or_else(|| Error::invalid("spec", id, "has a `linux` that is no object"))?;
    linux.insert("cgroupsPath".to_owned(), cgroup.into());
    serde_json::to_vec(&whole).map_err(bad)
}

/// The cgroup that a container's spec names.
pub(crate) fn cgroup_in(spec: &[u8]) -> Option<String> {
    cgroup_of(&serde_json::from_slice(spec).ok()?)
}

/// The cgroup that a spec names, from the root of its hierarchy.
fn cgroup_of(spec: &Spec) -> Option<String> {
    let path = spec.linux().as_ref()?.cgroups_path().as_ref()?.to_str()?;
    let made = || systemd::path(path).unwrap_or_else(|| format!("/{}", path.trim_start_matches('/')));
    (!path.is_empty()).then(made)
}

fn generate(
    cgroup: String,
    id: &Id,
    image: &ResolvedImage,
    options: &Options,
    mounts: &[cofferdam_types::Mount],
) -> Result<Vec<u8>> {
    let root = mounted(mounts)?;
    let spec = spec::generate(&cgroup, id, &image.config.image, options, &root);
    // Unmounting waits for every processor of the host, for milliseconds: nobody waits for it here.
    tokio::task::spawn_blocking(move || drop(root));
    let spec = spec?;
    serde_json::to_vec(&spec).map_err(|e| Error::internal("spec", id, e.to_string()))
}

/// What asks the container to end. An image that names nonsense can be run all the same: nobody who runs it could mend
/// it.
fn stop_signal(id: &Id, image: &ResolvedImage) -> u32 {
    let number = spec::stop_signal(&image.config.image).unwrap_or_else(|error| {
        tracing::warn!(container = %id, %error, "it is asked to end by SIGTERM");
        libc::SIGTERM
    });
    number.unsigned_abs()
}

/// The root file system as a mount that is attached nowhere: it goes with the descriptor.
fn mounted(mounts: &[cofferdam_types::Mount]) -> Result<OwnedFd> {
    match mounts {
        [one] => cofferdam_sys::mount::detached(one),
        _ => Err(Error::internal("snapshot", "", format!("has {} mounts where one is expected", mounts.len()))),
    }
}

/// What a new task needs to know of its container.
pub(crate) struct Prepared {
    pub record: Container,
    pub run: RunRecord,
    pub cgroup: String,
    pub terminal: bool,
    pub options: RuntimeOptions,
}

impl Prepared {
    /// Where a runc-compatible binary keeps its state.
    fn runc_root<'a>(&'a self, deps: &'a Deps) -> &'a Path {
        self.options.root.as_deref().unwrap_or_else(|| deps.layout.runc())
    }

    /// What it keeps of the container.
    pub fn runc(&self, deps: &Deps, ns: &Namespace) -> PathBuf {
        self.runc_root(deps).join(&**ns).join(&*self.record.id)
    }
}

/// Reads a container's record.
pub(crate) fn prepare(deps: &Deps, ns: &Namespace, id: &Id) -> Result<Prepared> {
    let view = deps.metadata.read()?;
    let record = containers::get(&view, ns, id)?;
    let run = serde_json::from_slice(&record.options).unwrap_or_default();
    let spec: Spec = serde_json::from_slice(&record.spec.value)
        .map_err(|e| Error::data_loss("container", id, format!("its stored spec can't be read: {e}")))?;
    let cgroup = cgroup_of(&spec).unwrap_or_else(|| deps.layout.cgroup(ns, id));
    let terminal = spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false);
    let options = RuntimeOptions::read(&record.runtime_options)?;
    Ok(Prepared { record, run, cgroup, terminal, options })
}

/// Starts the shim and has it make the first process, while the intent is committed: a crash in between leaves either
/// a record, which the next start looks into, or a shim's directory without one, which it sweeps.
pub(crate) async fn create_task(
    deps: &Deps,
    auth: &Authority,
    ns: &Namespace,
    id: &Id,
    stdio: Stdio,
    log: bool,
    joined: Option<String>,
) -> Result<(Rc<Entry>, Connection, Task)> {
    streams_within(&stdio, &auth.ceiling)?;
    let prepared = prepare(deps, ns, id)?;
    if tasks::find(&deps.metadata.read()?, ns, id)?.is_some() {
        return Err(Error::failed_precondition("container", id, "has a task already: delete that first"));
    }
    let key = prepared.record.snapshot_key.clone();
    let mounts = match &key {
        Some(key) => deps.snapshots.mounts(ns, &prepared.record.driver, key)?,
        None => Vec::new(),
    };
    // A shim that others have as well is left as it is, whatever comes of this.
    let joined = joined.and_then(|shim| shim::find(&deps.layout, &shim).ok().map(|connection| (shim, connection)));
    let own = joined.is_none();
    let shim_id = match &joined {
        Some((shim, _)) => shim.clone(),
        None => shim::new_id()?,
    };
    let bundle_path = deps.layout.bundle(ns, id);
    layout::remove(&bundle_path)?;
    layout::make(&bundle_path)?;
    let bundle = File::open(&bundle_path).map_err(|e| Error::io("bundle", id, "can't be opened", &e))?;
    let keeps_files = log && prepared.run.log.driver.format().is_some();
    let log_dir = if keeps_files { Some(deps.layout.open_log(ns, id)?) } else { None };

    let mut task = Task::new(id.clone(), &shim_id);
    task.terminal = prepared.terminal;
    task.log = log;
    if own {
        shim::place(&deps.layout, &shim_id)?;
    }
    let (namespace, intent) = (ns.clone(), task.clone());
    let commit = deps.metadata.write(auth, move |tx: &mut Tx<'_>| {
        let task = tasks::create(tx, &namespace, intent.clone())?;
        let payload = serde_json::json!({ "container_id": task.id });
        cofferdam_metadata::records::events::emit(tx, Event::new(&namespace, "/tasks/create", payload))?;
        Ok(task)
    });
    let made = async {
        let connection = match joined {
            Some((_, connection)) => connection,
            None => {
                let (child, connection) = shim::spawn(&deps.layout, &deps.shim, &shim_id)?;
                reap(child, &connection);
                connection
            }
        };
        // Beside the shim's own start.
        clear(deps, ns, id, &prepared).await?;
        let request = connection.shim.create_request();
        let made = request_create(
            deps,
            request,
            &connection.fds,
            ns,
            id,
            &prepared,
            bundle.into(),
            &mounts,
            stdio,
            log,
            log_dir,
        );
        let (container, life) = made.await?;
        Ok((connection, container, life))
    };
    let made = async {
        let late = || Error::deadline_exceeded("shim", &shim_id, "did not make the container in time");
        tokio::time::timeout(MAKE, made).await.unwrap_or_else(|_| Err(late()))
    };
    let (committed, made) = futures::future::join(commit, made).await;
    // On a failure nothing is left; the shim ends with its connection once it has no container.
    match (committed, made) {
        (Ok(task), Ok((connection, container, life))) => {
            let remote = Remote { container, fds: connection.fds.clone(), _close: connection.close.clone() };
            let entry = Entry {
                namespace: ns.clone(),
                id: id.clone(),
                shim: shim_id,
                group: prepared.record.group.clone(),
                remove_on_exit: prepared.run.remove_on_exit,
                runc: prepared.runc(deps, ns),
                cgroup: prepared.cgroup,
                link: Link::there(remote),
                init: Process::new(life),
                execs: Default::default(),
                paused: Default::default(),
                removing: Default::default(),
                recorded: Default::default(),
            };
            Ok((Rc::new(entry), connection, task))
        }
        (Err(error), Ok((_, container, _))) => {
            let _ = container.delete_request().send().promise.await;
            if own {
                let _ = layout::remove(&deps.layout.shim(&shim_id));
            }
            let _ = layout::remove(&bundle_path);
            Err(error)
        }
        (committed, Err(error)) => {
            // A shim that says why has undone what it did. Of another one nobody knows how far it came.
            if matches!(error.code, Code::Unavailable | Code::DeadlineExceeded) {
                if own && let Err(error) = shim::kill(deps.layout.shim(&shim_id)).await {
                    tracing::error!(container = %id, %error, "a shim is left behind");
                }
                clear(deps, ns, id, &prepared).await.unwrap_or_else(|error| {
                    tracing::error!(container = %id, %error, "a cgroup is left behind");
                });
            }
            // The commit first: a task without its shim's directory would be one of before a reboot.
            if committed.is_ok() {
                let (namespace, id) = (ns.clone(), id.clone());
                let undo = move |tx: &mut Tx<'_>| match tasks::find(tx, &namespace, &id)? {
                    Some(_) => tasks::delete(tx, &namespace, &id).map(drop),
                    None => Ok(()),
                };
                remove::persist(deps, &Authority::system(), undo).await?;
            }
            let _ = deps.layout.remove_runc(&prepared.runc(deps, ns));
            if own {
                let _ = layout::remove(&deps.layout.shim(&shim_id));
            }
            let _ = layout::remove(&bundle_path);
            if log && prepared.run.remove_on_exit {
                let _ = layout::remove(&deps.layout.log_dir(ns, id));
            }
            Err(error)
        }
    }
}

/// Removes the cgroup of a container that has no task, if it is the one that we chose: who made it is dead, and it would
/// be in the way of the next. One that a client's own spec names may be somebody else's.
async fn clear(deps: &Deps, ns: &Namespace, id: &Id, prepared: &Prepared) -> Result<()> {
    let ours = prepared.cgroup == deps.layout.cgroup(ns, id);
    if ours { remove::cleanup(&prepared.cgroup).await } else { Ok(()) }
}

/// Takes the shim's end in. It may outlive its first connection, where it has containers of others.
fn reap(mut child: std::process::Child, connection: &Connection) {
    let ended = connection.ended.clone();
    tokio::task::spawn_local(async move {
        ended.await;
        // It ends behind its last connection, or was killed.
        if let Ok(Some(_)) = child.try_wait() {
            return;
        }
        if let Ok(pidfd) = cofferdam_sys::process::pidfd_open(child.id() as i32)
            // SAFETY: an `OwnedFd` stays open and the same for as long as the `AsyncFd` owns it.
            && let Ok(watched) = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
        {
            let _ = watched.readable().await.map(|mut ready| ready.retain_ready());
        }
        // It has ended: this waits for nothing. Without a pidfd it waits, and holds up nobody.
        let _ = tokio::task::spawn_blocking(move || child.wait()).await;
    });
}

/// The name of the driver that is ours, or the binary of one that is not.
fn runtime(name: &str) -> Result<String> {
    if name == "native" || name.contains('/') {
        return Ok(name.to_owned());
    }
    // A fixed path, not the daemon's environment: what runs as root is not up to a variable.
    let dirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = dirs.iter().map(|dir| format!("{dir}/{name}")).find(|path| std::path::Path::new(path).is_file());
    let id = cofferdam_types::Id::new(name);
    found.filter(|_| id.is_ok()).ok_or_else(|| {
        let why = "is not installed: `native` needs nothing; runc, crun and youki work if their binary is there";
        Error::not_found("runtime", name, why)
    })
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
    bundle: OwnedFd,
    mounts: &[cofferdam_types::Mount],
    streams: Stdio,
    log: bool,
    log_dir: Option<OwnedFd>,
) -> Result<(cofferdam_wire::shim_capnp::shim_container::Client, cofferdam_wire::convert::Life)> {
    let binary = runtime(&prepared.record.runtime)?;
    let mut create = request.get().init_request();
    create.set_namespace(&**ns);
    create.set_id(&**id);
    create.set_spec(&prepared.record.spec.value);
    set_mounts(create.reborrow().init_rootfs(mounts.len() as u32), mounts);
    create.set_runtime(&binary);
    create.set_runtime_root(prepared.runc_root(deps).to_string_lossy().as_ref());
    create.set_runtime_options(&prepared.record.runtime_options.value);
    create.set_terminal(prepared.terminal);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_without_a_cgroup_gets_ours_and_keeps_the_rest() {
        let id = Id::new("box").unwrap();
        let ours = |raw: &str| {
            let spec = given(raw.as_bytes(), &id, "/cofferdam/1/shop/box".into()).unwrap();
            (
                serde_json::from_slice::<serde_json::Value>(&spec).unwrap(),
                cgroup_of(&serde_json::from_slice(&spec).unwrap()),
            )
        };
        let (spec, cgroup) = ours(r#"{"ociVersion":"1.0.2","newer":{"than":"us"}}"#);
        assert_eq!((&spec["newer"]["than"], cgroup.as_deref()), (&"us".into(), Some("/cofferdam/1/shop/box")));
        let raw = r#"{"ociVersion":"1.0.2","linux":{"cgroupsPath":"mine/box"}}"#;
        assert_eq!(given(raw.as_bytes(), &id, String::new()).unwrap(), raw.as_bytes());
        assert_eq!(ours(raw).1.as_deref(), Some("/mine/box"));
        assert!(given(b"[]", &id, String::new()).is_err());
    }
}
