//! Another release of the programs, under containers that run.

use std::{
    cell::RefCell,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    rc::Rc,
};

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use cofferdam_client::{Client, Container, Namespace, ProcessOptions, Status, Stdio, Task};
use cofferdam_integration::{Daemon, bounded, input, older_programs, output, programs, until, until_async, write};
use cofferdam_types::Code;
use cofferdam_wire::{SHIM_VERSION, connect, shim_capnp::shim};
use tokio::{
    net::{UnixListener, UnixStream},
    task::{JoinHandle, JoinSet},
};

use crate::{script, start, terminal::sit_down, with};

type File = (u64, u64);

/// Which file lies at a place, or is run by a process, whatever its name by now.
fn file(path: impl AsRef<Path>) -> File {
    let found = std::fs::metadata(path).unwrap();
    (found.dev(), found.ino())
}

fn run_by(pid: u32) -> File {
    file(format!("/proc/{pid}/exe"))
}

/// Whether a process runs; one that ended and is not yet taken in doesn't, and has no file.
fn runs(pid: u32) -> bool {
    std::fs::metadata(format!("/proc/{pid}/exe")).is_ok()
}

/// Id and process of the shim that a container has.
async fn shim_of(client: &Client, id: &str) -> (String, u32) {
    let all = client.system().shims().all().await.unwrap();
    let found = all.iter().find(|shim| shim.containers.iter().any(|held| held == id)).expect("it has one");
    let state = client.system().shim(&found.id).await.unwrap();
    assert!((1..=SHIM_VERSION).contains(&state.version));
    (found.id.clone(), state.pid)
}

fn member(namespace: &Namespace, id: &str, script: &str) -> (Container, Task) {
    let container = with(namespace, id, script, |request| request.group = "pod".into());
    let task = container.create_task(Stdio::default(), false);
    (container, task)
}

/// One more process in a container: what it writes.
async fn exec(task: &Task, script: &str) -> String {
    let (stdout, out) = output();
    let args = ["sh", "-c", script].map(String::from).into();
    let exec = task.exec("more", &ProcessOptions { args, ..Default::default() }, Stdio { stdout, ..Stdio::default() });
    exec.start().await.unwrap();
    assert_eq!(exec.wait().await.unwrap().status, 0);
    exec.delete().await.unwrap();
    out.text().await
}

/// From the programs in a directory to those that are tested.
fn upgrade(from: &Path, ends: fn(&Daemon)) {
    let daemon = Daemon::installed_with_busybox(from);
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let namespace = daemon.open().await;
        let (stdin, feed) = input();
        let mut request = script(&daemon, "alone", "echo first; while read line; do echo $line; done; exit 3");
        (request.log, request.stdio.stdin) = (true, stdin);
        let alone = start(&client, request).await;
        let (keyboard, screen, stdio) = sit_down((30, 100));
        let mut request = daemon.run("shell", ["sh"]);
        (request.container.options.terminal, request.stdio) = (true, stdio);
        let shell = start(&client, request).await;
        for id in ["a", "b"] {
            member(&namespace, id, "exec sleep 1000").1.start().await.unwrap();
        }
        let old = ["cofferd", "coffer-shim"].map(|name| file(daemon.program(name)));

        daemon.upgrade();
        let new = ["cofferd", "coffer-shim"].map(|name| file(daemon.program(name)));
        assert!(old[0] != new[0] && old[1] != new[1]);
        assert_eq!(run_by(daemon.pid()), old[0]);
        // Until it ends, the old daemon is of one release with the shims that it starts.
        // The first has one that was made ahead, the second one made since.
        for id in ["between", "since"] {
            crate::idle(&namespace, id).await;
        }
        let ids = ["alone", "shell", "a", "b", "between", "since"];
        let mut known = Vec::new();
        for id in ids {
            let (shim, pid) = shim_of(&client, id).await;
            assert_eq!(run_by(pid), old[1], "{id}");
            known.push((shim, pid, namespace.containers().get(id).task().state().await.unwrap().pid));
        }
        assert_eq!(known[2].0, known[3].0, "the group has one");

        ends(&daemon);
        (&feed).write_all(b"meanwhile\n").unwrap();
        daemon.restart();
        assert_eq!(run_by(daemon.pid()), new[0]);
        let client = daemon.client().await;
        let namespace = daemon.open().await;
        let containers = namespace.containers();
        for (id, (shim, pid, first)) in ids.into_iter().zip(&known) {
            let task = containers.get(id).task();
            let state = task.state().await.unwrap();
            assert_eq!((state.status, state.pid), (Status::Running, *first), "{id}");
            assert_eq!(shim_of(&client, id).await, (shim.clone(), *pid), "{id}");
            assert_eq!(exec(&task, "echo $((6 * 7))").await, "42\n", "{id}");
        }

        // A log that is followed, with what was written while there was no daemon.
        let (told, mut heard) = tokio::sync::mpsc::channel(16);
        let follow = containers.get("alone").logs(true, move |record| {
            told.try_send(record.bytes.to_vec()).unwrap();
            Ok(())
        });
        let mut seen = Vec::new();
        let hear = async {
            while !seen.ends_with(b"meanwhile\n") {
                seen.extend(heard.recv().await.expect("it is followed"));
            }
            (&feed).write_all(b"last\n").unwrap();
            drop(feed);
            while let Some(bytes) = heard.recv().await {
                seen.extend(bytes);
            }
        };
        let (followed, ()) = tokio::join!(follow, hear);
        followed.unwrap();
        assert_eq!(String::from_utf8_lossy(&seen), "first\nmeanwhile\nlast\n");
        assert_eq!(alone.wait().await.unwrap().status, 3);

        // A terminal, by the client that was there before.
        shell.resize(50, 132).await.unwrap();
        write(&keyboard, "stty size; echo af''ter\r");
        assert!(screen.contains("after\r\n").await.contains("50 132\r\n"));
        write(&keyboard, "exit 21\r");
        assert_eq!(shell.wait().await.unwrap().status, 21);

        // Who joins the group has the shim that it has; who is alone has one of the new file. Both are confined.
        let confined = "grep -q '^Seccomp:.*2' /proc/self/status && exec sleep 1000";
        member(&namespace, "c", confined).1.start().await.unwrap();
        assert_eq!(shim_of(&client, "c").await, (known[2].0.clone(), known[2].1));
        with(&namespace, "new", confined, |_| {}).create_task(Stdio::default(), false).start().await.unwrap();
        assert_eq!(run_by(shim_of(&client, "new").await.1), new[1]);
        for id in ["a", "b", "c", "between", "since", "new"] {
            let task = containers.get(id).task();
            assert_eq!(task.state().await.unwrap().status, Status::Running, "{id}");
            task.kill(9, false).await.unwrap();
            assert_eq!(task.wait().await.unwrap().status, 137, "{id}");
        }
        for id in ids.into_iter().chain(["c", "new"]) {
            containers.get(id).remove(false).await.unwrap();
        }
    });
    daemon.settles(&before);
}

