//! The library's own mechanics, against sockets that this file holds: what is sent before anything is answered, and
//! what happens when the other end goes away.

use std::{
    cell::{Cell, RefCell},
    io::Read,
    os::unix::net::UnixListener as StdListener,
    path::Path,
    rc::Rc,
    time::Duration,
};

use capnp_rpc::{RpcSystem, new_client, rpc_capnp, rpc_twoparty_capnp::Side};
use cofferdam_types::{Code, Error};
use cofferdam_wire::{
    common_capnp::input,
    connect::network,
    container_capnp::{container, containers, process, task},
    error::to_rpc,
    fdstream::Fds,
    gate_capnp::{gate, namespaces, root},
    image_capnp::{image, images},
    namespace_capnp::namespace,
};
use tokio::{net::UnixListener, sync::Notify};

use crate::{Client, Input, Output, RunRequest, block_on, is_lost};

fn bounded<T>(test: impl Future<Output = T>) -> T {
    // Only a bug lets it pass: a call that waits for an answer that never comes.
    block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await }).unwrap().expect("hangs")
}

/// The methods that arrive at a socket that never answers, until `wait` and `removed` are among them.
fn burst(listener: StdListener) -> Vec<(u64, u16)> {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut calls = Vec::new();
    loop {
        let message = capnp::serialize::read_message(&mut stream, capnp::message::ReaderOptions::new()).unwrap();
        let root: rpc_capnp::message::Reader<'_> = message.get_root().unwrap();
        match root.which().unwrap() {
            rpc_capnp::message::Which::Call(call) => {
                let call = call.unwrap();
                calls.push((call.get_interface_id(), call.get_method_id()));
                if calls.last() == Some(&(0xcd91_83f6_e5b7_a042, 4)) {
                    // The descriptors came along; nothing else may follow.
                    stream.set_nonblocking(true).unwrap();
                    assert!(stream.read(&mut [0]).is_err(), "bytes behind the burst");
                    return calls;
                }
            }
            rpc_capnp::message::Which::Bootstrap(_) => {}
            _ => panic!("only calls are expected"),
        }
    }
}

#[test]
fn a_run_is_sent_whole_before_any_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cofferd.sock");
    let listener = StdListener::bind(&path).unwrap();
    let far_end = std::thread::spawn(move || burst(listener));
    let calls = bounded(async {
        let client = Client::connect(&path).await.unwrap();
        let mut request = RunRequest::new("default", "busybox");
        request.container.remove_on_exit = true;
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        request.stdio.stdin = Input::Fd(null());
        request.stdio.stdout = Output::Fd(null());
        let run = client.run(request).unwrap();
        // The far end never answers: that it hangs up is all there is to see.
        let error = tokio::select! {
            error = run.now_exit() => error.unwrap_err(),
            () = tokio::time::sleep(Duration::from_secs(15)) => panic!("the burst stops short"),
        };
        assert!(is_lost(&error), "{error:?}");
        far_end.join().unwrap()
    });
    let methods: Vec<u16> = calls.iter().map(|(_, method)| *method).collect();
    // hello, enter, namespaces, get, with, images, obtain, containers, create, createTask, start, wait, removed
    assert_eq!(methods, [0, 1, 0, 0, 1, 2, 1, 3, 0, 1, 0, 1, 4], "{calls:x?}");
}

#[test]
fn a_daemon_that_answers_nothing_is_waited_for_so_long() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cofferd.sock");
    let _listener = StdListener::bind(&path).unwrap();
    bounded(async {
        let client = Client::connect(&path).await.unwrap();
        let error = client.namespace("default").info().within(Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
        assert!(error.message.contains("50ms") && !is_lost(&error), "{error}");
    });
}

/// A daemon in which one container runs, or ended while the daemon was away.
#[derive(Clone)]
struct Fake {
    life: Rc<Life>,
    fds: Fds,
}

#[derive(Default)]
struct Life {
    /// Which incarnation of the daemon it is.
    restarts: Cell<u32>,
    ended: Cell<Option<u32>>,
    news: Notify,
    waiting: Notify,
    sizes: RefCell<Vec<(u32, u16, u16)>>,
    removed: Cell<bool>,
    /// Connections beside the one that is served.
    others: Cell<u32>,
    /// What was restored, by which incarnation.
    tokens: RefCell<Vec<(u32, String)>>,
    bad_command: Cell<bool>,
    /// The socket is a grant.
    grant: Cell<bool>,
    stdin: Cell<bool>,
    /// The calls that are refused once, for a part of the daemon that is down.
    down: RefCell<Vec<&'static str>>,
}

