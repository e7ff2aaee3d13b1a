//! A Unix stream that carries file descriptors in band (capnp-rpc passes none).
//!
//! Each direction numbers the descriptors that it sends from 0 on. A descriptor that was [`Fds::push`]ed is attached to
//! the next byte that goes out, so it arrives no later than the message that names its number, and [`Fds::take`] finds
//! it. Invariants: a number is good once; everything received is close-on-exec; at most [`PARKED`] received
//! descriptors wait to be taken, the oldest is closed beyond that; of a connection within a [`Room`] none is received for
//! which there is no place, and that ends it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use cofferdam_types::{Error, Result};
use futures::{AsyncRead, AsyncWrite};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::{io::Interest, net::UnixStream};

use crate::received::{Received, Room};

/// How many received descriptors may wait to be taken.
pub const PARKED: usize = 64;
/// How many go with one byte: well below what the kernel lets through.
const PER_BYTE: usize = 16;
/// How many can come with one byte, whatever the sender is: the kernel's SCM_MAX_FD.
const MOST: usize = 253;
/// So many more than are asked for may fit, for the sake of alignment.
const SLACK: usize = 3;

#[derive(Debug, Default)]
struct State {
    outgoing: VecDeque<Received>,
    next_out: u32,
    parked: BTreeMap<u32, Received>,
    next_in: u32,
    room: Option<Arc<Room>>,
}

/// The descriptors of one connection.
#[derive(Clone, Debug, Default)]
pub struct Fds(Rc<RefCell<State>>);

impl Fds {
    /// Queues a descriptor and gives the number by which a message names it. Send that message at once.
    pub fn push(&self, fd: impl Into<Received>) -> u32 {
        let mut state = self.0.borrow_mut();
        state.outgoing.push_back(fd.into());
        let number = state.next_out;
        state.next_out = number.wrapping_add(1);
        number
    }

    /// Takes the descriptor that a message named. Good once.
    pub fn take(&self, number: u32) -> Result<Received> {
        self.0.borrow_mut().parked.remove(&number).ok_or_else(|| {
            Error::invalid("fd", number, "no such descriptor waits on this connection; each number is good once")
        })
    }

    /// Has what comes take places in a room, from now on.
    pub fn within(&self, room: Arc<Room>) {
        self.0.borrow_mut().room = Some(room);
    }

    /// How many may come now.
    fn free(&self) -> usize {
        self.0.borrow().room.as_ref().map_or(MOST, |room| room.free().min(MOST))
    }

    /// How many descriptors wait to be taken.
    pub fn parked(&self) -> usize {
        self.0.borrow().parked.len()
    }

    fn park(&self, fd: OwnedFd) {
        let mut state = self.0.borrow_mut();
        let number = state.next_in;
        state.next_in = number.wrapping_add(1);
        let place = state.room.as_ref().map(Room::take);
        state.parked.insert(number, Received::new(fd, place));
        if state.parked.len() > PARKED {
            state.parked.pop_first();
        }
    }
}

/// Splits a stream into its halves and the descriptors that travel with them.
pub fn split(stream: UnixStream) -> (Reader, Writer, Fds) {
    let stream = Rc::new(stream);
    let fds = Fds::default();
    (Reader { stream: stream.clone(), fds: fds.clone() }, Writer { stream, fds: fds.clone() }, fds)
}

/// The receiving half.
#[derive(Debug)]
pub struct Reader {
    stream: Rc<UnixStream>,
    fds: Fds,
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let (asked, mut all) = (buf.len(), None);
            let received = self.stream.try_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
                // What doesn't fit the kernel closes by itself, and asks nobody. The room that a few take is alignment's.
                let free = self.fds.free();
                let size = match free.saturating_sub(SLACK) {
                    0 => 0,
                    some if free < MOST => rustix::cmsg_space!(ScmRights(some)),
                    _ => space.len(),
                };
                let mut control = RecvAncillaryBuffer::new(&mut space[..size]);
                let mut iov = [IoSliceMut::new(buf)];
                let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
                let message = recvmsg(&self.stream, &mut iov, &mut control, flags)?;
                // First: those that have come are somebody's, also where others were lost on the way.
                let mut carried = false;
                for received in control.drain() {
                    carried = true;
                    if let RecvAncillaryMessage::ScmRights(fds) = received {
                        fds.for_each(|fd| self.fds.park(fd));
                    }
                }
                if message.flags.contains(ReturnFlags::CTRUNC) {
                    let why = if free < MOST {
                        "sends more descriptors than may wait here at once, with those that others sent: send them with the calls that take them"
                    } else {
                        "sends descriptors that were lost: this process may have no more of them"
                    };
                    return Err(io::Error::other(Error::resource_exhausted("connection", "", why).to_reason()));
                }
                // Less than there was room for is all there is, but where descriptors end what one call gives. Said so here, and
                // the next call waits for more instead of asking in vain.
                if (1..asked).contains(&message.bytes) && !carried {
                    all = Some(message.bytes);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(message.bytes)
            });
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match all {
                    Some(bytes) => return Poll::Ready(Ok(bytes)),
                    None => continue,
                },
                other => return Poll::Ready(other),
            }
        }
    }
}

