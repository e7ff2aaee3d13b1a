//! `System` (system.capnp).

use std::{rc::Rc, sync::atomic::Ordering};

use cofferdam_kernel::Health;
use cofferdam_wire::{convert::text, system_capnp::system};

use super::{rpc, session::Session};

/// The daemon itself.
pub struct System(pub Rc<Session>);

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
        let actors = services.kernel.statuses();
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
        tracing::warn!(actor, peer = ?self.0.peer, "is crashed on demand");
        rpc(self.0.services.kernel.poison(actor))
    }
}
