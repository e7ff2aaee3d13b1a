//! Buffers that are there while something is in them: an idle connection has none, and a daemon may have thousands.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

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

/// What was written and is not yet sent.
struct Waiting<W> {
    inner: W,
    /// It begins at `at`.
    bytes: Vec<u8>,
    at: usize,
    /// Who writes waits for the stream: he goes on with it, and nobody else.
    blocked: bool,
    /// It takes no more. Who reads from it hears so too, and of what was said before: he ends the connection, and tells those who
    /// wait. Until then what is written is lost, and counts as sent: who is not read from before it is, would never hear of the end.
    broken: bool,
    sent: Box<dyn Fn(usize)>,
}

impl<W: AsyncWrite + Unpin> Waiting<W> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.at < self.bytes.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.bytes[self.at..])) {
                Ok(0) | Err(_) => {
                    self.broken = true;
                    (self.sent)(self.bytes.len() - self.at);
                    break;
                }
                Ok(n) => {
                    self.at += n;
                    (self.sent)(n);
                }
            }
        }
        (self.bytes, self.at) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.bytes.len() + buf.len() > SIZE {
            ready!(self.poll_drain(cx))?;
        }
        if self.broken {
            (self.sent)(buf.len());
            return Poll::Ready(Ok(buf.len()));
        }
        if buf.len() >= SIZE {
            return Poll::Ready(Ok(match ready!(Pin::new(&mut self.inner).poll_write(cx, buf)) {
                Ok(n) => {
                    (self.sent)(n);
                    n
                }
                Err(_) => {
                    self.broken = true;
                    (self.sent)(buf.len());
                    buf.len()
                }
            }));
        }
        self.bytes.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }
}

/// Collects what is written until the [`Sender`] sends it, or it is more than one system call's worth. To flush it does
/// nothing: messages that are written one after the other leave together.
pub struct Writer<W>(Rc<RefCell<Waiting<W>>>);

/// Sends what the [`Writer`] has.
pub struct Sender<W>(Rc<RefCell<Waiting<W>>>);

/// Around a stream; `sent` hears how many bytes it has taken.
pub fn writer<W: AsyncWrite + Unpin>(inner: W, sent: impl Fn(usize) + 'static) -> (Writer<W>, Sender<W>) {
    let waiting = Waiting { inner, bytes: Vec::new(), at: 0, blocked: false, broken: false, sent: Box::new(sent) };
    let waiting = Rc::new(RefCell::new(waiting));
    (Writer(waiting.clone()), Sender(waiting))
}

impl<W: AsyncWrite + Unpin> Sender<W> {
    /// Whether there is something to send.
    pub fn has_any(&self) -> bool {
        !self.0.borrow().bytes.is_empty()
    }

    /// Sends it.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.0.borrow_mut();
        // The stream wakes one who waits: that must be he.
        if waiting.blocked { Poll::Pending } else { waiting.poll_drain(cx) }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Writer<W> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut waiting = self.0.borrow_mut();
        let written = waiting.poll_write(cx, buf);
        waiting.blocked = written.is_pending();
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.0.borrow_mut();
        let drained = waiting.poll_drain(cx);
        waiting.blocked = drained.is_pending();
        ready!(drained)?;
        Pin::new(&mut waiting.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::{AsyncReadExt as _, AsyncWriteExt as _, executor::block_on, io::Cursor};

    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_and_nothing_is_kept() {
        let text: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
        block_on(async {
            let sent = Rc::new(Cell::new(0));
            let counted = sent.clone();
            let (mut writer, sender) = writer(Vec::new(), move |n| counted.set(counted.get() + n));
            // Pieces of every kind: many in one call, and larger than one call.
            let mut rest = text.as_slice();
            for size in [1, 7, 8000, 200, 9000, 8192, 3, 20_000, 50_000] {
                let (now, later) = rest.split_at(size.min(rest.len()));
                writer.write_all(now).await.unwrap();
                rest = later;
            }
            poll_fn(|cx| sender.poll_send(cx)).await.unwrap();
            assert_eq!(sent.get(), text.len());
            assert_eq!(writer.0.borrow().inner, text);
            assert_eq!(writer.0.borrow().bytes.capacity(), 0, "it is idle");

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
    fn small_writes_are_one_call() {
        struct Calls(Vec<usize>);
        impl AsyncWrite for Calls {
            fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                self.0.push(buf.len());
                Poll::Ready(Ok(buf.len()))
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
        block_on(async {
            let (mut writer, sender) = writer(Calls(Vec::new()), |_| ());
            for _ in 0..100 {
                writer.write_all(b"12345678").await.unwrap();
                writer.flush().await.unwrap();
            }
            assert!(sender.has_any() && writer.0.borrow().inner.0.is_empty());
            poll_fn(|cx| sender.poll_send(cx)).await.unwrap();
            assert!(!sender.has_any());
            assert_eq!(writer.0.borrow().inner.0, [800]);
        });
    }

    // The stream wakes the last who asked it: were that the sender, the writer would wait for ever.
    #[test]
    fn who_waits_for_the_stream_goes_on_with_it() {
        struct Full(usize, usize);
        impl AsyncWrite for Full {
            fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                self.1 += 1;
                let now = buf.len().min(self.0);
                self.0 -= now;
                if now > 0 { Poll::Ready(Ok(now)) } else { Poll::Pending }
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
        block_on(poll_fn(|cx| {
            let (mut writer, sender) = writer(Full(100, 0), |_| ());
            let (asked, room) = (
                |writer: &Writer<Full>| writer.0.borrow().inner.1,
                |writer: &Writer<Full>, n| writer.0.borrow_mut().inner.0 = n,
            );
            assert!(Pin::new(&mut writer).poll_write(cx, &[1; 5000]).is_ready());
            assert!(Pin::new(&mut writer).poll_write(cx, &[2; 5000]).is_pending());
            let before = asked(&writer);
            assert!(sender.poll_send(cx).is_pending());
            assert_eq!(asked(&writer), before, "the stream would wake the wrong one");
            room(&writer, 20_000);
            assert!(Pin::new(&mut writer).poll_write(cx, &[2; 5000]).is_ready());
            assert!(sender.poll_send(cx).is_ready());
            assert_eq!(writer.0.borrow().inner.0, 20_000 - 4900 - 5000);
            Poll::Ready(())
        }));
    }
}
