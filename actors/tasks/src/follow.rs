//! What becomes of a task while nobody asks: its shim is found or lost, its processes end.

use std::{rc::Rc, time::Duration};

use cofferdam_metadata::{
    Tx,
    records::{
        events,
        tasks::{self, State},
    },
};
use cofferdam_types::{Authority, Code, Event, Timestamp};
use cofferdam_wire::convert::life;
use tokio::task::JoinHandle;

use crate::{
    actor::Ctx,
    entry::Entry,
    recover, remove,
    shim::{Connection, from_shim},
};

/// The first and the longest pause between two attempts to remove what ended, of which the longest is the last, or to
/// record it while the disk is full.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

impl Ctx {
    /// Finds a task again, and follows it.
    pub(crate) async fn find(self, entry: Rc<Entry>, was_recorded: bool) {
        if was_recorded {
            entry.recorded.send_replace(true);
        }
        let was_started = entry.init.life.borrow().started != Timestamp(0);
        let connection = recover::find(&self.deps, &entry).await;
        let (started, pid) = { (entry.init.life.borrow().started, entry.init.life.borrow().pid) };
        if !was_started && !was_recorded && started != Timestamp(0) {
            // The daemon ended between the start and its record.
            self.record_start(&entry, "", pid).await;
        }
        if entry.init.ended().is_some() && (!was_recorded || entry.remove_on_exit) {
            self.ended(&entry, "").await;
        }
        if let Some(connection) = connection {
            self.follow(entry, &connection);
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
            self.end_with_grant(&entry, exec);
        }
        if entry.init.ended().is_none() {
            self.watch_memory(&entry);
        }
        let (ctx, ended) = (self.clone(), connection.ended.clone());
        tokio::task::spawn_local(async move {
            // A shim may outlive the task.
            tokio::select! {
                biased;
                () = ended => {}
                () = entry.link.lost() => return,
            }
            if entry.removing.get() || entry.init.ended().is_some() {
                entry.link.lose("its shim has ended");
                return;
            }
            recover::lost(&ctx.deps, &entry).await;
            ctx.ended(&entry, "").await;
        });
    }

    /// Ends a process with the grant through which it was run, before this daemon or the crash of this actor: nobody else knows of it.
    fn end_with_grant(&self, entry: &Rc<Entry>, exec: String) {
        let Ok(process) = entry.process(&exec) else { return };
        let grant = process.life.borrow().grant.clone();
        // Of damaged tables nobody knows whether the grant was among what is lost.
        if grant.is_empty() || self.deps.metadata.writable().is_err() {
            return;
        }
        let (deps, entry) = (self.deps.clone(), entry.clone());
        tokio::task::spawn_local(async move {
            let mut over = process.exit.subscribe();
            let ended = async {
                // What is no id is that of no grant.
                if let Ok(id) = grant.parse() {
                    deps.grants.until_ended(id).await;
                }
                let mut pause = AGAIN.0;
                while let Err(error) = entry.kill(&exec, libc::SIGKILL as u32, false).await {
                    // One that was made and not started nobody can start any more through the grant.
                    if error.code != Code::Unavailable {
                        return;
                    }
                    tracing::warn!(container = %entry.id, exec, %error, "a process outlives the grant through which it was run");
                    tokio::time::sleep(pause).await;
                    pause = AGAIN.1.min(pause * 2);
                }
            };
            tokio::select! {
                _ = over.wait_for(Option::is_some) => {}
                () = entry.link.lost() => {}
                () = ended => {}
            }
        });
    }

    /// Waits for a process's end and makes it known. With `holds` the connection stays until then, and with it the shim.
    pub(crate) fn watch(&self, entry: &Rc<Entry>, exec: String, holds: bool) -> JoinHandle<()> {
        let (ctx, entry) = (self.clone(), entry.clone());
        tokio::task::spawn_local(async move {
            let Ok(remote) = entry.link.remote().await else { return };
            let mut request = remote.container.wait_request();
            request.get().set_id(&exec);
            let held = Some(remote).filter(|_| holds);
            // An error means that the shim is gone: whoever watches the connection sees to that.
            let Ok(answer) = request.send().promise.await else { return };
            let Ok(life) = answer.get().and_then(|a| a.get_life()).map_err(from_shim).and_then(life) else { return };
            // What the shim has of it may go now: what follows may take its time.
            drop((held, answer));
            let Ok(process) = entry.process(&exec) else { return };
            if process.ended().is_none() {
                process.update(life);
                ctx.ended(&entry, &exec).await;
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

    /// A process runs, and who started it knows: now the tables.
    pub(crate) async fn record_start(&self, entry: &Entry, exec: &str, pid: u32) {
        let (ns, id, exec) = (entry.namespace.clone(), entry.id.clone(), exec.to_owned());
        let started = entry.init.life.borrow().started;
        let write = move |tx: &mut Tx<'_>| {
            let Some(mut task) = tasks::find(tx, &ns, &id)? else { return Ok(()) };
            if !exec.is_empty() {
                let payload = serde_json::json!({ "container_id": id, "exec_id": exec, "pid": pid });
                return events::emit(tx, Event::new(&ns, "/tasks/exec-started", payload));
            }
            if task.exit.is_none() {
                task.state = State::Running;
            }
            task.pid = pid;
            task.started = Some(started);
            tasks::update(tx, &ns, task)?;
            let payload = serde_json::json!({ "container_id": id, "pid": pid });
            events::emit(tx, Event::new(&ns, "/tasks/start", payload))
        };
        if let Err(error) = self.deps.metadata.write_lazily(&Authority::system(), write).await {
            tracing::error!(container = %entry.id, %error, "a start can't be recorded");
        }
    }

    /// A process was made beside the first one, and who asked for it is about to know.
    pub(crate) async fn record_exec(&self, entry: &Entry, exec: &str) {
        let payload = serde_json::json!({ "container_id": entry.id, "exec_id": exec });
        let ns = entry.namespace.clone();
        let write = move |tx: &mut Tx<'_>| events::emit(tx, Event::new(&ns, "/tasks/exec-added", payload.clone()));
        if let Err(error) = self.deps.metadata.write_lazily(&Authority::system(), write).await {
            tracing::error!(container = %entry.id, %error, "a new process can't be told of");
        }
    }

    /// A process ended, and those who wait know: now the tables.
    async fn ended(&self, entry: &Rc<Entry>, exec: &str) {
        if exec.is_empty() && entry.remove_on_exit {
            let mut pause = AGAIN.0;
            while !self.removed_with(entry).await {
                if pause > AGAIN.1 {
                    return;
                }
                remove::record_exit(&self.deps, entry, exec).await;
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        } else {
            // Who removes it records its end too.
            let mut pause = AGAIN.0;
            while !entry.removing.get() && remove::record_exit(&self.deps, entry, exec).await {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN.1);
            }
        }
    }

    /// Removes a container that was to go with its task. Whether it is gone, or somebody else is at it.
    async fn removed_with(&self, entry: &Rc<Entry>) -> bool {
        let (ns, id) = (&entry.namespace, &entry.id);
        let _turn = self.turn(ns, id).await;
        // Another task of that name is another's business.
        let is_current = self.entries.borrow().get(&(ns.clone(), id.clone())).is_some_and(|e| Rc::ptr_eq(e, entry));
        if !is_current {
            return true;
        }
        let _group = self.group_turn(ns, id).await;
        match remove::remove(&self.deps, &Authority::system(), ns, id, Some(entry), true).await {
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
