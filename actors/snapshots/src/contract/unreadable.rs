//! Snapshots of which the records can't be read: their trees stay, and nothing else waits for that.

use std::{fs, path::Path};

use cofferdam_types::Fault;

use super::*;

/// Puts what is no record in the place of each row.
fn spoil(root: &Path, rows: &[(&'static str, Vec<u8>)]) {
    let database = redb::Database::open(root.join("meta.redb")).unwrap();
    let write = database.begin_write().unwrap();
    for (table, key) in rows {
        let table = redb::TableDefinition::<&[u8], &[u8]>::new(table);
        let was = write.open_table(table).unwrap().insert(&key[..], &b"\xff"[..]).unwrap().is_some();
        assert!(was, "{:?} was there", key.escape_ascii().to_string());
    }
    write.commit().unwrap();
}

/// A daemon that ended, what came over its root, and the next one.
async fn restart(world: World, between: impl FnOnce(&Path)) -> World {
    world.kernel.stop().await;
    let World { kernel, meta, snapshots, root, disk } = world;
    drop((kernel, meta, snapshots));
    between(root.path());
    World::at(root, disk).await
}

/// For each driver two layers with an active snapshot on each, and one on nothing.
async fn filled() -> World {
    let world = World::on(Disk::btrfs()).await;
    for driver in DRIVERS {
        let suite = Suite { world: &world, driver };
        for layer in ["good", "odd"] {
            suite.layer(layer, None, |m| m.write("f", layer)).await;
            suite.prepare(&format!("on-{layer}"), Some(layer)).await.unwrap();
        }
        suite.prepare("alone", None).await.unwrap();
    }
    world
}

/// A directory of nobody's, and one that a power cut took.
fn disturb(root: &Path, taken: &[PathBuf]) {
    for driver in DRIVERS {
        fs::create_dir_all(root.join("snapshots").join(driver).join("999999/fs")).unwrap();
    }
    taken.iter().for_each(|dir| fs::remove_dir_all(dir).unwrap());
}

fn undisturbed(world: &World, taken: &[PathBuf]) {
    assert!(taken.iter().all(|dir| dir.join("fs").exists()), "{taken:?} is not made again");
    for driver in DRIVERS {
        assert!(!own(world, driver, 999_999).exists(), "{driver} is not swept");
    }
}

fn dir(world: &World, driver: &'static str, key: &str) -> PathBuf {
    own(world, driver, Suite { world, driver }.stat(key).unwrap().dir)
}

#[test]
fn a_snapshot_that_cant_be_read_keeps_its_tree_and_every_driver_works() {
    run(async {
        let world = filled().await;
        let row = |driver: &str, key: &str| ("snapshots", format!("default\0{driver}\0{key}").into_bytes());
        let rows: Vec<_> = DRIVERS.map(|driver| row(driver, "odd")).into();
        let kept: Vec<_> = DRIVERS.map(|driver| (driver, dir(&world, driver, "odd"))).into();
        let on_it: Vec<_> = DRIVERS.map(|driver| dir(&world, driver, "on-odd")).into();
        let taken: Vec<_> = DRIVERS.map(|driver| dir(&world, driver, "on-good")).into();
        let world = restart(world, |root| {
            spoil(root, &rows);
            disturb(root, &taken);
        })
        .await;
        undisturbed(&world, &taken);
        assert_eq!(world.snapshots.check(true).await.unwrap(), []);
        for (driver, odd) in &kept {
            assert!(odd.join(if *driver == "erofs" { "image" } else { "fs/f" }).exists(), "{driver}");
            let suite = Suite { world: &world, driver };
            let listed = world.snapshots.list(&ns(), driver, None, 100).unwrap();
            assert!(
                listed.iter().map(|one| &*one.key).eq(["alone", "good", "on-good", "on-odd"]),
                "{driver}: {listed:?}"
            );
            assert_eq!(suite.stat("odd").unwrap_err().code, Code::DataLoss);
            suite.seen("good", |seen| assert_eq!(seen.read("f").as_deref(), Some("good"))).await;
            suite.layer("more", Some("good"), |m| m.write("g", "x")).await;
        }
        assert!(on_it.iter().all(|dir| dir.join("fs").exists()));
        world.kernel.stop().await;
    });
}

#[test]
fn a_namespace_or_a_count_that_cant_be_read_costs_no_snapshot_anything() {
    run(async {
        let mut world = filled().await;
        let number = |world: &World| Suite { world, driver: "overlay" }.stat("odd").unwrap().dir;
        let counted = format!("overlay\0{:016x}", number(&world)).into_bytes();
        for row in [("namespaces", b"default".to_vec()), ("dirs", counted)] {
            let all: Vec<_> = DRIVERS.iter().flat_map(|driver| ["good", "odd"].map(|key| (*driver, key))).collect();
            let trees: Vec<_> = all.iter().map(|(driver, key)| dir(&world, driver, key)).collect();
            let taken: Vec<_> = DRIVERS.map(|driver| dir(&world, driver, "on-good")).into();
            world = restart(world, |root| {
                spoil(root, std::slice::from_ref(&row));
                disturb(root, &taken);
            })
            .await;
            undisturbed(&world, &taken);
            assert_eq!(world.snapshots.check(true).await.unwrap(), [], "{}", row.0);
            assert!(trees.iter().all(|tree| tree.exists()), "{}: {trees:?}", row.0);
            for (driver, key) in all {
                let suite = Suite { world: &world, driver };
                suite.seen(key, |seen| assert_eq!(seen.read("f").as_deref(), Some(key))).await;
            }
        }
        world.kernel.stop().await;
    });
}

/// What nobody counts is thrown away by nobody who has it in hands: neither where a commit of it fails, nor where it doesn't.
#[test]
fn a_snapshot_whose_count_is_lost_is_committed_and_keeps_its_tree() {
    run(async {
        let mut world = filled().await;
        for fails in [true, false] {
            let number = |driver| Suite { world: &world, driver }.stat("alone").unwrap().dir;
            let counts = DRIVERS.map(|driver| format!("{driver}\0{:016x}", number(driver)));
            world = restart(world, |root| {
                let database = redb::Database::open(root.join("meta.redb")).unwrap();
                let write = database.begin_write().unwrap();
                for key in counts {
                    let table = redb::TableDefinition::<&[u8], &[u8]>::new("dirs");
                    assert!(write.open_table(table).unwrap().remove(key.as_bytes()).unwrap().is_some());
                }
                write.commit().unwrap();
            })
            .await;
            for driver in DRIVERS {
                let (suite, tree) = (Suite { world: &world, driver }, dir(&world, driver, "alone"));
                if fails {
                    btrfs::refused_behind_the_sealing(&suite, "done", "alone").await;
                    assert!(tree.join("fs").exists(), "{driver}");
                } else {
                    suite.commit("done", "alone").await.unwrap();
                    suite.seen("done", |seen| assert!(seen.at(".").exists(), "{driver}")).await;
                }
            }
        }
        world.kernel.stop().await;
    });
}

/// Its tree is gone, and its record can't be dropped: that is told, and the others' are dropped, and what other drivers have is
/// looked at.
#[test]
fn a_record_that_cant_be_dropped_keeps_no_other_from_it() {
    run(async {
        let world = filled().await;
        let suite = Suite { world: &world, driver: "overlay" };
        for key in ["lone-1", "lone-2"] {
            suite.layer(key, None, |m| m.write("f", key)).await;
        }
        let trees = ["lone-1", "lone-2"].map(|key| dir(&world, "overlay", key));
        let stays = suite.stat("lone-1").unwrap().dir;
        let counted = format!("overlay\0{stays:016x}").into_bytes();
        let world = restart(world, |root| {
            spoil(root, &[("dirs", counted)]);
            trees.iter().for_each(|tree| fs::remove_dir_all(tree).unwrap());
        })
        .await;
        fs::create_dir_all(own(&world, "native", 999_998).join("fs")).unwrap();
        let mut told = world.snapshots.check(true).await.unwrap();
        // Of trees on one height none comes first.
        told.sort_by_key(|one| (one.fault == Fault::SnapshotUnrecorded, one.repaired));
        let faults: Vec<_> = told.iter().map(|one| (one.fault, one.repaired)).collect();
        let expected = [(Fault::SnapshotLost, false), (Fault::SnapshotLost, true), (Fault::SnapshotUnrecorded, true)];
        assert_eq!(faults, expected, "{told:?}");
        assert!(told[0].message.contains("its record stays, since"), "{told:?}");
        assert_eq!(told[0].id, format!("snapshot/overlay/{stays}"));
        let suite = Suite { world: &world, driver: "overlay" };
        assert!(suite.stat("lone-1").is_ok() && suite.stat("lone-2").is_err());
        world.kernel.stop().await;
    });
}

/// What is told of a tree that is gone names its snapshot and what to do. Nothing is put on it, nor shown of it.
#[test]
fn what_lies_on_a_lost_tree_is_refused_by_the_name_of_that() {
    run(async {
        let world = World::on(Disk::btrfs()).await;
        for driver in DRIVERS {
            let suite = Suite { world: &world, driver };
            suite.layer("low", None, |m| m.write("f", "low")).await;
            suite.layer("high", Some("low"), |m| m.write("g", "high")).await;
            suite.prepare("on-high", Some("high")).await.unwrap();
            let copies = !world.snapshots.detached(driver).unwrap();
            let (tree, away) = (dir(&world, driver, "low"), dir(&world, driver, "low").with_file_name("away"));
            fs::rename(&tree, &away).unwrap();
            let (auth, ns) = (Authority::system(), Namespace::default_namespace());
            let [new, on_high, low, high] = ["new", "on-high", "low", "high"].map(|key| Name::new(key).unwrap());
            for parent in [&low, &high] {
                let prepare = world.snapshots.prepare(&auth, &ns, driver, &new, Some(parent), Labels::new()).await;
                let view = Name::new(format!("view-of-{parent}")).unwrap();
                let view = world.snapshots.view(&auth, &ns, driver, &view, Some(parent), Labels::new()).await;
                if copies && *parent == high {
                    assert!(prepare.is_ok() && view.is_ok(), "{driver}: it has a copy");
                    continue;
                }
                for refused in [prepare, view] {
                    let error = refused.unwrap_err();
                    assert_eq!((error.code, error.id.as_str()), (Code::DataLoss, "low"), "{driver}: {error}");
                    for said in [driver, "default", "check --repair", "pulling"] {
                        assert!(error.message.contains(said), "{error}");
                    }
                }
            }
            let mounts = world.snapshots.mounts(&ns, driver, &on_high);
            assert_eq!(mounts.err().map(|error| error.code), (!copies).then_some(Code::DataLoss), "{driver}");
            let told: Vec<_> = world.snapshots.check(false).await.unwrap();
            let [lost] = &told[..] else { panic!("{told:?}") };
            assert!(lost.fault == Fault::SnapshotLost && lost.message.contains("low of namespace default"), "{lost:?}");
            let told: Vec<_> = world.snapshots.check(true).await.unwrap();
            let [lost] = &told[..] else { panic!("{told:?}") };
            assert!(!lost.repaired && lost.message.contains("high"), "{lost:?}");
            fs::rename(&away, &tree).unwrap();
        }
    });
}

/// A disk that takes nothing: what there is is told, and nothing is waited for.
#[test]
fn snapshots_on_a_disk_that_is_read_only_are_served() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    run(async {
        let world = World::start().await;
        for driver in ["overlay", "native", "erofs"] {
            let suite = Suite { world: &world, driver };
            suite.layer("layer", None, |m| m.write("f", "kept")).await;
            suite.prepare("on-it", Some("layer")).await.unwrap();
        }
        let world = restart(world, |root| {
            let none = None::<&str>;
            mount(Some(root), root, none, MsFlags::MS_BIND, none).unwrap();
            mount(none, root, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
        })
        .await;
        for driver in ["overlay", "native", "erofs"] {
            let suite = Suite { world: &world, driver };
            assert_eq!(suite.stat("on-it").unwrap().parent, Some(name("layer")));
            assert!(suite.prepare("new", Some("layer")).await.is_err());
        }
        let told = world.snapshots.check(false).await.unwrap();
        // What was made ahead has no record, and nobody mounts anything.
        let faults = [Fault::SnapshotUnrecorded, Fault::SnapshotUnreadable];
        assert!(told.iter().all(|one| faults.contains(&one.fault) && !one.message.contains("--repair")), "{told:?}");
        let world = restart(world, |root| umount2(root, MntFlags::MNT_DETACH).unwrap()).await;
        assert_eq!(world.snapshots.check(false).await.unwrap(), []);
    });
}
