//! What takes a kernel and a file system that can: fs-verity on what is committed, and bounds on what is written. Elsewhere both are
//! refused with the reason, and nothing is left behind.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::fd::AsRawFd,
    path::PathBuf,
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
            assert_eq!(all.drivers()[0], "erofs", "the default is one that could");
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
                let turn = all.turn(&ns(), driver, &chain).await.unwrap();
                let Staged::New(stage) = all.stage_layer(driver, turn, None, None, true).await.unwrap() else { panic!() };
                fs::write(format!("/proc/self/fd/{}/f", stage.tree().as_raw_fd()), "layer").unwrap();
                let layer = ChainLayer { chain: chain.clone(), parent: None, labels: Labels::new(), stage: Some(stage) };
                let auth = Authority::system();
                let refused = all.commit_layers(&auth, &ns(), driver, vec![layer], |_| Ok(())).await;
                assert_refused(&refused.unwrap_err(), driver, says);
                until_empty(&world);
                assert!(!all.has_layer(driver, &chain).unwrap());
                drop(mounted);
            }
            assert_eq!(all.check(false).await.unwrap(), []);
            // Without the demand it is committed with all that was written.
            let driver = if world.disk.is_some() { "erofs" } else { "overlay" };
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
                // No image can be mounted from there.
                if driver == "erofs" && world.disk.is_none() {
                    continue;
                }
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
