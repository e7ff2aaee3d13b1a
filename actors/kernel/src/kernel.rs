//! The kernel: makes slots, starts and stops them in order, and says how they are.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix_rt::{Arbiter, ArbiterHandle};
use cofferdam_types::{Error, Result};
use tokio::sync::watch;

use crate::{
    host::{Hosts, Placement},
    slot::{Health, Hosted, Inner, Slot},
    supervise::{Supervisor, poison},
};

/// How a slot is set up.
#[derive(Clone, Copy, Debug)]
pub struct SlotConfig {
    /// Its name: unique within the kernel.
    pub name: &'static str,
    /// Where its actor runs.
    pub placement: Placement,
    /// How many messages may wait.
    pub bound: usize,
    /// How often the actor is asked for a sign of life, and how long it may take to give one.
    pub heartbeat: Duration,
}

impl SlotConfig {
    /// 256 messages, a heartbeat every five seconds.
    pub fn new(name: &'static str, placement: Placement) -> SlotConfig {
        SlotConfig { name, placement, bound: 256, heartbeat: Duration::from_secs(5) }
    }
}

/// What there is to say about a slot.
#[derive(Clone, Debug)]
pub struct SlotStatus {
    /// Its name.
    pub name: &'static str,
    /// How it is.
    pub health: Health,
    /// How often its actor was started again after it crashed or hung.
    pub restarts: u64,
    /// How many messages wait or are worked on.
    pub waiting: usize,
    /// Why it crashed last.
    pub last_panic: Option<String>,
}

/// The part of a slot that does not depend on its actor's type.
trait Controlled: Send + Sync {
    fn name(&self) -> &'static str;
    fn status(&self) -> SlotStatus;
    fn watch(&self) -> watch::Receiver<Health>;
    fn stop(&self);
    fn poison(&self) -> Result<()>;
}

impl<A: Hosted> Controlled for Inner<A> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn status(&self) -> SlotStatus {
        SlotStatus {
            name: self.name,
            health: self.health.borrow().clone(),
            restarts: self.restarts.load(Ordering::Relaxed),
            waiting: self.waiting(),
            last_panic: self.last_panic(),
        }
    }

    fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn stop(&self) {
        self.stop.send_replace(true);
    }

    fn poison(&self) -> Result<()> {
        poison(self)
    }
}

/// Hosts actors. Cheap to clone: every clone is the same kernel.
#[derive(Clone)]
pub struct Kernel(Arc<State>);

struct State {
    hosts: Arc<Hosts>,
    /// The supervision runs here, away from everything that it watches.
    arbiter: ArbiterHandle,
    slots: Mutex<Vec<Arc<dyn Controlled>>>,
}

impl Kernel {
    /// A kernel without slots. Needs a running `actix::System` on the calling thread.
    pub fn new() -> Result<Kernel> {
        let arbiter = Arbiter::try_new().map_err(|e| Error::io("kernel", "", "starting its thread", &e))?;
        Ok(Kernel(Arc::new(State { hosts: Arc::default(), arbiter: arbiter.handle(), slots: Mutex::default() })))
    }

    /// Makes a slot. Its actor starts once those spawned before it are up (or have failed); `factory` runs for the
    /// first start and for each restart, on the actor's thread, and a panic in it counts as a crash.
    pub fn spawn<A: Hosted>(&self, config: SlotConfig, factory: impl Fn() -> A + Send + Sync + 'static) -> Slot<A> {
        let inner = Arc::new(Inner {
            name: config.name,
            bound: config.bound,
            life: std::sync::RwLock::new(None),
            health: watch::Sender::new(Health::Starting),
            stop: watch::Sender::new(false),
            restarts: AtomicU64::new(0),
            last_panic: Mutex::new(None),
        });
        let supervisor = Supervisor {
            inner: inner.clone(),
            hosts: self.0.hosts.clone(),
            placement: config.placement,
            heartbeat: config.heartbeat,
            factory: Arc::new(factory),
        };
        let previous = {
            let mut slots = self.slots();
            let previous = slots.last().map(|slot| slot.watch());
            slots.push(inner.clone());
            previous
        };
        self.0.arbiter.spawn_fn(move || {
            actix_rt::spawn(supervisor.run(previous));
        });
        Slot(inner)
    }

    /// Waits until every slot is up; the error names one that has failed.
    pub async fn ready(&self) -> Result<()> {
        let watches: Vec<_> = self.slots().iter().map(|slot| (slot.name(), slot.watch())).collect();
        for (name, mut watch) in watches {
            let health = watch.wait_for(Health::settled).await.map(|health| health.clone());
            if let Ok(Health::Failed { why }) = health {
                return Err(Error::unavailable("actor", name, format!("failed to start: {why}")));
            }
        }
        Ok(())
    }

    /// How every slot is, in the order of their start.
    pub fn statuses(&self) -> Vec<SlotStatus> {
        self.slots().iter().map(|slot| slot.status()).collect()
    }

    /// How many threads hang in a handler and were given up.
    pub fn abandoned_threads(&self) -> usize {
        self.0.hosts.abandoned()
    }

    /// Panics the actor in the slot of this name: how tests and operators see that a crash stays contained.
    pub fn poison(&self, name: &str) -> Result<()> {
        let slots = self.slots();
        let Some(slot) = slots.iter().find(|slot| slot.name() == name) else {
            let names: Vec<_> = slots.iter().map(|slot| slot.name()).collect();
            return Err(Error::not_found("actor", name, format!("does not exist; there are {}", names.join(", "))));
        };
        slot.poison()
    }

    /// Stops every actor, the last one started first, each with a chance to end by itself (`Actor::stopping`) and a
    /// deadline; then the threads.
    pub async fn stop(&self) {
        let slots: Vec<_> = self.slots().iter().rev().cloned().collect();
        for slot in slots {
            slot.stop();
            let mut health = slot.watch();
            let _ = health.wait_for(|h| matches!(h, Health::Stopped | Health::Failed { .. })).await;
        }
        self.0.hosts.stop();
        self.0.arbiter.stop();
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Vec<Arc<dyn Controlled>>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
