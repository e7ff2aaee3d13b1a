//! How many durable writes a second the store takes, by number of concurrent writers, and what a read costs.
//!
//! `cargo run --profile ci --example commits [directory]`

use std::time::{Duration, Instant};

use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{Metadata, records::leases};
use cofferdam_types::{Authority, Name, Namespace, Result};

fn quantile(times: &mut [Duration], q: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * q) as usize]
}

async fn writer(meta: Metadata, number: usize, count: usize) -> Result<Vec<Duration>> {
    let (system, ns) = (Authority::system(), Namespace::default_namespace());
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let (ns, id) = (ns.clone(), Name::new(format!("{number}-{n}-{count}"))?);
        let start = Instant::now();
        meta.write(&system, move |tx| leases::create(tx, &ns, leases::Lease::new(id.clone()))).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

fn main() -> Result<()> {
    let root = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let path = std::path::Path::new(&root).join(format!("commits-{}.redb", std::process::id()));
    let result = actix_rt::System::new().block_on(async {
        let kernel = Kernel::new()?;
        let meta = Metadata::start(&kernel, Placement::Own, &path)?;
        kernel.ready().await?;
        for writers in [1, 8, 32, 128] {
            let (start, count) = (Instant::now(), 4000 / writers.max(4));
            let all = futures::future::try_join_all((0..writers).map(|w| writer(meta.clone(), w, count))).await?;
            let mut times: Vec<_> = all.into_iter().flatten().collect();
            let rate = times.len() as f64 / start.elapsed().as_secs_f64();
            let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
            println!("{writers:4} writers: {rate:7.0} writes/s, p50 {p50:?}, p99 {p99:?}");
        }
        let (start, ns) = (Instant::now(), Namespace::default_namespace());
        for _ in 0..10_000 {
            leases::find(&meta.read()?, &ns, "0-1-1000")?;
        }
        println!("a read of one record: {:?}", start.elapsed() / 10_000);
        kernel.stop().await;
        Ok(())
    });
    let _ = std::fs::remove_file(&path);
    result
}
