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
            let turn = all.turn(&ns(), driver, &chain).unwrap();
            let Staged::New(stage) = all.stage_layer(driver, turn, None, None, true).await.unwrap() else { panic!() };
            fill(&stage, "wrong");
            let layer = ChainLayer { chain: chain.clone(), parent: None, labels: Labels::new(), stage: Some(stage) };
            let auth = Authority::system();
            all.commit_layers(&auth, &ns(), driver, vec![layer], None, |_| Ok(())).await.unwrap();
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
            let view = name("view");
            let viewed = all.view(&auth, &ns(), driver, &view, Some(&name(&key)), Labels::new()).await.unwrap();
            let mounted = Mounted::new(&viewed);
            let early = all.reserve(&ns(), driver, &name("early"), Some(&name(&key)), false).await.unwrap();
            let stage = again("right").await;
            let found = all.difference(&stage, dir, &at_once).unwrap();
            assert_eq!(found.as_deref(), Some("/f: has other bytes"), "{driver}");
            all.replace_layer(driver, stage, dir, false).await.unwrap();

            // What was reserved on the old tree can't be recorded on the new one.
            let record = move |tx: &mut cofferdam_metadata::Tx<'_>| early.create(tx, &ns()).map(drop);
            assert_eq!(world.meta.write(&auth, record).await.unwrap_err().code, Code::Unavailable, "{driver}");
            assert_eq!(old.read("f").as_deref(), Some("wrong"), "{driver}");
            assert_eq!(mounted.read("f").as_deref(), Some("wrong"), "{driver}");
            assert_eq!(all.mounts(&ns(), driver, &view).unwrap(), viewed, "{driver}");
            drop((old, mounted));
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
            assert_eq!([shown("old"), shown("view"), shown("new")], ["wrong", "wrong", "right"], "{driver}");
            let kept = format!("replaced/{dir}/0");
            suite.remove("view").await.unwrap();
            // Of the active one, where that has a copy, nothing lies on it.
            let refused = suite.remove(&kept).await.err().map(|error| error.code);
            let shows = matches!(driver, "overlay" | "erofs");
            assert_eq!(refused, shows.then_some(Code::FailedPrecondition), "{driver}");
            suite.remove("old").await.unwrap();
            if shows {
                suite.remove(&kept).await.unwrap();
            }
            assert!(!own(&world, driver, dir).exists(), "{driver}");
            assert_eq!(shown("new"), "right", "{driver}");
            world.kernel.stop().await;
        }
    });
}

#[test]
fn a_layer_is_not_made_of_a_tree_that_was_replaced_meanwhile() {
    run(async {
        for driver in DRIVERS {
            let world = World::start_for(driver).await;
            let (all, auth) = (&world.snapshots, Authority::system());
            let (low, high) = (Digest::of(Algorithm::Sha256, b"low"), Digest::of(Algorithm::Sha256, b"high"));
            let begin = async |chain: &Digest, parent: Option<&Digest>| {
                let turn = all.turn(&ns(), driver, chain).unwrap();
                let staged = all.stage_layer(driver, turn, parent, None, true).await.unwrap();
                let Staged::New(stage) = staged else { panic!("{driver}: it is there") };
                stage
            };
            let layer = |chain: &Digest, parent: Option<&Digest>, stage| ChainLayer {
                chain: chain.clone(),
                parent: parent.cloned(),
                labels: Labels::new(),
                stage,
            };
            let stage = begin(&low, None).await;
            fill(&stage, "wrong");
            all.commit_layers(&auth, &ns(), driver, vec![layer(&low, None, Some(stage))], None, |_| Ok(()))
                .await
                .unwrap();
            let dir = all.stat(&ns(), driver, &name(&low.to_string())).unwrap().dir;
            let (stage, again) = (begin(&high, Some(&low)).await, all.stage_again(driver, &low, None).await.unwrap());
            fill(&again, "right");
            all.replace_layer(driver, again, dir, false).await.unwrap();

            let copied = !all.detached(driver).unwrap();
            let chain = vec![layer(&low, None, None), layer(&high, Some(&low), Some(stage))];
            let made = all.commit_layers(&auth, &ns(), driver, chain, None, |_| Ok(())).await;
            assert_eq!(made.err().map(|error| error.code), copied.then_some(Code::Unavailable), "{driver}");
            if copied {
                let chain =
                    vec![layer(&low, None, None), layer(&high, Some(&low), Some(begin(&high, Some(&low)).await))];
                all.commit_layers(&auth, &ns(), driver, chain, None, |_| Ok(())).await.unwrap();
            }
            let suite = Suite { world: &world, driver };
            let on = suite.prepare("on", Some(&high.to_string())).await.unwrap();
            assert_eq!(on.read("f").as_deref(), Some("right"), "{driver}");
            drop(on);

            // Nor does a tree take a layer's place that was made of such a one.
            let now = |chain: &Digest| suite.stat(&chain.to_string()).unwrap().dir;
            let again = all.stage_again(driver, &high, Some(&low)).await.unwrap();
            let below = all.stage_again(driver, &low, None).await.unwrap();
            all.replace_layer(driver, below, now(&low), false).await.unwrap();
            let replaced = all.replace_layer(driver, again, now(&high), false).await;
            assert_eq!(replaced.err().map(|error| error.code), copied.then_some(Code::Unavailable), "{driver}");
            world.kernel.stop().await;
        }
    });
}
