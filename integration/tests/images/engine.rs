//! How a pull fetches: each byte once, in parts side by side, on from where a dead daemon was, for which platforms, as somebody
//! chooses, at which rate, in how much memory.

use std::{
    cell::RefCell,
    io::Write as _,
    rc::Rc,
    time::{Duration, Instant},
};

use cofferdam_client::{Job, PullOptions, Verdict};
use cofferdam_integration::{Asked, Daemon, Fault, Faults, bounded, until_async};
use cofferdam_types::{Code, Platform, media};
use serde_json::json;

use crate::support::{
    craft::{Picture, Tar, arch, layout, noise, sha, shelf, write},
    world::{Registry, STILL, World},
};

const MIB: u64 = 1 << 20;
/// One of several parts.
const LARGE: usize = 24 << 20;

/// A registry with one image, and a proxy before it.
fn rig(picture: &Picture) -> (Registry, Faults) {
    let (registry, dir) = (Registry::start(&[], &[]), tempfile::tempdir().unwrap());
    shelf(dir.path(), &[("picture", picture)]);
    registry.push(dir.path(), &["picture"]);
    let proxy = Faults::before(registry.host());
    (registry, proxy)
}

fn digest(picture: &Picture, layer: usize) -> String {
    sha(&picture.layers[layer]).to_string()
}

/// Bytes that the daemon has read from files, from the page cache too.
fn read_bytes(daemon: &Daemon) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// The most memory that it ever had, in KiB.
fn peak(daemon: &Daemon) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Waits until so many bytes of a job are on the disk.
async fn under_way(job: &Job, bytes: u64) {
    until_async("bytes are coming", async || {
        let info = job.info().await.unwrap();
        assert_eq!(info.state, "running", "{info:?}");
        (info.items.iter().map(|item| item.done).sum::<u64>() >= bytes).then_some(())
    })
    .await;
}

async fn unpacked(world: &World, job: Job) -> String {
    let name = job.wait().await.unwrap().remove(0);
    assert!(world.ns.images().get(&name).detail("").await.unwrap().unpacked);
    name
}

#[test]
fn each_byte_is_read_once() {
    bounded(async {
        // None is so large that others help with it.
        let layers = (0..3).map(|n| Tar::new().bytes(&format!("big{n}"), &noise((7 << 20) + n)).end()).collect();
        let picture = Picture::of(layers);
        let (_registry, proxy) = rig(&picture);
        let world = World::start().await;
        let before = read_bytes(&world.daemon);
        unpacked(&world, world.pull(&proxy.reference("picture"))).await;
        let read = read_bytes(&world.daemon) - before;
        assert!(read < 4 * MIB, "{read} bytes were read back");
        for layer in 0..3 {
            assert_eq!(proxy.sent(&digest(&picture, layer)), picture.layers[layer].len() as u64);
        }
    });
}

#[test]
fn what_a_dead_daemon_had_is_not_fetched_again_and_read_once() {
    bounded(async {
        let picture = Picture::sample("dead", LARGE);
        let (_registry, proxy) = rig(&picture);
        let (layer, size) = (digest(&picture, 0), picture.layers[0].len() as u64);
        for end in ["killed", "ended"] {
            let mut world = World::start().await;
            proxy.rule(|_| None);
            // So that parts come side by side, and the end finds them in the middle.
            proxy.pace(8 * MIB);
            let job = world.pull(&proxy.reference("picture"));
            under_way(&job, 10 * MIB).await;
            if end == "ended" {
                world.daemon.stop();
            }
            world.daemon.restart();
            assert!(job.wait().await.is_err());
            let first = proxy.sent(&layer);
            assert!(first < size, "it was caught in the middle");
            proxy.pace(0);
            world.connect().await;
            let before = read_bytes(&world.daemon);
            unpacked(&world, world.pull(&proxy.reference("picture"))).await;
            let (sent, read) = (proxy.sent(&layer), read_bytes(&world.daemon) - before);
            assert!(sent <= size + MIB, "{end}: {} bytes came twice: {:#?}", sent - size, proxy.asked());
            assert!(read <= size + 4 * MIB, "{end}: {read} bytes were read");
            assert!(world.ns.content().ingests::<&str>(&[]).all().await.unwrap().is_empty(), "{end}");
        }
    });
}

