//! Times the life of a container through the client library: `life SOCKET IMAGE N [side|steps|burst]`. One JSON line per figure, in
//! the form that `peers/measure` prints for containerd; `figures` runs both and prints the ratios. With `side` only those eight at
//! once; with `steps` or `burst` nothing but N lives of that form, for who counts what they take.
//!
//! `life` awaits every call before the next, as containerd's client must; `life_burst` sends them as this API is meant
//! to be used. Both create, start, wait and delete `/bin/true` with null streams, and remove the container. The phases of
//! `life` have containerd's names. `side_by_side` is the time for each of many lives, eight at once, call by call.

use std::{collections::BTreeMap, time::Instant};

use cofferdam_client::{Client, ContainerRequest, Image, Namespace, Stdio, block_on};
use cofferdam_types::Result;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [socket, image, count, rest @ ..] = &arguments[..] else {
        // `cargo bench` without arguments: there is no daemon to time.
        eprintln!("usage: life SOCKET IMAGE N (integration/benches/figures runs it)");
        return;
    };
    let count: usize = count.parse().expect("a number of rounds");
    let done = match rest.first().map(String::as_str) {
        Some(form @ ("steps" | "burst")) => block_on(alone(socket, image, count, form == "burst")),
        side => block_on(measure(socket, image, count, side.is_some())),
    };
    done.and_then(|done| done).expect("a run without errors");
}

async fn alone(socket: &str, name: &str, count: usize, bursts: bool) -> Result<()> {
    let namespace = Client::connect(socket).await?.namespace("default");
    let image = namespace.images().get(name);
    for _ in 0..count {
        match bursts {
            true => burst(&namespace, &image).await?,
            false => step_by_step(&namespace, &image, &mut Samples::new()).await.map(drop)?,
        }
    }
    Ok(())
}

async fn measure(socket: &str, name: &str, count: usize, side_only: bool) -> Result<()> {
    let client = Client::connect(socket).await?;
    let namespace = client.namespace("default");
    let image = namespace.images().get(name);
    image.info().await?;
    step_by_step(&namespace, &image, &mut Samples::new()).await?;
    let (mut steps, mut bursts) = (Samples::new(), Vec::new());
    for _ in 0..if side_only { 0 } else { count } {
        let took = step_by_step(&namespace, &image, &mut steps).await?;
        steps.entry("life").or_default().push(took);
        let began = Instant::now();
        burst(&namespace, &image).await?;
        bursts.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let side =
        at_once(count, || async { step_by_step(&namespace, &image, &mut Samples::new()).await.map(drop) }).await?;
    let side_burst = at_once(count, || burst(&namespace, &image)).await?;
    if !side_only {
        steps.insert("life_burst", bursts);
    }
    steps.insert("side_by_side", vec![side]);
    steps.insert("side_by_side_burst", vec![side_burst]);
    steps.into_iter().for_each(|(what, samples)| report(what, samples));
    Ok(())
}

/// What one of `count` lives takes for each of those that go side by side, in milliseconds.
async fn at_once<F: Future<Output = Result<()>>>(count: usize, life: impl Fn() -> F) -> Result<f64> {
    let began = Instant::now();
    let workers = (0..AT_ONCE).map(|_| async {
        for _ in 0..count {
            life().await?;
        }
        Ok::<(), cofferdam_types::Error>(())
    });
    futures::future::try_join_all(workers).await?;
    Ok(began.elapsed().as_secs_f64() * 1e3 / (AT_ONCE * count) as f64)
}

const AT_ONCE: usize = 8;

type Samples = BTreeMap<&'static str, Vec<f64>>;

fn request() -> ContainerRequest {
    let mut request = ContainerRequest::default();
    request.options.args = vec!["/bin/true".into()];
    request
}

/// Gives how long it took, in milliseconds, and notes how long each phase did.
async fn step_by_step(namespace: &Namespace, image: &Image, phases: &mut Samples) -> Result<f64> {
    let began = Instant::now();
    let mut last = began;
    let mut lap = |phase: &'static str| {
        phases.entry(phase).or_default().push(last.elapsed().as_secs_f64() * 1e3);
        last = Instant::now();
    };
    let container = namespace.containers().create(image, &request());
    container.made().await?;
    lap("container_create");
    let task = container.create_task(Stdio::default(), false);
    task.made().await?;
    lap("task_create");
    let exit = task.wait();
    task.start().await?;
    lap("task_start");
    assert_eq!(exit.await?.status, 0);
    lap("task_wait");
    task.delete().await?;
    lap("task_delete");
    container.remove(false).await?;
    lap("container_delete");
    Ok(began.elapsed().as_secs_f64() * 1e3)
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
