//! The daemon is killed at random points: what it acknowledged stays, what it had begun leaves nothing.

use std::{collections::BTreeMap, time::Duration};

use cofferdam_client::{Client, Containers, Stdio, is_lost};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, count};
use cofferdam_types::{Code, Error, Result};

use crate::random::{Random, seed};

/// How far a container came, as far as the daemon said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    #[default]
    Asked,
    Created,
    Made,
    Started,
    Ended,
    Removed,
}

/// Takes one container through its life, and notes what is acknowledged.
async fn live(containers: &Containers, image: &cofferdam_client::Image, id: &str, reached: &mut Reached) -> Result<()> {
    let mut request = cofferdam_client::ContainerRequest { id: id.into(), ..Default::default() };
    request.options.args = ["sh", "-c", "exit 5"].map(String::from).into();
    let container = containers.create(image, &request);
    container.info().await?;
    *reached = Reached::Created;
    let task = container.create_task(Stdio::default(), true);
    task.state().await?;
    *reached = Reached::Made;
    task.start().await?;
    *reached = Reached::Started;
    assert_eq!(task.wait().await?.status, 5);
    *reached = Reached::Ended;
    container.remove(false).await?;
    *reached = Reached::Removed;
    Ok(())
}

/// What must be found of it afterwards. Then it is brought to its end.
async fn check(containers: &Containers, id: &str, reached: Reached) {
    let container = containers.get(id);
    let info = match container.info().await {
        Err(error) => {
            assert_eq!(error.code, Code::NotFound, "{id}, {reached:?}: {error}");
            // A removal that was asked for may have been done without our hearing of it.
            assert!(matches!(reached, Reached::Asked | Reached::Ended | Reached::Removed), "{id} is lost: {reached:?}");
            return;
        }
        Ok(info) => info,
    };
    assert_ne!(reached, Reached::Removed, "{id} is back");
    if reached >= Reached::Made {
        assert!(info.task.is_some(), "the task of {id} is lost: {reached:?}");
    }
    if let Some(task) = &info.task {
        let state = container.task().state().await.unwrap_or_else(|e| panic!("{id}, {reached:?}, {task:?}: {e}"));
        if reached >= Reached::Started {
            let exit = container.task().wait().await.unwrap_or_else(|e| panic!("{id}, {reached:?}, {state:?}: {e}"));
            assert_eq!((exit.status, &*exit.reason), (5, ""), "{id}: {reached:?}");
        }
    }
    container.remove(true).await.unwrap_or_else(|e| panic!("{id}, {reached:?} can't be removed: {e}"));
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_left() {
    let seed = seed();
    let kills = count(300, 30);
    let mut random = Random::new(seed);
    println!("seed {seed}");

    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let mut reached_at_kill: BTreeMap<String, u32> = BTreeMap::new();
    let mut lives = 0;
    for kill in 0..kills {
        let delay = Duration::from_micros(random.below(60_000));
        let mut all: BTreeMap<String, Reached> = BTreeMap::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(delay);
                daemon.kill9();
            });
            bounded(async {
                // It may be killed before it is connected to.
                let Ok(client) = Client::connect(daemon.socket()).await else { return };
                let namespace = client.namespace(daemon.namespace());
                let (containers, image) = (namespace.containers(), namespace.images().get(BUSYBOX));
                for n in 0.. {
                    let id = format!("life{kill}-{n}");
                    let reached = all.entry(id.clone()).or_default();
                    match live(&containers, &image, &id, reached).await {
                        Ok(()) => lives += 1,
                        Err(error) => {
                            lost(&id, &error);
                            return;
                        }
                    }
                }
            });
        });
        daemon.restart();
        bounded(async {
            let containers = daemon.open().await.containers();
            for (id, reached) in &all {
                check(&containers, id, *reached).await;
            }
            let left = containers.list::<&str>(&[]).all().await.unwrap();
            assert!(left.is_empty(), "{left:?}");
        });
        if let Some(reached) = all.values().find(|reached| **reached != Reached::Removed) {
            *reached_at_kill.entry(format!("{reached:?}")).or_default() += 1;
        }
        daemon.settles(&before);
    }
    println!("{kills} kills, {lives} whole lives; killed behind {reached_at_kill:?}");
}

fn lost(id: &str, error: &Error) {
    assert!(is_lost(error) || error.code == Code::Unavailable, "{id}: {error:?}");
}
