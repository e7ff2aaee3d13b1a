//! What becomes of a task while nobody asks: its shim is found or lost, its processes end.

use std::{rc::Rc, time::Duration};

use cofferdam_metadata::{
    Tx,
    records::{events, tasks::Task},
};
use cofferdam_types::{Authority, Code, Event, Result, Timestamp};
use cofferdam_wire::convert::life;
use tokio::task::JoinHandle;

use crate::{
    actor::{Ctx, beside},
    entry::{Entry, Process},
    pause::{PAUSED, RESUMED},
    recover,
    remove::{self, persisted},
    shim::{Connection, from_shim},
    told,
};

/// The first and the longest pause between two attempts to remove what ended, of which the longest is the last, or to
/// record it while the disk is full.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// The pauses between attempts: each is twice the one before, up to the longest.
pub(crate) struct Pauses(Duration);

impl Pauses {
    pub fn new() -> Pauses {
        Pauses(AGAIN.0)
    }

    pub async fn pass(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(AGAIN.1);
    }
}

impl Ctx {
    /// Finds a task again, and follows it.
    pub(crate) async fn find(self, entry: Rc<Entry>, task: &Task) {
        let was_recorded = task.exit.is_some();
        if was_recorded {
            entry.recorded.send_replace(true);
        }
        let was_started = entry.init.life.borrow().started != Timestamp(0);
        let connection = recover::find(&self.deps, &entry, || self.is_current(&entry)).await;
        let started = entry.init.life.borrow().started;
        if !was_started && !was_recorded && started != Timestamp(0) {
            // The daemon ended between the start and its record.
            self.record_start(&entry, "", &entry.init).await;
        }
        self.tell_execs(&entry, task).await;
        let paused = entry.paused.get();
        if connection.is_some() && entry.init.ended().is_none() && paused != task.state.is_paused() {
            // Or between a pause and its record.
            let (ctx, entry, topic) = (self.clone(), entry.clone(), if paused { PAUSED } else { RESUMED });
            beside(async move { ctx.tell(&entry, &Authority::system(), topic).await }).await;
        }
        if entry.init.ended().is_some() && (!was_recorded || entry.remove_on_exit) {
            self.ended(&entry).await;
        }
        if let Some(connection) = connection {
            self.follow(entry, &connection);
        }
    }

    /// Tells of the other processes what a daemon before this one didn't, or the actor.
    async fn tell_execs(&self, entry: &Rc<Entry>, task: &Task) {
        let Some(known) = &task.execs else {
            if let Err(error) = told::adopt(&self.deps, entry).await {
                tracing::error!(container = %entry.id, %error, "its processes can't be recorded");
            }
            return;
        };
        let all: Vec<_> = {
            let (execs, leaving) = (entry.execs.borrow(), entry.leaving.borrow());
            execs.iter().chain(&*leaving).map(|(exec, process)| (exec.clone(), process.clone())).collect()
        };
        for (exec, process) in all {
            let (created, began) = {
                let life = process.life.borrow();
                (life.created, life.started != Timestamp(0))
            };
            let told = known.get(&exec).filter(|told| told.created == created);
            process.recorded.set(told.is_some_and(|told| told.ended));
            if process.ended().is_some() {
                self.exec_ended(entry, exec, process);
            } else if told.is_none() && began {
                self.record_start(entry, &exec, &process).await;
            }
        }
    }