impl Life {
    fn called(&self, call: &'static str) -> capnp::Result<()> {
        let mut down = self.down.borrow_mut();
        let Some(at) = down.iter().position(|name| *name == call) else { return Ok(()) };
        down.remove(at);
        Err(to_rpc(Error::unavailable("actor", "tasks", format!("is down and {}: drill", cofferdam_types::COMES_BACK))))
    }
}

macro_rules! gives {
    ($interface:ident, $params:ident, $results:ident, $method:ident, $set:ident) => {
        async fn $method(
            self: Rc<Self>,
            _: $interface::$params,
            mut results: $interface::$results,
        ) -> capnp::Result<()> {
            results.get().$set(new_client((*self).clone()));
            Ok(())
        }
    };
}

impl gate::Server for Fake {
    async fn hello(self: Rc<Self>, _: gate::HelloParams, mut results: gate::HelloResults) -> capnp::Result<()> {
        results.get().set_version(1);
        results.get().set_fds(true);
        Ok(())
    }
    async fn enter(self: Rc<Self>, _: gate::EnterParams, mut results: gate::EnterResults) -> capnp::Result<()> {
        if self.life.grant.get() {
            results.get().init_grant().set_id("that of the socket");
        }
        results.get().set_root(new_client((*self).clone()));
        Ok(())
    }
    async fn restore(
        self: Rc<Self>,
        params: gate::RestoreParams,
        mut results: gate::RestoreResults,
    ) -> capnp::Result<()> {
        let token = params.get()?.get_token()?.to_string()?;
        self.life.tokens.borrow_mut().push((self.life.restarts.get(), token));
        results.get().set_root(new_client((*self).clone()));
        Ok(())
    }
}
impl root::Server for Fake {
    gives!(root, NamespacesParams, NamespacesResults, namespaces, set_namespaces);
}
impl namespaces::Server for Fake {
    gives!(namespaces, GetParams, GetResults, get, set_namespace);
}
impl namespace::Server for Fake {
    gives!(namespace, WithParams, WithResults, with, set_namespace);
    gives!(namespace, ImagesParams, ImagesResults, images, set_images);
    gives!(namespace, ContainersParams, ContainersResults, containers, set_containers);
}
impl images::Server for Fake {
    gives!(images, ObtainParams, ObtainResults, obtain, set_image);
}
impl image::Server for Fake {}
impl containers::Server for Fake {
    async fn create(
        self: Rc<Self>,
        _: containers::CreateParams,
        mut results: containers::CreateResults,
    ) -> capnp::Result<()> {
        self.life.called("create")?;
        results.get().set_container(new_client((*self).clone()));
        Ok(())
    }
    gives!(containers, GetParams, GetResults, get, set_container);
}
impl container::Server for Fake {
    async fn create_task(
        self: Rc<Self>,
        params: container::CreateTaskParams,
        mut results: container::CreateTaskResults,
    ) -> capnp::Result<()> {
        if let input::Which::Fd(number) = params.get()?.get_stdio()?.get_stdin()?.which()? {
            self.fds.take(number).map_err(to_rpc)?;
            self.life.stdin.set(true);
        }
        self.life.called("createTask")?;
        results.get().set_task(new_client((*self).clone()));
        Ok(())
    }
    gives!(container, TaskParams, TaskResults, task, set_task);
    async fn remove(self: Rc<Self>, _: container::RemoveParams, _: container::RemoveResults) -> capnp::Result<()> {
        self.life.called("remove")?;
        self.life.removed.set(true);
        Ok(())
    }
}
impl process::Server for Fake {
    async fn start(self: Rc<Self>, _: process::StartParams, mut results: process::StartResults) -> capnp::Result<()> {
        self.life.called("start")?;
        if self.life.bad_command.get() {
            return Err(to_rpc(Error::not_found("command", "nonsense", "no such file")));
        }
        results.get().set_pid(42);
        Ok(())
    }
    async fn state(self: Rc<Self>, _: process::StateParams, mut results: process::StateResults) -> capnp::Result<()> {
        results.get().set_status(cofferdam_wire::container_capnp::Status::Running);
        Ok(())
    }
    async fn wait(self: Rc<Self>, _: process::WaitParams, mut results: process::WaitResults) -> capnp::Result<()> {
        self.life.waiting.notify_one();
        loop {
            if let Some(status) = self.life.ended.get() {
                results.get().init_exit().set_status(status);
                return Ok(());
            }
            self.life.news.notified().await;
        }
    }
    async fn resize(self: Rc<Self>, params: process::ResizeParams, _: process::ResizeResults) -> capnp::Result<()> {
        let params = params.get()?;
        let size = (self.life.restarts.get(), params.get_rows(), params.get_columns());
        self.life.sizes.borrow_mut().push(size);
        Ok(())
    }
}
impl task::Server for Fake {}

