//! `System` (system.capnp).

use std::{rc::Rc, sync::atomic::Ordering, time::Duration};

use cofferdam_kernel::{Health, SlotStatus};
use cofferdam_metadata::Metadata;
use cofferdam_tasks::ShimInfo;
use cofferdam_types::Error;
use cofferdam_wire::{
    convert::{Life, set_texts, text},
    system_capnp::{finding_cursor, shim_cursor, shim_info, shim_process, system},
};
use tokio::sync::Mutex;

use super::{
    cursor::Cursor,
    rpc,
    session::{Held, Session},
    trail,
};
use crate::check::Check;

/// The daemon itself.
pub struct System(pub Rc<Session>, pub Held);

/// A commit waits for the disk: one that takes longer is as good as none.
const PROBE: Duration = Duration::from_secs(5);

/// Whether what is to last can be written. An actor that is up says so of itself; the disk says it here.
async fn probe(metadata: &Metadata) -> Option<String> {
    match tokio::time::timeout(PROBE, metadata.probe()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("can't write: {}", error.message)),
        Err(_) => Some(format!("can't write: a commit takes more than {} seconds", PROBE.as_secs())),
    }
}

/// Takes what the probe said into account; an actor that is not up has its own reason.
fn judge(actors: &mut [SlotStatus], name: &str, said: Option<String>) {
    let Some(why) = said else { return };
    for actor in actors.iter_mut().filter(|actor| actor.name == name && actor.health == Health::Up) {
        actor.health = Health::Down { why: why.clone() };
    }
}

fn health(health: &Health) -> (&'static str, &str) {
    match health {
        Health::Starting => ("starting", ""),
        Health::Up => ("up", ""),
        Health::Down { why } => ("down", why),
        Health::Failed { why } => ("failed", why),
        Health::Stopped => ("stopped", ""),
    }
}

impl system::Server for System {
    async fn status(self: Rc<Self>, _: system::StatusParams, mut results: system::StatusResults) -> capnp::Result<()> {
        let services = &self.0.services;
        let said = probe(&services.metadata).await;
        let mut actors = services.kernel.statuses();
        judge(&mut actors, "metadata", said);
        let ready = actors.iter().all(|actor| actor.health == Health::Up);
        let mut status = results.get().init_status();
        status.set_state(if ready { "ready" } else { "degraded" });
        status.set_version(env!("CARGO_PKG_VERSION"));
        status.set_started(services.facts.started.0);
        status.set_pid(std::process::id());
        status.set_connections(services.facts.connections.load(Ordering::Relaxed));
        status.set_root(services.facts.root.to_string_lossy().as_ref());
        status.set_state_dir(services.facts.state.to_string_lossy().as_ref());
        status.set_cgroups(services.facts.cgroups);
        let mut list = status.init_actors(actors.len() as u32);
        for (n, actor) in actors.iter().enumerate() {
            let mut builder = list.reborrow().get(n as u32);
            let (word, why) = health(&actor.health);
            builder.set_name(actor.name);
            builder.set_health(word);
            builder.set_why(why);
            builder.set_restarts(u32::try_from(actor.restarts).unwrap_or(u32::MAX));
            builder.set_waiting(actor.waiting as u32);
        }
        Ok(())
    }

    async fn crash(self: Rc<Self>, params: system::CrashParams, _: system::CrashResults) -> capnp::Result<()> {
        let actor = rpc(text(params.get()?.get_actor()))?;
        trail::object("actor", actor);
        rpc(self.0.services.kernel.poison(actor))?;
        tracing::warn!(actor, peer = ?self.0.peer, "is crashed on demand");
        Ok(())
    }

    async fn shims(self: Rc<Self>, _: system::ShimsParams, mut results: system::ShimsResults) -> capnp::Result<()> {
        let all = rpc(self.0.services.tasks.shims().await)?;
        let page = move |after: Option<&str>, max: usize| {
            let rest = all.iter().filter(|info| after.is_none_or(|after| info.id.as_str() > after));
            Ok(rest.take(max).cloned().collect())
        };
        let cursor = Cursor::new(Box::new(page), |info: &ShimInfo| info.id.clone(), |_| true);
        results.get().set_cursor(self.0.hand_out(ShimCursor(cursor), &self.1));
        Ok(())
    }

