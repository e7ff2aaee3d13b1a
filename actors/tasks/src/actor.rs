//! The actor: which tasks there are, and a future for every request.

use std::{cell::RefCell, collections::BTreeMap, os::fd::OwnedFd, rc::Rc, sync::Arc};

use actix::{Actor, AsyncContext as _, Context, Handler, ResponseFuture};
use cofferdam_kernel::hosted;
use cofferdam_metadata::records::{
    containers,
    tasks::{Exit, Task},
};
use cofferdam_types::{Authority, Error, Id, Namespace, Result};
use cofferdam_wire::received::Received;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use crate::{
    coming::Arrivals,
    copy::Copies,
    departed::Departed,
    entry::Entry,
    exec,
    handle::Deps,
    layout,
    messages::{
        Attach, Attached, CloseStdin, CreateTask, DeleteProcess, Dump, Exec, Execs, Kill, Known, LogLost, Observe,
        Pause, ProcessState, Query, Remove, Removed, Resize, Stdin,
    },
    recover, remove,
    restore::{self, Dumped},
    rights,
    run::{self, set_stdio},
    shim::from_shim,
    spare::Spares,
    sweep, told,
};

pub(crate) type Key = (Namespace, Id);

/// What every future of the actor may look at.
#[derive(Clone)]
pub(crate) struct Ctx {
    pub deps: Arc<Deps>,
    pub entries: Rc<RefCell<BTreeMap<Key, Rc<Entry>>>>,
    /// For those who wait until a container is gone, whether or not it has a task yet.
    removals: Rc<RefCell<BTreeMap<Key, watch::Sender<bool>>>>,
    /// What makes or removes a task, one after the other for each container: a removal that comes while a shim is
    /// being started would not see it.
    turns: Rc<RefCell<BTreeMap<Key, Arc<Mutex<()>>>>>,
    /// The same of groups.
    pub groups: Rc<RefCell<BTreeMap<Key, Arc<Mutex<()>>>>>,
    /// The same of those who ask shims how they are.
    pub questions: Rc<RefCell<BTreeMap<String, Arc<Mutex<()>>>>>,
    pub spares: Rc<Spares>,
    pub departed: Departed,
    pub coming: Arrivals,
    pub copies: Copies,
}

/// See the crate's page.
pub struct TasksActor {
    pub(crate) ctx: Ctx,
    /// Whether it is the daemon's start: clients of a crashed actor are still there, and go on.
    first: bool,
}

hosted!(TasksActor);

impl TasksActor {
    pub(crate) fn new(deps: Arc<Deps>, first: bool) -> TasksActor {
        let ctx = Ctx {
            spares: Spares::new(deps.clone()),
            deps,
            entries: Rc::default(),
            removals: Rc::default(),
            turns: Rc::default(),
            groups: Rc::default(),
            questions: Rc::default(),
            departed: Departed::default(),
            coming: Arrivals::default(),
            copies: Copies::default(),
        };
        TasksActor { ctx, first }
    }
}

