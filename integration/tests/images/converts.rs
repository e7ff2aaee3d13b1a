//! Conversions: the same files, packed otherwise; the same bytes each time.

use std::{fs::File, path::Path, process::Command};

use cofferdam_client::{ConvertOptions, PushOptions};
use cofferdam_integration::{bounded, images};
use cofferdam_types::{Code, media};
use serde_json::Value;

use crate::support::{
    craft::{Picture, Tar, gzip, sha},
    tree::assert_same,
    world::{Registry, World, packed, umoci},
};

fn to(name: &str, compression: &str, oci: bool) -> ConvertOptions {
    ConvertOptions { name: name.into(), compression: compression.into(), oci, ..ConvertOptions::default() }
}

async fn import(world: &World, name: &str, archive: &str) -> String {
    let file = File::open(images().join(format!("archive/{archive}"))).unwrap();
    world.import(name, file.into()).wait().await.unwrap().remove(0)
}

async fn convert(world: &World, from: &str, options: &ConvertOptions) -> String {
    world.ns.images().get(from).convert(options).wait().await.unwrap().remove(0)
}

async fn layers(world: &World, name: &str) -> Vec<String> {
    let detail = world.ns.images().get(name).detail("").await.unwrap();
    detail.layers.into_iter().map(|layer| layer.media_type).collect()
}

async fn target(world: &World, name: &str) -> String {
    world.ns.images().get(name).info().await.unwrap().target.digest.to_string()
}

#[test]
fn layers_are_packed_anew_and_hold_the_same_files() {
    bounded(async {
        let world = World::start().await;
        let stack = import(&world, "stack", "stack.oci.tar").await;
        let zstd = convert(&world, &stack, &to("packed:zstd", "zstd", false)).await;
        assert_eq!(zstd, "docker.io/library/packed:zstd");
        assert!(layers(&world, &zstd).await.iter().all(|kind| kind == media::OCI_LAYER_ZSTD));
        let plain = convert(&world, &zstd, &to("packed:plain", "none", false)).await;
        assert!(layers(&world, &plain).await.iter().all(|kind| kind == media::OCI_LAYER));
        let gzip = convert(&world, &zstd, &to("packed:gzip", "gzip", false)).await;
        assert!(layers(&world, &gzip).await.iter().all(|kind| kind == media::OCI_LAYER_GZIP));
        // The old one is as it was, and all have one tree.
        let chain = async |name: &str| world.ns.images().get(name).detail("").await.unwrap().chain_id;
        for name in [&zstd, &plain, &gzip] {
            assert_eq!(chain(name).await, chain(&stack).await, "{name}");
            assert!(world.ns.images().get(name).detail("").await.unwrap().unpacked, "{name}");
        }
        // The same bytes by whichever way, and whichever daemon.
        let again = convert(&world, &plain, &to("packed:again", "gzip", false)).await;
        assert_eq!(target(&world, &again).await, target(&world, &gzip).await);
        let other = World::start().await;
        let stack = import(&other, "stack", "stack.oci.tar").await;
        let there = convert(&other, &stack, &to("packed:zstd", "zstd", false)).await;
        assert_eq!(target(&other, &there).await, target(&world, &zstd).await);

        // Pushed, and pulled into a daemon that has nothing of it.
        let registry = Registry::start(&[], &[]);
        for name in [&zstd, &gzip, &plain] {
            let reference = registry.reference(&name.replace("docker.io/", "").replace(':', "-"));
            let options = PushOptions { reference: reference.clone(), plain_http: true, ..PushOptions::default() };
            world.ns.images().get(name).push(&options).wait().await.unwrap();
            let third = World::start().await;
            let came = third.pull(&reference).wait().await.unwrap();
            assert_same(name, &third.container_tree(&came[0], "").await, &umoci("stack"));
        }
    });
}

