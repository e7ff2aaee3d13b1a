//! The end of a task, and of all that belongs to a container.

use std::{path::PathBuf, rc::Rc, time::Duration};

use cofferdam_metadata::{
    Tx,
    records::{
        containers, events, snapshots,
        snapshots::Removed,
        tasks::{self, Exit, State, Task},
    },
};
use cofferdam_oci::runc;
use cofferdam_sys::cgroup::{self, Cgroup};
use cofferdam_types::{Authority, Code, Error, Event, Id, Namespace, Result, Timestamp};
use cofferdam_wire::{convert::life, life::file_name as life_file};

use crate::{
    entry::Entry,
    handle::Deps,
    layout,
    link::Remote,
    recover, run,
    shim::{self, from_shim},
    sweep, told,
};

pub(crate) fn exit_payload(container: &Id, exec: &str, pid: u32, exit: &Exit) -> serde_json::Value {
    serde_json::json!({
        "container_id": container,
        "id": if exec.is_empty() { container.as_str() } else { exec },
        "pid": pid,
        "exit_status": exit.status,
        "exited_at": exit.at.to_rfc3339(),
        "reason": exit.reason,
    })
}

/// When a container ran out of memory last, and how often.
#[derive(Clone, Copy)]
struct Ooms(Timestamp, u64);

impl Ooms {
    fn of(entry: &Entry) -> Ooms {
        let life = entry.init.life.borrow();
        Ooms(life.oomed, life.ooms)
    }

    /// Puts it into the record, with an event if that doesn't know of it yet.
    fn record(self, tx: &mut Tx<'_>, ns: &Namespace, task: &mut Task) -> Result<()> {
        if self.1 <= task.ooms {
            return Ok(());
        }
        (task.oomed, task.ooms) = (self.0, self.1);
        let payload = serde_json::json!({ "container_id": task.id, "count": task.ooms });
        events::emit(tx, Event::new(ns, "/tasks/oom", payload))
    }
}

/// Records that a container ran out of memory.
pub(crate) async fn record_oom(deps: &Deps, entry: &Entry) {
    let (ns, id, shim, ooms) = (entry.namespace.clone(), entry.id.clone(), entry.shim.clone(), Ooms::of(entry));
    let write = move |tx: &mut Tx<'_>| {
        // One of that name may be another by now, which has not run out of anything.
        let Some(mut task) = tasks::find(tx, &ns, &id)?.filter(|task| task.shim == shim) else { return Ok(()) };
        ooms.record(tx, &ns, &mut task)?;
        tasks::update(tx, &ns, task).map(drop)
    };
    if let Err(error) = persist(deps, &Authority::system(), write).await {
        tracing::error!(container = %entry.id, %error, "that it ran out of memory can't be recorded");
    }
}

/// The start of a first process.
#[derive(Clone, Copy)]
struct Start(Option<Timestamp>, u32);

impl Start {
    fn of(entry: &Entry) -> Start {
        Start(entry.init.began(), entry.init.life.borrow().pid)
    }

    /// Puts it into the record, with its event, if it began and nobody has.
    fn record(self, tx: &mut Tx<'_>, ns: &Namespace, task: &mut Task) -> Result<()> {
        if self.0.is_none() || task.started.is_some() {
            return Ok(());
        }
        (task.started, task.pid) = (self.0, self.1);
        let payload = serde_json::json!({ "container_id": task.id, "pid": task.pid });
        events::emit(tx, Event::new(ns, "/tasks/start", payload))
    }
}

/// Records that the first process runs. Its end does so too, where it comes first.
pub(crate) async fn record_start(deps: &Deps, entry: &Entry) -> Result<()> {
    let (ns, id, shim) = (entry.namespace.clone(), entry.id.clone(), entry.shim.clone());
    let (start, auth) = (Start::of(entry), Authority::system());
    let write = move |tx: &mut Tx<'_>| {
        let Some(mut task) = tasks::find(tx, &ns, &id)?.filter(|task| task.shim == shim) else { return Ok(()) };
        if task.exit.is_none() {
            start.record(tx, &ns, &mut task)?;
            // It may be told first that it was paused.
            if !task.state.is_paused() {
                task.state = State::Running;
            }
            tasks::update(tx, &ns, task)?;
        }
        Ok(())
    };
    persisted(async || deps.metadata.write_lazily(&auth, write.clone()).await).await
}

/// The end of a first process, to be put into the tables by a write of somebody else's.
#[derive(Clone)]
pub(crate) struct End {
    shim: String,
    exit: Exit,
    pid: u32,
    start: Start,
    ooms: Ooms,
}

