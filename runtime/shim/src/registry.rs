//! The containers that a shim made.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    os::fd::OwnedFd,
    rc::Rc,
};

use cofferdam_types::{Error, Id, Namespace, Result};

use crate::{
    container::{Container, Create},
    process::Process,
};

type Key = (Namespace, Id);

/// Every container of this shim.
pub struct Registry {
    containers: RefCell<BTreeMap<Key, Rc<Container>>>,
    dir: Rc<OwnedFd>,
    any: Cell<bool>,
}

impl Registry {
    /// None yet; life records go into `dir`.
    pub fn new(dir: OwnedFd) -> Registry {
        Registry { containers: RefCell::default(), dir: Rc::new(dir), any: Cell::new(false) }
    }

    /// Whether there is no container.
    pub fn is_empty(&self) -> bool {
        self.containers.borrow().is_empty()
    }

    /// One was asked for: from now on the shim has nothing to wait for when there is none.
    pub fn wanted(&self) {
        self.any.set(true);
    }

    /// Whether one was ever asked for.
    pub fn had_any(&self) -> bool {
        self.any.get()
    }

    /// One that was made earlier.
    pub fn get(&self, namespace: &Namespace, id: &Id) -> Result<Rc<Container>> {
        let key = (namespace.clone(), id.clone());
        let found = self.containers.borrow().get(&key).cloned();
        found.ok_or_else(|| Error::not_found("container", id, "is not one of this shim's"))
    }

    /// All of them.
    pub fn all(&self) -> Vec<Rc<Container>> {
        self.containers.borrow().values().cloned().collect()
    }

    /// Makes one. On an error nothing is left of it.
    pub fn create(&self, request: Create) -> Result<Rc<Container>> {
        let key = (request.namespace.clone(), request.id.clone());
        if self.containers.borrow().contains_key(&key) {
            return Err(Error::already_exists("container", &request.id, "is made already"));
        }
        let container = Container::create(self.dir.clone(), request)?;
        self.containers.borrow_mut().insert(key, container.clone());
        Ok(container)
    }

    /// Forgets one whose deletion is done.
    pub fn remove(&self, container: &Container) {
        self.containers.borrow_mut().remove(&(container.namespace.clone(), container.id.clone()));
    }

    /// Whose process this child is.
    pub fn child(&self, pid: i32) -> Option<(Rc<Container>, Rc<Process>)> {
        let containers = self.containers.borrow();
        containers.values().find_map(|container| Some((container.clone(), container.child(pid)?)))
    }
}
