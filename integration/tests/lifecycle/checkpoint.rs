//! Checkpoint and restore with criu, for every driver that can do it.

use std::{fs::File, path::PathBuf};

use cofferdam_client::{
    CheckpointOptions, Container, ContainerRequest, GrantOptions, ImportOptions, Namespace, Network, Output,
    PortMapping, ProcessOptions, Protocol, Status, Stdio, Task,
};
use cofferdam_integration::{Arrivals, BUSYBOX, Daemon, bounded, criu, output, until_async};
use cofferdam_types::{Code, Error};

use crate::{
    grants::{denied, holder, words},
    network, start, with,
};

#[test]
fn native_goes_on_in_its_place() {
    goes_on_in_its_place("native");
}

#[test]
fn runc_goes_on_in_its_place() {
    goes_on_in_its_place("runc");
}

#[test]
fn native_goes_on_elsewhere_with_its_files() {
    goes_on_elsewhere_with_its_files("native");
}

#[test]
fn runc_goes_on_elsewhere_with_its_files() {
    goes_on_elsewhere_with_its_files("runc");
}

#[test]
fn native_goes_on_beside() {
    goes_on_beside("native");
}

#[test]
fn runc_goes_on_beside() {
    goes_on_beside("runc");
}

// Of the native driver alone: what runc restores finds the loopback device of its new network namespace down.
#[test]
fn native_connections_are_kept() {
    connections_are_kept("native");
}

#[test]
fn native_terminal_is_kept() {
    terminal_is_kept("native");
}

#[test]
fn runc_terminal_is_kept() {
    terminal_is_kept("runc");
}

#[test]
fn native_network_is_connected_anew() {
    network_is_connected_anew("native");
}

#[test]
fn runc_network_is_connected_anew() {
    network_is_connected_anew("runc");
}

/// Counts, on its output and in a file.
const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n > /count; echo $n; sleep 0.02; done";
const CHECKPOINT: &str = "docker.io/test/checkpoint:latest";

/// A daemon that has criu, and no image.
fn bare() -> Daemon {
    Daemon::with_flags(Box::leak(Box::new(["--criu", criu()])))
}

/// A daemon that has criu, and busybox.
fn daemon() -> Daemon {
    let daemon = bare();
    daemon.import_busybox();
    daemon
}

fn named(leave_running: bool) -> CheckpointOptions {
    CheckpointOptions { name: "test/checkpoint".into(), leave_running, ..CheckpointOptions::default() }
}

fn streams(stdout: Output) -> Stdio {
    Stdio { stdout, ..Stdio::default() }
}

/// Numbers, as far as their lines are whole.
fn numbers(text: &str) -> Vec<u64> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

async fn counted(arrivals: &Arrivals, least: usize) -> Vec<u64> {
    until_async("it counts", async || {
        Some(numbers(&String::from_utf8_lossy(&arrivals.so_far()))).filter(|numbers| numbers.len() >= least)
    })
    .await
}

/// A container that counts, and where its output arrives.
async fn counting(namespace: &Namespace, runtime: &str, script: &str) -> (Container, Task, Arrivals) {
    let container = with(namespace, "box", script, |c| c.runtime = runtime.into());
    let (stdout, arrivals) = output();
    let task = container.create_task(streams(stdout), false);
    task.start().await.unwrap();
    counted(&arrivals, 3).await;
    (container, task, arrivals)
}

/// What goes on where it was: each number follows the one before, the first one `last`.
async fn follows(arrivals: &Arrivals, last: u64) {
    let after = counted(arrivals, 3).await;
    let expected: Vec<u64> = (last + 1..).take(after.len()).collect();
    assert_eq!(after, expected, "it goes on after {last}");
}

async fn end(task: &Task) {
    task.kill(9, false).await.unwrap();
    assert_eq!(task.wait().await.unwrap().status, 137);
}

