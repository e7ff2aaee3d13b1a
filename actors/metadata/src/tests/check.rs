//! Records that contradict each other are found, and what can be made anew is.

use cofferdam_types::Fault;

use super::*;
use crate::{
    records::{
        check, content,
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
