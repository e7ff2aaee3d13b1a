//! Importing: every image in every form, to the tree that umoci makes of it.

use std::{fs, os::fd::OwnedFd, path::Path};

use cofferdam_client::{ImportFormat, ImportOptions};
use cofferdam_integration::bounded;
use cofferdam_types::{Code, Descriptor, Labels, media};

use crate::support::{
    craft::{Picture, Tar, gzip, layout, sha},
    tree::{Tree, assert_same, tree},
    world::{Listed, World, directory, file_of, listed, opened, packed, pipe_of, umoci},
};

fn of_kind(kind: &str) -> impl Iterator<Item = Listed> {
    let kind = kind.to_owned();
    listed().into_iter().filter(move |image| image.kind == kind)
}

/// Imports into a daemon that has seen nothing, and compares what a container gets.
async fn same_as_umoci(what: &str, image: &str, source: OwnedFd, driver: &str) -> Tree {
    // The index is of busybox for two platforms, and umoci can't choose.
    let twin = if image == "index" { "busybox" } else { image.trim_end_matches("-zstd") }.to_owned();
    let twin = std::thread::spawn(move || umoci(&twin));
    let world = World::start().await;
    let options = ImportOptions { name: "image".into(), driver: driver.into(), ..ImportOptions::default() };
    let names = world.import_with(&options, source).wait().await.unwrap_or_else(|e| panic!("{what}: {e}"));
    let found = world.container_tree(&names[0], driver).await;
    assert_same(what, &found, &twin.join().unwrap());
    found
}

#[test]
fn every_layout_becomes_the_tree_that_umoci_makes() {
    let mut count = 0;
    for image in of_kind("oci-layout") {
        bounded(same_as_umoci(&image.name, &image.name, directory(&image.path), ""));
        count += 1;
    }
    assert!(count > 10);
}

#[test]
fn the_native_driver_makes_the_same_trees() {
    // This driver copies the whole tree for every layer: of a large image with eight that would take a minute.
    for image in of_kind("oci-layout").filter(|image| !image.name.starts_with("stack")) {
        bounded(same_as_umoci(&image.name, &image.name, directory(&image.path), "native"));
    }
}

#[test]
fn every_archive_becomes_the_same_tree_from_a_file_and_from_a_pipe() {
    for image in of_kind("oci-archive").chain(of_kind("docker-archive")) {
        let what = format!("{} {}", image.kind, image.name);
        // The large ones in one way each; the docker archive of the largest comes packed, below.
        let (file, pipe) = match (image.name.as_str(), image.kind.as_str()) {
            ("busybox", _) => (true, true),
            ("minbase", "docker-archive") | ("stack", "oci-archive") => (false, true),
            ("stack-zstd", _) => (true, false),
            _ => continue,
        };
        if file {
            bounded(same_as_umoci(&what, &image.name, opened(&image.path), ""));
        }
        if pipe {
            let pipe = pipe_of(fs::read(&image.path).unwrap());
            bounded(same_as_umoci(&format!("{what} through a pipe"), &image.name, pipe, ""));
        }
    }
}

#[test]
fn packed_archives_and_streams_become_the_same_tree() {
    bounded(async {
        for image in of_kind("oci-archive").chain(of_kind("docker-archive")).filter(|image| image.name == "busybox") {
            let bytes = fs::read(&image.path).unwrap();
            let what = format!("{} {}", image.kind, image.name);
            let gzipped = gzip(&bytes);
            same_as_umoci(&format!("{what} gzipped"), &image.name, file_of(&gzipped), "").await;
            let zstd = crate::support::craft::zstd(&bytes);
            same_as_umoci(&format!("{what} through zstd"), &image.name, file_of(&zstd), "").await;
            same_as_umoci(&format!("{what} gzipped, through a pipe"), &image.name, pipe_of(gzipped.clone()), "").await;

            for (how, bytes) in [("as a stream", &bytes), ("gzipped, as a stream", &gzipped)] {
                let world = World::start().await;
                let names = world.import_stream("image", bytes).await.unwrap_or_else(|e| panic!("{what} {how}: {e}"));
                let found = world.container_tree(&names[0], "").await;
                assert_same(&format!("{what} {how}"), &found, &umoci(&image.name));
            }
        }
        // The big one as a stream of a docker archive, which has to be taken in before it says what it is.
        let stack = of_kind("docker-archive").find(|image| image.name == "stack").unwrap();
        let gzipped = gzip(&fs::read(&stack.path).unwrap());
        same_as_umoci("stack gzipped, through a pipe", "stack", pipe_of(gzipped), "").await;
    });
}

