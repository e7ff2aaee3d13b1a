//! `Gate` and `Root` (gate.capnp).

use std::{rc::Rc, sync::Arc};

use cofferdam_grants::{Calls, Live, Node, Token};
use cofferdam_types::{Authority, Ceiling, Error, Keeper, Peer};
use cofferdam_wire::{
    API_VERSION,
    convert::text,
    error::to_rpc,
    gate_capnp::{gate, root},
    grant_capnp::grant_info,
};

use super::{
    audit::Audit,
    collector::Collector,
    grants,
    namespaces::Namespaces,
    narrow,
    reach::Reach,
    rpc,
    session::{Held, Session},
    system::System,
    trail::{self, About},
};

fn is_operator(uid: u32) -> bool {
    uid == nix::unistd::geteuid().as_raw()
}

/// The bootstrap object. It confers nothing.
pub struct Gate(pub Rc<Session>);

impl Gate {
    /// What a peer has for whom there is no rule: everything with the daemon's own uid, nothing with another.
    fn policy(&self) -> cofferdam_types::Result<Held> {
        let Peer::Unix { uid, .. } = self.0.peer;
        if !is_operator(uid) {
            let why = "is granted nothing on this socket: ask the operator for a grant, and restore its token";
            return Err(Error::denied("peer", format!("uid {uid}"), why));
        }
        Ok(Held {
            authority: Authority {
                grants: Arc::default(),
                ceiling: Ceiling::FULL,
                peer: Some(self.0.peer),
                correlation: None,
                trace: None,
                keeper: Keeper::References,
            },
            grant: self.0.grant.clone(),
            given: None,
            reach: Reach::everything(),
            check: None,
            gone: None,
            deadline: None,
            calls: Calls::default(),
            about: About::default(),
        })
    }
}

impl Gate {
    /// What a grant gives on this connection.
    fn open(
        &self,
        node: &Arc<Node>,
        by: &Arc<Live>,
        info: grant_info::Builder<'_>,
    ) -> cofferdam_types::Result<root::Client> {
        let record = self.0.services.grants.record(node)?;
        grants::set_info(info, node, &record);
        trail::through(&node.path);
        trail::object("grant", node.id());
        let place = grants::place(&self.0, node, by);
        let way = place.held.way();
        Ok(self.0.hand_out(narrow::Root(place), &way))
    }
}

impl gate::Server for Gate {
    async fn hello(self: Rc<Self>, params: gate::HelloParams, mut results: gate::HelloResults) -> capnp::Result<()> {
        let params = params.get()?;
        let name = rpc(text(params.get_name()))?;
        tracing::debug!(peer = ?self.0.peer, name, version = params.get_version(), "hello");
        let mut answer = results.get();
        answer.set_version(API_VERSION);
        answer.set_daemon(env!("CARGO_PKG_VERSION"));
        answer.set_fds(true);
        answer.init_features(0);
        Ok(())
    }

    async fn enter(self: Rc<Self>, _: gate::EnterParams, mut results: gate::EnterResults) -> capnp::Result<()> {
        if let Some(entry) = &self.0.entry {
            let root = rpc(self.open(&entry.node, &entry.live, results.get().init_grant()))?;
            results.get().set_root(root);
            return Ok(());
        }
        let Peer::Unix { uid, .. } = self.0.peer;
        if let Some((namespace, label)) = self.0.services.access.find(&self.0.peer).filter(|_| !is_operator(uid)) {
            let node = rpc(self.0.services.grants.labelled(namespace, label))?;
            let root = rpc(self.open(&node, &node.live, results.get().init_grant()))?;
            results.get().set_root(root);
            return Ok(());
        }
        let held = self.policy().map_err(to_rpc)?;
        let root = Root { session: self.0.clone(), held: held.clone() };
        results.get().set_root(self.0.hand_out(root, &held));
        Ok(())
    }

    async fn restore(
        self: Rc<Self>,
        params: gate::RestoreParams,
        mut results: gate::RestoreResults,
    ) -> capnp::Result<()> {
        let token = rpc(text(params.get()?.get_token()).and_then(Token::read))?;
        let Peer::Unix { uid, .. } = self.0.peer;
        let node = rpc(self.0.services.grants.restore(token, uid).await)?;
        let root = rpc(self.open(&node, &node.live, results.get().init_grant()))?;
        results.get().set_root(root);
        Ok(())
    }
}

/// Everything.
struct Root {
    session: Rc<Session>,
    held: Held,
}

impl root::Server for Root {
    async fn namespaces(
        self: Rc<Self>,
        _: root::NamespacesParams,
        mut results: root::NamespacesResults,
    ) -> capnp::Result<()> {
        let object = Namespaces { session: self.session.clone(), held: self.held.clone() };
        results.get().set_namespaces(self.session.hand_out(object, &self.held));
        Ok(())
    }

    async fn system(self: Rc<Self>, _: root::SystemParams, mut results: root::SystemResults) -> capnp::Result<()> {
        results.get().set_system(self.session.hand_out(System(self.session.clone(), self.held.clone()), &self.held));
        Ok(())
    }

    async fn collector(
        self: Rc<Self>,
        _: root::CollectorParams,
        mut results: root::CollectorResults,
    ) -> capnp::Result<()> {
        let object = Collector(self.session.clone(), self.held.clone());
        results.get().set_collector(self.session.hand_out(object, &self.held));
        Ok(())
    }

    async fn audit(self: Rc<Self>, _: root::AuditParams, mut results: root::AuditResults) -> capnp::Result<()> {
        let object = Audit(self.session.clone(), self.held.clone());
        results.get().set_audit(self.session.hand_out(object, &self.held));
        Ok(())
    }
}
