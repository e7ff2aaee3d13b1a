//! Containers of a group: one shim for all of them.

use std::path::PathBuf;

use cofferdam_client::{Container, ContainerRequest, Namespace, ProcessOptions, Run, Status, Stdio};
use cofferdam_integration::{
    BUSYBOX, Daemon, bounded, descriptors, fill, input, output, script, small_disk, until, until_async,
};
use cofferdam_types::Code;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    ends_when_told,
    faults::{Neighbour, exhaust},
    late::{hook, hooked},
    runs, send, shim_of, start, tell, until_ended,
};

/// A member of the group `pod` that ends when it is told to.
async fn member(daemon: &Daemon, id: &str, runtime: &str) -> (Run, u32, std::fs::File) {
    let (mut request, file) = ends_when_told(daemon, id);
    request.container.group = "pod".into();
    request.container.runtime = runtime.into();
    let (run, pid) = start(&daemon.client().await, request).await;
    (run, pid, file)
}

async fn task_of(namespace: &Namespace, id: &str) -> cofferdam_client::TaskInfo {
    let container: Container = namespace.containers().get(id);
    container.info().await.unwrap().task.unwrap()
}

fn share_one_shim(runtime: &str) {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let (_a, first, tell_a) = member(&daemon, "a", runtime).await;
        let (_b, second, tell_b) = member(&daemon, "b", runtime).await;
        let shim = shim_of(first);
        assert_eq!(shim, shim_of(second));
        assert_eq!(namespace.containers().get("a").info().await.unwrap().group, "pod");

        // One that ends and goes leaves the others.
        tell(&tell_a, 3);
        assert_eq!(namespace.containers().get("a").task().wait().await.unwrap().status, 3);
        namespace.containers().get("a").remove(false).await.unwrap();
        assert!(runs(second) && runs(shim));
        let (_c, third, tell_c) = member(&daemon, "c", runtime).await;
        assert_eq!(shim_of(third), shim);

        // Each is found again.
        daemon.kill9();
        daemon.restart();
        let namespace = daemon.open().await;
        for (id, pid) in [("b", second), ("c", third)] {
            let state = namespace.containers().get(id).task().state().await.unwrap();
            assert_eq!((state.status, state.pid), (Status::Running, pid));
        }
        let (_d, fourth, _tell_d) = member(&daemon, "d", runtime).await;
        assert_eq!(shim_of(fourth), shim);
        tell(&tell_b, 4);
        assert_eq!(namespace.containers().get("b").task().wait().await.unwrap().status, 4);

        // The shim's end is the end of all.
        send(shim, Signal::SIGKILL);
        for (id, pid) in [("c", third), ("d", fourth)] {
            let exit = namespace.containers().get(id).task().wait().await.unwrap();
            assert_eq!((exit.status, &*exit.reason), (137, "shim lost"));
            until_ended(pid);
        }
        assert_eq!(task_of(&namespace, "b").await.exit.unwrap().status, 4);
        drop(tell_c);

        // The next one has another shim.
        let (_e, fifth, _tell_e) = member(&daemon, "e", runtime).await;
        assert_ne!(shim_of(fifth), shim);
        let alone = shim_of(fifth);
        for id in ["b", "c", "d", "e"] {
            namespace.containers().get(id).remove(true).await.unwrap();
        }
        // With its last container it ends.
        until_ended(alone);
    });
    daemon.settles(&before);
}

#[test]
fn native_containers_share_one_shim() {
    share_one_shim("native");
}

#[test]
fn runc_containers_share_one_shim() {
    share_one_shim("runc");
}

#[test]
fn comings_and_goings_of_a_group_meet() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        // A shim that ends with its last container is never the one that the next is given to.
        for round in 0..5 {
            let client = daemon.client().await;
            let members = (0..4).map(|n| {
                let mut request = daemon.run(&format!("m{round}-{n}"), ["true"]);
                request.container.group = "pod".into();
                request.container.remove_on_exit = true;
                client.run(request).unwrap()
            });
            let members: Vec<_> = members.collect();
            for member in members {
                assert_eq!(member.wait().await.unwrap().status, 0);
            }
        }
    });
    // Neither a shim nor a directory of one.
    until("all shims are gone", || {
        let left = std::fs::read_dir(daemon.state().join("shims")).unwrap().count();
        let runs = format!("{:?}", daemon.leftovers()).contains("coffer-shim");
        (left == 0 && !runs).then_some(())
    });
}

