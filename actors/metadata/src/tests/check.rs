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
    assert!(store.write(|tx| check::drop_blob(tx, &digest("a"))).unwrap());
    code(drop_dir(&mut store, 1), Code::FailedPrecondition);
    assert!(drop_dir(&mut store, 2).unwrap());
    assert!(drop_dir(&mut store, 1).unwrap());
    assert_eq!(faults(&store), []);
    assert!(content::find(&store.view(), &default(), &digest("a")).unwrap().is_none());
}

fn drop_dir(store: &mut Fixture, dir: u64) -> Result<bool> {
    let those = check::snapshots_in(&store.view(), "overlay", &[dir])?.remove(&dir).unwrap();
    store.write(move |tx| check::drop_dir(tx, "overlay", dir, &those))
}

/// What is dropped is what was meant, and all of it, or that is said.
#[test]
fn what_is_dropped_is_gone_from_namespaces_without_a_record_too_or_is_said_to_stay() {
    let mut store = shared();
    store.write(|tx| tx.remove(Table::NAMESPACES, b"other").map(drop)).unwrap();
    assert!(store.write(|tx| check::drop_blob(tx, &digest("a"))).unwrap());
    assert!(!content::is_kept(&store.view(), &digest("a")).unwrap());
    assert_eq!(check::snapshots_in(&store.view(), "overlay", &[7]).unwrap()[&7].len(), 2);
    // Of which namespace a link is nobody can say.
    store.write(|tx| content::create(tx, &default(), content::Link::new(digest("b"), 1))).unwrap();
    let odd = [b"\xff", &b"\0"[..], digest("b").to_string().as_bytes()].concat();
    store.write(move |tx| tx.put(Table::CONTENT, &odd, b"\xff")).unwrap();
    assert!(!store.write(|tx| check::drop_blob(tx, &digest("b"))).unwrap());
    // One that shows the directory can't be read, another has been put into it since.
    let mut store = shared();
    let theirs = codec::key(&["other", "overlay", &digest("c").to_string()]);
    store.write(|tx| containers::delete(tx, &default(), "box")).unwrap();
    store.write(|tx| snapshots::delete(tx, &default(), "overlay", "box")).unwrap();
    store.write(move |tx| tx.put(Table::SNAPSHOTS, &theirs, b"\xff")).unwrap();
    assert!(!drop_dir(&mut store, 7).unwrap());
    let other = [(default(), name("done"))];
    assert!(!store.write(move |tx| check::drop_dir(tx, "overlay", 2, &other)).unwrap());
    assert!(snapshots::find(&store.view(), &default(), "overlay", "done").unwrap().is_some());
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

#[derive(Clone, Copy, PartialEq)]
enum Spoil {
    Torn,
    Misnamed,
}

/// What a row would say that lay under another's key.
fn misnamed(table: Table, key: &[u8], row: &[u8]) -> Vec<u8> {
    fn of<R: crate::records::Record>(key: &[u8], row: &[u8], rename: impl FnOnce(&mut R)) -> Vec<u8> {
        let mut record = codec::decode(R::KIND, key, row).unwrap();
        rename(&mut record);
        codec::encode(R::KIND, &record).unwrap()
    }
    match table {
        Table::CONTENT => of::<content::Link>(key, row, |link| link.digest = digest("another")),
        Table::SNAPSHOTS => of::<Snapshot>(key, row, |snapshot| snapshot.key = name("another")),
        Table::LEASES => of::<crate::records::leases::Lease>(key, row, |lease| lease.id = name("another")),
        _ => of::<containers::Container>(key, row, |container| container.id = id("another")),
    }
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
    for ((table, parts), how) in
        spoils.into_iter().flat_map(|spoil| [Spoil::Torn, Spoil::Misnamed].map(|how| (spoil.clone(), how)))
    {
        let mut store = shared();
        let (before, key) = (indices(&store), codec::key(&parts));
        let row = store.view().get(table, &key).unwrap().unwrap();
        let row = if how == Spoil::Torn { vec![0xff] } else { misnamed(table, &key, &row) };
        store.write(move |tx| tx.put(table, &key, &row)).unwrap();
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

/// Who counts first counts all that there is, so that nobody behind him takes what others have: one who comes, and one who goes.
#[test]
fn a_count_that_is_lost_is_made_anew_by_the_next_who_counts() {
    let mut store = shared();
    let third = || Namespace::new("third").unwrap();
    store.write(move |tx| namespaces::create(tx, &third(), &labels(""))).unwrap();
    // A namespace without a record has what it has.
    store.write(|tx| tx.remove(Table::NAMESPACES, b"other").map(drop)).unwrap();
    let lose = |tx: &mut Tx<'_>| tx.remove(Table::BLOBS, DIGEST_A.as_bytes()).map(drop);
    let links = |store: &Fixture| content::blob(&store.view(), &digest("a")).unwrap().map(|blob| blob.links);
    store.write(lose).unwrap();
    assert!(content::is_kept(&store.view(), &digest("a")).unwrap(), "its file stays at the next start");
    store.write(move |tx| content::create(tx, &third(), content::Link::new(digest("a"), 1))).unwrap();
    assert_eq!(links(&store), Some(3));
    store.write(lose).unwrap();
    assert!(!store.write(move |tx| content::delete(tx, &third(), &digest("a"))).unwrap());
    assert_eq!(links(&store), Some(2));

    // So with the directory of a layer: by who links it, replaces it, or commits another.
    let lose = |tx: &mut Tx<'_>| tx.remove(Table::DIRS, &snapshots::dir_key("overlay", 7)).map(drop);
    let shown = |store: &Fixture, dir| snapshots::dir_references(&store.view(), "overlay", dir).unwrap();
    store.write(lose).unwrap();
    store.write(move |tx| layers::link(tx, &third(), "overlay", &digest("c"), &labels(""))).unwrap();
    assert_eq!(shown(&store, 7), 3);
    let chain = digest("c").to_string();
    assert!(!store.write(move |tx| snapshots::delete(tx, &third(), "overlay", &chain)).unwrap().unreferenced);
    assert!(layers::find(&store.view(), "overlay", &digest("c")).unwrap().is_some());
    store.write(lose).unwrap();
    store.write(|tx| snapshots::recount(tx, "overlay", 7)).unwrap();
    assert_eq!(shown(&store, 7), 2);
    // All of them, now that each namespace has a record.
    store.write(|tx| namespaces::create(tx, &Namespace::new("other")?, &labels(""))).unwrap();
    store.write(lose).unwrap();
    let again = |tx: &mut Tx<'_>| {
        let (tree, stays) = ((9, Default::default()), crate::records::replace::Stays::None);
        crate::records::replace::replace(tx, "overlay", &digest("c"), 7, tree, stays)
    };
    assert!(store.write(again).unwrap(), "nothing is left on the old tree");
    assert_eq!((shown(&store, 7), shown(&store, 9)), (0, 2));
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
    let delete = move |tx: &mut Tx<'_>| {
        content::delete(tx, &gone, &digest("a"))?;
        namespaces::delete(tx, &gone)
    };
    code(store.write(delete), Code::DataLoss);
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