impl Actor for TasksActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        let (recorded, blind) = match recover::all(&self.ctx.deps) {
            Ok(recorded) => (recorded.tasks, recorded.blind),
            Err(error) => {
                // PANIC: without the records nothing can be found: the kernel tries again later.
                panic!("the task records can't be read: {error}");
            }
        };
        let known = recorded.iter().map(|(_, task)| task.shim.clone()).collect();
        if blind {
            tracing::error!("a task's record can't be read: of what has no other task nothing is ended or removed");
        }
        let sweeps = self.ctx.deps.metadata.writable().is_ok() && !blind;
        let swept = if sweeps { sweep::dirs(&self.ctx.deps, &known, self.first) } else { Ok(Vec::new()) };
        let unmade = swept.unwrap_or_else(|error| {
            tracing::warn!(%error, "what a crash left can't be removed");
            Vec::new()
        });
        let shims = sweep::unknown(&self.ctx.deps, &known);
        let spares = self.ctx.deps.layout.spares();
        let looked = if blind { Ok(Vec::new()) } else { self.ctx.deps.networks.orphans() };
        let orphans = looked.unwrap_or_else(|error| {
            tracing::warn!(%error, "networks that a crash left can't be looked for");
            Vec::new()
        });
        self.ctx.deps.children.reap_all();
        let looked = if blind { Ok(Vec::new()) } else { sweep::unborn(&self.ctx.deps) };
        let mut unborn = looked.unwrap_or_else(|error| {
            tracing::warn!(%error, "what a crash left can't be looked for");
            Vec::new()
        });
        if !self.first {
            // Their makers are still there, or have gone meanwhile.
            unborn.drain(..).for_each(|(ns, id)| self.ctx.expect_start(&ns, &id, None));
        }
        // Nobody has asked for anything yet: the turns are free.
        let unborn = unborn.into_iter().filter_map(|(ns, id)| {
            let turn = self.ctx.turn_of(&ns, &id).try_lock_owned().ok()?;
            Some((ns, id, turn))
        });
        let unborn = unborn.collect();
        let unmade = unmade.into_iter().map(|(ns, id)| {
            let turn = self.ctx.turn_of(&ns, &id).try_lock_owned().ok();
            (ns, id, turn)
        });
        let unmade = unmade.collect();
        for (namespace, task) in recorded {
            let entry = recover::entry(&self.ctx.deps, &namespace, &task);
            if entry.remove_on_exit && task.started.is_none() && task.exit.is_none() {
                self.ctx.expect_start(&namespace, &task.id, None);
            }
            self.ctx.entries.borrow_mut().insert((namespace, task.id.clone()), entry.clone());
            let ctx = self.ctx.clone();
            context.spawn(actix::fut::wrap_future(async move { ctx.find(entry, &task).await }));
        }
        let ctx = self.ctx.clone();
        if sweeps {
            context
                .spawn(actix::fut::wrap_future(async move { ctx.sweep(shims, spares, orphans, unborn, unmade).await }));
        } else if blind {
            // Those are no task's, whatever it says.
            context.spawn(actix::fut::wrap_future(sweep::end_spares(spares)));
        }
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        self.ctx.spares.end();
        // What was to be tidied up in a moment.
        self.ctx.deps.layout.tidy_all();
    }
}

impl Ctx {
    pub(crate) fn entry(&self, ns: &Namespace, id: &Id) -> Result<Rc<Entry>> {
        let found = self.entries.borrow().get(&(ns.clone(), id.clone())).cloned();
        if let Some(entry) = found {
            return Ok(entry);
        }
        containers::require(&self.deps.metadata.read()?, ns, id)?;
        Err(Error::not_found("task", id, "is not there: it has not been created yet, or was deleted"))
    }

    /// A task that is not being looked for any more.
    pub(crate) async fn settled(&self, ns: &Namespace, id: &Id) -> Result<Rc<Entry>> {
        let entry = self.entry(ns, id)?;
        if entry.init.ended().is_none() {
            entry.link.settled().await?;
        }
        Ok(entry)
    }

    /// Its task is no more.
    pub(crate) fn forget(&self, entry: &Entry) {
        self.entries.borrow_mut().remove(&(entry.namespace.clone(), entry.id.clone()));
    }

    /// The container is no more, nor anything of it.
    pub(crate) fn removed(&self, ns: &Namespace, id: &Id) {
        let key = (ns.clone(), id.clone());
        self.entries.borrow_mut().remove(&key);
        self.deps.makers.take(ns, id);
        if let Some(waiting) = self.removals.borrow_mut().remove(&key) {
            waiting.send_replace(true);
        }
    }

    fn turn_of(&self, ns: &Namespace, id: &Id) -> Arc<Mutex<()>> {
        let mut turns = self.turns.borrow_mut();
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry((ns.clone(), id.clone())).or_default().clone()
    }

    pub(crate) async fn turn(&self, ns: &Namespace, id: &Id) -> OwnedMutexGuard<()> {
        self.turn_of(ns, id).lock_owned().await
    }

    fn watch_removal(&self, ns: &Namespace, id: &Id) -> Result<watch::Receiver<bool>> {
        let key = (ns.clone(), id.clone());
        // While a removal is at work the record is gone before the rest is: then the task is still known.
        if !self.entries.borrow().contains_key(&key) {
            containers::require(&self.deps.metadata.read()?, ns, id)?;
        }
        let mut removals = self.removals.borrow_mut();
        removals.retain(|_, waiting| waiting.receiver_count() > 0);
        Ok(removals.entry(key).or_default().subscribe())
    }