#[test]
fn a_shim_says_how_it_is() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (_a, first, _tell_a) = member(&daemon, "a", "native").await;
        let (_b, _, _tell_b) = member(&daemon, "b", "native").await;
        let shims = client.system().shims().all().await.unwrap();
        let [shim] = shims.as_slice() else { panic!("{shims:?}") };
        assert_eq!(
            (shim.state.as_str(), shim.containers.as_slice()),
            ("there", ["a", "b"].map(String::from).as_slice())
        );
        assert_eq!((shim.group.as_str(), shim.namespace.as_str()), ("pod", daemon.namespace()));
        let state = client.system().shim(&shim.id).await.unwrap();
        assert_eq!((state.pid, &state.info), (shim_of(first), shim));
        assert!(
            state.version >= 1 && state.descriptors > 3 && state.resident > 0 && state.proportional > 0,
            "{state:?}"
        );
        let ids: Vec<&str> = state.containers.iter().map(|container| container.id.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
        assert_eq!(state.containers[0].processes[0].pid, first);

        // One that hangs is told of as such, and holds up no list.
        send(state.pid, Signal::SIGSTOP);
        let error = client.system().shim(&shim.id).await.unwrap_err();
        assert_eq!((error.code, &*error.kind), (Code::Unavailable, "shim"), "{error}");
        assert_eq!(client.system().shims().all().await.unwrap().len(), 1);
        send(state.pid, Signal::SIGCONT);
        until_async("it answers again", async || client.system().shim(&shim.id).await.ok()).await;
        for bad in ["nobody", "../..", ""] {
            assert_eq!(client.system().shim(bad).await.unwrap_err().code, Code::NotFound);
        }
        let said = daemon.coffer(&["shim", "ls"]);
        assert!(String::from_utf8_lossy(&said.stdout).contains(&shim.id), "{said:?}");
        let said = daemon.coffer(&["shim", "state", &shim.id]);
        assert!(String::from_utf8_lossy(&said.stdout).contains("\"descriptors\""), "{said:?}");
        for id in ["a", "b"] {
            client.namespace(daemon.namespace()).containers().get(id).remove(true).await.unwrap();
        }
    });
}

/// Whatever holds the shim up meanwhile: those who live in it go on.
#[test]
fn a_member_that_goes_takes_nobody_along() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let runtime = daemon.path().join("slow");
    script(&runtime, "#!/bin/sh\ncase \" $* \" in *' create '*) sleep 6 ;; esac\nexec runc \"$@\"\n");
    bounded(async {
        let namespace = daemon.open().await;
        let (b, runs_on, tell_b) = member(&daemon, "b", "native").await;
        // Its own hook takes long.
        let request = ContainerRequest { id: "a".into(), group: "pod".into(), ..ContainerRequest::default() };
        let mark = daemon.path().join("mark");
        let hooks = json!({"poststop": hook(&format!("sleep 6; touch {}", mark.display()))});
        let a = hooked(&namespace, &request, "exit 3", hooks).await;
        let task = a.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 3);
        a.remove(false).await.unwrap();
        assert!(mark.exists() && runs(runs_on));
        // The runtime of another.
        let (_d, _, tell_d) = member(&daemon, "d", "native").await;
        tell(&tell_d, 5);
        assert_eq!(namespace.containers().get("d").task().wait().await.unwrap().status, 5);
        let (mut request, _tell_c) = ends_when_told(&daemon, "c");
        request.container.group = "pod".into();
        request.container.runtime = runtime.to_str().unwrap().into();
        let client = daemon.client().await;
        let (c, d) = tokio::join!(start(&client, request), async {
            until_async("the runtime is at it", async || {
                let all = cofferdam_integration::all_processes(&daemon.state());
                all.iter().any(|(_, name)| name == "slow").then_some(())
            })
            .await;
            namespace.containers().get("d").remove(false).await
        });
        d.unwrap();
        assert!(runs(runs_on) && runs(c.1));
        // Nor does it where the shim doesn't answer at all; by force it does.
        let (_e, _, tell_e) = member(&daemon, "e", "native").await;
        tell(&tell_e, 6);
        let e = namespace.containers().get("e");
        assert_eq!(e.task().wait().await.unwrap().status, 6);
        let shim = shim_of(runs_on);
        send(shim, Signal::SIGSTOP);
        let error = e.remove(false).await.unwrap_err();
        assert!(matches!(error.code, Code::DeadlineExceeded | Code::Unavailable), "{error}");
        let error = e.remove(false).await.unwrap_err();
        assert!(matches!(error.code, Code::DeadlineExceeded | Code::Unavailable), "{error}");
        send(shim, Signal::SIGCONT);
        until_async("it can be removed", async || e.remove(false).await.ok()).await;
        assert!(runs(runs_on) && runs(shim));
        tell(&tell_b, 4);
        assert_eq!(b.wait().await.unwrap().status, 4);
        for id in ["b", "c"] {
            namespace.containers().get(id).remove(true).await.unwrap();
        }
    });
    daemon.settles(&before);
}

