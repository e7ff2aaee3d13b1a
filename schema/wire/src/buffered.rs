//! Buffers that are there while something is in them: an idle connection has none, and a daemon may have thousands.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use capnp::{message, serialize};
use futures::{AsyncRead, AsyncWrite};

/// How much one system call moves: the segments of a message, and often several messages.
const SIZE: usize = 8 << 10;

thread_local! {
    /// What is read comes here first: most polls find nothing.
    static SPACE: RefCell<[u8; SIZE]> = const { RefCell::new([0; SIZE]) };
}

/// Reads ahead, so that the parts of a message take one system call.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    /// What was read and not yet asked for begins at `at`.
    ahead: Vec<u8>,
    at: usize,
    more: Rc<Cell<bool>>,
}

impl<R> Reader<R> {
    /// Around a stream.
    pub fn new(inner: R) -> Reader<R> {
        Reader { inner, ahead: Vec::new(), at: 0, more: Rc::default() }
    }

    /// Tells whether something was read and not yet asked for.
    pub fn more(&self) -> Rc<Cell<bool>> {
        self.more.clone()
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Reader<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.at == self.ahead.len() {
            if buf.len() >= SIZE {
                return Pin::new(&mut self.inner).poll_read(cx, buf);
            }
            return SPACE.with_borrow_mut(|space| {
                let got = ready!(Pin::new(&mut self.inner).poll_read(cx, space))?;
                let now = got.min(buf.len());
                buf[..now].copy_from_slice(&space[..now]);
                (self.ahead, self.at) = (space[now..got].to_vec(), 0);
                self.more.set(now < got);
                Poll::Ready(Ok(now))
            });
        }
        let rest = &self.ahead[self.at..];
        let now = rest.len().min(buf.len());
        buf[..now].copy_from_slice(&rest[..now]);
        self.at += now;
        if self.at == self.ahead.len() {
            (self.ahead, self.at) = (Vec::new(), 0);
            self.more.set(false);
        }
        Poll::Ready(Ok(now))
    }
}

type Message = message::Builder<message::HeapAllocator>;

/// What is to go out.
struct Waiting<W> {
    /// The stream; none once it takes no more, or nobody sends: who holds an object for longer doesn't hold that open. Who reads from
    /// one that broke hears so too, and of what was said before: he ends the connection, and tells those who wait. Until then what is
    /// put is lost, and counts as gone: who is not read from before it is, would never hear of the end.
    inner: Option<W>,
    /// Small messages, as they go out, from `at` on.
    bytes: Vec<u8>,
    at: usize,
    /// One that goes out from where it lies, after its table, which is in `bytes`.
    large: Option<Large>,
    /// Those that come after that. Invariant: while there are any, or a large one, what is put comes after them.
    rest: VecDeque<Rc<Message>>,
    /// The last was put.
    closed: bool,
    /// Who sends it.
    driver: Option<Waker>,
    sent: Box<dyn Fn(usize)>,
}

struct Large {
    message: Rc<Message>,
    /// How far it has gone.
    segment: usize,
    at: usize,
}

fn size(message: &Message) -> usize {
    serialize::compute_serialized_size_in_words(message) * 8
}

/// The table of a message of several segments or one: how many there are, and how many words each has.
fn write_table(segments: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(&(segments.len() as u32 - 1).to_le_bytes());
    segments.iter().for_each(|segment| out.extend_from_slice(&((segment.len() / 8) as u32).to_le_bytes()));
    if segments.len().is_multiple_of(2) {
        out.extend_from_slice(&[0; 4]);
    }
}

