//! One connection: who is at its other end, what it may have under way, and the only way to hand out objects.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use capnp::capability::{FromClientHook, FromServer};
use cofferdam_types::{Authority, Error, Name, Namespace, Peer};
use cofferdam_wire::{error::to_rpc, fdstream::Fds};
use tokio::sync::watch;

use super::{guard, images::Image, meter::Meter};
use crate::services::Services;

/// A grant, as far as a call needs to know it. Revoking it ends every call that is under way through it.
#[derive(Debug)]
pub struct Grant {
    ended: watch::Sender<bool>,
}

impl Grant {
    /// A live one.
    pub fn new() -> Arc<Grant> {
        Arc::new(Grant { ended: watch::Sender::new(false) })
    }

    /// Takes it back.
    pub fn revoke(&self) {
        self.ended.send_replace(true);
    }

    /// Turns true when it is taken back.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// The error, if it was taken back.
    pub fn revoked(&self) -> Option<Error> {
        self.ended.borrow().then(taken_back)
    }

    /// Waits until it is taken back.
    pub async fn until_revoked(&self) -> Error {
        let _ = self.ended().wait_for(|ended| *ended).await;
        taken_back()
    }
}

fn taken_back() -> Error {
    Error::revoked("grant", "", "was taken back")
}

/// What an object was handed out with: its authority, its grant, and the context laid over it.
#[derive(Clone, Debug)]
pub struct Held {
    /// Goes into every message.
    pub authority: Authority,
    /// Checked at every call.
    pub grant: Arc<Grant>,
    /// Of `Namespace.with`.
    pub deadline: Option<Duration>,
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
    /// The grant of everything on this connection: it ends with it.
    pub grant: Arc<Grant>,
    /// What it has under way.
    pub meter: Rc<Meter>,
    /// Images that were handed out, by their server's address: so they are known when they come back.
    images: RefCell<HashMap<usize, Known>>,
}

impl Session {
    /// For a new connection.
    pub fn new(services: Services, fds: Fds, peer: Peer, meter: Rc<Meter>) -> Rc<Session> {
        Rc::new(Session { services, fds, peer, grant: Grant::new(), meter, images: RefCell::default() })
    }

    /// Makes a client of a server object. This, and what it calls, is the only way: a test refuses any other.
    pub fn hand_out<C, S>(self: &Rc<Self>, object: S, held: &Held) -> C
    where
        C: FromServer<S> + FromClientHook,
    {
        self.hand_out_rc(Rc::new(object), held)
    }

    /// [`Session::hand_out`] for an object that is shared already.
    pub fn hand_out_rc<C, S>(self: &Rc<Self>, object: Rc<S>, held: &Held) -> C
    where
        C: FromServer<S> + FromClientHook,
    {
        let Some(counted) = self.meter.begin_object() else {
            let why = "holds as many objects as is allowed, and is cut";
            let broken = capnp_rpc::new_broken_cap(to_rpc(Error::resource_exhausted("connection", "", why)));
            return C::new(broken.hook);
        };
        let dispatch = C::from_server(object);
        let full = Some(self.services.full.clone());
        C::new(guard::guard(dispatch, self.meter.clone(), counted, Rc::new(held.clone()), full).into_client_hook())
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