/// A layout's directory as one tar, its files in the order of their names: blobs come before what names them.
fn archive(dir: &Path) -> Vec<u8> {
    fn walk(root: &Path, dir: &Path, mut tar: Tar) -> Tar {
        let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            tar = if path.is_dir() {
                walk(root, &path, tar.dir(&format!("./{name}/"), 0o755))
            } else {
                tar.bytes(&format!("./{name}"), &fs::read(&path).unwrap())
            };
        }
        tar
    }
    walk(dir, dir, Tar::new()).end()
}

#[test]
fn odd_images_become_the_same_tree_in_any_form() {
    bounded(async {
        for image in of_kind("oci-layout").filter(|image| image.name.starts_with("odd-")) {
            let bytes = archive(&image.path);
            same_as_umoci(&format!("{} as a file", image.name), &image.name, file_of(&bytes), "").await;
            let gzipped = gzip(&bytes);
            same_as_umoci(&format!("{} gzipped, through a pipe", image.name), &image.name, pipe_of(gzipped), "").await;
        }
    });
}

#[test]
fn a_zstd_image_and_its_gzip_twin_are_one_tree() {
    bounded(async {
        // Of the large ones too, since each is compared with the same tree where every layout is.
        let layout = |name: &str| of_kind("oci-layout").find(|image| image.name == name).unwrap().path;
        let gzip = same_as_umoci("gzip", "busybox", directory(&layout("busybox")), "").await;
        let zstd = same_as_umoci("zstd", "busybox", directory(&layout("busybox-zstd")), "").await;
        assert_same("busybox", &zstd, &gzip);
        // In one daemon the twin is found to be there: its layers have the same diff ids.
        let world = World::start().await;
        world.import("gzip", directory(&layout("stack"))).wait().await.unwrap();
        let before = world.daemon.leftovers();
        world.import("zstd", directory(&layout("stack-zstd"))).wait().await.unwrap();
        world.daemon.settles(&before);
        let images = world.ns.images();
        let gzip = images.get("docker.io/library/gzip:latest").detail("").await.unwrap();
        let zstd = images.get("docker.io/library/zstd:latest").detail("").await.unwrap();
        assert_eq!(gzip.chain_id, zstd.chain_id);
        assert!(gzip.unpacked && zstd.unpacked);
        assert!(gzip.layers.iter().zip(&zstd.layers).all(|(one, other)| one.digest != other.digest));
    });
}

/// The tree with its times cut to seconds.
fn seconds(mut tree: Tree) -> Tree {
    for entry in tree.values_mut() {
        entry.mtime.1 = 0;
    }
    tree
}

#[test]
fn a_root_file_system_becomes_an_image() {
    bounded(async {
        let dir = of_kind("rootfs-dir").next().unwrap().path;
        let tar = of_kind("rootfs-tar").next().unwrap().path;
        let source = tree(&dir);
        for (what, fd) in [
            ("directory", directory(&dir)),
            ("tar", opened(&tar)),
            ("gzipped tar", file_of(&gzip(&fs::read(&tar).unwrap()))),
            ("tar through a pipe", pipe_of(fs::read(&tar).unwrap())),
        ] {
            let world = World::start().await;
            let options = ImportOptions {
                name: "rootfs".into(),
                format: ImportFormat::Rootfs,
                command: vec!["/bin/echo".into(), "made of a directory".into()],
                ..ImportOptions::default()
            };
            let names = world.import_with(&options, fd).wait().await.unwrap();
            assert_eq!(names, ["docker.io/library/rootfs:latest"], "{what}");
            let found = world.container_tree(&names[0], "").await;
            // Of a directory the fractions of times are kept; the archive was made without them.
            let wanted = if what == "directory" { source.clone() } else { seconds(source.clone()) };
            assert_same(what, &found, &wanted);
            let (status, text) = world.run(&names[0], &[]).await.unwrap();
            assert_eq!((status, text.as_str()), (0, "made of a directory\n"), "{what}");
        }
    });
}

