//! Power cuts: a daemon on a real file system, on a disk that loses what it wasn't told to flush.

use std::time::Instant;

use cofferdam_integration::{Powered, bounded};

use crate::{
    ledger::{Worker, agrees, is_well},
    random::{Random, seed},
    storm::count,
};

const MIB: usize = 256;

/// Works, and then looks at what is left by power cuts right before and after flushes, and anywhere between: `flushes` of the
/// ones, evenly, and `between` of the others.
fn cut(mkfs: &str, steps: u64, flushes: u64, between: u64) {
    let seed = seed();
    println!("seed {seed}");
    let mut powered = Powered::start(MIB, mkfs);
    powered.daemon.import_busybox();
    let scratch = tempfile::tempdir().unwrap();
    powered.platter.record();
    let ledger = bounded(async {
        let Powered { daemon, platter } = &powered;
        let mut worker = Worker::new("work", scratch.path(), seed, || platter.position());
        let client = daemon.client().await;
        let ns = client.namespace(daemon.namespace());
        for _ in 0..steps {
            worker.step(&client, &ns).await.unwrap();
        }
        worker.ledger
    });
    let record = powered.platter.recorded();

    let mut random = Random::new(seed);
    let all = record.flushes();
    let every = (all.len() as u64 / flushes.max(1)).max(1) as usize;
    let mut moments: Vec<usize> = all.iter().step_by(every).flat_map(|at| [*at, at + 1]).collect();
    moments.extend((0..between).map(|_| random.below(record.len() as u64) as usize));
    let began = Instant::now();
    for (n, at) in moments.iter().enumerate() {
        // Nothing of what wasn't flushed, all of it, or any part.
        let stays = random.below(4);
        let image = record.cut(*at, || match stays {
            0 => false,
            1 => true,
            _ => random.below(2) == 0,
        });
        println!("cut {n}, at {at} of {}", record.len());
        powered.cut(image);
        bounded(async {
            let daemon = &powered.daemon;
            let client = daemon.client().await;
            let ns = client.namespace(daemon.namespace());
            ledger.compare(&ns, *at).await;
            if n % 4 == 0 { is_well(daemon, &client, &ns).await } else { agrees(&client).await }
        });
    }
    println!(
        "long-run: power cuts, {mkfs} | {} cuts of {} writes and {} flushes in {} s",
        moments.len(),
        record.len() - all.len(),
        all.len(),
        began.elapsed().as_secs()
    );
}

#[test]
fn what_was_acknowledged_is_there_after_a_power_cut_on_ext4() {
    cut("mkfs.ext4", count(300, 30), count(1500, 6), count(1000, 6));
}

#[test]
fn what_was_acknowledged_is_there_after_a_power_cut_on_btrfs() {
    cut("mkfs.btrfs", count(300, 20), count(700, 4), count(500, 4));
}
