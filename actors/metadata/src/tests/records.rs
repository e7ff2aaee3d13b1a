//! The records' rules, after the metadata tests of the reference.

use cofferdam_types::{Any, Ceiling, Descriptor};

use super::*;
use crate::records::{
    Resource,
    attachments::{self, Attachment, Stage},
    containers::{self, Container},
    content::{self, Link},
    events,
    images::{self, Image},
    ingests,
    layers::{self, Layer},
    leases::{self, Lease},
    namespaces,
    snapshots::{self, Kind, Snapshot, Usage},
    tasks::{self, Exit, State, Task},
};
use crate::table::Table;

fn spec() -> Any {
    Any { type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(), value: b"{}".to_vec() }
}

fn container(text: &str) -> Container {
    Container::new(id(text), "native", spec())
}

fn target(text: &str) -> Descriptor {
    Descriptor::new("application/vnd.oci.image.manifest.v1+json", digest(text), 10)
}

#[test]
fn namespaces_exist_by_create_alone() {
    let mut f = Fixture::new();
    let ns = Namespace::new("shop").unwrap();
    let missing = |result: Result<()>| {
        let error = code(result, Code::NotFound);
        assert!(error.message.contains("coffer namespace create shop"), "{error}");
    };
    let shop = ns.clone();
    missing(f.write(move |tx| containers::create(tx, &shop, container("c")).map(drop)));
    let shop = ns.clone();
    missing(f.write(move |tx| images::create(tx, &shop, Image::new(name("i"), target("i"))).map(drop)));
    let shop = ns.clone();
    missing(f.write(move |tx| content::create(tx, &shop, Link::new(digest("b"), 1)).map(drop)));
    let shop = ns.clone();
    missing(f.write(move |tx| leases::create(tx, &shop, Lease::new(name("l"))).map(drop)));
    let shop = ns.clone();
    missing(f.write(move |tx| ingests::create(tx, &shop, name("r"), None, None).map(drop)));

    let shop = ns.clone();
    f.write(move |tx| namespaces::create(tx, &shop, &labels("a=1 b=2"))).unwrap();
    let shop = ns.clone();
    code(f.write(move |tx| namespaces::create(tx, &shop, &labels(""))), Code::AlreadyExists);
    let shop = ns.clone();
    f.write(move |tx| namespaces::update(tx, &shop, &labels("a=3"), &mask("labels.a"))).unwrap();
    assert_eq!(namespaces::get(&f.view(), &ns).unwrap().labels, labels("a=3 b=2"));
    let names: Vec<_> = namespaces::list(&f.view(), None, 9).unwrap().into_iter().map(|n| n.name).collect();
    assert_eq!(names, [default(), ns.clone()]);
}

