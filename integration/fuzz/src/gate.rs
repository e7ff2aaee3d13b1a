//! A client that speaks the protocol to a live gate: messages that are well made, with numbers that are right or wrong, and
//! descriptors between them, on a socket that is a grant. Behind it is the daemon as it is, in this process. It answers or
//! hangs up, doesn't panic, keeps no connection, and serves others.

use std::{
    io::{IoSlice, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use capnp::{any_pointer, message::ReaderOptions, serialize};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, payload, promised_answer};
use cofferd::{Daemon, config};
use cofferdam_client::{Client, GrantOptions};
use cofferdam_wire::needs::{METHODS, shape};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

#[path = "arguments.rs"]
mod arguments;

/// So long anybody waits at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages of one client.
const MESSAGES: usize = 300;
/// What texts may be.
const TEXTS: [&str; 8] =
    ["", "default", "a", "../..", "sha256:0", "labels.a==b", "/tmp", "0123456789012345678901234567890123456789"];

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// The daemon, and the socket of a grant that has much and reaches neither the host nor a registry.
struct Host {
    socket: PathBuf,
    _scratch: tempfile::TempDir,
}

fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let scratch = super::scratch();
        let (root, state) = (scratch.path().join("root"), scratch.path().join("state"));
        let mut words: Vec<std::ffi::OsString> =
            vec!["--root".into(), root.into(), "--state".into(), state.clone().into()];
        // Nothing is run.
        words.extend(["--shim", "/bin/sh"].map(Into::into));
        let (to, from) = mpsc::sync_channel(0);
        let serve = move || {
            actix_rt::System::new().block_on(async {
                let Ok(config::Command::Run(config)) = config::parse(words) else { panic!("the flags are right") };
                let daemon = Daemon::start(&config).expect("a daemon");
                daemon.ready().await.expect("its actors");
                to.send(()).expect("somebody waits");
                std::future::pending::<()>().await;
                daemon.stop().await;
            });
        };
        std::thread::Builder::new().name("daemon".into()).spawn(serve).expect("a thread");
        from.recv().expect("it starts");
        // The daemon's hook would tell its log. What panics where clients are served is what is looked for here.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name().is_some_and(|name| name.contains("arbiter")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
                eprintln!("{panic}\n{}", std::backtrace::Backtrace::force_capture());
            }
            before(panic);
        }));
        let directory = scratch.path().join("strange");
        let all = ["observer", "logs", "exec", "kill", "events", "metrics", "backup", "deploy"];
        let options = GrantOptions { facets: all.map(str::to_owned).into(), ..GrantOptions::default() };
        let export = async || {
            let client = Client::connect(state.join("cofferd.sock")).await?;
            client.namespace("default").grants().create(&options).export(&directory.to_string_lossy()).await
        };
        cofferdam_client::block_on(export()).expect("a runtime").expect("a socket");
        Host { socket: directory.join("cofferdam.sock"), _scratch: scratch }
    })
}

fn said(fill: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    let mut built = capnp::message::Builder::new_default();
    fill(built.init_root());
    serialize::write_message_to_words(&built)
}

