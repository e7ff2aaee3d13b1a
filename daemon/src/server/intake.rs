//! The network of a connection, with its budget: what comes in is counted for as long as anything keeps it, and nothing
//! more is read while the client leaves too much unread itself.
//!
//! The guard sees a call when its object is there. Before that the RPC system keeps it: a call on a promise that isn't
//! resolved, a chunk behind another one of its stream. These are known by the message that they came in; and what else it
//! keeps for the client by what `tables.rs` makes of each message.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use capnp::{any_pointer, capability::Promise, message, serialize, traits::HasTypeId};
use capnp_rpc::{
    Connection, FlowController, IncomingMessage, OutgoingMessage, VatNetwork, rpc_capnp, rpc_twoparty_capnp::Side,
};
use cofferdam_types::{Code, Error};
use cofferdam_wire::{
    buffered,
    common_capnp::byte_stream,
    connect,
    fdstream::{self, Fds},
};
use futures::{AsyncRead, TryFutureExt as _};
use tokio::net::UnixStream;

use super::{
    meter::{Kept, Meter},
    tables::Fate,
};

/// What comes in by a connection, before anybody looks at it.
pub type Buffered = buffered::Reader<fdstream::Reader>;

/// Counts the bytes on their way to the RPC system, so that the length of each message is known, and the room for one that has not
/// wholly come.
pub struct Tap<R> {
    inner: R,
    meter: Rc<Meter>,
}

impl<R> Tap<R> {
    /// Around the stream of a connection.
    pub fn new(inner: R, meter: Rc<Meter>) -> Tap<R> {
        Tap { inner, meter }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Tap<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let got = match &read {
            Poll::Ready(Ok(n)) => {
                self.meter.arrives(*n);
                *n
            }
            Poll::Ready(Err(_)) => return read,
            Poll::Pending => 0,
        };
        if self.meter.awaits(buf.len() - got) {
            return read;
        }
        let why = "begins a message for which what its user or grant may keep here has no room, and is cut";
        // What is said of a stream that fails is the last that its other end hears.
        Poll::Ready(Err(io::Error::other(Error::resource_exhausted("connection", "", why).to_reason())))
    }
}

/// The network of one client.
pub struct Network<R: AsyncRead + Unpin + 'static> {
    inner: connect::Network<Tap<R>>,
    meter: Rc<Meter>,
}

/// The network of a stream, held against the budget, and the descriptors that travel with it.
pub fn network(stream: UnixStream, meter: Rc<Meter>) -> (Network<Buffered>, Fds) {
    let (coming, leaving) = (meter.clone(), meter.clone());
    let (tap, sent) = (|reader| Tap::new(reader, coming), move |bytes| leaving.sent(bytes));
    let (inner, fds) = connect::network_through(stream, Side::Server, connect::MESSAGE, tap, sent);
    (Network { inner, meter }, fds)
}

impl<R: AsyncRead + Unpin + 'static> Drop for Network<R> {
    fn drop(&mut self) {
        self.meter.closed();
    }
}

impl<R: AsyncRead + Unpin + 'static> VatNetwork<Side> for Network<R> {
    fn connect(&mut self, host: Side) -> Option<Box<dyn Connection<Side>>> {
        let inner = self.inner.connect(host)?;
        Some(Box::new(Metered::new(inner, self.meter.clone())))
    }

    fn accept(&mut self) -> Promise<Box<dyn Connection<Side>>, capnp::Error> {
        let meter = self.meter.clone();
        let metered = |inner| Box::new(Metered::new(inner, meter)) as Box<dyn Connection<Side>>;
        Promise::from_future(self.inner.accept().map_ok(metered))
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), capnp::Error> {
        self.inner.drive_until_shutdown()
    }
}

struct Metered {
    inner: Rc<RefCell<Box<dyn Connection<Side>>>>,
    meter: Rc<Meter>,
}

impl Metered {
    fn new(inner: Box<dyn Connection<Side>>, meter: Rc<Meter>) -> Metered {
        Metered { inner: Rc::new(RefCell::new(inner)), meter }
    }
}

impl Connection<Side> for Metered {
    fn get_peer_vat_id(&self) -> Side {
        self.inner.borrow().get_peer_vat_id()
    }