#[test]
fn a_namespace_is_removed_only_when_it_is_empty() {
    let mut f = Fixture::new();
    let ns = Namespace::new("shop").unwrap();
    let shop = ns.clone();
    f.write(move |tx| namespaces::create(tx, &shop, &labels(""))).unwrap();
    type Step = fn(&mut Tx<'_>, &Namespace) -> Result<()>;
    let by_hand = |tx: &mut Tx<'_>, ns: &Namespace| {
        let dir = tx.next("dir", 1)?;
        snapshots::create(tx, ns, Snapshot::new("overlay", name("s"), Kind::Active, None, dir)).map(drop)
    };
    let steps: [(Step, Step); 4] = [
        (|tx, ns| containers::create(tx, ns, container("c")).map(drop), |tx, ns| containers::delete(tx, ns, "c")),
        (
            |tx, ns| images::create(tx, ns, Image::new(name("i"), target("i"))).map(drop),
            |tx, ns| images::delete(tx, ns, "i"),
        ),
        (by_hand, |tx, ns| snapshots::delete(tx, ns, "overlay", "s").map(drop)),
        (|tx, ns| leases::create(tx, ns, Lease::new(name("l"))).map(drop), |tx, ns| leases::delete(tx, ns, "l")),
    ];
    for (make, unmake) in steps {
        let shop = ns.clone();
        f.write(move |tx| make(tx, &shop)).unwrap();
        let shop = ns.clone();
        let error = code(f.write(move |tx| namespaces::delete(tx, &shop)), Code::FailedPrecondition);
        assert!(error.message.contains("must be empty"), "{error}");
        let shop = ns.clone();
        f.write(move |tx| unmake(tx, &shop)).unwrap();
    }
    // Interrupted ingests go with the namespace; the neighbour whose name begins alike keeps its own.
    let near = Namespace::new("shop-b").unwrap();
    let (shop, other) = (ns.clone(), near.clone());
    f.write(move |tx| {
        namespaces::create(tx, &other, &labels(""))?;
        ingests::create(tx, &other, name("r"), None, None)?;
        ingests::create(tx, &shop, name("r"), None, None)?;
        // What images left: of each something that the neighbour has too, and something that it hasn't.
        content::create(tx, &other, Link::new(digest("both"), 1))?;
        content::create(tx, &shop, Link::new(digest("both"), 1))?;
        content::create(tx, &shop, Link::new(digest("own"), 1))?;
        for (dir, chain, parent) in [(1, "low", None), (2, "high", Some("low"))] {
            let (chain, parent) = (digest(chain), parent.map(digest));
            let usage = Usage::default();
            let layer = Layer { chain, parent, dir, detached: true, usage, created: Default::default() };
            layers::create(tx, "overlay", layer)?;
        }
        layers::link(tx, &other, "overlay", &digest("low"), &labels(""))?;
        layers::link(tx, &shop, "overlay", &digest("low"), &labels(""))?;
        layers::link(tx, &shop, "overlay", &digest("high"), &labels(""))?;
        let emptied = namespaces::delete(tx, &shop)?;
        assert_eq!(emptied.blobs, [digest("own")]);
        let dirs: Vec<_> = emptied.snapshots.iter().map(|r| (r.snapshot.dir, r.unreferenced)).collect();
        assert_eq!(dirs, [(2, true), (1, false)]);
        Ok(())
    })
    .unwrap();
    let view = f.view();
    assert_eq!(content::blob(&view, &digest("own")).unwrap(), None);
    assert_eq!(content::blob(&view, &digest("both")).unwrap().unwrap().links, 1);
    assert!(snapshots::list(&view, &ns, "overlay", None, 10).unwrap().is_empty());
    assert_eq!(snapshots::list(&view, &near, "overlay", None, 10).unwrap().len(), 1);
    assert!(content::list(&view, &ns, None, 10).unwrap().is_empty());
    code(namespaces::get(&f.view(), &ns), Code::NotFound);
    assert_eq!(ingests::ids(&f.view()).unwrap().unwrap().len(), 1);
    code(f.write(move |tx| namespaces::delete(tx, &ns)), Code::NotFound);
    code(f.write(|tx| namespaces::delete(tx, &default())), Code::FailedPrecondition);
}

#[test]
fn containers_are_listed_in_pages_and_removed_once() {
    let mut f = Fixture::new();
    for n in 0..10 {
        f.write(move |tx| containers::create(tx, &default(), container(&format!("c-{n}")))).unwrap();
    }
    let page = |after: Option<&str>, max| -> Vec<String> {
        containers::list(&f.view(), &default(), after, max).unwrap().into_iter().map(|c| c.id.into()).collect()
    };
    assert_eq!(page(None, 3), ["c-0", "c-1", "c-2"]);
    assert_eq!(page(Some("c-2"), 3), ["c-3", "c-4", "c-5"]);
    assert_eq!(page(Some("c-8x"), 3), ["c-9"]);
    assert_eq!(page(Some("c-9"), 3), Vec::<String>::new());
    assert_eq!(page(None, 0), Vec::<String>::new());
    code(f.write(|tx| containers::create(tx, &default(), container("c-1"))), Code::AlreadyExists);
    for n in 0..10 {
        f.write(move |tx| containers::delete(tx, &default(), &format!("c-{n}"))).unwrap();
        code(f.write(move |tx| containers::delete(tx, &default(), &format!("c-{n}"))), Code::NotFound);
    }
}

#[test]
fn containers_are_checked() {
    let mut f = Fixture::new();
    type Spoil = fn(&mut Container);
    let spoilt: [(&str, Spoil); 7] = [
        ("runtime", |c| c.runtime.clear()),
        ("spec", |c| c.spec = Any::default()),
        ("snapshot driver", |c| c.snapshot_key = Some(name("k"))),
        ("extension", |c| drop(c.extensions.insert(String::new(), spec()))),
        ("bytes", |c| drop(c.labels.insert("k".into(), "v".repeat(4096)))),
        ("256 KiB together", |c| c.extensions = (0..3).map(|n| (n.to_string(), large())).collect()),
        ("remove some", |c| c.labels = (0..70).map(|n| (n.to_string(), "v".repeat(4000))).collect()),
    ];
    fn large() -> Any {
        Any { type_url: "x".into(), value: vec![0; 100 << 10] }
    }
    for (word, spoil) in spoilt {
        let error = f.write(move |tx| {
            let mut c = container("c");
            spoil(&mut c);
            containers::create(tx, &default(), c)
        });
        let error = code(error, Code::InvalidArgument);
        assert!(error.message.contains(word), "{error}");
    }
}

