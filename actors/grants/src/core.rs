//! The logic: rows and tree together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cofferdam_metadata::{
    Metadata, Tx,
    records::grants::{self as records, Grant},
};
use cofferdam_types::{Authority, Error, GrantId, Peer, Result, Timestamp};
use tokio::sync::Notify;

use crate::{
    End, Node, Token,
    messages::{Create, Export, Save},
    tree::Tree,
};

/// What all lives of the actor share.
pub(crate) struct Core {
    pub metadata: Metadata,
    pub tree: Tree,
    /// Told when a grant is made whose time ends.
    pub timed: Notify,
    /// Those whose time was over when the rows were read; see [`Core::forget_ended`].
    ended: Mutex<Vec<Arc<[GrantId]>>>,
    /// Those whose time is over, and whose rows are there yet.
    overdue: Mutex<Vec<Arc<[GrantId]>>>,
    /// Told when there are some.
    over: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn missing(id: GrantId) -> Error {
    Error::not_found("grant", id, "does not exist, or was taken back")
}

impl Core {
    /// Reads the rows. What can't be read, or comes from what isn't there, gives nothing.
    pub fn load(metadata: Metadata) -> Result<Core> {
        let (ended, overdue, over) = (Mutex::default(), Mutex::default(), Notify::new());
        let core = Core { metadata, tree: Tree::default(), timed: Notify::new(), ended, overdue, over };
        let mut each = |path: Vec<GrantId>, grant: Grant| {
            if core.tree.insert(&path, &grant).is_none() {
                tracing::warn!(grant = %grant.id, "a grant comes from one that is not there, and gives nothing");
            }
        };
        let mut bad = |error: Error| tracing::warn!(%error, "a grant can't be read, and gives nothing");
        records::visit(&core.metadata.read()?, &mut each, &mut bad)?;
        let over = core.tree.over(Timestamp::now());
        core.tree.remove(&over, End::Expired);
        *lock(&core.ended) = over.iter().map(|node| node.path.clone()).collect();
        Ok(core)
    }

    /// The live grant of this id, where it comes from the one that asks.
    pub fn node(&self, authority: &Authority, id: GrantId) -> Result<Arc<Node>> {
        let comes =
            |node: &Arc<Node>| node.path.len() > authority.grants.len() && node.path.starts_with(&authority.grants);
        self.tree.get(id).filter(comes).ok_or_else(|| missing(id))
    }

    /// The grant that asks, where it is one.
    fn asking(&self, authority: &Authority) -> Result<Option<Arc<Node>>> {
        let Some(id) = authority.grants.last() else { return Ok(None) };
        self.tree.get(*id).map(Some).ok_or_else(|| End::Revoked.error())
    }

    pub async fn create(&self, message: Create) -> Result<Arc<Node>> {
        let Create { authority, new } = message;
        let above = self.asking(&authority)?;
        if above.as_ref().is_some_and(|above| !above.caveats.may_delegate) {
            return Err(Error::denied("grant", "", "may not be passed on: whoever gave it has to give another"));
        }
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).map_err(|e| Error::internal("random", "", e.to_string()))?;
        let id = GrantId(u128::from_le_bytes(bits));
        let mut caveats = new.caveats;
        if new.own {
            caveats.containers.made_by.push(id);
        }
        let left = above.as_ref().map_or_else(|| caveats.clone(), |above| above.caveats.and(&caveats));
        left.check()?;
        if left.not_after.is_some_and(|end| end <= Timestamp::now()) {
            return Err(Error::invalid("grant", "", "would have ended already: give a time to come"));
        }
        if above.as_ref().is_some_and(|above| above.namespace != new.namespace) {
            return Err(Error::denied("namespace", &new.namespace, "is not where the grant begins that it comes from"));
        }
        let mut grant = Grant::new(id, new.namespace, caveats);
        (grant.label, grant.uses) = (new.label, new.uses);
        if let Some(Peer::Unix { uid, .. }) = authority.peer {
            grant.by = uid;
        }
        let path = authority.grants.clone();
        let row = move |tx: &mut Tx<'_>| records::create(tx, &path, grant.clone());
        let grant = self.metadata.write(&authority, row).await?;
        let path = [&authority.grants[..], &[id]].concat();
        // What it comes from may have ended meanwhile: with that its row went too.
        let node = self.tree.insert(&path, &grant).ok_or_else(|| End::Revoked.error())?;
        self.timed.notify_one();
        Ok(node)
    }

