//! Finding tasks again: after a restart of the daemon, a crash of the actor, a reboot.

use std::{cell::RefCell, fs::File, os::fd::AsFd as _, rc::Rc, time::Duration};

use cofferdam_metadata::records::{
    self,
    tasks::{self, Task},
};
use cofferdam_types::{Code, Namespace, Result, Timestamp};
use cofferdam_wire::{
    convert::{Life, life},
    life as record,
};

use crate::{
    entry::{Entry, Process},
    handle::Deps,
    link::{Link, Remote},
    patience::Patience,
    remove, run,
    shim::{self, Connection, from_shim},
};

/// A shim that doesn't answer within this makes its task unavailable, alone, until it does.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
pub(crate) const SILENT: &str = "its shim doesn't answer: wait, or remove the container by force";

/// The tasks on record.
#[derive(Default)]
pub(crate) struct Recorded {
    /// Those that can be read, of every namespace.
    pub tasks: Vec<(Namespace, Task)>,
    /// Whether there are others: what no task of these has, a shim, a bundle, a cgroup or a network, may be theirs.
    pub blind: bool,
}

/// Every task on record, in every namespace.
pub(crate) fn all(deps: &Deps) -> Result<Recorded> {
    let mut found = Recorded::default();
    tasks::visit(&deps.metadata.read()?, &mut |task| match task {
        Ok(task) => found.tasks.push(task),
        Err(error) => {
            records::tell(&error);
            found.blind = true;
        }
    })?;
    Ok(found)
}

/// What is known of a task before its shim was asked: enough to answer, or to wait.
pub(crate) fn entry(deps: &Deps, ns: &Namespace, task: &Task) -> Rc<Entry> {
    let prepared = run::prepare(deps, ns, &task.id).ok();
    let life = Life {
        pid: task.pid,
        created: task.created,
        started: task.started.unwrap_or_default(),
        exited: task.exit.as_ref().map(|exit| exit.at).unwrap_or_default(),
        status: task.exit.as_ref().map(|exit| exit.status).unwrap_or_default(),
        reason: task.exit.as_ref().map(|exit| exit.reason.clone()).unwrap_or_default(),
        oomed: task.oomed,
        ooms: task.ooms,
        ..Life::default()
    };
    // Those whose end was not told: where the shim is gone nobody else knows of them.
    let open = task.execs.iter().flatten().filter(|(_, told)| !told.ended);
    let execs = open.map(|(id, told)| {
        let life =
            Life { id: id.clone(), pid: told.pid, created: told.created, started: told.created, ..Life::default() };
        (id.clone(), Process::new(life))
    });
    Rc::new(Entry {
        namespace: ns.clone(),
        id: task.id.clone(),
        shim: task.shim.clone(),
        attachment: task.attachment.clone(),
        group: prepared.as_ref().and_then(|p| p.record.group.clone()),
        ends_at_once: prepared.as_ref().is_some_and(|p| p.ends_at_once()),
        remove_on_exit: prepared.as_ref().is_some_and(|p| p.run.remove_on_exit),
        runc: prepared.as_ref().map_or_else(|| deps.layout.runc_of(ns, &task.id), |p| p.runc(deps, ns)),
        // It may be one that is restored, if it has not begun.
        patience: prepared.as_ref().map_or_else(Patience::unknown, |p| p.patience(task.started.is_none())),
        cgroup: prepared.map_or_else(|| deps.layout.cgroup(ns, &task.id), |p| p.cgroup),
        link: Link::looking(),
        init: Process::new(life),
        execs: RefCell::new(execs.collect()),
        leaving: Default::default(),
        starting: Default::default(),
        news: Default::default(),
        past: Default::default(),
        granted: Default::default(),
        paused: Default::default(),
        home: Default::default(),
        removing: Default::default(),
        recorded: Default::default(),
    })
}

/// So often the connection to a shim may break before it is said to be out of reach.
const BREAKS: u32 = 3;
/// The first and the longest pause between two attempts to find one.
const AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));

/// Asks the task's shim, for as long as it lives. `None`: there is none any more, and the entry says how the task
/// ended; or the entry `is_current` no more. A shim that can't be talked to is waited for to its end, and one that can't be
/// looked for now, for want of descriptors, say, is looked for again: it is alive, as far as anybody knows.
pub(crate) async fn find(deps: &Deps, entry: &Rc<Entry>, is_current: impl Fn() -> bool) -> Option<Connection> {
    let (mut pause, mut breaks) = (AGAIN.0, 0);
    loop {
        let mut asking = std::pin::pin!(ask(deps, entry));
        let answer = match tokio::time::timeout(ANSWER, asking.as_mut()).await {
            Ok(answer) => answer,
            Err(_) => {
                tracing::error!(container = %entry.id, shim = %entry.shim, "its shim doesn't answer: it is waited for");
                entry.link.mute(SILENT);
                // It has the question, and answers it when it goes on, or dies of what it is in.
                asking.await
            }
        };
        let error = match answer {
            Ok(connection) => return Some(connection),
            Err(error) => error,
        };
        if shim::is_gone(&error) {
            tracing::info!(container = %entry.id, %error, "its shim is gone");
            break;
        }
        if error.code == Code::Unimplemented {
            tracing::error!(container = %entry.id, shim = %entry.shim, %error, "its shim can't be talked to");
            entry.link.mute(format!("its shim {}", error.message));
            // Its end can be seen without a word.
            if let Ok(connection) = shim::find(&deps.layout, &entry.shim) {
                tokio::select! {
                    biased;
                    () = connection.ended.clone() => {}
                    () = entry.link.lost() => return None,
                }
            }
        } else if shim::broke(&error) && breaks < BREAKS {
            // It died, most likely, which the next attempt finds.
            (pause, breaks) = (AGAIN.0, breaks + 1);
        } else {
            tracing::error!(container = %entry.id, shim = %entry.shim, %error, "its shim can't be looked for now");
            entry.link.mute(format!("its shim can't be looked for now: {error}"));
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = entry.link.lost() => return None,
        }
        pause = (pause * 2).min(AGAIN.1);
    }
    // Whoever removes it sees to its end, unless that fails. By now its cgroup may be another's of its name.
    while entry.removing.get() && is_current() {
        tokio::time::sleep(AGAIN.0).await;
    }
    if is_current() {
        lost(deps, entry).await;
    }
    None
}