#[test]
fn container_updates_follow_the_reference() {
    let mut f = Fixture::new();
    let made = f
        .write(|tx| {
            let mut c = container("c");
            c.image = "image".into();
            c.labels = labels("a=1 b=2 empty=");
            c.extensions.insert("x".into(), spec());
            c.extensions.insert("y".into(), spec());
            containers::create(tx, &default(), c)
        })
        .unwrap();
    assert_eq!(made.labels, labels("a=1 b=2"));
    assert_eq!(containers::get(&f.view(), &default(), "c").unwrap(), made, "stored as it was given");

    type Change = fn(&mut Container);
    let update = |f: &mut Fixture, paths: &str, change: Change| {
        let paths = mask(paths);
        f.write(move |tx| {
            let mut c = containers::get(tx, &default(), "c")?;
            change(&mut c);
            containers::update_fields(tx, &default(), c, &paths)
        })
    };
    let immutable: [Change; 5] = [
        |c| c.image = "other".into(),
        |c| c.runtime = "other".into(),
        |c| c.driver = "other".into(),
        |c| c.group = Some(id("g")),
        |c| (c.driver, c.snapshot_key) = ("overlay".into(), Some(name("k"))),
    ];
    for change in immutable {
        code(update(&mut f, "", change), Code::InvalidArgument);
    }
    code(update(&mut f, "image", |_| ()), Code::InvalidArgument);
    code(update(&mut f, "", |c| c.id = id("nobody")), Code::NotFound);
    code(update(&mut f, "labels", |c| c.id = id("nobody")), Code::NotFound);

    let touched = update(&mut f, "spec labels.b extensions.x", |c| {
        c.spec.value = b"{\"new\":1}".to_vec();
        c.labels = labels("a=9 b=3");
        c.extensions.clear();
    })
    .unwrap();
    assert_eq!((touched.labels, touched.created), (labels("a=1 b=3"), made.created));
    assert!(touched.updated >= made.updated);
    assert_eq!(touched.spec.value, b"{\"new\":1}");
    assert_eq!(touched.extensions.keys().collect::<Vec<_>>(), ["y"], "masking an absent key removes it");
    let all = update(&mut f, "", |c| c.labels.clear()).unwrap();
    assert!(all.labels.is_empty());
}

#[test]
fn a_spec_and_what_goes_with_its_task_stay_with_their_container() {
    let mut f = Fixture::new();
    let transient = |f: &Fixture| -> Vec<String> {
        containers::transient(&f.view()).unwrap().into_iter().map(|(_, id)| id.to_string()).collect()
    };
    for (id, goes) in [("stays", false), ("goes", true)] {
        f.write(move |tx| containers::create(tx, &default(), Container { transient: goes, ..container(id) })).unwrap();
    }
    assert_eq!(transient(&f), ["goes"]);
    let listed = containers::list(&f.view(), &default(), None, 9).unwrap();
    assert!(listed.iter().all(|c| c.spec.is_empty()), "a list reads no spec");
    // What a list gave is no container to put back.
    let bare = listed[0].clone();
    code(f.write(move |tx| containers::update(tx, &default(), bare.clone())), Code::InvalidArgument);

    let renamed = |tx: &mut Tx<'_>| {
        let renamed = Container { id: id("went"), ..containers::get(tx, &default(), "goes")? };
        containers::rename(tx, &default(), "goes", renamed)
    };
    f.write(renamed).unwrap();
    assert_eq!(transient(&f), ["went"]);
    assert_eq!(containers::get(&f.view(), &default(), "went").unwrap().spec, spec());
    assert_eq!(crate::records::check::all(&f.view()).unwrap(), []);
    for id in ["stays", "went"] {
        f.write(move |tx| containers::delete(tx, &default(), id)).unwrap();
    }
    assert_eq!(transient(&f), [""; 0]);
    assert_eq!(crate::records::check::all(&f.view()).unwrap(), [], "nothing of them is left");
}

#[test]
fn a_spec_that_packs_well_may_be_no_longer_than_what_is_read_again() {
    let mut f = Fixture::new();
    let most = crate::tx::MAX_RECORD;
    let sized = |id: &str, size| {
        let spec = Any { type_url: "types.example/spec".into(), value: vec![b' '; size] };
        Container::new(self::id(id), "native", spec)
    };
    let (fits, too_long) = (sized("fits", most), sized("long", most + 1));
    let made = f.write(move |tx| containers::create(tx, &default(), fits.clone())).unwrap();
    assert_eq!(containers::get(&f.view(), &default(), "fits").unwrap(), made);
    code(f.write(move |tx| containers::create(tx, &default(), too_long.clone())), Code::ResourceExhausted);
}

