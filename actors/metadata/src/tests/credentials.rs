//! What is shown to registries.

use super::*;
use crate::records::{
    credentials::{self, Credential, Kind},
    namespaces,
};

fn credential(host: &str, user: &str, secret: &str) -> Credential {
    Credential::new(host.into(), user.into(), Kind::Password, secret)
}

#[test]
fn one_for_each_host_of_a_namespace_which_goes_with_it() {
    let mut f = Fixture::new();
    let (ns, shop) = (default(), Namespace::new("shop").unwrap());
    let put = |f: &mut Fixture, ns: &Namespace, one: Credential| {
        let ns = ns.clone();
        f.write(move |tx| credentials::put(tx, &ns, one.clone()))
    };
    code(put(&mut f, &shop, credential("h.io", "me", "x")), Code::NotFound);
    let made = shop.clone();
    f.write(move |tx| namespaces::create(tx, &made, &labels(""))).unwrap();
    put(&mut f, &shop, credential("h.io", "you", "theirs")).unwrap();
    put(&mut f, &ns, credential("h.io", "me", "first")).unwrap();
    put(&mut f, &ns, credential("a.io:5000", "me", "other")).unwrap();
    let before = credentials::get(&f.view(), &ns, "h.io").unwrap();
    put(&mut f, &ns, credential("h.io", "me", "second")).unwrap();
    let after = credentials::get(&f.view(), &ns, "h.io").unwrap();
    assert_eq!((after.secret(), after.created), ("second", before.created));
    let hosts: Vec<_> = credentials::list(&f.view(), &ns, None, 9).unwrap().into_iter().map(|c| c.host).collect();
    assert_eq!(hosts, ["a.io:5000", "h.io"]);
    assert_eq!(credentials::list(&f.view(), &ns, Some("a.io:5000"), 9).unwrap().len(), 1);
    assert!(credentials::find(&f.view(), &ns, "h.io\0x").unwrap().is_none());

    let gone = ns.clone();
    f.write(move |tx| credentials::delete(tx, &gone, "h.io")).unwrap();
    let gone = ns.clone();
    code(f.write(move |tx| credentials::delete(tx, &gone, "h.io")), Code::NotFound);
    assert_eq!(credentials::get(&f.view(), &shop, "h.io").unwrap().secret(), "theirs");
    let gone = shop.clone();
    f.write(move |tx| namespaces::delete(tx, &gone).map(drop)).unwrap();
    assert!(credentials::find(&f.view(), &shop, "h.io").unwrap().is_none());
}

// D8 of the negative tests.
#[test]
fn d8_a_secret_is_not_shown_and_what_cant_be_sent_is_not_stored() {
    let mut f = Fixture::new();
    assert!(!format!("{:?}", credential("h.io", "me", "s3cret")).contains("s3cret"));
    for bad in [
        credential("", "me", "s3cret"),
        credential("h.io/team", "me", "s3cret"),
        credential("h.io\0", "me", "s3cret"),
        credential(&"h".repeat(400), "me", "s3cret"),
        credential("h.io", "", "s3cret"),
        credential("h.io", "me:too", "s3cret"),
        credential("h.io", "me\n", "s3cret"),
        credential("h.io", "me", ""),
        credential("h.io", "me", "s3cret\r\nx"),
        credential("h.io", "me", &"s3cret".repeat(20_000)),
    ] {
        let error = code(f.write(move |tx| credentials::put(tx, &default(), bad.clone())), Code::InvalidArgument);
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
    // No event tells of one.
    let before = crate::records::events::last(&f.view()).unwrap();
    f.write(|tx| credentials::put(tx, &default(), credential("h.io", "me", "s3cret"))).unwrap();
    f.write(|tx| credentials::delete(tx, &default(), "h.io")).unwrap();
    assert_eq!(crate::records::events::last(&f.view()).unwrap(), before);
}