/// Serves one connection until `stop`; others are counted.
async fn serve(path: &Path, life: &Rc<Life>, stop: &Notify) {
    let listener = UnixListener::bind(path).unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let (network, fds) = network(stream, Side::Server, 1 << 20);
    let gate: gate::Client = new_client(Fake { life: life.clone(), fds });
    let others = async {
        while listener.accept().await.is_ok() {
            life.others.set(life.others.get() + 1);
        }
    };
    tokio::select! {
        _ = RpcSystem::new(Box::new(network), Some(gate.client)) => {}
        () = stop.notified() => {}
        () = others => {}
    }
    std::fs::remove_file(path).unwrap();
}

/// The same, away for a while, and the same again: the first attempts find no socket in between.
async fn serve_again(path: &Path, life: &Rc<Life>, stop: &Notify) {
    serve(path, life, stop).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    life.restarts.set(1);
    serve(path, life, stop).await;
}

async fn there(path: &Path) {
    while !path.exists() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_run_outlives_the_daemon() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cofferd.sock");
        let (life, stop) = (Rc::new(Life::default()), Notify::new());
        let daemon = serve_again(&path, &life, &stop);
        let client = async {
            there(&path).await;
            let client = Client::connect(&path).await.unwrap();
            assert!(client.hello().await.unwrap().fds);
            let mut request = RunRequest::new("default", "busybox");
            request.container.id = "keeper".into();
            request.stdio.stdin = Input::Fd(std::fs::File::open("/dev/null").unwrap().into());
            let run = client.run(request).unwrap();
            assert_eq!(run.started().await.unwrap(), 42);
            assert!(life.stdin.get());
            run.resize(24, 80).await.unwrap();
            life.waiting.notified().await;
            stop.notify_one();
            let end = async {
                // It is waited for again, and somebody turns the window: then it ends.
                life.waiting.notified().await;
                run.resize(50, 132).await.unwrap();
                life.ended.set(Some(7));
                life.news.notify_waiters();
            };
            let (exit, ()) = tokio::join!(run.wait(), end);
            assert_eq!(exit.unwrap().status, 7);
            assert_eq!(*life.sizes.borrow(), [(0, 24, 80), (1, 24, 80), (1, 50, 132)]);
            stop.notify_one();
        };
        tokio::join!(daemon, client);
    });
}

#[test]
fn sturdy_handles_are_found_again_by_the_saved_token() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cofferd.sock");
        let (life, stop) = (Rc::new(Life::default()), Notify::new());
        let daemon = serve_again(&path, &life, &stop);
        let client = async {
            there(&path).await;
            let client = Client::restore(&path, "secret").await.unwrap().reconnecting();
            let ways = Rc::new(Cell::new(0));
            let counted = ways.clone();
            let web = client.sturdy(move |client| {
                counted.set(counted.get() + 1);
                client.namespace("").containers().get("web")
            });
            web.get().await.unwrap().task().state().await.unwrap();
            // Two wait, on the same connection; both go on, on the same connection.
            let (one, other) = (web.clone(), web.clone());
            let waits = async {
                let waits = [one, other].map(|web| async move { web.ask(async |web| web.task().wait().await).await });
                futures::future::join_all(waits).await
            };
            let end = async {
                for _ in 0..2 {
                    life.waiting.notified().await;
                }
                stop.notify_one();
                for _ in 0..2 {
                    life.waiting.notified().await;
                }
                life.ended.set(Some(7));
                life.news.notify_waiters();
            };
            let (exits, ()) = tokio::join!(waits, end);
            assert!(exits.into_iter().all(|exit| exit.unwrap().status == 7));
            let tokens = life.tokens.borrow().clone();
            assert_eq!(tokens, [(0, "secret".to_owned()), (1, "secret".to_owned())], "one connection for both");
            assert_eq!(life.others.get(), 0, "and no other");
            assert_eq!(ways.get(), 2, "one way for both");

            // Whoever asks once gets a handle that works, also of a connection that was lost unnoticed.
            stop.notify_one();
            while path.exists() {
                tokio::task::yield_now().await;
            }
            let lost = web.ask(async |web| web.task().state().await);
            assert!(tokio::time::timeout(Duration::from_millis(50), lost).await.is_err(), "it waits for the daemon");
            let soon = client.client().reconnecting_for(Duration::from_millis(20));
            let error = soon.connected().await.err().unwrap();
            assert_eq!(
                (error.code, &*error.kind),
                (Code::Unavailable, "socket"),
                "no longer than it was told to: {error}"
            );
            let again = async { assert_eq!(web.get().await.unwrap().task().state().await.unwrap().pid, 0) };
            let third = async {
                life.restarts.set(2);
                serve(&path, &life, &stop).await;
            };
            let asked = async {
                again.await;
                stop.notify_one();
            };
            tokio::join!(third, asked);
            assert_eq!(life.tokens.borrow().len(), 3);
        };
        tokio::join!(daemon, client);
    });
}

