//! The daemon itself.

use std::rc::Rc;

use cofferdam_types::{Result, Timestamp};
use cofferdam_wire::{convert::text, error::malformed, system_capnp::system};
use serde::Serialize;

use crate::{
    call::{Reply, done, reply},
    connect::Link,
};

/// How one of the daemon's actors is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActorStatus {
    /// Its name.
    pub name: String,
    /// up, starting, down, failed or stopped.
    pub health: String,
    /// Why, where it is not up.
    pub why: String,
    /// How often it was started again.
    pub restarts: u32,
    /// Messages in front of it.
    pub waiting: u32,
}

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemStatus {
    /// ready or degraded.
    pub state: String,
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Since when it runs.
    #[serde(serialize_with = "crate::json::time")]
    pub started: Timestamp,
    /// How many clients are connected.
    pub connections: u32,
    /// Where its facts are.
    pub root: String,
    /// Where its state is.
    pub state_dir: String,
    /// v1, v2 or hybrid.
    pub cgroups: String,
    /// Its actors.
    pub actors: Vec<ActorStatus>,
}

/// The daemon itself.
#[derive(Clone)]
pub struct System {
    pub(crate) link: Rc<Link>,
    pub(crate) client: system::Client,
}

impl System {
    /// How it is.
    pub fn status(&self) -> Reply<SystemStatus> {
        reply(&self.link, self.client.status_request(), |answer| {
            let status = answer.get_status().map_err(malformed)?;
            let actors = status.get_actors().map_err(malformed)?.iter().map(|actor| {
                Ok(ActorStatus {
                    name: text(actor.get_name())?.to_owned(),
                    health: text(actor.get_health())?.to_owned(),
                    why: text(actor.get_why())?.to_owned(),
                    restarts: actor.get_restarts(),
                    waiting: actor.get_waiting(),
                })
            });
            Ok(SystemStatus {
                actors: actors.collect::<Result<_>>()?,
                state: text(status.get_state())?.to_owned(),
                version: text(status.get_version())?.to_owned(),
                pid: status.get_pid(),
                started: Timestamp(status.get_started()),
                connections: status.get_connections(),
                root: text(status.get_root())?.to_owned(),
                state_dir: text(status.get_state_dir())?.to_owned(),
                cgroups: text(status.get_cgroups())?.to_owned(),
            })
        })
    }

    /// Panics that actor, for tests and drills.
    pub fn crash(&self, actor: &str) -> Reply<()> {
        let mut request = self.client.crash_request();
        request.get().set_actor(actor);
        done(&self.link, request)
    }
}
