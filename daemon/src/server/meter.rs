//! What one connection has under way, and what it may have.

use std::{cell::Cell, rc::Rc};

use tokio::sync::Notify;

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

/// Counts, and says when the connection must be cut.
#[derive(Default)]
pub struct Meter {
    budget: Budget,
    calls: Cell<usize>,
    objects: Cell<usize>,
    /// Told once: the connection is over its budget.
    cut: Notify,
}

impl Meter {
    /// Counts an object for as long as the answer lives; `None` and the end of the connection over budget.
    pub fn begin_object(self: &Rc<Self>) -> Option<Counted> {
        Counted::begin(self, self.budget.objects, |meter| &meter.objects)
    }

    /// Counts a call for as long as the answer lives; `None` and the end of the connection over budget.
    pub fn begin_call(self: &Rc<Self>) -> Option<Counted> {
        Counted::begin(self, self.budget.calls, |meter| &meter.calls)
    }

    /// Waits until the connection must be cut.
    pub async fn until_cut(&self) {
        self.cut.notified().await;
        // What was refused is told first.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// A call or an object, for as long as it is there.
pub struct Counted {
    meter: Rc<Meter>,
    which: fn(&Meter) -> &Cell<usize>,
}

impl Counted {
    fn begin(meter: &Rc<Meter>, most: usize, which: fn(&Meter) -> &Cell<usize>) -> Option<Counted> {
        let count = which(meter);
        if count.get() >= most {
            meter.cut.notify_one();
            return None;
        }
        count.set(count.get() + 1);
        Some(Counted { meter: meter.clone(), which })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let count = (self.which)(&self.meter);
        count.set(count.get() - 1);
    }
}
