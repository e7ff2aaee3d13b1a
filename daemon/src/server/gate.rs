//! `Gate` and `Root` (gate.capnp).

use std::rc::Rc;

use cofferdam_types::{Authority, Ceiling, Error, GrantId, Keeper, Peer};
use cofferdam_wire::{
    API_VERSION,
    convert::text,
    error::to_rpc,
    gate_capnp::{gate, root},
};

use super::{
    collector::Collector,
    namespaces::Namespaces,
    rpc,
    session::{Held, Session},
    system::System,
};

/// The bootstrap object. It confers nothing.
pub struct Gate(pub Rc<Session>);

impl Gate {
    /// What the policy grants to the peer of this connection: everything to the daemon's own uid, nothing to others.
    fn policy(&self) -> cofferdam_types::Result<Held> {
        let Peer::Unix { uid, .. } = self.0.peer;
        if uid != nix::unistd::geteuid().as_raw() {
            let why = "is granted nothing on this socket: ask the operator for a capability";
            return Err(Error::denied("peer", format!("uid {uid}"), why));
        }
        Ok(Held {
            authority: Authority {
                grant: GrantId(0),
                ceiling: Ceiling::FULL,
                peer: Some(self.0.peer),
                correlation: None,
                trace: None,
                keeper: Keeper::References,
            },
            grant: self.0.grant.clone(),
            deadline: None,
        })
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
        let held = self.policy().map_err(to_rpc)?;
        let root = Root { session: self.0.clone(), held: held.clone() };
        results.get().set_root(self.0.hand_out(root, &held));
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
}
