//! The end of a grant, tried against who would outlive it: what was run through it and left behind, calls that were given up,
//! descriptors, a hundred thousand live capabilities. S, W and Z are ids of SECURITY.md.

use std::{cell::Cell, io::Write as _, rc::Rc};

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use cofferdam_client::{
    Client, CommitOptions, ContainerRequest, FROM_NOW, GrantOptions, Namespace, ProcessOptions, Stdio, Task, channel,
};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, input, output, until_async};
use cofferdam_types::{Code, Labels};
use cofferdam_wire::{
    common_capnp::byte_stream,
    connect,
    error::from_rpc,
    gate_capnp::{gate, root},
    namespace_capnp::namespace,
};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use tokio::sync::watch;

use crate::{
    grants::{denied, facets, holder, refused, talking, words},
    idle, with,
};

fn run(text: &str) -> ProcessOptions {
    ProcessOptions { args: vec!["sh".into(), "-c".into(), text.into()], ..ProcessOptions::default() }
}

/// Whether something runs in the container that sleeps for so long.
async fn sleeps(task: &Task, seconds: &str) -> bool {
    let all = task.processes().await.unwrap();
    all.iter().any(|one| one.command == ["sleep", seconds])
}

async fn sleeping(task: &Task, seconds: &str) {
    until_async("it is left behind", async || sleeps(task, seconds).await.then_some(())).await;
}

async fn ended(task: &Task, seconds: &str) {
    until_async(&format!("{seconds} of what was left behind ends"), async || {
        (!sleeps(task, seconds).await).then_some(())
    })
    .await;
}

fn all() -> GrantOptions {
    GrantOptions { rights: words("run"), may_delegate: true, may_save: true, ..GrantOptions::default() }
}

// Z6: whoever a process's parent is by then, and whatever became of the one that began it.
#[test]
fn z6_what_a_process_left_behind_ends_with_its_grant() {
    let daemon = Daemon::with_busybox();
    // In the order: ended and there; ended and deleted; of a grant below; of another grant; the operator's own.
    let left = "(sleep $0 &) </dev/null >/dev/null 2>&1";
    let leave = |seconds: &str| {
        let mut options = run(left);
        options.args.push(seconds.into());
        options
    };
    let tops = bounded(async {
        let operator = daemon.open().await;
        let (_, task) = idle(&operator, "web").await;
        let (parent, top) = holder(&daemon, &operator, &all()).await;
        let child = parent.namespace("").grants().create(&GrantOptions { rights: words("run"), ..Default::default() });
        let child = Client::restore(daemon.socket(), &child.save(None).await.unwrap()).await.unwrap();
        let (other, kept) = holder(&daemon, &operator, &all()).await;
        let leaves = async |namespace: Namespace, seconds: &str, delete: bool| {
            let process = namespace.containers().get("web").task().exec("", &leave(seconds), Stdio::default());
            process.start().await.unwrap();
            assert_eq!(process.wait().await.unwrap().status, 0);
            if delete {
                process.delete().await.unwrap();
            }
            sleeping(&task, seconds).await;
        };
        leaves(parent.namespace(""), "1001", false).await;
        leaves(parent.namespace(""), "1002", true).await;
        leaves(child.namespace(""), "1003", true).await;
        leaves(other.namespace(""), "1004", true).await;
        leaves(daemon.open().await, "1005", true).await;
        operator.grants().get(&top).revoke().await.unwrap();
        for seconds in ["1001", "1002", "1003"] {
            ended(&task, seconds).await;
        }
        for seconds in ["1004", "1005"] {
            assert!(sleeps(&task, seconds).await, "{seconds}");
        }
        kept
    });
    // And under a daemon that knows of none of them but by their shim.
    daemon.kill9();
    daemon.restart();
    bounded(async {
        let operator = daemon.open().await;
        let task = operator.containers().get("web").task();
        assert!(sleeps(&task, "1004").await);
        operator.grants().get(&tops).revoke().await.unwrap();
        ended(&task, "1004").await;
        assert!(sleeps(&task, "1005").await, "it is the operator's");
        assert_eq!(task.state().await.unwrap().status.as_str(), "running");
        operator.containers().get("web").remove(true).await.unwrap();
    });
}

