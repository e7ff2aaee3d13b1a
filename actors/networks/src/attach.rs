//! Connecting and disconnecting: what the pool does, and the row around it.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cofferdam_kernel::Pool;
use cofferdam_metadata::{
    Metadata, Read, Tx,
    records::attachments::{self, Attachment, Stage},
};
use cofferdam_net::{Chain, Outcome, Place, Plugins, Port, Wish, find};
use cofferdam_sys::network;
use cofferdam_types::{Authority, Error, Id, Result, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{handle::THREADS, messages::Attach};

/// The interface that a container gets.
pub const INTERFACE: &str = "eth0";
/// How long a port or an address is waited for whose holder is just giving it up, and how often that is looked at.
const GIVING_UP: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(20));
const PAGE: usize = 100;
/// How many threads one network may have, of those that there are for all.
pub(crate) const SHARE: usize = THREADS / 4;

/// What a connected container has.
#[derive(Clone, Debug, PartialEq)]
pub struct Connected {
    /// Its network namespace.
    pub netns: PathBuf,
    /// The network's name.
    pub network: String,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its addresses and what goes with them.
    pub outcome: Outcome,
}

/// What a row keeps of how it was connected: DEL is told the same.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    chain: Chain,
    version: String,
    wish: Wish,
}

/// What every future of the actor, and of its successor, works with.
pub(crate) struct Core {
    pub metadata: Metadata,
    pub pool: Pool,
    pub plugins: Plugins,
    /// Where configurations lie.
    pub configs: PathBuf,
    /// Where namespaces are pinned.
    pub pins: PathBuf,
    /// How many ADDs and DELs of each network are under way: one whose plugins hang leaves room for the others.
    shares: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// One after the other for each attachment: an ADD that a crashed actor began is over before its DEL begins.
    turns: Mutex<HashMap<Id, Arc<tokio::sync::Mutex<()>>>>,
}

/// What stands in the way.
enum Intent {
    Made,
    /// Is about to be given up.
    Held(Error),
}

impl Core {
    pub fn new(metadata: Metadata, pool: Pool, plugins: Plugins, configs: PathBuf, pins: PathBuf) -> Core {
        Core { metadata, pool, plugins, configs, pins, shares: Mutex::default(), turns: Mutex::default() }
    }

    fn turn(&self, id: &Id) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(id.clone()).or_default().clone()
    }

    /// A part of the pool, for one network; it falls with the work.
    async fn share(&self, network: &str) -> Option<OwnedSemaphorePermit> {
        let share = {
            let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
            shares.retain(|_, share| Arc::strong_count(share) > 1);
            let new = || Arc::new(Semaphore::new(SHARE));
            shares.entry(network.to_owned()).or_insert_with(new).clone()
        };
        // It is never closed.
        share.acquire_owned().await.ok()
    }

    pub fn pin(&self, id: &Id) -> PathBuf {
        self.pins.join(&**id)
    }

    /// Row, namespace, plugins, row. After an error the connection is to be given up.
    pub async fn attach(self: &Arc<Core>, request: Attach) -> Result<Connected> {
        let (core, name, wish) = (self.clone(), request.network.clone(), request.wish.clone());
        let config = move || {
            let chain = find(&core.configs, &name)?.chain;
            chain.check(&wish)?;
            let version = chain.version(&core.plugins)?;
            Ok(Config { chain, version, wish })
        };
        let config = self.pool.run(config).await?;
        self.intend(&request, &config).await?;
        let (core, id) = (self.clone(), request.id.clone());
        let turn = self.turn(&id).lock_owned().await;
        let share = self.share(&request.network).await;
        let connect = move || {
            // They fall with the work, not with whoever waits for it.
            let _held = (turn, share);
            core.connect(&id, &config)
        };
        let answer = self.pool.run(connect).await?;
        let id = request.id;
        let complete = move |tx: &mut Tx<'_>| attachments::answered(tx, &id, &answer, true);
        let attachment = self.metadata.write(&request.authority, complete).await?;
        connected(&attachment, self.pin(&attachment.id))
    }

    /// The row, once nobody else has what is asked for.
    async fn intend(&self, request: &Attach, config: &Config) -> Result<()> {
        let attachment = Attachment {
            id: request.id.clone(),
            namespace: request.namespace.clone(),
            container: request.container.clone(),
            network: request.network.clone(),
            stage: Stage::Attaching,
            config: serde_json::to_vec(config).map_err(|e| Error::internal("attachment", "", e.to_string()))?,
            answer: Vec::new(),
            created: Timestamp::default(),
        };
        let end = Instant::now() + GIVING_UP.0;
        loop {
            let (new, wish) = (attachment.clone(), request.wish.clone());
            let write = move |tx: &mut Tx<'_>| match taken(tx, &new, &wish)? {
                Some(held) => Ok(Intent::Held(held)),
                None => attachments::create(tx, new.clone()).map(|_| Intent::Made),
            };
            match self.metadata.write(&request.authority, write).await? {
                Intent::Made => return Ok(()),
                Intent::Held(_) if Instant::now() < end => tokio::time::sleep(GIVING_UP.1).await,
                Intent::Held(error) => return Err(error),
            }
        }
    }

    fn connect(&self, id: &Id, config: &Config) -> Result<Vec<u8>> {
        let wanted = attachments::find(&self.metadata.read()?, id)?.is_some_and(|a| a.stage == Stage::Attaching);
        if !wanted {
            return Err(Error::cancelled("attachment", id, "was given up before it was made"));
        }
        let path = self.pin(id);
        network::pin(&path).map_err(|e| Error::io("network namespace", id, "can't be made", &e))?;
        let place = Place { container: id, netns: &path, interface: INTERFACE };
        let bytes = |answer: &serde_json::Value| {
            serde_json::to_vec(answer).map_err(|e| Error::internal("attachment", id, e.to_string()))
        };
        let keep = |answer: &serde_json::Value| {
            let (id, answer) = (id.clone(), bytes(answer)?);
            let write = move |tx: &mut Tx<'_>| attachments::answered(tx, &id, &answer, false).map(drop);
            self.metadata.write_blocking(&Authority::system(), write)
        };
        bytes(&config.chain.add(&self.plugins, &place, &config.version, &config.wish, keep)?)
    }

    /// One attempt at undoing a connection that was given up; one that isn't there is fine.
    pub async fn detach(self: &Arc<Core>, id: &Id) -> Result<()> {
        let (core, own) = (self.clone(), id.clone());
        let turn = self.turn(id).lock_owned().await;
        let Some(network) = attachments::find(&self.metadata.read()?, id)?.map(|a| a.network) else { return Ok(()) };
        let share = self.share(&network).await;
        let disconnect = move || {
            let _held = (turn, share);
            core.disconnect(&own)
        };
        self.pool.run(disconnect).await?;
        let own = id.clone();
        self.metadata.write(&Authority::system(), move |tx: &mut Tx<'_>| attachments::delete(tx, &own)).await
    }

    fn disconnect(&self, id: &Id) -> Result<()> {
        let Some(attachment) = attachments::find(&self.metadata.read()?, id)? else { return Ok(()) };
        if attachment.stage != Stage::Releasing {
            return Err(Error::internal("attachment", id, "is to be undone, and nobody gave it up"));
        }
        let config = config(&attachment)?;
        let path = self.pin(id);
        let place = Place { container: id, netns: &path, interface: INTERFACE };
        let answer = serde_json::from_slice(&attachment.answer).ok();
        config.chain.del(&self.plugins, &place, &config.version, &config.wish, answer.as_ref())?;
        network::unpin(&path).map_err(|e| Error::io("network namespace", id, "can't be let go of", &e))
    }

    /// Namespaces without a row: there is no way to one, but for what others did to the files.
    pub fn sweep(&self) -> Result<()> {
        let entries = std::fs::read_dir(&self.pins)
            .map_err(|e| Error::io("directory", self.pins.display(), "can't be listed", &e))?;
        // Listed before the rows are looked at: a row is older than its namespace.
        let pinned: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        let view = self.metadata.read()?;
        for name in pinned {
            if !attachments::exists(&view, &name)? {
                let path = self.pins.join(&name);
                network::unpin(&path).map_err(|e| Error::io("network namespace", &name, "can't be swept", &e))?;
            }
        }
        Ok(())
    }

    /// Those that are to be undone.
    pub fn given_up(&self) -> Result<Vec<Id>> {
        let all = each(&self.metadata.read()?)?;
        Ok(all.into_iter().filter(|a| a.stage == Stage::Releasing).map(|a| a.id).collect())
    }
}

