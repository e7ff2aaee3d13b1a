//! What a collection spares although its mark did not reach it: what was referred to since it began, and what jobs are
//! about to refer to.
//!
//! Both are memory alone. A collection ends with the daemon, and so do the jobs; and a writer pays nothing for it on disk.
//! Both change within the writer's thread, so that what a sweep reads is in the order of the commits. What a write noted
//! that was then aborted is spared for nothing, and collected the next time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cofferdam_types::{Error, Namespace, Result};

use crate::records::Resource;

/// References that are noted for one collection. With more of them than that it is given up: another begins.
const MAX_NOTED: usize = 1 << 17;

/// See the module.
#[derive(Default)]
pub struct Spared(Mutex<State>);

#[derive(Default)]
struct State {
    begun: u64,
    running: Option<Vec<(Namespace, Resource)>>,
    pins: BTreeMap<(Namespace, Resource), usize>,
}

impl Spared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a collection: from now on references are noted. An older one that did not end is void.
    pub(crate) fn begin(&self) -> u64 {
        let mut state = self.state();
        state.begun += 1;
        state.running = Some(Vec::new());
        state.begun
    }

    /// Ends it.
    pub(crate) fn end(&self, collection: u64) {
        let mut state = self.state();
        if state.begun == collection {
            state.running = None;
        }
    }

    /// Notes references, if a collection runs.
    pub(crate) fn touch(&self, ns: &Namespace, resources: impl IntoIterator<Item = Resource>) {
        let mut state = self.state();
        let Some(noted) = &mut state.running else { return };
        noted.extend(resources.into_iter().map(|resource| (ns.clone(), resource)));
        if noted.len() > MAX_NOTED {
            state.running = None;
        }
    }

    /// What of a namespace was noted from the place `from` on, and the place behind it.
    pub(crate) fn noted(&self, collection: u64, ns: &Namespace, from: usize) -> Result<(Vec<Resource>, usize)> {
        let state = self.state();
        match &state.running {
            Some(noted) if state.begun == collection => {
                let news = noted.iter().skip(from).filter(|(space, _)| space == ns);
                Ok((news.map(|(_, resource)| resource.clone()).collect(), noted.len()))
            }
            _ => {
                let why = "is no longer the one that runs, or too much was written meanwhile: begin another";
                Err(Error::failed_precondition("collection", collection, why))
            }
        }
    }

    /// What jobs hold in a namespace.
    pub(crate) fn pinned(&self, ns: &Namespace) -> Vec<Resource> {
        let state = self.state();
        state.pins.keys().filter(|(space, _)| space == ns).map(|(_, resource)| resource.clone()).collect()
    }

    fn pin(&self, ns: &Namespace, resources: &[Resource]) {
        let mut state = self.state();
        for resource in resources {
            *state.pins.entry((ns.clone(), resource.clone())).or_default() += 1;
        }
    }
}

/// What a job is about to refer to: it is not collected, there or not, with all that it refers to, until this is dropped.
#[must_use = "dropping it lets the collector at it"]
pub struct Pin {
    spared: Arc<Spared>,
    namespace: Namespace,
    resources: Vec<Resource>,
}

impl Pin {
    /// Called within the writer's thread: a collection that has not removed it by then doesn't.
    pub(crate) fn new(spared: Arc<Spared>, namespace: Namespace, resources: Vec<Resource>) -> Pin {
        spared.pin(&namespace, &resources);
        Pin { spared, namespace, resources }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.spared.state();
        for resource in self.resources.drain(..) {
            let key = (self.namespace.clone(), resource);
            match state.pins.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(state.pins.remove(&key)),
            }
        }
    }
}
