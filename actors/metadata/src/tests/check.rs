//! Records that contradict each other are found, and what can be made anew is.

use std::ops::ControlFlow;

use cofferdam_types::Fault;

use super::*;
use crate::{
    Read, codec,
    graph::{Graph, Sweep},
    records::{
        check, containers, content, layers, namespaces,
        snapshots::{self, Kind, Snapshot},
    },
    table::Table,
};

fn filled() -> Fixture {
    let mut store = Fixture::new();
    let fill = |tx: &mut Tx<'_>| {
        content::create(tx, &default(), content::Link::new(digest("a"), 1))?;
        let base = Snapshot::new("overlay", name("base"), Kind::Active, None, 1);
        snapshots::create(tx, &default(), base)?;
        snapshots::commit(tx, &default(), "overlay", "base", name("done"), &labels(""), Default::default())?;
        let top = Snapshot::new("overlay", name("top"), Kind::Active, Some(name("done")), 2);
        snapshots::create(tx, &default(), top)?;
        // What a lease holds may be yet to come.
        crate::records::leases::create(tx, &default(), crate::records::leases::Lease::new(name("lease")))?;
        let coming = crate::records::Resource::Content(digest("z"));
        crate::records::leases::hold(tx, &default(), "lease", &coming)
    };
    store.write_as(&Authority::system().by_hand(), fill).unwrap();
    assert_eq!(check::all(&store.view()).unwrap(), []);
    store
}

fn faults(store: &Fixture) -> Vec<Fault> {
    check::all(&store.view()).unwrap().into_iter().map(|finding| finding.fault).collect()
}

