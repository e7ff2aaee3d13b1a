//! Files that older daemons left are read by this one. Before you raise the version, `COFFERDAM_FREEZE=1 cargo test -p
//! cofferdam-metadata formats` keeps a file as the daemon leaves it now: add it to [`OLD`].

use std::io::{Read as _, Write as _};

use cofferdam_types::{Any, Caveats, Descriptor, GrantId};

use super::*;
use crate::{
    rebuild::Replacement,
    records::{
        attachments, check, containers, content, credentials, grants, images, ingests, leases, namespaces,
        snapshots::{self, Kind, Snapshot},
        tasks,
    },
};

const OLD: &[(&str, &[u8])] = &[
    ("1", include_bytes!("formats/1.redb.gz")),
    ("2", include_bytes!("formats/2.redb.gz")),
    ("3", include_bytes!("formats/3.redb.gz")),
    ("4", include_bytes!("formats/4.redb.gz")),
    ("5", include_bytes!("formats/5.redb.gz")),
];

/// One of each.
fn fill(tx: &mut Tx<'_>) -> Result<()> {
    let ns = default();
    namespaces::create(tx, &Namespace::new("shop").unwrap(), &labels("k=v"))?;
    images::create(tx, &ns, images::Image::new(name("image"), Descriptor::new("application/json", digest("a"), 1)))?;
    content::create(tx, &ns, content::Link::new(digest("a"), 1))?;
    ingests::create(tx, &ns, name("ingest"), None, Some(7))?;
    snapshots::create(tx, &ns, Snapshot::new("overlay", name("base"), Kind::Active, None, 1))?;
    snapshots::commit(tx, &ns, "overlay", "base", name("done"), &labels(""), Default::default())?;
    snapshots::create(tx, &ns, Snapshot::new("overlay", name("top"), Kind::Active, Some(name("done")), 2))?;
    let spec = Any { type_url: "types.example/spec".into(), value: b"{}".to_vec() };
    let mut container = containers::Container::new(id("box"), "native", spec);
    (container.driver, container.snapshot_key) = ("overlay".into(), Some(name("top")));
    containers::create(tx, &ns, container)?;
    tasks::create(tx, &ns, tasks::Task::new(id("box"), "shim"))?;
    leases::create(tx, &ns, leases::Lease::new(name("lease")))?;
    let kind = credentials::Kind::Identity;
    credentials::put(tx, &ns, credentials::Credential::new("h.io:5000".into(), String::new(), kind, "s3cret"))?;
    let above = grants::create(tx, &[], grants::Grant::new(GrantId(1), ns.clone(), Caveats::none()))?;
    grants::create(tx, &[above.id], grants::Grant::new(GrantId(2), ns, Caveats::none())).map(drop)
}

/// A file as this daemon leaves it.
fn current() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let shared = Arc::new(Shared::new(Opener::file(&path)));
    shared.open().unwrap().commit(&[job(&Authority::system(), fill)]).remove(0).unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&std::fs::read(&path).unwrap()).unwrap();
    let packed = packed.finish().unwrap();
    if std::env::var_os("COFFERDAM_FREEZE").is_some() {
        std::fs::write(format!("src/tests/formats/{}.redb.gz", crate::store::VERSION), &packed).unwrap();
    }
    packed
}

#[test]
fn a_file_of_every_older_format_is_read_and_goes_on() {
    let current = current();
    let all = OLD.iter().copied().chain([("now", &*current)]);
    for ((version, packed), rebuilt) in all.flat_map(|one| [(one, false), (one, true)]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta.redb");
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        std::fs::write(&path, bytes).unwrap();
        // As what is readable of a damaged one, which is all of it.
        if rebuilt {
            let mut new = Replacement::begin(&path).unwrap();
            let taken = new.tables.taken();
            assert_eq!((taken.unsound, taken.pages), (0, 0), "version {version}");
            assert_eq!(new.tables.settle().unwrap(), [], "version {version}");
            new.finish().unwrap();
        }
        let instance = |shared: &Arc<Shared>| crate::store::instance(&shared.read().unwrap()).unwrap();
        let mut known = None;
        // The first start moves it forward, the second finds it so.
        for _ in 0..2 {
            let shared = Arc::new(Shared::new(Opener::file(&path)));
            let mut store = shared.open().unwrap_or_else(|e| panic!("version {version}: {e}"));
            let view = shared.read().unwrap();
            let ns = default();
            assert_eq!(namespaces::list(&view, None, 9).unwrap().len(), 2, "version {version}");
            assert_eq!(images::get(&view, &ns, "image").unwrap().target.digest, digest("a"));
            assert_eq!(content::find(&view, &ns, &digest("a")).unwrap().unwrap().size, 1);
            assert_eq!(ingests::get(&view, &ns, "ingest").unwrap().reference, name("ingest"));
            assert_eq!(snapshots::get(&view, &ns, "overlay", "top").unwrap().parent, Some(name("done")));
            let container = containers::get(&view, &ns, "box").unwrap();
            assert_eq!((container.snapshot_key, &*container.spec.value), (Some(name("top")), &b"{}"[..]));
            assert_eq!(tasks::get(&view, &ns, "box").unwrap().shim, "shim");
            assert!(leases::find(&view, &ns, "lease").unwrap().is_some());
            assert!(attachments::list(&view, None, 9).unwrap().is_empty());
            let since = version == "now" || version.parse::<u64>().is_ok_and(|version| version >= 5);
            let paths: Vec<_> = grants::list(&view, &[], None, 9).unwrap().into_iter().map(|(path, _)| path).collect();
            let both = vec![vec![GrantId(1)], vec![GrantId(1), GrantId(2)]];
            assert_eq!(paths, if since { both } else { Vec::new() }, "version {version}");
            let stored = credentials::find(&view, &ns, "h.io:5000").unwrap();
            let since = version == "now" || version.parse::<u64>().is_ok_and(|version| version >= 6);
            assert_eq!(
                stored.as_ref().map(credentials::Credential::secret),
                since.then_some("s3cret"),
                "version {version}"
            );
            assert_eq!(check::all(&view).unwrap(), [], "version {version}");
            assert_eq!(*known.get_or_insert_with(|| instance(&shared)), instance(&shared));
            drop(view);
            store.commit(&[job(&Authority::system(), |tx| tx.probe())]).remove(0).unwrap();
        }
    }
}