/// In a container that stands still as well, by whichever freezer.
#[test]
fn z6_what_was_run_in_a_paused_container_ends_with_its_grant() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        for runtime in ["native", "runc"] {
            let container = with(&operator, runtime, "exec sleep 1000", |c| c.runtime = runtime.into());
            let task = container.create_task(Stdio::default(), false);
            task.start().await.unwrap();
            let (client, grant) = holder(&daemon, &operator, &all()).await;
            let theirs = client.namespace("").containers().get(runtime).task();
            // One that is there, and one that is left behind.
            let process = theirs.exec("", &run("sleep 1001 & exec sleep 1002"), Stdio::default());
            process.start().await.unwrap();
            let left = theirs.exec("", &run("(sleep 1003 &) </dev/null >/dev/null 2>&1; sleep 0.2"), Stdio::default());
            left.start().await.unwrap();
            assert_eq!(left.wait().await.unwrap().status, 0);
            // What forks before a program of others has put it into its group isn't found: see runtime/oci/src/runc.rs.
            let bound = if runtime == "native" { &["1001", "1002", "1003"][..] } else { &["1002"] };
            for seconds in ["1001", "1002", "1003"] {
                sleeping(&task, seconds).await;
            }
            task.pause().await.unwrap();
            operator.grants().get(&grant).revoke().await.unwrap();
            for seconds in bound {
                ended(&task, seconds).await;
            }
            assert_eq!(task.state().await.unwrap().status.as_str(), "paused");
            container.remove(true).await.unwrap();
        }
    });
}

// Z6: a call that nobody waits for any more has done its work all the same, and what it made is bound to the grant.
#[test]
fn z6_a_process_whose_maker_gave_up_the_call_ends_with_its_grant() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let (_, task) = idle(&operator, "web").await;
        let (client, id) = holder(&daemon, &operator, &all()).await;
        let theirs = client.namespace("");
        // Until one was given up that is there.
        let tries = std::cell::Cell::new(0);
        let lost = until_async("one is made whose call was given up", async || {
            tries.set(tries.get() + 1);
            let lost = format!("lost-{}", tries.get());
            let asking = theirs.containers().get("web").task().exec(&lost, &run("exec sleep 1000"), Stdio::default());
            // It is on its way, and let go of.
            tokio::task::yield_now().await;
            drop(asking);
            theirs.info().await.unwrap();
            task.process(&lost).state().await.ok().map(|_| lost)
        })
        .await;
        theirs.containers().get("web").task().process(&lost).start().await.unwrap();
        let process = task.process(&lost);
        assert_eq!(process.state().await.unwrap().status.as_str(), "running");
        operator.grants().get(&id).revoke().await.unwrap();
        assert_eq!(process.wait().await.unwrap().status, 137);
    });
}

// Z6: what was made and not started is no way to start something afterwards, for whoever finds it.
#[test]
fn z6_what_was_not_started_can_not_be_when_its_grant_has_ended() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let (_, task) = idle(&operator, "web").await;
        let (client, id) = holder(&daemon, &operator, &all()).await;
        let theirs = client.namespace("").containers().get("web").task();
        theirs.exec("waits", &run("exec sleep 1001"), Stdio::default()).made().await.unwrap();
        operator.grants().get(&id).revoke().await.unwrap();
        let process = task.process("waits");
        assert_eq!(process.wait().await.unwrap().status, 137);
        refused(process.start().await, Code::FailedPrecondition);
        assert!(!sleeps(&task, "1001").await);
        process.delete().await.unwrap();
    });
}

