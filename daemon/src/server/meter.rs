//! What one connection has under way, and what it may have.

use std::{cell::Cell, rc::Rc, sync::Arc};

use tokio::sync::Notify;

use crate::quiet::Quiet;

/// What one connection may have; over budget it is cut. The other bounds of the table in the architecture lie where
/// they are enforced: descriptors in `fdstream`, messages and windows in `connect`, lists in `cursor`.
pub struct Budget {
    /// Calls under way.
    pub calls: usize,
    /// Calls that wait for their object. Chunks that wait for their turn on a stream are held by their bytes alone: a
    /// window has room for thousands of small ones.
    pub queued: usize,
    /// Bytes of all messages that are kept, for calls under way and for those that wait.
    pub bytes: usize,
    /// Bytes of answers that the client has not read. Over this it is not cut: nothing more is read from it meanwhile.
    pub unread: usize,
    /// Objects handed out and not yet released.
    pub objects: usize,
    /// Subscriptions to events.
    pub subscriptions: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            calls: 256,
            queued: 1024,
            // Four for what waits, and the windows of a dozen streams whose readers are slow.
            bytes: 16 << 20,
            unread: 4 << 20,
            objects: 4096,
            subscriptions: 64,
        }
    }
}

/// What keeping a message costs beside its bytes.
const OVERHEAD: usize = 512;

/// Counts, and says when the connection must be cut.
#[derive(Default)]
pub struct Meter {
    budget: Budget,
    quiet: Arc<Quiet>,
    calls: Cell<usize>,
    objects: Cell<usize>,
    subscriptions: Cell<usize>,
    /// Messages that somebody keeps.
    messages: Cell<usize>,
    bytes: Cell<usize>,
    unread: Cell<usize>,
    /// Bytes of the message that is being read.
    arrived: Cell<usize>,
    /// Told when the client has read something.
    read: Notify,
    /// Told once: the connection is over its budget.
    cut: Notify,
}

impl Meter {
    /// One that tells `quiet` of all that passes.
    pub fn new(quiet: Arc<Quiet>) -> Rc<Meter> {
        Rc::new(Meter { quiet, ..Meter::default() })
    }

    /// Counts an object for as long as the answer lives; `None` and the end of the connection over budget.
    pub fn begin_object(self: &Rc<Self>) -> Option<Counted> {
        Counted::begin(self, self.budget.objects, |meter| &meter.objects)
    }

    /// Counts a call for as long as the answer lives; `None` and the end of the connection over budget.
    pub fn begin_call(self: &Rc<Self>) -> Option<Counted> {
        Counted::begin(self, self.budget.calls, |meter| &meter.calls)
    }

    /// Counts a subscription for as long as the answer lives; `None` and the end of the connection over budget.
    pub fn begin_subscription(self: &Rc<Self>) -> Option<Counted> {
        Counted::begin(self, self.budget.subscriptions, |meter| &meter.subscriptions)
    }

    /// So many bytes of the next message came in.
    pub fn arrives(&self, bytes: usize) {
        self.quiet.stir();
        self.arrived.set(self.arrived.get() + bytes);
    }

    /// Counts the message whose bytes arrived, for as long as the answer lives; `None` and the end of the connection
    /// over budget. A `chunk` of a stream counts by its bytes.
    pub fn keep(self: &Rc<Self>, chunk: bool) -> Option<Kept> {
        let size = self.arrived.take() + OVERHEAD;
        let counts = usize::from(!chunk);
        let (messages, bytes) = (self.messages.get() + counts, self.bytes.get() + size);
        // A call under way keeps its message for the most part; one that doesn't leaves room for one more to wait.
        if messages.saturating_sub(self.calls.get()) > self.budget.queued || bytes > self.budget.bytes {
            self.cut.notify_one();
            return None;
        }
        self.messages.set(messages);
        self.bytes.set(bytes);
        Some(Kept { meter: self.clone(), size, counts })
    }

    /// Counts bytes on their way to the client, for as long as the answer lives.
    pub fn unread(self: &Rc<Self>, size: usize) -> Unread {
        self.unread.set(self.unread.get() + size);
        Unread { meter: self.clone(), size }
    }

    /// Waits until the client has read most of what it was sent.
    pub async fn until_read(&self) {
        while self.unread.get() > self.budget.unread {
            self.read.notified().await;
        }
    }

    #[cfg(test)]
    pub fn has_room(&self) -> bool {
        self.unread.get() <= self.budget.unread
    }

    /// Nothing that came in or goes out is counted.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        [&self.messages, &self.bytes, &self.unread, &self.calls].iter().all(|count| count.get() == 0)
    }

    /// Waits until the connection must be cut.
    pub async fn until_cut(&self) {
        self.cut.notified().await;
        // What was refused is told first.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// A call, an object or a subscription, for as long as it is there.
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

/// A message that came in, for as long as somebody keeps it.
pub struct Kept {
    meter: Rc<Meter>,
    size: usize,
    counts: usize,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.meter.messages.set(self.meter.messages.get() - self.counts);
        self.meter.bytes.set(self.meter.bytes.get() - self.size);
    }
}

/// A message that goes out, until the client has it.
pub struct Unread {
    meter: Rc<Meter>,
    size: usize,
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.meter.unread.set(self.meter.unread.get() - self.size);
        self.meter.read.notify_one();
        self.meter.quiet.stir();
    }
}
