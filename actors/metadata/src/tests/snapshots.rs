//! The rules of snapshots and layers (reference, section 6.1 and its metadata store tests).

use super::*;
use crate::records::{
    containers::{self, Container},
    events,
    layers::{self, Layer},
    namespaces,
    snapshots::{self, Kind, Removed, Snapshot, Usage},
};

const DRIVER: &str = "overlay";

fn prepare(f: &mut Fixture, kind: Kind, key: &'static str, parent: Option<&'static str>) -> Result<Snapshot> {
    f.write(move |tx| {
        let dir = tx.next("dir", 1)?;
        snapshots::create(tx, &default(), Snapshot::new(DRIVER, name(key), kind, parent.map(name), dir))
    })
}

fn commit(f: &mut Fixture, key: &'static str, to: &'static str) -> Result<Snapshot> {
    let usage = Usage { size: 10, inodes: 2 };
    f.write(move |tx| snapshots::commit(tx, &default(), DRIVER, key, name(to), &labels("l=1"), usage))
}

fn remove(f: &mut Fixture, key: &'static str) -> Result<Removed> {
    f.write(move |tx| snapshots::delete(tx, &default(), DRIVER, key))
}

fn get(f: &Fixture, key: &str) -> Result<Snapshot> {
    snapshots::get(&f.view(), &default(), DRIVER, key)
}

/// base <- top, both committed.
fn stack() -> Fixture {
    let mut f = Fixture::new();
    prepare(&mut f, Kind::Active, "a", None).unwrap();
    commit(&mut f, "a", "base").unwrap();
    prepare(&mut f, Kind::Active, "b", Some("base")).unwrap();
    commit(&mut f, "b", "top").unwrap();
    f
}

#[test]
fn a_commit_takes_the_key_and_keeps_the_directory() {
    let mut f = Fixture::new();
    let active = prepare(&mut f, Kind::Active, "a", None).unwrap();
    let committed = commit(&mut f, "a", "base").unwrap();
    assert_eq!((committed.kind, committed.dir, committed.usage.size), (Kind::Committed, active.dir, 10));
    assert_eq!(committed.labels, labels("l=1"));
    code(get(&f, "a"), Code::NotFound);
    assert_eq!(get(&f, "base").unwrap(), committed);
    let topics: Vec<_> = events::outbox_after(&f.view(), 1, 9).unwrap().into_iter().map(|e| e.topic).collect();
    assert_eq!(topics, ["/snapshot/prepare", "/snapshot/commit"]);
}

#[test]
fn what_cannot_be_created() {
    let mut f = stack();
    prepare(&mut f, Kind::Active, "active", Some("top")).unwrap();
    prepare(&mut f, Kind::View, "view", Some("top")).unwrap();
    code(prepare(&mut f, Kind::Active, "new", Some("nobody")), Code::NotFound);
    code(prepare(&mut f, Kind::Active, "new", Some("active")), Code::InvalidArgument);
    code(prepare(&mut f, Kind::View, "new", Some("view")), Code::InvalidArgument);
    for taken in ["active", "view", "base"] {
        code(prepare(&mut f, Kind::Active, taken, None), Code::AlreadyExists);
        code(prepare(&mut f, Kind::View, taken, None), Code::AlreadyExists);
    }
    let bad = f.write(|tx| snapshots::create(tx, &default(), Snapshot::new("../x", name("k"), Kind::Active, None, 1)));
    code(bad, Code::InvalidArgument);
}

#[test]
fn what_cannot_be_committed() {
    let mut f = stack();
    prepare(&mut f, Kind::Active, "active", Some("top")).unwrap();
    prepare(&mut f, Kind::View, "view", Some("top")).unwrap();
    code(commit(&mut f, "nobody", "x"), Code::NotFound);
    code(commit(&mut f, "active", "base"), Code::AlreadyExists);
    code(commit(&mut f, "view", "x"), Code::FailedPrecondition);
    code(commit(&mut f, "base", "x"), Code::FailedPrecondition);
}