impl End {
    /// `None`: it has not ended.
    pub fn of(entry: &Entry) -> Option<End> {
        Some(End::with(entry, entry.init.ended()?))
    }

    /// That of what was never started.
    fn never(entry: &Entry) -> End {
        End::with(entry, never(Timestamp::now()))
    }

    fn with(entry: &Entry, exit: Exit) -> End {
        End {
            shim: entry.shim.clone(),
            exit,
            pid: entry.init.life.borrow().pid,
            start: Start::of(entry),
            ooms: Ooms::of(entry),
        }
    }

    /// Puts it into the tables, with its event, if nobody has.
    pub fn record(&self, tx: &mut Tx<'_>, ns: &Namespace, id: &Id) -> Result<()> {
        // One of that name may be another by now.
        let Some(mut task) = tasks::find(tx, ns, id)?.filter(|task| task.shim == self.shim) else { return Ok(()) };
        if task.exit.is_some() {
            return Ok(());
        }
        self.start.record(tx, ns, &mut task)?;
        self.ooms.record(tx, ns, &mut task)?;
        (task.state, task.pid, task.exit) = (State::Stopped, self.pid, Some(self.exit.clone()));
        tasks::update(tx, ns, task)?;
        events::emit(tx, Event::new(ns, "/tasks/exit", exit_payload(id, "", self.pid, &self.exit)))
    }
}

/// Ends a shim whose task is over; the container and its record stay.
pub(crate) async fn end(deps: &Deps, entry: &Rc<Entry>) -> Result<()> {
    entry.removing.set(true);
    let ended = end_shim(deps, entry, false).await.inspect_err(|_| entry.removing.set(false))?;
    // While they have the name that they had.
    let recorded = told::record_all(deps, entry).await;
    ended.released().await;
    recorded
}

/// Removes the files of a name that no record has.
pub(crate) fn forget_files(deps: &Deps, ns: &Namespace, id: &Id, entry: Option<&Entry>) {
    remove_dirs(deps, ns, id, entry);
    if let Err(error) = layout::remove(&deps.layout.log_dir(ns, id)) {
        tracing::warn!(%error, "a log is left behind");
    }
    deps.layout.tidy_soon(ns);
}

/// Removes the files of a task that is over, and whose shim is gone.
pub(crate) fn forget_files_of(deps: &Deps, entry: &Entry) {
    remove_dirs(deps, &entry.namespace, &entry.id, Some(entry));
}

/// The end of what was never started.
fn never(at: Timestamp) -> Exit {
    Exit { status: 0, at, reason: String::new() }
}

/// Removes a task's record, with its event: each `/tasks/create` has one.
pub(crate) fn delete_record(tx: &mut Tx<'_>, ns: &Namespace, task: &Task) -> Result<()> {
    tasks::delete(tx, ns, &task.id)?;
    let exit = task.exit.clone().unwrap_or_else(|| never(tx.now()));
    let payload = exit_payload(&task.id, "", task.pid, &exit);
    events::emit(tx, Event::new(ns, "/tasks/delete", payload))
}

/// Records the end of the first process. It is in the life record already: what waits for it has been told.
pub(crate) async fn record_exit(deps: &Deps, entry: &Rc<Entry>) -> Result<()> {
    let Some(end) = End::of(entry) else { return Ok(()) };
    let (ns, id, auth) = (entry.namespace.clone(), entry.id.clone(), Authority::system());
    let write = move |tx: &mut Tx<'_>| end.record(tx, &ns, &id);
    // Most remove what has ended at once: one commit for both.
    let recorded = persisted(async || deps.metadata.write_lazily(&auth, write.clone()).await).await;
    recorded?;
    entry.recorded.send_replace(true);
    let (networks, attachment) = (deps.networks.clone(), entry.attachment.clone());
    tokio::task::spawn_local(async move { networks.released(attachment.as_ref()).await });
    Ok(())
}

/// How long a root file system is waited for that a shim lets go of.
const RELEASE: Duration = Duration::from_secs(5);
/// The first and the longest pause between two attempts at a write that must be done, which end behind the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

/// A write that follows something which can't be undone: a crash of the writer is waited out. `f` must bear to find its
/// work done.
pub(crate) async fn persist<R: Send + 'static>(
    deps: &Deps,
    auth: &Authority,
    f: impl Fn(&mut Tx<'_>) -> Result<R> + Clone + Send + 'static,
) -> Result<R> {
    persisted(async || deps.metadata.write(auth, f.clone()).await).await
}

pub(crate) async fn persisted<R>(write: impl AsyncFn() -> Result<R>) -> Result<R> {
    let mut pause = PAUSES.0;
    loop {
        match write().await {
            Err(error) if error.code == Code::Unavailable && pause < PAUSES.1 => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            other => return other,
        }
    }
}

