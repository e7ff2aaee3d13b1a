//! What the OCI distribution-spec asks of who pulls and pushes, against every registry that there is: Debian's in the clear, with
//! TLS and a user, and with certificates of clients; and a cache of another make, behind which lies Debian's.

use cofferdam_client::{PullOptions, PushOptions, Secret};
use cofferdam_integration::{Cache, Daemon, bounded};
use cofferdam_types::Code;

use crate::support::{
    craft::Picture,
    tree::assert_same,
    world::{Registry, World, packed, umoci},
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain,
    User,
    Certified,
    Cached,
}

/// A registry and how it is spoken to.
struct Site {
    kind: Kind,
    registry: Registry,
    cache: Option<Cache>,
}

impl Site {
    /// One after the other.
    fn all(names: &'static [&'static str]) -> impl Iterator<Item = Site> {
        [Kind::Plain, Kind::User, Kind::Certified, Kind::Cached].into_iter().map(move |kind| Site::of(kind, names))
    }

    fn of(kind: Kind, names: &[&str]) -> Site {
        let args: &[&str] = match kind {
            Kind::Plain | Kind::Cached => &[],
            Kind::User => &["--tls", "--user", "me:hunter22"],
            Kind::Certified => &["--tls", "--clients"],
        };
        let registry = Registry::start(args, names);
        let cache = (kind == Kind::Cached).then(|| Cache::start("registry.invalid", &registry.address));
        Site { kind, registry, cache }
    }

    /// A world that knows the way, without a word of who asks.
    async fn world(&self) -> World {
        let world = World::with(Daemon::start()).await;
        let (dir, own) = (world.daemon.hosts(), self.registry.host().replace(':', "_") + "_");
        match self.kind {
            Kind::Plain => {}
            Kind::User => {
                world.daemon.set_hosts(&own, "ca = \"ca.crt\"");
                std::fs::write(dir.join(&own).join("ca.crt"), self.registry.authority()).unwrap();
                let secret = Secret("hunter22".into());
                let info = cofferdam_client::CredentialInfo {
                    host: self.registry.host().into(),
                    user: "me".into(),
                    ..Default::default()
                };
                world.ns.credentials().put(&info, &secret).await.unwrap();
            }
            Kind::Certified => {
                let (cert, key) = self.registry.client();
                let text = format!("ca = \"ca.crt\"\nclient = [[{cert:?}, {key:?}]]\n");
                world.daemon.set_hosts(&own, &text);
                std::fs::write(dir.join(&own).join("ca.crt"), self.registry.authority()).unwrap();
            }
            Kind::Cached => {
                let cache = &self.cache.as_ref().unwrap().address;
                let text = format!("[host.\"{cache}/v2/registry.invalid\"]\noverride_path = true\n");
                world.daemon.set_hosts("registry.invalid", &text);
            }
        }
        world
    }

    fn name(&self, image: &str) -> String {
        match self.kind {
            Kind::Cached => format!("registry.invalid/{image}"),
            _ => self.registry.reference(image),
        }
    }

    fn pushes(&self) -> bool {
        self.kind != Kind::Cached
    }
}

fn pull(reference: String) -> PullOptions {
    PullOptions { reference, ..PullOptions::default() }
}

#[test]
fn by_tag_and_by_digest_the_same_is_pulled_from_every_registry() {
    bounded(async {
        for site in Site::all(&["busybox"]) {
            let kind = site.kind;
            let world = site.world().await;
            let pulled = world.pull(&site.name("busybox")).wait().await;
            let name = pulled.unwrap_or_else(|e| panic!("{kind:?}: {e}")).remove(0);
            let target = world.ns.images().get(&name).info().await.unwrap().target;
            assert_same("busybox", &world.container_tree(&name, "").await, &umoci("busybox"));
            // By another daemon, so that nothing of it is here.
            let other = site.world().await;
            let by = site.name(&format!("busybox@{}", target.digest));
            let name = other.pull(&by).wait().await.unwrap_or_else(|e| panic!("{kind:?}: {e}")).remove(0);
            assert_eq!(other.ns.images().get(&name).info().await.unwrap().target.digest, target.digest, "{kind:?}");
            // And once more costs no blob.
            let served = site.registry.served().len();
            other.pull(&site.name("busybox")).wait().await.unwrap();
            assert_eq!(site.registry.served().len(), served, "{kind:?}: it was here");
        }
    });
}

#[test]
fn what_a_registry_has_not_is_not_found_and_leaves_nothing_behind() {
    bounded(async {
        for site in Site::all(&["busybox"]) {
            let world = site.world().await;
            let before = world.holdings().await;
            let nothing = format!("busybox@sha256:{}", "0".repeat(64));
            for image in ["busybox:none", "none:latest", "none/below:1", &nothing] {
                let what = format!("{:?} {image}", site.kind);
                world.refused(&what, &before, world.pull(&site.name(image)), Code::NotFound, "check the name").await;
            }
        }
    });
}