// TestCheckpointRestore of the reference.
fn goes_on_in_its_place(runtime: &str) {
    let daemon = daemon();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task, arrivals) = counting(&namespace, runtime, COUNT).await;
        assert_eq!(task.checkpoint(&named(false)).wait().await.unwrap(), [CHECKPOINT]);
        assert_eq!(task.wait().await.unwrap().status, 137);
        let last = *numbers(&arrivals.text().await).last().unwrap();
        task.delete().await.unwrap();

        let checkpoint = namespace.images().get(CHECKPOINT);
        let info = checkpoint.info().await.unwrap();
        assert_eq!(info.labels.get("containerd.io/checkpoint").map(String::as_str), Some("true"));
        let (stdout, arrivals) = output();
        let task = container.create_task_from(&checkpoint, streams(stdout), false);
        let made = task.state().await.unwrap();
        assert_eq!((made.status, made.pid), (Status::Created, 0), "there is no process yet");
        for early in [
            task.kill(15, false).await.unwrap_err(),
            task.pids().await.unwrap_err(),
            task.pause().await.unwrap_err(),
            task.attach(Stdio::default()).wait().await.unwrap_err(),
            task.update(br#"{"pids": {"limit": 50}}"#).await.unwrap_err(),
        ] {
            assert_eq!((early.code, &*early.kind), (Code::FailedPrecondition, "task"), "{early}");
            assert!(early.message.starts_with("is created"), "{early}");
        }
        assert_eq!(task.kill(1000, false).await.unwrap_err().code, Code::InvalidArgument);
        let pid = task.start().await.unwrap();
        let runs = task.state().await.unwrap();
        assert_eq!((runs.status, runs.pid), (Status::Running, pid));
        follows(&arrivals, last).await;
        let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(group.contains(&daemon.cgroup("box")), "{group}");

        // Other processes run beside it, and see it.
        let (stdout, seen) = output();
        let options = ProcessOptions { args: vec!["sh".into(), "-c".into(), "ps; id -u".into()], ..Default::default() };
        let exec = task.exec("look", &options, streams(stdout));
        exec.start().await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 0);
        let seen = seen.text().await;
        assert!(seen.contains("n=$((n+1))") && seen.ends_with("0\n"), "{seen}");
        task.pause().await.unwrap();
        task.resume().await.unwrap();
        end(&task).await;
        // One that was never started goes without a word.
        task.delete().await.unwrap();
        let task = container.create_task_from(&checkpoint, Stdio::default(), false);
        task.state().await.unwrap();
        // It can be killed, as what is made otherwise.
        task.kill(9, false).await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 137);
        assert_eq!(task.start().await.unwrap_err().code, Code::FailedPrecondition);
        task.delete().await.unwrap();
        let task = container.create_task_from(&checkpoint, Stdio::default(), false);
        task.state().await.unwrap();
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

// TestCheckpointRestoreNewContainer of the reference, on another daemon; K2.
fn goes_on_elsewhere_with_its_files(runtime: &str) {
    let (here, there) = (daemon(), bare());
    let before = here.leftovers();
    let archive = here.path().join("checkpoint.tar");
    let brought = bounded(async {
        let namespace = here.open().await;
        let script = format!("mkdir /kept; echo hello > /kept/file; rm /bin/wc; export A=1; {COUNT}");
        let (container, task, arrivals) = counting(&namespace, runtime, &script).await;
        task.checkpoint(&named(false)).wait().await.unwrap();
        task.wait().await.unwrap();
        let last = *numbers(&arrivals.text().await).last().unwrap();
        container.remove(false).await.unwrap();
        let image = namespace.images().get(CHECKPOINT);
        assert!(image.detail("").await.unwrap().unpacked, "it is listed by the image in it");
        image.export_fd(File::create_new(&archive).unwrap().into()).wait().await.unwrap();
        image_ends(&namespace).await;

        let namespace = there.open().await;
        let names = async || {
            let list = namespace.images().list::<&str>(&[]).all().await.unwrap();
            list.into_iter().map(|info| info.name).collect::<Vec<_>>()
        };
        let import = |name: &str| {
            let options = ImportOptions { name: name.into(), ..ImportOptions::default() };
            namespace.images().import_fd(&options, File::open(&archive).unwrap().into())
        };
        let unnamed = import("").wait().await.unwrap_err();
        assert!(unnamed.message.contains("give it a name"), "{unnamed}");
        let name = import("other/name:here").wait().await.unwrap().remove(0);
        assert_eq!(names().await, std::slice::from_ref(&name), "nothing else got a name");
        let brought = there.leftovers();

        let image = namespace.images().get(&name);
        let request = ContainerRequest { id: "another".into(), checkpoint: true, ..ContainerRequest::default() };
        let container = namespace.containers().create(&image, &request);
        assert_eq!(container.info().await.unwrap().runtime, runtime, "as it was made");
        let (stdout, arrivals) = output();
        let task = container.create_task_from(&image, streams(stdout), false);
        task.start().await.unwrap();
        follows(&arrivals, last).await;
        let script = "cat /kept/file; ls /bin/wc; ls /bin/ls; cat /proc/1/environ | tr '\\0' '\\n' | grep PATH";
        let seen = exec(&task, script).await;
        assert!(seen.starts_with("hello\n/bin/ls\nPATH="), "{seen}");
        end(&task).await;

        container.remove(false).await.unwrap();
        brought
    });
    here.settles(&before);
    there.settles(&brought);
}

