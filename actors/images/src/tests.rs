//! Images from content store to mount, with every actor below in place.

use std::{
    fs,
    io::Write,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use cofferdam_content::Content;
use cofferdam_diff::{Diff, Rung};
use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{Metadata, records};
use cofferdam_snapshots::{Snapshots, Staged};
use cofferdam_types::{
    Algorithm, Authority, Code, Descriptor, Digest, Labels, Name, Namespace, Platform, Result, media,
};
use serde_json::json;

mod heal;

use crate::{Document, Images, Prune, Step, Told, Why, config, content_labels, document};

struct World {
    kernel: Kernel,
    meta: Metadata,
    content: Content,
    snapshots: Snapshots,
    images: Images,
    root: tempfile::TempDir,
}

fn run(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn first() -> Namespace {
    Namespace::default_namespace()
}

fn second() -> Namespace {
    Namespace::new("second").unwrap()
}

fn auth() -> Authority {
    Authority::system()
}

impl World {
    async fn start() -> World {
        let world = World::at(tempfile::tempdir().unwrap()).await;
        let make =
            |tx: &mut cofferdam_metadata::Tx<'_>| records::namespaces::create(tx, &second(), &Labels::new()).map(drop);
        world.meta.write(&auth(), make).await.unwrap();
        world
    }

    async fn at(root: tempfile::TempDir) -> World {
        let kernel = Kernel::new().unwrap();
        let place = Placement::Shared("test");
        let meta = Metadata::start(&kernel, place, &root.path().join("meta.redb")).unwrap();
        let dir = OwnedFd::from(fs::File::open(root.path()).unwrap());
        let content = Content::start(&kernel, place, meta.clone(), dir).unwrap();
        let snapshots = Snapshots::start(&kernel, place, meta.clone(), root.path(), Default::default()).unwrap();
        let diff = Diff::start(&kernel, place, content.clone(), Default::default());
        let images = Images::start(&kernel, place, meta.clone(), content.clone(), snapshots.clone(), diff);
        kernel.ready().await.unwrap();
        World { kernel, meta, content, snapshots, images, root }
    }

    async fn put(&self, ns: &Namespace, media_type: &str, bytes: &[u8]) -> Descriptor {
        let labels = match media::kind(media_type) {
            media::Kind::Manifest => content_labels(&descriptor(media_type, bytes), bytes).unwrap(),
            _ => Labels::new(),
        };
        self.content.put_bytes(&auth(), ns, Algorithm::Sha256, bytes.to_vec(), labels).await.unwrap();
        descriptor(media_type, bytes)
    }

    /// Stores all of an image and its record.
    async fn store(&self, ns: &Namespace, image: &Image) -> Descriptor {
        for layer in &image.layers {
            self.put(ns, media::OCI_LAYER_GZIP, &layer.packed).await;
        }
        self.put(ns, media::OCI_CONFIG, &image.config).await;
        let target = self.put(ns, media::OCI_MANIFEST, &image.manifest).await;
        self.images.put(&auth(), ns, &name("image"), &target, Labels::new()).await.unwrap();
        target
    }

    async fn unpack(&self, ns: &Namespace, driver: &str) -> Result<Option<Digest>> {
        let image = self.images.resolve(ns, &name("image"), &platform()).await?;
        self.images.unpack(&auth(), ns, &image, driver, None).await
    }

    /// Mounts a chain and hands its root to `look`.
    async fn look(&self, ns: &Namespace, driver: &str, top: &Digest, look: impl FnOnce(PathBuf)) {
        let top = name(&top.to_string());
        let key = name("look");
        let mounts = self.snapshots.view(&auth(), ns, driver, &key, Some(&top), Labels::new()).await.unwrap();
        let mounted = cofferdam_sys::mount::detached(&mounts[0]).unwrap();
        look(PathBuf::from(format!("/proc/self/fd/{}", mounted.as_raw_fd())));
        self.snapshots.remove(&auth(), ns, driver, &key).await.unwrap();
    }

    fn trees(&self, driver: &str) -> usize {
        let trees = fs::read_dir(self.root.path().join("snapshots").join(driver)).unwrap();
        // The stock of directories made ahead has `work`, or nothing in `fs`.
        trees
            .filter(|entry| fs::read_dir(entry.as_ref().unwrap().path().join("fs")).is_ok_and(|d| d.count() > 0))
            .count()
    }
}

fn platform() -> Platform {
    Platform::new("linux", "amd64", "")
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, Digest::of(Algorithm::Sha256, bytes), bytes.len() as u64)
}

struct Layer {
    packed: Vec<u8>,
    diff_id: Digest,
}

struct Image {
    layers: Vec<Layer>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

enum Entry<'a> {
    Symlink(&'a str, &'a str),
    File(&'a str, &'a str),
    Link(&'a str, &'a str),
}

fn layer(entries: &[Entry<'_>]) -> Layer {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        match entry {
            Entry::File(path, text) => {
                header.set_size(text.len() as u64);
                tar.append_data(&mut header, path, text.as_bytes()).unwrap();
            }
            Entry::Symlink(path, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, path, target).unwrap();
            }
            Entry::Link(path, target) => {
                header.set_entry_type(tar::EntryType::Link);
                header.set_size(0);
                tar.append_link(&mut header, path, target).unwrap();
            }
        }
    }
    pack(&tar.into_inner().unwrap(), 6)
}