#[test]
fn every_index_is_made_anew_from_what_it_is_of() {
    let breaks: [fn(&mut Tx<'_>) -> Result<()>; 12] = [
        |tx| tx.remove(Table::BLOBS, digest("a").to_string().as_bytes()).map(drop),
        |tx| tx.put(Table::BLOBS, digest("b").to_string().as_bytes(), b"no record"),
        |tx| tx.put(Table::DIRS, &snapshots::dir_key("overlay", 1), &7_u64.to_be_bytes()),
        |tx| tx.put(Table::DIRS, &snapshots::dir_key("overlay", 9), &1_u64.to_be_bytes()),
        |tx| tx.remove(Table::CHILDREN, b"default\0overlay\0done\0top").map(drop),
        |tx| tx.put(Table::CHILDREN, b"default\0overlay\0done\0none", b""),
        |tx| tx.put(Table::SPECS, b"default\0gone", b"a spec"),
        |tx| tx.put(Table::TRANSIENT, b"default\0gone", b""),
        |tx| tx.put(Table::HELD, b"default\0gone\0snapshot\0overlay\0top", b""),
        |tx| tx.put(Table::HELD, format!("default\0\0content\0{}", digest("b")).as_bytes(), b""),
        |tx| tx.put(Table::HELD, b"other\0\0snapshot\0overlay\0top", b""),
        |tx| {
            let layer = crate::records::layers::Layer {
                chain: digest("c"),
                parent: None,
                dir: 1,
                detached: true,
                usage: Default::default(),
                created: Default::default(),
            };
            crate::records::layers::create(tx, "overlay", layer).map(drop)
        },
    ];
    for (n, harm) in breaks.into_iter().enumerate() {
        let mut store = filled();
        store.write(harm).unwrap();
        assert_eq!(faults(&store), [Fault::IndexWrong], "{n}");
        let mended = store.write(check::mend).unwrap();
        assert!(mended.iter().all(|finding| finding.repaired) && mended.len() == 1, "{n}: {mended:?}");
        assert_eq!(faults(&store), [], "{n}");
        store.write(|tx| content::delete(tx, &default(), &digest("a"))).unwrap();
        store.write(|tx| snapshots::delete(tx, &default(), "overlay", "top")).unwrap();
        assert_eq!(faults(&store), [], "{n}");
    }
}

#[test]
fn what_nobody_can_make_anew_is_told_and_left() {
    let mut store = filled();
    store.write(|tx| tx.put(Table::CONTENT, b"default\0sha256:x", b"\xff")).unwrap();
    store.write(|tx| tx.remove(Table::SNAPSHOTS, b"default\0overlay\0done").map(drop)).unwrap();
    store.write(|tx| tx.put(Table::HELD, b"default\0\0content\0no digest", b"")).unwrap();
    let found = faults(&store);
    assert!(found.contains(&Fault::RecordUnreadable) && found.contains(&Fault::RecordMissing), "{found:?}");
    store.write(check::mend).unwrap();
    let mut left = faults(&store);
    left.sort();
    assert_eq!(left, [Fault::RecordMissing, Fault::RecordUnreadable, Fault::RecordUnreadable]);
}

#[test]
fn what_lost_its_bytes_goes_from_every_namespace_and_what_lies_on_a_tree_stays() {
    let mut store = filled();
    store.write(|tx| check::drop_blob(tx, &digest("a"))).unwrap();
    code(store.write(|tx| check::drop_dir(tx, "overlay", 1)), Code::FailedPrecondition);
    store.write(|tx| check::drop_dir(tx, "overlay", 2)).unwrap();
    store.write(|tx| check::drop_dir(tx, "overlay", 1)).unwrap();
    assert_eq!(faults(&store), []);
    assert!(content::find(&store.view(), &default(), &digest("a")).unwrap().is_none());
}

#[test]
fn the_spec_of_a_container_that_cant_be_read_stays() {
    let mut store = filled();
    let spec = cofferdam_types::Any { type_url: "types.example/spec".into(), value: b"{}".to_vec() };
    let container = crate::records::containers::Container::new(id("box"), "native", spec);
    store.write(move |tx| crate::records::containers::create(tx, &default(), container.clone())).unwrap();
    store.write(|tx| tx.put(Table::CONTAINERS, b"default\0box", b"no record")).unwrap();
    let left = store.write(check::mend).unwrap();
    assert_eq!(left.iter().map(|finding| finding.fault).collect::<Vec<_>>(), [Fault::RecordUnreadable]);
    assert!(crate::Read::get(&store.view(), Table::SPECS, b"default\0box").unwrap().is_some());
}

/// All that is counted, listed and held.
fn indices(store: &Fixture) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    for table in
        [Table::BLOBS, Table::DIRS, Table::CHILDREN, Table::LAYERS, Table::HELD, Table::SPECS, Table::TRANSIENT]
    {
        crate::table::scan(&store.view(), table, b"", None, &mut |key, value| {
            rows.push((table, key.to_vec(), value.to_vec()));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    }
    rows
}

/// A namespace of each kind of record that something is counted, listed or held for, and another one that shares.
fn shared() -> Fixture {
    let mut store = filled();
    let other = Namespace::new("other").unwrap();
    let fill = move |tx: &mut Tx<'_>| {
        namespaces::create(tx, &other, &labels(""))?;
        content::create(tx, &other, content::Link::new(digest("a"), 1))?;
        let layer = layers::Layer {
            chain: digest("c"),
            parent: None,
            dir: 7,
            detached: true,
            usage: Default::default(),
            created: Default::default(),
        };
        layers::create(tx, "overlay", layer)?;
        layers::link(tx, &default(), "overlay", &digest("c"), &labels(""))?;
        layers::link(tx, &other, "overlay", &digest("c"), &labels(""))?;
        let on_it = Snapshot::new("overlay", name("box"), Kind::Active, Some(name(&digest("c").to_string())), 8);
        snapshots::create(tx, &default(), on_it)?;
        let spec = cofferdam_types::Any { type_url: "types.example/spec".into(), value: b"{}".to_vec() };
        let mut container = containers::Container::new(id("box"), "native", spec);
        (container.driver, container.snapshot_key) = ("overlay".into(), Some(name("box")));
        container.transient = true;
        containers::create(tx, &default(), container).map(drop)
    };
    store.write_as(&Authority::system().by_hand(), fill).unwrap();
    assert_eq!(check::all(&store.view()).unwrap(), []);
    store
}

/// What a row is of that can't be read isn't known to be of nothing: else a repair would take the file of a blob, what a lease
/// holds, or a tree that others share.
#[test]
fn what_is_of_a_row_that_cant_be_read_stays() {
    let layer = digest("c").to_string();
    let spoils = [
        (Table::CONTENT, vec!["default", DIGEST_A]),
        (Table::CONTENT, vec!["other", DIGEST_A]),
        (Table::LEASES, vec!["default", "lease"]),
        (Table::SNAPSHOTS, vec!["default", "overlay", "done"]),
        (Table::SNAPSHOTS, vec!["default", "overlay", "top"]),
        (Table::SNAPSHOTS, vec!["default", "overlay", &layer]),
        (Table::SNAPSHOTS, vec!["other", "overlay", &layer]),
        (Table::SNAPSHOTS, vec!["default", "overlay", "box"]),
        (Table::CONTAINERS, vec!["default", "box"]),
    ];
    assert_eq!(digest("a").to_string(), DIGEST_A);
    for (table, parts) in spoils {
        let mut store = shared();
        let (before, key) = (indices(&store), codec::key(&parts));
        store.write(move |tx| tx.put(table, &key, b"\xff")).unwrap();
        let told = store.write(check::mend).unwrap();
        let faults: Vec<_> = told.iter().map(|finding| finding.fault).collect();
        assert_eq!(faults, [Fault::RecordUnreadable], "{parts:?}: {told:?}");
        assert_eq!(indices(&store), before, "{parts:?}");
    }
    // Both links of a blob, and both snapshots of a layer: nothing that can be read speaks of either.
    let mut store = shared();
    let before = indices(&store);
    store
        .write(move |tx| {
            for ns in ["default", "other"] {
                tx.put(Table::CONTENT, &codec::key(&[ns, DIGEST_A]), b"\xff")?;
                tx.put(Table::SNAPSHOTS, &codec::key(&[ns, "overlay", &layer]), b"\xff")?;
            }
            Ok(())
        })
        .unwrap();
    store.write(check::mend).unwrap();
    assert_eq!(indices(&store), before);
    // Of a row whose key can't be read either anything may be.
    for table in [Table::CONTENT, Table::SNAPSHOTS, Table::LEASES] {
        let mut store = shared();
        let before = indices(&store);
        let gone = move |tx: &mut Tx<'_>| {
            let key = super::super::records::keys(tx, table, b"")?.remove(0);
            tx.remove(table, &key)?;
            tx.put(table, b"\xff\xfe", b"\xff")
        };
        store.write(gone).unwrap();
        store.write(check::mend).unwrap();
        let after = indices(&store);
        assert!(before.iter().all(|row| row.0 == Table::CHILDREN || after.contains(row)), "{table:?}: {after:?}");
    }
}