/// A child of this shim that stands still and is not the program that it is to be.
fn stopped(shim: u32, program: &str) -> Option<()> {
    let stands = |stat: &str| {
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let (state, parent) = (fields.next()?, fields.next()?);
        (state == "T" && parent == shim.to_string() && name != program).then_some(())
    };
    let all = std::fs::read_dir("/proc").unwrap();
    all.flatten().find_map(|entry| stands(&std::fs::read_to_string(entry.path().join("stat")).ok()?))
}

/// Who is in a container sees what is run there before it is its program, and can stop it.
#[test]
fn a_member_that_stops_what_is_run_in_it_holds_up_itself_alone() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let (b, second, tell_b) = member(&daemon, "b", "native").await;
        let (c, _, tell_c) = member(&daemon, "c", "native").await;
        // The first process of a namespace, which is spared itself.
        let mut request = daemon.run("a", ["sh", "-c", "while :; do kill -STOP -1; done"]);
        request.container.group = "pod".into();
        let (a, first) = start(&client, request).await;
        let shim = shim_of(first);
        assert_eq!(shim, shim_of(second));
        let options = ProcessOptions { args: ["true".to_owned()].into(), ..ProcessOptions::default() };
        let stand = async |name: &str| {
            for n in 0.. {
                let exec = a.task().exec(&format!("{name}-{n}"), &options, Stdio::default());
                let mut starting = exec.start();
                tokio::select! {
                    // It was too fast.
                    started = &mut starting => drop(started.unwrap()),
                    () = until_async("it stands still", async || stopped(shim, "true")) => return (exec, starting),
                }
            }
            unreachable!()
        };
        let (exec, starting) = stand("killed").await;
        // The others are asked, run in and told of.
        assert_eq!(b.task().state().await.unwrap().status, Status::Running);
        for n in 0..5 {
            let beside = b.task().exec(&format!("beside-{n}"), &options, Stdio::default());
            beside.start().await.unwrap();
            assert_eq!(beside.wait().await.unwrap().status, 0);
        }
        tell(&tell_c, 5);
        assert_eq!(c.wait().await.unwrap().status, 5);
        c.container().remove(false).await.unwrap();
        assert!(stopped(shim, "true").is_some(), "it stood still all the time");
        // It can be killed by itself, and goes with its container.
        exec.kill(9, false).await.unwrap();
        assert_eq!(starting.await.unwrap_err().code, Code::Cancelled);
        assert_eq!(exec.wait().await.unwrap().status, 137);
        assert_eq!(exec.delete().await.unwrap().status, 137);
        let (_exec, _starting) = stand("removed").await;
        a.container().remove(true).await.unwrap();
        assert!(runs(second) && runs(shim));
        tell(&tell_b, 4);
        assert_eq!(b.wait().await.unwrap().status, 4);
        b.container().remove(false).await.unwrap();
        until_ended(shim);
    });
    daemon.settles(&before);
}

