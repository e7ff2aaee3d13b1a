//! One row that can't be read stands in the way of no other.

use cofferdam_types::{Any, Caveats, Descriptor, Fault, GrantId};

use super::{records::attachment, *};
use crate::{
    codec,
    records::{
        self, attachments, check,
        containers::{self, Container},
        content::{self, Link},
        credentials::{self, Credential},
        events,
        grants::{self, Grant},
        images::{self, Image},
        ingests, layers,
        leases::{self, Lease},
        namespaces, replace,
        snapshots::{self, Kind, Snapshot},
        tasks::{self, Task},
    },
    table::{Read as _, Table, scan},
};

fn container(text: &str, image: &str) -> Container {
    let spec = Any { type_url: "types.example/spec".into(), value: b"{}".to_vec() };
    Container { image: image.into(), transient: true, ..Container::new(id(text), "native", spec) }
}

/// Three of each, which nothing but the name tells apart.
fn fill(tx: &mut Tx<'_>) -> Result<()> {
    for (n, text) in (1..).zip(["a", "b", "c"]) {
        namespaces::create(tx, &Namespace::new(format!("space-{text}")).unwrap(), &labels(""))?;
        let ns = default();
        images::create(tx, &ns, Image::new(name(text), Descriptor::new("application/json", digest(text), 1)))?;
        content::create(tx, &ns, Link::new(digest(text), 1))?;
        ingests::create(tx, &ns, name(text), None, None)?;
        let layer = layers::Layer {
            chain: digest(text),
            parent: None,
            dir: n,
            detached: true,
            usage: Default::default(),
            created: Default::default(),
        };
        layers::create(tx, "overlay", layer)?;
        layers::link(tx, &ns, "overlay", &digest(text), &labels(""))?;
        containers::create(tx, &ns, container(text, text))?;
        tasks::create(tx, &ns, Task::new(id(text), text))?;
        leases::create(tx, &ns, Lease::new(name(text)))?;
        leases::hold(tx, &ns, "a", &records::Resource::Content(digest(text)))?;
        attachments::create(tx, attachment(text))?;
        grants::create(tx, &[], Grant::new(GrantId(n.into()), ns.clone(), Caveats::none()))?;
        credentials::put(tx, &ns, Credential::new(text.into(), String::new(), credentials::Kind::Identity, "x"))?;
    }
    Ok(())
}

fn filled() -> Fixture {
    let mut store = Fixture::new();
    store.write(fill).unwrap();
    assert_eq!(check::all(&store.view()).unwrap(), []);
    assert_eq!(records::unreadable(&store.view()).unwrap(), []);
    store
}

fn keys(store: &Fixture, table: Table) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    scan(&store.view(), table, b"", None, &mut |key, _| {
        keys.push(key.to_vec());
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    keys
}

/// Puts what is no record of any kind in the place of the second row. Gives its key.
fn spoil(store: &mut Fixture, table: Table) -> Vec<u8> {
    let key = keys(store, table)[1].clone();
    let theirs = key.clone();
    store.write(move |tx| tx.put(table, &theirs, b"\xff")).unwrap();
    key
}

/// Has the second row say what the first one says. Gives its key.
fn misname(store: &mut Fixture, table: Table) -> Vec<u8> {
    let (first, key) = (keys(store, table)[0].clone(), keys(store, table)[1].clone());
    let theirs = key.clone();
    let copy = move |tx: &mut Tx<'_>| {
        let value = tx.get(table, &first)?.unwrap();
        tx.put(table, &theirs, &value)
    };
    store.write(copy).unwrap();
    key
}

type List = fn(&View, Option<&str>, usize) -> Result<Vec<String>>;