fn pack(tar: &[u8], level: u32) -> Layer {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    gzip.write_all(tar).unwrap();
    Layer { packed: gzip.finish().unwrap(), diff_id: Digest::of(Algorithm::Sha256, tar) }
}

fn image(layers: Vec<Layer>) -> Image {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    image_claiming(layers, &diff_ids)
}

fn image_claiming(layers: Vec<Layer>, diff_ids: &[Digest]) -> Image {
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let blobs: Vec<_> = layers.iter().map(|layer| descriptor(media::OCI_LAYER_GZIP, &layer.packed)).collect();
    let manifest = json!({"schemaVersion": 2, "config": descriptor(media::OCI_CONFIG, &config), "layers": blobs});
    Image { layers, config, manifest: manifest.to_string().into_bytes() }
}

fn three_layers() -> Image {
    image(vec![
        layer(&[Entry::File("etc/a", "one"), Entry::File("etc/gone", "x"), Entry::File("keep", "k")]),
        layer(&[Entry::File("etc/.wh.gone", ""), Entry::File("etc/a", "two")]),
        layer(&[Entry::File("top", "3"), Entry::Link("etc/hard", "keep")]),
    ])
}

/// Its manifest and its config, as a pull has them before the layers.
fn parsed(made: &Image) -> (crate::document::Manifest, crate::document::Config) {
    let Document::Manifest(manifest) =
        document(&descriptor(media::OCI_MANIFEST, &made.manifest), &made.manifest).unwrap()
    else {
        panic!("not a manifest")
    };
    let parsed = config(&manifest.config, &made.config).unwrap();
    (manifest, parsed)
}

fn looks_right(root: PathBuf) {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    assert_eq!(read("etc/a").as_deref(), Some("two"));
    assert_eq!(read("etc/gone"), None);
    assert_eq!(read("top").as_deref(), Some("3"));
    assert_eq!(read("etc/hard").as_deref(), Some("k"), "a hard link to a file of a lower layer");
}

#[test]
fn each_layer_is_told_of() {
    run(async {
        let world = World::start().await;
        world.store(&first(), &three_layers()).await;
        let image = world.images.resolve(&first(), &name("image"), &platform()).await.unwrap();
        for steps in [&[Step::Begun, Step::Over][..], &[]] {
            let heard = Arc::new(Mutex::new(Vec::new()));
            let told = heard.clone();
            let told: Told = Arc::new(move |blob, step| told.lock().unwrap().push((blob.clone(), step)));
            world.images.unpack(&auth(), &first(), &image, "overlay", Some(told)).await.unwrap();
            let heard = heard.lock().unwrap();
            for layer in &image.layers {
                let own: Vec<_> =
                    heard.iter().filter(|(blob, _)| *blob == layer.digest).map(|(_, step)| *step).collect();
                assert_eq!(own, steps, "what was unpacked before is not told of");
            }
        }
        world.kernel.stop().await;
    });
}

