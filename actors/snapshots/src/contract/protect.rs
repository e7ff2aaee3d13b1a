//! What takes a kernel and a file system that can: fs-verity on what is committed, and bounds on what is written. Elsewhere both are
//! refused with the reason, and nothing is left behind.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
    process::Command,
};

use cofferdam_sys::quota;
use cofferdam_types::{Algorithm, Authority, Code, Digest, Error, Labels};

use super::{DRIVERS, Disk, Mounted, Suite, World, name, ns, own, run, until_empty};
use crate::{ChainLayer, Kind, Settings, Staged};

/// A world on each file system that can do other things, and what is said where one can't.
async fn places(settings: Settings) -> Vec<(World, &'static str)> {
    let mut all = Vec::new();
    for (disk, says) in [(Disk::ext4(), "ext4 has no"), (Disk::btrfs(), "btrfs has no")] {
        let root = tempfile::tempdir_in(disk.path()).unwrap();
        all.push((World::with(root, Some(disk), settings).await, says));
    }
    all.push((World::with(tempfile::tempdir_in("/dev/shm").unwrap(), None, settings).await, "tmpfs has no"));
    all
}

/// All that a driver has on disk, but for what is made ahead.
fn on_disk(world: &World, driver: &str) -> BTreeSet<PathBuf> {
    let base = world.root.path().join("snapshots").join(driver);
    let mut found = BTreeSet::new();
    let mut to_see = vec![base];
    while let Some(dir) = to_see.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                to_see.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}

fn assert_refused(error: &Error, driver: &str, says: &str) {
    assert_eq!((error.code, &*error.kind, error.id.as_str()), (Code::Unimplemented, "driver", driver), "{error}");
    assert!(error.message.contains(says), "{error} should say {says:?}");
}

#[test]
fn what_can_not_have_fs_verity_is_not_committed_and_stays_as_it_was() {
    run(async {
        for (world, lacking) in places(Settings { verity: true }).await {
            let all = &world.snapshots;
            let usual = if world.disk.is_some() { "erofs" } else { "overlay" };
            assert_eq!(all.drivers()[0], usual, "the default is one that could");
            for driver in all.drivers() {
                let suite = Suite { world: &world, driver };
                let says = if driver == "erofs" { lacking } else { "Use the driver erofs" };
                let mounted = suite.prepare("a", None).await.unwrap();
                mounted.write("f", "x");
                let dir = own(&world, driver, suite.stat("a").unwrap().dir);
                let area = &all.core().depot(driver).unwrap().area;
                if area.driver().ahead() {
                    area.refill().unwrap();
                }
                let before = on_disk(&world, driver);
                let Err(error) = suite.commit("c", "a").await else {
                    // A kernel that has it: nobody writes to the image any more.
                    let write = File::options().append(true).open(dir.join("image")).unwrap_err();
                    assert_eq!(write.raw_os_error(), Some(libc::EPERM), "{driver}");
                    continue;
                };
                assert_refused(&error, driver, says);
                until_empty(&world);
                assert_eq!(on_disk(&world, driver), before, "{driver}");
                assert_eq!((suite.stat("a").unwrap().kind, suite.stat("c").is_err()), (Kind::Active, true));
                mounted.write("g", "still");

                // So it is with a layer that the daemon has unpacked.
                let chain = Digest::of(Algorithm::Sha256, driver.as_bytes());
                let turn = all.turn(&ns(), driver, &chain).unwrap();
                let Staged::New(stage) = all.stage_layer(driver, turn, None, None, true).await.unwrap() else {
                    panic!()
                };
                fs::write(format!("/proc/self/fd/{}/f", stage.tree().as_raw_fd()), "layer").unwrap();
                let layer =
                    ChainLayer { chain: chain.clone(), parent: None, labels: Labels::new(), stage: Some(stage) };
                let auth = Authority::system();
                let refused = all.commit_layers(&auth, &ns(), driver, vec![layer], None, |_| Ok(())).await;
                assert_refused(&refused.unwrap_err(), driver, says);
                until_empty(&world);
                assert!(!all.has_layer(driver, &chain).unwrap());
                drop(mounted);
            }
            assert_eq!(all.check(false).await.unwrap(), []);
            // Without the demand it is committed with all that was written.
            let driver = usual;
            let world = world.restart().await;
            let suite = Suite { world: &world, driver };
            if suite.stat("a").is_ok() {
                suite.commit("c", "a").await.unwrap();
                suite.seen("c", |view| assert_eq!(view.read("g").as_deref(), Some("still"))).await;
            }
            world.kernel.stop().await;
        }
    });
}

#[test]
fn a_limit_that_nobody_can_keep_is_refused_with_what_is_missing() {
    run(async {
        for (world, lacking) in places(Settings::default()).await {
            let (all, auth) = (&world.snapshots, Authority::system());
            for driver in DRIVERS.into_iter().filter(|driver| all.drivers().contains(driver)) {
                let suite = Suite { world: &world, driver };
                suite.layer("low", None, |m| m.write("big", "x")).await;
                suite.prepare("a", Some("low")).await.unwrap();
                let error = all.limit(&auth, &ns(), driver, &name("a"), 1 << 20).await.unwrap_err();
                if driver == "btrfs" {
                    assert_eq!(error.code, Code::FailedPrecondition, "{error}");
                    assert!(error.message.contains("quotas are off"), "{error}");
                    continue;
                }
                assert_refused(&error, driver, lacking);
                assert!(error.message.contains("project quotas"), "{error}");
                let dir = File::open(own(&world, driver, suite.stat("a").unwrap().dir)).unwrap();
                assert_eq!(quota::project_of(&dir), Ok(0), "{driver}");
                // Of one that isn't recorded yet, such as a container's.
                let reserved = all.reserve(&ns(), driver, &name("c"), Some(&name("low")), false).await.unwrap();
                let place = own(&world, driver, reserved.record.dir);
                assert_refused(&all.limit_reserved(&reserved, 1 << 20).await.unwrap_err(), driver, lacking);
                drop(reserved);
                assert!(!place.exists(), "{driver}");
                let mounted = Mounted::new(&all.mounts(&ns(), driver, &name("a")).unwrap());
                fs::write(mounted.at("more"), vec![1; 2 << 20]).unwrap();
            }
            assert_eq!(all.check(false).await.unwrap(), []);
            world.kernel.stop().await;
        }
    });
}

