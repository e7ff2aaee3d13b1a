//! One connection: who is at its other end, what it may have under way, and the only way to hand out objects.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use capnp::capability::{FromClientHook, FromServer};
use cofferdam_types::{Authority, Error, Name, Namespace, Peer};
use cofferdam_wire::{error::to_rpc, fdstream::Fds};
use tokio::sync::Notify;

use super::{guard, images::Image};
use crate::services::Services;

/// What one connection may have; over budget it is cut. The other bounds of the table in the architecture lie where
/// they are enforced: descriptors in `fdstream`, messages and windows in `connect`, lists in `cursor`.
pub struct Budget {
    /// Calls under way.
    pub calls: usize,
    /// Objects handed out and not yet released.
    pub objects: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { calls: 256, objects: 4096 }
    }
}

/// A grant, as far as a call needs to know it. Revoking it ends every call that is under way through it.
#[derive(Debug)]
pub struct Grant {
    live: AtomicBool,
    ended: Notify,
}

impl Grant {
    /// A live one.
    pub fn new() -> Arc<Grant> {
        Arc::new(Grant { live: AtomicBool::new(true), ended: Notify::new() })
    }

    /// Takes it back.
    pub fn revoke(&self) {
        self.live.store(false, Ordering::Release);
        self.ended.notify_waiters();
    }

    /// The error, if it was taken back.
    pub fn revoked(&self) -> Option<Error> {
        (!self.live.load(Ordering::Acquire)).then(|| Error::revoked("grant", "", "was taken back"))
    }

    /// Waits until it is taken back.
    pub async fn until_revoked(&self) -> Error {
        loop {
            let ended = self.ended.notified();
            if let Some(why) = self.revoked() {
                return why;
            }
            ended.await;
        }
    }
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

/// See the module.
pub struct Session {
    /// The subsystems.
    pub services: Services,
    /// The descriptors of this connection.
    pub fds: Fds,
    /// Who is at the other end, as the kernel says.
    pub peer: Peer,
    budget: Budget,
    calls: Cell<usize>,
    objects: Cell<usize>,
    /// Images that were handed out, by their server's address: so they are known when they come back.
    images: RefCell<HashMap<usize, (Weak<Image>, Namespace, Name)>>,
    /// Told once: the connection is over its budget.
    cut: Notify,
}

impl Session {
    /// For a new connection.
    pub fn new(services: Services, fds: Fds, peer: Peer) -> Rc<Session> {
        Rc::new(Session {
            services,
            fds,
            peer,
            budget: Budget::default(),
            calls: Cell::new(0),
            objects: Cell::new(0),
            images: RefCell::default(),
            cut: Notify::new(),
        })
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
        if self.objects.get() >= self.budget.objects {
            self.cut.notify_one();
            let why = format!("holds {} objects, the most that is allowed, and is cut", self.budget.objects);
            let broken = capnp_rpc::new_broken_cap(to_rpc(Error::resource_exhausted("connection", "", why)));
            return C::new(broken.hook);
        }
        self.objects.set(self.objects.get() + 1);
        let dispatch = C::from_server(object);
        C::new(guard::guard(dispatch, self.clone(), Rc::new(held.clone())).into_client_hook())
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

    pub(super) fn object_gone(&self) {
        self.objects.set(self.objects.get() - 1);
    }

    /// Counts a call for as long as the answer lives; `None` and the end of the connection over budget.
    pub(super) fn begin_call(self: &Rc<Self>) -> Option<Call> {
        if self.calls.get() >= self.budget.calls {
            self.cut.notify_one();
            return None;
        }
        self.calls.set(self.calls.get() + 1);
        Some(Call(self.clone()))
    }

    /// Waits until the connection must be cut.
    pub async fn until_cut(&self) {
        self.cut.notified().await;
        // What was refused is told first.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A call under way.
pub struct Call(Rc<Session>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.calls.set(self.0.calls.get() - 1);
    }
}