#[test]
fn an_index_leads_to_the_image_for_each_platform() {
    bounded(async {
        for site in Site::all(&["index"]) {
            let world = site.world().await;
            let name = world.pull(&site.name("index")).wait().await.unwrap().remove(0);
            let host = world.ns.images().get(&name).detail("").await.unwrap();
            let other = PullOptions { platform: "linux/arm64".into(), fetch_only: true, ..pull(site.name("index")) };
            world.pull_with(other).wait().await.unwrap();
            let foreign = world.ns.images().get(&name).detail("linux/arm64").await.unwrap();
            assert_ne!(host.manifest.digest, foreign.manifest.digest, "{:?}", site.kind);
            let none = PullOptions { platform: "plan9/mips".into(), ..pull(site.name("index")) };
            let error = world.pull_with(none).wait().await.unwrap_err();
            assert_eq!(error.code, Code::NotFound, "{:?}: {error}", site.kind);
        }
    });
}

#[test]
fn what_is_pushed_in_one_piece_or_in_many_is_what_is_pulled() {
    bounded(async {
        for site in Site::all(&[]).filter(Site::pushes) {
            let world = site.world().await;
            let picture = Picture::sample("made", 3 << 20);
            let name = world.import("made", packed(&picture.layout())).wait().await.unwrap().remove(0);
            let image = world.ns.images().get(&name);
            let digest = image.info().await.unwrap().target.digest;
            for (tag, chunk) in [("whole", 0), ("pieces", 1 << 20)] {
                let reference = site.name(&format!("team/made-{tag}:1"));
                let options = PushOptions { reference: reference.clone(), chunk, ..PushOptions::default() };
                image.push(&options).wait().await.unwrap_or_else(|e| panic!("{:?}: {e}", site.kind));
                let other = site.world().await;
                let name = other.pull(&reference).wait().await.unwrap().remove(0);
                assert_eq!(other.ns.images().get(&name).info().await.unwrap().target.digest, digest);
            }
            // A second time nothing is sent, and under another name the blobs are taken over.
            let sent =
                |log: &str| log.lines().filter(|line| line.contains("PUT /v2/") && line.contains("/blobs/")).count();
            let before = sent(&site.registry.log());
            let again = |image: &str| PushOptions {
                reference: site.name(image),
                mount_from: vec!["team/made-whole".into()],
                ..PushOptions::default()
            };
            for name in ["team/made-whole:2", "other/made:1"] {
                image.push(&again(name)).wait().await.unwrap();
            }
            assert_eq!(sent(&site.registry.log()), before, "{:?}", site.kind);
        }
    });
}

#[test]
fn a_cache_that_only_gives_is_not_pushed_to() {
    bounded(async {
        let site = Site::of(Kind::Cached, &["busybox"]);
        let world = site.world().await;
        let name = world.pull(&site.name("busybox")).wait().await.unwrap().remove(0);
        let before = world.holdings().await;
        let job = world.ns.images().get(&name).push(&PushOptions::default());
        world.refused("it takes nothing", &before, job, Code::FailedPrecondition, "405").await;
        // Where the table says so, that is known before.
        let cache = &site.cache.as_ref().unwrap().address;
        let text = format!(
            "[host.\"{cache}/v2/registry.invalid\"]\noverride_path = true\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        world.daemon.set_hosts("registry.invalid", &text);
        let job = world.ns.images().get(&name).push(&PushOptions::default());
        let error = world.refused("no host for it", &before, job, Code::FailedPrecondition, "pushed to").await;
        assert!(error.id.ends_with("registry.invalid/hosts.toml"), "{error}");
    });
}

#[test]
fn who_shows_no_certificate_where_one_is_wanted_is_not_let_in() {
    bounded(async {
        let site = Site::of(Kind::Certified, &["busybox"]);
        let world = World::with(Daemon::start()).await;
        let before = world.holdings().await;
        let (cert, key) = site.registry.client();
        let (cert, key) = (std::fs::read(cert).unwrap(), Secret(std::fs::read_to_string(key).unwrap()));
        let with = |client_certificate: &[u8], client_key: &Secret| PullOptions {
            ca_certificates: site.registry.authority(),
            client_certificate: client_certificate.to_vec(),
            client_key: client_key.clone(),
            ..pull(site.name("busybox"))
        };
        for (what, options, code, word) in [
            ("none", with(b"", &Secret::default()), Code::Denied, "wants to be shown a certificate that it takes"),
            ("no key", with(&cert, &Secret::default()), Code::InvalidArgument, "both or neither"),
            ("no certificate", with(b"x", &key), Code::InvalidArgument, "no certificate"),
            ("no pair", with(&site.registry.authority(), &key), Code::InvalidArgument, "no pair"),
        ] {
            let error = world.pull_with(options).wait().await.unwrap_err();
            assert_eq!(error.code, code, "{what}: {error}");
            assert!(error.to_string().contains(word), "{what}: {error}");
        }
        world.settles(&before).await;
        world.pull_with(with(&cert, &key)).wait().await.unwrap();
        // The same by hand, with both in one file.
        let both = world.daemon.path().join("both.pem");
        std::fs::write(&both, [cert.clone(), key.0.clone().into_bytes()].concat()).unwrap();
        let ca = world.daemon.path().join("ca.pem");
        std::fs::write(&ca, site.registry.authority()).unwrap();
        let (ca, both, name) = (ca.to_str().unwrap(), both.to_str().unwrap(), site.name("busybox"));
        let said = world.daemon.coffer(&["image", "pull", "--ca", ca, "--cert", both, &name]);
        assert_eq!(said.status.code(), Some(0), "{said:?}");
        assert!(!world.daemon.log().contains(key.0.lines().nth(1).unwrap()), "D8");
    });
}