async fn ask(deps: &Deps, entry: &Rc<Entry>) -> Result<Connection> {
    let connection = shim::find(&deps.layout, &entry.shim)?;
    shim::hello(&connection.shim).await?;
    let mut request = connection.shim.container_request();
    request.get().set_namespace(&*entry.namespace);
    request.get().set_id(&*entry.id);
    let container = request.send().pipeline.get_container();
    let answer = container.state_request().send().promise.await.map_err(from_shim)?;
    let answer = answer.get().map_err(from_shim)?;
    entry.paused.set(answer.get_paused());
    for grant in answer.get_grants().map_err(from_shim)?.iter() {
        let grant = grant.and_then(|grant| Ok(grant.to_string()?)).map_err(from_shim)?;
        entry.granted.borrow_mut().entry(grant).or_default();
    }
    let mut there = std::collections::BTreeSet::new();
    for process in answer.get_processes().map_err(from_shim)?.iter() {
        let life = life(process)?;
        if life.deleted {
            entry.leaving.borrow_mut().insert(life.id.clone(), Process::new(life));
            continue;
        }
        there.insert(life.id.clone());
        let known = entry.process(&life.id).ok().filter(|known| known.life.borrow().created == life.created);
        match known {
            Some(process) => process.update(life),
            None if life.id.is_empty() => entry.init.update(life),
            None => drop(entry.execs.borrow_mut().insert(life.id.clone(), Process::new(life))),
        }
    }
    // Of what it has forgotten the end is told with that of the container.
    entry.execs.borrow_mut().retain(|exec, _| there.contains(exec));
    entry.link.found(Remote { container, fds: connection.fds.clone(), _close: connection.close.clone() });
    Ok(connection)
}

/// The shim is gone: its life record says what it still saw; otherwise the container dies with it, now.
pub(crate) async fn lost(deps: &Deps, entry: &Rc<Entry>) {
    if let Err(error) = remove::cleanup(&entry.cgroup, deps.layout.bundle(&entry.namespace, &entry.id)).await {
        tracing::error!(container = %entry.id, %error, "what its lost shim left can't be removed");
    }
    gone(deps, entry);
}

/// Those of which only the shim knew: the daemon that was told of their start died before the tables had it.
fn unrecorded(deps: &Deps, entry: &Entry) {
    let path = deps.layout.shim(&entry.shim);
    let (Ok(dir), Ok(files)) = (File::open(&path), std::fs::read_dir(&path)) else { return };
    for name in files.filter_map(|file| file.ok()?.file_name().into_string().ok()) {
        let Some(exec) = record::exec_of(&name, &entry.id) else { continue };
        if entry.process(exec).is_ok() || entry.leaving.borrow().contains_key(exec) {
            continue;
        }
        match record::load(dir.as_fd(), &name) {
            Ok(life) if life.started != Timestamp(0) => {
                let of = if life.deleted { &entry.leaving } else { &entry.execs };
                of.borrow_mut().insert(exec.to_owned(), Process::new(life));
            }
            Ok(_) => {} // It was never begun, and has no end.
            Err(error) => tracing::warn!(container = %entry.id, exec, %error, "its life record can't be read"),
        }
    }
}

/// What became of the processes of a shim that is gone.
pub(crate) fn gone(deps: &Deps, entry: &Rc<Entry>) {
    entry.link.lose("its shim is gone");
    drop(entry.home.take());
    unrecorded(deps, entry);
    let end = |process: &Process, exec: &str| {
        if process.ended().is_some() {
            return;
        }
        let (dir, name) = (File::open(deps.layout.shim(&entry.shim)), record::file_name(&entry.id, exec));
        let seen = dir.as_ref().ok().and_then(|dir| record::load(dir.as_fd(), &name).ok());
        let mut life = seen.unwrap_or_else(|| process.life.borrow().clone());
        if life.exited == Timestamp(0) {
            life.exited = Timestamp::now();
            life.status = 128 + libc::SIGKILL as u32;
            // The state directory ends with a reboot: no directory, no host that the shim could have run on.
            life.reason = if dir.is_ok() { "shim lost" } else { "host restarted" }.to_owned();
            // As its shim would have: a daemon that comes after us, before the tables have it, tells the same end.
            if let Ok(dir) = &dir
                && let Err(error) = record::store(dir.as_fd(), &name, &life)
            {
                tracing::warn!(container = %entry.id, %error, "its life record can't be completed");
            }
        }
        process.update(life);
    };
    for (exec, process) in entry.execs.borrow().iter() {
        end(process, exec);
    }
    end(&entry.init, "");
}
