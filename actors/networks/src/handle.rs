//! The handle that the other subsystems hold.

use std::{os::unix::fs::DirBuilderExt as _, path::PathBuf, sync::Arc, time::Duration};

use cofferdam_kernel::{Kernel, Placement, Pool, Slot, SlotConfig};
use cofferdam_metadata::{
    Metadata, Read, Tx,
    records::{
        attachments::{self, Attachment, Stage},
        readable, tasks,
    },
};
use cofferdam_net::{Network, Plugins, Wish, find};
use cofferdam_types::{Authority, Code, Error, Id, Result};

use crate::{
    Attach, Connected,
    actor::NetworksActor,
    attach::{Core, connected, each},
    messages::{List, Release},
};

/// A plugin that hangs keeps a thread until its deadline. One network has a part of them, so that others go on.
pub(crate) const THREADS: usize = 64;
const QUEUE: usize = 4096;
const BOUND: usize = 4096;
/// How long an undoing is waited for; it goes on without the waiter.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first and the longest pause between two attempts at a commit that must be.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

/// Where configurations and plugins lie, and where namespaces are pinned.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory of configurations.
    pub configs: PathBuf,
    /// Plugins.
    pub plugins: Plugins,
    /// The directory of pinned namespaces; made if it isn't there.
    pub pins: PathBuf,
}

/// Networks, and who is connected to them. Cheap to clone.
#[derive(Clone)]
pub struct Networks {
    slot: Slot<NetworksActor>,
    core: Arc<Core>,
}

impl Networks {
    /// Hosts the actor, which begins by undoing what was given up.
    pub fn start(kernel: &Kernel, placement: Placement, metadata: Metadata, config: Config) -> Result<Networks> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&config.pins)
            .map_err(|e| Error::io("directory", config.pins.display(), "can't be made", &e))?;
        let pool = Pool::new("networks", THREADS, QUEUE);
        let core = Arc::new(Core::new(metadata, pool, config.plugins, config.configs, config.pins));
        let slot_config =
            SlotConfig { bound: BOUND, heartbeat: Duration::from_secs(30), ..SlotConfig::new("networks", placement) };
        let theirs = core.clone();
        let slot = kernel.spawn(slot_config, move || NetworksActor::new(theirs.clone()));
        Ok(Networks { slot, core })
    }

    /// Makes a network namespace and connects it. After an error nothing is left, or will be.
    pub async fn attach(&self, request: Attach) -> Result<Connected> {
        let id = request.id.clone();
        match self.slot.call(request).await {
            Ok(connected) => Ok(connected),
            Err(error) => {
                self.give_up(vec![id]).await;
                Err(error)
            }
        }
    }

    /// Gives connections up that no task is to have, and undoes them.
    pub async fn give_up(&self, ids: Vec<Id>) {
        let mut pause = PAUSES.0;
        loop {
            let all = ids.clone();
            let write = move |tx: &mut Tx<'_>| {
                let mut there = Vec::new();
                for id in &all {
                    if attachments::release(tx, id)? {
                        there.push(id.clone());
                    }
                }
                Ok(there)
            };
            match self.core.metadata.write(&Authority::system(), write).await {
                Ok(there) => {
                    for id in there {
                        self.release(&id).await;
                    }
                    return;
                }
                Err(error) if error.code == Code::Unavailable && pause < PAUSES.1 => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                // The next start finds that no task has them.
                Err(error) => {
                    tracing::error!(%error, "a network stays connected until the daemon starts anew");
                    return;
                }
            }
        }
    }

    /// Undoes a connection that a commit gave up; returns when that is done, or when it takes its time.
    pub async fn release(&self, id: &Id) {
        match tokio::time::timeout(PATIENCE, self.slot.call(Release(id.clone()))).await {
            // What is asked of one that is down it finds in the tables when it is up.
            Ok(Err(error)) => tracing::warn!(attachment = %id, %error, "a network is not undone yet"),
            Err(_) => tracing::warn!(attachment = %id, "a network takes its time to be undone"),
            Ok(Ok(())) => {}
        }
    }

    /// [`Networks::release`] for whoever doesn't know whether there was a connection.
    pub async fn released(&self, id: Option<&Id>) {
        let Some(id) = id else { return };
        let found = self.core.metadata.read().and_then(|view| attachments::find(&view, id));
        // Where the tables can't be read the actor looks, and goes on looking.
        let nothing = matches!(&found, Ok(found) if found.as_ref().is_none_or(|a| a.stage != Stage::Releasing));
        if !nothing {
            self.release(id).await;
        }
    }

    /// Whether there is a network of that name that can do what is asked of it.
    pub async fn check(&self, network: &str, wish: &Wish) -> Result<()> {
        let (core, network, wish) = (self.core.clone(), network.to_owned(), wish.clone());
        self.core.pool.run(move || find(&core.configs, &network)?.chain.check(&wish)).await
    }

    /// Connections that no task has which could give them up: a crash came between the two.
    pub fn orphans(&self) -> Result<Vec<Id>> {
        let view = self.core.metadata.read()?;
        let mut found = Vec::new();
        for attachment in each(&view)? {
            let task = tasks::find(&view, &attachment.namespace, &attachment.container);
            let has = match readable(task)? {
                Some(task) => {
                    task.is_some_and(|task| task.attachment.as_ref() == Some(&attachment.id) && task.exit.is_none())
                }
                // It may.
                None => true,
            };
            if !has && attachment.stage != Stage::Releasing {
                found.push(attachment.id);
            }
        }
        Ok(found)
    }

    /// What this connection has, if it is made.
    pub fn connected(&self, read: &dyn Read, id: &Id) -> Result<Option<Connected>> {
        let found: Option<Attachment> = attachments::find(read, id)?.filter(|a| a.stage == Stage::Attached);
        found.map(|attachment| connected(&attachment, self.core.pin(&attachment.id))).transpose()
    }

    /// The networks that are configured, by name, and what can't be read as one.
    pub async fn list(&self) -> Result<(Vec<Network>, Vec<Error>)> {
        self.slot.call(List).await
    }
}
