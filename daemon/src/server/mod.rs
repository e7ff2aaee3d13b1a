//! The RPC servers: one file per interface, each method a few lines between the schema and an actor.

mod admission;
mod archive;
mod artifacts;
mod attachments;
mod audit;
mod bytes;
mod chained;
mod changes;
mod chooser;
mod collector;
mod coming;
mod containers;
mod content;
mod credentials;
mod cursor;
mod ends;
mod events;
mod exports;
mod foreign;
mod gate;
mod grants;
mod guard;
mod image;
mod images;
mod inflow;
mod intake;
mod jobs;
mod leases;
mod listener;
mod logs;
mod meter;
mod metrics;
mod namespaces;
mod narrow;
mod networks;
mod options;
mod outflow;
mod reach;
mod session;
mod share;
mod snapshots;
mod stdio;
mod system;
mod tables;
mod tasks;
mod trail;
mod within;

use cofferdam_types::{Filter, Result};
use cofferdam_wire::error::to_rpc;

pub use admission::Admission;
pub use exports::Exports;
pub use listener::{Listener, Rooms};

/// A domain result as a method returns it.
fn rpc<T>(result: Result<T>) -> capnp::Result<T> {
    result.map_err(to_rpc)
}

/// The filters of a list, over things that have these fields.
fn filters(texts: capnp::Result<capnp::text_list::Reader<'_>>, known: &[&str]) -> Result<Filter> {
    Filter::of(&cofferdam_wire::convert::texts(texts)?, known)
}

/// Where an object is: what every server struct holds.
#[derive(Clone)]
struct Place {
    session: std::rc::Rc<session::Session>,
    held: session::Held,
    namespace: cofferdam_types::Namespace,
}

impl Place {
    fn hand_out<C, S>(&self, object: S) -> C
    where
        C: capnp::capability::FromServer<S> + capnp::capability::FromClientHook + capnp::traits::HasTypeId,
    {
        self.session.hand_out(object, &self.held)
    }

    /// The same for the objects of a thing in it: what is done to them is told of that.
    fn named(&self, kind: &str, id: impl std::fmt::Display) -> Place {
        let mut place = self.clone();
        place.held.about.object = Some(format!("{kind}/{id}").into());
        place
    }

    fn services(&self) -> &crate::services::Services {
        &self.session.services
    }

    fn authority(&self) -> &cofferdam_types::Authority {
        &self.held.authority
    }

    /// Whether the client is still there.
    fn presence(&self) -> cofferdam_tasks::Presence {
        self.held.grant.ended()
    }
}