#[test]
fn a_container_that_has_lost_its_spec_says_so_and_can_be_removed() {
    let mut f = Fixture::new();
    f.write(|tx| containers::create(tx, &default(), container("c"))).unwrap();
    f.write(|tx| tx.remove(Table::SPECS, b"default\0c")).unwrap();
    code(containers::get(&f.view(), &default(), "c"), Code::DataLoss);
    assert!(!crate::records::check::all(&f.view()).unwrap().is_empty());
    f.write(|tx| containers::delete(tx, &default(), "c")).unwrap();
    assert_eq!(crate::records::check::all(&f.view()).unwrap(), []);
}

#[test]
fn a_ceiling_is_only_narrowed() {
    let mut f = Fixture::new();
    let narrow = Authority { ceiling: Ceiling::default(), ..Authority::system() };
    let made = f
        .write_as(&narrow, |tx| {
            let mut c = container("low");
            c.ceiling = Ceiling::FULL; // What the caller says does not count.
            containers::create(tx, &default(), c)
        })
        .unwrap();
    assert!(!made.ceiling.host);
    let wide = f.write(|tx| {
        let c = containers::get(tx, &default(), "low")?;
        containers::update(tx, &default(), Container { ceiling: Ceiling::FULL, ..c })
    });
    assert!(!wide.unwrap().ceiling.host);
    let made = f.write(|tx| containers::create(tx, &default(), container("high"))).unwrap();
    assert!(made.ceiling.host);
    let narrowed =
        f.write_as(&narrow, |tx| containers::update(tx, &default(), containers::get(tx, &default(), "high")?));
    assert!(!narrowed.unwrap().ceiling.host, "its new spec came through a narrower grant");
}

#[test]
fn images_follow_the_reference() {
    let mut f = Fixture::new();
    let made = f
        .write(|tx| {
            let mut image = Image::new(name("docker.io/library/redis:7"), target("1"));
            image.labels = labels("a=1 b=2");
            images::create(tx, &default(), image)
        })
        .unwrap();
    type Change = fn(&mut Image);
    let update = |f: &mut Fixture, paths: &str, change: Change| {
        let paths = mask(paths);
        f.write(move |tx| {
            let mut image = images::get(tx, &default(), "docker.io/library/redis:7")?;
            change(&mut image);
            images::update_fields(tx, &default(), image, &paths)
        })
    };
    let touched = update(&mut f, "", |_| ()).unwrap();
    assert_eq!((touched.created, &touched.labels, &touched.target), (made.created, &made.labels, &made.target));
    assert_eq!(update(&mut f, "", |i| i.labels = labels("c=3")).unwrap().labels, labels("c=3"));
    assert_eq!(update(&mut f, "labels", |i| i.labels = labels("a=1 b=2")).unwrap().labels, labels("a=1 b=2"));
    let one = update(&mut f, "labels.a", |i| (i.labels, i.target) = (labels("a=9"), target("9"))).unwrap();
    assert_eq!((one.labels, one.target), (labels("a=9 b=2"), target("1")));
    assert_eq!(update(&mut f, "target", |i| i.target = target("2")).unwrap().target, target("2"));
    code(update(&mut f, "target", |i| i.target.size = 0), Code::InvalidArgument);
    code(update(&mut f, "", |i| i.target.media_type.clear()), Code::InvalidArgument);
    code(update(&mut f, "name", |_| ()), Code::InvalidArgument);
    code(update(&mut f, "", |i| i.name = name("other")), Code::NotFound);
    let bad = |spoil: Change| {
        move |tx: &mut Tx<'_>| {
            let mut image = Image::new(name("bad"), target("1"));
            spoil(&mut image);
            images::create(tx, &default(), image)
        }
    };
    code(f.write(bad(|i| i.target.size = 0)), Code::InvalidArgument);
    code(f.write(bad(|i| i.target.media_type.clear())), Code::InvalidArgument);
    code(f.write(bad(|i| i.name = name("docker.io/library/redis:7"))), Code::AlreadyExists);
    f.write(|tx| images::delete(tx, &default(), "docker.io/library/redis:7")).unwrap();
    code(f.write(|tx| images::delete(tx, &default(), "docker.io/library/redis:7")), Code::NotFound);
    let topics: Vec<_> = events::outbox_after(&f.view(), 0, 99).unwrap().into_iter().map(|e| e.topic).collect();
    assert_eq!(topics[1], "/images/create");
    assert_eq!(topics.last().unwrap(), "/images/delete");
}