#[test]
fn what_never_started_is_removed() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cofferd.sock");
        let (life, stop) = (Rc::new(Life::default()), Notify::new());
        life.bad_command.set(true);
        let client = async {
            there(&path).await;
            let client = Client::connect(&path).await.unwrap();
            let error = client.run(RunRequest::new("default", "busybox")).unwrap().wait().await.unwrap_err();
            assert_eq!((error.code, &*error.kind, &*error.id), (Code::NotFound, "command", "nonsense"));
            assert!(life.removed.get());
            stop.notify_one();
        };
        tokio::join!(serve(&path, &life, &stop), client);
    });
}

#[test]
fn who_cannot_have_streams_again_is_told_of_a_part_that_is_down() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cofferd.sock");
        let (life, stop) = (Rc::new(Life::default()), Notify::new());
        life.down.borrow_mut().push("create");
        let client = async {
            there(&path).await;
            let client = Client::connect(&path).await.unwrap();
            let mut request = RunRequest::new("default", "busybox");
            request.stdio.stdin = Input::Fd(std::fs::File::open("/dev/null").unwrap().into());
            let error = client.run(request).unwrap().started().await.unwrap_err();
            assert!(error.comes_back(), "{error}");
            stop.notify_one();
        };
        tokio::join!(serve(&path, &life, &stop), client);
    });
}

#[test]
fn f4_what_is_to_be_done_by_a_grant_is_done_by_nothing_else() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("cofferdam.sock"), dir.path().join("link"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let (life, stop) = (Rc::new(Life::default()), Notify::new());
        let client = async {
            there(&path).await;
            let error = Client::by_grant_as(&link, "test").await.err().unwrap();
            assert!(error.message.contains("isn't followed"), "{error}");
            assert_eq!(life.others.get(), 0);
            // It gives a root without a grant, as the daemon's own socket does to the operator.
            let error = Client::by_grant_as(&path, "test").await.err().unwrap();
            assert!(error.code == Code::FailedPrecondition && error.message.contains("is no grant's"), "{error}");
        };
        tokio::join!(serve(&path, &life, &stop), client);

        life.grant.set(true);
        let client = async {
            there(&path).await;
            let client = Client::by_grant_as(&path, "test").await.unwrap();
            assert_eq!(client.grant().await.unwrap().unwrap().id, "that of the socket");
            stop.notify_one();
        };
        tokio::join!(serve(&path, &life, &stop), client);
    });
    let error = bounded(Client::by_grant_as("/nonexistent/cofferdam.sock", "test")).err().unwrap();
    assert!(error.message.contains("there is no such socket"), "{error}");
    let error = bounded(Client::by_grant_as("/tmp", "test")).err().unwrap();
    assert!(error.message.contains("is no socket"), "{error}");
}

#[test]
fn a_socket_that_is_not_there_says_what_to_do() {
    let error = bounded(Client::connect("/nonexistent/cofferd.sock")).err().unwrap();
    assert_eq!((error.code, &*error.kind), (Code::Unavailable, "socket"));
    assert!(error.message.contains("cofferd"), "{error}");
    let error = bounded(Client::connect("/tmp")).err().unwrap();
    assert!(error.message.contains("is no socket"), "{error}");
}
