//! A container that goes with its task is its maker's until the task starts: with that one's connection it goes too.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cofferdam_types::{Authority, Id, Namespace, Timestamp};
use tokio::sync::watch;

use crate::{actor::Ctx, remove};

/// Whether a client has gone: turns true, or ends, with its connection.
pub type Presence = watch::Receiver<bool>;

type Key = (Namespace, Id);

/// A maker that lost its connection, or whose daemon was started anew, has so long to come back and start what it made.
const GRACE: Duration = Duration::from_secs(3);

/// Who is waited for. A crash of the actor is no end of theirs.
#[derive(Clone, Debug, Default)]
pub struct Makers(Arc<Mutex<BTreeMap<Key, Maker>>>);

#[derive(Debug)]
struct Maker {
    presence: Presence,
    /// Its end tells who waits that it is over.
    _hold: watch::Sender<()>,
}

impl Makers {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Key, Maker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, key: &Key) -> Option<Presence> {
        self.all().get(key).map(|maker| maker.presence.clone())
    }

    /// In place of whoever was waited for. What is given ends when this one is waited for no more.
    fn put(&self, key: Key, presence: Presence) -> watch::Receiver<()> {
        let (_hold, over) = watch::channel(());
        self.all().insert(key, Maker { presence, _hold });
        over
    }

    /// Nobody is waited for any more; gives who was.
    pub(crate) fn take(&self, ns: &Namespace, id: &Id) -> Option<Presence> {
        self.all().remove(&(ns.clone(), id.clone())).map(|maker| maker.presence)
    }
}

impl Ctx {
    /// Waits for the start of a container that goes with its task, or for the end of its maker. Where that one isn't known,
    /// the container was made for a daemon before this one.
    pub(crate) fn expect_start(&self, ns: &Namespace, id: &Id, maker: Option<Presence>) {
        let key = (ns.clone(), id.clone());
        let maker = maker.or_else(|| self.deps.makers.of(&key));
        let mut presence = maker.unwrap_or_else(|| watch::channel(true).1);
        let mut over = self.deps.makers.put(key.clone(), presence.clone());
        let ctx = self.clone();
        tokio::task::spawn_local(async move {
            let gone = async {
                let _ = presence.wait_for(|gone| *gone).await;
                tokio::time::sleep(GRACE).await;
            };
            tokio::select! {
                _ = over.changed() => return,
                () = gone => {}
            }
            let (ns, id) = &key;
            let _turn = ctx.turn(ns, id).await;
            // Whoever had the turn may have started or taken it over.
            if over.has_changed().is_ok() {
                ctx.abandon(ns, id).await;
            }
        });
    }

    /// Removes what was never started.
    async fn abandon(&self, ns: &Namespace, id: &Id) {
        let entry = self.entries.borrow().get(&(ns.clone(), id.clone())).cloned();
        if let Some(entry) = &entry {
            // One whose shim doesn't answer is looked at by the next daemon.
            let asked = entry.link.settled().await;
            let started = entry.init.life.borrow().started != Timestamp(0);
            if asked.is_err() || started || entry.init.ended().is_some() {
                self.deps.makers.take(ns, id);
                return;
            }
        }
        let _group = self.group_turn(ns, id).await;
        tracing::info!(container = %id, "was to go with its task, and who made it went before the start: it goes");
        match remove::remove(&self.deps, &Authority::system(), ns, id, entry.as_ref(), true).await {
            Err(error) if error.code != cofferdam_types::Code::NotFound => {
                tracing::error!(container = %id, %error, "it can't be removed");
            }
            _ => self.removed(ns, id),
        }
        self.deps.makers.take(ns, id);
    }
}