    async fn attach(&self, message: Attach) -> Result<Attached> {
        rights::streams_within(&message.stdio, &message.authority.ceiling)?;
        let entry = self.entry(&message.namespace, &message.id)?;
        let remote = entry.remote().await?;
        let mut request = remote.container.attach_request();
        request.get().set_id(&message.exec);
        set_stdio(request.get().init_stdio(), message.stdio, &remote.fds);
        let answer = entry.answer(&remote, request.send().promise).await?;
        let attachment = answer.get().and_then(|a| a.get_attachment()).map_err(from_shim)?;
        let (over, seen) = watch::channel(None);
        let (hold, dropped) = tokio::sync::oneshot::channel::<()>();
        tokio::task::spawn_local(async move {
            let wait = attachment.wait_request().send().promise;
            tokio::select! {
                answer = wait => {
                    let reason = answer.and_then(|a| Ok(a.get()?.get_reason()?.to_string()?));
                    over.send_replace(Some(reason.unwrap_or_else(|_| "detached".into())));
                }
                // Its capability falls with this task: that is how the shim learns of the detach.
                _ = dropped => {}
            }
        });
        Ok(Attached { over: seen, _hold: hold })
    }
}

impl Handler<CreateTask> for TasksActor {
    type Result = ResponseFuture<Result<Task>>;
    fn handle(&mut self, message: CreateTask, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let CreateTask { namespace, id, authority, stdio, log, checkpoint, presence } = message;
            let _turn = ctx.turn(&namespace, &id).await;
            let mut coming = ctx.coming.find(&namespace, &id);
            if let Some(found) = coming.clone() {
                // One that is on record already is another of that name, or this one: its commit is as good as over.
                let there = containers::exists(&ctx.deps.metadata.read()?, &namespace, &id)?;
                if there || checkpoint.is_some() || !found.is_alone() {
                    found.made().await?;
                    coming = None;
                }
            }
            let group = ctx.group_turn(&namespace, &id).await?;
            let making = ctx.deps.layout.making(&namespace);
            let made = async {
                let prepared = match &coming {
                    Some(coming) => run::prepare_early(&ctx.deps, &namespace, coming)?,
                    None => run::prepare(&ctx.deps, &namespace, &id)?,
                };
                let neighbour = ctx.neighbour(&namespace, &prepared).await?;
                let joined = match &group {
                    Some((group, _)) => ctx.shim_of(&namespace, group).await?,
                    None => None,
                };
                let (deps, spares) = (&ctx.deps, &ctx.spares);
                run::create_task(
                    deps, spares, &authority, &namespace, &id, prepared, neighbour, stdio, log, joined, checkpoint,
                )
                .await
            };
            let made = made.await;
            drop(making);
            let (entry, connection, task) = match made {
                Ok(made) => made,
                Err(error) => {
                    if let Some(coming) = coming {
                        // What is to go with its task must be there to go.
                        let _ = coming.made().await;
                    }
                    ctx.deps.layout.tidy_soon(&namespace);
                    ctx.discard_unstarted(&namespace, &id).await;
                    return Err(error);
                }
            };
            if entry.remove_on_exit {
                ctx.expect_start(&namespace, &id, Some(presence));
            }
            ctx.entries.borrow_mut().insert((namespace, id), entry.clone());
            ctx.follow(entry, &connection);
            tokio::task::spawn_local(ctx.spares.clone().refill_soon());
            Ok(task)
        })
    }
}

impl Ctx {
    /// A container that was to go with its task, and whose task could not even be made. Of one that could not be made itself there
    /// may be a log.
    async fn discard_unstarted(&self, ns: &Namespace, id: &Id) {
        if self.deps.metadata.read().and_then(|view| containers::exists(&view, ns, id)).is_ok_and(|there| !there) {
            let _ = layout::remove(&self.deps.layout.log_dir(ns, id));
        }
        let Ok(prepared) = run::prepare(&self.deps, ns, id) else { return };
        let has_task = self.entries.borrow().contains_key(&(ns.clone(), id.clone()));
        if prepared.run.remove_on_exit && !has_task {
            let removed = remove::remove(&self.deps, &Authority::system(), ns, id, None, true).await;
            match removed {
                Ok(()) => self.removed(ns, id),
                Err(error) => {
                    tracing::error!(container = %id, %error, "it can't be removed after its task could not be made");
                }
            }
        }
    }
}