/// Every row that can be read.
pub(crate) fn each(read: &dyn Read) -> Result<Vec<Attachment>> {
    let mut all: Vec<Attachment> = Vec::new();
    loop {
        let page = attachments::list(read, all.last().map(|a| a.id.as_str()), PAGE)?;
        let end = page.len() < PAGE;
        all.extend(page);
        if end {
            return Ok(all);
        }
    }
}

fn config(attachment: &Attachment) -> Result<Config> {
    serde_json::from_slice(&attachment.config)
        .map_err(|e| Error::data_loss("attachment", &attachment.id, format!("its configuration can't be read: {e}")))
}

/// What the row of a connected container says.
pub(crate) fn connected(attachment: &Attachment, netns: PathBuf) -> Result<Connected> {
    let bad =
        |e: serde_json::Error| Error::data_loss("attachment", &attachment.id, format!("its answer can't be read: {e}"));
    let answer = serde_json::from_slice(&attachment.answer).map_err(bad)?;
    let outcome = Outcome::read(&answer, INTERFACE)?;
    let ports = config(attachment)?.wish.ports;
    Ok(Connected { netns, network: attachment.network.clone(), ports, outcome })
}

/// Who has a port or an address already that is asked for. A plugin would publish the same port twice, and the first
/// would get what is meant for the second. What is just being given up comes back as a value, and is waited for.
fn taken(read: &dyn Read, new: &Attachment, wish: &Wish) -> Result<Option<Error>> {
    if wish.ports.is_empty() && wish.addresses.is_empty() {
        return Ok(None);
    }
    let mut held = None;
    for other in each(read)? {
        let Ok(theirs) = config(&other) else { continue };
        let port = wish.ports.iter().find(|port| theirs.wish.ports.iter().any(|other| other.collides(port)));
        // One address can be written in many ways.
        let has = |address: &String| {
            let parsed = cofferdam_net::address(address);
            theirs
                .wish
                .addresses
                .iter()
                .any(|other| other == address || parsed.is_some() && cofferdam_net::address(other) == parsed)
        };
        let address = wish.addresses.iter().find(|address| other.network == new.network && has(address));
        let (kind, what) = match (port, address) {
            (Some(port), _) => ("port", format!("{}/{}", port.host_port, port.protocol.as_str())),
            (None, Some(address)) => ("address", address.clone()),
            (None, None) => continue,
        };
        let whose = if other.namespace == new.namespace {
            format!("container {}", other.container)
        } else {
            "a container of another namespace".to_owned()
        };
        if other.stage != Stage::Releasing {
            return Err(Error::already_exists(
                kind,
                what,
                format!("is that of {whose}: choose another or stop that one"),
            ));
        }
        let why = format!("is still being taken from {whose}, which has ended: try again");
        held = Some(Error::unavailable(kind, what, why));
    }
    Ok(held)
}