#[test]
fn parts_of_a_large_layer_come_side_by_side_where_the_network_is_slow() {
    bounded(async {
        let picture = Picture::sample("slow", LARGE);
        let (_registry, proxy) = rig(&picture);
        let (layer, size) = (digest(&picture, 0), picture.layers[0].len() as u64);
        let world = World::start().await;
        proxy.pace(4 * MIB);
        let (began, before) = (Instant::now(), read_bytes(&world.daemon));
        unpacked(&world, world.pull(&proxy.reference("picture"))).await;
        let (taken, read) = (began.elapsed(), read_bytes(&world.daemon) - before);
        assert!(read <= size, "{read} bytes were read back");
        assert!(proxy.most() >= 3, "{} at once", proxy.most());
        assert_eq!(proxy.sent(&layer), size, "no byte came twice: {:#?}", proxy.asked());
        // One connection alone takes six seconds.
        assert!(taken < Duration::from_secs(5), "{taken:?}");
        let ranges: Vec<_> = proxy.asked().iter().filter(|asked| asked.blob(&layer)).map(|a| a.range.clone()).collect();
        assert!(ranges.len() >= 4 && ranges.iter().all(Option::is_some), "{ranges:?}");
    });
}

#[test]
fn ten_pulls_of_an_image_cost_one_and_those_of_its_relatives_what_is_their_own() {
    bounded(async {
        let base = Tar::new().file("base", "x").bytes("big", &noise(6 << 20)).end();
        let own = |name: &str| Tar::new().file(name, name).bytes("own", &noise(100_000 + name.len())).end();
        let pictures = ["a", "bb"].map(|name| Picture::of(vec![base.clone(), own(name)]));
        let (registry, dir) = (Registry::start(&[], &[]), tempfile::tempdir().unwrap());
        shelf(dir.path(), &[("one", &pictures[0]), ("two", &pictures[1])]);
        registry.push(dir.path(), &["one", "two"]);
        let proxy = Faults::before(registry.host());
        let world = World::start().await;
        proxy.pace(8 * MIB);
        let jobs: Vec<_> = (0..10).map(|_| world.pull(&proxy.reference("one"))).collect();
        for job in jobs {
            unpacked(&world, job).await;
        }
        for (layer, bytes) in pictures[0].layers.iter().enumerate() {
            let digest = digest(&pictures[0], layer);
            let asked = proxy.asked().iter().filter(|asked| asked.blob(&digest)).count();
            assert_eq!((asked, proxy.sent(&digest)), (1, bytes.len() as u64));
        }
        let all = proxy.asked();
        // Each asks what the name stands for; manifest and config are fetched once.
        let heads = all.iter().filter(|asked| asked.method == "HEAD").count();
        let documents = [sha(&pictures[0].manifest), sha(&pictures[0].config)].map(|one| one.to_string());
        for document in &documents {
            let asked = all.iter().filter(|asked| asked.method == "GET" && asked.path.ends_with(document)).count();
            assert_eq!(asked, 1, "{document}: {all:#?}");
        }
        assert_eq!((heads, all.len()), (10, 10 + documents.len() + pictures[0].layers.len()), "{all:#?}");

        // Two images upon one base, at once, by one way and by two.
        let world = World::start().await;
        proxy.rule(|_| None);
        let other = Faults::before(registry.host());
        let jobs = [world.pull(&proxy.reference("one")), world.pull(&proxy.reference("two"))];
        let apart = world.pull(&other.reference("two"));
        for job in jobs.into_iter().chain([apart]) {
            unpacked(&world, job).await;
        }
    });
}