#[test]
fn docker_becomes_oci_and_an_index_is_converted_with_what_is_here() {
    bounded(async {
        let registry = Registry::start(&[], &["index"]);
        let world = World::start().await;
        // Debian's registry gets it in docker's own media types.
        let docker = registry.reference("docker:1");
        let output = Command::new("skopeo")
            .args(["copy", "-q", "--dest-tls-verify=false", "--format", "v2s2"])
            .arg(format!("oci:{}:latest", images().join("oci/busybox").display()))
            .arg(format!("docker://{docker}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        world.pull(&docker).wait().await.unwrap();
        assert!(layers(&world, &docker).await.iter().all(|kind| kind == media::DOCKER_LAYER_GZIP));
        let oci = convert(&world, &docker, &to("oci", "", true)).await;
        let info = world.ns.images().get(&oci).info().await.unwrap();
        assert_eq!(info.target.media_type, media::OCI_MANIFEST);
        let detail = world.ns.images().get(&oci).detail("").await.unwrap();
        let old = world.ns.images().get(&docker).detail("").await.unwrap();
        assert!(detail.layers.iter().all(|layer| layer.media_type == media::OCI_LAYER_GZIP));
        // Not a byte of the layers is new.
        let digests = |detail: &cofferdam_client::ImageDetail| -> Vec<_> {
            detail.layers.iter().map(|layer| layer.digest.clone()).collect()
        };
        assert_eq!((digests(&detail), &detail.config), (digests(&old), &old.config));
        let raw = world.daemon.coffer(&["content", "get", &info.target.digest.to_string()]).stdout;
        let raw: Value = serde_json::from_slice(&raw).unwrap();
        assert_eq!(raw["config"]["mediaType"], media::OCI_CONFIG);
        umoci_reads(&world, &oci).await;

        let index = registry.reference("index");
        let name = world.pull(&index).wait().await.unwrap().remove(0);
        let made = convert(&world, &name, &to("made", "zstd", true)).await;
        let report = world.ns.images().get(&made).report(false).await.unwrap();
        // The pull left the others where they were, and so they aren't in it.
        assert_eq!(report.platforms.len(), 1, "{report:?}");
        assert!(report.platforms[0].missing.is_empty());
        let of = report.platforms[0].platform.to_string();
        let one = ConvertOptions { platform: of, ..to("one", "zstd", true) };
        let one = convert(&world, &name, &one).await;
        let one = world.ns.images().get(&one).info().await.unwrap().target;
        assert_eq!((one.media_type.as_str(), &one.digest), (media::OCI_MANIFEST, &report.platforms[0].manifest.digest));
        // By hand.
        let said = world.daemon.coffer(&["image", "convert", "--compression", "gzip", &made, "byhand"]);
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "docker.io/library/byhand:latest", "{said:?}");
        assert_eq!(world.daemon.coffer(&["image", "convert", &made, "nothing"]).status.code(), Some(1));
    });
}

async fn umoci_reads(world: &World, name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    let said = world.daemon.coffer(&["image", "export", "--directory", name, path.to_str().unwrap()]);
    assert!(said.status.success(), "{said:?}");
    unpacked(&path, &dir.path().join("root"), "latest");
}

fn unpacked(layout: &Path, root: &Path, tag: &str) {
    let image = format!("{}:{tag}", layout.display());
    let output = Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(root).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(root.join("bin/sh").exists());
}

#[test]
fn what_can_not_be_converted_leaves_nothing() {
    bounded(async {
        let world = World::start().await;
        let tar = Tar::new().file("a", "1").end();
        let lie = Picture::with(vec![gzip(&tar)], vec![sha(b"another")]);
        let options = cofferdam_client::ImportOptions {
            name: "lie".into(),
            no_unpack: true,
            ..cofferdam_client::ImportOptions::default()
        };
        world.import_with(&options, packed(&lie.layout())).wait().await.unwrap();
        let good = Picture::sample("good", 1000);
        world.import("good", packed(&good.layout())).wait().await.unwrap();
        let before = world.holdings().await;
        let images = world.ns.images();
        for (what, from, options, code, word) in [
            ("a layer that isn't what it says", "lie", to("new", "zstd", false), Code::DataLoss, "its image says"),
            ("nothing such", "none", to("new", "zstd", false), Code::NotFound, "not here"),
            ("no compression", "good", to("new", "lzma", false), Code::InvalidArgument, "lzma"),
            ("no name", "good", to("", "zstd", false), Code::InvalidArgument, ""),
            (
                "another platform",
                "good",
                ConvertOptions { platform: "linux/s390x".into(), ..to("new", "zstd", false) },
                Code::NotFound,
                "s390x",
            ),
        ] {
            let error = images.get(from).convert(&options).wait().await.unwrap_err();
            assert!(error.code == code && error.to_string().contains(word), "{what}: {error}");
            world.settles(&before).await;
        }
    });
}