// Z6: a container goes on, and is no way for its maker to hear of it, or to tell it anything.
#[test]
fn z6_the_streams_of_a_container_are_cut_with_the_grant_of_its_maker() {
    let daemon = Daemon::with_busybox();
    let script = "while read line; do echo got $line; done; echo over > /over; exec sleep 1001";
    // Handed over as they are, logged, by a terminal; and under a daemon that was started since.
    for (n, (log, terminal, restart)) in
        [(false, false, false), (true, false, false), (false, true, false), (true, false, true)].into_iter().enumerate()
    {
        let id = format!("made-{n}");
        let (stdin, typing) = input();
        let (stdout, arrivals) = output();
        let grant = bounded(async {
            let operator = daemon.open().await;
            let (maker, grant) = holder(&daemon, &operator, &facets("deploy")).await;
            let made = with(&maker.namespace(""), &id, script, |request| request.options.terminal = terminal);
            let task = made.create_task(Stdio { stdin, stdout, ..Stdio::default() }, log);
            task.start().await.unwrap();
            (&typing).write_all(b"one\n").unwrap();
            arrivals.contains("got one").await;
            grant
        });
        if restart {
            daemon.kill9();
            daemon.restart();
        }
        bounded(async {
            let operator = daemon.open().await;
            let task = operator.containers().get(&id).task();
            operator.grants().get(&grant).revoke().await.unwrap();
            // Nobody holds the other ends any more.
            arrivals.all().await;
            until_async("what is typed goes nowhere", async || (&typing).write_all(b"two\n").err()).await;
            assert_eq!(task.state().await.unwrap().status.as_str(), "running", "{id}");
            if !terminal {
                // Its input has ended, as that of a client who left.
                sleeping(&task, "1001").await;
            }
            assert!(!String::from_utf8(arrivals.so_far()).unwrap().contains("two"), "{id}");
        });
    }
}

// Z6, Z3: any program of the host would be run as root.
#[test]
fn z3_no_program_of_the_host_is_a_runtime() {
    let daemon = Daemon::with_flags(&["--runtime", "named=/usr/bin/true", "--runtime", "crun="]);
    daemon.import_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let (deployer, _) = holder(&daemon, &operator, &facets("deploy")).await;
        let asks = async |who: &Namespace, runtime: &str| {
            let mut request = ContainerRequest { runtime: runtime.into(), ..ContainerRequest::default() };
            request.options.args = words("true");
            who.containers().create(&who.images().get(BUSYBOX), &request).info().await
        };
        let theirs = deployer.namespace("");
        for program in ["sh", "env", "/usr/bin/env", "crun", "../bin/sh"] {
            let error = denied(asks(&theirs, program)).await;
            assert!(error.message.contains("needs the host right"), "{program}: {error}");
        }
        for named in ["", "native", "named", "runc"] {
            asks(&theirs, named).await.unwrap();
        }
        // Who has the host has its programs.
        asks(&operator, "/usr/bin/env").await.unwrap();
    });
}

// Z6: no revocation takes a mount back. So it is for whoever has the host.
#[test]
fn z6_a_mount_of_a_snapshot_takes_the_host_right() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let top = operator.images().get(BUSYBOX).unpack("", "").await.unwrap();
        let (writer, _) =
            holder(&daemon, &operator, &GrantOptions { rights: words("write"), ..GrantOptions::default() }).await;
        let theirs = writer.namespace("").snapshots("");
        for snapshot in [theirs.prepare("work", &top, &Labels::new()), theirs.view("seen", &top, &Labels::new())] {
            let error = denied(snapshot.mount_fd()).await;
            assert!(error.message.contains("needs the host right"), "{error}");
        }
        let (host, _) =
            holder(&daemon, &operator, &GrantOptions { rights: words("host"), ..GrantOptions::default() }).await;
        let seen = host.namespace("").snapshots("").get("seen").mount_fd().await.unwrap();
        let flags = fstatvfs(&seen).unwrap().flags();
        assert!(flags.contains(FsFlags::ST_RDONLY | FsFlags::ST_NOSUID), "{flags:?}");
        drop(seen);
        drop(host.namespace("").snapshots("").get("work").mount_fd().await.unwrap());
    });
}