#[test]
fn containers_go_on_under_a_daemon_of_another_file() {
    upgrade(&programs(), Daemon::stop);
}

#[test]
fn containers_go_on_when_the_old_daemon_was_killed() {
    upgrade(&programs(), Daemon::kill9);
}

#[test]
#[ignore = "needs the programs of an earlier commit: deploy/older builds them"]
fn containers_go_on_that_an_earlier_commit_started() {
    upgrade(&older_programs(), Daemon::stop);
    upgrade(&older_programs(), Daemon::kill9);
}

/// What a shim was asked to make: the spec, and how long the program for its system calls is.
type Asked = Rc<RefCell<Vec<(Vec<u8>, usize)>>>;

/// A shim of another release, as the daemon sees it. What it has it has from a real one.
struct Release {
    version: u32,
    real: shim::Client,
    asked: Asked,
}

impl shim::Server for Release {
    async fn hello(self: Rc<Self>, _: shim::HelloParams, mut results: shim::HelloResults) -> capnp::Result<()> {
        results.get().set_version(self.version);
        Ok(())
    }

    async fn container(
        self: Rc<Self>,
        params: shim::ContainerParams,
        mut results: shim::ContainerResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let mut request = self.real.container_request();
        request.get().set_namespace(params.get_namespace()?);
        request.get().set_id(params.get_id()?);
        results.get().set_container(request.send().promise.await?.get()?.get_container()?);
        Ok(())
    }

    async fn create(self: Rc<Self>, params: shim::CreateParams, _: shim::CreateResults) -> capnp::Result<()> {
        let request = params.get()?.get_request()?;
        self.asked.borrow_mut().push((request.get_spec()?.to_vec(), request.get_filter()?.len()));
        Err(capnp::Error::unimplemented("it was only to be asked".into()))
    }
}

/// A real shim's socket, and another release that listens in its place.
struct Replaced {
    socket: PathBuf,
    kept: PathBuf,
    serves: JoinHandle<()>,
    asked: Asked,
}

