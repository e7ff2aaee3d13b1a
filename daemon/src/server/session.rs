//! One connection: who is at its other end, what it may have under way, and the only way to hand out objects.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::{Rc, Weak},
    sync::{Arc, LazyLock},
    time::Duration,
};

use capnp::{
    capability::{FromClientHook, FromServer},
    traits::HasTypeId,
};
use cofferdam_grants::{Calls, Live, Node};
use cofferdam_types::{Authority, Error, Name, Namespace, Peer, Result};
use cofferdam_wire::{error::to_rpc, fdstream::Fds, needs::METHODS, received::Room};
use futures::future::LocalBoxFuture;

use super::{ends, guard, image::Image, meter::Meter, reach::Reach, trail::About};
use crate::services::Services;

/// The interfaces of places in lists.
static LISTS: LazyLock<Vec<u64>> =
    LazyLock::new(|| METHODS.iter().filter(|m| m.name.ends_with("Cursor.next")).map(|m| m.own).collect());

/// A socket that is a grant.
#[derive(Clone)]
pub struct Entry {
    /// The grant.
    pub node: Arc<Node>,
    /// Whether the socket still is it: ends with the grant, or before.
    pub live: Arc<Live>,
}

/// Asked at every call of an object that a grant reaches only as long as something is true of it.
pub type Check = Rc<dyn Fn() -> Result<()>>;

/// Waits until that is true no more.
pub type Gone = Rc<dyn Fn() -> LocalBoxFuture<'static, Error>>;

/// What an object was handed out with: its authority, its grant, and the context laid over it.
#[derive(Clone)]
pub struct Held {
    /// Goes into every message.
    pub authority: Authority,
    /// Whether it is still there: what the connection has of it. Asked at every call.
    pub grant: Arc<Live>,
    /// The grant itself, where this is one: what ends with it and not with the connection. None: the operator.
    pub given: Option<Arc<Live>>,
    /// What it lets through. Asked at every call.
    pub reach: Arc<Reach>,
    /// What else is asked then.
    pub check: Option<Check>,
    /// With what ends, beside the grant, what waits and what streams. None: with nothing.
    pub gone: Option<Gone>,
    /// Of `Namespace.with`.
    pub deadline: Option<Duration>,
    /// How many calls may be under way by it.
    pub calls: Calls,
    /// What it is, for the audit log.
    pub about: About,
}

impl Held {
    /// Waits until what waits and what streams may not go on: the connection has the grant no more, or that doesn't reach the object
    /// any more.
    pub fn until_over(&self) -> impl Future<Output = Error> + use<> {
        ends::either(self.grant.clone(), self.gone.clone())
    }

    /// For the objects that only lead to what a grant gives: they let everything through, and have nothing to let out.
    pub fn way(&self) -> Held {
        Held { reach: Reach::everything(), calls: Calls::default(), ..self.clone() }
    }
}

/// An image that was handed out.
type Known = (Weak<Image>, Namespace, Name);

/// See the module.
pub struct Session {
    /// The subsystems.
    pub services: Services,
    /// The descriptors of this connection.
    pub fds: Fds,
    /// Who is at the other end, as the kernel says.
    pub peer: Peer,
    /// Ends with the connection, and with that everything that it got.
    pub grant: Arc<Live>,
    /// The grant that the socket is; none on the main one.
    pub entry: Option<Entry>,
    /// What it has under way.
    pub meter: Rc<Meter>,
    /// For threads that read and write what it sends (`foreign.rs`).
    pub files: Arc<Room>,
    /// Images that were handed out, by their server's address: so they are known when they come back.
    images: RefCell<HashMap<usize, Known>>,
}

impl Session {
    /// For a new connection.
    pub fn new(
        services: Services,
        fds: Fds,
        peer: Peer,
        meter: Rc<Meter>,
        files: Arc<Room>,
        entry: Option<Entry>,
    ) -> Rc<Session> {
        Rc::new(Session { services, fds, peer, grant: Live::new(), entry, meter, files, images: RefCell::default() })
    }

    /// Makes a client of a server object. This, and what it calls, is the only way: a test refuses any other.
    pub fn hand_out<C, S>(self: &Rc<Self>, object: S, held: &Held) -> C
    where
        C: FromServer<S> + FromClientHook + HasTypeId,
    {
        self.hand_out_rc(Rc::new(object), held)
    }

    /// [`Session::hand_out`] for an object that is shared already.
    pub fn hand_out_rc<C, S>(self: &Rc<Self>, object: Rc<S>, held: &Held) -> C
    where
        C: FromServer<S> + FromClientHook + HasTypeId,
    {
        let places = LISTS.contains(&C::TYPE_ID).then(|| self.meter.begin_cursor());
        let (Some(counted), None | Some(Some(_))) = (self.meter.begin_object(), &places) else {
            let why = "holds as many objects as is allowed, and is cut";
            let broken = capnp_rpc::new_broken_cap(to_rpc(Error::resource_exhausted("connection", "", why)));
            return C::new(broken.hook);
        };
        let dispatch = C::from_server(object);
        let (full, audit) = (Some(self.services.full.clone()), Some(self.services.audit.clone()));
        let (own, meter, held) = (C::TYPE_ID, self.meter.clone(), Rc::new(held.clone()));
        let counted = (counted, places.flatten());
        C::new(guard::guard(dispatch, own, meter, counted, held, full, audit).into_client_hook())
    }

    /// Keeps in mind which image a server object stands for.
    pub fn remember_image(&self, object: &Rc<Image>, namespace: Namespace, name: Name) {
        let mut images = self.images.borrow_mut();
        images.retain(|_, (image, ..)| image.strong_count() > 0);
        images.insert(Rc::as_ptr(object) as usize, (Rc::downgrade(object), namespace, name));
    }

    /// The image that the server object at this address stands for, if it is one of ours and still there.
    pub fn recall_image(&self, address: usize) -> Option<(Namespace, Name)> {
        let images = self.images.borrow();
        let (image, namespace, name) = images.get(&address)?;
        (image.strong_count() > 0).then(|| (namespace.clone(), name.clone()))
    }
}
