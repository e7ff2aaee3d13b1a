//! Exporting: one archive that others read in two ways, the same bytes for the same images.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use cofferdam_client::{PullOptions, channel};
use cofferdam_integration::{bounded, images};
use cofferdam_types::Code;
use serde_json::Value;

use crate::support::{
    tree::assert_same,
    world::{Registry, World, umoci},
};

async fn import(world: &World, name: &str, archive: &str) -> String {
    let file = File::open(images().join(format!("archive/{archive}.oci.tar"))).unwrap();
    world.import(name, file.into()).wait().await.unwrap().remove(0)
}

async fn export(world: &World, names: &[&str], platform: &str, path: &Path) {
    let file = File::create_new(path).unwrap();
    world.ns.images().export_fd(names, platform, file.into()).wait().await.unwrap();
}

/// What it holds, by name.
fn members(path: &Path) -> BTreeMap<String, Vec<u8>> {
    use std::io::Read as _;
    let mut archive = tar::Archive::new(File::open(path).unwrap());
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let header = entry.header();
        assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
        let before = found.insert(entry.path().unwrap().to_str().unwrap().to_owned(), bytes);
        assert!(before.is_none(), "once each");
    }
    found
}

fn skopeo(source: &str) -> PathBuf {
    let to = tempfile::tempdir().unwrap().keep();
    let output = Command::new("skopeo").args(["copy", "-q", source]).arg(format!("oci:{}:x", to.display())).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{source}: {output:?}");
    to
}

#[test]
fn several_images_in_one_archive_are_the_same_bytes_each_time_and_read_in_both_ways() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let (first, again, elsewhere) = (dir.path().join("1"), dir.path().join("2"), dir.path().join("3"));
        let world = World::start().await;
        // The layers of minbase are the lower ones of stack.
        let minbase = import(&world, "shop/minbase:1", "minbase").await;
        let stack = import(&world, "shop/stack:2", "stack").await;
        world.ns.images().tag(&stack, "shop/stack:latest", false).info().await.unwrap();
        let names = [stack.as_str(), "shop/minbase:1", "shop/stack"];
        export(&world, &names, "", &first).await;
        export(&world, &[names[2], names[1], names[0], names[0]], "", &again).await;
        assert!(std::fs::read(&first).unwrap() == std::fs::read(&again).unwrap(), "whatever the order of the names");
        let other = World::start().await;
        for (name, archive) in
            [("shop/stack:2", "stack"), ("shop/stack:latest", "stack"), ("shop/minbase:1", "minbase")]
        {
            import(&other, name, archive).await;
        }
        export(&other, &names, "", &elsewhere).await;
        assert!(std::fs::read(&first).unwrap() == std::fs::read(&elsewhere).unwrap(), "of another daemon");

        let members = members(&first);
        let load: Value = serde_json::from_slice(&members["manifest.json"]).unwrap();
        let tags: Vec<_> =
            load.as_array().unwrap().iter().flat_map(|one| one["RepoTags"].as_array().unwrap()).collect();
        assert_eq!(tags.len(), 3, "{load}");
        for part in load.as_array().unwrap().iter().flat_map(|one| one["Layers"].as_array().unwrap()) {
            assert!(members.contains_key(part.as_str().unwrap()), "{part}");
        }

        // By ourselves, in a namespace that has nothing of it.
        let third = World::start().await;
        let came = third.import("", File::open(&first).unwrap().into()).wait().await.unwrap();
        assert_eq!(came.len(), 3, "{came:?}");
        assert_same("stack", &third.container_tree("shop/stack:2", "").await, &umoci("stack"));
        assert_same("minbase", &third.container_tree(&minbase, "").await, &umoci("minbase"));

        // By others: as a docker archive, and as a layout.
        let as_docker = skopeo(&format!("docker-archive:{}:docker.io/shop/minbase:1", first.display()));
        let one = dir.path().join("one");
        export(&world, &["shop/minbase:1"], "", &one).await;
        let as_oci = skopeo(&format!("oci-archive:{}", one.display()));
        for layout in [as_docker, as_oci] {
            let root = dir.path().join("unpacked");
            let image = format!("{}:x", layout.display());
            let output = Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(&root).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            assert!(root.join("bin/sh").exists() || root.join("usr/bin/sh").exists());
            std::fs::remove_dir_all(&root).unwrap();
            std::fs::remove_dir_all(&layout).unwrap();
        }
    });
}

