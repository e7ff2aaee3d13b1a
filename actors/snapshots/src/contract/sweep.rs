//! What a start does with what was there, and who waits for it.

use std::{fs, time::Duration};

use super::*;

#[test]
fn a_start_sweeps_orphans_and_restores_what_a_power_cut_took() {
    run(async {
        let mut world = World::on(Disk::btrfs()).await;
        for driver in DRIVERS {
            let suite = Suite { world: &world, driver };
            suite.layer("parent", None, |m| m.write("f", "x")).await;
            suite.prepare("active", Some("parent")).await.unwrap();
            suite.view("view", Some("parent")).await.unwrap();
            let dir = suite.stat("active").unwrap().dir;
            let base = world.root.path().join("snapshots").join(driver);
            fs::create_dir_all(base.join("999999/fs")).unwrap();
            fs::remove_dir_all(base.join(dir.to_string())).unwrap();
            suite.prepare("blocked", None).await.unwrap();
            let dir = base.join(suite.stat("blocked").unwrap().dir.to_string());
            fs::remove_dir_all(&dir).unwrap();
            fs::write(&dir, "in the way").unwrap();
        }
        world = world.restart().await;
        for driver in DRIVERS {
            let mounts = world.snapshots.mounts(&ns(), driver, &name("active")).unwrap();
            let mounted = Mounted::new(&mounts);
            assert_eq!(mounted.read("f").as_deref(), Some("x"), "{driver}");
            mounted.write("g", "y");
        }
        // The sweep doesn't stop at what it can't mend.
        let found = world.snapshots.check(false).await.unwrap();
        for driver in DRIVERS {
            assert!(!world.root.path().join("snapshots").join(driver).join("999999").exists());
            assert!(found.iter().any(|finding| finding.id.contains(driver)), "{found:?}");
        }
        world.kernel.stop().await;
    });
}

#[test]
#[allow(clippy::await_holding_lock, reason = "it is what keeps the sweep, which is on another thread, waiting")]
fn only_who_changes_what_was_there_waits_for_the_sweep() {
    run(async {
        let mut world = World::start().await;
        for key in ["old", "going"] {
            Suite { world: &world, driver: "overlay" }.prepare(key, None).await.unwrap();
        }
        world = world.restart().await;
        let base = world.root.path().join("snapshots/overlay");
        let suite = Suite { world: &world, driver: "overlay" };
        let dir = |key| base.join(suite.stat(key).unwrap().dir.to_string());
        let (old, going) = (dir("old"), dir("going"));
        fs::remove_dir_all(&old).unwrap();
        let (all, auth) = (&world.snapshots, Authority::system());
        let held = all.core().hold_sweeps();
        let sweep = actix_rt::spawn(all.core().begin_sweep());
        // What is new is made, used, committed and removed meanwhile.
        suite.prepare("new", None).await.unwrap().write("f", "x");
        all.ready(&ns(), "overlay", &name("new")).await.unwrap();
        all.commit(&auth, &ns(), "overlay", &name("newer"), &name("new"), Labels::new()).await.unwrap();
        all.remove(&auth, &ns(), "overlay", &name("newer")).await.unwrap();
        // What was there is not touched.
        let (namespace, key, committed, going_key) = (ns(), name("old"), name("committed"), name("going"));
        let mut ready = std::pin::pin!(all.ready(&namespace, "overlay", &key));
        let mut commit =
            std::pin::pin!(all.commit(&auth, &namespace, "overlay", &committed, &going_key, Labels::new()));
        let brief = Duration::from_millis(200);
        assert!(tokio::time::timeout(brief, &mut ready).await.is_err());
        assert!(tokio::time::timeout(brief, &mut commit).await.is_err());
        assert!(!old.exists() && going.join("work").exists());
        drop(held);
        sweep.await.unwrap();
        ready.await.unwrap();
        commit.await.unwrap();
        assert!(old.join("fs").exists());
        // One that found no room to be made again is made when it is needed.
        fs::remove_dir_all(&old).unwrap();
        all.ready(&ns(), "overlay", &name("old")).await.unwrap();
        assert!(old.join("fs").exists());
        world.kernel.stop().await;
    });
}