// Z6: at the other end of a copy there may be somebody who gives nothing, or takes nothing; and of a container that doesn't run
// nothing else is done meanwhile.
#[test]
fn z6_a_copy_ends_with_its_grant_and_with_a_container_that_is_removed() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        with(&operator, "revoked", "exec sleep 1000", |_| ()).info().await.unwrap();
        with(&operator, "in", "exec sleep 1000", |_| ()).info().await.unwrap();
        let out = with(&operator, "out", "dd if=/dev/zero of=/large bs=1M count=8 2> /dev/null", |_| ());
        let task = out.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        task.wait().await.unwrap();
        task.delete().await.unwrap();

        let (theirs, id) = holder(&daemon, &operator, &facets("deploy")).await;
        let into = theirs.namespace("").containers().get("revoked").copy_in("/", true, false).await.unwrap();
        into.write(b"the beginning of an archive").await.unwrap();
        operator.grants().get(&id).revoke().await.unwrap();
        let revoked = operator.containers().get("revoked");
        revoked.create_task(Stdio::default(), false).start().await.unwrap();
        refused(into.end().await, Code::Revoked);

        let (theirs, _) = holder(&daemon, &operator, &facets("deploy")).await;
        let containers = theirs.namespace("").containers();
        let into = containers.get("in").copy_in("/", true, false).await.unwrap();
        operator.containers().get("in").remove(true).await.unwrap();
        refused(into.end().await, Code::Cancelled);
        let (sink, mut heard) = channel();
        let copying = containers.get("out").copy_out("/large", &sink);
        heard.next().await.expect("it has begun");
        operator.containers().get("out").remove(true).await.unwrap();
        refused(copying.await, Code::Cancelled);
    });
}

/// Takes chunks, and answers when it is let.
struct Slow {
    let_on: watch::Receiver<bool>,
    heard: Rc<Heard>,
}

#[derive(Default)]
struct Heard {
    chunks: Cell<usize>,
    ended: Cell<bool>,
    gone: Cell<bool>,
}

impl byte_stream::Server for Slow {
    async fn write(self: Rc<Self>, _: byte_stream::WriteParams) -> capnp::Result<()> {
        self.heard.chunks.set(self.heard.chunks.get() + 1);
        let _ = self.let_on.clone().wait_for(|on| *on).await;
        Ok(())
    }

    async fn end(self: Rc<Self>, _: byte_stream::EndParams, _: byte_stream::EndResults) -> capnp::Result<()> {
        self.heard.ended.set(true);
        Ok(())
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.heard.gone.set(true);
    }
}

// Z6: whoever gets an archive that is cut short is not told that it is whole.
#[test]
fn z6_an_export_into_a_sink_ends_with_its_grant_and_is_not_ended() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let large = with(&operator, "large", "dd if=/dev/urandom of=/large bs=1M count=8 2> /dev/null", |_| ());
        let task = large.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        task.wait().await.unwrap();
        large.commit(&CommitOptions { name: "large".into(), ..CommitOptions::default() }).wait().await.unwrap();
        let grant = operator.grants().create(&facets("backup"));
        let token = grant.save(None).await.unwrap();
        let theirs = enter(&daemon.socket(), Some(&token)).await;
        let (let_on, waits) = watch::channel(false);
        let heard = Rc::new(Heard::default());
        let all = theirs.root.namespaces_request().send().pipeline.get_namespaces();
        let namespace = all.get_request().send().pipeline.get_namespace();
        let images = namespace.images_request().send().pipeline.get_images();
        let mut request = images.export_request();
        request.get().init_options().init_names(1).set(0, "large");
        request.get().set_sink(capnp_rpc::new_client(Slow { let_on: waits, heard: heard.clone() }));
        let _job = request.send().promise.await.unwrap();
        until_async("it has begun", async || (heard.chunks.get() > 0).then_some(())).await;
        grant.revoke().await.unwrap();
        let_on.send_replace(true);
        until_async("the sink is let go", async || heard.gone.get().then_some(())).await;
        assert!(!heard.ended.get());
    });
}

/// What one connection holds of a grant, and how many.
struct Holder {
    _gate: gate::Client,
    root: root::Client,
    held: Vec<namespace::Client>,
}

/// The gate of a connection of its own.
pub async fn gate(socket: &std::path::Path) -> gate::Client {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (network, _fds) = connect::network(stream, Side::Client, 64 << 20);
    let mut system = RpcSystem::new(Box::new(network), None);
    let gate = system.bootstrap(Side::Server);
    tokio::task::spawn_local(system);
    gate
}

