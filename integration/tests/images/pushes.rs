//! Pushing: to Debian's registry in every way that it can be spoken to, read back by others and by ourselves.

use std::{os::fd::OwnedFd, process::Command};

use cofferdam_client::{ImageReport, PullOptions, PushOptions, Secret};
use cofferdam_integration::{bounded, images};
use cofferdam_types::Code;
use serde_json::Value;

use crate::support::{
    craft::Picture,
    tree::assert_same,
    world::{Registry, World, packed, umoci},
};

fn to(reference: String) -> PushOptions {
    PushOptions { reference, plain_http: true, ..PushOptions::default() }
}

fn archive(name: &str) -> OwnedFd {
    std::fs::File::open(images().join(format!("archive/{name}.oci.tar"))).unwrap().into()
}

/// What skopeo finds under a name.
fn skopeo(reference: &str, more: &[&str]) -> Value {
    let name = format!("docker://{reference}");
    let output = Command::new("skopeo").args(["inspect", "--raw"]).args(more).arg(name).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn report(world: &World, name: &str) -> ImageReport {
    world.ns.images().get(name).report(false).await.unwrap()
}

#[test]
fn what_is_pushed_is_what_others_and_we_pull() {
    bounded(async {
        let registry = Registry::start(&[], &[]);
        let world = World::start().await;
        for name in ["busybox", "stack", "stack-zstd"] {
            let here = world.import(name, archive(name)).wait().await.unwrap().remove(0);
            let image = world.ns.images().get(&here);
            let digest = image.info().await.unwrap().target.digest;
            for (tag, chunk) in [("whole", 0), ("pieces", 300_000)] {
                let reference = registry.reference(&format!("pushed/{name}-{tag}:1"));
                let options = PushOptions { chunk, ..to(reference.clone()) };
                let job = image.push(&options);
                assert_eq!(job.wait().await.unwrap(), [reference.as_str()]);
                let info = job.info().await.unwrap();
                assert!(info.items.iter().all(|item| item.done == item.total), "{info:?}");
                let raw = Command::new("skopeo")
                    .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"])
                    .arg(format!("docker://{reference}"))
                    .output()
                    .unwrap();
                assert_eq!(String::from_utf8(raw.stdout).unwrap().trim(), digest.to_string(), "{reference}");
            }
            // Into a namespace that has nothing of it.
            let other = World::start().await;
            let pulled = other.pull(&registry.reference(&format!("pushed/{name}-pieces:1"))).wait().await.unwrap();
            let twin = name.trim_end_matches("-zstd");
            assert_same(name, &other.container_tree(&pulled[0], "").await, &umoci(twin));
        }
    });
}

#[test]
fn an_index_goes_with_all_its_images_or_one_of_them_alone() {
    bounded(async {
        let registry = Registry::start(&[], &["index"]);
        let world = World::start().await;
        let reference = registry.reference("index");
        let name = world.pull(&reference).wait().await.unwrap().remove(0);
        let image = world.ns.images().get(&name);
        let before = world.holdings().await;
        // The pull left the others where they were.
        let part = image.push(&to(registry.reference("copy:all")));
        let error = world.refused("half an index", &before, part, Code::FailedPrecondition, "one platform alone").await;
        assert!(error.to_string().contains("linux/arm64"), "{error}");
        let host = image.detail("").await.unwrap();
        let one = PushOptions { platform: host.platform.to_string(), ..to(registry.reference("copy:one")) };
        image.push(&one).wait().await.unwrap();
        let manifest = skopeo(&registry.reference("copy:one"), &["--tls-verify=false"]);
        assert_eq!(manifest["config"]["digest"].as_str(), Some(&*config(&world, &name).await));

        for state in report(&world, &name).await.platforms {
            let options = PullOptions {
                reference: reference.clone(),
                platform: state.platform.to_string(),
                ..PullOptions::default()
            };
            world.pull_with(options).wait().await.unwrap();
        }
        assert!(report(&world, &name).await.platforms.iter().all(|state| state.missing.is_empty()));
        image.push(&to(registry.reference("copy:all"))).wait().await.unwrap();
        let index = skopeo(&registry.reference("copy:all"), &["--tls-verify=false"]);
        assert!(index["manifests"].as_array().unwrap().len() > 1, "{index}");
    });
}

async fn config(world: &World, name: &str) -> String {
    let detail = world.ns.images().get(name).detail("").await.unwrap();
    let bytes = world.daemon.coffer(&["content", "get", &detail.manifest.digest.to_string()]).stdout;
    let manifest: Value = serde_json::from_slice(&bytes).unwrap();
    manifest["config"]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn with_tls_and_a_user_and_without_the_right() {
    bounded(async {
        let registry = Registry::start(&["--tls", "--user", "me:hunter22"], &[]);
        let world = World::start().await;
        let name = world.import("mine", archive("busybox")).wait().await.unwrap().remove(0);
        let image = world.ns.images().get(&name);
        let before = world.holdings().await;
        let options = |user: &str, secret: &str| PushOptions {
            reference: registry.reference("mine:1"),
            ca_certificates: registry.authority(),
            user: user.into(),
            secret: Secret(secret.into()),
            ..PushOptions::default()
        };
        for (what, options, code, word) in [
            ("a wrong secret", options("me", "wrong-one"), Code::Denied, "push to"),
            ("no user", options("", ""), Code::Denied, "give a user and a secret"),
            (
                "a digest",
                to(format!("{}@sha256:{}", registry.reference("x"), "0".repeat(64))),
                Code::InvalidArgument,
                "tag",
            ),
            ("nobody", to("127.0.0.1:1/x".into()), Code::Unavailable, "cannot be reached"),
        ] {
            world.refused(what, &before, image.push(&options), code, word).await;
        }
        image.push(&options("me", "hunter22")).wait().await.unwrap();
        assert!(!world.daemon.log().contains("hunter22"));
    });
}

#[test]
fn what_the_registry_has_is_not_sent_again() {
    bounded(async {
        let registry = Registry::start(&[], &["stack"]);
        let world = World::start().await;
        let name = world.pull(&registry.reference("stack")).wait().await.unwrap().remove(0);
        let image = world.ns.images().get(&name);
        // It came from there: another repository of the registry takes its blobs over.
        let sent = |log: &str| log.lines().filter(|line| line.contains("PUT /v2/") && line.contains("/blobs/")).count();
        let before = sent(&registry.log());
        image.push(&to(registry.reference("other/stack:1"))).wait().await.unwrap();
        let log = registry.log();
        assert!(before > 0 && log.contains("mount=sha256"), "{log}");
        assert_eq!(sent(&log), before, "nothing was sent: {log}");
        // The same by hand, where another repository is named that has them.
        let third = registry.reference("third/stack:1");
        let args = ["image", "push", "--plain-http", "--chunk-size", "1M", "--mount-from", "stack", &name, &third];
        let said = world.daemon.coffer(&args);
        assert_eq!((String::from_utf8_lossy(&said.stdout).trim(), said.status.code()), (&*third, Some(0)), "{said:?}");
        assert_eq!(sent(&registry.log()), before, "nothing was sent");

        // And what is new is sent to two registries at once, whole to each.
        let second = Registry::start(&[], &[]);
        let picture = Picture::sample("made", 3 << 20);
        let made = world.import("made", packed(&picture.layout())).wait().await.unwrap().remove(0);
        let made = world.ns.images().get(&made);
        let jobs = [made.push(&to(registry.reference("made:1"))), made.push(&to(second.reference("made:1")))];
        for job in jobs {
            job.wait().await.unwrap();
        }
        for registry in [&registry, &second] {
            let other = World::start().await;
            other.pull(&registry.reference("made:1")).wait().await.unwrap();
        }
    });
}
