//! A change of a container's limits: in force first, then on record.

use std::{rc::Rc, time::Duration};

use actix::{Context, Handler, ResponseFuture};
use cofferdam_metadata::{Tx, records::containers};
use cofferdam_oci::{native, update::Update};
use cofferdam_types::{Authority, Error, Id, Namespace, Result};

use crate::{
    actor::{Ctx, TasksActor, note},
    entry::Entry,
    messages::UpdateResources,
    remove,
    rights::bounded,
};

/// How long a shim may take: whoever wants to remove the container waits as long.
const PATIENCE: Duration = Duration::from_secs(10);

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
        let entry = self.entry(ns, id).ok();
        if let Some(entry) = entry.filter(|entry| entry.init.ended().is_none()) {
            let late = || Error::deadline_exceeded("shim", &entry.shim, "did not change the limits in time");
            tokio::time::timeout(PATIENCE, change(&entry, resources)).await.map_err(|_| late())??;
        }
        let (namespace, id) = (ns.clone(), id.clone());
        let commit = move |tx: &mut Tx<'_>| {
            let mut container = containers::get(tx, &namespace, &id)?;
            container.spec.value = update.applied(&container.spec.value)?;
            containers::update(tx, &namespace, container)
        };
        let recorded = remove::persist(&self.deps, auth, commit).await;
        recorded.map(drop).map_err(|e| e.context("the limits are in force, but can't be recorded"))
    }
}

/// Has the shim do it, if there is something to limit.
async fn change(entry: &Rc<Entry>, resources: &[u8]) -> Result<()> {
    entry.link.settled().await?;
    if entry.init.ended().is_some() {
        return Ok(());
    }
    let remote = entry.remote().await?;
    let mut request = remote.container.update_request();
    request.get().set_resources(resources);
    match entry.answer(&remote, request.send().promise).await {
        // It ended meanwhile: then what counts is on record.
        Err(_) if entry.init.ended().is_some() => Ok(()),
        other => other.map(drop),
    }
}
