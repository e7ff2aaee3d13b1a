//! What one connection may have, and that another doesn't feel it.

use std::{fs::File, io::Read as _, os::fd::OwnedFd};

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use cofferdam_integration::{Daemon, bounded, pipe, until_async};
use cofferdam_types::{Code, Error};
use cofferdam_wire::{connect, fdstream::PARKED, gate_capnp::gate};
use futures::{StreamExt as _, stream::FuturesUnordered};
use nix::sys::signal::Signal;

use crate::{ends_when_told, send, shim_of, start, tell};

#[test]
fn a_connection_over_its_calls_is_cut_alone() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (request, file) = ends_when_told(&daemon, "box");
        let (run, _) = start(&client, request).await;
        let within = daemon.client().await;
        let task = within.namespace(daemon.namespace()).containers().get("box").task();
        task.state().await.unwrap();
        let full: Vec<_> = (0..256).map(|_| task.wait()).collect();

        let greedy = daemon.client().await;
        let task = greedy.namespace(daemon.namespace()).containers().get("box").task();
        task.state().await.unwrap();
        let waits: Vec<_> = (0..257).map(|_| task.wait()).collect();
        let mut refused = 0;
        for wait in waits {
            let error = wait.await.unwrap_err();
            match error.code {
                Code::ResourceExhausted => refused += 1,
                _ => assert!(cofferdam_client::is_lost(&error), "{error:?}"),
            }
        }
        assert_eq!(refused, 1, "the one over budget is told why");
        assert!(cofferdam_client::is_lost(&task.state().await.unwrap_err()));

        // The one that is just within its budget is served, and so is everybody else.
        tell(&file, 3);
        for wait in full {
            assert_eq!(wait.await.unwrap().status, 3);
        }
        assert_eq!(run.wait().await.unwrap().status, 3);
        drop(greedy);
        until_async("it is counted no longer", async || {
            let status = client.system().status().await.unwrap();
            (status.connections == 2).then_some(())
        })
        .await;
    });
}

#[test]
fn descriptors_that_nobody_takes_are_closed() {
    let daemon = Daemon::start();
    // Pipes alone: connections of before may be on their way out.
    let open = || {
        let all = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        let targets = all.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("pipe:")).count()
    };
    bounded(async {
        let stream = tokio::net::UnixStream::connect(daemon.socket()).await.unwrap();
        let (network, fds) = connect::network(stream, Side::Client, connect::MESSAGE);
        let mut system = RpcSystem::new(Box::new(network), None);
        let gate: gate::Client = system.bootstrap(Side::Server);
        let task = tokio::task::spawn_local(system);
        gate.hello_request().send().promise.await.unwrap();
        let before = open();
        let pipes: Vec<OwnedFd> = (0..PARKED + 6)
            .map(|_| {
                let (read, write) = pipe();
                fds.push(write);
                read
            })
            .collect();
        // Behind a few more messages all of them have gone over.
        for _ in 0..8 {
            gate.hello_request().send().promise.await.unwrap();
        }
        assert_eq!(open() - before, PARKED);
        let mut pipes: Vec<File> = pipes.into_iter().map(File::from).collect();
        for pipe in &mut pipes[..6] {
            // The oldest were closed: end of file.
            assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
        }
        task.abort();
        drop((gate, fds));
        let _ = task.await;
        // And the rest goes with the connection.
        for pipe in &mut pipes[6..] {
            assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
        }
    });
}

#[test]
fn a_message_that_is_too_large_ends_its_connection_alone() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let greedy = daemon.client().await;
        greedy.hello().await.unwrap();
        let filter = "x".repeat(2 << 20);
        let list = greedy.namespace(daemon.namespace()).containers().list(&[filter]);
        let error = list.all().await.unwrap_err();
        assert!(matches!(error.code, Code::Unavailable | Code::ResourceExhausted | Code::InvalidArgument), "{error:?}");
        assert_eq!(client.system().status().await.unwrap().state, "ready");
        let mut request = daemon.run("after", ["true"]);
        request.container.remove_on_exit = true;
        assert_eq!(client.run(request).unwrap().wait().await.unwrap().status, 0);
    });
}

