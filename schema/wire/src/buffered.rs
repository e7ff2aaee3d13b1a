//! Buffers that are there while something is in them: an idle connection has none, and a daemon may have thousands.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};

/// How much one system call moves: the segments of a message, and often several messages.
const SIZE: usize = 8 << 10;

/// Reads ahead, so that the parts of a message take one system call.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    /// What was read and not yet asked for begins at `at`.
    ahead: Vec<u8>,
    at: usize,
}

impl<R> Reader<R> {
    /// Around a stream.
    pub fn new(inner: R) -> Reader<R> {
        Reader { inner, ahead: Vec::new(), at: 0 }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Reader<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.at == self.ahead.len() {
            if buf.len() >= SIZE {
                return Pin::new(&mut self.inner).poll_read(cx, buf);
            }
            // On the stack: most polls find nothing.
            let mut space = [0; SIZE];
            let got = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut space))?;
            let now = got.min(buf.len());
            buf[..now].copy_from_slice(&space[..now]);
            (self.ahead, self.at) = (space[now..got].to_vec(), 0);
            return Poll::Ready(Ok(now));
        }
        let rest = &self.ahead[self.at..];
        let now = rest.len().min(buf.len());
        buf[..now].copy_from_slice(&rest[..now]);
        self.at += now;
        if self.at == self.ahead.len() {
            (self.ahead, self.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(now))
    }
}

/// Collects what is written until it is flushed, or is more than one system call's worth.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    /// What is not yet written begins at `at`.
    waiting: Vec<u8>,
    at: usize,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Around a stream.
    pub fn new(inner: W) -> Writer<W> {
        Writer { inner, waiting: Vec::new(), at: 0 }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.at < self.waiting.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.waiting[self.at..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.at += n,
            }
        }
        (self.waiting, self.at) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Writer<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.waiting.len() + buf.len() > SIZE {
            ready!(self.poll_drain(cx))?;
        }
        if buf.len() >= SIZE {
            return Pin::new(&mut self.inner).poll_write(cx, buf);
        }
        self.waiting.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt as _, AsyncWriteExt as _, executor::block_on, io::Cursor};

    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_and_nothing_is_kept() {
        let text: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
        block_on(async {
            let mut writer = Writer::new(Vec::new());
            // Pieces of every kind: many in one call, and larger than one call.
            let mut rest = text.as_slice();
            for size in [1, 7, 8000, 200, 9000, 8192, 3, 20_000, 50_000] {
                let (now, later) = rest.split_at(size.min(rest.len()));
                writer.write_all(now).await.unwrap();
                rest = later;
            }
            writer.flush().await.unwrap();
            assert_eq!(writer.inner, text);
            assert_eq!(writer.waiting.capacity(), 0, "it is idle");

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
            let mut writer = Writer::new(Calls(Vec::new()));
            for _ in 0..100 {
                writer.write_all(b"12345678").await.unwrap();
            }
            writer.flush().await.unwrap();
            assert_eq!(writer.inner.0, [800]);
        });
    }
}