/// A shim that has deleted a container, or is dead. It may still hold the root file system.
struct Ended(Option<Remote>);

impl Ended {
    /// Waits until the snapshot is free for another mount.
    async fn released(self) {
        if let Some(remote) = self.0 {
            // An error is a shim that ends, or one so old that it holds nothing.
            let _ = tokio::time::timeout(RELEASE, remote.container.release_request().send().promise).await;
        }
    }
}

/// Whether others would die with its shim.
fn has_others(deps: &Deps, entry: &Entry) -> bool {
    entry.group.is_some() && shared(deps, &entry.namespace, &entry.id, &entry.shim)
}

/// Has the shim delete the container: kills what runs, removes cgroups and mounts. Where there is no shim any more it is done
/// here, and where it doesn't answer in the time that hooks and runtimes have: then it is killed. With `force` so it is where
/// its runtime fails at it, as it would again. One that others live in is killed only if it doesn't answer, and by force.
async fn end_shim(deps: &Deps, entry: &Rc<Entry>, force: bool) -> Result<Ended> {
    let by_force = async || end_by_force(deps, entry).await.map(|()| Ended(None));
    let unanswered = async |refuse: fn(&'static str, &str, String) -> Error| {
        if !force && has_others(deps, entry) {
            let why = "is not deleted: its shim doesn't answer, and others of its group live in that: wait and try again, or \
                       remove the container by force, with which they all end";
            return Err(refuse("task", &entry.id, why.to_owned()));
        }
        tracing::warn!(container = %entry.id, shim = %entry.shim, "its shim doesn't delete it: both are killed");
        by_force().await
    };
    let remote = match entry.link.remote().await {
        Ok(remote) => remote,
        Err(error) if error.code == Code::FailedPrecondition => return by_force().await,
        Err(_) => return unanswered(|kind, id, why| Error::unavailable(kind, id, why)).await,
    };
    let limit = if entry.init.ended().is_some() { entry.patience.delete } else { entry.patience.kill };
    let mut request = remote.container.delete_request();
    request.get().set_drain(deps.drain.as_secs() as u32);
    match tokio::time::timeout(limit, request.send().promise).await {
        Ok(Ok(answer)) => {
            let life = life(answer.get().and_then(|a| a.get_life()).map_err(from_shim)?)?;
            if life.exited != Timestamp(0) && life.output_end == Timestamp(0) {
                // It is still busy with what that one wrote.
                drop(entry.home.take());
            }
            entry.init.update(life);
            // Lets go of the connection, and with it ends the shim.
            entry.link.lose("its task was deleted");
            Ok(Ended(Some(remote)))
        }
        Ok(Err(error)) => match from_shim(error) {
            // It died of something.
            error if error.code == Code::Unavailable && error.kind == "shim" => by_force().await,
            error if force && !has_others(deps, entry) => {
                tracing::warn!(container = %entry.id, %error, "it can't be deleted by its runtime: it is killed with its shim");
                by_force().await
            }
            error => Err(error),
        },
        Err(_) => unanswered(|kind, id, why| Error::deadline_exceeded(kind, id, why)).await,
    }
}

/// Whether the shim can delete the container beside the commit that ends its records: nothing runs in it that could be in
/// the way, or that an error would leave running without a record. A crash between the two leaves what the next start
/// sweeps. Where others live in the shim it may not be able to, and without a record nobody would try again.
fn deletes_aside(entry: &Entry) -> bool {
    entry.ends_at_once && entry.group.is_none() && entry.init.ended().is_some()
}

/// [`end_shim`] where that is so.
async fn end_aside(deps: &Deps, entry: &Rc<Entry>) -> Ended {
    end_shim(deps, entry, true).await.unwrap_or_else(|error| {
        tracing::error!(container = %entry.id, %error, "what its shim made is left behind until the next start");
        // With what it couldn't delete it is no other container's.
        drop(entry.home.take());
        Ended(None)
    })
}

/// Kills a shim, if there is one, and with it the container.
async fn end_by_force(deps: &Deps, entry: &Rc<Entry>) -> Result<()> {
    // The shim first: it could put something into the cgroup still. One that only let go of this container has others.
    let has_others = entry.group.is_some() && entry.link.state() == "lost";
    let killed = if has_others { Ok(()) } else { shim::kill(deps.layout.shim(&entry.shim)).await };
    let cleaned = cleanup(&entry.cgroup, deps.layout.bundle(&entry.namespace, &entry.id)).await;
    recover::gone(deps, entry);
    killed.and(cleaned)
}