    /// Watches the shim and every process that runs.
    pub(crate) fn follow(&self, entry: Rc<Entry>, connection: &Connection) {
        let running: Vec<String> = std::iter::once(String::new())
            .chain(entry.execs.borrow().keys().cloned())
            .filter(|exec| entry.process(exec).is_ok_and(|p| p.ended().is_none()))
            .collect();
        for exec in running {
            // What was not started may never be, and has no end then.
            let begun = entry.process(&exec).is_ok_and(|p| p.life.borrow().started != Timestamp(0));
            self.watch(&entry, exec.clone(), begun || exec.is_empty());
        }
        self.end_all_with_their_grants(&entry);
        if entry.init.ended().is_none() {
            self.watch_memory(&entry);
        }
        let (ctx, ended) = (self.clone(), connection.ended.clone());
        tokio::task::spawn_local(async move {
            // A shim may outlive the task.
            tokio::select! {
                biased;
                () = ended => {}
                () = entry.link.lost() => {}
            }
            let mut was_told = entry.init.ended().is_some();
            if entry.removing.get() || !ctx.is_current(&entry) {
                entry.link.lose("its shim has ended");
                if !ctx.stays(&entry).await {
                    return;
                }
                // The removal failed behind the end of its shim: of what it found nothing is on record.
                was_told = *entry.recorded.borrow();
            }
            recover::lost(&ctx.deps, &entry).await;
            // One of the others may end behind the first.
            for (exec, process) in entry.execs.borrow().iter() {
                ctx.exec_ended(&entry, exec.clone(), process.clone());
            }
            if !was_told {
                ctx.ended(&entry).await;
            }
        });
    }

    /// Waits for a process's end and makes it known. With `holds` the connection stays until then, and with it the shim.
    pub(crate) fn watch(&self, entry: &Rc<Entry>, exec: String, holds: bool) -> JoinHandle<()> {
        let (ctx, entry) = (self.clone(), entry.clone());
        let process = entry.process(&exec);
        tokio::task::spawn_local(async move {
            // Its own: whoever deletes it doesn't keep its end from being told.
            let Ok(process) = process else { return };
            let Ok(remote) = entry.link.remote().await else { return };
            let mut request = remote.container.wait_request();
            request.get().set_id(&exec);
            let held = Some(remote).filter(|_| holds);
            // An error means that the shim is gone: whoever watches the connection sees to that.
            let Ok(answer) = request.send().promise.await else { return };
            let Ok(life) = answer.get().and_then(|a| a.get_life()).map_err(from_shim).and_then(life) else { return };
            // What the shim has of it may go now: what follows may take its time.
            drop((held, answer));
            let is_news = process.ended().is_none();
            if is_news {
                process.update(life);
            }
            match exec.is_empty() {
                true if is_news => ctx.ended(&entry).await,
                true => {}
                false => ctx.exec_ended(&entry, exec, process),
            }
        })
    }

    /// Makes known when the container runs out of memory, and what it did before anybody looked.
    fn watch_memory(&self, entry: &Rc<Entry>) {
        let (ctx, entry) = (self.clone(), entry.clone());
        tokio::task::spawn_local(async move {
            // Not the connection itself: it may end while we wait.
            let Ok(container) = entry.link.remote().await.map(|remote| remote.container) else { return };
            let mut seen = 0;
            loop {
                let mut request = container.oom_request();
                request.get().set_seen(seen);
                let answer = tokio::select! {
                    answer = request.send().promise => answer,
                    () = entry.link.lost() => return,
                };
                // The shim is gone, or older than the question.
                let Ok(answer) = answer else { return };
                let life = answer.get().and_then(|a| a.get_life()).map_err(from_shim).and_then(life);
                let Ok(life) = life else { return };
                seen = life.ooms;
                entry.init.out_of_memory(&life);
                remove::record_oom(&ctx.deps, &entry).await;
            }
        });
    }

    /// Writes what has happened, until it is written or can't be; what `is_over` needn't be any more. Whether it was.
    async fn insist(
        &self,
        entry: &Rc<Entry>,
        is_over: impl Fn() -> bool,
        failed: &str,
        write: impl AsyncFn() -> Result<()>,
    ) -> bool {
        let mut pauses = Pauses::new();
        loop {
            let written = write().await;
            let Err(error) = &written else { return true };
            tracing::error!(container = %entry.id, %error, "{failed}");
            if !told::may_come(&written) || is_over() {
                return false;
            }
            pauses.pass().await;
            // Who removes it writes it too, if he comes to that.
            while entry.removing.get() {
                if !self.is_current(entry) {
                    return false;
                }
                pauses.pass().await;
            }
        }
    }

