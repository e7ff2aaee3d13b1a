//! A layer's tree is replaced: what is made from then on lies on the new one, what was there on the old.

use super::*;
use crate::{
    Read,
    graph::Graph,
    records::{
        check, events,
        layers::{self, Layer},
        namespaces,
        replace::{self, Stays, replace},
        snapshots::{self, Kind, Snapshot, Usage},
    },
};

const DRIVER: &str = "overlay";

fn layer(of: &str, parent: Option<&str>, dir: u64) -> Layer {
    let (chain, parent) = (digest(of), parent.map(digest));
    Layer { chain, parent, dir, detached: true, usage: Usage::default(), created: Default::default() }
}

fn prepare(f: &mut Fixture, key: &'static str, parent: &str, dir: u64) {
    let parent = name(parent);
    let new = move |tx: &mut Tx<'_>| {
        snapshots::create(tx, &default(), Snapshot::new(DRIVER, name(key), Kind::Active, Some(parent.clone()), dir))
    };
    f.write(new).unwrap();
}

fn other() -> Namespace {
    Namespace::new("other").unwrap()
}

/// Layers 1 and, on it, 2, in two namespaces; in the first `on-low` and `on-high` on these, and `mine`, which is committed,
/// with `on-mine` on it.
fn world() -> Fixture {
    let mut f = Fixture::new();
    f.write(|tx| {
        namespaces::create(tx, &other(), &labels(""))?;
        layers::create(tx, DRIVER, layer("low", None, 1))?;
        layers::create(tx, DRIVER, layer("high", Some("low"), 2))?;
        for ns in [default(), other()] {
            layers::link(tx, &ns, DRIVER, &digest("low"), &labels("containerd.io/gc.root=now"))?;
            layers::link(tx, &ns, DRIVER, &digest("high"), &labels("containerd.io/gc.root=now"))?;
        }
        Ok(())
    })
    .unwrap();
    let (low, high) = (digest("low").to_string(), digest("high").to_string());
    prepare(&mut f, "on-low", &low, 10);
    prepare(&mut f, "on-high", &high, 11);
    prepare(&mut f, "work", &high, 12);
    let commit = |tx: &mut Tx<'_>| {
        snapshots::commit(tx, &default(), DRIVER, "work", name("mine"), &labels(""), Usage::default())
    };
    f.write(commit).unwrap();
    prepare(&mut f, "on-mine", "mine", 13);
    f
}

/// The directories that a snapshot is mounted from, its own among them.
fn dirs(read: &dyn Read, key: &str) -> Vec<u64> {
    let own = snapshots::get(read, &default(), DRIVER, key).unwrap();
    let above = snapshots::ancestors(read, &default(), &own).unwrap();
    [own].iter().chain(&above).map(|one| one.dir).collect()
}

fn swap(f: &mut Fixture, of: &'static str, old: u64, new: u64, stays: Stays) -> Result<bool> {
    f.write(move |tx| replace(tx, DRIVER, &digest(of), old, (new, Usage { size: 7, inodes: 1 }), stays))
}

fn agree(f: &Fixture) {
    assert_eq!(check::all(&f.view()).unwrap(), []);
}

#[test]
fn mounts_that_are_there_stay_and_new_ones_get_the_new_tree() {
    let mut f = world();
    let before = ["on-low", "on-high", "on-mine"].map(|key| dirs(&f.view(), key));
    assert!(!swap(&mut f, "low", 1, 101, Stays::All).unwrap(), "it is in use");
    agree(&f);
    assert_eq!(["on-low", "on-high", "on-mine"].map(|key| dirs(&f.view(), key)), before);
    let below = |key: &str| {
        let view = f.view();
        let parent = snapshots::get(&view, &default(), DRIVER, key).unwrap().parent.unwrap();
        replace::first_name(&snapshots::get(&view, &default(), DRIVER, &parent).unwrap()).to_owned()
    };
    assert_eq!([below("on-low"), below("on-high")], [digest("low"), digest("high")].map(|chain| chain.to_string()));
    assert_eq!(below("on-mine"), "mine");
    prepare(&mut f, "new", &digest("high").to_string(), 14);
    assert_eq!(dirs(&f.view(), "new"), [14, 2, 101]);
    assert_eq!(dirs(&f.view(), "mine"), [12, 2, 101], "what is committed is what new ones lie on");
    let theirs = snapshots::get(&f.view(), &other(), DRIVER, &digest("low").to_string()).unwrap();
    assert_eq!((theirs.dir, theirs.usage.size), (101, 7));
    assert_eq!(snapshots::list(&f.view(), &other(), DRIVER, None, 9).unwrap().len(), 2, "nothing of theirs was in use");

    // The layer above it is replaced too, also under what stayed on the first one's old tree.
    let before = ["on-low", "on-high", "on-mine", "new"].map(|key| dirs(&f.view(), key));
    assert!(!swap(&mut f, "high", 2, 102, Stays::All).unwrap());
    agree(&f);
    assert_eq!(["on-low", "on-high", "on-mine", "new"].map(|key| dirs(&f.view(), key)), before);
    prepare(&mut f, "newer", "mine", 15);
    assert_eq!(dirs(&f.view(), "newer"), [15, 12, 102, 101]);

    let topics: Vec<_> = events::outbox_after(&f.view(), 0, 99).unwrap().into_iter().map(|e| e.topic).collect();
    assert_eq!(topics.iter().filter(|topic| *topic == "/snapshot/repaired").count(), 4);
    code(swap(&mut f, "low", 1, 103, Stays::All), Code::FailedPrecondition);
    code(swap(&mut f, "none", 1, 103, Stays::All), Code::NotFound);
}