#[test]
fn importing_again_adds_nothing() {
    bounded(async {
        let world = World::start().await;
        let path = of_kind("oci-layout").find(|image| image.name == "odd-lowerlink").unwrap().path;
        let first = world.import("image", directory(&path)).wait().await.unwrap();
        let before = world.holdings().await;
        assert_eq!(world.import("image", directory(&path)).wait().await.unwrap(), first);
        world.settles(&before).await;
    });
}

#[test]
fn what_is_stored_only_is_unpacked_when_it_is_asked_for() {
    bounded(async {
        let world = World::start().await;
        let path = of_kind("oci-layout").find(|image| image.name == "odd-whiteouts").unwrap().path;
        let options = ImportOptions { name: "image".into(), no_unpack: true, ..ImportOptions::default() };
        let names = world.import_with(&options, directory(&path)).wait().await.unwrap();
        let image = world.ns.images().get(&names[0]);
        assert!(!image.detail("").await.unwrap().unpacked);
        let none: [&str; 0] = [];
        assert!(world.ns.snapshots("").list(&none).all().await.unwrap().is_empty());
        let chain = image.unpack("", "").await.unwrap();
        let detail = image.detail("").await.unwrap();
        assert!(detail.unpacked && detail.chain_id == chain);
        assert_same("unpacked later", &world.container_tree(&names[0], "").await, &umoci("odd-whiteouts"));

        // As a job, which tells of each layer, also where there is nothing to do; and the call was one.
        for driver in ["native", "native", ""] {
            let job = image.start_unpack("", driver);
            assert_eq!(job.wait().await.unwrap(), names);
            let info = job.info().await.unwrap();
            assert_eq!((&*info.kind, &*info.subject, &*info.state), ("unpack", &*names[0], "done"));
            assert!(!info.items.is_empty() && info.items.iter().all(|item| item.phase == "done"), "{info:?}");
        }
        let jobs = world.ns.jobs().list().all().await.unwrap();
        let kinds: Vec<_> = jobs.iter().map(|job| &*job.kind).collect();
        assert_eq!(kinds, ["import", "unpack", "unpack", "unpack", "unpack"]);
        let error = image.start_unpack("plan9/mips", "").wait().await.unwrap_err();
        assert_eq!(error.code, Code::NotFound, "{error}");
    });
}

// L1: labels that would act, were they a record's, in every place where an image can have one.
#[test]
fn l1_labels_of_an_image_are_no_labels_of_a_record() {
    bounded(async {
        let world = World::start().await;
        let labels = serde_json::json!({
            "containerd.io/restart.status": "running", "containerd.io/restart.loguri": "binary:///bin/sh",
            "containerd.io/gc.root": "now", "cofferdam.dev/anything": "at all", "plain": "label",
        });
        let mut picture = Picture::sample("labels", 1000);
        let mut config: serde_json::Value = serde_json::from_slice(&picture.config).unwrap();
        config["config"]["Labels"] = labels.clone();
        config["container_config"] = serde_json::json!({"Labels": labels});
        picture.config = config.to_string().into_bytes();
        let mut manifest: serde_json::Value = serde_json::from_slice(&picture.manifest).unwrap();
        let target = Descriptor::new(media::OCI_CONFIG, sha(&picture.config), picture.config.len() as u64);
        manifest["config"] = serde_json::json!(target);
        manifest["annotations"] = labels.clone();
        for layer in manifest["layers"].as_array_mut().unwrap() {
            layer["annotations"] = labels.clone();
        }
        picture.manifest = manifest.to_string().into_bytes();
        let mut entry = serde_json::json!(picture.target());
        entry["annotations"] = labels.clone();
        let files = layout(&serde_json::json!([entry]), &picture.blobs());
        let names = world.import("labels", packed(&files)).wait().await.unwrap();

        let image = world.ns.images().get(&names[0]);
        assert!(String::from_utf8(image.detail("").await.unwrap().config).unwrap().contains("restart.loguri"));
        assert_eq!(image.info().await.unwrap().labels, Labels::default());
        let container = world.container(&names[0], "box", &["/bin/true"]);
        let info = container.info().await.unwrap();
        assert_eq!(info.labels, Labels::default());
        let spec = String::from_utf8(info.spec.value).unwrap();
        for word in ["containerd.io", "binary://", "cofferdam.dev", "plain"] {
            assert!(!spec.contains(word), "{word} in {spec}");
        }
        container.remove(false).await.unwrap();
    });
}