#[test]
fn an_image_becomes_snapshots_with_labels() {
    run(async {
        let world = World::start().await;
        let target = world.store(&first(), &three_layers()).await;
        for driver in ["overlay", "native"] {
            let image = world.images.resolve(&first(), &name("image"), &platform()).await.unwrap();
            assert!(!world.images.is_unpacked(&first(), driver, image.top()).unwrap());
            let top = world.unpack(&first(), driver).await.unwrap().unwrap();
            assert_eq!(Some(&top), image.top());
            assert!(world.images.is_unpacked(&first(), driver, image.top()).unwrap());
            world.look(&first(), driver, &top, looks_right).await;
            assert_eq!(world.trees(driver), 3);
            // Again: nothing to do.
            assert_eq!(world.unpack(&first(), driver).await.unwrap().unwrap(), top);
            assert_eq!(world.trees(driver), 3);
            let snapshot = world.snapshots.stat(&first(), driver, &name(&image.chain_ids[1].to_string())).unwrap();
            assert_eq!(snapshot.labels["containerd.io/uncompressed"], image.config.diff_ids[1].to_string());
            assert!(snapshot.usage.inodes > 1);
            let held = world.content.info(&first(), &image.config_descriptor.digest).unwrap();
            assert_eq!(held.labels[&format!("containerd.io/gc.ref.snapshot.{driver}")], top.to_string());
        }
        let size = world.images.size(&first(), &target, &platform()).await.unwrap();
        let check = world.images.check(&first(), &target, &platform()).await.unwrap();
        assert_eq!(size, target.size + check.required.iter().map(|d| d.size).sum::<u64>());
        assert!(check.available && check.missing.is_empty());
        assert_eq!(world.images.platforms(&first(), &target).await.unwrap(), [platform()]);
        world.images.remove(&auth(), &first(), &name("image")).await.unwrap();
        assert_eq!(world.unpack(&first(), "overlay").await.unwrap_err().code, Code::NotFound);
        world.kernel.stop().await;
    });
}

