//! A peer that says what it likes: messages of the protocol, one by one, as no RPC system would send them.

use std::{
    io::{ErrorKind, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use capnp::{any_pointer, capability::FromClientHook, message::ReaderOptions, serialize, traits::ImbueMut as _};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, payload, promised_answer};
use cofferdam_integration::DEADLINE;
use cofferdam_wire::needs::METHODS;

/// One message, as `fill` makes it.
pub fn said(fill: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut built = capnp::message::Builder::new_default();
    fill(built.init_root());
    serialize::write_message_to_words(&built)
}

pub fn bootstrap(question: u32) -> Vec<u8> {
    said(|root| root.init_bootstrap().set_question_id(question))
}

pub fn finish(question: u32) -> Vec<u8> {
    said(|root| root.init_finish().set_question_id(question))
}

pub fn release(id: u32, count: u32) -> Vec<u8> {
    said(|root| {
        let mut release = root.init_release();
        release.set_id(id);
        release.set_reference_count(count);
    })
}

pub fn resolve(promise: u32, to: impl FnOnce(cap_descriptor::Builder<'_>)) -> Vec<u8> {
    said(|root| {
        let mut resolve = root.init_resolve();
        resolve.set_promise_id(promise);
        to(resolve.init_cap());
    })
}

/// Fills in an answer to a question, and the way to a capability in it.
pub fn answered(mut answer: promised_answer::Builder<'_>, question: u32, way: &[u16]) {
    answer.set_question_id(question);
    let mut transform = answer.init_transform(way.len() as u32);
    for (n, field) in way.iter().enumerate() {
        transform.reborrow().get(n as u32).set_get_pointer_field(*field);
    }
}

/// On what a call is made.
#[derive(Clone, Copy)]
pub enum On {
    /// What the daemon has given.
    Export(u32),
    /// What the first field of an answer to be has.
    Answer(u32),
    /// The bootstrap object, by its question.
    Gate(u32),
}

pub fn call(question: u32, on: On, method: &str, fill: impl FnOnce(payload::Builder<'_>)) -> Vec<u8> {
    let found = METHODS.iter().find(|one| one.name == method).unwrap_or_else(|| panic!("{method} is no method"));
    call_of(question, on, (found.interface, found.method), fill)
}

/// One without parameters.
pub fn bare(question: u32, on: On, method: &str) -> Vec<u8> {
    call(question, on, method, |_| {})
}

pub fn call_of(question: u32, on: On, method: (u64, u16), fill: impl FnOnce(payload::Builder<'_>)) -> Vec<u8> {
    said(|root| {
        let mut call = root.init_call();
        call.set_question_id(question);
        call.set_interface_id(method.0);
        call.set_method_id(method.1);
        let mut target = call.reborrow().init_target();
        match on {
            On::Export(id) => target.set_imported_cap(id),
            On::Answer(question) => answered(target.init_promised_answer(), question, &[0]),
            On::Gate(question) => answered(target.init_promised_answer(), question, &[]),
        }
        fill(call.init_params());
    })
}

/// Parameters that name a capability: `table` says what that is.
pub fn naming<T: FromClientHook>(
    mut payload: payload::Builder<'_>,
    set: impl FnOnce(any_pointer::Builder<'_>, T),
    named: u32,
    table: impl FnOnce(capnp::struct_list::Builder<'_, cap_descriptor::Owned>),
) {
    let mut caps = Vec::new();
    let mut content = payload.reborrow().get_content();
    content.imbue_mut(&mut caps);
    let nobody = capnp_rpc::new_broken_cap(capnp::Error::failed("stands for a number".into()));
    set(content, T::new(nobody.hook));
    table(payload.init_cap_table(named));
}

/// The connection.
pub struct Raw(UnixStream);

impl Raw {
    pub fn connect(socket: &Path) -> Raw {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Raw(stream)
    }

    pub fn stream(&self) -> &UnixStream {
        &self.0
    }

    /// Whether all of it went out: a daemon that hangs up, or doesn't read for a second, takes no more.
    pub fn send(&self, bytes: &[u8]) -> bool {
        self.0.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        (&self.0).write_all(bytes).is_ok()
    }

    /// The next message; none when the daemon has hung up.
    pub fn next(&self) -> Option<capnp::message::Reader<serialize::OwnedSegments>> {
        let mut options = ReaderOptions::new();
        options.traversal_limit_in_words(None);
        match serialize::try_read_message(&self.0, options) {
            Ok(message) => message,
            Err(error) => {
                // Or a hang-up with something unread on the other side.
                assert!(!error.to_string().contains("os error 11"), "the daemon says nothing: {error}");
                None
            }
        }
    }

    /// Reads until the daemon has answered; false when it hangs up before.
    pub fn until_answered(&self, question: u32) -> bool {
        self.until(|message| matches!(message, message::Return(Ok(answer)) if answer.get_answer_id() == question))
    }

    /// Reads until something is said; false when the daemon hangs up before.
    pub fn until(&self, mut wanted: impl FnMut(message::WhichReader<'_>) -> bool) -> bool {
        while let Some(message) = self.next() {
            let root: message::Reader<'_> = message.get_root().unwrap();
            if root.which().is_ok_and(&mut wanted) {
                return true;
            }
        }
        false
    }

    /// Reads and forgets, beside the caller, until the daemon hangs up.
    pub fn drain(&self) -> std::thread::JoinHandle<()> {
        let mut stream = self.0.try_clone().unwrap();
        std::thread::spawn(move || {
            let ended = std::io::copy(&mut stream, &mut std::io::sink()).err().map(|error| error.kind());
            assert!(
                ended.is_none_or(|kind| kind == ErrorKind::ConnectionReset),
                "the connection is not cut: {ended:?}"
            );
        })
    }

    /// Goes to what waits for an event of a namespace, and asks for one: the answer to question 6 doesn't come.
    pub fn wait_for_an_event(&self, namespace: &str) {
        use cofferdam_wire::{event_capnp::events, gate_capnp::namespaces};
        let name = |mut payload: payload::Builder<'_>| {
            payload.reborrow().get_content().init_as::<namespaces::get_params::Builder<'_>>().set_name(namespace);
        };
        let from_now = |mut payload: payload::Builder<'_>| {
            payload.reborrow().get_content().init_as::<events::subscribe_params::Builder<'_>>().set_after(u64::MAX);
        };
        let way = [
            bootstrap(0),
            bare(1, On::Gate(0), "Gate.enter"),
            bare(2, On::Answer(1), "Root.namespaces"),
            call(3, On::Answer(2), "Namespaces.get", name),
            bare(4, On::Answer(3), "Namespace.events"),
            call(5, On::Answer(4), "Events.subscribe", from_now),
            bare(6, On::Answer(5), "EventCursor.next"),
        ];
        assert!(self.send(&way.concat()) && self.until_answered(5));
    }
}