#[test]
fn an_image_of_another_name_is_bounded_as_the_first_was() {
    let mut f = Fixture::new();
    let narrow = Authority { ceiling: Ceiling { host: false, ..Ceiling::FULL }, ..Authority::system() };
    let make = |text: &str, digest: &str| {
        let mut image = Image::new(name(text), target(digest));
        image.labels = labels("of=x");
        move |tx: &mut Tx<'_>| images::create(tx, &default(), image.clone())
    };
    f.write_as(&narrow, make("low", "1")).unwrap();
    f.write(make("high", "2")).unwrap();
    let tag = |from: &'static str, to: &'static str, replace| {
        move |tx: &mut Tx<'_>| images::tag(tx, &default(), from, name(to), replace)
    };
    let made = f.write(tag("low", "other", false)).unwrap();
    assert_eq!((&made.target, made.labels.len(), made.ceiling.host), (&target("1"), 1, false));
    assert_eq!(f.write(tag("low", "other", false)).unwrap(), made, "it stands for the same already");
    code(f.write(tag("high", "other", false)), Code::AlreadyExists);
    let replaced = f.write(tag("high", "other", true)).unwrap();
    assert_eq!((&replaced.target, replaced.created), (&target("2"), made.created));
    assert!(!replaced.ceiling.host, "a name is only narrowed");
    code(f.write(tag("nothing", "new", false)), Code::NotFound);
    let topics: Vec<_> = events::outbox_after(&f.view(), 0, 99).unwrap().into_iter().map(|e| e.topic).collect();
    assert_eq!(topics[1..], ["/images/create", "/images/create", "/images/create", "/images/update"]);
}

#[test]
fn who_uses_an_image_is_known_by_its_name() {
    let mut f = Fixture::new();
    f.write(|tx| {
        for (id, image) in [("a", "one"), ("b", "two"), ("c", "one"), ("d", "")] {
            let made = Container { image: image.into(), ..container(id) };
            containers::create(tx, &default(), made)?;
        }
        Ok(())
    })
    .unwrap();
    let users = containers::users(&f.view(), &default()).unwrap();
    assert_eq!((users.of.len(), users.of["one"].id.as_str(), users.of["two"].id.as_str()), (2, "a", "b"));
    let mut found = Vec::new();
    containers::made_from(&f.view(), &default(), "one", &mut |c| found.push(c.id.to_string())).unwrap();
    assert_eq!(found, ["a", "c"]);
}

#[test]
fn a_blob_is_linked_per_namespace_and_counted() {
    let mut f = Fixture::new();
    let other = Namespace::new("other").unwrap();
    let ns = other.clone();
    f.write(move |tx| {
        namespaces::create(tx, &ns, &labels(""))?;
        content::create(tx, &default(), Link::new(digest("b"), 5))
    })
    .unwrap();
    code(content::get(&f.view(), &other, &digest("b")), Code::NotFound);
    let ns = other.clone();
    code(f.write(move |tx| content::create(tx, &ns, Link::new(digest("b"), 6))), Code::DataLoss);
    let ns = other.clone();
    f.write(move |tx| content::create(tx, &ns, Link::new(digest("b"), 5))).unwrap();
    code(f.write(|tx| content::create(tx, &default(), Link::new(digest("b"), 5))), Code::AlreadyExists);
    assert_eq!(content::blob(&f.view(), &digest("b")).unwrap().unwrap().links, 2);
    let changed = f.write(|tx| content::update(tx, &default(), &digest("b"), &labels("k1=1 k2=2"), &[])).unwrap();
    let masked = f
        .write(|tx| content::update(tx, &default(), &digest("b"), &labels("k3=3"), &mask("labels.k3 labels.k1")))
        .unwrap();
    assert_eq!((masked.labels, masked.created), (labels("k2=2 k3=3"), changed.created));
    assert!(!f.write(|tx| content::delete(tx, &default(), &digest("b"))).unwrap());
    assert!(f.write(move |tx| content::delete(tx, &other, &digest("b"))).unwrap(), "the last link");
    assert_eq!(content::blobs(&f.view(), None, 9).unwrap(), []);
    code(f.write(|tx| content::delete(tx, &default(), &digest("b"))), Code::NotFound);
}

#[test]
fn an_ingest_has_an_id_that_is_never_used_twice() {
    let mut f = Fixture::new();
    let begin = |f: &mut Fixture, text: &'static str| {
        f.write(move |tx| ingests::create(tx, &default(), name(text), Some(digest("b")), Some(7)))
    };
    let first = begin(&mut f, "ref/../1").unwrap();
    code(begin(&mut f, "ref/../1"), Code::AlreadyExists);
    f.write(|tx| ingests::delete(tx, &default(), "ref/../1")).unwrap();
    let second = begin(&mut f, "ref/../1").unwrap();
    assert!(second.id > first.id);
    assert_eq!(ingests::ids(&f.view()).unwrap().unwrap().into_iter().collect::<Vec<_>>(), [second.id]);
    code(f.write(|tx| ingests::delete(tx, &default(), "nobody")), Code::NotFound);
}