async fn enter(socket: &std::path::Path, token: Option<&str>) -> Holder {
    let gate = gate(socket).await;
    let root = match token {
        Some(token) => {
            let mut request = gate.restore_request();
            request.get().set_token(token);
            request.send().promise.await.unwrap().get().unwrap().get_root().unwrap()
        }
        None => gate.enter_request().send().promise.await.unwrap().get().unwrap().get_root().unwrap(),
    };
    Holder { _gate: gate, root, held: Vec::new() }
}

impl Holder {
    async fn take(&mut self, many: usize) {
        let all = self.root.namespaces_request().send().pipeline.get_namespaces();
        while self.held.len() < many {
            let some = (0..200.min(many - self.held.len())).map(|_| all.get_request().send().promise);
            for answer in futures::future::join_all(some).await {
                self.held.push(answer.unwrap().get().unwrap().get_namespace().unwrap());
            }
        }
    }
}

// Z6: however many there are, and on however many connections: all of them when the revocation is answered.
#[test]
fn z6_a_hundred_thousand_live_capabilities_end_at_once() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        talking(&operator, "web", "").await;
        let grant = operator.grants().create(&facets("observer exec"));
        let (token, id) = (grant.save(None).await.unwrap(), grant.info().await.unwrap().id);
        let directory = daemon.path().join("socket");
        grant.export(directory.to_str().unwrap()).await.unwrap();
        let mut holders = Vec::new();
        // Some came by the socket that is the grant, and all others by its token.
        for n in 0..26 {
            let socket = directory.join("cofferdam.sock");
            let mut one = match n {
                0 | 1 => enter(&socket, None).await,
                _ => enter(&daemon.socket(), Some(&token)).await,
            };
            one.take(3_900).await;
            holders.push(one);
        }
        let live: usize = holders.iter().map(|one| one.held.len()).sum();
        assert!(live >= 100_000, "{live}");

        // And what is under way beside them: waits, a log that is followed, news, a terminal, a stream that never ends.
        let busy = Client::restore(daemon.socket(), &token).await.unwrap();
        let theirs = busy.namespace("");
        let task = theirs.containers().get("web").task();
        let waits: Vec<_> = (0..100).map(|_| task.wait()).collect();
        let follow = theirs.containers().get("web").logs(true, |_| Ok(()));
        let mut happening = theirs.events().subscribe::<&str>(FROM_NOW, &[]);
        let (stdout, arrivals) = output();
        let talks =
            task.exec("talks", &run("while echo tick; do sleep 0.01; done"), Stdio { stdout, ..Stdio::default() });
        talks.start().await.unwrap();
        arrivals.contains("tick").await;
        let (sink, mut heard) = channel();
        let streams = Stdio { stdout: cofferdam_client::Output::Stream(sink), ..Stdio::default() };
        let streamed = task.exec("streams", &run("while echo tick; do sleep 0.01; done"), streams);
        streamed.start().await.unwrap();
        heard.next().await.expect("it talks");

        operator.grants().get(&id).revoke().await.unwrap();
        for wait in waits {
            refused(wait.await, Code::Revoked);
        }
        refused(follow.await, Code::Revoked);
        refused(happening.next().await, Code::Revoked);
        while heard.next().await.is_some() {}
        let mut asked = 0;
        for one in &holders {
            for some in one.held.chunks(200) {
                let calls = some.iter().map(|held| held.info_request().send().promise);
                for answer in futures::future::join_all(calls).await {
                    let error = from_rpc(answer.map(drop).expect_err("it was let through"));
                    // Whose socket is gone is cut off, behind the answer.
                    let over = error.code == Code::Revoked || cofferdam_client::is_lost(&error);
                    assert!(over, "{error}");
                    asked += 1;
                }
            }
        }
        assert_eq!(asked, live);
        let operators = operator.containers().get("web").task();
        for exec in ["talks", "streams"] {
            assert_eq!(operators.process(exec).wait().await.unwrap().status, 137, "{exec}");
        }
        assert_eq!(operators.state().await.unwrap().status.as_str(), "running");
    });
}
