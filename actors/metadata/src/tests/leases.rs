//! Leases: what they hold, and how they come to hold it.

use cofferdam_types::{Authority, Code, Keeper, Timestamp};

use super::{Fixture, code, default, digest, labels, mask, name};
use crate::records::{
    Resource,
    content::{self, Link},
    leases::{self, Lease},
    snapshots::{self, Kind, Snapshot, Usage},
};

fn under(lease: &str) -> Authority {
    Authority { keeper: Keeper::Lease(name(lease)), ..Authority::system() }
}

fn snapshot(key: &str) -> Resource {
    Resource::Snapshot { driver: "overlay".into(), key: name(key) }
}

fn held(f: &Fixture, lease: &str) -> Vec<Resource> {
    leases::resources(&f.view(), &default(), lease, None, usize::MAX).unwrap()
}

fn by_hand(f: &Fixture) -> Vec<Resource> {
    leases::by_hand(&f.view(), &default(), None, usize::MAX).unwrap()
}

#[test]
fn what_is_made_under_a_lease_is_held_by_it() {
    let mut f = Fixture::new();
    let make = |f: &mut Fixture, auth: &Authority, blob: &'static str, key: &'static str, dir: u64| {
        f.write_as(auth, move |tx| {
            content::create(tx, &default(), Link::new(digest(blob), 1))?;
            snapshots::create(tx, &default(), Snapshot::new("overlay", name(key), Kind::Active, None, dir)).map(drop)
        })
    };
    let error = code(make(&mut f, &under("l"), "a", "a", 1), Code::NotFound);
    assert!(error.id == "l" && error.message.contains("does not exist"), "{error}");
    assert!(content::list(&f.view(), &default(), None, 9).unwrap().is_empty(), "nothing is left behind");

    f.write(|tx| leases::create(tx, &default(), Lease::new(name("l")))).unwrap();
    make(&mut f, &under("l"), "a", "a", 1).unwrap();
    make(&mut f, &Authority::system().by_hand(), "b", "b", 2).unwrap();
    make(&mut f, &Authority::system(), "c", "c", 3).unwrap();
    assert_eq!(under("l").by_hand().keeper, Keeper::Lease(name("l")), "a lease goes before the hand");
    assert_eq!(held(&f, "l"), [Resource::Content(digest("a")), snapshot("a")]);
    assert_eq!(by_hand(&f), [Resource::Content(digest("b")), snapshot("b")]);

    // A commit lets go of the key and takes the name; a new key is followed; a removal forgets.
    let commit = |f: &mut Fixture, auth: &Authority, key: &'static str, to: &'static str| {
        let usage = Usage::default();
        f.write_as(auth, move |tx| {
            snapshots::commit(tx, &default(), "overlay", key, name(to), &labels(""), usage).map(drop)
        })
        .unwrap();
    };
    commit(&mut f, &under("l"), "a", "base");
    assert_eq!(held(&f, "l"), [Resource::Content(digest("a")), snapshot("base")]);
    f.write(|tx| snapshots::rename(tx, &default(), "overlay", "b", name("bb"))).unwrap();
    assert_eq!(by_hand(&f), [Resource::Content(digest("b")), snapshot("bb")]);
    commit(&mut f, &Authority::system().by_hand(), "bb", "mine");
    assert_eq!(by_hand(&f), [Resource::Content(digest("b")), snapshot("mine")]);
    f.write_as(&under("l"), |tx| {
        snapshots::delete(tx, &default(), "overlay", "base")?;
        snapshots::delete(tx, &default(), "overlay", "mine")?;
        content::delete(tx, &default(), &digest("a"))?;
        content::delete(tx, &default(), &digest("b")).map(drop)
    })
    .unwrap();
    assert_eq!((held(&f, "l"), by_hand(&f)), (vec![], vec![]));
}

#[test]
fn a_lease_ends_at_the_earlier_of_two_times() {
    let mut f = Fixture::new();
    let at = Timestamp::parse_rfc3339("2026-01-02T03:04:05Z").unwrap();
    let create = |f: &mut Fixture, id: &'static str, label: &'static str, expires: Option<Timestamp>| {
        f.write(move |tx| {
            let mut lease = Lease::new(name(id));
            lease.labels = labels(label);
            lease.expires = expires;
            leases::create(tx, &default(), lease)
        })
    };
    let error = create(&mut f, "bad", "containerd.io/gc.expire=tomorrow", None);
    assert!(code(error, Code::InvalidArgument).message.contains("UTC"));
    let label = "containerd.io/gc.expire=2026-01-02T03:04:05Z";
    assert_eq!(create(&mut f, "label", label, None).unwrap().ends(), Some(at));
    assert_eq!(create(&mut f, "later", label, Some(Timestamp(at.0 + 1))).unwrap().ends(), Some(at));
    assert_eq!(create(&mut f, "field", "", Some(Timestamp(5))).unwrap().ends(), Some(Timestamp(5)));
    let never = create(&mut f, "never", "containerd.io/gc.flat=", None).unwrap();
    assert!(never.ends().is_none() && !never.ended(Timestamp(u64::MAX)) && !never.is_flat(), "an empty label is none");

    // One that has ended takes nothing more, until it is renewed.
    let link = |tx: &mut crate::Tx<'_>| content::create(tx, &default(), Link::new(digest("a"), 1));
    code(f.write_as(&under("field"), link), Code::FailedPrecondition);
    let update = |f: &mut Fixture, expires: Option<Timestamp>, fields: &'static str| {
        f.write(move |tx| leases::update_fields(tx, &default(), "field", &labels("a=1"), expires, &mask(fields)))
    };
    let renewed = update(&mut f, None, "expires").unwrap();
    assert!(renewed.ends().is_none() && renewed.labels.is_empty());
    f.write_as(&under("field"), link).unwrap();
    let labelled = update(&mut f, Some(Timestamp(7)), "labels.a").unwrap();
    assert!(labelled.expires.is_none() && labelled.labels == labels("a=1"));
    assert_eq!(update(&mut f, Some(Timestamp(7)), "").unwrap().expires, Some(Timestamp(7)));
    code(update(&mut f, None, "created"), Code::InvalidArgument);
}
