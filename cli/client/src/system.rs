//! The daemon itself.

use std::rc::Rc;

use cofferdam_types::{Result, Timestamp};
use cofferdam_wire::{
    convert::{text, texts},
    error::malformed,
    system_capnp::{self as wire, system},
};
use serde::Serialize;

use crate::{
    call::{Reply, done_by, reply_by},
    connect::Link,
    cursor::Cursor,
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

/// A shim that has a task on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimInfo {
    /// Its id.
    pub id: String,
    /// Where its containers lie.
    pub namespace: String,
    /// there, looking, mute or lost.
    pub state: String,
    /// What it holds.
    pub containers: Vec<String>,
    /// Which they belong to; empty: none.
    pub group: String,
}

/// A contradiction that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What is wrong, as a word.
    pub fault: String,
    /// Kind and name of the thing.
    pub id: String,
    /// What it means, and what to do or what was done.
    pub message: String,
    /// Whether it was put right.
    pub repaired: bool,
}

/// What a shim says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimState {
    /// As the daemon sees it.
    pub info: ShimInfo,
    /// Of the protocol that it speaks.
    pub version: u32,
    /// Its process.
    pub pid: u32,
    /// When it was started.
    #[serde(serialize_with = "crate::json::time")]
    pub started: Timestamp,
    /// How many descriptors it has open.
    pub descriptors: u32,
    /// Bytes.
    pub resident: u64,
    /// Bytes, with what it shares with others in parts.
    pub proportional: u64,
    /// Who talks to it, the asker included.
    pub connections: u32,
    /// What it holds.
    pub containers: Vec<ShimContainer>,
}

/// A container, as its shim knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimContainer {
    /// Where it lies.
    pub namespace: String,
    /// Its id.
    pub id: String,
    /// What made it.
    pub driver: String,
    /// Whether it is frozen.
    pub paused: bool,
    /// Its processes, the first one first.
    pub processes: Vec<ShimProcess>,
}

/// The life of a process, as its shim knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimProcess {
    /// Empty for the first process.
    pub id: String,
    /// On the host.
    pub pid: u32,
    /// When it was made.
    #[serde(serialize_with = "crate::json::time")]
    pub created: Timestamp,
    /// When it was started.
    #[serde(serialize_with = "crate::json::time")]
    pub started: Timestamp,
    /// When it ended.
    #[serde(serialize_with = "crate::json::time")]
    pub exited: Timestamp,
    /// The exit code, or 128 + the signal's number.
    pub status: u32,
    /// The signal that ended it, or 0.
    pub signal: u32,
    /// Why, where that was not its own doing.
    pub reason: String,
    /// When the last of its output was where it belongs.
    #[serde(serialize_with = "crate::json::time")]
    pub output_end: Timestamp,
    /// When the container ran out of memory last.
    #[serde(serialize_with = "crate::json::time")]
    pub oomed: Timestamp,
    /// How often it did.
    pub ooms: u64,
}

fn shim_info(reader: wire::shim_info::Reader<'_>) -> Result<ShimInfo> {
    Ok(ShimInfo {
        id: text(reader.get_id())?.to_owned(),
        namespace: text(reader.get_namespace())?.to_owned(),
        state: text(reader.get_state())?.to_owned(),
        containers: texts(reader.get_containers())?,
        group: text(reader.get_group())?.to_owned(),
    })
}

fn shim_process(reader: wire::shim_process::Reader<'_>) -> Result<ShimProcess> {
    Ok(ShimProcess {
        id: text(reader.get_id())?.to_owned(),
        pid: reader.get_pid(),
        created: Timestamp(reader.get_created()),
        started: Timestamp(reader.get_started()),
        exited: Timestamp(reader.get_exited()),
        status: reader.get_status(),
        signal: reader.get_signal(),
        reason: text(reader.get_reason())?.to_owned(),
        output_end: Timestamp(reader.get_output_end()),
        oomed: Timestamp(reader.get_oomed()),
        ooms: reader.get_ooms(),
    })
}

fn shim_state(reader: wire::shim_state::Reader<'_>) -> Result<ShimState> {
    let container = |container: wire::shim_container::Reader<'_>| {
        Ok(ShimContainer {
            namespace: text(container.get_namespace())?.to_owned(),
            id: text(container.get_id())?.to_owned(),
            driver: text(container.get_driver())?.to_owned(),
            paused: container.get_paused(),
            processes: container.get_processes().map_err(malformed)?.iter().map(shim_process).collect::<Result<_>>()?,
        })
    };
    Ok(ShimState {
        info: shim_info(reader.get_info().map_err(malformed)?)?,
        version: reader.get_version(),
        pid: reader.get_pid(),
        started: Timestamp(reader.get_started()),
        descriptors: reader.get_descriptors(),
        resident: reader.get_resident(),
        proportional: reader.get_proportional(),
        connections: reader.get_connections(),
        containers: reader.get_containers().map_err(malformed)?.iter().map(container).collect::<Result<_>>()?,
    })
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
        reply_by(&self.link, &self.client, self.client.status_request(), |answer| {
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

    /// The shims that have a task on record.
    pub fn shims(&self) -> Cursor<ShimInfo> {
        Cursor::of(&self.link, self.client.shims_request().send().pipeline.get_cursor(), shim_info)
    }

    /// Compares the records with each other and with the disk; with `repair` puts right what can be.
    pub fn check(&self, repair: bool) -> Cursor<Finding> {
        let mut request = self.client.check_request();
        request.get().set_repair(repair);
        Cursor::of(&self.link, request.send().pipeline.get_cursor(), finding)
    }

    /// What a shim says of itself.
    pub fn shim(&self, id: &str) -> Reply<ShimState> {
        let mut request = self.client.shim_request();
        request.get().set_id(id);
        reply_by(&self.link, &self.client, request, |answer| shim_state(answer.get_state().map_err(malformed)?))
    }

    /// Panics that actor, for tests and drills.
    pub fn crash(&self, actor: &str) -> Reply<()> {
        let mut request = self.client.crash_request();
        request.get().set_actor(actor);
        done_by(&self.link, &self.client, request)
    }
}

fn finding(reader: wire::finding::Reader<'_>) -> Result<Finding> {
    Ok(Finding {
        fault: text(reader.get_fault())?.to_owned(),
        id: text(reader.get_id())?.to_owned(),
        message: text(reader.get_message())?.to_owned(),
        repaired: reader.get_repaired(),
    })
}
