//! The handle that the RPC layer holds.

use std::{sync::Arc, time::Duration};

use cofferdam_kernel::{Kernel, Placement, Slot, SlotConfig};
use cofferdam_metadata::{
    Metadata,
    records::{
        containers,
        grants::{self as records, Grant},
    },
};
use cofferdam_types::{Authority, Error, GrantId, Id, Namespace, Result, Which};

use crate::{
    NewGrant, Node, Token,
    actor::GrantsActor,
    core::Core,
    messages::{Create, Export, Restore, Revoke, Save},
};

/// So long nobody looks again at a container that was just looked at, whatever happens meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Every grant. Cheap to clone.
#[derive(Clone)]
pub struct Grants {
    slot: Slot<GrantsActor>,
    core: Arc<Core>,
}

impl Grants {
    /// Reads the rows, and hosts the actor.
    pub fn start(kernel: &Kernel, placement: Placement, metadata: Metadata) -> Result<Grants> {
        let core = Arc::new(Core::load(metadata)?);
        let theirs = core.clone();
        let slot = kernel.spawn(SlotConfig::new("grants", placement), move || GrantsActor(theirs.clone()));
        Ok(Grants { slot, core })
    }

    /// Makes one below the one that asks.
    pub async fn create(&self, authority: &Authority, new: NewGrant) -> Result<Arc<Node>> {
        self.slot.call(Create { authority: authority.clone(), new }).await
    }

    /// A live one that comes from the one that asks.
    pub fn get(&self, authority: &Authority, id: GrantId) -> Result<Arc<Node>> {
        self.core.node(authority, id)
    }

    /// The one of a label that the operator made in a namespace, for whom a rule of his gives it to.
    pub fn labelled(&self, namespace: &Namespace, label: &str) -> Result<Arc<Node>> {
        let mut found = self.core.tree.labelled(namespace, label);
        match (found.pop(), found.len()) {
            (Some(node), 0) => Ok(node),
            (None, _) => Err(Error::denied(
                "grant",
                "",
                format!("{label:?} of namespace {namespace} is not there, or was taken back"),
            )),
            (Some(_), more) => {
                let why = format!(
                    "{label:?} of namespace {namespace} is what {} are called: the operator has to say which",
                    more + 1
                );
                Err(Error::denied("grant", "", why))
            }
        }
    }

    /// Waits until one reaches a container of its namespace no more: it has ended, by whatever, or chooses others. At once where it
    /// is there no more.
    pub async fn until_out_of_reach(&self, id: GrantId, container: &Id) {
        let Some(node) = self.core.tree.get(id) else { return };
        tokio::select! {
            _ = node.live.until_ended() => {}
            () = self.until_left(&node.caveats.containers, &node.namespace, container) => {}
        }
    }

    /// Waits until a container is no more among those that are chosen. Of one that is not there, or can't be read, nobody can say
    /// so.
    pub async fn until_left(&self, which: &Which, namespace: &Namespace, id: &Id) {
        let mut news = self.core.metadata.outbox();
        while !which.is_all() {
            // What changes of a container is told as an event.
            news.borrow_and_update();
            let found = self.core.metadata.read().and_then(|view| containers::head(&view, namespace, id));
            if matches!(found, Ok(Some(record)) if !which.has(&record.subject())) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
            if news.changed().await.is_err() {
                break;
            }
        }
        std::future::pending().await
    }

    /// What is on record of one.
    pub fn record(&self, node: &Node) -> Result<Grant> {
        records::get(&self.core.metadata.read()?, &node.path)
    }

    /// At most `max` of those in a namespace that come from the one that asks, behind the one with the path `after`, in the
    /// order of the tree.
    pub fn list(
        &self,
        authority: &Authority,
        namespace: &Namespace,
        after: Option<&[GrantId]>,
        max: usize,
    ) -> Result<Vec<Arc<Node>>> {
        let (view, mut found) = (self.core.metadata.read()?, Vec::new());
        let mut after = after.map(<[GrantId]>::to_vec);
        while found.len() < max {
            let page = records::list(&view, &authority.grants, after.as_deref(), max)?;
            let end = page.len() < max;
            for (path, grant) in page {
                if found.len() < max && grant.namespace == *namespace {
                    found.extend(self.core.tree.get(grant.id));
                }
                if found.len() < max {
                    after = Some(path);
                }
            }
            if end {
                break;
            }
        }
        Ok(found)
    }

    /// Has a token made.
    pub async fn save(&self, authority: &Authority, id: GrantId, sealed_to: Option<u32>) -> Result<Token> {
        self.slot.call(Save { authority: authority.clone(), id, sealed_to }).await
    }

    /// The grant of a token, for this user.
    pub async fn restore(&self, token: Token, uid: u32) -> Result<Arc<Node>> {
        // Where nothing is to be written nobody waits: what was sent behind it finds it at once.
        let (node, counted) = self.core.find(&token, uid)?;
        if !counted {
            return Ok(node);
        }
        self.slot.call(Restore { token, uid }).await
    }

    /// Takes one back, with all that come from it. When this answers none of them is worth anything any more, and never will be.
    pub async fn revoke(&self, authority: &Authority, id: GrantId) -> Result<()> {
        self.slot.call(Revoke { authority: authority.clone(), id }).await
    }

    /// Notes where a grant is a socket; `None`: nowhere any more.
    pub async fn export(
        &self,
        authority: &Authority,
        id: GrantId,
        directory: Option<String>,
    ) -> Result<(Arc<Node>, Grant)> {
        self.slot.call(Export { authority: authority.clone(), id, directory }).await
    }

    /// How many containers there are that were made through a grant, or through what comes from it.
    pub fn made(&self, node: &Node) -> Result<u64> {
        records::made(&self.core.metadata.read()?, &node.namespace, node.id(), u64::MAX)
    }

    /// How many bytes of the disk are taken by what came through a grant, or through what comes from it.
    pub fn stored(&self, node: &Node) -> Result<u64> {
        records::stored(&self.core.metadata.read()?, &node.namespace, node.id())
    }

    /// Those that are sockets, and where.
    pub fn exported(&self) -> Result<Vec<(Arc<Node>, String)>> {
        let sockets = self.sockets()?.into_iter();
        Ok(sockets.filter_map(|(id, directory)| Some((self.core.tree.get(id)?, directory))).collect())
    }

    /// Those that are on record as sockets, and give nothing any more.
    pub fn ended(&self) -> Result<Vec<(GrantId, String)>> {
        let sockets = self.sockets()?.into_iter();
        Ok(sockets.filter(|(id, _)| self.core.tree.get(*id).is_none()).collect())
    }

    fn sockets(&self) -> Result<Vec<(GrantId, String)>> {
        let mut found = Vec::new();
        let mut each = |_, grant: Grant| found.extend(grant.exported.map(|directory| (grant.id, directory)));
        records::visit(&self.core.metadata.read()?, &mut each, &mut |_| {})?;
        Ok(found)
    }

    /// Forgets those whose time was over when the rows were read, once nothing is left of them on the host.
    pub fn forget_ended(&self) {
        self.core.forget_ended();
    }
}