/// What is made of the fuzzer's bytes; zeros behind their end.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        let byte = self.byte();
        match byte {
            0xff => u64::MAX,
            0xfe => (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte())),
            small => u64::from(small),
        }
    }

    /// The number of a question or an object: one that is there, for the most part.
    fn number(&mut self) -> u32 {
        match self.byte() {
            0xff => u32::MAX,
            small => u32::from(small % 24),
        }
    }

    fn answer(&mut self, mut answer: promised_answer::Builder<'_>) {
        answer.set_question_id(self.number());
        let length = self.byte() % 3;
        let mut transform = answer.init_transform(length.into());
        (0..length).for_each(|n| transform.reborrow().get(n.into()).set_get_pointer_field(u16::from(self.byte() % 4)));
    }

    fn cap(&mut self, mut cap: cap_descriptor::Builder<'_>) {
        match self.byte() % 6 {
            0 => cap.set_none(()),
            1 => cap.set_sender_hosted(self.number()),
            2 => cap.set_sender_promise(self.number()),
            3 => cap.set_receiver_hosted(self.number()),
            4 => self.answer(cap.init_receiver_answer()),
            _ => cap.init_third_party_hosted().set_vine_id(self.number()),
        }
    }

    fn payload(&mut self, mut payload: payload::Builder<'_>, interface: u64, method: u16) {
        if let Some(shape) = shape(interface, method) {
            let text = TEXTS[usize::from(self.byte()) % TEXTS.len()];
            let too = self.byte();
            let bytes = arguments::arguments(shape, text, || self.word(), |n| too >> (n % 8) & 1 == 1);
            let message = serialize::read_message(&*bytes, ReaderOptions::new()).expect("it is well made");
            let root: any_pointer::Reader<'_> = message.get_root().expect("it has one");
            // What is no text where one should be can't be copied: nothing is given then.
            let _ = payload.reborrow().get_content().set_as(root);
        }
        let named = self.byte() % 4;
        let mut table = payload.init_cap_table(named.into());
        (0..named).for_each(|n| self.cap(table.reborrow().get(n.into())));
    }

    fn call(&mut self, question: u32, yourself: bool) -> Vec<u8> {
        let method = &METHODS[usize::from(u16::from_le_bytes([self.byte(), self.byte()])) % METHODS.len()];
        said(|root| {
            let mut call = root.init_call();
            call.set_question_id(question);
            call.set_interface_id(method.interface);
            call.set_method_id(method.method);
            let mut target = call.reborrow().init_target();
            match self.byte() % 3 {
                0 => target.set_imported_cap(self.number()),
                _ => self.answer(target.init_promised_answer()),
            }
            if yourself {
                call.reborrow().get_send_results_to().set_yourself(());
            }
            self.payload(call.init_params(), method.interface, method.method);
        })
    }

    fn next(&mut self) -> Vec<u8> {
        match self.byte() % 16 {
            0 => said(|root| root.init_bootstrap().set_question_id(self.number())),
            1 => said(|root| {
                let mut finish = root.init_finish();
                finish.set_question_id(self.number());
                finish.set_release_result_caps(self.byte() & 1 == 1);
            }),
            2 => said(|root| {
                let mut release = root.init_release();
                release.set_id(self.number());
                release.set_reference_count(self.number());
            }),
            3 => said(|root| {
                let mut resolve = root.init_resolve();
                resolve.set_promise_id(self.number());
                match self.byte() % 4 {
                    0 => resolve.init_exception().set_reason("no"),
                    _ => self.cap(resolve.init_cap()),
                }
            }),
            4 => said(|root| {
                let mut answer = root.init_return();
                answer.set_answer_id(self.number());
                match self.byte() % 6 {
                    0 => answer.init_exception().set_reason("no"),
                    1 => answer.set_canceled(()),
                    2 => answer.set_results_sent_elsewhere(()),
                    3 => answer.set_take_from_other_question(self.number()),
                    _ => self.payload(answer.init_results(), 0, 0),
                }
            }),
            5 => said(|root| {
                let mut lift = root.init_disembargo();
                match self.byte() % 2 {
                    0 => lift.reborrow().get_context().set_sender_loopback(self.number()),
                    _ => lift.reborrow().get_context().set_receiver_loopback(self.number()),
                }
                self.answer(lift.init_target().init_promised_answer());
            }),
            6 => said(|root| {
                let back = root.init_unimplemented();
                match self.byte() % 2 {
                    0 => back.init_resolve().init_cap().set_sender_hosted(self.number()),
                    _ => back.init_call().set_question_id(self.number()),
                }
            }),
            7 => match self.byte() % 3 {
                0 => said(|root| root.init_provide().set_question_id(self.number())),
                1 => said(|root| root.init_accept().set_question_id(self.number())),
                _ => said(|root| root.init_join().set_question_id(self.number())),
            },
            8 => {
                let question = self.number();
                self.call(question, true)
            }
            _ => {
                let question = self.number();
                self.call(question, false)
            }
        }
    }
}

