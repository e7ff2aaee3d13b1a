//! Pulls and pushes through a proxy that fails: each ends right or with its typed error, goes on where it was, and leaves nothing
//! behind.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use cofferdam_client::{PullOptions, PushOptions};
use cofferdam_integration::{Asked, Daemon, Fault, Faults, bounded};
use cofferdam_types::Code;

use crate::support::{
    craft::{Picture, sha, shelf},
    world::{Holdings, Registry, World, packed},
};

/// A layer of several parts.
const LARGE: usize = 12 << 20;
/// What may be fetched twice for each connection that broke.
const CHUNK: u64 = 1 << 20;
const MIB: u64 = 1 << 20;
/// As in [`crate::support::world::STILL`], and soon tired of who says nothing.
const IMPATIENT: &[&str] = &[
    "--gc",
    "startup_delay=0,deletion_threshold=1000000000,mutation_threshold=0,period=0,disk_pressure=0",
    "--pull",
    "idle=4",
];
const IDLE: Duration = Duration::from_secs(4);

/// What comes of a pull.
enum End {
    /// It is here, after at most so many connections that broke, for each of which a chunk may have come twice.
    Here(u64),
    /// It is here, and was fetched more than once.
    Again,
    Fails(Code, &'static str),
}

type Rule = Box<dyn Fn(&Asked) -> Option<Fault> + Send + Sync>;

struct Row {
    what: &'static str,
    rule: Rule,
    end: End,
}

/// The registry, the proxy before it, and a daemon.
struct Rig {
    world: World,
    proxy: Faults,
    picture: Picture,
    before: Holdings,
    _registry: Registry,
}

impl Rig {
    async fn start(picture: Picture) -> Rig {
        let (registry, dir) = (Registry::start(&[], &[]), tempfile::tempdir().unwrap());
        shelf(dir.path(), &[("picture", &picture)]);
        registry.push(dir.path(), &["picture"]);
        let proxy = Faults::before(registry.host());
        let world = World::with(Daemon::with_flags(IMPATIENT)).await;
        let before = world.holdings().await;
        Rig { world, proxy, picture, before, _registry: registry }
    }

    fn layer(&self) -> (String, u64) {
        (sha(&self.picture.layers[0]).to_string(), self.picture.layers[0].len() as u64)
    }