/// What a lost shim left: its container's processes and cgroup, and what its runtime was about to make in this bundle.
pub(crate) async fn cleanup(cgroup: &str, bundle: PathBuf) -> Result<()> {
    let path = cgroup.to_owned();
    // The kernel may take its time to let go of what was killed.
    let work = move || {
        let layout = cgroup::Layout::detect()?;
        if runc::has_maker(&bundle) {
            // What runs in it doesn't run on meanwhile.
            let _ = Cgroup::open(&layout, &path).and_then(|cgroup| cgroup.kill());
            if let Err(error) = shim::outlive(&bundle) {
                tracing::error!(cgroup = path, %error, "the runtime of a lost shim is not seen to end");
            }
        }
        match Cgroup::open(&layout, &path) {
            Ok(cgroup) => {
                let clear = || cgroup.kill().and_then(|()| cgroup.remove());
                // What a lost shim's runtime had begun may have put something into it behind the first kill.
                let late = |error: Error| if error.code == Code::FailedPrecondition { clear() } else { Err(error) };
                clear().or_else(late).or_else(late)
            }
            Err(error) if error.code == Code::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal("cgroup", cgroup, e.to_string())))
}

/// The first process of a container that a runtime of others made, or was making in this bundle, by what it `kept` of that.
pub(crate) async fn end_first(kept: PathBuf, bundle: PathBuf) -> Result<()> {
    let fail = |e: std::io::Error| Error::io("process", "", "of a container that could not be made can't be ended", &e);
    let work = move || {
        if runc::has_maker(&bundle) {
            shim::outlive(&bundle).map_err(fail)?;
        }
        if runc::kill_first(&kept, RELEASE).map_err(fail)? {
            return Ok(());
        }
        Err(Error::deadline_exceeded("process", "", "of a container that could not be made does not die of SIGKILL"))
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal("process", "", e.to_string())))
}

/// The directories of a task that is over. That of a shim goes with the last of its containers.
fn remove_dirs(deps: &Deps, ns: &Namespace, id: &Id, entry: Option<&Entry>) {
    let mut removed = vec![layout::remove(&deps.layout.bundle(ns, id))];
    // What a binary that is lost had kept of it would be in the way of the next one.
    let runc = entry.map_or_else(|| deps.layout.runc_of(ns, id), |entry| entry.runc.clone());
    removed.push(deps.layout.remove_runc(&runc));
    if let Some(entry) = entry {
        deps.layout.prune_given(&entry.cgroup);
        removed.push(layout::remove(&deps.layout.restored(&entry.shim, id)));
        let dir = deps.layout.shim(&entry.shim);
        if let Some(home) = entry.home.take() {
            removed.push(home.take_back(&entry.shim, id));
        } else if entry.group.is_some() && shared(deps, ns, id, &entry.shim) {
            let _ = std::fs::remove_file(dir.join(life_file(id, "")));
        } else {
            removed.push(layout::remove(&dir));
        }
    }
    for error in removed.into_iter().filter_map(Result::err) {
        tracing::warn!(%error, "a directory is left behind");
    }
}

/// Whether another task has the same shim. Where that can't be found out, as of one that can't be read, it is left alone:
/// the next start sweeps it.
fn shared(deps: &Deps, ns: &Namespace, id: &Id, shim: &str) -> bool {
    let mut has = false;
    let looked = deps.metadata.read().and_then(|view| {
        tasks::visit(&view, &mut |task| {
            has |= task.map_or(true, |(of, task)| task.shim == shim && (of, &task.id) != (ns.clone(), id));
        })
    });
    has || looked.is_err()
}

/// Whether the task may go without being killed. What a shim that doesn't answer holds may run.
async fn over(entry: &Entry, why: &str) -> Result<()> {
    if entry.init.ended().is_some() {
        return Ok(());
    }
    entry.link.settled().await?;
    entry.begun(why).await?;
    let state = entry.state("")?.state;
    if !matches!(state, State::Created | State::Stopped) {
        return Err(Error::failed_precondition("task", &entry.id, format!("is {}: {why}", state.as_str())));
    }
    Ok(())
}