async fn image_ends(namespace: &Namespace) {
    namespace.images().remove(CHECKPOINT).await.unwrap();
}

// TestCheckpointLeaveRunning of the reference.
fn goes_on_beside(runtime: &str) {
    let daemon = daemon();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task, arrivals) = counting(&namespace, runtime, COUNT).await;
        let pid = task.state().await.unwrap().pid;
        task.checkpoint(&named(true)).wait().await.unwrap();
        let state = task.state().await.unwrap();
        assert_eq!((state.status, state.pid), (Status::Running, pid));
        let so_far = counted(&arrivals, 3).await.len();
        counted(&arrivals, so_far + 3).await;
        let taken = task.checkpoint(&named(true)).wait().await.unwrap_err();
        assert_eq!((taken.code, &*taken.kind), (Code::AlreadyExists, "image"), "{taken}");
        assert_eq!(task.state().await.unwrap().status, Status::Running);

        // Who paused it finds it paused.
        task.pause().await.unwrap();
        let second = CheckpointOptions { name: "test/second".into(), leave_running: true, ..Default::default() };
        task.checkpoint(&second).wait().await.unwrap();
        assert_eq!(task.state().await.unwrap().status, Status::Paused);
        task.resume().await.unwrap();

        // Both at once: the one that was made of it, under another name.
        let image = namespace.images().get(CHECKPOINT);
        let request = ContainerRequest { id: "twin".into(), checkpoint: true, ..ContainerRequest::default() };
        let twin = namespace.containers().create(&image, &request);
        let (stdout, its) = output();
        let other = twin.create_task_from(&image, streams(stdout), false);
        // Before that there is nothing to run another process in.
        let options = ProcessOptions { args: vec!["true".into()], ..ProcessOptions::default() };
        let early = other.exec("early", &options, Stdio::default()).state().await.unwrap_err();
        assert_eq!((early.code, &*early.kind, &*early.id), (Code::FailedPrecondition, "task", "twin"), "{early}");
        assert!(early.message.starts_with("is created"), "{early}");
        other.start().await.unwrap();
        counted(&its, 3).await;
        end(&other).await;
        end(&task).await;
        twin.remove(false).await.unwrap();
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

/// Numbers that come by way of a connection between two processes of a container.
const SENT: &str = "sleep 100000 | nc -l -p 7000 & until n=0; (while :; do echo $n; n=$((n+1)); sleep 0.01; done) \
                    | nc 127.0.0.1 7000; do sleep 0.1; done";

fn connections_are_kept(runtime: &str) {
    let daemon = daemon();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task, arrivals) = counting(&namespace, runtime, SENT).await;
        // Without a word for it criu refuses them, and the container goes on.
        refused(&task.checkpoint(&named(false)).wait().await.unwrap_err(), "tcp-established");
        counted(&arrivals, counted(&arrivals, 1).await.len() + 3).await;
        let options = CheckpointOptions { tcp_established: true, unix_sockets: true, ..named(false) };
        task.checkpoint(&options).wait().await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 137);
        let last = *numbers(&arrivals.text().await).last().unwrap();
        task.delete().await.unwrap();
        let (stdout, arrivals) = output();
        let task = container.create_task_from(&namespace.images().get(CHECKPOINT), streams(stdout), false);
        task.start().await.unwrap();
        follows(&arrivals, last).await;
        end(&task).await;
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

