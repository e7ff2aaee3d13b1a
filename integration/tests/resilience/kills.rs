//! The daemon is killed at random moments while it works.

use std::{
    sync::mpsc::{RecvTimeoutError, sync_channel},
    time::{Duration, Instant},
};

use cofferdam_client::is_lost;
use cofferdam_integration::{Daemon, bounded};
use cofferdam_types::Code;

use crate::{
    ledger::{Worker, agrees, is_well},
    random::{Random, seed},
    storm::count,
};

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    let operations = count(10_000, 150);
    let seed = seed();
    println!("seed {seed}");
    let daemon = Daemon::with_busybox();
    let scratch = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed);
    let clock = std::cell::Cell::new(0);
    let mut worker = Worker::new("work", scratch.path(), seed, || {
        clock.set(clock.get() + 1);
        clock.get()
    });
    let (began, mut done, mut kills) = (Instant::now(), 0, 0);
    while done < operations {
        let life = Duration::from_micros(random.below(400_000));
        std::thread::scope(|scope| {
            let (daemon, (going, over)) = (&daemon, sync_channel::<()>(0));
            scope.spawn(move || {
                if over.recv_timeout(life) == Err(RecvTimeoutError::Timeout) {
                    daemon.kill9();
                }
            });
            let _going = going;
            bounded(async {
                let client = daemon.client().await;
                let ns = client.namespace(daemon.namespace());
                loop {
                    match worker.step(&client, &ns).await {
                        Ok(()) => done += 1,
                        Err(error) => {
                            assert!(is_lost(&error) || error.code == Code::Unavailable, "{error}");
                            break;
                        }
                    }
                }
            });
        });
        kills += 1;
        daemon.restart();
        bounded(async {
            let client = daemon.client().await;
            let ns = client.namespace(daemon.namespace());
            worker.compare(&ns).await;
            if kills % 8 == 0 { is_well(&daemon, &client, &ns).await } else { agrees(&client).await }
        });
    }
    println!("long-run: kill -9 | {done} operations, {kills} kills in {} s", began.elapsed().as_secs());
}
