//! The shims themselves: who shares one, and what each says of itself.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use actix::{Context, Handler, ResponseFuture};
use cofferdam_metadata::records::containers;
use cofferdam_types::{Error, Id, Namespace, Result, Timestamp};
use cofferdam_wire::{
    convert::{life, text},
    error::malformed,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{
    actor::{Ctx, TasksActor},
    entry::Entry,
    messages::{DumpShim, ShimContainer, ShimInfo, ShimState, Shims},
    recover::ANSWER,
    shim::{self, from_shim},
};

impl Ctx {
    /// The shim that containers of this group have already. One that is being looked for is waited for, and one that doesn't
    /// answer has the group still: another beside it would part what belongs together.
    pub(crate) async fn shim_of(&self, ns: &Namespace, group: &Id) -> Result<Option<String>> {
        let members: Vec<_> = {
            let entries = self.entries.borrow();
            let of_group = |entry: &&Rc<Entry>| entry.namespace == *ns && entry.group.as_ref() == Some(group);
            entries.values().filter(of_group).cloned().collect()
        };
        for member in members.iter().filter(|member| !member.removing.get()) {
            member.link.settled().await.map_err(|error| {
                let why =
                    format!("can't be joined while the shim of its container {} is out of reach: {error}", member.id);
                Error::unavailable("group", group, why)
            })?;
            if member.link.state() == "there" && !member.removing.get() {
                return Ok(Some(member.shim.clone()));
            }
        }
        Ok(None)
    }

    /// Containers of a group come and go one after the other: a shim ends with its last one, and must not be chosen then.
    pub(crate) async fn group_turn(&self, ns: &Namespace, id: &Id) -> Result<Option<(Id, OwnedMutexGuard<()>)>> {
        let Some(container) = containers::head(&self.deps.metadata.read()?, ns, id)? else { return Ok(None) };
        let Some(group) = container.group else { return Ok(None) };
        let turn: Arc<Mutex<()>> = {
            let mut turns = self.groups.borrow_mut();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry((ns.clone(), group.clone())).or_default().clone()
        };
        Ok(Some((group, turn.lock_owned().await)))
    }

    /// The turn to ask a shim how it is.
    fn question(&self, shim: &str) -> Arc<Mutex<()>> {
        let mut turns = self.questions.borrow_mut();
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(shim.to_owned()).or_default().clone()
    }

    fn shims(&self) -> Vec<ShimInfo> {
        let mut all: BTreeMap<String, ShimInfo> = BTreeMap::new();
        for entry in self.entries.borrow().values() {
            let info = all.entry(entry.shim.clone()).or_insert_with(|| ShimInfo {
                id: entry.shim.clone(),
                namespace: entry.namespace.clone(),
                state: entry.link.state(),
                containers: Vec::new(),
                group: entry.group.clone(),
            });
            info.containers.push(entry.id.clone());
        }
        all.into_values().collect()
    }
}

impl Handler<Shims> for TasksActor {
    type Result = Result<Vec<ShimInfo>>;
    fn handle(&mut self, _: Shims, _: &mut Context<Self>) -> Self::Result {
        Ok(self.ctx.shims())
    }
}

impl Handler<DumpShim> for TasksActor {
    type Result = ResponseFuture<Result<(ShimInfo, ShimState)>>;
    fn handle(&mut self, message: DumpShim, _: &mut Context<Self>) -> Self::Result {
        let ctx = self.ctx.clone();
        Box::pin(async move {
            // What is asked for is compared with what there is, and is no part of a path before.
            let info = ctx.shims().into_iter().find(|info| info.id == message.0);
            let info = info.ok_or_else(|| {
                Error::not_found("shim", &message.0, "has no task on record; coffer shim ls lists those that have")
            })?;
            // One question at a time, which goes on when nobody waits for the answer any more: those that a shim which stands
            // still doesn't take fill its queue, in which a daemon that looks for it has to find room.
            let asked = async {
                let turn = ctx.question(&info.id).lock_owned().await;
                let (ctx, id) = (ctx.clone(), info.id.clone());
                let asked = tokio::task::spawn_local(async move {
                    let _turn = turn;
                    dump(&ctx, &id).await
                });
                asked.await.unwrap_or_else(|e| Err(Error::internal("shim", "", e.to_string())))
            };
            let late = || Error::unavailable("shim", &info.id, "doesn't answer");
            let state = tokio::time::timeout(ANSWER, asked).await.map_err(|_| late())??;
            Ok((info, state))
        })
    }
}

/// On a connection of its own, which ends with the answer.
async fn dump(ctx: &Ctx, id: &str) -> Result<ShimState> {
    let connection = shim::find(&ctx.deps.layout, id)?;
    let answer = connection.shim.dump_request().send().promise.await.map_err(from_shim)?;
    let dump = answer.get().and_then(|answer| answer.get_dump()).map_err(from_shim)?;
    let containers = dump.get_containers().map_err(malformed)?.iter().map(|container| {
        Ok(ShimContainer {
            namespace: text(container.get_namespace())?.to_owned(),
            id: text(container.get_id())?.to_owned(),
            driver: text(container.get_driver())?.to_owned(),
            paused: container.get_paused(),
            processes: container.get_processes().map_err(malformed)?.iter().map(life).collect::<Result<_>>()?,
        })
    });
    Ok(ShimState {
        version: dump.get_version(),
        pid: dump.get_pid(),
        started: Timestamp(dump.get_started()),
        descriptors: dump.get_descriptors(),
        resident: dump.get_resident(),
        proportional: dump.get_proportional(),
        connections: dump.get_connections(),
        containers: containers.collect::<Result<_>>()?,
    })
}