#[test]
fn too_many_subscriptions_cut_their_connection_alone() {
    let daemon = Daemon::start();
    bounded(async {
        let other = daemon.client().await;
        let greedy = daemon.client().await;
        let events = greedy.namespace(daemon.namespace()).events();
        let mut kept: Vec<_> = (0..64).map(|_| events.subscribe::<&str>(0, &[])).collect();
        for subscription in &mut kept {
            subscription.next().await.unwrap().expect("no gap");
        }
        // One that is let go of makes room.
        kept.pop();
        events.last().await.unwrap();
        let mut room = events.subscribe::<&str>(0, &[]);
        room.next().await.unwrap().expect("no gap");
        let error = events.subscribe::<&str>(0, &[]).next().await.unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted, "{error:?}");
        until_async("the connection is cut", async || events.last().await.is_err().then_some(())).await;
        assert_eq!(other.system().status().await.unwrap().state, "ready");
    });
}

#[test]
fn readers_who_do_not_read_hold_up_nobody() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let blobs = namespace.content().list::<&str>(&[]).all().await.unwrap();
        let layer = blobs.iter().max_by_key(|blob| blob.size).unwrap();
        assert!(layer.size > 1 << 20, "more than a pipe holds");
        let blob = namespace.content().get(&layer.digest.to_string());
        let (mut pipes, mut never) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let (read, write) = pipe();
            pipes.push(read);
            never.push(blob.read_fd(0, 0, write));
        }
        blob.info().await.unwrap();
        // All threads would be held by now.
        let (read, write) = pipe();
        let reader = std::thread::spawn(move || std::io::copy(&mut File::from(read), &mut std::io::sink()).unwrap());
        blob.read_fd(0, 0, write).await.unwrap();
        assert_eq!(reader.join().unwrap(), layer.size);
        // Who goes on reading gets all of it, and who goes away ends its call.
        let mut slow = File::from(pipes.remove(0));
        let reader = std::thread::spawn(move || std::io::copy(&mut slow, &mut std::io::sink()).unwrap());
        never.remove(0).await.unwrap();
        assert_eq!(reader.join().unwrap(), layer.size);
        drop(pipes);
        for call in never {
            assert!(call.await.is_err());
        }
    });
}

#[test]
fn a_connection_too_many_is_refused_with_a_reason() {
    let daemon = Daemon::with_flags(&["--connections", "8"]);
    let status = || {
        let said = daemon.coffer(&["system", "status"]);
        (said.status.success(), String::from_utf8(said.stderr).unwrap())
    };
    let connect = || std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
    let mut idle: Vec<_> = (0..8).map(|_| connect()).collect();
    // The daemon takes them one by one. One that met an earlier connection on its way out was refused: another takes its
    // place.
    cofferdam_integration::until("all are taken", || {
        idle.push(connect());
        let (ok, said) = status();
        (!ok).then(|| assert!(said.contains("8 are open, which is all that the daemon takes"), "{said}"))
    });
    drop(idle);
    cofferdam_integration::until("there is room again", || status().0.then_some(()));
}

#[test]
fn a_full_mailbox_refuses_and_leaves_nothing() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let (request, file) = ends_when_told(&daemon, "box");
        let (run, pid) = start(&daemon.client().await, request).await;
        let shim = shim_of(pid);
        send(shim, Signal::SIGSTOP);
        // More than the 4096 that can be under way.
        let mut asked = FuturesUnordered::new();
        for _ in 0..18 {
            let task = daemon.open().await.containers().get("box").task();
            for _ in 0..250 {
                let task = task.clone();
                asked.push(async move { task.pids().await });
            }
        }
        let full = |error: Error| {
            assert_eq!((error.code, &*error.kind, &*error.id), (Code::Unavailable, "actor", "tasks"), "{error}");
            assert!(error.message.contains("overloaded"), "{error}");
        };
        full(asked.next().await.unwrap().unwrap_err());
        let late = async || daemon.client().await.run(daemon.run("late", ["true"])).unwrap().wait().await;
        full(late().await.unwrap_err());
        send(shim, Signal::SIGCONT);
        let mut served = 0;
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(_) => served += 1,
                Err(error) => full(error),
            }
        }
        assert!(served > 4000, "{served}");
        assert_eq!(late().await.unwrap().status, 0);
        daemon.open().await.containers().get("late").remove(false).await.unwrap();
        tell(&file, 0);
        assert_eq!(run.wait().await.unwrap().status, 0);
        run.container().remove(false).await.unwrap();
    });
    daemon.settles(&before);
}