impl Replaced {
    async fn new(daemon: &Daemon, id: &str, version: u32) -> Replaced {
        let dir = daemon.state().join("shims").join(id);
        let (socket, kept, asked) = (dir.join("shim.sock"), dir.join("kept.sock"), Asked::default());
        std::fs::rename(&socket, &kept).unwrap();
        let (network, _) = connect::network(UnixStream::connect(&kept).await.unwrap(), Side::Client, 1 << 20);
        let mut system = RpcSystem::new(Box::new(network), None);
        let real: shim::Client = system.bootstrap(Side::Server);
        let listener = UnixListener::bind(&socket).unwrap();
        let theirs = asked.clone();
        let serves = tokio::task::spawn_local(async move {
            let mut connections = JoinSet::new();
            connections.spawn_local(system);
            while let Ok((stream, _)) = listener.accept().await {
                let (network, _) = connect::network(stream, Side::Server, 1 << 20);
                let shim: shim::Client =
                    capnp_rpc::new_client(Release { version, real: real.clone(), asked: theirs.clone() });
                connections.spawn_local(RpcSystem::new(Box::new(network), Some(shim.client)));
            }
        });
        Replaced { socket, kept, serves, asked }
    }

    /// The end of it, as far as anybody sees.
    async fn end(self) {
        self.serves.abort();
        let _ = self.serves.await;
        // With what was in its place it may be gone.
        let _ = std::fs::rename(self.kept, self.socket);
    }
}

#[test]
fn a_shim_of_a_later_version_is_left_alone_and_said_to_be_one() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let (client, namespace) = (daemon.client().await, daemon.open().await);
        let mut known = Vec::new();
        for id in ["one", "two", "three"] {
            let (_, task) = crate::idle(&namespace, id).await;
            known.push((id, task.state().await.unwrap().pid, shim_of(&client, id).await));
        }
        daemon.stop();
        let mut replaced = Vec::new();
        for (.., (shim, _)) in &known {
            replaced.push(Replaced::new(&daemon, shim, SHIM_VERSION + 1).await);
        }
        daemon.restart();
        let containers = daemon.open().await.containers();
        let said = format!("version {} of the protocol, this daemon speaks {SHIM_VERSION}", SHIM_VERSION + 1);
        for (id, pid, _) in &known {
            let error = containers.get(id).task().kill(9, false).await.unwrap_err();
            assert_eq!(error.code, Code::Unavailable, "{error}");
            assert!(error.message.contains(&said) && error.message.contains("by force"), "{error}");
            assert!(!containers.get(id).remove(false).await.unwrap_err().message.is_empty());
            assert!(runs(*pid));
        }
        let ended = |pid: u32| until("it ends", || (!runs(pid)).then_some(()));

        // One whose shim dies has ended, which needs no words.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(known[0].2.1 as i32), nix::sys::signal::SIGKILL).unwrap();
        replaced.remove(0).end().await;
        // Asked for anew each time: the way to a task that was refused stays refused.
        let state = async || containers.get("one").task().state().await.ok();
        let exit = until_async("its end is known", async || state().await?.exit).await;
        assert_eq!((exit.status, &*exit.reason), (137, "shim lost"));
        ended(known[0].1);
        containers.get("one").remove(false).await.unwrap();

        // One is removed by force.
        containers.get("two").remove(true).await.unwrap();
        ended(known[1].1);
        replaced.remove(0).end().await;

        // One is found again by a daemon that speaks its version.
        daemon.stop();
        replaced.remove(0).end().await;
        daemon.restart();
        let container = daemon.open().await.containers().get("three");
        let state = container.task().state().await.unwrap();
        assert_eq!((state.status, state.pid), (Status::Running, known[2].1));
        container.remove(true).await.unwrap();
    });
    daemon.settles(&before);
}

#[test]
fn a_shim_of_another_daemon_is_told_nothing_that_an_older_one_would_not_know() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let (client, namespace) = (daemon.client().await, daemon.open().await);
        let (_, task) = member(&namespace, "a", "exec sleep 1000");
        let pid = task.start().await.unwrap();
        let (shim, _) = shim_of(&client, "a").await;
        daemon.stop();
        let replaced = Replaced::new(&daemon, &shim, SHIM_VERSION).await;
        daemon.restart();
        let namespace = daemon.open().await;
        let container = namespace.containers().get("a");
        assert_eq!(container.task().state().await.unwrap().pid, pid);
        let (refused, task) = member(&namespace, "b", "exec sleep 1000");
        assert_eq!(task.start().await.unwrap_err().code, Code::Unimplemented);
        // An older one would overlook the program, and kill what runs by the profile without its rules.
        let asked = replaced.asked.take();
        let [(spec, program)] = asked.as_slice() else { panic!("it was asked {} times", asked.len()) };
        let spec: serde_json::Value = serde_json::from_slice(spec).unwrap();
        assert!(spec["linux"]["seccomp"]["syscalls"].as_array().is_some_and(|rules| rules.len() > 2), "{spec}");
        assert_eq!(*program, 0);
        refused.remove(true).await.unwrap();
        container.task().kill(9, false).await.unwrap();
        assert_eq!(container.task().wait().await.unwrap().status, 137);
        container.remove(false).await.unwrap();
        replaced.end().await;
    });
    daemon.settles(&before);
}