/// The tables that are listed to clients, and how.
fn lists() -> Vec<(Table, List)> {
    fn texts<T>(found: Result<Vec<T>>, of: impl Fn(T) -> String) -> Result<Vec<String>> {
        found.map(|found| found.into_iter().map(of).collect())
    }
    vec![
        (Table::NAMESPACES, |v, after, max| texts(namespaces::list(v, after, max), |one| one.name.to_string())),
        (Table::CONTAINERS, |v, after, max| {
            texts(containers::list(v, &default(), after, max), |one| one.id.to_string())
        }),
        (Table::IMAGES, |v, after, max| texts(images::list(v, &default(), after, max), |one| one.name.to_string())),
        (Table::CONTENT, |v, after, max| texts(content::list(v, &default(), after, max), |one| one.digest.to_string())),
        (Table::BLOBS, |v, after, max| texts(content::blobs(v, after, max), |one| one.digest.to_string())),
        (Table::INGESTS, |v, after, max| {
            texts(ingests::list(v, &default(), after, max), |one| one.reference.to_string())
        }),
        (Table::SNAPSHOTS, |v, after, max| {
            texts(snapshots::list(v, &default(), "overlay", after, max), |one| one.key.to_string())
        }),
        (Table::LAYERS, |v, after, max| texts(layers::list(v, "overlay", after, max), |one| one.chain.to_string())),
        (Table::LEASES, |v, after, max| texts(leases::list(v, &default(), after, max), |one| one.id.to_string())),
        (Table::TASKS, |v, after, max| texts(tasks::list(v, &default(), after, max), |one| one.id.to_string())),
        (Table::ATTACHMENTS, |v, after, max| texts(attachments::list(v, after, max), |one| one.id.to_string())),
        (Table::GRANTS, |v, after, max| {
            let after = after.map(|after| vec![after.parse().unwrap()]);
            texts(grants::list(v, &[], after.as_deref(), max), |(path, _)| path[0].to_string())
        }),
        (Table::CREDENTIALS, |v, after, max| texts(credentials::list(v, &default(), after, max), |one| one.host)),
        (Table::OUTBOX, |v, after, max| {
            let after = after.map_or(0, |after| after.parse().unwrap());
            texts(events::outbox_after(v, after, max), |one| one.sequence.to_string())
        }),
    ]
}

fn walk(store: &Fixture, list: List, max: usize) -> Vec<String> {
    let (view, mut all) = (store.view(), Vec::<String>::new());
    loop {
        let page = list(&view, all.last().map(String::as_str), max).unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
        // One that goes by another's name would lead back to behind that.
        assert!(all.len() < 1000, "{:?} comes again", all.last());
    }
}

#[test]
fn it_is_left_out_of_its_list_and_told_by_the_check() {
    let how: [fn(&mut Fixture, Table) -> Vec<u8>; 2] = [spoil, misname];
    for ((table, list), how) in lists().into_iter().flat_map(|list| how.map(|how| (list, how))) {
        let mut store = filled();
        let mut expected = walk(&store, list, 2);
        let key = how(&mut store, table);
        expected.remove(1);
        for max in [1, 2, 100] {
            assert_eq!(walk(&store, list, max), expected, "{} by {max}", table.name());
        }
        let view = store.view();
        let found = [check::all(&view).unwrap(), records::unreadable(&view).unwrap()].concat();
        // What can be made anew is.
        let fault = if table == Table::BLOBS { Fault::IndexWrong } else { Fault::RecordUnreadable };
        let told: Vec<_> = found.iter().filter(|one| one.fault == fault).collect();
        assert_eq!(told.len(), 1, "{}: {found:?}", table.name());
        if table != Table::OUTBOX {
            let id = String::from_utf8(key).unwrap().replace('\0', "/");
            assert!(told[0].id.contains(&id), "{}: {told:?}", table.name());
        }
    }
}