impl Handler<Observe> for TasksActor {
    type Result = ResponseFuture<Result<watch::Receiver<Option<Exit>>>>;
    fn handle(&mut self, message: Observe, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let entry = match (ctx.entry(&message.namespace, &message.id), &*message.exec) {
                (Ok(entry), _) => entry,
                (Err(error), "") => {
                    let exit = ctx.departed.exit(&message.namespace, &message.id).ok_or(error)?;
                    return Ok(watch::channel(Some(exit)).1);
                }
                (Err(error), _) => return Err(error),
            };
            if !message.exec.is_empty() {
                ctx.settled(&message.namespace, &message.id).await?;
            }
            // The end of the first process can be waited for before anybody knows how it is.
            match entry.process(&message.exec) {
                Ok(process) => Ok(process.exit.subscribe()),
                Err(error) => {
                    let exit = entry.past.borrow().exit(&message.exec).ok_or(error)?;
                    Ok(watch::channel(Some(exit)).1)
                }
            }
        })
    }
}

impl Handler<Known> for TasksActor {
    type Result = ResponseFuture<Result<()>>;
    fn handle(&mut self, message: Known, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let entry = ctx.entry(&message.namespace, &message.id)?;
            if entry.state(&message.exec).is_ok() {
                return Ok(());
            }
            // Its shim may know of it.
            ctx.settled(&message.namespace, &message.id).await?.state(&message.exec).map(drop)
        })
    }
}

impl Handler<Query> for TasksActor {
    type Result = ResponseFuture<Result<ProcessState>>;
    fn handle(&mut self, message: Query, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move { ctx.settled(&message.namespace, &message.id).await?.state(&message.exec) })
    }
}

impl Handler<Execs> for TasksActor {
    type Result = ResponseFuture<Result<Vec<String>>>;
    fn handle(&mut self, message: Execs, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let entry = ctx.settled(&message.namespace, &message.id).await?;
            let execs = entry.execs.borrow().keys().cloned().collect();
            Ok(execs)
        })
    }
}

/// Begins what nobody waits for. What it asks of an actor first is in that one's queue before anything that is asked later.
pub(crate) async fn beside(work: impl Future<Output = ()> + 'static) {
    let mut work = Box::pin(work);
    if futures::poll!(&mut work).is_pending() {
        tokio::task::spawn_local(work);
    }
}

/// Who asked for what, for the log. What runs code or changes authority will be audited from here.
pub(crate) fn note(what: &str, ns: &Namespace, id: &Id, auth: &Authority) {
    let (correlation, trace) = (auth.correlation.as_deref(), auth.trace.as_deref());
    tracing::debug!(what, namespace = %ns, container = %id, grant = %auth.grant(), peer = ?auth.peer, correlation, trace);
}

/// Handlers that look the entry up and make one call to its shim.
macro_rules! calls {
    ($($message:ident -> $reply:ty = |$ctx:ident, $entry:ident, $remote:ident, $m:ident| $body:expr;)*) => {$(
        impl Handler<$message> for TasksActor {
            type Result = ResponseFuture<Result<$reply>>;
            fn handle(&mut self, $m: $message, _: &mut Context<Self>) -> Self::Result {
                let $ctx = self.ctx.clone();
                note(stringify!($message), &$m.namespace, &$m.id, &$m.authority);
                Box::pin(async move {
                    let $entry = $ctx.entry(&$m.namespace, &$m.id)?;
                    let $remote = $entry.remote().await?;
                    $body
                })
            }
        }
    )*};
}

calls! {
    Resize -> () = |ctx, entry, remote, m| {
        let _ = &ctx;
        let mut request = remote.container.resize_request();
        request.get().set_id(&m.exec);
        request.get().set_rows(m.rows);
        request.get().set_columns(m.columns);
        entry.answer(&remote, request.send().promise).await.map(drop)
    };
    CloseStdin -> () = |ctx, entry, remote, m| {
        let _ = &ctx;
        let mut request = remote.container.close_stdin_request();
        request.get().set_id(&m.exec);
        entry.answer(&remote, request.send().promise).await.map(drop)
    };
    Stdin -> OwnedFd = |ctx, entry, remote, m| {
        let _ = &ctx;
        let mut request = remote.container.stdin_request();
        request.get().set_id(&m.exec);
        let answer = entry.answer(&remote, request.send().promise).await?;
        remote.fds.take(answer.get().map_err(from_shim)?.get_write()).map(Received::into_fd)
    };
    Dump -> Dumped = |ctx, entry, remote, m| restore::dump(&ctx.deps, &entry, &remote, m.options).await;
    Pause -> () = |ctx, entry, remote, m| ctx.pause(&entry, &remote, m.authority, m.pause).await;
}