    async fn row(&self, Row { what, rule, end }: Row) {
        let (digest, size) = self.layer();
        self.proxy.rule(rule);
        let began = Instant::now();
        let job = self.world.pull(&self.proxy.reference("picture:latest"));
        match end {
            End::Fails(code, word) => {
                self.world.refused(what, &self.before, job, code, word).await;
            }
            End::Here(_) | End::Again => {
                let names =
                    job.wait().await.unwrap_or_else(|error| panic!("{what}: {error}\n{:#?}", self.proxy.asked()));
                assert!(self.world.ns.images().get(&names[0]).detail("").await.unwrap().unpacked, "{what}");
                let sent = self.proxy.sent(&digest);
                assert!(sent >= size, "{what}: {sent} of {size}");
                if let End::Here(broken) = end {
                    assert!(sent <= size + broken * CHUNK, "{what}: {} twice: {:#?}", sent - size, self.proxy.asked());
                }
                self.world.ns.images().remove(&names[0]).await.unwrap();
                self.world.client.collector().collect(false).await.unwrap();
                self.world.settles(&self.before).await;
            }
        }
        println!("{what}: {:?}", began.elapsed());
    }
}

/// What goes wrong with the layer: the first times, or each time.
fn layer(digest: &str, times: usize, fault: Fault) -> Rule {
    let digest = digest.to_owned();
    Box::new(move |asked| (asked.blob(&digest) && asked.times < times).then(|| fault.clone()))
}

fn manifest(method: &'static str, times: usize, fault: Fault) -> Rule {
    Box::new(move |asked| {
        let hit = asked.path.contains("/manifests/") && asked.method == method && asked.times < times;
        hit.then(|| fault.clone())
    })
}

const EACH: usize = usize::MAX;

/// The first time one thing, the second time another.
fn then(digest: &str, first: Fault, second: Fault) -> Rule {
    let digest = digest.to_owned();
    Box::new(move |asked| match asked.times {
        0 if asked.blob(&digest) => Some(first.clone()),
        1 if asked.blob(&digest) => Some(second.clone()),
        _ => None,
    })
}

fn busy(status: u16, after: &str) -> Fault {
    Fault::Status(status, vec![("retry-after", after.to_owned())])
}

#[test]
fn a_pull_ends_right_or_with_its_error_whatever_the_network_does() {
    bounded(async {
        let rig = Rig::start(Picture::sample("network", LARGE)).await;
        let (digest, _) = rig.layer();
        let on = |times, fault| layer(&digest, times, fault);
        use End::{Fails, Here};
        for (what, rule, end) in [
            ("nothing is wrong", on(0, Fault::Whole), Here(0)),
            ("cut once", on(1, Fault::Cut(3 * MIB)), Here(1)),
            ("reset once", on(1, Fault::Reset(3 * MIB)), Here(1)),
            ("cut after each two MiB", on(EACH, Fault::Cut(2 * MIB)), Here(8)),
            ("cut at once, each time", on(EACH, Fault::Cut(1000)), Fails(Code::Unavailable, "stopped at byte")),
            ("cut in the header", on(EACH, Fault::Cut(0)), Fails(Code::Unavailable, "stopped at byte")),
            ("stalls once", on(1, Fault::Stall(3 * MIB)), Here(1)),
            ("no HTTP", on(EACH, Fault::Garbage), Fails(Code::Unavailable, "")),
            ("a header without end", on(EACH, Fault::SlowHeader), Fails(Code::Unavailable, "too slow")),
            ("another byte", on(EACH, Fault::Flip(2 * MIB)), Fails(Code::DataLoss, "unexpected digest")),
            ("half of a manifest, once", manifest("GET", 1, Fault::Cut(20)), Here(0)),
            ("no HTTP for the name, once", manifest("HEAD", 1, Fault::Garbage), Here(0)),
            ("half of a manifest", manifest("GET", EACH, Fault::Cut(20)), Fails(Code::Unavailable, "")),
            ("a name without end", manifest("HEAD", EACH, Fault::SlowHeader), Fails(Code::Unavailable, "too slow")),
        ] {
            rig.row(Row { what, rule, end }).await;
        }
    });
}

#[test]
fn a_pull_ends_right_or_with_its_error_whatever_the_registry_answers() {
    bounded(async {
        let rig = Rig::start(Picture::sample("answers", LARGE)).await;
        let (digest, _) = rig.layer();
        let on = |times, fault| layer(&digest, times, fault);
        let then = |first, second| then(&digest, first, second);
        let again = format!("/v2/picture/blobs/{digest}?again");
        use End::{Again, Fails, Here};
        for (what, rule, end) in [
            ("announces more", on(EACH, Fault::Length(5)), Fails(Code::DataLoss, "announced")),
            ("announces less", on(EACH, Fault::Length(-5)), Fails(Code::DataLoss, "announced")),
            ("sends another range", on(EACH, Fault::OtherRange), Fails(Code::DataLoss, "another range")),
            ("another range, later", then(Fault::Cut(MIB), Fault::OtherRange), Fails(Code::DataLoss, "another range")),
            ("knows no ranges", on(EACH, Fault::Whole), Here(0)),
            ("is cut, and knows no ranges", then(Fault::Cut(MIB), Fault::Whole), Again),
            ("is busy once", on(1, busy(429, "1")), Here(0)),
            ("is busy for a day", on(EACH, busy(429, "86400")), Fails(Code::Unavailable, "too many requests")),
            ("is down once", on(1, busy(503, "1")), Here(0)),
            ("fails twice", on(2, Fault::Status(500, Vec::new())), Here(0)),
            ("fails each time", on(EACH, Fault::Status(500, Vec::new())), Fails(Code::Unavailable, "status 500")),
            ("has no such layer", on(EACH, Fault::Status(404, Vec::new())), Fails(Code::NotFound, "no such blob")),
            ("moved", on(1, Fault::Redirect(again.clone())), Here(0)),
            ("moves without end", on(EACH, Fault::Redirect(again)), Fails(Code::Unavailable, "without end")),
            ("the manifest once", manifest("HEAD", 1, busy(503, "0")), Here(0)),
            ("the manifest each time", manifest("GET", EACH, busy(502, "0")), Fails(Code::Unavailable, "502")),
        ] {
            rig.row(Row { what, rule, end }).await;
        }
        // A registry that is busy is left alone for as long as it asks.
        rig.proxy.rule(on(1, busy(429, "2")));
        let began = Instant::now();
        rig.world.pull(&rig.proxy.reference("picture:latest")).wait().await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(2));
    });
}