/// A runtime that has made a container and says so when it is told to; and what tells it.
fn held(daemon: &Daemon) -> (String, [PathBuf; 2]) {
    let [runtime, made, go] = ["held", "made", "go"].map(|name| daemon.path().join(name));
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in *' create '*) runc \"$@\" || exit 1; touch {made}\n\
         while [ ! -e {go} ]; do sleep 0.01; done; exit 0 ;; esac\nexec runc \"$@\"\n",
        made = made.display(),
        go = go.display(),
    );
    script(&runtime, &text);
    (runtime.to_str().unwrap().to_owned(), [made, go])
}

/// Nobody's record says whose it is, and its shim has others.
#[test]
fn what_a_lost_daemon_was_making_does_not_stay_with_the_others() {
    let daemon = small_disk(64, 4096);
    daemon.import_busybox();
    let before = daemon.leftovers();
    let (runtime, [made, go]) = held(&daemon);
    bounded(async {
        let (_a, first, tell_a) = member(&daemon, "a", "native").await;
        let shim = shim_of(first);
        let namespace = daemon.open().await;
        let mut request = ContainerRequest { id: "b".into(), group: "pod".into(), ..ContainerRequest::default() };
        (request.runtime, request.options.args) = (runtime, ["sleep", "1000"].map(String::from).into());
        let b = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
        b.info().await.unwrap();
        let neighbour = Neighbour(Some(fill(&daemon.root(), 0)));
        exhaust(&namespace.events()).await;
        // Without a log, for which there is no room.
        let task = b.create_task(Stdio::default(), false);
        tokio::select! {
            state = task.state() => panic!("{state:?}"),
            () = until_async("it is made", async || made.exists().then_some(())) => {}
        }
        daemon.kill9();
        drop(neighbour);
        std::fs::write(&go, "").unwrap();
        daemon.restart();

        let client = daemon.client().await;
        let namespace = daemon.open().await;
        until_async("the shim has it no more", async || {
            let shims = client.system().shims().all().await.unwrap();
            let [info] = shims.as_slice() else { return None };
            let state = client.system().shim(&info.id).await.ok()?;
            let ids: Vec<_> = state.containers.iter().map(|container| container.id.as_str()).collect();
            (ids == ["a"]).then_some(())
        })
        .await;
        // Its name is free, with those that it had.
        let b = namespace.containers().get("b");
        let task = b.create_task(Stdio::default(), true);
        assert_eq!(shim_of(task.start().await.unwrap()), shim);
        b.remove(true).await.unwrap();
        tell(&tell_a, 3);
        assert_eq!(namespace.containers().get("a").task().wait().await.unwrap().status, 3);
        namespace.containers().get("a").remove(false).await.unwrap();
        until_ended(shim);
    });
    daemon.settles(&before);
}

#[test]
fn a_shim_that_dies_while_it_makes_a_member_leaves_nothing_of_either() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let (runtime, [made, go]) = held(&daemon);
    bounded(async {
        let (a, first, _tell_a) = member(&daemon, "a", "native").await;
        let shim = shim_of(first);
        let namespace = daemon.open().await;
        let mut request = ContainerRequest { id: "b".into(), group: "pod".into(), ..ContainerRequest::default() };
        (request.runtime, request.options.args) = (runtime, ["sleep", "1000"].map(String::from).into());
        let b = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
        let task = b.create_task(Stdio::default(), true);
        let (state, ()) = tokio::join!(task.state(), async {
            until_async("it is made", async || made.exists().then_some(())).await;
            send(shim, Signal::SIGKILL);
        });
        let error = state.unwrap_err();
        assert_eq!((error.code, &*error.kind), (Code::Unavailable, "shim"), "{error}");
        let exit = a.wait().await.unwrap();
        assert_eq!((exit.status, &*exit.reason), (137, "shim lost"));
        std::fs::write(&go, "").unwrap();
        // Both have another one.
        let pid = b.create_task(Stdio::default(), true).start().await.unwrap();
        let (_c, other, _tell_c) = member(&daemon, "c", "native").await;
        assert_eq!(shim_of(pid), shim_of(other));
        for id in ["a", "b", "c"] {
            namespace.containers().get(id).remove(true).await.unwrap();
        }
    });
    daemon.settles(&before);
}

