//! What a collection of 100,000 blobs costs, half of which nothing keeps, and what a writer feels of it: one that always
//! writes, and one that pauses.
//!
//! `cargo run --profile ci --example collect [directory [blobs [records to a commit]]]`

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cofferdam_kernel::{Kernel, Placement, block_on};
use cofferdam_metadata::{
    Metadata,
    graph::{Graph, Sweep},
    records::{content, images, leases},
};
use cofferdam_types::{Algorithm, Authority, Descriptor, Digest, Error, Name, Namespace, Result, Timestamp};

/// As the collector has it.
const SLICE: usize = 8;
const PAUSE: Duration = Duration::from_millis(5);

fn blob(n: usize) -> Digest {
    Digest::of(Algorithm::Sha256, &n.to_be_bytes())
}

/// Images of ten blobs each, every other of which has no name.
fn fill(meta: &Metadata, ns: &Namespace, from: usize, count: usize) -> Result<()> {
    for first in (from..from + count).step_by(1000) {
        let ns = ns.clone();
        meta.write_blocking(&Authority::system(), move |tx| {
            for target in (first..(first + 1000).min(from + count)).step_by(10) {
                let mut link = content::Link::new(blob(target), 1000);
                for n in target + 1..target + 10 {
                    content::create(tx, &ns, content::Link::new(blob(n), 1000))?;
                    link.labels.insert(format!("containerd.io/gc.ref.content.{n}"), blob(n).to_string());
                }
                content::create(tx, &ns, link)?;
                if target % 20 == 0 {
                    let target = Descriptor::new("application/json", blob(target), 1000);
                    images::create(tx, &ns, images::Image::new(Name::new(target.digest.to_string())?, target))?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Writes until it is over, and tells how long each write took.
fn write(
    meta: &Metadata,
    ns: &Namespace,
    over: &AtomicBool,
    word: &str,
    pause: Option<Duration>,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    while !over.load(Ordering::SeqCst) {
        let (ns, id) = (ns.clone(), Name::new(format!("{word}-{}", times.len()))?);
        let start = Instant::now();
        meta.write_blocking(&Authority::system(), move |tx| leases::create(tx, &ns, leases::Lease::new(id.clone())))?;
        times.push(start.elapsed());
        if let Some(pause) = pause {
            std::thread::sleep(pause);
        }
    }
    times.sort();
    Ok(times)
}

fn beside<R: Send>(
    meta: &Metadata,
    ns: &Namespace,
    word: &str,
    pause: Option<Duration>,
    act: impl FnOnce() -> Result<R> + Send,
) -> Result<(R, Vec<Duration>)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(meta, ns, &over, word, pause));
        let done = act();
        over.store(true, Ordering::SeqCst);
        let times = writer.join().unwrap_or_else(|_| Err(Error::internal("writer", "", "panicked")))?;
        Ok((done?, times))
    })
}

fn collect(meta: &Metadata, ns: &Namespace, slice: usize) -> Result<(Duration, Duration, usize)> {
    let begun = Instant::now();
    let (collection, _) = block_on(meta.begin_collection())?;
    let graph = Graph::read(&meta.read()?, ns, Timestamp::now())?;
    let sweep = Sweep::new(collection, ns.clone(), &graph);
    drop(graph);
    let (mark, begun, count) = (begun.elapsed(), Instant::now(), sweep.left().count());
    let sweep = Arc::new(Mutex::new(sweep));
    let lock = || sweep.lock().unwrap_or_else(PoisonError::into_inner);
    while !lock().is_done() {
        let theirs = sweep.clone();
        let swept = block_on(meta.write_patiently(&Authority::system(), move |tx| {
            theirs.lock().unwrap_or_else(PoisonError::into_inner).slice(tx, slice)
        }))?;
        lock().done(&swept, slice);
    }
    meta.end_collection(collection);
    Ok((mark, begun.elapsed(), count))
}

fn measure(meta: &Metadata, ns: &Namespace, count: usize, slice: usize) -> Result<()> {
    let quantiles = |times: &[Duration]| {
        let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
        format!("{} writes, p50 {:.2?}, p99 {:.2?}, longest {:.2?}", times.len(), at(0.5), p99(times), at(1.0))
    };
    for (n, pause) in [None, Some(PAUSE)].into_iter().enumerate() {
        fill(meta, ns, n * count, count)?;
        let wait = || {
            std::thread::sleep(Duration::from_secs(3));
            Ok(())
        };
        let ((), alone) = beside(meta, ns, &format!("alone-{n}"), pause, wait)?;
        let act = || collect(meta, ns, slice);
        let ((mark, sweep, removed), during) = beside(meta, ns, &format!("during-{n}"), pause, act)?;
        let (p99, alone_p99) = (p99(&during), p99(&alone));
        println!("a writer that pauses for {:?}", pause.unwrap_or_default());
        println!("  alone: {}", quantiles(&alone));
        println!("  beside a collection: {}", quantiles(&during));
        println!("  p99 is {:.2} times that alone", p99.as_secs_f64() / alone_p99.as_secs_f64());
        println!("  of {count} blobs {removed} went: mark {mark:.2?}, sweep {sweep:.2?}");
    }
    let (mark, _, left) = collect(meta, ns, slice)?;
    println!("again, with nothing to remove: {mark:.2?}, {left} left");
    Ok(())
}

fn p99(times: &[Duration]) -> Duration {
    times[((times.len() - 1) as f64 * 0.99) as usize]
}

fn main() -> Result<()> {
    let root = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let number = |n, unsaid| std::env::args().nth(n).and_then(|text| text.parse().ok()).unwrap_or(unsaid);
    let (count, slice) = (number(2, 100_000), number(3, SLICE));
    let path = std::path::Path::new(&root).join(format!("collect-{}.redb", std::process::id()));
    let ns = Namespace::default_namespace();
    let result = actix_rt::System::new().block_on(async {
        let kernel = Kernel::new()?;
        let meta = Metadata::start(&kernel, Placement::Own, &path)?;
        kernel.ready().await?;
        // What is asked is answered on this thread.
        let asked = meta.clone();
        let measured = tokio::task::spawn_blocking(move || measure(&asked, &ns, count, slice)).await;
        measured.map_err(|e| Error::internal("measure", "", e.to_string()))??;
        kernel.stop().await;
        Ok(())
    });
    let _ = std::fs::remove_file(&path);
    result
}
