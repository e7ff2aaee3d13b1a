//! What one connection has under way, and what it may have.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
};

use capnp::{capability::StreamingRequest, traits::Owned};
use capnp_rpc::rpc_capnp::message;
use cofferdam_types::Result;
use cofferdam_wire::error::from_rpc;
use tokio::sync::Notify;

use super::{
    share::{Drawn, Share},
    tables::{Fate, OVERHEAD, Tables},
};
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
    /// Bytes of answers that the client has not finished (`tables.rs`).
    pub answers: usize,
    /// Bytes of answers that the client has not read. Over this it is not cut: nothing more is read from it meanwhile.
    pub unread: usize,
    /// Of these, bytes of streams, and what is read for them: over this a stream waits. Less than `unread`, so that who takes nothing
    /// of his streams is heard.
    pub streams: usize,
    /// Objects handed out and not yet released.
    pub objects: usize,
    /// Of these, places in lists.
    pub cursors: usize,
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
            answers: 16 << 20,
            unread: 4 << 20,
            streams: 3 << 20,
            objects: 4096,
            cursors: 256,
            subscriptions: 64,
        }
    }
}

/// What a message on its way out costs beside its bytes: who never reads has thousands of small ones.
const WAITING: usize = 2 << 10;
/// What a call under way costs, and an object.
const CALL: usize = 2 << 10;
const OBJECT: usize = 1 << 10;
/// What a place in a list costs beside that: it keeps its filters.
const CURSOR: usize = 64 << 10;
/// Of a message that has not wholly come so much is not worth to be counted: most come at once.
const SMALL: usize = 8 << 10;

/// Counts, and says when the connection must be cut.
#[derive(Default)]
pub struct Meter {
    budget: Budget,
    quiet: Arc<Quiet>,
    /// What of it counts for the user's or the grant's share.
    drawn: Drawn,
    tables: RefCell<Tables>,
    calls: Cell<usize>,
    objects: Cell<usize>,
    cursors: Cell<usize>,
    /// Bytes of lists that can't be read again.
    lists: Cell<usize>,
    subscriptions: Cell<usize>,
    /// Messages that somebody keeps.
    messages: Cell<usize>,
    bytes: Cell<usize>,
    unread: Cell<usize>,
    /// Sizes of the messages that are on their way out, and how much of the first the client has.
    leaving: RefCell<VecDeque<usize>>,
    begun: Cell<usize>,
    /// How many messages have gone out.
    gone: Cell<u64>,
    /// Bytes that are read for streams, and have not gone out.
    making: Cell<usize>,
    /// How many calls were made that are to wait for room.
    line: Cell<usize>,
    /// Held by the stream whose turn it is to wait for room: whoever came first has it first.
    turn: tokio::sync::Mutex<()>,
    /// Told to that one when there may be some.
    room: Notify,
    /// Bytes of the message that is being read.
    arrived: Cell<usize>,
    /// Of the rest of it: the room that it said it needs is there from its beginning.
    coming: Cell<usize>,
    /// Told when the client has read something.
    read: Notify,
    /// Told once: the connection is over its budget.
    cut: Notify,
}

impl Meter {
    /// One that tells `quiet` of all that passes.
    pub fn new(quiet: Arc<Quiet>, share: Option<Arc<Share>>) -> Rc<Meter> {
        Rc::new(Meter { quiet, drawn: Drawn::from(share), ..Meter::default() })
    }

    /// What the connection keeps, about.
    fn held(&self) -> usize {
        let counted = self.calls.get() * CALL + self.objects.get() * OBJECT + self.cursors.get() * CURSOR;
        let messages = self.bytes.get() + self.tables.borrow().bytes() + self.unread.get() + self.making.get();
        let being_read = self.arrived.get() + self.coming.get();
        messages + being_read + counted + self.lists.get()
    }

    /// Takes what is held from the share; false, and the end of the connection, where there is no room for it.
    fn draw(&self) -> bool {
        // What it is need not be known then, which is asked several times for each call.
        let room = self.drawn.is_free() || self.drawn.set(self.held());
        if !room {
            self.cut.notify_one();
        }
        room
    }