/// The sending half.
#[derive(Debug)]
pub struct Writer {
    stream: Rc<UnixStream>,
    fds: Fds,
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let mut state = self.fds.0.borrow_mut();
                let batch: Vec<RawFd> = state.outgoing.iter().take(PER_BYTE).map(|fd| fd.as_fd().as_raw_fd()).collect();
                // More wait than go with one byte: send a single byte, so that the bytes of a message never
                // overtake its descriptors.
                let part = if state.outgoing.len() > PER_BYTE { &buf[..buf.len().min(1)] } else { buf };
                let iov = [IoSlice::new(part)];
                let rights = [ControlMessage::ScmRights(&batch)];
                let control = if batch.is_empty() { &rights[..0] } else { &rights[..] };
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let n = sendmsg::<()>(self.stream.as_raw_fd(), &iov, control, flags, None)?;
                state.outgoing.drain(..batch.len());
                Ok(n)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                // Whatever it was: who reads comes to the end of what was said, and to no more.
                Err(error) => {
                    let _ = nix::sys::socket::shutdown(self.stream.as_raw_fd(), nix::sys::socket::Shutdown::Both);
                    return Poll::Ready(Err(error));
                }
                Ok(n) => return Poll::Ready(Ok(n)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        nix::sys::socket::shutdown(self.stream.as_raw_fd(), nix::sys::socket::Shutdown::Write)?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, os::unix::net::UnixStream as StdStream};

    use futures::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (StdStream, StdStream) {
        let (a, b) = StdStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        b.set_nonblocking(true).unwrap();
        (a, b)
    }

    fn run(test: impl AsyncFnOnce(UnixStream, UnixStream)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let (a, b) = pair();
            test(UnixStream::from_std(a).unwrap(), UnixStream::from_std(b).unwrap()).await;
        });
    }

    #[test]
    fn descriptors_arrive_before_the_bytes_that_name_them() {
        run(async |a, b| {
            let (_, mut writer, fds) = split(a);
            let (mut reader, _, received) = split(b);
            let mut pipes = Vec::new();
            for n in 0..40u32 {
                let (read, write) = nix::unistd::pipe().unwrap();
                pipes.push(write);
                assert_eq!(fds.push(read), n);
            }
            writer.write_all(b"hello").await.unwrap();
            let mut bytes = [0; 5];
            reader.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"hello");
            assert_eq!(received.parked(), 40);
            for (n, write) in pipes.into_iter().enumerate() {
                nix::unistd::write(&write, &[n as u8]).unwrap();
                drop(write);
                let fd = received.take(n as u32).unwrap();
                let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
                assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
                let mut text = Vec::new();
                File::from(fd.into_fd()).read_to_end(&mut text).unwrap();
                assert_eq!(text, [n as u8]);
            }
            assert!(received.take(0).is_err(), "a number is good once");
        });
    }

    // As many as the kernel lets through with one byte, again and again: none is lost sight of.
    #[test]
    fn a_crowd_on_one_byte_is_parked_and_the_rest_closed() {
        run(async |a, b| {
            let (mut reader, _, received) = split(b);
            let (read, write) = nix::unistd::pipe().unwrap();
            let crowd = vec![write.as_raw_fd(); MOST];
            for _ in 0..3 {
                let iov = [IoSlice::new(b"x")];
                sendmsg::<()>(a.as_raw_fd(), &iov, &[ControlMessage::ScmRights(&crowd)], MsgFlags::empty(), None)
                    .unwrap();
                reader.read_exact(&mut [0]).await.unwrap();
            }
            assert_eq!(received.parked(), PARKED);
            drop((write, reader, received));
            assert_eq!(File::from(read).read(&mut [0]).unwrap(), 0, "one is open that nobody has");
        });
    }

    #[test]
    fn the_oldest_parked_descriptor_is_closed() {
        run(async |a, b| {
            let (_, mut writer, fds) = split(a);
            let (mut reader, _, received) = split(b);
            for _ in 0..PARKED + 3 {
                fds.push(OwnedFd::from(File::open("/dev/null").unwrap()));
            }
            writer.write_all(b"0123456789").await.unwrap();
            reader.read_exact(&mut [0; 10]).await.unwrap();
            assert_eq!(received.parked(), PARKED);
            assert!(received.take(2).is_err());
            assert!(received.take(3).is_ok());
        });
    }

    // Of those for which there is no place none gets here: who sends one is told why, and cut.
    #[test]
    fn what_has_no_place_is_not_received() {
        run(async |a, b| {
            let (mut reader, _, received) = split(b);
            let room = Room::new(5, None);
            received.within(room.clone());
            let send = |many: usize| {
                let null = File::open("/dev/null").unwrap();
                let crowd = vec![null.as_raw_fd(); many];
                let iov = [IoSlice::new(b"x")];
                sendmsg::<()>(a.as_raw_fd(), &iov, &[ControlMessage::ScmRights(&crowd)], MsgFlags::empty(), None)
                    .unwrap();
            };
            send(3);
            reader.read_exact(&mut [0]).await.unwrap();
            drop(received.take(0).unwrap());
            assert_eq!((received.parked(), room.taken()), (2, 2));
            // Where some are received all the same there was a place for each.
            send(9);
            let error = reader.read_exact(&mut [0]).await.unwrap_err();
            assert!(error.to_string().starts_with("cofferdam:resource_exhausted"), "{error}");
            assert!((2..=5).contains(&room.taken()), "{room:?}");
            drop((reader, received));
            assert_eq!(room.taken(), 0);
        });
    }
}
