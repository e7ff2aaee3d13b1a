//! A directory between its making and its record.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use cofferdam_types::{Code, Result};

use super::{Area, lock};

/// How often and how long apart it is asked whether a record names a directory, while the tables can't be read.
/// An actor that crashed is back in a second at most, and then opens them.
pub(super) const LOOKS: u32 = 200;
pub(super) const LOOK: std::time::Duration = std::time::Duration::from_millis(10);

/// A directory in somebody's hands. Dropped, it goes to the trash, unless a record refers to it.
pub struct Held {
    area: Arc<Area>,
    id: u64,
    kept: AtomicBool,
}

impl Held {
    /// One that is live in this area.
    pub(super) fn new(area: Arc<Area>, id: u64) -> Held {
        Held { area, id, kept: AtomicBool::new(false) }
    }

    /// Its id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it lies.
    pub fn area(&self) -> &Arc<Area> {
        &self.area
    }

    /// Whoever removes its record from now on leaves the directory to this.
    pub fn busy(&self) {
        lock(&self.area.busy).insert(self.id);
    }

    /// The directory is that of a committed snapshot now, or of an active one still. In doubt, and where this fails, the
    /// next start looks.
    pub fn settle(&self, committed: bool) {
        if let Err(error) = self.area.settle(self.id, committed) {
            tracing::warn!(id = self.id, %error, "the next start tidies up a snapshot's directory");
        }
    }

    /// A record names it now: its end is the record's affair.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
        lock(&self.area.live).remove(&self.id);
    }

    /// It stays live, in other hands.
    pub(super) fn forget(self) -> u64 {
        self.kept.store(true, Ordering::Relaxed);
        self.id
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        let (area, id) = (self.area.clone(), self.id);
        // First, or who removes the record after the look would leave the directory to nobody.
        lock(&area.busy).remove(&id);
        // Whoever held it may have lost the answer to a commit that did happen.
        let referenced = (area.referenced)(id);
        if !passes(&referenced) {
            return area.let_go(id, referenced);
        }
        // The tables may be just opened anew, after a disk that was full: they get a moment, and who drops this may be an
        // actor, which has none. In doubt the next sweep decides.
        let later = move || {
            let mut referenced = referenced;
            for _ in 0..LOOKS {
                if !passes(&referenced) {
                    break;
                }
                std::thread::sleep(LOOK);
                referenced = (area.referenced)(id);
            }
            area.let_go(id, referenced);
        };
        if let Err(error) = std::thread::Builder::new().name("snapshots-late".into()).spawn(later) {
            tracing::warn!(id, %error, "a directory that nobody wants stays until the next start");
            lock(&self.area.live).remove(&id);
        }
    }
}

/// Whether it can't be said just now.
fn passes(referenced: &Result<bool>) -> bool {
    referenced.as_ref().is_err_and(|error| error.code == Code::Unavailable)
}

impl Area {
    /// The end of what was held: it goes unless a record names it.
    fn let_go(&self, id: u64, referenced: Result<bool>) {
        let result = match referenced {
            Ok(true) => Ok(()),
            Ok(false) => self.throw(id),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(id, %error, "a directory that nobody wants stays until the next start");
        }
        lock(&self.live).remove(&id);
    }
}