fn terminal_is_kept(runtime: &str) {
    let daemon = daemon();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let script = "n=0; while read line; do n=$((n+1)); echo \"$n:$line:$(tty)\"; done";
        let container = with(&namespace, "box", script, |c| {
            c.runtime = runtime.into();
            c.options.terminal = true;
        });
        let (stdin, keys) = cofferdam_integration::input();
        let (stdout, shown) = output();
        let task = container.create_task(Stdio { stdin, stdout, ..Stdio::default() }, false);
        task.start().await.unwrap();
        cofferdam_integration::write(&keys.into(), "one\n");
        shown.contains("1:one:/dev/").await;
        task.checkpoint(&named(false)).wait().await.unwrap();
        task.wait().await.unwrap();
        task.delete().await.unwrap();
        let (stdin, keys) = cofferdam_integration::input();
        let (stdout, shown) = output();
        let image = namespace.images().get(CHECKPOINT);
        let stdio = Stdio { stdin, stdout, size: (40, 132), ..Stdio::default() };
        let task = container.create_task_from(&image, stdio, false);
        task.start().await.unwrap();
        let keys = keys.into();
        cofferdam_integration::write(&keys, "two\n");
        shown.contains("2:two:/dev/").await;
        task.resize(50, 100).await.unwrap();
        end(&task).await;
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

// As podman has it: what listened listens again, on a connection of its own.
fn network_is_connected_anew(runtime: &str) {
    let daemon = Daemon::with_network(Box::leak(Box::new(["--criu", criu()])));
    network::blue(&daemon);
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let serve = "n=0; while :; do n=$((n+1)); echo waits $n; echo $n | nc -l -p 80 > /dev/null; done";
        let on_blue = |c: &mut ContainerRequest| {
            network::on_blue(c);
            let port = PortMapping { host_port: 8080, container_port: 80, protocol: Protocol::Tcp, host_address: None };
            c.options.networking.ports = vec![port];
        };
        let server = with(&namespace, "server", serve, |c| {
            c.runtime = runtime.into();
            on_blue(c);
        });
        let (stdout, shown) = output();
        let task = server.create_task(streams(stdout), false);
        task.start().await.unwrap();
        let ask =
            || cofferdam_integration::until("it answers", || network::ask(&daemon, ([127, 0, 0, 1], 8080).into()));
        let address = async |container: &Container| {
            container.info().await.unwrap().task.unwrap().network.unwrap().addresses.remove(0)
        };
        assert_eq!(ask(), "1\n");
        // The first connection is over.
        shown.contains("waits 2\n").await;
        let first = address(&server).await;
        task.checkpoint(&named(false)).wait().await.unwrap();
        task.wait().await.unwrap();
        task.delete().await.unwrap();
        network::no_traces(&daemon);

        let image = namespace.images().get(CHECKPOINT);
        let (stdout, shown) = output();
        let task = server.create_task_from(&image, streams(stdout), false);
        task.start().await.unwrap();
        assert_ne!(address(&server).await, first, "it has another address");
        assert_eq!(ask(), "2\n");
        shown.contains("waits 3\n").await;
        server.remove(true).await.unwrap();

        // In another container it is asked for again.
        let make = |change: &dyn Fn(&mut ContainerRequest)| {
            let mut request = ContainerRequest { id: "other".into(), checkpoint: true, ..ContainerRequest::default() };
            change(&mut request);
            namespace.containers().create(&image, &request)
        };
        refused(&make(&|_| {}).info().await.unwrap_err(), "comes with a network");
        let other = make(&|c| {
            on_blue(c);
            c.options.sysctls = [("net.ipv4.ip_default_ttl".to_owned(), "77".to_owned())].into();
        });
        let task = other.create_task_from(&image, Stdio::default(), false);
        task.start().await.unwrap();
        assert_eq!(ask(), "2\n");
        if runtime == "native" {
            let ttl = exec(&task, "cat /proc/sys/net/ipv4/ip_default_ttl; grep server /etc/hosts").await;
            assert!(ttl.starts_with("77\n10.213.0."), "{ttl}");
        }
        // Who shares another's network can't be taken out of it, nor put into it.
        let guest = with(&namespace, "guest", COUNT, |c| {
            c.runtime = runtime.into();
            c.options.network = Network::Container("other".into());
        });
        let shares =
            |error: Error| assert_eq!((error.code, &*error.kind), (Code::Unimplemented, "container"), "{error}");
        let sharing = guest.create_task(Stdio::default(), false);
        sharing.start().await.unwrap();
        let dump = CheckpointOptions { name: "x/guest".into(), ..CheckpointOptions::default() };
        shares(sharing.checkpoint(&dump).wait().await.unwrap_err());
        assert_eq!(sharing.state().await.unwrap().status, Status::Running);
        end(&sharing).await;
        sharing.delete().await.unwrap();
        shares(guest.create_task_from(&image, Stdio::default(), false).state().await.unwrap_err());
        guest.remove(false).await.unwrap();
        let second = |c: &mut ContainerRequest| {
            c.id = "second".into();
            c.options.network = Network::Container("other".into());
        };
        shares(make(&second).info().await.unwrap_err());
        other.remove(true).await.unwrap();
        image_ends(&namespace).await;
    });
    network::no_traces(&daemon);
    daemon.settles(&before);
}