#[test]
fn the_root_of_a_container_goes_with_it_alone() {
    let mut f = stack();
    prepare(&mut f, Kind::Active, "box", Some("top")).unwrap();
    let spec = cofferdam_types::Any { type_url: "t".into(), value: b"{}".to_vec() };
    let mut container = Container::new(id("box"), "native", spec);
    // In another driver it is another's.
    container.driver = "other".into();
    container.snapshot_key = Some(name("box"));
    f.write({
        let container = container.clone();
        move |tx| containers::create(tx, &default(), container.clone())
    })
    .unwrap();
    commit(&mut f, "box", "free").unwrap();
    f.write(|tx| containers::delete(tx, &default(), &id("box"))).unwrap();

    prepare(&mut f, Kind::Active, "box", Some("top")).unwrap();
    container.driver = DRIVER.into();
    f.write(move |tx| containers::create(tx, &default(), container.clone())).unwrap();
    for refused in [remove(&mut f, "box").map(drop), commit(&mut f, "box", "new").map(drop)] {
        let error = code(refused, Code::FailedPrecondition);
        assert_eq!(error.message, "is the root of container box, and goes with that: remove the container");
    }
    assert_eq!(get(&f, "box").unwrap().kind, Kind::Active);
    f.write(|tx| {
        containers::delete(tx, &default(), &id("box"))?;
        snapshots::delete(tx, &default(), DRIVER, "box").map(drop)
    })
    .unwrap();
}

#[test]
fn a_parent_stays_while_it_has_children() {
    let mut f = stack();
    prepare(&mut f, Kind::View, "view", Some("top")).unwrap();
    let error = code(remove(&mut f, "base"), Code::FailedPrecondition);
    assert_eq!(error.message, "cannot remove snapshot with child: remove top first");
    code(remove(&mut f, "top"), Code::FailedPrecondition);
    assert_eq!(snapshots::children(&f.view(), &default(), DRIVER, "top", 9).unwrap(), [name("view")]);
    for key in ["view", "top", "base"] {
        let dir = get(&f, key).unwrap().dir;
        let removed = remove(&mut f, key).unwrap();
        assert_eq!((removed.unreferenced, removed.snapshot.dir), (true, dir));
        code(remove(&mut f, key), Code::NotFound);
    }
    assert!(snapshots::dirs(&f.view(), DRIVER).unwrap().is_empty());
    // A key that is free again is a new thing with a new directory.
    assert!(prepare(&mut f, Kind::Active, "base", None).unwrap().dir > 3);
}

#[test]
fn ancestors_are_nearest_first() {
    let mut f = stack();
    prepare(&mut f, Kind::Active, "active", Some("top")).unwrap();
    for (key, chain) in [("base", vec![]), ("top", vec!["base"]), ("active", vec!["top", "base"])] {
        let found = snapshots::ancestors(&f.view(), &default(), &get(&f, key).unwrap()).unwrap();
        let keys: Vec<_> = found.iter().map(|s| s.key.as_str()).collect();
        assert_eq!(keys, chain);
    }
}

#[test]
fn an_update_touches_labels_alone() {
    let mut f = stack();
    let before = get(&f, "top").unwrap();
    let update = |f: &mut Fixture, given: &'static str, paths: &'static str| {
        f.write(move |tx| snapshots::update(tx, &default(), DRIVER, "top", &labels(given), &mask(paths)))
    };
    assert_eq!(update(&mut f, "l1=a l2=b l3=c", "").unwrap().labels, labels("l1=a l2=b l3=c"));
    assert_eq!(update(&mut f, "l1=x l3=y", "labels.l1 labels.l2").unwrap().labels, labels("l1=x l3=c"));
    assert_eq!(update(&mut f, "l9=z", "labels").unwrap().labels, labels("l9=z"));
    code(update(&mut f, "", "parent"), Code::InvalidArgument);
    let after = get(&f, "top").unwrap();
    assert_eq!((after.created, &after.parent, after.kind), (before.created, &before.parent, before.kind));
}

#[test]
fn lists_are_per_driver() {
    let mut f = stack();
    f.write(|tx| snapshots::create(tx, &default(), Snapshot::new("native", name("base"), Kind::Active, None, 9)))
        .unwrap();
    let keys: Vec<_> =
        snapshots::list(&f.view(), &default(), DRIVER, None, 9).unwrap().into_iter().map(|s| s.key).collect();
    assert_eq!(keys, [name("base"), name("top")]);
    assert_eq!(snapshots::list(&f.view(), &default(), "native", None, 9).unwrap().len(), 1);
    assert_eq!(snapshots::list(&f.view(), &default(), DRIVER, Some("base"), 9).unwrap().len(), 1);
}