#[test]
fn a_pull_is_held_to_a_rate_and_so_are_all_of_them_together() {
    bounded(async {
        let picture = Picture::sample("rate", 4 << 20);
        let (_registry, proxy) = rig(&picture);
        let timed = async |world: &World, rate: u64| {
            let options = PullOptions { reference: proxy.reference("picture"), rate, ..PullOptions::default() };
            let began = Instant::now();
            let name = unpacked(world, world.pull_with(options)).await;
            let taken = began.elapsed();
            world.ns.images().remove(&name).await.unwrap();
            world.client.collector().collect(false).await.unwrap();
            taken
        };
        let world = World::start().await;
        let (free, held) = (timed(&world, 0).await, timed(&world, 2 * MIB).await);
        assert!(held > Duration::from_millis(1500) && held > free, "{free:?}, {held:?}");
        const SLOW: &[&str] = &["--pull", "rate=2M"];
        let world = World::with(Daemon::with_flags(SLOW)).await;
        let all = timed(&world, 0).await;
        assert!(all > Duration::from_millis(1500), "{all:?}");
    });
}

/// An image for the host, one for another machine and one for a third, none of whose layers are the same.
fn several(registry: &Registry) {
    let others = ["amd64", "arm64", "riscv64"].into_iter().filter(|name| *name != arch());
    let names: Vec<_> = [arch()].into_iter().chain(others).collect();
    let pictures: Vec<_> = names.iter().map(|name| Picture::sample(name, 1000)).collect();
    let entries = names.iter().zip(&pictures).map(|(name, picture)| {
        let mut entry = json!(picture.target());
        entry["platform"] = json!({"os": "linux", "architecture": name});
        entry
    });
    let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries.collect::<Vec<_>>()});
    let index = index.to_string().into_bytes();
    let target = json!({"mediaType": media::OCI_INDEX, "digest": sha(&index), "size": index.len(),
        "annotations": {"org.opencontainers.image.ref.name": "latest"}});
    let blobs: Vec<&[u8]> = pictures.iter().flat_map(Picture::blobs).chain([&*index]).collect();
    let dir = tempfile::tempdir().unwrap();
    write(&layout(&json!([target]), &blobs), &dir.path().join("oci/several"));
    registry.push(dir.path(), &["several"]);
}

#[test]
fn all_platforms_or_some_and_the_hosts_is_unpacked() {
    bounded(async {
        let registry = Registry::start(&[], &[]);
        let reference = registry.reference("several");
        several(&registry);
        let states = async |world: &World| {
            let report = world.ns.images().get(&format!("{reference}:latest")).report(false).await.unwrap();
            let mut found: Vec<_> = report
                .platforms
                .into_iter()
                .map(|state| (state.platform.architecture, state.missing.is_empty(), !state.drivers.is_empty()))
                .collect();
            found.sort();
            found
        };
        let world = World::start().await;
        let all = PullOptions { reference: reference.clone(), all_platforms: true, ..PullOptions::default() };
        world.pull_with(all.clone()).wait().await.unwrap();
        let found = states(&world).await;
        assert!(found.len() > 1 && found.iter().all(|(_, here, _)| *here), "{found:?}");
        let open: Vec<_> = found.iter().filter(|(_, _, open)| *open).map(|(name, ..)| name.as_str()).collect();
        assert_eq!(open, [arch()]);
        let others: Vec<_> = found.iter().map(|(name, ..)| name.clone()).filter(|name| name != arch()).collect();

        // By hand: the host's and one more; and one that isn't there.
        let world = World::start().await;
        let other = format!("linux/{}", others[0]);
        let args = ["image", "pull", "--platform", &other, "--platform", &Platform::host().to_string(), &reference];
        let said = world.daemon.coffer(&args);
        assert!(said.status.success(), "{said:?}");
        for (name, here, open) in states(&world).await {
            assert_eq!((here, open), (name == arch() || name == others[0], name == arch()), "{name}");
        }
        let before = world.holdings().await;
        let none = PullOptions {
            platforms: vec!["linux/s390x".into()],
            ..PullOptions { all_platforms: false, ..all.clone() }
        };
        world.refused("no such platform", &before, world.pull_with(none), Code::NotFound, "s390x").await;

        // Only fetched.
        let world = World::start().await;
        world.pull_with(PullOptions { fetch_only: true, ..all }).wait().await.unwrap();
        assert!(states(&world).await.iter().all(|(_, here, open)| *here && !open));
    });
}

