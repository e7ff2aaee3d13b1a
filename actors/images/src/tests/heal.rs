//! Layers that the disk has changed: what is compared, and what is made anew of them.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use cofferdam_types::Fault;

use super::*;
use crate::{Prune, Pruned, Why, heal::paced};

/// Enough that nobody waits for it.
const RATE: u64 = 1 << 30;

impl World {
    /// Compares everything that is unpacked with its blob.
    async fn examine(&self) {
        for one in self.images.unpacked().await.unwrap() {
            self.images.examine(one, RATE).await.unwrap();
        }
    }

    /// What the check tells, and whether it was repaired.
    async fn told(&self, repair: bool) -> Vec<(Fault, bool)> {
        let found = self.images.check_layers(repair).await;
        found.into_iter().map(|one| (one.fault, one.repaired)).collect()
    }

    /// The file in a layer's tree, to be changed as a disk would.
    async fn file(&self, driver: &str, layer: usize, file: &str) -> PathBuf {
        let image = self.images.resolve(&first(), &name("image"), &platform()).await.unwrap();
        let dir = self.snapshots.stat(&first(), driver, &name(&image.chain_ids[layer].to_string())).unwrap().dir;
        self.root.path().join("snapshots").join(driver).join(dir.to_string()).join("fs").join(file)
    }
}

/// Puts other bytes into a file, the same ones and at the same time into each.
fn spoil(file: &Path) {
    fs::write(file, "wrong").unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
}

#[test]
fn what_was_copied_from_a_damaged_layer_is_made_anew_with_it() {
    run(async {
        let world = World::start().await;
        world.store(&first(), &three_layers()).await;
        for driver in ["overlay", "native"] {
            let top = world.unpack(&first(), driver).await.unwrap().unwrap();
            // As if the layers above had been unpacked when the lowest was damaged already.
            let copies = match driver {
                "native" => vec![(0, "keep"), (1, "keep"), (2, "keep")],
                _ => vec![(0, "keep"), (2, "etc/hard")],
            };
            for (layer, file) in &copies {
                spoil(&world.file(driver, *layer, file).await);
            }
            world.examine().await;
            assert_eq!(world.told(false).await, [(Fault::SnapshotDamaged, false)], "{driver}");
            assert_eq!(world.told(true).await, vec![(Fault::SnapshotDamaged, true); copies.len()], "{driver}");
            assert_eq!(world.told(true).await, [], "{driver}");
            world.examine().await;
            assert_eq!(world.told(false).await, [], "{driver}");
            world.look(&first(), driver, &top, looks_right).await;
        }
        world.kernel.stop().await;
    });
}

#[test]
fn an_image_is_unpacked_whole_again_though_a_layer_that_others_lie_on_is_gone_or_damaged() {
    run(async {
        let world = World::start().await;
        world.store(&first(), &three_layers()).await;
        for driver in ["overlay", "native"] {
            for layer in 0..3 {
                let top = world.unpack(&first(), driver).await.unwrap().unwrap();
                let tree = world.file(driver, layer, "").await;
                fs::remove_dir_all(tree.parent().unwrap()).unwrap();
                assert_eq!(world.unpack(&first(), driver).await.unwrap().unwrap(), top, "{driver}: {layer}");
                assert!(world.file(driver, layer, "").await.exists(), "{driver}: {layer}");
                world.look(&first(), driver, &top, looks_right).await;
            }
            let top = world.unpack(&first(), driver).await.unwrap().unwrap();
            spoil(&world.file(driver, 0, "keep").await);
            world.examine().await;
            assert_eq!(world.told(false).await, [(Fault::SnapshotDamaged, false)], "{driver}");
            world.unpack(&first(), driver).await.unwrap();
            assert_eq!(world.told(false).await, [], "{driver}");
            world.look(&first(), driver, &top, looks_right).await;
            assert_eq!(world.snapshots.check(false).await.unwrap(), [], "{driver}");
        }
        world.kernel.stop().await;
    });
}

