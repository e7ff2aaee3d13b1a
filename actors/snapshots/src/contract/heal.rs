//! A layer's tree is made again, compared, and replaced, by every driver.

use std::{
    fs::{self, File},
    os::fd::AsRawFd as _,
    time::{Duration, SystemTime},
};

use cofferdam_types::{Algorithm, Authority, Code, Digest, Labels};

use super::{DRIVERS, Mounted, Suite, World, name, ns, own, run};
use crate::{ChainLayer, Stage, Staged};

/// Fills a stage with one file, as from a layer.
fn fill(stage: &Stage, text: &str) {
    let path = format!("/proc/self/fd/{}/f", stage.tree().as_raw_fd());
    fs::write(&path, text).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_layer_is_replaced_under_those_who_lie_on_it() {
    run(async {
        for driver in DRIVERS {
            let world = World::start_for(driver).await;
            let (all, suite) = (&world.snapshots, Suite { world: &world, driver });
            let chain = Digest::of(Algorithm::Sha256, b"layer");
            let key = chain.to_string();
            let turn = all.turn(&ns(), driver, &chain).await.unwrap();
            let Staged::New(stage) = all.stage_layer(driver, turn, None, None, true).await.unwrap() else { panic!() };
            fill(&stage, "wrong");
            let layer = ChainLayer { chain: chain.clone(), parent: None, labels: Labels::new(), stage: Some(stage) };
            let auth = Authority::system();
            all.commit_layers(&auth, &ns(), driver, vec![layer], |_| Ok(())).await.unwrap();
            let dir = suite.stat(&key).unwrap().dir;
            let again = async |text: &str| {
                let stage = all.stage_again(driver, &chain, None).await.unwrap();
                fill(&stage, text);
                stage
            };
            let at_once = |_| Ok(());
            assert_eq!(all.difference(&again("wrong").await, dir, &at_once).unwrap(), None, "{driver}");

            let old = suite.prepare("old", Some(&key)).await.unwrap();
            let mounts = all.mounts(&ns(), driver, &name("old")).unwrap();
            let early = all.reserve(&ns(), driver, &name("early"), Some(&name(&key)), false).await.unwrap();
            let stage = again("right").await;
            let found = all.difference(&stage, dir, &at_once).unwrap();
            assert_eq!(found.as_deref(), Some("/f: has other bytes"), "{driver}");
            all.replace_layer(driver, stage, dir, false).await.unwrap();

            // What was reserved on the old tree can't be recorded on the new one.
            let record = move |tx: &mut cofferdam_metadata::Tx<'_>| early.create(tx, &ns()).map(drop);
            assert_eq!(world.meta.write(&auth, record).await.unwrap_err().code, Code::Unavailable, "{driver}");
            assert_eq!(old.read("f").as_deref(), Some("wrong"), "{driver}");
            drop(old);
            assert_eq!(all.mounts(&ns(), driver, &name("old")).unwrap(), mounts, "{driver}");
            assert_eq!(Mounted::new(&mounts).read("f").as_deref(), Some("wrong"), "{driver}");
            assert_eq!(suite.prepare("new", Some(&key)).await.unwrap().read("f").as_deref(), Some("right"), "{driver}");

            // Who comes second replaces nothing, and leaves nothing.
            let late = again("late!").await;
            let place = own(&world, driver, late.dir());
            assert!(place.exists());
            let error = all.replace_layer(driver, late, dir, false).await.unwrap_err();
            assert_eq!((error.code, place.exists()), (Code::FailedPrecondition, false), "{driver}");

            let world = world.restart().await;
            let suite = Suite { world: &world, driver };
            assert_eq!(world.snapshots.check(false).await.unwrap(), [], "{driver}");
            let shown = |key: &str| {
                Mounted::new(&world.snapshots.mounts(&ns(), driver, &name(key)).unwrap()).read("f").unwrap()
            };
            assert_eq!([shown("old"), shown("new")], ["wrong", "right"], "{driver}");
            suite.remove("old").await.unwrap();
            let kept = format!("replaced/{dir}/0");
            // Only where it was shown by their mounts anybody lay on it.
            assert_eq!(suite.stat(&kept).is_ok(), matches!(driver, "overlay" | "erofs"), "{driver}");
            if suite.stat(&kept).is_ok() {
                suite.remove(&kept).await.unwrap();
            }
            assert!(!own(&world, driver, dir).exists(), "{driver}");
            assert_eq!(shown("new"), "right", "{driver}");
            world.kernel.stop().await;
        }
    });
}
