//! What only the driver of images does.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use cofferdam_sys::mountinfo;
use cofferdam_types::{Algorithm, Authority, Digest, Fault, Labels};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::{
    ChainLayer, Staged,
    area::{Area, private_dir},
    drivers,
    trash::Trash,
};

use super::{Mounted, Suite, World, btrfs::refused_behind_the_sealing, name, ns, own, run, until_empty};

const ON: &str = "erofs";

/// What is mounted in a directory.
fn mounts(dir: &Path) -> usize {
    mountinfo::read().unwrap().iter().filter(|mount| mount.point.starts_with(dir)).count()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_committed_layer_is_an_image_and_nothing_else() {
    run(async {
        let world = World::start().await;
        let suite = Suite { world: &world, driver: ON };
        let mounted = suite.prepare("a", None).await.unwrap();
        mounted.write("f", "before");
        suite.commit("c", "a").await.unwrap();
        let dir = own(&world, ON, suite.stat("c").unwrap().dir);
        assert_eq!(names(&dir), ["image", "layer"]);
        let image = fs::metadata(dir.join("image")).unwrap();
        assert_eq!((image.permissions().mode() & 0o777, image.size() % 4096), (0o400, 0));
        assert_eq!(fs::write(dir.join("layer/fs/g"), "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
        // Who still has it mounted writes to what nobody sees.
        let _ = fs::write(mounted.at("g"), "after");
        suite.seen("c", |view| assert!(view.read("f").as_deref() == Some("before") && !view.at("g").exists())).await;
        // Unmounted behind the daemon's back it is not taken for an empty one.
        umount2(&dir.join("layer"), MntFlags::MNT_DETACH).unwrap();
        assert!(suite.prepare("b", Some("c")).await.is_err());
        world.kernel.stop().await;
    });
}

#[test]
fn a_root_from_which_no_image_can_be_mounted_is_refused_with_the_reason() {
    run(async {
        let world = World::at(tempfile::tempdir_in("/dev/shm").unwrap(), None).await;
        let error = Suite { world: &world, driver: ON }.prepare("a", None).await.err().unwrap();
        assert_eq!(error.code, cofferdam_types::Code::Unimplemented);
        assert!(error.message.contains("lies on tmpfs"), "{error}");
        assert!(!world.root.path().join("snapshots/erofs").exists());
        world.kernel.stop().await;
    });
}

#[test]
fn a_commit_that_failed_leaves_it_writable() {
    run(async {
        let world = World::start().await;
        let suite = Suite { world: &world, driver: ON };
        let mounted = suite.prepare("a", None).await.unwrap();
        mounted.write("f", "x");
        refused_behind_the_sealing(&suite, "c", "a").await;
        let dir = own(&world, ON, suite.stat("a").unwrap().dir);
        assert_eq!((names(&dir), mounts(&dir)), (vec!["fs".to_owned(), "work".to_owned()], 0));
        mounted.write("g", "still");
        suite.commit("c", "a").await.unwrap();
        suite.seen("c", |view| assert_eq!(view.read("g").as_deref(), Some("still"))).await;
        world.kernel.stop().await;
    });
}

#[test]
fn a_start_mounts_what_is_committed_and_takes_back_what_is_not() {
    run(async {
        let mut world = World::start().await;
        let suite = Suite { world: &world, driver: ON };
        suite.layer("low", None, |m| m.write("f", "low")).await;
        suite.layer("high", Some("low"), |m| m.write("g", "high")).await;
        suite.layer("lost", None, |m| m.write("f", "x")).await;
        suite.prepare("active", Some("high")).await.unwrap().write("h", "mine");
        let at = |key: &str| own(&world, ON, suite.stat(key).unwrap().dir);
        let (low, high, lost, active) = (at("low"), at("high"), at("lost"), at("active"));
        // A crash before the trees went, one between sealing and commit, one before there was a record; and damage.
        fs::create_dir_all(low.join("fs/old")).unwrap();
        fs::copy(low.join("image"), active.join("image")).unwrap();
        fs::create_dir(active.join("layer")).unwrap();
        fs::write(active.join("image.new"), "half").unwrap();
        let orphan = own(&world, ON, 999_999);
        fs::create_dir_all(orphan.join("fs")).unwrap();
        umount2(&lost.join("layer"), MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(lost.join("image")).unwrap();
        let root = world.root.path().to_owned();
        // Two layers, in the mount that is the driver's directory.
        assert_eq!(mounts(&root), 3);
        world = world.restart().await;
        until_empty(&world);
        assert_eq!((names(&low), names(&high)), (names(&high), vec!["image".to_owned(), "layer".to_owned()]));
        assert_eq!((names(&active), mounts(&active)), (vec!["fs".to_owned(), "work".to_owned()], 0));
        assert!(!orphan.exists());
        let mounted = Mounted::new(&world.snapshots.mounts(&ns(), ON, &name("active")).unwrap());
        for (path, text) in [("f", "low"), ("g", "high"), ("h", "mine")] {
            assert_eq!(mounted.read(path).as_deref(), Some(text));
        }
        drop(mounted);
        // One that ends in order leaves nothing mounted; what is committed is there all the same when it comes back.
        let World { kernel, meta, snapshots, root: dir, disk } = world;
        kernel.stop().await;
        drop((kernel, meta, snapshots));
        let begun = std::time::Instant::now();
        while mounts(&root) > 0 {
            assert!(begun.elapsed().as_secs() < 30, "something stays mounted");
            std::thread::yield_now();
        }
        let world = World::at(dir, disk).await;
        let suite = Suite { world: &world, driver: ON };
        suite.seen("high", |view| assert_eq!(view.read("f").as_deref(), Some("low"))).await;
        world.kernel.stop().await;
    });
}

#[test]
fn a_layer_that_is_not_mounted_is_missing_and_not_empty() {
    run(async {
        let mut world = World::start().await;
        let suite = Suite { world: &world, driver: ON };
        suite.layer("low", None, |m| m.write("f", "low")).await;
        suite.layer("high", Some("low"), |m| m.write("g", "high")).await;
        suite.prepare("before", Some("high")).await.unwrap();
        suite.view("alone", Some("low")).await.unwrap();
        let low = own(&world, ON, suite.stat("low").unwrap().dir);
        umount2(&low.join("layer"), MntFlags::MNT_DETACH).unwrap();
        let opened = |world: &World, key| {
            let mounts = world.snapshots.mounts(&ns(), ON, &name(key)).unwrap();
            cofferdam_sys::mount::detached(&mounts[0]).map(drop)
        };
        assert!(opened(&world, "before").is_err() && opened(&world, "alone").is_err());
        let (new, high) = (name("new"), name("high"));
        let all = &world.snapshots;
        let made = all.prepare(&Authority::system(), &ns(), ON, &new, Some(&high), Labels::new()).await.unwrap();
        assert!(cofferdam_sys::mount::detached(&made[0]).is_err());
        // Nor does a start that can't mount it put anything else in its place.
        fs::write(low.join("image"), "damage").unwrap();
        world = world.restart().await;
        for key in ["before", "alone", "new"] {
            assert!(opened(&world, key).is_err(), "{key}");
        }
        world.kernel.stop().await;
    });
}

/// What can't be mounted is not gone: a repair that took it for that would throw away what is whole.
#[test]
fn a_layer_that_cannot_be_mounted_is_told_and_its_image_stays() {
    run(async {
        let mut world = World::start().await;
        let suite = Suite { world: &world, driver: ON };
        suite.layer("low", None, |m| m.write("f", "low")).await;
        suite.layer("high", Some("low"), |m| m.write("g", "high")).await;
        let dirs = ["low", "high"].map(|key| own(&world, ON, suite.stat(key).unwrap().dir));
        for dir in &dirs {
            umount2(&dir.join("layer"), MntFlags::MNT_DETACH).unwrap();
            fs::rename(dir.join("image"), dir.join("whole")).unwrap();
            fs::write(dir.join("image"), "no image that this kernel knows").unwrap();
        }
        world = world.restart().await;
        for repair in [false, true] {
            let told = world.snapshots.check(repair).await.unwrap();
            let faults: Vec<_> = told.iter().map(|one| (one.fault, one.repaired)).collect();
            assert_eq!(faults, [(Fault::SnapshotUnreadable, false); 2], "{told:?}");
            assert!(dirs.iter().all(|dir| dir.join("image").exists()));
            assert!(["low", "high"].iter().all(|key| Suite { world: &world, driver: ON }.stat(key).is_ok()));
        }
        // One whose image is as it was is only mounted again.
        for dir in &dirs {
            fs::rename(dir.join("whole"), dir.join("image")).unwrap();
        }
        let told = world.snapshots.check(true).await.unwrap();
        let faults: Vec<_> = told.iter().map(|one| (one.fault, one.repaired)).collect();
        assert_eq!(faults, [(Fault::SnapshotUnreadable, true); 2], "{told:?}");
        assert_eq!(world.snapshots.check(true).await.unwrap(), []);
        let suite = Suite { world: &world, driver: ON };
        suite.seen("high", |view| assert_eq!(view.read("f").as_deref(), Some("low"))).await;
        // What has no image any more is lost.
        umount2(&dirs[1].join("layer"), MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(dirs[1].join("image")).unwrap();
        let told = world.snapshots.check(true).await.unwrap();
        assert_eq!(told.iter().map(|one| (one.fault, one.repaired)).collect::<Vec<_>>(), [(Fault::SnapshotLost, true)]);
        world.kernel.stop().await;
    });
}

#[test]
fn what_is_removed_stays_where_it_is_mounted_and_nowhere_else() {
    run(async {
        let world = World::start().await;
        let suite = Suite { world: &world, driver: ON };
        suite.layer("low", None, |m| m.write("f", "x")).await;
        let dir = own(&world, ON, suite.stat("low").unwrap().dir);
        let view = suite.view("v", Some("low")).await.unwrap();
        suite.remove("v").await.unwrap();
        suite.remove("low").await.unwrap();
        until_empty(&world);
        assert_eq!(view.read("f").as_deref(), Some("x"));
        assert_eq!((dir.exists(), mounts(world.root.path())), (false, 1), "only the driver's directory");
        world.kernel.stop().await;
    });
}

/// Gives this thread mounts of its own.
fn apart(propagation: MsFlags) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | propagation, None::<&str>).unwrap();
}

#[test]
fn who_has_mounts_of_his_own_sees_the_layers_that_come_later() {
    let host = std::thread::spawn(|| {
        apart(MsFlags::MS_PRIVATE);
        run(async {
            let world = World::start().await;
            let suite = Suite { world: &world, driver: ON };
            let (ready, is_ready) = mpsc::channel();
            let (ask, asked) = mpsc::channel::<PathBuf>();
            // As the shim of a group does.
            let group = std::thread::spawn(move || {
                apart(MsFlags::MS_SLAVE);
                ready.send(()).unwrap();
                fs::read_to_string(asked.recv().unwrap())
            });
            is_ready.recv().unwrap();
            suite.layer("low", None, |m| m.write("f", "x")).await;
            ask.send(own(&world, ON, suite.stat("low").unwrap().dir).join("layer/fs/f")).unwrap();
            assert_eq!(group.join().unwrap().unwrap(), "x");
            world.kernel.stop().await;
        });
    });
    host.join().unwrap();
}

#[test]
fn what_is_removed_while_it_is_committed_goes_when_that_ends() {
    let dir = tempfile::tempdir().unwrap();
    let trash = Trash::start(private_dir(&dir.path().join("trash")).unwrap()).unwrap();
    let driver = drivers::all().into_iter().find(|driver| driver.name() == ON).unwrap();
    let recorded = Arc::new(AtomicBool::new(true));
    let theirs = recorded.clone();
    let referenced = Box::new(move |_| Ok(theirs.load(Ordering::Relaxed)));
    let area = Arc::new(Area::open(dir.path(), driver, trash, 0, referenced).unwrap());
    let base = dir.path().join("snapshots").join(ON);
    let make = || {
        let held = area.make(true, None).unwrap();
        held.keep();
        held.id()
    };
    for committed in [false, true] {
        recorded.store(true, Ordering::Relaxed);
        let id = make();
        let sealing = area.sealing(id).unwrap();
        assert!(area.sealing(id).is_none(), "one at a time");
        area.seal(id).unwrap();
        recorded.store(false, Ordering::Relaxed);
        area.discard(id).unwrap();
        assert!(base.join(format!("{id}/layer/fs")).exists(), "it is left to who is at it");
        sealing.settle(committed);
        drop(sealing);
        assert!(!base.join(id.to_string()).exists());
        assert_eq!(mounts(dir.path()), 1, "only the driver's directory");
    }
    // One that nobody is at goes at once, and so does what was committed before.
    let id = make();
    recorded.store(true, Ordering::Relaxed);
    let sealing = area.sealing(id).unwrap();
    area.seal(id).unwrap();
    sealing.settle(true);
    drop(sealing);
    assert!(base.join(format!("{id}/layer/fs")).exists());
    area.discard(id).unwrap();
    assert!(!base.join(id.to_string()).exists());
}

#[test]
fn a_directory_that_resists_keeps_no_other_driver_from_its_start() {
    run(async {
        let world = World::start().await;
        let odd = own(&world, ON, 999_999);
        fs::write(&odd, "no directory").unwrap();
        let mut world = world.restart().await;
        assert!(!world.snapshots.drivers().contains(&ON));
        let suite = |driver| Suite { world: &world, driver };
        let refused = suite(ON).prepare("a", None).await.err().unwrap();
        assert!(refused.to_string().contains("open the directory"), "{refused}");
        suite("overlay").prepare("a", None).await.unwrap();
        fs::remove_file(&odd).unwrap();
        world = world.restart().await;
        Suite { world: &world, driver: ON }.prepare("a", None).await.unwrap();
        world.kernel.stop().await;
    });
}

#[test]
fn a_layer_that_cannot_be_settled_keeps_no_other_from_it() {
    run(async {
        let world = World::start().await;
        let all = &world.snapshots;
        let chain = [b"1", b"2"].map(|text| Digest::of(Algorithm::Sha256, text));
        let mut layers = Vec::new();
        for (i, id) in chain.iter().enumerate() {
            let parent = (i > 0).then(|| chain[0].clone());
            let under = layers.first().and_then(|layer: &ChainLayer| layer.stage.as_ref());
            let turn = all.turn(&ns(), ON, id).unwrap();
            let Staged::New(stage) = all.stage_layer(ON, turn, parent.as_ref(), under, true).await.unwrap() else {
                panic!("nobody else has it")
            };
            layers.push(ChainLayer { chain: id.clone(), parent, labels: Labels::new(), stage: Some(stage) });
        }
        let dir = |layer: &ChainLayer| own(&world, ON, layer.stage.as_ref().unwrap().dir());
        let (first, second) = (dir(&layers[0]), dir(&layers[1]));
        let odd = first.join("layer");
        let spoil = move |_: &mut cofferdam_metadata::Tx<'_>| {
            let _ = umount2(&odd, MntFlags::MNT_DETACH);
            let _ = fs::remove_dir(&odd);
            let _ = fs::write(&odd, "no directory");
            Ok(())
        };
        all.commit_layers(&Authority::system(), &ns(), ON, layers, None, spoil).await.unwrap();
        assert!(first.join("fs").exists(), "it was spoiled");
        assert_eq!(names(&second), ["image", "layer"]);
        world.kernel.stop().await;
    });
}