#[test]
fn a_layer_is_stored_once_and_lives_as_long_as_a_namespace_links_it() {
    let mut f = Fixture::new();
    let other = Namespace::new("other").unwrap();
    let (low, high) = (digest("low"), digest("high"));
    let layer = |chain: &Digest, parent: Option<&Digest>, dir| Layer {
        chain: chain.clone(),
        parent: parent.cloned(),
        dir,
        detached: true,
        usage: Usage { size: dir, inodes: 1 },
        created: Default::default(),
    };
    let layers_ = [layer(&low, None, 1), layer(&high, Some(&low), 2)];
    let (ns, chains) = (other.clone(), [low.clone(), high.clone()]);
    f.write(move |tx| {
        namespaces::create(tx, &ns, &labels(""))?;
        for layer in layers_.clone() {
            layers::create(tx, DRIVER, layer)?;
        }
        for chain in &chains {
            layers::link(tx, &default(), DRIVER, chain, &labels("a=1"))?;
        }
        Ok(())
    })
    .unwrap();
    // Its parent must be there first; then it may come, as often as one likes.
    let (ns, chain) = (other.clone(), high.clone());
    code(f.write(move |tx| layers::link(tx, &ns, DRIVER, &chain, &labels(""))), Code::NotFound);
    for chain in [low.clone(), high.clone(), high.clone()] {
        let ns = other.clone();
        f.write(move |tx| layers::link(tx, &ns, DRIVER, &chain, &labels(""))).unwrap();
    }
    assert_eq!(snapshots::dir_references(&f.view(), DRIVER, 2).unwrap(), 2);
    let shared = snapshots::get(&f.view(), &other, DRIVER, &high.to_string()).unwrap();
    assert_eq!((shared.dir, shared.kind, shared.layer.as_ref()), (2, Kind::Committed, Some(&high)));

    let drop_in = |f: &mut Fixture, ns: &Namespace, chain: &Digest| {
        let (ns, chain) = (ns.clone(), chain.clone());
        f.write(move |tx| snapshots::delete(tx, &ns, DRIVER, &chain.to_string()))
    };
    code(drop_in(&mut f, &default(), &low), Code::FailedPrecondition);
    assert!(!drop_in(&mut f, &default(), &high).unwrap().unreferenced);
    assert!(layers::find(&f.view(), DRIVER, &high).unwrap().is_some());
    assert!(drop_in(&mut f, &other, &high).unwrap().unreferenced);
    assert!(layers::find(&f.view(), DRIVER, &high).unwrap().is_none());
    let dirs: Vec<_> = snapshots::dirs(&f.view(), DRIVER).unwrap().into_iter().collect();
    assert_eq!(dirs, [1]);
}

#[test]
fn a_tree_that_a_client_commits_stays_private() {
    let mut f = Fixture::new();
    let chain = digest("chain");
    let key: &'static str = Box::leak(chain.to_string().into_boxed_str());
    prepare(&mut f, Kind::Active, "a", None).unwrap();
    let own = commit(&mut f, "a", key).unwrap();
    assert!(layers::find(&f.view(), DRIVER, &chain).unwrap().is_none());
    let linked = f.write(move |tx| layers::link(tx, &default(), DRIVER, &chain, &labels(""))).unwrap();
    assert_eq!(linked, own);
}

/// What a namespace without a row has is known all the same: a sweep that didn't find it would take it for nobody's.
#[test]
fn the_snapshots_of_a_namespace_that_lost_its_row_are_found() {
    let mut f = Fixture::new();
    f.write(|tx| {
        let other = Namespace::new("other")?;
        crate::records::namespaces::create(tx, &other, &labels(""))?;
        for (n, ns) in [default(), other].iter().enumerate() {
            snapshots::create(tx, ns, Snapshot::new("overlay", name("own"), Kind::Active, None, n as u64 + 1))?;
            snapshots::create(tx, ns, Snapshot::new("native", name("own"), Kind::Active, None, n as u64 + 1))?;
        }
        tx.remove(crate::Table::NAMESPACES, b"other").map(drop)
    })
    .unwrap();
    let mut found = Vec::new();
    snapshots::visit(&f.view(), "overlay", &mut |ns, one| {
        found.push((ns.to_string(), one.dir));
        Ok(())
    })
    .unwrap();
    assert_eq!(found, [("default".to_owned(), 1), ("other".to_owned(), 2)]);
}
