//! Times durable records of containers through the client library: `records SOCKET N`. They are made by 32 at once, each of
//! whom waits for the disk, and all of them are listed. One JSON line per figure, as `peers/measure` prints them.
//! `records SOCKET list` only lists: containers, blobs and snapshots, and what of them few filters let through.
//!
//! The runtime spec is the caller's and there is no snapshot: what is timed is the record.

use std::time::Instant;

use cofferdam_client::{Client, ContainerRequest, Namespace, block_on};
use cofferdam_types::Result;
use oci_spec::runtime::{RootBuilder, Spec};

const AT_ONCE: usize = 32;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [socket, what] = &arguments[..] else {
        // `cargo bench` without arguments: there is no daemon to time.
        eprintln!("usage: records SOCKET N (integration/benches/figures runs it)");
        return;
    };
    let done = match what.as_str() {
        "list" => block_on(lists(socket)),
        count => block_on(measure(socket, count.parse().expect("a number of records"))),
    };
    done.and_then(|done| done).expect("a run without errors");
}

/// How long each list takes, and how much is in it.
async fn lists(socket: &str) -> Result<()> {
    let client = Client::connect(socket).await?;
    let namespace = client.namespace("default");
    for filters in [&[][..], &["labels.rare==yes"]] {
        let word = if filters.is_empty() { "list" } else { "filter" };
        let began = Instant::now();
        let found = namespace.containers().list(filters).all().await?.len();
        report(&format!("{word}_containers:{found}"), began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        let found = namespace.content().list(filters).all().await?.len();
        report(&format!("{word}_blobs:{found}"), began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        let found = namespace.snapshots("overlay").list(filters).all().await?.len();
        report(&format!("{word}_snapshots:{found}"), began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

async fn measure(socket: &str, count: usize) -> Result<()> {
    let client = Client::connect(socket).await?;
    let namespace = client.namespace("default");
    let before = namespace.containers().list::<&str>(&[]).all().await?.len();
    let mut spec = Spec::default();
    spec.set_root(RootBuilder::default().path("/").readonly(true).build().ok());
    let spec = serde_json::to_vec(&spec).expect("a spec in JSON");
    let began = Instant::now();
    let workers = (0..AT_ONCE).map(|worker| create(&namespace, &spec, before + worker..before + count));
    futures::future::try_join_all(workers).await?;
    report("record_create", began.elapsed().as_secs_f64() * 1e3 / count as f64);
    let began = Instant::now();
    let listed = namespace.containers().list::<&str>(&[]).all().await?.len();
    assert_eq!(listed, before + count);
    report(&format!("list_{listed}"), began.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

async fn create(namespace: &Namespace, spec: &[u8], mine: std::ops::Range<usize>) -> Result<()> {
    for n in mine.step_by(AT_ONCE) {
        let request = ContainerRequest { id: format!("record-{n}"), ..ContainerRequest::default() };
        namespace.containers().create_from_spec(None, &request, spec).made().await?;
    }
    Ok(())
}

fn report(what: &str, took: f64) {
    println!(
        "{}",
        serde_json::json!({
            "peer": "cofferd", "what": what, "unit": "ms", "n": 1, "min": took, "median": took, "max": took, "samples": [took],
        })
    );
}