    /// Another task of that name is another's business.
    fn is_current(&self, entry: &Rc<Entry>) -> bool {
        let key = (entry.namespace.clone(), entry.id.clone());
        self.entries.borrow().get(&key).is_some_and(|current| Rc::ptr_eq(current, entry))
    }

    /// Waits for the removal that is under way, and says whether it failed: the task is there still.
    async fn stays(&self, entry: &Rc<Entry>) -> bool {
        let mut pauses = Pauses::new();
        while entry.removing.get() && self.is_current(entry) {
            pauses.pass().await;
        }
        self.is_current(entry)
    }

    /// A process runs, and who started it knows: now the tables. Its end tells it too, where that comes first.
    pub(crate) async fn record_start(&self, entry: &Rc<Entry>, exec: &str, process: &Rc<Process>) {
        let (ctx, entry, exec, process) = (self.clone(), entry.clone(), exec.to_owned(), process.clone());
        beside(async move {
            let write = async || match &*exec {
                "" => remove::record_start(&ctx.deps, &entry).await,
                exec => told::record_start(&ctx.deps, &entry, exec, &process).await,
            };
            let is_over = || process.ended().is_some();
            ctx.insist(&entry, is_over, "a start can't be recorded", write).await;
        })
        .await;
    }

    /// A process was made beside the first one, and who asked for it is about to know.
    pub(crate) async fn record_exec(&self, entry: &Rc<Entry>, exec: &str) {
        let payload = serde_json::json!({ "container_id": entry.id, "exec_id": exec });
        let (ctx, entry, auth) = (self.clone(), entry.clone(), Authority::system());
        beside(async move {
            let ns = entry.namespace.clone();
            let event = move |tx: &mut Tx<'_>| events::emit(tx, Event::new(&ns, "/tasks/exec-added", payload.clone()));
            let write = async || persisted(async || ctx.deps.metadata.write_lazily(&auth, event.clone()).await).await;
            ctx.insist(&entry, || false, "a new process can't be told of", write).await;
        })
        .await;
    }

    /// A process beside the first ended, and those who wait know: now the tables, beside whatever comes.
    pub(crate) fn exec_ended(&self, entry: &Rc<Entry>, exec: String, process: Rc<Process>) {
        let (ctx, entry) = (self.clone(), entry.clone());
        tokio::task::spawn_local(async move {
            let write = async || told::record_end(&ctx.deps, &entry, &exec, &process, false).await;
            if ctx.insist(&entry, || false, "an exit can't be recorded", write).await {
                told::forget(&entry, &exec, &process).await;
            }
        });
    }

    /// The first process ended, and those who wait know: now the tables.
    async fn ended(&self, entry: &Rc<Entry>) {
        // A start that is not answered yet is told before it; one that nobody answers keeps no end from being told.
        let _ = entry.begun("its end waits for that").await;
        if entry.remove_on_exit {
            let mut pauses = Pauses::new();
            loop {
                if self.removed_with(entry).await {
                    return;
                }
                if pauses.0 == AGAIN.1 {
                    break;
                }
                let _ = remove::record_exit(&self.deps, entry).await;
                pauses.pass().await;
            }
        }
        // Who removes it records its end too.
        let write = async || remove::record_exit(&self.deps, entry).await;
        self.insist(entry, || false, "an exit can't be recorded", write).await;
    }

    /// Removes a container that was to go with its task. Whether it is gone, or somebody else is at it.
    async fn removed_with(&self, entry: &Rc<Entry>) -> bool {
        let (ns, id) = (&entry.namespace, &entry.id);
        let _turn = self.turn(ns, id).await;
        if !self.is_current(entry) {
            return true;
        }
        let _group = self.group_turn(ns, id).await;
        // Nobody has asked for the others of its group to die.
        let force = entry.group.is_none();
        match remove::remove(&self.deps, &Authority::system(), ns, id, Some(entry), force).await {
            Err(error) if error.code != Code::NotFound => {
                tracing::error!(container = %id, %error, "it can't be removed after its end");
                false
            }
            _ => {
                self.departed.note(entry);
                self.removed(ns, id);
                true
            }
        }
    }
}
