//! Daemon and shims are killed at random under runs that go side by side: each run has one end, and nothing stays.

use std::{collections::BTreeMap, time::Duration};

use cofferdam_client::Exit;
use cofferdam_integration::{Daemon, bounded, processes};
use cofferdam_types::{Code, Error};
use nix::sys::signal::Signal;

use crate::{
    exits,
    random::{Random, seed},
};

/// Runs side by side.
const RUNS: u64 = 4;

/// What a client may be told: the container's own end, that its shim was killed, or that this happened before there
/// was anything that could end.
fn check(id: &str, code: u32, outcome: &Result<Exit, Error>) {
    match outcome {
        Ok(exit) if exit.reason.is_empty() => assert_eq!(exit.status, code, "{id}"),
        Ok(exit) => assert_eq!((exit.status, &*exit.reason), (137, "shim lost"), "{id}"),
        Err(error) => {
            assert!(error.code == Code::Unavailable && ["shim", "process"].contains(&&*error.kind), "{id}: {error}");
        }
    }
}

#[test]
fn each_run_has_one_end_whatever_is_killed() {
    let seed = seed();
    let rounds = if std::env::var_os("COFFERDAM_LONG").is_some() { 150 } else { 15 };
    let mut random = Random::new(seed);
    println!("seed {seed}");
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let (mut ends, mut told) = (BTreeMap::<String, u32>::new(), BTreeMap::new());
    for round in 0..rounds {
        bounded(async {
            let client = daemon.client().await;
            let runs: Vec<_> = (0..RUNS)
                .map(|n| {
                    let (id, code) = (format!("r{round}-{n}"), 1 + (round * RUNS + n) as u32 % 100);
                    let script = format!("sleep 0.0{}; exit {code}", random.below(10));
                    let mut request = daemon.run(&id, ["sh", "-c", &script]);
                    request.container.remove_on_exit = true;
                    (id, code, client.run(request).unwrap())
                })
                .collect();
            let waits = futures::future::join_all(runs.iter().map(|(.., run)| run.wait()));
            let kills: Vec<_> = (0..3).map(|_| (random.below(25_000), random.below(3), random.below(100))).collect();
            let storm = async {
                for (pause, what, which) in kills {
                    tokio::time::sleep(Duration::from_micros(pause)).await;
                    if what == 0 {
                        daemon.restart();
                        continue;
                    }
                    let mut shims = processes(daemon.path());
                    shims.retain(|(_, name)| name == "coffer-shim");
                    if !shims.is_empty() {
                        let (pid, _) = shims[which as usize % shims.len()];
                        // It may have ended by itself.
                        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
                    }
                }
            };
            let (outcomes, ()) = tokio::join!(waits, storm);
            for ((id, code, _), outcome) in runs.iter().zip(&outcomes) {
                check(id, *code, outcome);
                let how = match outcome {
                    Ok(exit) if exit.reason.is_empty() => "its own end",
                    Ok(_) => "shim lost",
                    Err(_) => "an error",
                };
                *ends.entry(how.to_owned()).or_default() += 1;
                told.insert(id.clone(), outcome.as_ref().ok().map(|exit| u64::from(exit.status)));
            }
        });
    }
    bounded(async {
        let journal = exits(&daemon.client().await, daemon.namespace()).await;
        for (id, status) in &told {
            let found = journal.get(id).map(Vec::as_slice).unwrap_or_default();
            match status {
                Some(status) => assert_eq!(found, [*status], "{id}"),
                None => assert!(found.len() <= 1, "{id}: {found:?}"),
            }
        }
        let left = daemon.open().await.containers().list::<&str>(&[]).all().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    });
    println!("{rounds} rounds: {ends:?}");
    daemon.settles(&before);
}
