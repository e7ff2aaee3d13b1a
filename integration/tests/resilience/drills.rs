//! A panic of any actor is its own affair.

use std::time::{Duration, Instant};

use cofferdam_client::{Status, SystemStatus};
use cofferdam_integration::{Daemon, bounded, until_async};
use cofferdam_types::Code;

use crate::{ends_when_told, runs, start, tell};

/// Within this an actor is back; the pause before a first restart is 100 ms or less.
const BACK: Duration = Duration::from_secs(2);

fn restarts(status: &SystemStatus) -> Vec<(String, u32)> {
    status.actors.iter().map(|actor| (actor.name.clone(), actor.restarts)).collect()
}

#[test]
fn each_actor_crashes_alone() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let system = client.system();
        let (request, file) = ends_when_told(&daemon, "witness");
        let (witness, pid) = start(&client, request).await;
        let other = daemon.open().await;
        let waiting = other.containers().get("witness").task().wait();
        let mut waiting = std::pin::pin!(waiting);

        let names: Vec<String> = system.status().await.unwrap().actors.into_iter().map(|a| a.name).collect();
        assert!(names.len() >= 8, "{names:?}");
        for name in &names {
            let earlier = restarts(&system.status().await.unwrap());
            let began = Instant::now();
            system.crash(name).await.unwrap();
            // What is asked meanwhile is answered, or refused as something that passes. Nothing hangs, nothing else.
            let mut refused = 0;
            let back = loop {
                match client.namespace(daemon.namespace()).containers().get("witness").task().state().await {
                    Ok(state) => assert_eq!((state.status, state.pid), (Status::Running, pid)),
                    Err(error) => {
                        assert_eq!(error.code, Code::Unavailable, "{name}: {error}");
                        refused += 1;
                    }
                }
                let status = system.status().await.unwrap();
                let actor = status.actors.iter().find(|actor| actor.name == *name).unwrap();
                if actor.health == "up" && actor.restarts > 0 {
                    break began.elapsed();
                }
                assert!(began.elapsed() < BACK, "{name} is not back: {actor:?}");
            };
            let later = restarts(&system.status().await.unwrap());
            for ((actor, earlier), (_, later)) in earlier.iter().zip(&later) {
                assert_eq!(*later, earlier + u32::from(actor == name), "{actor}, where {name} crashed");
            }
            assert!(runs(pid), "{name}");
            // Who waits doesn't notice.
            assert!(futures::poll!(waiting.as_mut()).is_pending(), "{name}");
            // And all of it works.
            let mut request = daemon.run(&format!("after-{name}"), ["sh", "-c", "exit 4"]);
            request.container.remove_on_exit = true;
            request.log = true;
            let exit = client.run(request).unwrap().wait().await.unwrap();
            assert_eq!(exit.status, 4, "{name}");
            println!("{name}: back after {back:?}, {refused} calls refused");
        }
        assert_eq!(system.status().await.unwrap().state, "ready");
        // However often.
        for _ in 0..2 {
            let earlier = restarts(&system.status().await.unwrap());
            system.crash("tasks").await.unwrap();
            until_async("the actor is back", async || {
                let status = system.status().await.unwrap();
                (restarts(&status) != earlier && status.state == "ready").then_some(())
            })
            .await;
            assert!(futures::poll!(waiting.as_mut()).is_pending());
        }
        tell(&file, 12);
        assert_eq!(waiting.await.unwrap().status, 12);
        assert_eq!(witness.wait().await.unwrap().status, 12);
        witness.container().remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

/// A run that is under way when an actor crashes ends well, or says that something was unavailable and leaves nothing.
#[test]
fn a_run_under_way_is_bridged_or_refused() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let system = client.system();
        let names: Vec<String> = system.status().await.unwrap().actors.into_iter().map(|a| a.name).collect();
        for name in &names {
            let id = format!("during-{name}");
            let mut request = daemon.run(&id, ["sh", "-c", "exit 4"]);
            request.container.remove_on_exit = true;
            let run = client.run(request).unwrap();
            system.crash(name).await.unwrap();
            let outcome = run.wait().await;
            until_async("the actor is back", async || {
                let status = system.status().await.unwrap();
                let crashed = status.actors.iter().any(|actor| actor.name == *name && actor.restarts > 0);
                (crashed && status.state == "ready").then_some(())
            })
            .await;
            match outcome {
                Ok(exit) => assert_eq!(exit.status, 4, "{name}"),
                Err(error) => assert!(matches!(error.code, Code::Unavailable | Code::Cancelled), "{name}: {error:?}"),
            }
            // What an interrupted run made is there to be removed, and can be.
            let container = client.namespace(daemon.namespace()).containers().get(&id);
            match container.remove(true).await {
                Ok(()) => println!("{name}: what was made is removed by hand"),
                Err(error) => assert_eq!(error.code, Code::NotFound, "{name}: {error}"),
            }
        }
    });
    daemon.settles(&before);
}

#[test]
fn an_actor_that_is_not_there() {
    let daemon = Daemon::start();
    bounded(async {
        let error = daemon.client().await.system().crash("nonsense").await.unwrap_err();
        assert_eq!((error.code, &*error.id), (Code::NotFound, "nonsense"));
    });
}
