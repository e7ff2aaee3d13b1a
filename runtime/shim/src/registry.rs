//! The containers that a shim made.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    rc::Rc,
};

use cofferdam_types::{Error, Id, Namespace, Result};
use tokio::sync::Notify;

use crate::{
    calls::Calls,
    container::{Container, Create},
    process::Process,
};

type Key = (Namespace, Id);

/// Every container of this shim.
pub struct Registry {
    containers: RefCell<BTreeMap<Key, Rc<Container>>>,
    /// Those that are being made.
    making: RefCell<BTreeSet<Key>>,
    made: Notify,
    dir: Rc<OwnedFd>,
    any: Cell<bool>,
}

impl Registry {
    /// None yet; life records go into `dir`.
    pub fn new(dir: OwnedFd) -> Registry {
        let (containers, making) = Default::default();
        Registry { containers, making, made: Notify::new(), dir: Rc::new(dir), any: Cell::new(false) }
    }

    /// Whether there is no container.
    pub fn is_empty(&self) -> bool {
        self.containers.borrow().is_empty() && self.making.borrow().is_empty()
    }

    /// One was asked for: from now on the shim has nothing to wait for when there is none.
    pub fn wanted(&self) {
        self.any.set(true);
    }

    /// Whether one was ever asked for.
    pub fn had_any(&self) -> bool {
        self.any.get()
    }

    /// One that was made earlier; waits while it is being made.
    pub async fn get(&self, namespace: &Namespace, id: &Id) -> Result<Rc<Container>> {
        let key = (namespace.clone(), id.clone());
        loop {
            let made = self.made.notified();
            if !self.making.borrow().contains(&key) {
                break;
            }
            made.await;
        }
        let found = self.containers.borrow().get(&key).cloned();
        found.ok_or_else(|| Error::not_found("container", id, "is not one of this shim's"))
    }

    /// All of them.
    pub fn all(&self) -> Vec<Rc<Container>> {
        self.containers.borrow().values().cloned().collect()
    }

    /// Makes one. On an error nothing is left of it.
    pub async fn create(&self, calls: Rc<Calls>, request: Create) -> Result<Rc<Container>> {
        let key = (request.namespace.clone(), request.id.clone());
        if self.containers.borrow().contains_key(&key) || !self.making.borrow_mut().insert(key.clone()) {
            return Err(Error::already_exists("container", &request.id, "is made already"));
        }
        let made = Container::create(self.dir.clone(), calls, request).await;
        self.making.borrow_mut().remove(&key);
        if let Ok(container) = &made {
            self.containers.borrow_mut().insert(key, container.clone());
        }
        self.made.notify_waiters();
        made
    }

    /// Forgets one whose deletion is done.
    pub fn remove(&self, container: &Container) {
        self.containers.borrow_mut().remove(&(container.namespace.clone(), container.id.clone()));
    }

    /// A process that has ended and can be taken in.
    pub fn ended(&self) -> Option<(Rc<Container>, Rc<Process>)> {
        let containers = self.containers.borrow();
        containers.values().find_map(|container| Some((container.clone(), container.ended()?)))
    }

    /// Whose process this child is.
    pub fn child(&self, pid: i32) -> Option<(Rc<Container>, Rc<Process>)> {
        let containers = self.containers.borrow();
        containers.values().find_map(|container| Some((container.clone(), container.child(pid)?)))
    }
}