/// Writes as a container does, which may not have more than it was given: whether that went well.
fn write(at: &Path, mib: usize) -> bool {
    let to = format!("of={}", at.display());
    let output = Command::new("setpriv")
        .args([
            "--bounding-set=-sys_resource",
            "dd",
            "if=/dev/zero",
            &to,
            "bs=1M",
            &format!("count={mib}"),
            "conv=fsync",
        ])
        .output()
        .unwrap();
    output.status.success()
}

/// Only on a kernel that has both; this says so where it hasn't.
#[test]
fn where_kernel_and_file_system_can_layers_are_sealed_and_limits_hold() {
    const MIB: u64 = 1 << 20;
    run(async {
        let Some(disk) = Disk::ext4_with_all() else {
            eprintln!("this kernel mounts no ext4 with fs-verity and project quotas");
            return;
        };
        let root = tempfile::tempdir_in(disk.path()).unwrap();
        let mut world = World::with(root, Some(disk), Settings { verity: true }).await;
        let suite = Suite { world: &world, driver: "erofs" };
        suite.layer("low", None, |m| m.write("f", "x")).await;
        let image = own(&world, "erofs", suite.stat("low").unwrap().dir).join("image");
        let refused = File::options().append(true).open(&image).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "nobody writes to it");
        suite.seen("low", |view| assert_eq!(view.read("f").as_deref(), Some("x"))).await;
        let native = Suite { world: &world, driver: "native" };
        native.prepare("n", None).await.unwrap();
        assert_refused(&native.commit("c", "n").await.unwrap_err(), "native", "Use the driver erofs");

        let limit = async |world: &World, driver: &str, key: &str, bytes| {
            world.snapshots.limit(&Authority::system(), &ns(), driver, &name(key), bytes).await
        };
        let number = |world: &World, driver: &str, key: &str| {
            let dir = world.snapshots.stat(&ns(), driver, &name(key)).unwrap().dir;
            quota::project_of(File::open(own(world, driver, dir)).unwrap()).unwrap()
        };
        let known =
            |world: &World, project| quota::project(File::open(world.root.path()).unwrap().as_fd(), project).unwrap();
        for driver in ["overlay", "native", "erofs"] {
            let suite = Suite { world: &world, driver };
            let parent = (driver == "erofs").then_some("low");
            let mounted = suite.prepare("a", parent).await.unwrap();
            let at = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), mounted.0.as_raw_fd()));
            // What was there before counts; and a link, of which it can't be said, is in nobody's way.
            mounted.dir("deep/er");
            fs::write(mounted.at("deep/er/old"), vec![1; 2 << 20]).unwrap();
            symlink("old", mounted.at("deep/er/link")).unwrap();
            limit(&world, driver, "a", 4 * MIB).await.unwrap();
            let project = number(&world, driver, "a");
            let held = known(&world, project);
            assert!(held.limit == 4 * MIB && held.bytes >= 2 * MIB, "{driver}: {held:?}");
            assert!(write(&at.join("deep/er/new"), 1), "{driver}");
            assert!(!write(&at.join("more"), 8), "{driver}");
            fs::remove_file(mounted.at("more")).unwrap();
            limit(&world, driver, "a", 0).await.unwrap();
            assert!(write(&at.join("more"), 8), "{driver}");
            limit(&world, driver, "a", MIB).await.unwrap();
            assert!(!write(&at.join("yet-more"), 1), "{driver}");
            assert_eq!((number(&world, driver, "a"), known(&world, project).limit), (project, MIB), "{driver}");
            // Another has a number of its own, and so does one of another driver.
            suite.prepare("b", parent).await.unwrap();
            limit(&world, driver, "b", 16 * MIB).await.unwrap();
            assert_ne!(number(&world, driver, "b"), project, "{driver}");
            // With the snapshot its bound goes, and nothing keeps its room.
            drop(mounted);
            suite.remove("a").await.unwrap();
            until_empty(&world);
            assert_eq!(known(&world, project), quota::Project::default(), "{driver}");
        }
        // It is kept by the file system, whoever serves; and what was bounded can be committed.
        world = world.restart().await;
        for driver in ["overlay", "native", "erofs"] {
            let suite = Suite { world: &world, driver };
            let project = number(&world, driver, "b");
            assert_eq!(known(&world, project).limit, 16 * MIB, "{driver}");
            suite.commit("c", "b").await.unwrap();
            let child = suite.prepare("d", Some("c")).await.unwrap();
            assert_eq!(number(&world, driver, "d"), 0, "{driver}");
            child.write("g", "y");
            drop(child);
            suite.remove("d").await.unwrap();
            suite.remove("c").await.unwrap();
            until_empty(&world);
            assert_eq!(known(&world, project), quota::Project::default(), "{driver}");
        }
        assert_eq!(world.snapshots.check(false).await.unwrap(), []);
        world.kernel.stop().await;
    });
}
