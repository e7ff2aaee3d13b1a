//! A change of a container's limits: in force first, then on record.

use std::rc::Rc;

use actix::{Context, Handler, ResponseFuture};
use cofferdam_metadata::{Tx, records::containers};
use cofferdam_oci::{native, update::Update};
use cofferdam_types::{Authority, Error, Id, Namespace, Result};
use futures::{FutureExt as _, future::LocalBoxFuture};

use crate::{
    actor::{Ctx, TasksActor, note},
    entry::Entry,
    messages::UpdateResources,
    recover::ANSWER,
    remove,
    rights::bounded,
    shim::from_shim,
};

impl Handler<UpdateResources> for TasksActor {
    type Result = ResponseFuture<Result<()>>;
    fn handle(&mut self, message: UpdateResources, _: &mut Context<Self>) -> Self::Result {
        note("UpdateResources", &message.namespace, &message.id, &message.authority);
        let ctx = self.ctx.clone();
        Box::pin(async move {
            let UpdateResources { namespace, id, authority, resources } = message;
            ctx.update(&authority, &namespace, &id, &resources).await
        })
    }
}

impl Ctx {
    async fn update(&self, auth: &Authority, ns: &Namespace, id: &Id, resources: &[u8]) -> Result<()> {
        let update = Update::read(resources)?;
        if let Some(what) = update.needs_host().filter(|_| !auth.ceiling.host) {
            return Err(Error::denied("container", id, format!("asks for {what}, which needs the host right")));
        }
        // Of two changes the one that is in force in the end is on record.
        let _turn = self.turn(ns, id).await;
        let record = containers::get(&self.deps.metadata.read()?, ns, id)?;
        if record.runtime == "native" {
            native::check_resources(&update.resources)?;
        }
        let applied = update.applied(&record.spec.value)?;
        bounded(&applied, &record.ceiling.intersect(&auth.ceiling))?;
        let changed = match self.entry(ns, id).ok().filter(|entry| entry.init.ended().is_none()) {
            Some(entry) => change(&entry, resources).await?,
            None => Changed::Is,
        };
        let (deps, auth, ns, id) = (self.deps.clone(), auth.clone(), ns.clone(), id.clone());
        let record = async move {
            let commit = move |tx: &mut Tx<'_>| {
                let mut container = containers::get(tx, &ns, &id)?;
                // By now it may be another of that name.
                if container.created != record.created {
                    return Ok(());
                }
                container.spec.value = update.applied(&container.spec.value)?;
                containers::update(tx, &ns, container).map(drop)
            };
            remove::persist(&deps, &auth, commit).await
        };
        match changed {
            Changed::Is => record.await.map_err(|e| e.context("the limits are in force, but can't be recorded")),
            Changed::MayBe(entry, answer) => {
                let id = entry.id.clone();
                tokio::task::spawn_local(async move {
                    if answer.await.is_ok()
                        && let Err(error) = record.await
                    {
                        tracing::error!(container = %id, %error, "its limits were changed late, which can't be recorded");
                    }
                });
                let why = "did not change the limits in time: it may yet, and then they are on record too";
                Err(Error::deadline_exceeded("shim", &entry.shim, why))
            }
        }
    }
}

/// What became of a change.
enum Changed {
    /// It is in force, or there is nothing to limit.
    Is,
    /// The shim has been asked and does it when it goes on, if it does.
    MayBe(Rc<Entry>, LocalBoxFuture<'static, Result<()>>),
}

/// Has the shim do it, if there is something to limit.
async fn change(entry: &Rc<Entry>, resources: &[u8]) -> Result<Changed> {
    entry.link.settled().await?;
    if entry.init.ended().is_some() {
        return Ok(Changed::Is);
    }
    let remote = entry.remote().await?;
    let mut request = remote.container.update_request();
    request.get().set_resources(resources);
    let asked = request.send().promise;
    let mut answer = async move { asked.await.map(drop).map_err(from_shim) }.boxed_local();
    match tokio::time::timeout(ANSWER, &mut answer).await {
        Ok(Ok(())) => Ok(Changed::Is),
        // It ended meanwhile: then what counts is on record.
        Ok(Err(_)) if entry.init.ended().is_some() => Ok(Changed::Is),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            entry.silent(&remote);
            Ok(Changed::MayBe(entry.clone(), answer))
        }
    }
}