#[test]
fn all_that_is_read_of_a_layer_and_its_blob_takes_its_time() {
    run(async {
        let world = World::start().await;
        let big: String = (0..300_000_u64).map(|n| char::from(b'a' + (n * n / 7 % 26) as u8)).collect();
        let made = image(vec![layer(&[Entry::File("big", &big), Entry::File("keep", "k")])]);
        let whole = made.layers[0].packed.len() + big.len() + 1;
        world.store(&first(), &made).await;
        world.unpack(&first(), "overlay").await.unwrap();
        let one = world.images.unpacked().await.unwrap().remove(0);
        // A byte a second, of a clock that nobody waits for.
        let (waited, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (images, waits, ended) = (world.images.clone(), waited.clone(), over.clone());
        let look = move |one| {
            let wait = |time: Duration| waits.lock().unwrap().push(time.as_secs());
            images.look(&one, &paced(1, &ended, wait))
        };
        let look = Arc::new(look);
        let again = look.clone();
        let theirs = one.clone();
        assert_eq!(world.images.healing.run(move || look(theirs)).await.unwrap(), Some(true));
        let waits = std::mem::take(&mut *waited.lock().unwrap());
        assert_eq!(waits.iter().sum::<u64>() as usize, whole, "each byte once: of the blob and of its tree");
        assert!(waits.iter().all(|bytes| *bytes <= 256 << 10), "and not many at once: {waits:?}");
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(world.images.healing.run(move || again(one)).await.unwrap_err().code, Code::Cancelled);
        assert!(waited.lock().unwrap().is_empty());
        world.kernel.stop().await;
    });
}

/// The third layer has a link to a file of the lowest: made again, it has the damage of that.
#[test]
fn a_layer_is_not_damaged_for_what_it_takes_from_a_damaged_one() {
    run(async {
        let world = World::start().await;
        world.store(&first(), &three_layers()).await;
        for driver in ["overlay", "native"] {
            let top = world.unpack(&first(), driver).await.unwrap().unwrap();
            let all = |all: Vec<crate::Unpacked>| all.into_iter().filter(move |one| one.driver() == driver);
            for above in [true, false] {
                let file = world.file(driver, 0, "keep").await;
                spoil(&file);
                // Those above alone, as if it had been damaged since it was looked at; and all.
                let unpacked = world.images.unpacked().await.unwrap();
                for one in all(unpacked).skip(usize::from(above)) {
                    world.images.examine(one, RATE).await.unwrap();
                }
                assert_eq!(world.told(false).await, [(Fault::SnapshotDamaged, false)], "{driver}");
                let found = world.images.check_layers(true).await;
                assert!(found.len() == 1 && found[0].repaired && found[0].message.contains("keep"), "{found:?}");
                world.look(&first(), driver, &top, looks_right).await;
            }
            // Where the lower one can't be compared nobody knows whose damage it is.
            let image = world.images.resolve(&first(), &name("image"), &platform()).await.unwrap();
            let blob = image.layers[0].digest.clone();
            spoil(&world.file(driver, 0, "keep").await);
            let link = world.content.info(&first(), &blob).unwrap();
            let gone = blob.clone();
            let delete =
                move |tx: &mut cofferdam_metadata::Tx<'_>| records::content::delete(tx, &first(), &gone).map(drop);
            world.meta.write(&auth(), delete).await.unwrap();
            world.examine().await;
            assert_eq!(world.told(true).await, [], "{driver}");
            let again = move |tx: &mut cofferdam_metadata::Tx<'_>| {
                records::content::create(tx, &first(), link.clone()).map(drop)
            };
            world.meta.write(&auth(), again).await.unwrap();
            world.examine().await;
            assert_eq!(world.told(true).await, [(Fault::SnapshotDamaged, true)], "{driver}");
        }
        world.kernel.stop().await;
    });
}

#[test]
fn an_image_that_cant_be_read_keeps_no_other_namespaces_layers_from_being_compared() {
    run(async {
        let world = World::start().await;
        for ns in [first(), second()] {
            world.store(&ns, &image(vec![layer(&[Entry::File("keep", "k")])])).await;
            world.unpack(&ns, "overlay").await.unwrap();
        }
        let file = world.file("overlay", 0, "keep").await;
        world.kernel.stop().await;
        let root = world.root;
        drop((world.kernel, world.meta, world.content, world.snapshots, world.images));
        {
            let tables = redb::Database::open(root.path().join("meta.redb")).unwrap();
            let write = tables.begin_write().unwrap();
            for table in ["images", "containers"] {
                let rows = redb::TableDefinition::<&[u8], &[u8]>::new(table);
                write.open_table(rows).unwrap().insert(&b"default\0bad"[..], &b"\xff"[..]).unwrap();
            }
            write.commit().unwrap();
        }
        let world = World::at(root).await;
        assert_eq!(world.images.list(&first(), None, 9).unwrap().len(), 1, "it is left out");
        let (pruned, _) = world.images.prune(&auth(), &first(), Prune::default(), |_| true).await.unwrap();
        assert!(matches!(&pruned[..], [Pruned { removed: false, why: Why::Unknown, .. }]), "{pruned:?}");
        spoil(&file);
        world.examine().await;
        assert_eq!(world.told(false).await, [(Fault::SnapshotDamaged, false)]);
        assert_eq!(world.told(true).await, [(Fault::SnapshotDamaged, true)]);
        world.kernel.stop().await;
    });
}