impl<W: AsyncWrite + Unpin> Waiting<W> {
    fn put(&mut self, message: &Rc<Message>) {
        let size = size(message);
        if self.closed || self.inner.is_none() {
            (self.sent)(size);
            return;
        }
        if self.large.is_none() && self.rest.is_empty() && self.bytes.len() + size <= SIZE {
            self.append(message);
        } else {
            self.rest.push_back(message.clone());
        }
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    fn append(&mut self, message: &Message) {
        let segments = message.get_segments_for_output();
        write_table(&segments, &mut self.bytes);
        segments.iter().for_each(|segment| self.bytes.extend_from_slice(segment));
    }

    /// Makes the next ones ready to go; false where there are none.
    fn next(&mut self) -> bool {
        while let Some(next) = self.rest.front() {
            let size = size(next);
            if size <= SIZE && self.bytes.len() + size > SIZE {
                break;
            }
            let Some(message) = self.rest.pop_front() else { break };
            if size > SIZE {
                write_table(&message.get_segments_for_output(), &mut self.bytes);
                self.large = Some(Large { message, segment: 0, at: 0 });
                break;
            }
            self.append(&message);
        }
        !self.bytes.is_empty()
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Err(_broken) = ready!(self.poll_ready_part(cx)) {
                self.lose();
            }
            if !self.next() {
                // One that idles keeps nothing.
                (self.bytes, self.rest) = (Vec::new(), VecDeque::new());
                return Poll::Ready(());
            }
        }
    }

    /// Sends `bytes`, and the large one.
    fn poll_ready_part(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.at < self.bytes.len() {
            self.at += ready!(poll_some(self.inner.as_mut(), &self.sent, cx, &self.bytes[self.at..]))?;
        }
        self.bytes.clear();
        self.at = 0;
        let Some(large) = &mut self.large else { return Poll::Ready(Ok(())) };
        let segments = large.message.get_segments_for_output();
        while let Some(segment) = segments.get(large.segment) {
            if large.at < segment.len() {
                large.at += ready!(poll_some(self.inner.as_mut(), &self.sent, cx, &segment[large.at..]))?;
            } else {
                (large.segment, large.at) = (large.segment + 1, 0);
            }
        }
        drop(segments);
        self.large = None;
        Poll::Ready(Ok(()))
    }

    /// Nothing more is sent: all that is here counts as gone.
    fn lose(&mut self) {
        self.inner = None;
        let mut lost = self.bytes.len() - self.at;
        if let Some(large) = self.large.take() {
            let segments = large.message.get_segments_for_output();
            lost += segments.iter().skip(large.segment).map(|segment| segment.len()).sum::<usize>() - large.at;
        }
        lost += self.rest.drain(..).map(|message| size(&message)).sum::<usize>();
        (self.bytes, self.at) = (Vec::new(), 0);
        (self.sent)(lost);
    }
}

/// Sends some.
fn poll_some<W: AsyncWrite + Unpin>(
    inner: Option<&mut W>,
    sent: &dyn Fn(usize),
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let Some(inner) = inner else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
    let n = ready!(Pin::new(inner).poll_write(cx, bytes))?;
    if n == 0 {
        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
    }
    sent(n);
    Poll::Ready(Ok(n))
}

/// Where messages wait until the [`Sender`] sends them: those that are put there one after the other leave together.
pub struct Outbox<W>(Rc<RefCell<Waiting<W>>>);

impl<W> Clone for Outbox<W> {
    fn clone(&self) -> Outbox<W> {
        Outbox(self.0.clone())
    }
}

impl<W: AsyncWrite + Unpin> Outbox<W> {
    /// Has it sent.
    pub fn put(&self, message: &Rc<Message>) {
        self.0.borrow_mut().put(message);
    }

    /// What was put is the last: it is sent, and what comes is not.
    pub fn close(&self) {
        self.0.borrow_mut().closed = true;
    }
}

/// Sends what is in the [`Outbox`]. When it goes nothing more is.
pub struct Sender<W: AsyncWrite + Unpin>(Rc<RefCell<Waiting<W>>>);

/// Around a stream; `sent` hears how many bytes it has taken.
pub fn outbox<W: AsyncWrite + Unpin>(inner: W, sent: impl Fn(usize) + 'static) -> (Outbox<W>, Sender<W>) {
    let waiting = Waiting {
        inner: Some(inner),
        bytes: Vec::new(),
        at: 0,
        large: None,
        rest: VecDeque::new(),
        closed: false,
        driver: None,
        sent: Box::new(sent),
    };
    let waiting = Rc::new(RefCell::new(waiting));
    (Outbox(waiting.clone()), Sender(waiting))
}