/// The way to the objects that there are: each question's number is that of the answer which a later one is on.
fn beginning() -> Vec<u8> {
    let way = [
        (0, "Gate.enter"),
        (1, "Root.namespaces"),
        (2, "Namespaces.get"),
        (3, "Namespace.containers"),
        (3, "Namespace.images"),
        (3, "Namespace.content"),
        (3, "Namespace.events"),
        (7, "Events.subscribe"),
        (8, "EventCursor.next"),
        (4, "Containers.list"),
    ];
    let mut bytes = said(|root| root.init_bootstrap().set_question_id(0));
    for (n, (on, name)) in way.into_iter().enumerate() {
        let method = METHODS.iter().find(|method| method.name == name).expect("it is a method");
        bytes.extend(said(|root| {
            let mut call = root.init_call();
            call.set_question_id(n as u32 + 1);
            call.set_interface_id(method.interface);
            call.set_method_id(method.method);
            let mut target = call.init_target().init_promised_answer();
            target.set_question_id(on);
            if on != 0 {
                target.init_transform(1).get(0).set_get_pointer_field(0);
            }
        }));
    }
    bytes
}

/// Whether the daemon answers a bootstrap with this number, before it hangs up.
fn answers(stream: &UnixStream, question: u32) -> bool {
    let options = ReaderOptions { traversal_limit_in_words: None, ..ReaderOptions::new() };
    while let Ok(Some(message)) = serialize::try_read_message(stream, options) {
        let root: message::Reader<'_> = message.get_root().expect("it is a message");
        if let Ok(message::Return(Ok(answer))) = root.which()
            && answer.get_answer_id() == question
        {
            return true;
        }
    }
    false
}

fn connect() -> UnixStream {
    let stream = UnixStream::connect(&host().socket).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("it is a socket");
    stream
}

/// See the module.
pub fn gate(data: &[u8]) {
    let stream = connect();
    let mut choices = Choices(data);
    let mut bytes = beginning();
    let mut pipes = Vec::new();
    for _ in 0..MESSAGES {
        if choices.0.is_empty() {
            break;
        }
        match choices.byte() {
            // A descriptor, at the next byte.
            0xf0..=0xf7 => {
                let (read, write): (OwnedFd, OwnedFd) = nix::unistd::pipe().expect("a pipe");
                let sent = if choices.byte() & 1 == 0 { &read } else { &write };
                let fds = [sent.as_raw_fd()];
                let control = [ControlMessage::ScmRights(&fds)];
                if !bytes.is_empty()
                    && sendmsg::<()>(
                        stream.as_raw_fd(),
                        &[IoSlice::new(&bytes[..1])],
                        &control,
                        MsgFlags::MSG_NOSIGNAL,
                        None,
                    )
                    .is_ok()
                {
                    bytes.remove(0);
                }
                pipes.push((read, write));
            }
            // What is said so far is to be heard before what follows.
            0xf8..=0xff => {
                let _ = (&stream).write_all(&std::mem::take(&mut bytes));
            }
            _ => bytes.extend(choices.next()),
        }
    }
    bytes.extend(said(|root| root.init_bootstrap().set_question_id(0xfeed)));
    let _ = (&stream).write_all(&bytes);
    // Answered, or hung up; anything else is a hang.
    if !answers(&stream, 0xfeed) {
        let rest = (&stream).read(&mut [0; 16]);
        let hung = rest.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!hung, "the daemon neither answers nor hangs up");
    }
    drop((stream, pipes));
    let other = connect();
    (&other).write_all(&said(|root| root.init_bootstrap().set_question_id(1))).expect("it is read");
    assert!(answers(&other, 1), "others are not served");
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "the daemon panicked");
}