#[test]
fn a_client_chooses_what_is_fetched() {
    bounded(async {
        let picture = Picture::sample("chosen", 1 << 20);
        let (_registry, proxy) = rig(&picture);
        let options = PullOptions { reference: proxy.reference("picture"), ..PullOptions::default() };
        let world = World::start().await;
        let images = world.ns.images();
        let before = world.holdings().await;

        // Everything is asked about, from the top.
        let asked = Rc::new(RefCell::new(Vec::new()));
        let theirs = asked.clone();
        let job = images.fetch(&options, async move |one, depth| {
            theirs.borrow_mut().push((one.digest.to_string(), depth));
            Ok(Verdict::Take)
        });
        let name = unpacked(&world, job).await;
        let all = [sha(&picture.manifest), sha(&picture.config), sha(&picture.layers[0]), sha(&picture.layers[1])];
        let want: Vec<_> = all.iter().zip([0, 1, 1, 1]).map(|(one, depth)| (one.to_string(), depth)).collect();
        assert_eq!(*asked.borrow(), want);
        let clear = async || {
            images.remove(&name).await.unwrap();
            world.client.collector().collect(false).await.unwrap();
            world.settles(&before).await;
        };
        clear().await;

        // Without its layers, and up to the first: it is here, and not unpacked.
        for (verdict, missing) in [(Verdict::Skip, 2), (Verdict::Stop, 2)] {
            proxy.rule(|_| None);
            let job = images.fetch(&options, async move |one, _| {
                Ok(if matches!(media::kind(&one.media_type), media::Kind::Layer(_)) { verdict } else { Verdict::Take })
            });
            job.wait().await.unwrap();
            let report = images.get(&name).report(false).await.unwrap();
            assert_eq!((report.platforms[0].missing.len(), report.platforms[0].drivers.len()), (missing, 0));
            assert_eq!(proxy.sent(&digest(&picture, 0)), 0);
            clear().await;
        }
        let none = images.fetch(&options, async |_, _| Ok(Verdict::Skip)).wait().await.unwrap();
        assert_eq!(none, Vec::<String>::new());
        world.settles(&before).await;

        // Its error is the pull's; and one that never answers holds up nobody but its own pull, and that not for long.
        let fails = images.fetch(&options, async |_, _| Err(cofferdam_types::Error::denied("image", "", "not today")));
        world.refused("an error", &before, fails, Code::Denied, "not today").await;
        let began = Instant::now();
        let hangs = images.fetch(&options, async |_, _| std::future::pending().await);
        until_async("it was asked", async || (hangs.info().await.unwrap().stage == "resolving").then_some(())).await;
        unpacked(&world, world.pull(&proxy.reference("picture"))).await;
        assert!(began.elapsed() < Duration::from_secs(9), "another pull didn't wait for it");
        let error = hangs.wait().await.unwrap_err();
        assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
        assert!(began.elapsed() < Duration::from_secs(20));
        clear().await;

        // One that goes away.
        let other = world.daemon.client().await;
        let leaving = other
            .namespace(world.daemon.namespace())
            .images()
            .fetch(&options, async |_, _| std::future::pending().await);
        let id = leaving.info().await.unwrap().id;
        drop((leaving, other));
        let job = world.ns.jobs().get(&id);
        world.refused("gone", &before, job, Code::Unavailable, "").await;
    });
}

/// A picture of one zstd layer that needs a window of so many MiB.
fn windowed(mib: u32, marker: &str) -> Picture {
    let tar = Tar::new().file("marker", marker).bytes("big", &noise(1 << 20)).end();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(mib.ilog2() + 20).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(&tar).unwrap();
    Picture::with(vec![encoder.finish().unwrap()], vec![sha(&tar)])
}

