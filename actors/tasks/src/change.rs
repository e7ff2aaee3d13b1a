//! What changes of a container's record: its labels, its spec, payloads of others, its id.

use std::rc::Rc;

use actix::{Context, Handler, ResponseFuture};
use cofferdam_metadata::{
    Tx,
    records::{
        containers::{self, Container},
        snapshots, tasks,
    },
};
use cofferdam_types::{Authority, Error, Id, Name, Namespace, Result};

use crate::{
    actor::{Ctx, TasksActor, note},
    create::{self, given},
    entry::Entry,
    messages::{ChangeContainer, Changes, Rename},
    recover, remove,
    rights::bounded,
    run, shim,
};

impl Handler<ChangeContainer> for TasksActor {
    type Result = ResponseFuture<Result<Container>>;
    fn handle(&mut self, message: ChangeContainer, _: &mut Context<Self>) -> Self::Result {
        note("ChangeContainer", &message.namespace, &message.id, &message.authority);
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let ChangeContainer { namespace, id, authority, changes, fields } = message;
            ctx.change(&authority, &namespace, &id, changes, fields).await
        })
    }
}

impl Handler<Rename> for TasksActor {
    type Result = ResponseFuture<Result<()>>;
    fn handle(&mut self, message: Rename, _: &mut Context<Self>) -> Self::Result {
        note("Rename", &message.namespace, &message.id, &message.authority);
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let Rename { namespace, id, authority, to } = message;
            ctx.rename(&authority, &namespace, &id, to).await
        })
    }
}

impl Ctx {
    async fn change(
        &self,
        auth: &Authority,
        ns: &Namespace,
        id: &Id,
        changes: Changes,
        fields: Vec<String>,
    ) -> Result<Container> {
        let _turn = self.turn(ns, id).await;
        let mut record = containers::get(&self.deps.metadata.read()?, ns, id)?;
        record.labels = changes.labels;
        record.extensions = changes.extensions;
        if fields.is_empty() || fields.iter().any(|field| field == "spec") {
            if !auth.ceiling.host {
                return Err(Error::denied("container", id, "a spec of its own needs the host right"));
            }
            let before = run::prepare(&self.deps, ns, id)?.cgroup;
            record.spec.value = given(&changes.spec.value, id, before.clone())?;
            bounded(&record.spec.value, &record.ceiling.intersect(&auth.ceiling))?;
            if !changes.spec.type_url.is_empty() {
                record.spec.type_url = changes.spec.type_url;
            }
            // By it the task is found, and killed if it is lost.
            if self.entry(ns, id).is_ok() && create::cgroup_in(&record.spec.value).as_ref() != Some(&before) {
                let why = format!("has a task in the cgroup {before}: delete the task, or leave linux.cgroupsPath out");
                return Err(Error::failed_precondition("container", id, why));
            }
        }
        let namespace = ns.clone();
        let write = move |tx: &mut Tx<'_>| containers::update_fields(tx, &namespace, record.clone(), &fields);
        self.deps.metadata.write(auth, write).await
    }

    /// What its directories are named after changes with its id: so nothing of it may run.
    async fn rename(&self, auth: &Authority, ns: &Namespace, id: &Id, to: Id) -> Result<()> {
        if *id == to {
            return Err(Error::already_exists("container", &to, "has that name already"));
        }
        // In one order, whoever renames what: two that change names don't wait for each other.
        let (first, second) = if *id < to { (id, &to) } else { (&to, id) };
        let _turns = (self.turn(ns, first).await, self.turn(ns, second).await);
        let _group = self.group_turn(ns, id).await?;
        let (renamed, over) = {
            let view = self.deps.metadata.read()?;
            if containers::exists(&view, ns, &to)? {
                return Err(Error::already_exists("container", &to, containers::TAKEN));
            }
            // One that can't be read may run, by the name that it has.
            tasks::find(&view, ns, id)?;
            (containers::get(&view, ns, id)?, self.entry(ns, id).ok())
        };
        if let Some(entry) = &over {
            entry.ended_or("stop it first").await?;
        }
        let written = async {
            self.deps.layout.link_log(ns, id, &to)?;
            if let Some(entry) = &over {
                remove::end(&self.deps, entry).await?;
            }
            self.write_name(auth, ns, id, &to, renamed, over.as_ref()).await
        };
        let written = written.await;
        let (kept, gone) = if written.is_ok() { (&to, id) } else { (id, &to) };
        remove::forget_files(&self.deps, ns, gone, None);
        if let Some(entry) = over.filter(|entry| entry.removing.get()) {
            // Its shim is gone, and what that knew is on record.
            remove::forget_files_of(&self.deps, &entry);
            self.deps.networks.released(entry.attachment.as_ref()).await;
            if let Ok(task) = tasks::get(&self.deps.metadata.read()?, ns, kept) {
                let fresh = recover::entry(&self.deps, ns, &task);
                fresh.link.lose("its shim went with its old name");
                fresh.recorded.send_replace(true);
                self.forget(&entry);
                self.entries.borrow_mut().insert((ns.clone(), kept.clone()), fresh);
            }
        }
        if written.is_ok() {
            self.removed(ns, id);
        }
        written
    }

    async fn write_name(
        &self,
        auth: &Authority,
        ns: &Namespace,
        id: &Id,
        to: &Id,
        mut renamed: Container,
        over: Option<&Rc<Entry>>,
    ) -> Result<()> {
        let ours = self.deps.layout.cgroup(ns, id);
        if create::cgroup_in(&renamed.spec.value).as_ref() == Some(&ours) {
            renamed.spec.value = create::with_cgroup(&renamed.spec.value, to, self.deps.layout.cgroup(ns, to))?;
        }
        renamed.id = to.clone();
        let old_key = renamed.snapshot_key.clone().filter(|key| key.as_str() == id.as_str());
        if old_key.is_some() {
            renamed.snapshot_key = Some(Name::new(to.as_str())?);
        }
        let end = over.and_then(|entry| remove::End::of(entry));
        let none = shim::new_id()?;
        let (ns, id, to) = (ns.clone(), id.clone(), to.clone());
        let write = move |tx: &mut Tx<'_>| {
            if let Some(end) = &end {
                end.record(tx, &ns, &id)?;
                tasks::rename(tx, &ns, &id, to.clone(), none.clone())?;
            }
            if let (Some(old), Some(new)) = (&old_key, &renamed.snapshot_key) {
                snapshots::rename(tx, &ns, &renamed.driver, old, new.clone())?;
            }
            containers::rename(tx, &ns, &id, renamed.clone()).map(drop)
        };
        self.deps.metadata.write(auth, write).await
    }
}