    /// What is to become of a message that came in.
    pub fn comes(&self, message: message::Reader<'_>) -> capnp::Result<Fate> {
        let fate = self.tables.borrow_mut().comes(message)?;
        if fate == Fate::Over || self.tables.borrow().bytes() > self.budget.answers || !self.draw() {
            self.cut.notify_one();
            return Ok(Fate::Over);
        }
        Ok(fate)
    }

    /// A message goes out.
    pub fn goes(&self, message: message::Reader<'_>, size: usize) -> capnp::Result<()> {
        self.tables.borrow_mut().goes(message, size)?;
        if self.tables.borrow().bytes() > self.budget.answers {
            self.cut.notify_one();
        }
        Ok(())
    }

    /// Counts an object for as long as the answer lives; `None` and the end of the connection over budget.
    pub fn begin_object(self: &Rc<Self>) -> Option<Counted> {
        Counted::begin(self, self.budget.objects, |meter| &meter.objects)
    }

    /// Counts a place in a list, beside that it is an object.
    pub fn begin_cursor(self: &Rc<Self>) -> Option<Counted> {
        Counted::begin(self, self.budget.cursors, |meter| &meter.cursors)
    }

    /// Counts a list of so many bytes that a place in it keeps, for as long as the answer lives; `None` and the end of the connection
    /// where the share has no room for it.
    pub fn keep_list(self: &Rc<Self>, bytes: usize) -> Option<Listed> {
        self.lists.set(self.lists.get() + bytes);
        let listed = Listed { meter: self.clone(), bytes };
        self.draw().then_some(listed)
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

    /// There is room for so many bytes more of the next message, and they have not come; they never may. False, and the end of the
    /// connection, where the share has no room for it.
    pub fn awaits(&self, rest: usize) -> bool {
        let before = self.coming.replace(rest);
        before.max(rest) <= SMALL || self.draw()
    }

    /// Counts the message whose bytes arrived and that names so many capabilities, for as long as the answer lives; `None`
    /// and the end of the connection over budget. A `chunk` of a stream counts by its bytes.
    pub fn keep(self: &Rc<Self>, chunk: bool, named: usize) -> Option<Kept> {
        let size = self.arrived.take() + OVERHEAD * (1 + named);
        let counts = usize::from(!chunk);
        let (messages, bytes) = (self.messages.get() + counts, self.bytes.get() + size);
        // A call under way keeps its message for the most part; one that doesn't leaves room for one more to wait.
        if messages.saturating_sub(self.calls.get()) > self.budget.queued || bytes > self.budget.bytes {
            self.cut.notify_one();
            return None;
        }
        self.messages.set(messages);
        self.bytes.set(bytes);
        let kept = Kept { meter: self.clone(), size, counts };
        self.draw().then_some(kept)
    }

    /// The message whose bytes arrived is not kept.
    pub fn passed(&self) {
        self.arrived.take();
    }

    /// Counts a message of so many bytes that is on its way to the client, until [`Meter::sent`] heard of all of it.
    pub fn leaves(&self, size: usize) {
        self.leaving.borrow_mut().push_back(size);
        self.gone.set(self.gone.get() + 1);
        self.unread.set(self.unread.get() + size + WAITING);
        // One that can't go any more has gone before it is known here.
        self.settle(self.begun.get());
        self.draw();
    }

    /// The client has taken so many bytes more.
    pub fn sent(&self, bytes: usize) {
        self.settle(self.begun.get() + bytes);
        self.draw();
        self.read.notify_one();
        self.room.notify_one();
        self.quiet.stir();
    }

    /// So many bytes of what is on its way are with the client.
    fn settle(&self, mut sent: usize) {
        let mut leaving = self.leaving.borrow_mut();
        let mut unread = self.unread.get();
        while let Some(first) = leaving.front().copied().filter(|first| *first <= sent) {
            leaving.pop_front();
            sent -= first;
            unread -= first + WAITING;
        }
        if leaving.is_empty() {
            // A connection that idles keeps nothing.
            *leaving = VecDeque::new();
        }
        self.begun.set(sent);
        self.unread.set(unread);
    }

    /// Nothing more leaves.
    pub fn closed(&self) {
        self.leaving.take();
        self.unread.set(0);
        self.draw();
        self.room.notify_one();
    }

    /// Waits until the client has read most of what it was sent.
    pub async fn until_read(&self) {
        while self.unread.get() > self.budget.unread {
            self.read.notified().await;
        }
    }

    /// Waits until the client has taken so much that a stream may read so many bytes more for it. Streams take turns: one of a client
    /// that reads slowly keeps none of the others from theirs.
    pub async fn room(self: &Rc<Self>, bytes: usize) -> Making {
        let _turn = self.turn.lock().await;
        while !self.has_room_for(bytes) {
            self.room.notified().await;
        }
        self.make(bytes)
    }

    /// The same where there is room and nobody waits for it.
    pub fn try_room(self: &Rc<Self>, bytes: usize) -> Option<Making> {
        let _turn = self.turn.try_lock().ok()?;
        (self.line.get() == 0 && self.has_room_for(bytes)).then(|| self.make(bytes))
    }

    /// A place in the line for room: until it is given up nobody comes before it.
    pub fn queue(self: &Rc<Self>) -> Queued {
        self.line.set(self.line.get() + 1);
        Queued(self.clone())
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        let kept = self.making.get() + self.unread.get();
        kept == 0 || kept + bytes + WAITING <= self.budget.streams
    }

    fn make(self: &Rc<Self>, bytes: usize) -> Making {
        self.making.set(self.making.get() + bytes);
        self.draw();
        Making { meter: self.clone(), bytes }
    }

    #[cfg(test)]
    pub fn has_room(&self) -> bool {
        self.unread.get() <= self.budget.unread
    }

    /// What of streams and answers the client has not read.
    #[cfg(test)]
    pub fn outward(&self) -> usize {
        self.making.get() + self.unread.get()
    }

    /// Nothing that came in or goes out is counted.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        [&self.messages, &self.bytes, &self.unread, &self.making, &self.calls].iter().all(|count| count.get() == 0)
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
        let counted = Counted { meter: meter.clone(), which };
        meter.draw().then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let count = (self.which)(&self.meter);
        count.set(count.get() - 1);
        self.meter.draw();
    }
}