/// Forgets the ended task of a container, which stays.
pub(crate) async fn delete_task(deps: &Deps, auth: &Authority, entry: &Rc<Entry>) -> Result<Exit> {
    deps.metadata.writable()?;
    over(entry, "stop or kill it first").await?;
    entry.removing.set(true);
    let deleted = async {
        let aside = deletes_aside(entry);
        let ended_shim = if aside { None } else { Some(end_shim(deps, entry, false).await?) };
        let end = End::of(entry).unwrap_or_else(|| End::never(entry));
        let (ns, id, exit) = (entry.namespace.clone(), entry.id.clone(), end.exit.clone());
        let ends = told::Ends::of(entry).await;
        let commit = move |tx: &mut Tx<'_>| {
            let Some(mut task) = tasks::find(tx, &ns, &id)? else { return Ok(()) };
            ends.tell(tx, &ns, &mut task)?;
            end.record(tx, &ns, &id)?;
            delete_record(tx, &ns, &tasks::get(tx, &ns, &id)?)
        };
        let shim = async {
            let ended = match ended_shim {
                Some(ended) => ended,
                None => end_aside(deps, entry).await,
            };
            ended.released().await;
        };
        let (persisted, ()) = futures::future::join(persist(deps, auth, commit), shim).await;
        persisted.map(|()| exit)
    };
    let exit = deleted.await.inspect_err(|_: &Error| entry.removing.set(false))?;
    remove_dirs(deps, &entry.namespace, &entry.id, Some(entry));
    deps.networks.released(entry.attachment.as_ref()).await;
    deps.layout.tidy_soon(&entry.namespace);
    Ok(exit)
}

/// Removes container, task and snapshot in one commit, then their files.
pub(crate) async fn remove(
    deps: &Deps,
    auth: &Authority,
    ns: &Namespace,
    id: &Id,
    entry: Option<&Rc<Entry>>,
    force: bool,
) -> Result<()> {
    deps.metadata.writable()?;
    let view = deps.metadata.read()?;
    containers::require(&view, ns, id)?;
    if entry.is_none() {
        // A task that can't be read has a shim that nobody knows: it may run in what would be taken from under it.
        tasks::find(&view, ns, id)?;
    }
    drop(view);
    if let Some(entry) = entry {
        if !force {
            over(entry, "stop it first, or remove the container by force").await?;
        }
        entry.removing.set(true);
    }
    let forgotten = async {
        match entry {
            Some(entry) if deletes_aside(entry) => {
                let shim = end_aside(deps, entry);
                return futures::future::join(forget(deps, auth, ns, id, Some(entry)), shim).await.0;
            }
            Some(entry) => drop(end_shim(deps, entry, force).await?),
            // What could not be undone when it was made, if there is any.
            None => {
                let own = || run::prepare(deps, ns, id).is_ok_and(|prepared| prepared.has_own_cgroup(deps, ns));
                match sweep::unmade(deps, ns, id, own).await {
                    Err(error) if force => {
                        tracing::error!(container = %id, %error, "what was made of it is left behind")
                    }
                    undone => undone?,
                }
            }
        }
        forget(deps, auth, ns, id, entry).await
    };
    let removed = forgotten.await.inspect_err(|_| {
        entry.inspect(|entry| entry.removing.set(false));
    })?;
    // The container is gone: from here on nothing may fail, or those who wait for that would not be told.
    if let Some(removed) = removed
        && let Err(error) = persisted(async || deps.snapshots.discard(removed.clone()).await).await
    {
        tracing::warn!(container = %id, %error, "its snapshot's directory stays until it is swept");
    }
    forget_files(deps, ns, id, entry.map(|entry| &**entry));
    deps.networks.released(entry.and_then(|entry| entry.attachment.as_ref())).await;
    Ok(())
}

/// The commit: the end of the task, if nobody has recorded it, and the end of all records.
async fn forget(
    deps: &Deps,
    auth: &Authority,
    ns: &Namespace,
    id: &Id,
    entry: Option<&Rc<Entry>>,
) -> Result<Option<Removed>> {
    let ended = entry.and_then(|entry| End::of(entry));
    let ends = match entry {
        Some(entry) => Some(told::Ends::of(entry).await),
        None => None,
    };
    let (ns, id) = (ns.clone(), id.clone());
    let commit = move |tx: &mut Tx<'_>| {
        let Some(container) = containers::head(tx, &ns, &id)? else { return Ok(None) };
        if let Some(mut task) = tasks::find(tx, &ns, &id)? {
            if let Some(ends) = &ends {
                ends.tell(tx, &ns, &mut task)?;
            }
            if let Some(end) = &ended {
                end.record(tx, &ns, &id)?;
            }
            delete_record(tx, &ns, &tasks::get(tx, &ns, &id)?)?;
        }
        containers::delete(tx, &ns, &id)?;
        match &container.snapshot_key {
            Some(name) if snapshots::find(tx, &ns, &container.driver, name)?.is_some() => {
                snapshots::delete(tx, &ns, &container.driver, name).map(Some)
            }
            _ => Ok(None),
        }
    };
    persist(deps, auth, commit).await
}