#[test]
fn nothing_is_taken_for_gone_whose_row_is_there() {
    let mut store = filled();
    let all = |view: &View| {
        let (mut found, mut bad) = (Vec::new(), 0);
        tasks::visit(view, &mut |task| match task {
            Ok((ns, task)) => found.push((ns, task.id.to_string())),
            Err(_) => bad += 1,
        })
        .unwrap();
        (found, bad)
    };
    let every: Vec<_> = ["a", "b", "c"].map(|text| (default(), text.to_owned())).into();
    assert_eq!(all(&store.view()), (every.clone(), 0));
    // Tasks are found whatever the row of their namespace says.
    store.write(|tx| tx.put(Table::NAMESPACES, b"default", b"\xff")).unwrap();
    assert_eq!(all(&store.view()), (every.clone(), 0));
    spoil(&mut store, Table::TASKS);
    let view = store.view();
    assert_eq!(all(&view), (vec![every[0].clone(), every[2].clone()], 1));
    assert!(tasks::exists(&view, &default(), "b").unwrap() && !tasks::exists(&view, &default(), "d").unwrap());
    assert_eq!(tasks::between(&view, &default(), &id("a"), &id("c")).unwrap().len(), 2);
    store.write(|tx| tx.put(Table::TASKS, b"\xff\xff", b"\xff")).unwrap();
    assert_eq!(all(&store.view()).1, 2);

    assert_eq!(ingests::ids(&store.view()).unwrap().unwrap().len(), 3);
    spoil(&mut store, Table::INGESTS);
    assert_eq!(ingests::ids(&store.view()).unwrap(), None, "any file may be its");

    spoil(&mut store, Table::BLOBS);
    assert!(["a", "b", "c"].iter().all(|text| content::is_kept(&store.view(), &digest(text)).unwrap()));
    spoil(&mut store, Table::DIRS);
    assert!((1..=3).all(|dir| snapshots::is_referenced(&store.view(), "overlay", dir).unwrap()));
    spoil(&mut store, Table::ATTACHMENTS);
    assert!(attachments::exists(&store.view(), "b").unwrap());

    assert!(containers::users(&store.view(), &default()).unwrap().unread.is_none());
    spoil(&mut store, Table::CONTAINERS);
    let users = containers::users(&store.view(), &default()).unwrap();
    assert!(users.of.len() == 2 && users.unread.is_some(), "it may be of any image");
    let mut made = Vec::new();
    containers::made_from(&store.view(), &default(), "c", &mut |one| made.push(one.id.to_string())).unwrap();
    assert_eq!(made, ["c"]);
}

#[test]
fn the_rows_of_indices_that_name_nothing_are_passed_over() {
    let mut store = filled();
    store.write(|tx| tx.put(Table::TRANSIENT, b"\xff", b"")).unwrap();
    assert_eq!(containers::transient(&store.view()).unwrap().len(), 3);
    store.write(|tx| tx.put(Table::HELD, b"default\0a\0b\0c", b"")).unwrap();
    assert_eq!(leases::resources(&store.view(), &default(), "a", None, 10).unwrap().len(), 3);
    let held = records::Resource::Content(digest("b"));
    assert_eq!(leases::holders(&store.view(), &default(), &held).unwrap(), ["a"]);
    // No number is given out twice: where a row names none the snapshots say it.
    store.write(|tx| tx.remove(Table::DIRS, &snapshots::dir_key("overlay", 3)).map(drop)).unwrap();
    store.write(|tx| tx.put(Table::DIRS, b"overlay\0number three", &1_u64.to_be_bytes())).unwrap();
    assert_eq!(Vec::from_iter(snapshots::dirs(&store.view(), "overlay").unwrap()), [1, 2, 3]);
}

