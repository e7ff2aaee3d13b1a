//! Power cuts: a daemon on a real file system, on a disk that loses what it wasn't told to flush.

use std::time::Instant;

use cofferdam_integration::{BUSYBOX, Powered, bounded, count};

use crate::{
    ledger::{COLLECTS, Worker, is_well, registry},
    random::{Random, seed},
};

const MIB: usize = 256;
/// Works, a worker for each driver side by side, and then looks at what is left by power cuts: right before and right after one of
/// `each` flushes, and at `between` moments between them.
fn cut(mkfs: &str, drivers: &[&'static str], steps: u64, each: usize, between: u64) {
    let seed = seed();
    println!("seed {seed}");
    let mut powered = Powered::start(MIB, mkfs, COLLECTS);
    powered.daemon.import_busybox();
    let registry = registry();
    let scratch = tempfile::tempdir().unwrap();
    bounded(async {
        let ns = powered.daemon.open().await;
        for driver in drivers {
            ns.images().get(BUSYBOX).unpack("", driver).await.unwrap();
        }
    });
    powered.platter.record();
    let ledgers = bounded(async {
        let Powered { daemon, platter, .. } = &powered;
        let client = daemon.client().await;
        let ns = client.namespace(daemon.namespace());
        let lanes = drivers.iter().zip(seed..).map(async |(driver, seed)| {
            let mut worker = Worker::new((&format!("w-{driver}"), driver), scratch.path(), seed, || platter.position());
            for _ in 0..steps {
                worker.step(&client, &ns).await.unwrap();
            }
            worker.ledger
        });
        futures::future::join_all(lanes).await
    });
    let record = powered.platter.recorded();

    let mut random = Random::new(seed);
    let flushes = record.flushes();
    let mut moments: Vec<usize> = flushes.iter().step_by(each).flat_map(|at| [*at, at + 1]).collect();
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
        powered.cut(image);
        bounded(async {
            let daemon = &powered.daemon;
            let client = daemon.client().await;
            let ns = client.namespace(daemon.namespace());
            for ledger in &ledgers {
                let compared = ledger.compare(&ns, *at).await;
                compared.unwrap_or_else(|wrong| panic!("cut {n}, at {at} of {}: {wrong}", record.len()));
            }
            is_well(daemon, &client, &ns, &registry).await;
        });
    }
    // A disk that lost what it was told to flush would be found out.
    powered.cut(record.cut(record.len() / 2, || true));
    bounded(async {
        let ns = powered.daemon.open().await;
        let compared = futures::future::join_all(ledgers.iter().map(|one| one.compare(&ns, record.len()))).await;
        assert!(compared.iter().any(Result::is_err), "nobody misses the second half");
    });
    println!(
        "long-run: power cuts, {mkfs} | {} cuts of {} writes and {} flushes in {} s",
        moments.len(),
        record.len() - flushes.len(),
        flushes.len(),
        began.elapsed().as_secs()
    );
}

#[test]
fn what_was_acknowledged_is_there_after_a_power_cut_on_ext4() {
    cut("mkfs.ext4", &["overlay", "native", "erofs"], count(150, 12), count(1, 2) as usize, count(1000, 8));
}

#[test]
fn what_was_acknowledged_is_there_after_a_power_cut_on_btrfs() {
    cut("mkfs.btrfs", &["btrfs", "overlay", "erofs"], count(80, 6), count(1, 3) as usize, count(500, 8));
}