#[test]
fn z7_an_image_that_was_resolved_is_found_again_by_who_has_its_documents_alone() {
    run(async {
        let world = World::start().await;
        let target = world.store(&first(), &three_layers()).await;
        let resolved = world.images.resolve_target(&first(), &target, &platform()).await.unwrap();
        // It is not read again: what would be read is no more.
        let hex = target.digest.to_string().split_once(':').unwrap().1.to_owned();
        let found = std::process::Command::new("find").arg(world.root.path()).args(["-name", &hex]).output().unwrap();
        let file = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
        fs::remove_file(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let again = world.images.resolve_target(&first(), &target, &platform()).await.unwrap();
        assert_eq!((again.chain_ids, again.config_bytes), (resolved.chain_ids, resolved.config_bytes.clone()));
        let refused = world.images.resolve_target(&second(), &target, &platform()).await.unwrap_err();
        assert_eq!(refused.code, Code::NotFound);
        let other = Platform::new("linux", "s390x", "");
        assert!(world.images.resolve_target(&first(), &target, &other).await.is_err());
        let config = resolved.config_descriptor.digest.clone();
        world.content.delete(&auth(), &first(), &config).await.unwrap();
        assert!(world.images.resolve_target(&first(), &target, &platform()).await.is_err());
        world.kernel.stop().await;
    });
}

#[test]
fn layers_are_extracted_while_they_arrive() {
    run(async {
        let world = World::start().await;
        let made = three_layers();
        let (manifest, parsed) = parsed(&made);
        let begin = async || world.images.begin_unpack(&auth(), &first(), &manifest, &parsed, "overlay").await.unwrap();
        let mut job = begin().await;
        // The first arrives whole, the second is given up half way, the third is never fed.
        let mut feed = job.feed(&manifest.layers[0].digest).unwrap();
        assert!(job.feed(&manifest.layers[0].digest).is_none(), "once");
        let packed = made.layers[0].packed.clone();
        std::thread::spawn(move || {
            feed.write_all(&packed).unwrap();
            feed.finish().unwrap();
        });
        let mut feed = job.feed(&manifest.layers[1].digest).unwrap();
        let half = made.layers[1].packed[..50].to_vec();
        std::thread::spawn(move || {
            feed.write_all(&half).unwrap();
            feed.flush().unwrap();
        });
        drop(job.feed(&manifest.layers[2].digest).unwrap());
        world.store(&first(), &made).await;
        let top = job.finish(None).await.unwrap().unwrap();
        world.look(&first(), "overlay", &top, looks_right).await;
        // A second job has nothing to feed.
        let mut job = begin().await;
        assert!(job.feed(&manifest.layers[0].digest).is_none());
        assert_eq!(job.finish(None).await.unwrap(), Some(top));
        assert_eq!(world.trees("overlay"), 3, "what was given up is gone");
        world.kernel.stop().await;
    });
}

#[test]
fn a_namespace_that_holds_the_blobs_gets_links() {
    run(async {
        let world = World::start().await;
        let made = three_layers();
        world.store(&first(), &made).await;
        world.store(&second(), &made).await;
        for driver in ["overlay", "native"] {
            let namespaces = (first(), second());
            let (a, b) = futures::join!(world.unpack(&namespaces.0, driver), world.unpack(&namespaces.1, driver));
            let top = a.unwrap().unwrap();
            assert_eq!(b.unwrap().unwrap(), top);
            assert_eq!(world.trees(driver), 3, "{driver}: unpacked once");
            world.look(&second(), driver, &top, looks_right).await;
        }
        world.kernel.stop().await;
    });
}

#[test]
fn another_compression_of_the_same_layers_is_verified_and_linked() {
    run(async {
        let world = World::start().await;
        let mut made = three_layers();
        world.store(&first(), &made).await;
        let top = world.unpack(&first(), "overlay").await.unwrap().unwrap();
        for layer in &mut made.layers {
            let mut tar = Vec::new();
            std::io::copy(&mut flate2::read::GzDecoder::new(&layer.packed[..]), &mut tar).unwrap();
            *layer = pack(&tar, 1);
        }
        world.store(&second(), &image(made.layers)).await;
        assert_eq!(world.unpack(&second(), "overlay").await.unwrap().unwrap(), top);
        assert_eq!(world.trees("overlay"), 3);
        world.kernel.stop().await;
    });
}

#[test]
fn m8_claiming_the_diff_ids_of_another_namespace_gives_nothing() {
    run(async {
        let world = World::start().await;
        let secret = three_layers();
        world.store(&first(), &secret).await;
        let top = world.unpack(&first(), "overlay").await.unwrap().unwrap();
        let diff_ids: Vec<_> = secret.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        // Blobs of its own under the other's diff ids.
        let own = (0..3).map(|i| layer(&[Entry::File("mine", &i.to_string())])).collect();
        world.store(&second(), &image_claiming(own, &diff_ids)).await;
        assert_eq!(world.unpack(&second(), "overlay").await.unwrap_err().code, Code::DataLoss);
        assert!(!world.images.is_unpacked(&second(), "overlay", Some(&top)).unwrap());
        // The other's blobs, of which it knows only the digests.
        world.put(&second(), media::OCI_CONFIG, &secret.config).await;
        let target = world.put(&second(), media::OCI_MANIFEST, &secret.manifest).await;
        world.images.put(&auth(), &second(), &name("image"), &target, Labels::new()).await.unwrap();
        assert_eq!(world.unpack(&second(), "overlay").await.unwrap_err().code, Code::NotFound);
        world.kernel.stop().await;
    });
}

#[test]
fn a15_a_layer_that_is_not_what_the_config_says_leaves_nothing() {
    run(async {
        let world = World::start().await;
        let mut made = three_layers();
        let mut diff_ids: Vec<_> = made.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        diff_ids[1] = Digest::of(Algorithm::Sha256, b"another");
        made = image_claiming(made.layers, &diff_ids);
        world.store(&first(), &made).await;
        for driver in ["overlay", "native"] {
            let error = world.unpack(&first(), driver).await.unwrap_err();
            assert_eq!(error.code, Code::DataLoss);
            assert!(error.message.contains(&diff_ids[1].to_string()), "{error}");
            assert!(error.message.contains(&made.layers[1].diff_id.to_string()), "{error}");
            assert!(world.snapshots.list(&first(), driver, None, 10).unwrap().is_empty());
            // The jobs that were cancelled with it drop their stages when they notice.
            let begun = std::time::Instant::now();
            while world.trees(driver) > 0 {
                assert!(begun.elapsed().as_secs() < 30, "{driver}: a stage was left behind");
                tokio::task::yield_now().await;
            }
        }
        world.kernel.stop().await;
    });
}

#[test]
fn a_snapshot_of_the_clients_own_under_a_chain_id_stays_private() {
    run(async {
        let world = World::start().await;
        let made = three_layers();
        world.store(&first(), &made).await;
        world.store(&second(), &made).await;
        let bottom = name(&made.layers[0].diff_id.to_string());
        let all = &world.snapshots;
        let mounts = all.prepare(&auth(), &first(), "overlay", &name("own"), None, Labels::new()).await.unwrap();
        fs::create_dir_all(format!("{}/etc", mounts[0].source)).unwrap();
        fs::write(format!("{}/planted", mounts[0].source), "evil").unwrap();
        all.commit(&auth(), &first(), "overlay", &bottom, &name("own"), Labels::new()).await.unwrap();
        let top = world.unpack(&first(), "overlay").await.unwrap().unwrap();
        world.look(&first(), "overlay", &top, |root| assert!(root.join("planted").exists())).await;
        assert!(!all.has_layer("overlay", &made.layers[0].diff_id).unwrap());
        assert!(!all.has_layer("overlay", &top).unwrap(), "nor what lies on it");
        world.unpack(&second(), "overlay").await.unwrap();
        let look = |root: PathBuf| {
            assert!(!root.join("planted").exists());
            looks_right(root);
        };
        world.look(&second(), "overlay", &top, look).await;
        world.kernel.stop().await;
    });
}

#[test]
fn labels_are_given_to_content_that_came_without() {
    run(async {
        let world = World::start().await;
        let made = three_layers();
        world.put(&first(), media::OCI_CONFIG, &made.config).await;
        let content = async |bytes: Vec<u8>| {
            let put = world.content.put_bytes(&auth(), &first(), Algorithm::Sha256, bytes, Labels::new()).await;
            put.unwrap();
        };
        content(made.manifest.clone()).await;
        let manifest = descriptor(media::OCI_MANIFEST, &made.manifest);
        let missing = descriptor(media::OCI_MANIFEST, b"not here");
        let index = json!({"schemaVersion": 2, "manifests": [manifest, missing]}).to_string().into_bytes();
        content(index.clone()).await;
        world.images.label(&auth(), &first(), &descriptor(media::OCI_INDEX, &index)).await.unwrap();
        let labels = |bytes: &[u8]| world.content.info(&first(), &descriptor("", bytes).digest).unwrap().labels;
        assert_eq!(labels(&index)["containerd.io/gc.ref.content.1"], missing.digest.to_string());
        assert_eq!(labels(&made.manifest).len(), 4);
        let gone = descriptor(media::OCI_INDEX, b"gone");
        assert_eq!(world.images.label(&auth(), &first(), &gone).await.unwrap_err().code, Code::NotFound);
        assert!(world.meta.read().is_ok());
        world.kernel.stop().await;
    });
}

#[test]
fn many_layers_are_stacked_in_order() {
    run(async {
        let world = World::start().await;
        let layers = (0..40)
            .map(|i| layer(&[Entry::File("n", &i.to_string()), Entry::File(&format!("d{}/f{i}", i % 7), "x")]))
            .collect();
        world.store(&first(), &image(layers)).await;
        let top = world.unpack(&first(), "overlay").await.unwrap().unwrap();
        let look = |root: PathBuf| {
            assert_eq!(fs::read_to_string(root.join("n")).unwrap(), "39");
            assert_eq!((0..7).map(|d| fs::read_dir(root.join(format!("d{d}"))).unwrap().count()).sum::<usize>(), 40);
        };
        world.look(&first(), "overlay", &top, look).await;
        world.kernel.stop().await;
    });
}

#[test]
fn a_feed_that_stalls_holds_up_nobody() {
    run(async {
        for other in [first(), second()] {
            let world = World::start().await;
            let made = three_layers();
            let (manifest, parsed) = parsed(&made);
            let mut stalled =
                world.images.begin_unpack(&auth(), &first(), &manifest, &parsed, "overlay").await.unwrap();
            let mut feed = stalled.feed(&manifest.layers[0].digest).unwrap();
            feed.write_all(&made.layers[0].packed[..20]).unwrap();
            feed.flush().unwrap();
            world.store(&other, &made).await;
            let unpacked = actix_rt::time::timeout(Duration::from_secs(60), world.unpack(&other, "overlay")).await;
            let top = unpacked.unwrap_or_else(|_| panic!("{other} is held up")).unwrap().unwrap();
            // It comes to its end after all: the tree is there, and so is its own, which goes.
            feed.write_all(&made.layers[0].packed[20..]).unwrap();
            feed.finish().unwrap();
            if other != first() {
                world.store(&first(), &made).await;
            }
            assert_eq!(stalled.finish(None).await.unwrap().unwrap(), top);
            world.look(&first(), "overlay", &top, looks_right).await;
            let dir = |ns: &Namespace| world.snapshots.stat(ns, "overlay", &name(&top.to_string())).unwrap().dir;
            assert_eq!(dir(&first()), dir(&other));
            assert_eq!(world.trees("overlay"), 3);
            world.kernel.stop().await;
        }
    });
}

/// However few processors there are.
#[test]
fn what_waits_for_its_bytes_holds_up_no_other_layer() {
    run(async {
        let world = World::start().await;
        let threads = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        let slow = image((0..=threads).map(|n| layer(&[Entry::File("n", &n.to_string())])).collect());
        let Document::Manifest(manifest) =
            document(&descriptor(media::OCI_MANIFEST, &slow.manifest), &slow.manifest).unwrap()
        else {
            panic!("not a manifest")
        };
        let parsed = config(&manifest.config, &slow.config).unwrap();
        let mut stalled = world.images.begin_unpack(&auth(), &first(), &manifest, &parsed, "overlay").await.unwrap();
        let begun = manifest.layers.iter().zip(&slow.layers).map(|(layer, made)| {
            let mut feed = stalled.feed(&layer.digest).unwrap();
            feed.write_all(&made.packed[..20]).unwrap();
            feed.flush().unwrap();
            feed
        });
        let feeds: Vec<_> = begun.collect();
        world.store(&second(), &three_layers()).await;
        let unpacked = actix_rt::time::timeout(Duration::from_secs(60), world.unpack(&second(), "overlay")).await;
        let top = unpacked.expect("it waits for bytes of others").unwrap().unwrap();
        world.look(&second(), "overlay", &top, looks_right).await;
        drop((feeds, stalled));
        world.kernel.stop().await;
    });
}

#[test]
fn an_unpack_that_nobody_waits_for_stops_and_leaves_nothing() {
    run(async {
        let world = World::start().await;
        let big = "x".repeat(64 << 20);
        world.store(&first(), &image(vec![layer(&[Entry::File("big", &big)]), layer(&[Entry::File("f", "")])])).await;
        for driver in ["overlay", "native"] {
            {
                let ns = first();
                let job = std::pin::pin!(world.unpack(&ns, driver));
                let begun = std::pin::pin!(async {
                    while world.trees(driver) == 0 {
                        tokio::task::yield_now().await;
                    }
                });
                let job_won = matches!(futures::future::select(job, begun).await, futures::future::Either::Left(_));
                assert!(!job_won, "{driver}: it was over before it could be dropped");
            }
            // Its turn is free again.
            let top = world.unpack(&first(), driver).await.unwrap().unwrap();
            world.look(&first(), driver, &top, |root| assert!(root.join("big").exists())).await;
            assert_eq!(world.trees(driver), 2);
        }
        world.kernel.stop().await;
    });
}

/// One that can't be extracted beside what it lies on.
fn needs_its_parents() -> Image {
    image(vec![
        layer(&[Entry::File("usr/lib/a", "1"), Entry::File("usr/lib/gone", "1"), Entry::Symlink("lib", "usr/lib")]),
        // One place under two names: which came last is only known with the symbolic link at hand.
        layer(&[
            Entry::File("lib/x", "1"),
            Entry::File("usr/lib/x", "2"),
            Entry::File("lib/x", "3"),
            Entry::File("usr/lib/.wh.gone", ""),
        ]),
        layer(&[Entry::File("lib/y", "4")]),
    ])
}

#[test]
fn a_layer_that_needs_its_parents_is_extracted_on_them() {
    run(async {
        let world = World::start().await;
        let made = needs_its_parents();
        world.store(&first(), &made).await;
        for driver in ["overlay", "native"] {
            let top = world.unpack(&first(), driver).await.unwrap().unwrap();
            let look = |root: PathBuf| {
                let read = |path: &str| fs::read_to_string(root.join(path)).ok();
                assert!(fs::symlink_metadata(root.join("lib")).unwrap().is_symlink(), "{driver}");
                assert_eq!(read("usr/lib/x").as_deref(), Some("3"), "{driver}");
                assert_eq!((read("usr/lib/y").as_deref(), read("usr/lib/a").as_deref()), (Some("4"), Some("1")));
                assert_eq!(read("usr/lib/gone"), None);
            };
            world.look(&first(), driver, &top, look).await;
        }
        world.kernel.stop().await;
    });
}

// Others may have filled what they made with labels, and the answer may be kept for as long as somebody likes.
#[test]
fn of_an_image_that_was_looked_at_little_is_kept() {
    run(async {
        let world = World::start().await;
        let labels = Labels::from([("l".to_owned(), "x".repeat(4000))]);
        let mut target = descriptor(media::OCI_MANIFEST, b"target");
        target.annotations.insert("a".into(), "x".repeat(4000));
        for image in ["used", "unused"] {
            let image = records::images::Image {
                labels: labels.clone(),
                ..records::images::Image::new(name(image), target.clone())
            };
            world.images.create(&auth(), &first(), image).await.unwrap();
        }
        let make = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            let spec = cofferdam_types::Any { type_url: "t".into(), value: vec![1] };
            let mut container =
                records::containers::Container::new(cofferdam_types::Id::new("box").unwrap(), "native", spec);
            (container.image, container.labels) = ("used".into(), labels.clone());
            records::containers::create(tx, &first(), container).map(drop)
        };
        world.meta.write(&auth(), make).await.unwrap();
        for rehearse in [true, false] {
            let options = Prune { rehearse, ..Prune::default() };
            let (looked, _) =
                world.images.prune(&auth(), &first(), options, |image| !image.labels.is_empty()).await.unwrap();
            assert_eq!(looked.len(), 2, "what is asked of it is asked of all that it has");
            for one in &looked {
                assert!(one.image.labels.is_empty() && one.image.target.annotations.is_empty());
                assert_eq!((&one.image.target.digest, one.removed), (&target.digest, &*one.image.name == "unused"));
            }
            let used = looked.iter().find(|one| !one.removed).unwrap();
            assert_eq!(used.why, Why::Used(cofferdam_types::Id::new("box").unwrap()));
        }
        world.kernel.stop().await;
    });
}