/// What is counted is counted anew where the count can't be read, and so is what is replaced.
#[test]
fn it_is_written_anew_by_who_can() {
    let mut store = filled();
    let other = Namespace::new("space-a").unwrap();
    store.write(|tx| tx.put(Table::BLOBS, digest("b").to_string().as_bytes(), b"\xff")).unwrap();
    let theirs = other.clone();
    store.write(move |tx| content::create(tx, &theirs, Link::new(digest("b"), 1))).unwrap();
    assert_eq!(content::blob(&store.view(), &digest("b")).unwrap().unwrap().links, 2);
    // When all blobs were last compared: they are again.
    store.write(content::set_scrubbed).unwrap();
    store.write(|tx| tx.put(Table::META, b"scrubbed", b"\xff")).unwrap();
    assert_eq!(content::scrubbed(&store.view()).unwrap(), None);
    spoil(&mut store, Table::CREDENTIALS);
    let again = || Credential::new("b".into(), String::new(), credentials::Kind::Identity, "y");
    store.write(move |tx| credentials::put(tx, &default(), again())).unwrap();
    assert_eq!(credentials::get(&store.view(), &default(), "b").unwrap().secret(), "y");
    assert_eq!(check::all(&store.view()).unwrap(), []);
}

/// What is done in every namespace is done in those whose own row can't be read, and in the others where a row of one can't.
#[test]
fn every_namespace_is_come_by() {
    let mut store = filled();
    store.write(|tx| tx.put(Table::NAMESPACES, b"default", b"\xff")).unwrap();
    let told = |store: &Fixture, topic: &str| {
        let all = events::outbox_after(&store.view(), 0, usize::MAX).unwrap();
        all.into_iter().filter(|event| event.topic == topic).count()
    };
    store.write(|tx| content::damaged(tx, &digest("b"))).unwrap();
    assert_eq!(told(&store, "/content/damaged"), 1);
    store.write(|tx| replace::damaged(tx, "overlay", &digest("b"))).unwrap();
    assert_eq!(told(&store, "/snapshot/damaged"), 1);
    let mut seen = Vec::new();
    snapshots::visit(&store.view(), "overlay", &mut |_, one| {
        seen.push(one.dir);
        Ok(())
    })
    .unwrap();
    seen.sort();
    assert_eq!(seen, [1, 2, 3]);
    store.write(|tx| check::drop_blob(tx, &digest("b"))).unwrap();
    assert!(!content::is_kept(&store.view(), &digest("b")).unwrap());
    store.write(leases::hold_all).unwrap();
}

/// What lies on an old tree must be known before that goes; a link of another namespace that can't be read keeps it.
#[test]
fn a_layer_that_others_may_lie_on_is_not_taken_from_under_them() {
    use replace::Stays;
    let again = |tx: &mut Tx<'_>| replace::replace(tx, "overlay", &digest("a"), 1, (9, Default::default()), Stays::All);
    let mut store = filled();
    store
        .write(|tx| {
            let on = Some(name(&digest("a").to_string()));
            snapshots::create(tx, &default(), Snapshot::new("overlay", name("on"), Kind::Active, on, 7))?;
            tx.put(Table::SNAPSHOTS, &codec::key(&["default", "overlay", "on"]), b"\xff")
        })
        .unwrap();
    code(store.write(again), Code::DataLoss);
    assert_eq!(layers::get(&store.view(), "overlay", &digest("a")).unwrap().dir, 1);

    let mut store = filled();
    store
        .write(|tx| {
            let other = Namespace::new("other").unwrap();
            namespaces::create(tx, &other, &labels(""))?;
            layers::link(tx, &other, "overlay", &digest("a"), &labels(""))?;
            tx.put(Table::SNAPSHOTS, &codec::key(&["other", "overlay", &digest("a").to_string()]), b"\xff")
        })
        .unwrap();
    assert!(!store.write(again).unwrap(), "the other's row counts for it");
    assert!(snapshots::is_referenced(&store.view(), "overlay", 1).unwrap());
}

#[test]
fn a_file_of_an_older_format_is_brought_forward_without_it() {
    let mut store = filled();
    spoil(&mut store, Table::CONTAINERS);
    store.write(containers::part).unwrap();
    spoil(&mut store, Table::INGESTS);
    store.write(ingests::keep_none).unwrap();
}