const DIGEST_A: &str = "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";

/// A count that is too low is raised to what can be seen, also where more may be unseen.
#[test]
fn a_count_is_never_lower_than_what_can_be_read_of_it() {
    let mut store = shared();
    let other = codec::key(&["other", DIGEST_A]);
    store
        .write(move |tx| {
            tx.put(Table::CONTENT, &other, b"\xff")?;
            tx.remove(Table::BLOBS, DIGEST_A.as_bytes())?;
            let layer = digest("c").to_string();
            tx.put(Table::SNAPSHOTS, &codec::key(&["other", "overlay", &layer]), b"\xff")?;
            tx.remove(Table::DIRS, &snapshots::dir_key("overlay", 7)).map(drop)
        })
        .unwrap();
    store.write(check::mend).unwrap();
    let view = store.view();
    assert_eq!(content::blob(&view, &digest("a")).unwrap().unwrap().links, 2, "the keys say of which blob links are");
    assert_eq!(snapshots::dir_references(&view, "overlay", 7).unwrap(), 1);
}

/// A blob that nobody counted is the last one's only if nobody else links it.
#[test]
fn what_others_link_is_theirs_though_nobody_counted_it() {
    let mut store = shared();
    store.write(|tx| tx.remove(Table::BLOBS, DIGEST_A.as_bytes()).map(drop)).unwrap();
    assert!(!store.write(|tx| content::delete(tx, &default(), &digest("a"))).unwrap(), "the other one has it");
    assert!(store.write(|tx| content::delete(tx, &Namespace::new("other")?, &digest("a"))).unwrap());
    // So with the directory of a layer.
    let layer = digest("c").to_string();
    let gone = |ns: &'static str| {
        let layer = layer.clone();
        move |tx: &mut Tx<'_>| snapshots::delete(tx, &Namespace::new(ns)?, "overlay", &layer)
    };
    store.write(|tx| containers::delete(tx, &default(), "box")).unwrap();
    store.write(|tx| snapshots::delete(tx, &default(), "overlay", "box")).unwrap();
    store.write(|tx| tx.remove(Table::DIRS, &snapshots::dir_key("overlay", 7)).map(drop)).unwrap();
    assert!(!store.write(gone("other")).unwrap().unreferenced);
    assert!(store.write(gone("default")).unwrap().unreferenced);
}

#[test]
fn what_lies_on_itself_is_told_and_ends_nothing() {
    let mut store = shared();
    let other = Namespace::new("other").unwrap();
    let round = move |tx: &mut Tx<'_>| {
        for (key, parent) in [("a", "b"), ("b", "a"), ("self", "self")] {
            let mut one = Snapshot::new("overlay", name(key), Kind::Committed, Some(name(parent)), 20);
            one.layer = Some(digest("c"));
            codec::encode("snapshot", &one).and_then(|row| {
                tx.put(Table::SNAPSHOTS, &codec::key(&["other", "overlay", key]), &row)?;
                tx.put(Table::CHILDREN, &codec::key(&["other", "overlay", parent, key]), b"")
            })?;
        }
        Ok(())
    };
    store.write(round).unwrap();
    store.write(check::mend).unwrap();
    let told = check::all(&store.view()).unwrap();
    let round: Vec<_> = told.iter().filter(|one| one.message.contains("lies on itself")).map(|one| &*one.id).collect();
    let id = |key: &str| format!("snapshot/other/overlay/{key}");
    assert_eq!(round, [id("a"), id("b"), id("self")]);
    let gone = other.clone();
    code(store.write(move |tx| namespaces::delete(tx, &gone)), Code::DataLoss);
    // The collector leaves them, and takes what else there is.
    let collection = store.write(|tx| Ok(tx.spared().begin())).unwrap();
    let graph = Graph::read(&store.view(), &other, cofferdam_types::Timestamp::now()).unwrap();
    let sweep = Sweep::new(collection, other.clone(), &graph);
    store.write(|tx| content::create(tx, &default(), content::Link::new(digest("y"), 1))).unwrap();
    let swept = store.write(move |tx| sweep.slice(tx, usize::MAX)).unwrap();
    assert!(swept.snapshots.is_empty(), "{:?}", swept.removed);
    assert!(graph.garbage().len() >= 3, "they are candidates");
    assert!(store.view().get(Table::SNAPSHOTS, b"other\0overlay\0self").unwrap().is_some());
}