#[test]
fn a_zstd_window_is_allowed_by_name() {
    bounded(async {
        let (registry, dir) = (Registry::start(&[], &[]), tempfile::tempdir().unwrap());
        shelf(dir.path(), &[("usual", &windowed(32, "usual")), ("wide", &windowed(64, "wide"))]);
        registry.push(dir.path(), &["usual", "wide"]);
        const BOUND: &[&str] = &[STILL[0], STILL[1], "--pull", "zstd_window=64M"];
        let world = World::with(Daemon::with_flags(BOUND)).await;
        let before = world.holdings().await;
        let wide = |mib: u64| {
            let (reference, zstd_window) = (registry.reference("wide"), mib * MIB);
            world.pull_with(PullOptions { reference, zstd_window, ..PullOptions::default() })
        };
        world.refused("not allowed", &before, wide(0), Code::ResourceExhausted, "64 MiB").await;
        let error = wide(128).wait().await.unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument, "{error}");
        unpacked(&world, world.pull(&registry.reference("usual"))).await;
        unpacked(&world, wide(64)).await;
    });
}

#[test]
fn memory_has_a_bound_whatever_is_pulled() {
    bounded(async {
        let large = Picture::sample("large", 80 << 20);
        let (registry, dir) = (Registry::start(&[], &[]), tempfile::tempdir().unwrap());
        let names = ["w1", "w2", "w3", "w4"];
        let windows = names.map(|name| windowed(32, name));
        let mut all: Vec<_> = names.into_iter().zip(&windows).collect();
        all.push(("large", &large));
        shelf(dir.path(), &all);
        registry.push(dir.path(), &["large", "w1", "w2", "w3", "w4"]);
        let proxy = Faults::before(registry.host());
        let world = World::start().await;
        let jobs: Vec<_> =
            ["large", "w1", "w2", "w3", "w4", "large"].map(|name| world.pull(&proxy.reference(name))).into();
        for job in jobs {
            unpacked(&world, job).await;
        }
        let peak = peak(&world.daemon);
        assert!(peak <= 64 << 10, "{peak} KiB");
    });
}

#[test]
fn any_client_follows_a_job_and_its_end() {
    bounded(async {
        let picture = Picture::sample("watched", 8 << 20);
        let (_registry, proxy) = rig(&picture);
        let layer = digest(&picture, 0);
        let held = move |asked: &Asked| asked.blob(&layer).then_some(Fault::Stall(MIB));
        proxy.rule(held.clone());
        let world = World::start().await;
        let job = world.pull(&proxy.reference("picture"));
        under_way(&job, MIB).await;
        let id = job.info().await.unwrap().id;
        let listed = String::from_utf8(world.daemon.coffer(&["job", "ls"]).stdout).unwrap();
        assert!(listed.contains("running: pulling") && listed.contains(&proxy.reference("picture")), "{listed}");
        let watching =
            world.daemon.command().args(["job", "watch", &id]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        until_async("it watches", async || {
            (world.client.system().status().await.unwrap().connections > 1).then_some(())
        })
        .await;
        proxy.let_go();
        job.wait().await.unwrap();
        let said = watching.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), format!("{}:latest\n", proxy.reference("picture")));
        // Of one that ended, and as JSON.
        let said = world.daemon.coffer(&["job", "watch", &id, "-o", "json"]);
        let line: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        assert_eq!((line["state"].as_str(), line["stage"].as_str()), (Some("done"), Some("done")), "{line}");

        // And ends it, which all hear.
        let world = World::start().await;
        proxy.rule(held);
        let job = world.pull(&proxy.reference("picture"));
        under_way(&job, MIB).await;
        let id = job.info().await.unwrap().id;
        let watching =
            world.daemon.command().args(["job", "watch", &id]).stderr(std::process::Stdio::piped()).spawn().unwrap();
        assert!(world.daemon.coffer(&["job", "cancel", &id]).status.success());
        assert_eq!(job.wait().await.unwrap_err().code, Code::Cancelled);
        let said = watching.wait_with_output().unwrap();
        assert!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains("cancelled"), "{said:?}");
    });
}