#[test]
fn leases_hold_resources() {
    let mut f = Fixture::new();
    f.write(|tx| leases::create(tx, &default(), Lease::new(name("tx1")))).unwrap();
    f.write(|tx| leases::create(tx, &default(), Lease::new(name("tx2")))).unwrap();
    code(f.write(|tx| leases::create(tx, &default(), Lease::new(name("tx1")))), Code::AlreadyExists);
    let snapshot = Resource::Snapshot { driver: "overlay".into(), key: name("a/b c") };
    let all = [Resource::Content(digest("1")), Resource::Content(digest("2")), snapshot.clone()];
    for resource in all.clone() {
        let other = resource.clone();
        f.write(move |tx| leases::hold(tx, &default(), "tx1", &resource)).unwrap();
        code(f.write(move |tx| leases::hold(tx, &default(), "nobody", &other)), Code::NotFound);
    }
    let held = |f: &Fixture, lease: &str, after: Option<&Resource>, max| {
        leases::resources(&f.view(), &default(), lease, after, max).unwrap()
    };
    let found = held(&f, "tx1", None, 9);
    assert_eq!(found.len(), 3);
    assert!(all.iter().all(|r| found.contains(r)));
    assert_eq!(held(&f, "tx1", Some(&found[0]), 1), [found[1].clone()]);
    assert_eq!(held(&f, "tx2", None, 9), []);
    let gone = snapshot.clone();
    assert!(f.write(move |tx| leases::release(tx, &default(), "tx1", &gone)).unwrap());
    assert!(!f.write(move |tx| leases::release(tx, &default(), "tx1", &snapshot)).unwrap());
    f.write(|tx| leases::delete(tx, &default(), "tx1")).unwrap();
    f.write(|tx| leases::create(tx, &default(), Lease::new(name("tx1")))).unwrap();
    assert_eq!(held(&f, "tx1", None, 9), [], "a lease of the same id holds nothing of the old one");
}

#[test]
fn a_task_belongs_to_a_container_and_keeps_it() {
    let mut f = Fixture::new();
    code(f.write(|tx| tasks::create(tx, &default(), Task::new(id("c"), "shim"))), Code::NotFound);
    f.write(|tx| containers::create(tx, &default(), container("c"))).unwrap();
    f.write(|tx| tasks::create(tx, &default(), Task::new(id("c"), "shim"))).unwrap();
    code(f.write(|tx| tasks::create(tx, &default(), Task::new(id("c"), "shim"))), Code::AlreadyExists);
    code(f.write(|tx| containers::delete(tx, &default(), "c")), Code::FailedPrecondition);
    f.write(|tx| {
        let mut task = tasks::get(tx, &default(), "c")?;
        task.state = State::Stopped;
        task.exit = Some(Exit { status: 137, at: tx.now(), reason: "shim lost".into() });
        tasks::update(tx, &default(), task)
    })
    .unwrap();
    let task = tasks::get(&f.view(), &default(), "c").unwrap();
    assert_eq!((task.state, task.exit.unwrap().status), (State::Stopped, 137));
    f.write(|tx| tasks::delete(tx, &default(), "c")).unwrap();
    f.write(|tx| containers::delete(tx, &default(), "c")).unwrap();
}

pub(super) fn attachment(shim: &str) -> Attachment {
    Attachment {
        id: id(shim),
        namespace: default(),
        container: id("c"),
        network: "net".into(),
        stage: Stage::Attached,
        config: b"{}".to_vec(),
        answer: Vec::new(),
        created: Default::default(),
    }
}