/// What is whole and only isn't mounted costs no unpack; an image that can't be mounted any more does.
#[test]
fn a_layer_that_is_only_not_mounted_is_mounted_again_and_not_unpacked() {
    run(async {
        let world = World::start().await;
        world.store(&first(), &three_layers()).await;
        let top = world.unpack(&first(), "erofs").await.unwrap().unwrap();
        let dir = async || world.file("erofs", 0, "").await.parent().unwrap().to_owned();
        let before = dir().await;
        let unmount = |dir: &Path| {
            assert!(Command::new("umount").arg("-l").arg(dir.join("layer")).status().unwrap().success());
            assert!(!dir.join("layer/fs").exists());
        };
        unmount(&before);
        assert_eq!(world.told(true).await, []);
        assert!(before.join("layer/fs/keep").exists());
        unmount(&before);
        world.unpack(&first(), "erofs").await.unwrap();
        assert!(before.join("layer/fs/keep").exists() && dir().await == before);
        unmount(&before);
        fs::remove_file(before.join("image")).unwrap();
        fs::write(before.join("image"), "no image").unwrap();
        assert_eq!(world.told(true).await, [(Fault::SnapshotLost, true)]);
        assert!(dir().await != before && dir().await.join("layer/fs/keep").exists());
        world.look(&first(), "erofs", &top, looks_right).await;
        world.kernel.stop().await;
    });
}

/// A layer that can't be looked at is told, and keeps nobody from the others, nor from being told what was found before.
#[test]
fn a_layer_that_cant_be_looked_at_ends_no_check() {
    run(async {
        let world = World::start().await;
        world.store(&first(), &three_layers()).await;
        world.unpack(&first(), "overlay").await.unwrap();
        let trees = [world.file("overlay", 0, "").await, world.file("overlay", 1, "").await];
        let third = world.file("overlay", 2, "").await;
        for gone in [&trees[0], &third] {
            fs::remove_dir_all(gone.parent().unwrap()).unwrap();
        }
        fs::remove_dir_all(&trees[1]).unwrap();
        fs::write(trees[1].parent().unwrap().join("fs"), "no directory").unwrap();
        let told = world.told(true).await;
        assert!(told.contains(&(Fault::SnapshotLost, true)) && told.contains(&(Fault::Unchecked, false)), "{told:?}");
        world.kernel.stop().await;
    });
}

/// A file system of a few megabytes; gone with this.
struct Small<'a>(&'a Path);

impl Small<'_> {
    fn mount(at: &Path) -> Small<'_> {
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(at).status().unwrap();
        assert!(done.success());
        Small(at)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("--lazy").arg(self.0).status().unwrap().success());
    }
}

#[test]
fn a_layer_is_not_made_beside_the_one_that_is_there_where_room_is_short() {
    run(async {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().to_owned();
        let _small = Small::mount(&at);
        let world = World::at(root).await;
        let big = "x".repeat(8 << 20);
        world.store(&first(), &image(vec![layer(&[Entry::File("big", &big), Entry::File("keep", "k")])])).await;
        world.unpack(&first(), "overlay").await.unwrap();
        spoil(&world.file("overlay", 0, "keep").await);
        // Room for the layer, and not for it twice.
        let filler = at.join("filler");
        let free = world.snapshots.free("overlay").unwrap();
        fs::write(&filler, vec![0; free as usize - (12 << 20)]).unwrap();
        world.examine().await;
        assert_eq!(world.told(false).await, []);
        fs::remove_file(&filler).unwrap();
        world.examine().await;
        assert_eq!(world.told(false).await, [(Fault::SnapshotDamaged, false)]);
        // Nor is it mended then: that is said before anything is written. What was compared is away first.
        while world.trees("overlay") > 1 || fs::read_dir(at.join("trash")).unwrap().next().is_some() {
            tokio::task::yield_now().await;
        }
        let one = world.images.unpacked().await.unwrap().remove(0);
        fs::write(&filler, vec![0; world.snapshots.free("overlay").unwrap() as usize - (4 << 20)]).unwrap();
        let free = world.snapshots.free("overlay").unwrap();
        let error = world.images.mend(&one, false).unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted, "{error}");
        let found = world.images.check_layers(true).await;
        assert!(!found[0].repaired && found[0].message.contains("are free: make room"), "{found:?}");
        assert_eq!((world.trees("overlay"), world.snapshots.free("overlay").unwrap()), (1, free));
        fs::remove_file(at.join("filler")).unwrap();
        assert_eq!(world.told(true).await, [(Fault::SnapshotDamaged, true)]);
        world.kernel.stop().await;
    });
}