/// A list that a place in it keeps.
pub struct Listed {
    meter: Rc<Meter>,
    bytes: usize,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.meter.lists.set(self.meter.lists.get() - self.bytes);
        self.meter.draw();
    }
}

/// Room for what is read for a stream, until that is a message on its way out and counts as such.
pub struct Making {
    meter: Rc<Meter>,
    bytes: usize,
}

impl Making {
    /// Sends what was read. While the client has it and doesn't answer nothing of it is kept here, and the stream's own window is
    /// what it waits for. One that stays here, for an object of ours or an answer to come, keeps its room.
    pub async fn send<P: Owned>(self, request: StreamingRequest<P>) -> Result<()> {
        let before = self.meter.gone.get();
        let sent = request.send();
        let stays = (self.meter.gone.get() == before).then_some(self);
        let sent = sent.await.map_err(from_rpc);
        drop(stays);
        sent
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.meter.making.set(self.meter.making.get() - self.bytes);
        self.meter.draw();
        self.meter.room.notify_one();
    }
}

/// A call that is to wait for room.
pub struct Queued(Rc<Meter>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.line.set(self.0.line.get() - 1);
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
        self.meter.draw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Who reads nothing more from a client until it has taken what was sent would wait for ever.
    #[test]
    fn what_can_not_go_is_not_waited_for() {
        let meter = Meter::new(Default::default(), None);
        meter.leaves(100);
        meter.sent(100);
        // Its end is known before it is.
        meter.sent(5 << 20);
        meter.leaves(5 << 20);
        assert!(meter.is_idle());
    }

    #[test]
    fn nobody_takes_room_before_who_came_first() {
        let meter = Meter::new(Default::default(), None);
        let first = meter.queue();
        assert!(meter.try_room(1).is_none());
        drop(first);
        assert!(meter.try_room(1).is_some());
    }

    #[test]
    fn lists_that_are_kept_come_out_of_the_share() {
        let share = Share::new(1 << 20, None);
        let [one, other] = [(); 2].map(|()| Meter::new(Default::default(), Some(share.clone())));
        let kept = one.keep_list(1 << 20).unwrap();
        assert!(other.keep_list(1 << 20).is_none());
        drop(kept);
        drop(other.keep_list(1 << 20).unwrap());
        assert_eq!([one.held(), other.held()], [0; 2]);
        let operators = Meter::new(Default::default(), None);
        assert!(operators.keep_list(1 << 30).is_some());
    }
}