#[test]
fn an_attachment_is_released_with_the_end_of_its_task_and_outlives_it() {
    let mut f = Fixture::new();
    f.write(|tx| containers::create(tx, &default(), container("c"))).unwrap();
    let stage = |f: &Fixture, id: &str| attachments::find(&f.view(), id).unwrap().map(|a| a.stage);
    for (shim, ends) in [("one", true), ("two", false)] {
        f.write(move |tx| attachments::create(tx, attachment(shim))).unwrap();
        assert_eq!(stage(&f, shim), Some(Stage::Attaching), "nothing has been done yet");
        let task = Task { attachment: Some(id(shim)), ..Task::new(id("c"), "shared") };
        f.write(move |tx| tasks::create(tx, &default(), task.clone())).unwrap();
        f.write(move |tx| attachments::answered(tx, shim, b"{}", false)).unwrap();
        assert_eq!(stage(&f, shim), Some(Stage::Attaching));
        f.write(move |tx| attachments::answered(tx, shim, b"{}", true)).unwrap();
        assert_eq!(stage(&f, shim), Some(Stage::Attached));
        if ends {
            f.write(|tx| {
                let mut task = tasks::get(tx, &default(), "c")?;
                task.exit = Some(Exit { status: 0, at: tx.now(), reason: String::new() });
                tasks::update(tx, &default(), task)
            })
            .unwrap();
            assert_eq!(stage(&f, shim), Some(Stage::Releasing));
        }
        f.write(|tx| tasks::delete(tx, &default(), "c")).unwrap();
        assert_eq!(stage(&f, shim), Some(Stage::Releasing));
        code(f.write(move |tx| attachments::answered(tx, shim, b"{}", true)), Code::Cancelled);
        f.write(move |tx| attachments::delete(tx, shim)).unwrap();
        assert_eq!(stage(&f, shim), None);
        assert!(!f.write(move |tx| attachments::release(tx, shim)).unwrap());
        f.write(move |tx| attachments::delete(tx, shim)).unwrap();
    }
}

#[test]
fn references_are_noted_only_while_a_collection_runs() {
    let mut f = Fixture::new();
    let put = |f: &mut Fixture, text: &'static str| {
        f.write(move |tx| images::create(tx, &default(), Image::new(name(text), target(text)))).unwrap();
    };
    let noted = |f: &Fixture, collection: u64, text: &str| {
        let (noted, _) = f.shared.spared().noted(collection, &default(), 0).unwrap();
        noted.contains(&Resource::Content(digest(text)))
    };
    put(&mut f, "before");
    let first = f.write(|tx| Ok(tx.spared().begin())).unwrap();
    put(&mut f, "during");
    assert!(!noted(&f, first, "before") && noted(&f, first, "during"));
    let (_, seen) = f.shared.spared().noted(first, &default(), 0).unwrap();
    put(&mut f, "more");
    assert_eq!(f.shared.spared().noted(first, &default(), seen).unwrap().0, [Resource::Content(digest("more"))]);
    let other = f.write(|tx| Ok(tx.spared().begin())).unwrap();
    code(f.shared.spared().noted(first, &default(), 0), Code::FailedPrecondition);
    assert!(!noted(&f, other, "during"), "another collection began: its view has that");
    f.shared.spared().end(first);
    put(&mut f, "later");
    assert!(noted(&f, other, "later"), "the end of one that is void ends no other");
    f.shared.spared().end(other);
    code(f.shared.spared().noted(other, &default(), 0), Code::FailedPrecondition);
}

#[test]
fn labels_refer_as_in_the_reference() {
    let d = digest("x");
    let text = format!(
        "containerd.io/gc.ref.content={d} containerd.io/gc.ref.content.l.0={d} containerd.io/gc.ref.contentx={d} \
         containerd.io/gc.ref.content.bad=nonsense containerd.io/gc.ref.snapshot.overlay=key other={d}"
    );
    let snapshot = Resource::Snapshot { driver: "overlay".into(), key: name("key") };
    assert_eq!(Resource::from_labels(&labels(&text)), [Resource::Content(d.clone()), Resource::Content(d), snapshot]);
}

// A holder who passes his grant on fills neither the tables nor the memory with what comes of that.
#[test]
fn so_many_come_from_one_grant_and_no_more() {
    use cofferdam_types::{Caveats, GrantId};

    use crate::records::grants::{self, Grant, MOST};
    let mut f = Fixture::new();
    let grant = |n: u128| Grant::new(GrantId(n), default(), Caveats::none());
    f.write(move |tx| {
        grants::create(tx, &[], grant(1))?;
        grants::create(tx, &[GrantId(1)], grant(2))?;
        // At whatever depth.
        (3..MOST as u128 + 2).try_for_each(|n| grants::create(tx, &[GrantId(1), GrantId(2)], grant(n)).map(drop))
    })
    .unwrap();
    for above in [vec![GrantId(1)], vec![GrantId(1), GrantId(2)]] {
        let error = code(f.write(move |tx| grants::create(tx, &above, grant(9999)).map(drop)), Code::ResourceExhausted);
        assert!(error.message.contains("revoke some"), "{error}");
    }
    // What the operator makes himself is his affair, and a place that is free again can be taken.
    f.write(move |tx| grants::create(tx, &[], grant(9999)).map(drop)).unwrap();
    f.write(move |tx| grants::delete(tx, &[GrantId(1), GrantId(2), GrantId(7)]).map(drop)).unwrap();
    f.write(move |tx| grants::create(tx, &[GrantId(1)], grant(8888)).map(drop)).unwrap();
}