/// What a script says in a container that runs.
async fn exec(task: &Task, script: &str) -> String {
    let options = ProcessOptions { args: vec!["sh".into(), "-c".into(), script.into()], ..Default::default() };
    let (stdout, seen) = output();
    let exec = task.exec("", &options, streams(stdout));
    exec.start().await.unwrap();
    exec.wait().await.unwrap();
    seen.text().await
}

fn refused(error: &Error, word: &str) {
    assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    assert!(error.message.contains(word), "{error}");
}

#[test]
fn without_criu_the_container_goes_on() {
    let daemon = Daemon::with_flags(&["--criu", "/nonexistent/criu"]);
    daemon.import_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task, arrivals) = counting(&namespace, "native", COUNT).await;
        refused(&task.checkpoint(&named(false)).wait().await.unwrap_err(), "install criu");
        assert_eq!(task.state().await.unwrap().status, Status::Running);
        let so_far = counted(&arrivals, 3).await.len();
        counted(&arrivals, so_far + 3).await;
        end(&task).await;
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

#[test]
fn what_does_not_fit_a_checkpoint_is_refused_and_leaves_nothing() {
    let daemon = daemon();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task, _arrivals) = counting(&namespace, "native", COUNT).await;
        task.checkpoint(&named(false)).wait().await.unwrap();
        task.wait().await.unwrap();
        let late = CheckpointOptions { name: "x/late".into(), ..CheckpointOptions::default() };
        refused(&task.checkpoint(&late).wait().await.unwrap_err(), "is stopped: there is nothing to checkpoint");
        container.remove(false).await.unwrap();

        let image = namespace.images().get(CHECKPOINT);
        let make = async |change: &dyn Fn(&mut ContainerRequest)| {
            let mut request = ContainerRequest { id: "box".into(), checkpoint: true, ..ContainerRequest::default() };
            change(&mut request);
            namespace.containers().create(&image, &request)
        };
        let wrong = make(&|c| c.runtime = "runc".into()).await.info().await.unwrap_err();
        refused(&wrong, "ask for the runtime native");
        let tty = make(&|c| c.options.terminal = true).await.info().await.unwrap_err();
        refused(&tty, "without a terminal");
        let mount = make(&|c| {
            let source = cofferdam_client::MountSource::Tmpfs(0);
            c.options.mounts.push(cofferdam_client::BindMount {
                target: "/data".into(),
                source,
                read_only: false,
                options: Vec::new(),
            });
        });
        refused(&mount.await.info().await.unwrap_err(), "/data");
        let plain = namespace.images().get(BUSYBOX);
        let request = ContainerRequest { id: "box".into(), checkpoint: true, ..ContainerRequest::default() };
        refused(&namespace.containers().create(&plain, &request).info().await.unwrap_err(), "no checkpoint");

        let network = make(&|c| c.options.network = Network::Host).await.info().await.unwrap_err();
        refused(&network, "/etc/hosts");

        // Fewer rights than they had are not enough: looked at before anything runs, and said at the start.
        let fails = async |container: &Container, word: &str| {
            let task = container.create_task_from(&image, Stdio::default(), true);
            refused(&task.start().await.unwrap_err(), word);
            let exit = task.wait().await.unwrap();
            assert_eq!((exit.status, &*exit.reason), (126, "could not be restored"));
            container.remove(false).await.unwrap();
        };
        fails(&make(&|c| c.options.cap_drop = vec!["ALL".into()]).await, "capabilities").await;
        // Files that the processes need are gone: criu says so.
        let other = with(&namespace, "box", "rm -rf /bin", |_| {});
        let task = other.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        task.wait().await.unwrap();
        task.delete().await.unwrap();
        fails(&other, "criu can't restore it").await;
        image_ends(&namespace).await;
    });
    daemon.settles(&before);
}