#[test]
fn the_old_tree_is_garbage_when_nothing_lies_on_it() {
    let mut f = world();
    swap(&mut f, "low", 1, 101, Stays::All).unwrap();
    f.write(|tx| snapshots::delete(tx, &default(), DRIVER, "on-mine")).unwrap();
    f.write(|tx| {
        ["on-low", "on-high"].iter().try_for_each(|key| snapshots::delete(tx, &default(), DRIVER, key).map(drop))
    })
    .unwrap();
    let graph = Graph::read(&f.view(), &default(), cofferdam_types::Timestamp::now()).unwrap();
    let garbage: Vec<_> = graph.garbage().into_iter().map(|node| node.resource.id()).collect();
    assert!(garbage.iter().filter(|key| key.starts_with("replaced/1/")).count() == 3, "{garbage:?}");
    let mut gone = Vec::new();
    for key in garbage {
        let removed = f.write(move |tx| snapshots::delete(tx, &default(), DRIVER, &key)).unwrap();
        gone.extend(removed.unreferenced.then_some(removed.snapshot.dir));
        agree(&f);
    }
    assert!(gone.contains(&1) && !gone.contains(&2), "{gone:?}");
    assert!(layers::find(&f.view(), DRIVER, &digest("high")).unwrap().is_some());
}

#[test]
fn a_layer_outlives_its_own_name_while_something_stays_on_it() {
    let mut f = world();
    swap(&mut f, "low", 1, 101, Stays::All).unwrap();
    for key in ["on-mine", "mine"] {
        f.write(move |tx| snapshots::delete(tx, &default(), DRIVER, key)).unwrap();
    }
    // Its tree is still shown, below what stayed: so there is a layer, and it goes with that.
    for ns in [other(), default()] {
        let key = digest("high").to_string();
        let removed = f.write(move |tx| snapshots::delete(tx, &ns, DRIVER, &key)).unwrap();
        assert!(!removed.unreferenced);
        agree(&f);
    }
    assert!(layers::find(&f.view(), DRIVER, &digest("high")).unwrap().is_some());
    f.write(|tx| snapshots::delete(tx, &default(), DRIVER, "on-high")).unwrap();
    // What lies above has the higher number.
    for key in ["replaced/1/2", "replaced/1/1"] {
        f.write(move |tx| snapshots::delete(tx, &default(), DRIVER, key)).unwrap();
        agree(&f);
    }
    assert!(layers::find(&f.view(), DRIVER, &digest("high")).unwrap().is_none());
}

#[test]
fn what_lay_on_a_tree_that_is_gone_lies_on_the_new_one() {
    let mut f = world();
    assert!(swap(&mut f, "low", 1, 101, Stays::None).unwrap(), "nothing refers to it any more");
    agree(&f);
    assert_eq!(dirs(&f.view(), "on-high"), [11, 2, 101]);
}

#[test]
fn where_trees_are_copied_a_view_alone_stays_on_the_old_one() {
    let mut f = world();
    let view = |tx: &mut Tx<'_>, key, parent: &str, dir| {
        snapshots::create(tx, &default(), Snapshot::new(DRIVER, name(key), Kind::View, Some(name(parent)), dir))
    };
    f.write(move |tx| {
        view(tx, "view", &digest("low").to_string(), 20)?;
        view(tx, "higher", &digest("high").to_string(), 21)
    })
    .unwrap();
    assert!(!swap(&mut f, "low", 1, 101, Stays::Views).unwrap(), "the view shows it");
    agree(&f);
    assert_eq!(dirs(&f.view(), "view"), [20, 1]);
    assert_eq!(dirs(&f.view(), "higher"), [21, 2, 101], "it shows a copy");
    assert_eq!(dirs(&f.view(), "on-low"), [10, 101]);
    let removed = f.write(|tx| {
        snapshots::delete(tx, &default(), DRIVER, "view")?;
        snapshots::delete(tx, &default(), DRIVER, "replaced/1/0")
    });
    assert!(removed.unwrap().unreferenced);
    agree(&f);
}

#[test]
fn damage_is_told_where_the_layer_is() {
    let mut f = world();
    f.write(|tx| replace::damaged(tx, DRIVER, &digest("high"))).unwrap();
    let told: Vec<_> = events::outbox_after(&f.view(), 0, 99).unwrap();
    let told: Vec<_> =
        told.iter().filter(|e| e.topic == "/snapshot/damaged").map(|e| e.namespace.to_string()).collect();
    assert_eq!(told, ["default", "other"]);
}