impl<W: AsyncWrite + Unpin> Sender<W> {
    /// Whether there is something to send.
    pub fn has_any(&self) -> bool {
        let waiting = self.0.borrow();
        !waiting.bytes.is_empty() || waiting.large.is_some() || !waiting.rest.is_empty()
    }

    /// Has this task woken when there is.
    pub fn heed(&self, cx: &Context<'_>) {
        let mut waiting = self.0.borrow_mut();
        if !waiting.driver.as_ref().is_some_and(|driver| driver.will_wake(cx.waker())) {
            waiting.driver = Some(cx.waker().clone());
        }
    }

    /// Sends it.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.borrow_mut().poll_drain(cx)
    }
}

impl<W: AsyncWrite + Unpin> Drop for Sender<W> {
    fn drop(&mut self) {
        let mut waiting = self.0.borrow_mut();
        waiting.driver = None;
        waiting.lose();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::{AsyncReadExt as _, executor::block_on, io::Cursor};

    use super::*;

    /// Takes so many bytes, and so many of them at a time.
    struct Slow {
        taken: Vec<u8>,
        room: usize,
        most: usize,
        calls: usize,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.calls += 1;
            let now = buf.len().min(self.room).min(self.most);
            self.room -= now;
            self.taken.extend_from_slice(&buf[..now]);
            if now > 0 { Poll::Ready(Ok(now)) } else { Poll::Pending }
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn slow(room: usize, most: usize) -> Slow {
        Slow { taken: Vec::new(), room, most, calls: 0 }
    }

    fn message(words: u32, segments: usize) -> Rc<Message> {
        let allocator = message::HeapAllocator::new().first_segment_words(1);
        let mut message = Message::new(allocator.allocation_strategy(message::AllocationStrategy::FixedSize));
        // Each list has a segment of its own.
        let mut lists = message.initn_root::<capnp::data_list::Builder<'_>>(segments as u32);
        (0..segments as u32).for_each(|n| lists.set(n, &vec![n as u8 + 1; words as usize * 8]));
        Rc::new(message)
    }

    #[test]
    fn messages_come_out_as_they_were_put_and_nothing_is_kept() {
        for most in [1, 7, 1000, usize::MAX] {
            let gone = Rc::new(Cell::new(0));
            let counted = gone.clone();
            let (outbox, sender) = outbox(slow(usize::MAX, most), move |n| counted.set(counted.get() + n));
            let mut all = Vec::new();
            // Small ones, those that are larger than one call, and such in pieces.
            for (words, segments) in
                [(1, 1), (20, 2), (900, 1), (200, 1), (2000, 1), (3, 3), (1100, 4), (30_000, 1), (1, 1)]
            {
                let message = message(words, segments);
                outbox.put(&message);
                all.extend(serialize::write_message_to_words(&message));
            }
            block_on(poll_fn(|cx| sender.poll_send(cx)));
            let waiting = sender.0.borrow();
            assert_eq!(
                (gone.get(), waiting.inner.as_ref().unwrap().taken == all),
                (all.len(), true),
                "{most} at a time"
            );
            assert_eq!((waiting.bytes.capacity(), waiting.rest.capacity()), (0, 0), "it is idle");
        }
    }

    #[test]
    fn bytes_come_in_as_they_were_and_nothing_is_kept() {
        let text: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
        block_on(async {
            let mut reader = Reader::new(Cursor::new(&text));
            let mut all = Vec::new();
            for size in [1, 7, 8000, 200, 9000, 8192, 3, 20_000] {
                let mut piece = vec![0; size];
                reader.read_exact(&mut piece).await.unwrap();
                all.extend(piece);
            }
            reader.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, text);
            assert_eq!(reader.ahead.capacity(), 0, "it is idle");
        });
    }

    #[test]
    fn small_messages_are_one_call() {
        let (outbox, sender) = outbox(slow(usize::MAX, usize::MAX), |_| ());
        (0..100).for_each(|_| outbox.put(&message(3, 1)));
        assert!(sender.has_any() && sender.0.borrow().inner.as_ref().unwrap().calls == 0);
        block_on(poll_fn(|cx| sender.poll_send(cx)));
        assert!(!sender.has_any());
        assert_eq!(sender.0.borrow().inner.as_ref().unwrap().calls, 1);
        // More than one takes are few.
        (0..1000).for_each(|_| outbox.put(&message(3, 1)));
        block_on(poll_fn(|cx| sender.poll_send(cx)));
        let calls = sender.0.borrow().inner.as_ref().unwrap().calls - 1;
        assert!(calls <= 1 + 1000 * size(&message(3, 1)) / (SIZE - 100), "{calls}");
    }

    #[test]
    fn who_is_full_is_gone_on_with_where_he_was() {
        let (outbox, sender) = outbox(slow(100, usize::MAX), |_| ());
        let mut all = Vec::new();
        for message in [message(600, 1), message(2000, 3), message(5, 1)] {
            outbox.put(&message);
            all.extend(serialize::write_message_to_words(&message));
        }
        block_on(poll_fn(|cx| {
            for _ in 0..4 {
                assert!(sender.poll_send(cx).is_pending() && sender.has_any());
                // What comes meanwhile comes after it.
                let message = message(1, 1);
                outbox.put(&message);
                all.extend(serialize::write_message_to_words(&message));
                sender.0.borrow_mut().inner.as_mut().unwrap().room = 3000;
            }
            sender.0.borrow_mut().inner.as_mut().unwrap().room = usize::MAX;
            assert!(sender.poll_send(cx).is_ready());
            Poll::Ready(())
        }));
        assert_eq!(sender.0.borrow().inner.as_ref().unwrap().taken, all);
    }

    // Who counts what is on its way must come to nothing: he reads no more from a client who takes none of it.
    #[test]
    fn what_is_lost_counts_as_gone() {
        struct Broken(usize);
        impl AsyncWrite for Broken {
            fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                let now = buf.len().min(self.0);
                self.0 -= now;
                Poll::Ready(if now > 0 { Ok(now) } else { Err(io::ErrorKind::BrokenPipe.into()) })
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
        for room in [0, 10, 5000, 20_000, 60_000] {
            let gone = Rc::new(Cell::new(0));
            let counted = gone.clone();
            let (outbox, sender) = outbox(Broken(room), move |n| counted.set(counted.get() + n));
            let messages = [message(600, 1), message(2000, 3), message(5, 1), message(5000, 1)];
            messages.iter().for_each(|message| outbox.put(message));
            let mut all: usize = messages.iter().map(|message| size(message)).sum();
            block_on(poll_fn(|cx| sender.poll_send(cx)));
            assert_eq!(gone.get(), all, "{room}");
            outbox.put(&messages[0]);
            all += size(&messages[0]);
            assert_eq!((gone.get(), sender.has_any()), (all, false), "{room}");
        }
        // And so does what nobody sends any more.
        let gone = Rc::new(Cell::new(0));
        let counted = gone.clone();
        let (outbox, sender) = outbox(slow(0, 0), move |n| counted.set(counted.get() + n));
        outbox.put(&message(3, 1));
        drop(sender);
        outbox.put(&message(3, 1));
        assert_eq!(gone.get(), 2 * size(&message(3, 1)));
        assert!(outbox.0.borrow().inner.is_none(), "the stream goes with it");
        // Or what comes after the last.
        let gone = Rc::new(Cell::new(0));
        let counted = gone.clone();
        let (outbox, sender) = super::outbox(slow(usize::MAX, usize::MAX), move |n| counted.set(counted.get() + n));
        outbox.put(&message(3, 1));
        outbox.close();
        outbox.put(&message(4, 1));
        assert_eq!(gone.get(), size(&message(4, 1)));
        block_on(poll_fn(|cx| sender.poll_send(cx)));
        assert_eq!(sender.0.borrow().inner.as_ref().unwrap().taken, serialize::write_message_to_words(&message(3, 1)));
    }
}