#[test]
fn a_registry_that_stops_half_way_fails_within_the_idle_time() {
    bounded(async {
        let rig = Rig::start(Picture::sample("idle", LARGE)).await;
        let (digest, _) = rig.layer();
        let half = digest.clone();
        rig.proxy.rule(move |asked| {
            let stall = Fault::Stall(if asked.times == 0 { 3 * MIB } else { 0 });
            asked.blob(&half).then_some(stall)
        });
        let began = Instant::now();
        let job = rig.world.pull(&rig.proxy.reference("picture:latest"));
        rig.world.refused("silent", &rig.before, job, Code::Unavailable, "stopped at byte").await;
        let taken = began.elapsed();
        assert!(taken >= IDLE / 2 && taken < IDLE * 2, "{taken:?}");
        rig.proxy.rule(layer(&digest, EACH, Fault::Stall(0)));
        let began = Instant::now();
        let job = rig.world.pull(&rig.proxy.reference("picture:latest"));
        rig.world.refused("nothing at all", &rig.before, job, Code::Unavailable, "stopped at byte").await;
        let taken = began.elapsed();
        assert!(taken >= IDLE / 2 && taken < IDLE * 2, "{taken:?}");
    });
}

#[test]
fn tls_that_breaks_is_an_error_that_says_so() {
    bounded(async {
        let registry = Registry::start(&["--tls"], &["busybox"]);
        let world = World::with(Daemon::with_flags(IMPATIENT)).await;
        let before = world.holdings().await;
        let options = |host: String| PullOptions {
            reference: format!("{}/busybox:latest", host.replace("127.0.0.1", "localhost")),
            ca_certificates: registry.authority(),
            ..PullOptions::default()
        };
        // In the handshake, behind it, and in the middle of an answer.
        for after in [0, 3, 600, 2000, 5000] {
            let wire = Faults::wire(registry.host(), after);
            let what = format!("cut after {after}");
            world.refused(&what, &before, world.pull_with(options(wire.host())), Code::Unavailable, "").await;
        }
        // It speaks no TLS at all.
        let plain = Registry::start(&[], &["busybox"]);
        let wire = Faults::wire(plain.host(), u64::MAX);
        world.refused("plain", &before, world.pull_with(options(wire.host())), Code::Unavailable, "").await;
        let wire = Faults::wire(registry.host(), u64::MAX);
        world.pull_with(options(wire.host())).wait().await.unwrap();
    });
}

#[test]
fn a_push_goes_on_where_the_registry_is() {
    bounded(async {
        let rig = Rig::start(Picture::sample("there", 1000)).await;
        let picture = Picture::sample("pushed", LARGE);
        let name = rig.world.import("pushed", packed(&picture.layout())).wait().await.unwrap().remove(0);
        let image = rig.world.ns.images().get(&name);
        let before = rig.world.holdings().await;
        let size = picture.layers[0].len() as u64;
        for (what, chunk, code) in
            [("whole", 0, None), ("pieces", 4 * MIB, None), ("never", 4 * MIB, Some(Code::Unavailable))]
        {
            let never = code.is_some();
            // Each attempt has a path of its own: they are counted together.
            let cuts = AtomicUsize::new(0);
            rig.proxy.rule(move |asked| {
                let sends = matches!(asked.method.as_str(), "PUT" | "PATCH") && asked.path.contains("/blobs/uploads/");
                (sends && (never || cuts.fetch_add(1, Ordering::AcqRel) == 0)).then_some(Fault::CutRequest(MIB))
            });
            let options = PushOptions {
                reference: rig.proxy.reference(&format!("copy/{what}:1")),
                chunk,
                ..PushOptions::default()
            };
            let job = image.push(&options);
            match code {
                Some(code) => {
                    rig.world.refused(what, &before, job, code, "").await;
                }
                None => {
                    job.wait().await.unwrap_or_else(|error| panic!("{what}: {error}: {:#?}", rig.proxy.asked()));
                    let other = World::start().await;
                    let got = other.pull(&rig.proxy.reference(&format!("copy/{what}:1"))).wait().await.unwrap();
                    let detail = other.ns.images().get(&got[0]).detail("").await.unwrap();
                    assert!(detail.unpacked && detail.layers[0].size == size, "{what}");
                }
            }
        }
    });
}