/// What is read once more is known to be damaged as what is read the first time is: else nobody would be let who brings it again.
#[test]
fn a_blob_that_goes_bad_before_its_layer_is_settled_is_known_for_it() {
    run(async {
        let world = World::start().await;
        world.store(&first(), &needs_its_parents()).await;
        let image = world.images.resolve(&first(), &name("image"), &platform()).await.unwrap();
        let mut rungs = Vec::new();
        for ((blob, diff_id), chain) in image.layers.iter().zip(&image.config.diff_ids).zip(&image.chain_ids) {
            let turn = world.snapshots.turn(&first(), "overlay", chain).unwrap();
            let staged = world.snapshots.stage_layer("overlay", turn, None, None, false).await.unwrap();
            let Staged::New(stage) = staged else { panic!("nobody has unpacked it") };
            let extracted = world.images.diff.apply(&first(), blob, diff_id, stage, 0).await.unwrap();
            rungs.push(Rung::New(Box::new(extracted)));
        }
        let bad = image.layers[1].digest.clone();
        let file = world.root.path().join("blobs/sha256").join(bad.hex());
        let length = fs::metadata(&file).unwrap().len() as usize;
        fs::write(&file, vec![7; length]).unwrap();
        assert!(world.content.is_whole(&first(), &bad).unwrap(), "nobody has read it since");
        assert!(world.images.diff.settle(&first(), rungs).await.is_err());
        assert!(!world.content.is_whole(&first(), &bad).unwrap());
        assert!(world.content.is_whole(&first(), &image.layers[0].digest).unwrap());
        world.kernel.stop().await;
    });
}