#[test]
fn of_an_index_what_is_here_or_one_platform_alone() {
    bounded(async {
        let registry = Registry::start(&[], &["index"]);
        let world = World::start().await;
        let reference = registry.reference("index");
        let name = world.pull(&reference).wait().await.unwrap().remove(0);
        let dir = tempfile::tempdir().unwrap();
        let (whole, one) = (dir.path().join("whole"), dir.path().join("one"));
        export(&world, &[&name], "", &whole).await;
        let detail = world.ns.images().get(&name).detail("").await.unwrap();
        export(&world, &[&name], &detail.platform.to_string(), &one).await;
        let top = |path: &Path| {
            let index: Value = serde_json::from_slice(&members(path)["index.json"]).unwrap();
            index["manifests"][0]["digest"].as_str().unwrap().to_owned()
        };
        assert_eq!(top(&whole), detail.info.target.digest.to_string());
        assert_eq!(top(&one), detail.manifest.digest.to_string());
        let before = world.holdings().await;
        for (names, platform, code, word) in [
            (vec![name.as_str()], "linux/s390x", Code::NotFound, "s390x"),
            (vec![name.as_str()], "linux/arm64", Code::NotFound, "not"),
        ] {
            let file = File::create(dir.path().join("none")).unwrap();
            let job = world.ns.images().export_fd(&names, platform, file.into());
            world.refused(platform, &before, job, code, word).await;
        }
        for names in [vec!["nothing"], vec![], vec![name.as_str(); 257]] {
            let file = File::create(dir.path().join("none")).unwrap();
            let error = world.ns.images().export_fd(&names, "", file.into()).wait().await.unwrap_err();
            assert!([Code::NotFound, Code::InvalidArgument].contains(&error.code), "{error}");
        }
        // All of it, when it is here.
        let other = PullOptions { reference, platform: "linux/arm64".into(), ..PullOptions::default() };
        world.pull_with(other).wait().await.unwrap();
        let all = dir.path().join("all");
        export(&world, &[&name], "", &all).await;
        assert!(members(&all).len() > members(&whole).len());
    });
}

/// A byte, in a layer that has its size still. An archive of it is nobody's backup.
#[test]
fn what_the_disk_has_changed_is_no_part_of_an_archive() {
    bounded(async {
        let dir = tempfile::tempdir().unwrap();
        let world = World::start().await;
        let name = import(&world, "test/changed", "stack").await;
        let digest = world.ns.images().get(&name).detail("").await.unwrap().layers[0].digest.clone();
        let path = world.daemon.root().join("content/blobs/sha256").join(digest.hex());
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        let read = async || {
            let (sink, mut chunks) = channel();
            let reading = world.ns.content().get(&digest.to_string()).read(0, 0, &sink);
            drop(sink);
            let taken = async { while chunks.next().await.is_some() {} };
            tokio::join!(reading, taken).0
        };
        read().await.unwrap();
        std::fs::write(&path, &bad).unwrap();
        assert_eq!(read().await.unwrap_err().code, Code::DataLoss);
        let file = File::create(dir.path().join("archive")).unwrap();
        let error = world.ns.images().export_fd(&[&name], "", file.into()).wait().await.unwrap_err();
        assert_eq!(error.code, Code::DataLoss, "{error}");
        let said = world.daemon.coffer(&["system", "check"]);
        assert!(String::from_utf8_lossy(&said.stdout).contains("blob-damaged"), "{said:?}");
    });
}