/// A criu that waits for a word before each thing that it does. Gives the file that says that it waits, and the one that
/// is the word.
fn hesitant(dir: &std::path::Path) -> (String, PathBuf, PathBuf) {
    use std::os::unix::fs::PermissionsExt as _;
    let (waits, word, program) = (dir.join("waits"), dir.join("word"), dir.join("criu"));
    let script = format!(
        "#!/bin/sh\ntouch {}\nwhile [ ! -e {} ]; do sleep 0.02; done\nexec {} \"$@\"\n",
        waits.display(),
        word.display(),
        criu()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    (program.display().to_string(), waits, word)
}

#[test]
fn a_daemon_that_dies_meanwhile_leaves_a_container_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (program, waits, word) = hesitant(dir.path());
    let flags: &'static [&'static str] = Box::leak(Box::new(["--criu", &*Box::leak(program.into_boxed_str())]));
    let daemon = Daemon::with_flags(flags);
    daemon.import_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let run = start(&client, daemon.run("box", ["sh", "-c", COUNT])).await;
        let job = run.task().checkpoint(&named(false));
        let asked = tokio::task::spawn_local(job.wait());
        until_async("criu waits", async || waits.exists().then_some(())).await;
        assert_eq!(run.task().state().await.unwrap().status, Status::Paused);
        let twice = run.task().checkpoint(&CheckpointOptions { name: "x/y".into(), ..named(true) });
        refused(&twice.wait().await.unwrap_err(), "being checkpointed");
        // Nor is anything started, which would stand still before it is there; and the shim answers.
        let options = ProcessOptions { args: ["true"].map(String::from).into(), ..ProcessOptions::default() };
        let exec = run.task().exec("more", &options, Stdio::default());
        refused(&exec.start().await.unwrap_err(), "being checkpointed");
        assert_eq!(exec.state().await.unwrap().status, Status::Created);
        exec.delete().await.unwrap();
        daemon.kill9();
        assert!(asked.await.unwrap().is_err());
        daemon.restart();
        std::fs::write(&word, "").unwrap();
        let namespace = daemon.open().await;
        let container = namespace.containers().get("box");
        let task = container.task();
        // The shim finishes what it began, and lets it go on.
        until_async("it can be paused again", async || task.pause().await.ok()).await;
        task.resume().await.unwrap();
        assert_eq!(task.state().await.unwrap().status, Status::Running);
        assert_eq!(namespace.images().get(CHECKPOINT).info().await.unwrap_err().code, Code::NotFound);
        let options = CheckpointOptions { leave_running: true, ..named(true) };
        task.checkpoint(&options).wait().await.unwrap();
        end(&task).await;
        container.remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