impl Handler<Kill> for TasksActor {
    type Result = ResponseFuture<Result<()>>;
    fn handle(&mut self, message: Kill, _: &mut Context<Self>) -> Self::Result {
        let Kill { namespace, id, authority, exec, signal, all } = message;
        note("Kill", &namespace, &id, &authority);
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let entry = ctx.entry(&namespace, &id)?;
            if !exec.is_empty() {
                // Before its shim is found nobody knows which there are.
                ctx.settled(&namespace, &id).await?;
            }
            // Asked before the shim is: of one that ended with its shim the answer is the same.
            if entry.process(&exec)?.ended().is_some() {
                let what = if exec.is_empty() { id.as_str() } else { exec.as_str() };
                return Err(Error::not_found("process", what, "has ended"));
            }
            entry.kill(&exec, signal, all).await
        })
    }
}

impl Handler<LogLost> for TasksActor {
    type Result = ResponseFuture<Result<u64>>;
    fn handle(&mut self, message: LogLost, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let entry = ctx.entry(&message.namespace, &message.id)?;
            let remote = entry.remote().await?;
            let answer = entry.answer(&remote, remote.container.state_request().send().promise).await?;
            Ok(answer.get().map_err(from_shim)?.get_log_lost())
        })
    }
}

impl Handler<Attach> for TasksActor {
    type Result = ResponseFuture<Result<Attached>>;
    fn handle(&mut self, message: Attach, _: &mut Context<Self>) -> Self::Result {
        note("Attach", &message.namespace, &message.id, &message.authority);
        let ctx = self.ctx.clone();
        Box::pin(async move { ctx.attach(message).await })
    }
}

impl Handler<Exec> for TasksActor {
    type Result = ResponseFuture<Result<String>>;
    fn handle(&mut self, message: Exec, _: &mut Context<Self>) -> Self::Result {
        note("Exec", &message.namespace, &message.id, &message.authority);
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let entry = ctx.entry(&message.namespace, &message.id)?;
            rights::streams_within(&message.stdio, &message.authority.ceiling)?;
            let (exec, request, stdio) = (message.exec, message.request, message.stdio);
            let made = exec::exec(&ctx.deps, &entry, &message.authority, exec, request, stdio).await;
            // Whatever was answered: it may be there.
            if let Some(grant) = message.authority.grants.last() {
                ctx.end_with_grant(&entry, grant.to_string());
            }
            let exec = made?;
            ctx.record_exec(&entry, &exec).await;
            Ok(exec)
        })
    }
}

impl Handler<DeleteProcess> for TasksActor {
    type Result = ResponseFuture<Result<Exit>>;
    fn handle(&mut self, message: DeleteProcess, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let entry = ctx.entry(&message.namespace, &message.id)?;
            if message.exec.is_empty() {
                let _turn = ctx.turn(&message.namespace, &message.id).await;
                let _group = ctx.group_turn(&message.namespace, &message.id).await?;
                // Whoever had the turn before may have deleted it.
                let entry = ctx.entry(&message.namespace, &message.id)?;
                let exit = remove::delete_task(&ctx.deps, &message.authority, &entry).await?;
                ctx.forget(&entry);
                return Ok(exit);
            }
            if let Some(exit) = entry.past.borrow_mut().take(&message.exec) {
                return Ok(exit);
            }
            let (process, kept) = told::delete(&ctx.deps, &entry, &message.exec).await?;
            let never = Exit { status: 0, at: cofferdam_types::Timestamp::now(), reason: "was never started".into() };
            let exit = process.ended().unwrap_or(never);
            if kept {
                ctx.exec_ended(&entry, message.exec, process);
            }
            Ok(exit)
        })
    }
}

impl Handler<Remove> for TasksActor {
    type Result = ResponseFuture<Result<()>>;
    fn handle(&mut self, message: Remove, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let Remove { namespace, id, authority, force } = message;
            if force {
                ctx.copies.end(&namespace, &id);
            }
            let _turn = ctx.turn(&namespace, &id).await;
            let _group = ctx.group_turn(&namespace, &id).await?;
            let entry = ctx.entries.borrow().get(&(namespace.clone(), id.clone())).cloned();
            remove::remove(&ctx.deps, &authority, &namespace, &id, entry.as_ref(), force).await?;
            ctx.removed(&namespace, &id);
            Ok(())
        })
    }
}

impl Handler<Removed> for TasksActor {
    type Result = Result<watch::Receiver<bool>>;
    fn handle(&mut self, message: Removed, _: &mut Context<Self>) -> Self::Result {
        self.ctx.watch_removal(&message.namespace, &message.id)
    }
}