    fn new_outgoing_message(&mut self, first_segment_word_size: u32) -> Box<dyn OutgoingMessage> {
        let inner = self.inner.borrow_mut().new_outgoing_message(first_segment_word_size);
        Box::new(Answer { inner, meter: self.meter.clone() })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, capnp::Error> {
        let (inner, meter) = (self.inner.clone(), self.meter.clone());
        Promise::from_future(async move {
            loop {
                meter.until_read().await;
                let reading = inner.borrow_mut().receive_incoming_message();
                let Some(message) = reading.await? else { return Ok(None) };
                let root: rpc_capnp::message::Reader<'_> = message.get_body()?.get_as()?;
                let kept = match meter.comes(root)? {
                    Fate::Taken(named) => meter.keep(is_chunk(root)?, named),
                    Fate::NotFollowed => {
                        unimplemented(&inner, &meter, &*message)?;
                        continue;
                    }
                    Fate::Refused(why) => {
                        refuse(&inner, &meter, &*message, Error::unimplemented("call", "", why))?;
                        continue;
                    }
                    Fate::Deep => {
                        let why =
                            "is on an answer to come, which is on another, and so on, too far: wait for one of them";
                        refuse(&inner, &meter, &*message, Error::resource_exhausted("call", "", why))?;
                        continue;
                    }
                    Fate::Over => None,
                };
                let Some(kept) = kept else {
                    let why = "has too many calls waiting, or too many bytes or objects in them, or holds too many answers, and is cut";
                    refuse(&inner, &meter, &*message, Error::resource_exhausted("connection", "", why))?;
                    // Nothing more is read until the connection is cut, which is a moment away.
                    return std::future::pending().await;
                };
                return Ok(Some(Box::new(Call { inner: message, _kept: kept }) as Box<dyn IncomingMessage>));
            }
        })
    }

    fn new_stream(&mut self) -> (Box<dyn FlowController>, Promise<(), capnp::Error>) {
        self.inner.borrow_mut().new_stream()
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), capnp::Error> {
        self.inner.borrow_mut().shutdown(result)
    }
}

/// Whether a message is a piece of a byte stream.
fn is_chunk(root: rpc_capnp::message::Reader<'_>) -> capnp::Result<bool> {
    const STREAM: u64 = <byte_stream::Client as HasTypeId>::TYPE_ID;
    Ok(match root.which() {
        Ok(rpc_capnp::message::Call(call)) => {
            let call = call?;
            (call.get_interface_id(), call.get_method_id()) == (STREAM, 0)
        }
        _ => false,
    })
}

/// Answers a call that the RPC system is not going to see.
fn refuse(
    connection: &RefCell<Box<dyn Connection<Side>>>,
    meter: &Rc<Meter>,
    message: &dyn IncomingMessage,
    error: Error,
) -> capnp::Result<()> {
    meter.passed();
    let root: rpc_capnp::message::Reader<'_> = message.get_body()?.get_as()?;
    let rpc_capnp::message::Call(call) = root.which()? else { return Ok(()) };
    let mut answer = connection.borrow_mut().new_outgoing_message(64);
    let mut root = answer.get_body()?.init_as::<rpc_capnp::message::Builder<'_>>().init_return();
    root.set_answer_id(call?.get_question_id());
    let mut exception = root.init_exception();
    exception.set_type(match error.code {
        Code::Unimplemented => rpc_capnp::exception::Type::Unimplemented,
        _ => rpc_capnp::exception::Type::Overloaded,
    });
    exception.set_reason(error.to_reason());
    send(answer, meter)
}

/// Sends a message back that is not done as it says.
fn unimplemented(
    connection: &RefCell<Box<dyn Connection<Side>>>,
    meter: &Rc<Meter>,
    message: &dyn IncomingMessage,
) -> capnp::Result<()> {
    meter.passed();
    let mut answer = connection.borrow_mut().new_outgoing_message(64);
    let mut root = answer.get_body()?.init_as::<rpc_capnp::message::Builder<'_>>();
    root.set_unimplemented(message.get_body()?.get_as()?)?;
    send(answer, meter)
}

/// Sends an answer of ours.
fn send(answer: Box<dyn OutgoingMessage>, meter: &Rc<Meter>) -> capnp::Result<()> {
    let answer = Box::new(Answer { inner: answer, meter: meter.clone() });
    drop(answer.send());
    Ok(())
}

/// A message that came in. Whoever keeps it is counted.
struct Call {
    inner: Box<dyn IncomingMessage>,
    _kept: Kept,
}

impl IncomingMessage for Call {
    fn get_body(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.inner.get_body()
    }
}

/// A message on its way out, counted until the client has it.
struct Answer {
    inner: Box<dyn OutgoingMessage>,
    meter: Rc<Meter>,
}

impl OutgoingMessage for Answer {
    fn get_body(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        self.inner.get_body()
    }

    fn get_body_as_reader(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.inner.get_body_as_reader()
    }

    fn send(self: Box<Self>) -> (Promise<(), capnp::Error>, Rc<message::Builder<message::HeapAllocator>>) {
        let size = self.inner.size_in_words() * 8;
        // One that can't be read was not made here.
        if let Ok(message) = self.inner.get_body_as_reader().and_then(|body| body.get_as()) {
            let _ = self.meter.goes(message, size);
        }
        let sent = self.inner.send();
        self.meter.leaves(serialize::compute_serialized_size_in_words(&sent.1) * 8);
        sent
    }

    fn take(self: Box<Self>) -> message::Builder<message::HeapAllocator> {
        self.inner.take()
    }

    fn size_in_words(&self) -> usize {
        self.inner.size_in_words()
    }
}

#[cfg(test)]
mod tests;
