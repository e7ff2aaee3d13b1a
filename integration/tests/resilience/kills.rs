//! The daemon is killed at random moments while it works.

use std::{
    cell::Cell,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    time::{Duration, Instant},
};

use cofferdam_integration::{BUSYBOX, Daemon, bounded, count};
use cofferdam_types::Code;

use crate::{
    ledger::{COLLECTS, Worker, is_well, registry},
    random::{Random, seed},
};

/// Workers side by side, each with a driver.
const LANES: [&str; 3] = ["overlay", "native", "erofs"];

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    let operations = count(10_000, 150);
    let seed = seed();
    println!("seed {seed}");
    let daemon = Daemon::with_flags(COLLECTS);
    daemon.import_busybox();
    let registry = registry();
    let scratch = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed);
    let clock = Cell::new(0);
    let clock = || {
        clock.set(clock.get() + 1);
        clock.get()
    };
    bounded(async {
        let ns = daemon.open().await;
        for driver in LANES {
            ns.images().get(BUSYBOX).unpack("", driver).await.unwrap();
        }
    });
    let worker = |(driver, seed)| Worker::new((&format!("w-{driver}"), driver), scratch.path(), seed, clock);
    let mut workers: Vec<_> = LANES.into_iter().zip(seed..).map(worker).collect();
    let (began, done, mut kills) = (Instant::now(), Cell::new(0), 0);
    while done.get() < operations {
        let life = Duration::from_micros(random.below(100_000));
        std::thread::scope(|scope| {
            let (daemon, (going, over)) = (&daemon, sync_channel::<()>(0));
            // Those who wait for a container's end find the next daemon.
            scope.spawn(move || {
                if over.recv_timeout(life) == Err(RecvTimeoutError::Timeout) {
                    daemon.restart();
                }
            });
            let _going = going;
            bounded(async {
                let client = daemon.client().await;
                let ns = client.namespace(daemon.namespace());
                let lanes = workers.iter_mut().map(async |worker| {
                    let error = loop {
                        match worker.step(&client, &ns).await {
                            Ok(()) => done.set(done.get() + 1),
                            Err(error) => break error,
                        }
                    };
                    assert_eq!(error.code, Code::Unavailable, "{error}");
                });
                futures::future::join_all(lanes).await;
            });
        });
        kills += 1;
        bounded(async {
            let client = daemon.client().await;
            let ns = client.namespace(daemon.namespace());
            for worker in &mut workers {
                worker.settle(&ns).await;
            }
            is_well(&daemon, &client, &ns, &registry).await;
        });
    }
    let done = done.get();
    println!("long-run: kill -9 | {done} operations, {kills} kills in {} s", began.elapsed().as_secs());
}