/// Not even while nobody knows whether that lives.
#[test]
fn a_group_is_not_parted_by_a_shim_that_does_not_answer() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let (_a, first, _tell_a) = member(&daemon, "a", "native").await;
        let shim = shim_of(first);
        send(shim, Signal::SIGSTOP);
        // It is looked for, and then it is out of reach.
        daemon.kill9();
        daemon.restart();
        let namespace = daemon.open().await;
        let request = ContainerRequest { id: "b".into(), group: "pod".into(), ..daemon.run("b", ["true"]).container };
        let b = namespace.containers().create(&namespace.images().get(BUSYBOX), &request);
        for _ in 0..2 {
            let error = b.create_task(Stdio::default(), false).state().await.unwrap_err();
            assert_eq!((error.code, &*error.kind, &*error.id), (Code::Unavailable, "group", "pod"), "{error}");
        }
        send(shim, Signal::SIGCONT);
        let task = until_async("it can be joined", async || {
            let task = b.create_task(Stdio::default(), false);
            task.state().await.ok().map(|_| task)
        })
        .await;
        assert_eq!(shim_of(task.state().await.unwrap().pid), shim);
        for id in ["a", "b"] {
            namespace.containers().get(id).remove(true).await.unwrap();
        }
        until_ended(shim);
    });
}

/// Pipes, terminals, logs, other processes: it holds what those hold who are there.
#[test]
fn a_shim_holds_nothing_open_of_members_that_went() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let (_a, first, tell_a) = member(&daemon, "a", "native").await;
        let shim = shim_of(first);
        let live = async |n: usize, runtime: &str, terminal: bool| {
            let mut request = daemon.run(&format!("m{n}"), ["sh", "-c", "echo said; read end; exit 5"]);
            (request.container.group, request.container.runtime) = ("pod".into(), runtime.into());
            (request.container.options.terminal, request.log) = (terminal, true);
            let (stdin, end) = input();
            let (stdout, said) = output();
            request.stdio = Stdio { stdin, stdout, ..Stdio::default() };
            let (run, pid) = start(&client, request).await;
            assert_eq!(shim_of(pid), shim);
            let options = ProcessOptions { args: ["true".to_owned()].into(), ..ProcessOptions::default() };
            let exec = run.task().exec("more", &options, Stdio::default());
            exec.start().await.unwrap();
            assert_eq!(exec.wait().await.unwrap().status, 0);
            said.contains("said").await;
            tell(&end, 0);
            assert_eq!(run.wait().await.unwrap().status, 5);
            run.container().remove(false).await.unwrap();
        };
        let round = async |n: usize| {
            for (at, runtime) in ["native", "runc"].iter().enumerate() {
                for terminal in [false, true] {
                    live(n + 2 * at + usize::from(terminal), runtime, terminal).await;
                }
            }
        };
        // What it opens once it keeps.
        round(0).await;
        let mut open = descriptors(shim);
        until("they are the same twice", || {
            let now = descriptors(shim);
            (std::mem::replace(&mut open, now.clone()) == now).then_some(())
        });
        for n in 1..4 {
            round(10 * n).await;
        }
        // What was let go of before may have been there still, twice.
        until("it holds no more than it held", || {
            let held = |kind| open.get(kind).copied().unwrap_or_default();
            descriptors(shim).iter().all(|(kind, now)| *now <= held(kind)).then_some(())
        });
        tell(&tell_a, 0);
        client.namespace(daemon.namespace()).containers().get("a").task().wait().await.unwrap();
        client.namespace(daemon.namespace()).containers().get("a").remove(false).await.unwrap();
    });
    daemon.settles(&before);
}
