//! Times the life of a container through the client library: `life SOCKET IMAGE N`. One JSON line per figure, in the form
//! that `peers/measure` prints for containerd; `figures` runs both and prints the ratios.
//!
//! `life` awaits every call before the next, as containerd's client must; `life_burst` sends them as this API is meant
//! to be used. Both create, start, wait and delete `/bin/true` with null streams, and remove the container.

use std::time::Instant;

use cofferdam_client::{Client, ContainerRequest, Image, Namespace, Stdio, block_on};
use cofferdam_types::Result;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [socket, image, count] = &arguments[..] else {
        // `cargo bench` without arguments: there is no daemon to time.
        eprintln!("usage: life SOCKET IMAGE N (integration/benches/figures runs it)");
        return;
    };
    let count: usize = count.parse().expect("a number of rounds");
    block_on(measure(socket, image, count)).and_then(|done| done).expect("a run without errors");
}

async fn measure(socket: &str, name: &str, count: usize) -> Result<()> {
    let client = Client::connect(socket).await?;
    let namespace = client.namespace("default");
    let image = namespace.images().get(name);
    image.info().await?;
    step_by_step(&namespace, &image).await?;
    let (mut steps, mut bursts) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let began = Instant::now();
        step_by_step(&namespace, &image).await?;
        steps.push(began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        burst(&namespace, &image).await?;
        bursts.push(began.elapsed().as_secs_f64() * 1e3);
    }
    report("life", steps);
    report("life_burst", bursts);
    Ok(())
}

fn request() -> ContainerRequest {
    let mut request = ContainerRequest::default();
    request.options.args = vec!["/bin/true".into()];
    request
}

async fn step_by_step(namespace: &Namespace, image: &Image) -> Result<()> {
    let container = namespace.containers().create(image, &request());
    container.info().await?;
    let task = container.create_task(Stdio::default(), false);
    task.state().await?;
    let exit = task.wait();
    task.start().await?;
    assert_eq!(exit.await?.status, 0);
    task.delete().await?;
    container.remove(false).await
}

async fn burst(namespace: &Namespace, image: &Image) -> Result<()> {
    let container = namespace.containers().create(image, &request());
    let task = container.create_task(Stdio::default(), false);
    let started = task.start();
    let exit = task.wait();
    started.await?;
    assert_eq!(exit.await?.status, 0);
    container.remove(false).await
}

fn report(what: &str, mut samples: Vec<f64>) {
    samples.sort_by(f64::total_cmp);
    let line = serde_json::json!({
        "peer": "cofferd", "what": what, "unit": "ms", "n": samples.len(),
        "min": samples[0], "median": samples[samples.len() / 2], "max": samples[samples.len() - 1], "samples": samples,
    });
    println!("{line}");
}