// K2: what an archive calls a checkpoint names nothing: neither that nor what lies beside it.
#[test]
fn k2_a_checkpoint_takes_no_name_from_its_archive() {
    let daemon = daemon();
    bounded(async {
        let namespace = daemon.open().await;
        let (container, task, _arrivals) = counting(&namespace, "native", COUNT).await;
        task.checkpoint(&named(false)).wait().await.unwrap();
        task.wait().await.unwrap();
        container.remove(false).await.unwrap();
        let image = namespace.images().get(CHECKPOINT);
        let (archive, dir) = (daemon.path().join("checkpoint.tar"), daemon.path().join("taken-apart"));
        image.export_fd(File::create_new(&archive).unwrap().into()).wait().await.unwrap();
        let tar = |how: &str, what: &[&str]| {
            let mut tar = std::process::Command::new("tar");
            assert!(tar.arg(how).arg(&archive).arg("-C").arg(&dir).args(what).status().unwrap().success());
        };
        std::fs::create_dir(&dir).unwrap();
        tar("-xf", &[]);
        let list = async || {
            let mut list = namespace.images().list::<&str>(&[]).all().await.unwrap();
            list.sort_by(|a, b| a.name.cmp(&b.name));
            list.into_iter().map(|info| (info.name, info.target.digest)).collect::<Vec<_>>()
        };
        let before = list().await;
        let path = dir.join("index.json");
        let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for name in [BUSYBOX, "docker.io/evil/image:latest"] {
            let names = serde_json::json!({
                "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name,
            });
            for manifest in index["manifests"].as_array_mut().unwrap() {
                manifest["annotations"] = names.clone();
            }
            std::fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
            tar("-cf", &["index.json", "oci-layout", "blobs"]);
            let import = |name: &str| {
                let options = ImportOptions { name: name.into(), ..ImportOptions::default() };
                namespace.images().import_fd(&options, File::open(&archive).unwrap().into())
            };
            let unnamed = import("").wait().await.unwrap_err();
            assert!(unnamed.message.contains("give it a name"), "{unnamed}");
            assert_eq!(list().await, before);
            assert_eq!(import("test/mine:1").wait().await.unwrap(), ["docker.io/test/mine:1"]);
            let mut now = list().await;
            now.retain(|(name, _)| name != "docker.io/test/mine:1");
            assert_eq!(now, before);
            namespace.images().remove("docker.io/test/mine:1").await.unwrap();
        }
    });
}

// Z3: a checkpoint brings no bounds of its own: what is restored keeps within those of the grant that it comes back through.
#[test]
fn z3_what_is_restored_keeps_within_the_grant_that_it_comes_through() {
    let daemon = daemon();
    bounded(async {
        let operator = daemon.open().await;
        let container = with(&operator, "box", COUNT, |request| request.options.memory = 256 << 20);
        let (stdout, arrivals) = output();
        let task = container.create_task(streams(stdout), false);
        task.start().await.unwrap();
        counted(&arrivals, 3).await;
        task.checkpoint(&named(false)).wait().await.unwrap();
        task.wait().await.unwrap();
        container.remove(false).await.unwrap();

        let most = 64 << 20;
        let options = GrantOptions { rights: words("write run host"), memory: most, ..GrantOptions::default() };
        let (client, grant) = holder(&daemon, &operator, &options).await;
        let theirs = client.namespace("");
        let image = theirs.images().get(CHECKPOINT);
        let asks = |memory: u64| {
            let mut request = ContainerRequest { id: "again".into(), checkpoint: true, ..ContainerRequest::default() };
            request.options.memory = memory;
            theirs.containers().create(&image, &request)
        };
        let error = denied(asks(most + 1).info()).await;
        assert!(error.message.contains("the grant lets it"), "{error}");
        let made = asks(0);
        let (stdout, arrivals) = output();
        let task = made.create_task_from(&image, streams(stdout), false);
        task.start().await.unwrap();
        counted(&arrivals, 3).await;
        let limit = task.metrics().await.unwrap().memory.unwrap().limit;
        assert_eq!(limit, most, "it is what the kernel holds it to");
        operator.grants().get(&grant).revoke().await.unwrap();
        let ours = operator.containers().get("again");
        let more = format!(r#"{{"memory":{{"limit":{}}}}}"#, most + 1);
        denied(ours.update_resources(more.as_bytes())).await;
        end(&ours.task()).await;
        ours.remove(false).await.unwrap();
    });
}