    pub async fn save(&self, message: Save) -> Result<Token> {
        let Save { authority, id, sealed_to } = message;
        let node = self.node(&authority, id)?;
        if self.asking(&authority)?.is_some_and(|above| !above.caveats.may_save) {
            return Err(Error::denied("grant", "", "may not be kept: what comes from it has no tokens"));
        }
        let token = Token::random()?;
        let (path, digest) = (node.path.clone(), token.digest());
        let change = move |tx: &mut Tx<'_>| {
            records::update(tx, &path, |grant| {
                (grant.token, grant.sealed_to) = (Some(digest.clone()), sealed_to);
                Ok(())
            })
        };
        let grant = self.metadata.write(&authority, change).await?;
        self.tree.seal(&node, &grant);
        Ok(token)
    }

    /// The grant of a token, for this user; and whether each use of it counts.
    pub fn find(&self, token: &Token, uid: u32) -> Result<(Arc<Node>, bool)> {
        let digest = token.digest();
        let nobodys = || Error::denied("token", "", "is that of no grant: it was never given, or was taken back");
        let node = self.tree.find(&digest).ok_or_else(nobodys)?;
        let seal = node.seal();
        if seal.sealed_to.is_some_and(|user| user != uid) {
            return Err(Error::denied("token", "", format!("is not for user {uid}")));
        }
        if node.caveats.not_after.is_some_and(|end| end <= Timestamp::now()) {
            return Err(End::Expired.error());
        }
        match node.live.end() {
            None => Ok((node, seal.counted)),
            Some(end) => Err(end.error()),
        }
    }

    /// The same, and counts it.
    pub async fn restore(&self, token: &Token, uid: u32) -> Result<Arc<Node>> {
        let (node, counted) = self.find(token, uid)?;
        if counted {
            let path = node.path.clone();
            let count = move |tx: &mut Tx<'_>| {
                let mut none_left = false;
                records::update(tx, &path, |grant| {
                    none_left = grant.uses == Some(0);
                    grant.uses = grant.uses.map(|uses| uses.saturating_sub(1));
                    Ok(())
                })?;
                Ok(none_left)
            };
            if self.metadata.write(&Authority::system(), count).await? {
                return Err(Error::denied("token", "", "was used as often as was allowed"));
            }
        }
        match node.live.end() {
            None => Ok(node),
            Some(end) => Err(end.error()),
        }
    }

    /// Takes it back: its calls end first, and it is on record after that.
    pub async fn revoke(&self, authority: &Authority, id: GrantId) -> Result<()> {
        let path = match self.node(authority, id) {
            Ok(node) => {
                self.tree.remove(std::slice::from_ref(&node), End::Revoked);
                node.path.to_vec()
            }
            // One that is not live may have a row all the same: of what it came from, or of an attempt that failed.
            Err(error) => self.row(authority, id)?.ok_or(error)?,
        };
        self.forget(authority, path).await.map_err(|e| {
            e.context(
                "its calls are ended, but that can't be recorded, and it is there again when the daemon starts anew",
            )
        })
    }

    fn row(&self, authority: &Authority, id: GrantId) -> Result<Option<Vec<GrantId>>> {
        let mut found = None;
        let mut each = |path: Vec<GrantId>, _| {
            if path.len() > authority.grants.len() && path.starts_with(&authority.grants) && path.last() == Some(&id) {
                found = Some(path);
            }
        };
        records::visit(&self.metadata.read()?, &mut each, &mut |_| {})?;
        Ok(found)
    }

    async fn forget(&self, authority: &Authority, path: Vec<GrantId>) -> Result<()> {
        self.metadata.write(authority, move |tx: &mut Tx<'_>| records::delete(tx, &path).map(drop)).await
    }

    /// Ends those whose time is over. Their rows are for [`Core::forget_overdue`]: others end while a disk takes its time.
    pub fn expire(&self) {
        let over = self.tree.over(Timestamp::now());
        if over.is_empty() {
            return;
        }
        self.tree.remove(&over, End::Expired);
        lock(&self.overdue).extend(over.iter().map(|node| node.path.clone()));
        self.over.notify_one();
    }

    /// Has the rows removed of those whose time was over when the rows were read. Until somebody says so they are there: they know
    /// what is left of such a grant on the host.
    pub fn forget_ended(&self) {
        lock(&self.overdue).append(&mut lock(&self.ended));
        self.over.notify_one();
    }

    /// Removes the rows of those whose time is over, when there are some.
    pub async fn forget_overdue(&self) {
        let paths = std::mem::take(&mut *lock(&self.overdue));
        if paths.is_empty() {
            return self.over.notified().await;
        }
        let gone = move |tx: &mut Tx<'_>| paths.iter().try_for_each(|path| records::delete(tx, path).map(drop));
        if let Err(error) = self.metadata.write(&Authority::system(), gone).await {
            tracing::warn!(%error, "grants that have ended stay on record until the next start");
        }
    }

    pub async fn export(&self, message: Export) -> Result<(Arc<Node>, Grant)> {
        let Export { authority, id, directory } = message;
        let node = self.node(&authority, id)?;
        let path = node.path.clone();
        let change = move |tx: &mut Tx<'_>| {
            records::update(tx, &path, |grant| {
                if let (Some(old), Some(_)) = (&grant.exported, &directory) {
                    return Err(Error::already_exists("grant", grant.id, format!("is exported at {old}")));
                }
                grant.exported.clone_from(&directory);
                Ok(())
            })
        };
        let grant = self.metadata.write(&authority, change).await?;
        Ok((node, grant))
    }
}