    async fn shim(self: Rc<Self>, params: system::ShimParams, mut results: system::ShimResults) -> capnp::Result<()> {
        let id = rpc(text(params.get()?.get_id()))?.to_owned();
        let (info, state) = rpc(self.0.services.tasks.shim(&id).await)?;
        let mut builder = results.get().init_state();
        set_shim(builder.reborrow().init_info(), &info);
        builder.set_version(state.version);
        builder.set_pid(state.pid);
        builder.set_started(state.started.0);
        builder.set_descriptors(state.descriptors);
        builder.set_resident(state.resident);
        builder.set_proportional(state.proportional);
        builder.set_connections(state.connections);
        let mut list = builder.init_containers(state.containers.len() as u32);
        for (n, container) in state.containers.iter().enumerate() {
            let mut entry = list.reborrow().get(n as u32);
            entry.set_namespace(&container.namespace);
            entry.set_id(&container.id);
            entry.set_driver(&container.driver);
            entry.set_paused(container.paused);
            let mut processes = entry.init_processes(container.processes.len() as u32);
            for (n, life) in container.processes.iter().enumerate() {
                set_process(processes.reborrow().get(n as u32), life);
            }
        }
        Ok(())
    }

    async fn check(
        self: Rc<Self>,
        params: system::CheckParams,
        mut results: system::CheckResults,
    ) -> capnp::Result<()> {
        let repair = params.get()?.get_repair();
        if repair {
            trail::note(|| "with repair");
            rpc(self.0.services.metadata.writable())?;
        }
        let check = Check::new(self.0.services.clone(), repair);
        let cursor = FindingCursor(Mutex::new(Some(check)));
        results.get().set_cursor(self.0.hand_out(cursor, &self.1));
        Ok(())
    }
}

/// How far a check is. Taken out while it goes on; a call that ends early ends the check. Who asks for more blocks than one at
/// once gets them one after the other.
struct FindingCursor(Mutex<Option<Check>>);

/// The most findings in one answer.
const FINDINGS: usize = 100;

impl finding_cursor::Server for FindingCursor {
    async fn next(
        self: Rc<Self>,
        params: finding_cursor::NextParams,
        mut results: finding_cursor::NextResults,
    ) -> capnp::Result<()> {
        let max = usize::from(params.get()?.get_max()).clamp(1, FINDINGS);
        let over = || Error::failed_precondition("cursor", "", "was given up, or has failed: begin another check");
        let mut turn = self.0.lock().await;
        let mut check = rpc(turn.take().ok_or_else(over))?;
        let (block, end) = rpc(check.next(max).await)?;
        *turn = Some(check);
        drop(turn);
        results.get().set_end(end);
        let mut items = results.get().init_items(block.len() as u32);
        for (n, finding) in block.iter().enumerate() {
            let mut item = items.reborrow().get(n as u32);
            item.set_fault(finding.fault.as_str());
            item.set_id(&finding.id);
            item.set_message(&finding.message);
            item.set_repaired(finding.repaired);
        }
        Ok(())
    }
}

struct ShimCursor(Cursor<ShimInfo>);

impl shim_cursor::Server for ShimCursor {
    async fn next(
        self: Rc<Self>,
        params: shim_cursor::NextParams,
        mut results: shim_cursor::NextResults,
    ) -> capnp::Result<()> {
        let (block, end) = rpc(self.0.next(params.get()?.get_max()))?;
        let mut answer = results.get();
        answer.set_end(end);
        let mut items = answer.init_items(block.len() as u32);
        for (n, info) in block.iter().enumerate() {
            set_shim(items.reborrow().get(n as u32), info);
        }
        Ok(())
    }
}

fn set_shim(mut builder: shim_info::Builder<'_>, info: &ShimInfo) {
    builder.set_id(&info.id);
    builder.set_namespace(&*info.namespace);
    builder.set_state(info.state);
    builder.set_group(info.group.as_ref().map_or("", |group| group.as_str()));
    let ids: Vec<&str> = info.containers.iter().map(|id| id.as_str()).collect();
    set_texts(builder.init_containers(ids.len() as u32), &ids);
}

fn set_process(mut builder: shim_process::Builder<'_>, life: &Life) {
    builder.set_id(&life.id);
    builder.set_pid(life.pid);
    builder.set_created(life.created.0);
    builder.set_started(life.started.0);
    builder.set_exited(life.exited.0);
    builder.set_status(life.status);
    builder.set_signal(life.signal);
    builder.set_reason(&life.reason);
    builder.set_output_end(life.output_end.0);
    builder.set_oomed(life.oomed.0);
    builder.set_ooms(life.ooms);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cant_write_is_not_up() {
        let up = |name| SlotStatus { name, health: Health::Up, restarts: 0, waiting: 0, last_panic: None };
        let mut actors = [up("metadata"), up("events")];
        judge(&mut actors, "metadata", None);
        assert_eq!(actors[0].health, Health::Up);
        judge(&mut actors, "metadata", Some("can't write: no space left".into()));
        assert_eq!(actors[0].health, Health::Down { why: "can't write: no space left".into() });
        assert_eq!(actors[1].health, Health::Up);
        actors[0].health = Health::Starting;
        judge(&mut actors, "metadata", Some("is down".into()));
        assert_eq!(actors[0].health, Health::Starting, "the actor's own reason is better");
    }
}
