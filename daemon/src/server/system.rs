//! `System` (system.capnp).

use std::{rc::Rc, sync::atomic::Ordering, time::Duration};

use cofferdam_kernel::{Health, SlotStatus};
use cofferdam_metadata::Metadata;
use cofferdam_wire::{convert::text, system_capnp::system};

use super::{rpc, session::Session};

/// The daemon itself.
pub struct System(pub Rc<Session>);

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
        rpc(self.0.services.kernel.poison(actor))?;
        tracing::warn!(actor, peer = ?self.0.peer, "is crashed on demand");
        Ok(())
    }
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