// Something may be under way through a grant while that is taken back: where nobody counts any more it makes nothing.
#[test]
fn what_was_under_way_makes_nothing_once_its_grant_is_gone() {
    use cofferdam_types::{Caveats, GrantId};

    use crate::records::grants::{self, Grant};
    let mut f = Fixture::new();
    let path = [GrantId(1), GrantId(2)];
    let theirs = Authority { grants: path.into(), ..Authority::system() };
    let grant = move |n: usize| Grant::new(path[n], default(), Caveats::none());
    f.write(move |tx| grants::create(tx, &[], grant(0)).map(drop)).unwrap();
    f.write(move |tx| grants::create(tx, &path[..1], grant(1)).map(drop)).unwrap();
    let make =
        |text: &'static str| move |tx: &mut Tx<'_>| containers::create(tx, &default(), container(text)).map(drop);
    f.write_as(&theirs, make("a")).unwrap();
    f.write(move |tx| grants::delete(tx, &path).map(drop)).unwrap();
    code(f.write_as(&theirs, make("b")), Code::Revoked);
    assert!(containers::find(&f.view(), &default(), "b").unwrap().is_none());
    // Nor is anything that is there changed; but what was half made can be tidied up.
    let relabel = |tx: &mut Tx<'_>| {
        let labelled = Container { labels: labels("x=y"), ..containers::get(tx, &default(), "a")? };
        containers::update(tx, &default(), labelled).map(drop)
    };
    code(f.write_as(&theirs, relabel), Code::Revoked);
    f.write_as(&theirs, |tx| containers::delete(tx, &default(), "a")).unwrap();
    let above = Authority { grants: path[..1].into(), ..Authority::system() };
    f.write_as(&above, make("c")).unwrap();
}

#[test]
fn grants_lie_so_deep_and_no_deeper() {
    use cofferdam_types::{Caveats, GrantId};

    use crate::records::grants::{self, DEEP, Grant};
    let mut f = Fixture::new();
    let path: Vec<_> = (1..=DEEP as u128 + 1).map(GrantId).collect();
    let mut make = |depth: usize| {
        let path = path.clone();
        let make = move |tx: &mut Tx<'_>| {
            let grant = Grant::new(path[depth], default(), Caveats::none());
            grants::create(tx, &path[..depth], grant).map(drop)
        };
        f.write(make)
    };
    (0..DEEP).for_each(|depth| make(depth).unwrap());
    code(make(DEEP), Code::ResourceExhausted);
}

#[test]
fn a_blob_knows_the_repositories_that_it_came_from() {
    use cofferdam_types::{MAX_LABEL, Pictures};
    let from = |host: &str, paths: &str| Labels::from([(format!("{}{host}", content::SOURCE), paths.to_owned())]);
    let link = |labels: Labels| Link { labels, ..Link::new(digest("a"), 1) };
    let chosen = |pattern: &str| Pictures(vec![vec![pattern.to_owned()]]);
    let both = link(from("h.io:5000", "team/app,library/app"));
    assert!(both.came_from(&Pictures::default()) && link(Labels::new()).came_from(&Pictures::default()));
    for yes in ["*", "h.io:5000/team/*", "h.io:5000/library/app:1", "h.io:5000/library/app@*"] {
        assert!(both.came_from(&chosen(yes)), "{yes}");
    }
    for no in ["h.io/team/*", "h.io:5000/team/other:1", "h.io:5000/team/app/*", "team/app:1"] {
        assert!(!both.came_from(&chosen(no)), "{no}");
    }
    assert!(!link(Labels::new()).came_from(&chosen("*")), "it came from none");

    // Who brings it once more adds his, and takes away nobody's; other labels are replaced.
    let mut again = link([from("h.io", "a,b"), labels("x=y")].into_iter().flatten().collect());
    for (given, expected) in [("b", "a,b"), ("c", "a,b,c"), ("a", "b,c,a")] {
        again.labels = again.labels_with(&[from("h.io", given), labels("x=z")].into_iter().flatten().collect());
        assert_eq!(again.labels, [from("h.io", expected), labels("x=z")].into_iter().flatten().collect());
    }
    // Where there are too many the last ones stay.
    for n in 0..1000 {
        again.labels = again.labels_with(&from("h.io", &format!("repository/{n}")));
    }
    cofferdam_types::validate_labels(&again.labels).unwrap();
    let paths = &again.labels[&format!("{}h.io", content::SOURCE)];
    assert!(paths.ends_with("repository/998,repository/999") && paths.len() > MAX_LABEL - 100, "{paths}");
}
