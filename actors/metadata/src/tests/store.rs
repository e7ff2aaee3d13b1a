//! Batches: who is answered what, and what is left of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use cofferdam_types::Descriptor;

use super::*;
use crate::records::{
    Resource, attachments,
    content::{self, Link},
    events, images, leases, namespaces,
};

fn image(tx: &mut Tx<'_>, text: &str) -> Result<()> {
    let target = Descriptor::new("application/json", digest(text), 1);
    images::create(tx, &default(), images::Image::new(name(text), target)).map(drop)
}

#[test]
fn one_bad_job_costs_the_others_nothing() {
    let mut f = Fixture::new();
    let system = Authority::system();
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let writes = [
        job(&system, move |tx| {
            counted.fetch_add(1, Ordering::SeqCst);
            image(tx, "first")
        }),
        // Fails before its first change.
        job(&system, |tx| images::delete(tx, &default(), "nobody")),
        // Fails after it.
        job(&system, |tx| {
            image(tx, "half")?;
            Err(Error::denied("x", "", "after a change"))
        }),
        job(&system, |tx| {
            image(tx, "torn")?;
            panic!("a defect")
        }),
        // Sees what came before it in the batch, and not what was undone.
        job(&system, |tx| {
            images::get(tx, &default(), "first")?;
            assert!(images::find(tx, &default(), "half")?.is_none());
            image(tx, "last")
        }),
    ];
    let results = f.store.commit(&writes);
    let codes: Vec<_> = results.iter().map(|r| r.as_ref().err().map(|e| e.code)).collect();
    assert_eq!(codes, [None, Some(Code::NotFound), Some(Code::Denied), Some(Code::Internal), None]);
    assert!(results[3].as_ref().unwrap_err().message.contains("a defect"));
    assert_eq!(runs.load(Ordering::SeqCst), 3, "again after each of the two that spoiled the batch");
    let names: Vec<_> = images::list(&f.view(), &default(), None, 9).unwrap().into_iter().map(|i| i.name).collect();
    assert_eq!(names, [name("first"), name("last")]);
    // Their events are as if the bad ones had never been: the default namespace, and two images.
    let events = events::outbox_after(&f.view(), 0, 9).unwrap();
    let topics: Vec<_> = events.iter().map(|e| (e.sequence, e.topic.as_str())).collect();
    assert_eq!(topics, [(1, "/namespaces/create"), (2, "/images/create"), (3, "/images/create")]);
    assert_eq!(*f.shared.outbox.borrow(), 3);
}

#[test]
fn the_file_is_the_daemons_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    Arc::new(Shared::new(Opener::file(&path))).open().unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

/// Who was killed lets go of the file when he is dead, which may be a moment after his successor has come.
#[test]
fn a_file_that_is_in_use_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let open = || Arc::new(Shared::new(Opener::file(&path))).open();
    let held = open().unwrap();
    let (begin, began) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            began.recv().unwrap();
            drop(held);
        });
        begin.send(()).unwrap();
        open().unwrap();
    });
}

#[test]
fn a_view_stays_as_it_was() {
    let mut f = Fixture::new();
    let before = f.view();
    f.write(|tx| image(tx, "new")).unwrap();
    assert!(images::find(&before, &default(), "new").unwrap().is_none());
    assert!(images::find(&f.view(), &default(), "new").unwrap().is_some());
}

#[test]
fn the_outbox_is_taken_over_in_order() {
    let mut f = Fixture::new();
    for text in ["a", "b", "c"] {
        f.write(move |tx| image(tx, text)).unwrap();
    }
    let sequences = |f: &Fixture, after, max| -> Vec<u64> {
        events::outbox_after(&f.view(), after, max).unwrap().iter().map(|e| e.sequence).collect()
    };
    assert_eq!(sequences(&f, 0, 9), [1, 2, 3, 4]);
    assert_eq!(sequences(&f, 1, 2), [2, 3]);
    f.write(|tx| events::outbox_trim(tx, 3)).unwrap();
    assert_eq!(sequences(&f, 0, 9), [4]);
    f.write(|tx| image(tx, "d")).unwrap();
    assert_eq!(sequences(&f, 0, 9), [4, 5]);
    assert_eq!(events::last(&f.view()).unwrap(), 5);
}

#[test]
fn a_newer_format_is_refused() {
    let dir = memory();
    let path = dir.path().join("meta.redb");
    let open = || Arc::new(Shared::new(Opener::file(&path))).open();
    let store = open().unwrap();
    code(open().map(drop), Code::Unavailable); // Two at once.
    drop(store);
    let mut store = open().unwrap();
    let newer = job(&Authority::system(), |tx| tx.put(crate::Table::META, b"version", &u64::MAX.to_be_bytes()));
    store.commit(&[newer]).remove(0).unwrap();
    drop(store);
    let error = code(open().map(drop), Code::FailedPrecondition);
    assert!(error.message.contains("a newer daemon wrote it"), "{error}");
    // Nothing was changed by the refusal.
    code(open().map(drop), Code::FailedPrecondition);
}

#[test]
fn an_older_format_gets_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let open = || Arc::new(Shared::new(Opener::file(&path))).open();
    let write = job(&Authority::system(), |tx| {
        image(tx, "kept")?;
        content::create(tx, &default(), Link::new(digest("old"), 1))?;
        tx.put(crate::Table::META, b"version", &1u64.to_be_bytes())
    });
    open().unwrap().commit(&[write]).remove(0).unwrap();
    let database = redb::Database::open(&path).unwrap();
    let txn = database.begin_write().unwrap();
    assert!(txn.delete_table(crate::Table::ATTACHMENTS.definition()).unwrap());
    txn.commit().unwrap();
    drop(database);
    let shared = Arc::new(Shared::new(Opener::file(&path)));
    let store = shared.open().unwrap();
    assert!(attachments::list(&shared.read().unwrap(), None, 9).unwrap().is_empty());
    let view = shared.read().unwrap();
    assert_eq!(images::list(&view, &default(), None, 9).unwrap().len(), 1);
    // Nobody said by then what was made by hand: what nothing refers to stands.
    assert_eq!(leases::by_hand(&view, &default(), None, 9).unwrap(), [Resource::Content(digest("old"))]);
    drop(view);
    drop(store);
    // It is of the newer format from then on.
    open().unwrap();
}

#[test]
fn what_is_written_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    for round in 0..3 {
        let shared = Arc::new(Shared::new(Opener::file(&path)));
        let mut store = shared.open().unwrap();
        let write = job(&Authority::system(), move |tx| image(tx, &format!("image-{round}")));
        store.commit(&[write]).remove(0).unwrap();
        assert_eq!(images::list(&shared.read().unwrap(), &default(), None, 9).unwrap().len(), round + 1);
        assert_eq!(*shared.outbox.borrow(), round as u64 + 2);
        assert!(namespaces::find(&shared.read().unwrap(), &default()).unwrap().is_some());
    }
}

#[test]
fn a_record_has_a_limit() {
    let mut f = Fixture::new();
    let error = f.write(|tx| tx.put(crate::Table::IMAGES, b"x", &vec![0; 5 << 20]));
    code(error, Code::ResourceExhausted);
}

#[test]
fn views_and_writes_can_move_between_threads() {
    fn send<T: Send>(_: &T) {}
    fn sync<T: Sync + Send>(_: &T) {}
    let f = Fixture::new();
    sync(&f.view());
    sync(&f.shared);
    send(&job(&Authority::system(), |_| Ok(())));
}

#[test]
fn a_damaged_file_is_an_error_that_says_what_to_do() {
    let dir = memory();
    let path = dir.path().join("meta.redb");
    let open = || Arc::new(Shared::new(Opener::file(&path))).open();
    std::fs::write(&path, b"this is not a database".repeat(1000)).unwrap();
    let error = code(open().map(drop), Code::DataLoss);
    assert!(error.message.contains("put a good copy in its place"), "{error}");
    std::fs::remove_file(&path).unwrap();
    let mut store = open().unwrap();
    let write = job(&Authority::system(), |tx| image(tx, "a"));
    store.commit(&[write]).remove(0).unwrap();
    drop(store);
    // Whatever is overwritten, opening it is an answer and no panic.
    let good = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for at in (0..good.len()).step_by(good.len() / 64) {
        let mut bad = good.clone();
        let end = bad.len().min(at + 256);
        bad[at..end].fill(0xA5);
        std::fs::write(&path, bad).unwrap();
        refused += usize::from(open().is_err());
    }
    assert!(refused > 0, "the first bytes are the header: that at least is seen");
}

#[test]
fn a_file_that_is_mostly_empty_shrinks_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let open = || Arc::new(Shared::new(Opener::file(&path))).open().unwrap();
    let mut store = open();
    let commit = |store: &mut Store, f: fn(&mut Tx<'_>) -> Result<()>| {
        store.commit(&[job(&Authority::system(), f)]).remove(0).unwrap();
    };
    let key = |n: u32| [b"default\0".as_slice(), &n.to_be_bytes()].concat();
    store
        .commit(&[job(&Authority::system(), move |tx| {
            (0..40).try_for_each(|n| tx.put(crate::Table::LEASES, &key(n), &vec![1; 3 << 20]))
        })])
        .remove(0)
        .unwrap();
    store
        .commit(&[job(&Authority::system(), move |tx| {
            (0..39).try_for_each(|n| tx.remove(crate::Table::LEASES, &key(n)).map(drop))
        })])
        .remove(0)
        .unwrap();
    commit(&mut store, |tx| image(tx, "kept"));
    drop(store);
    let before = path.metadata().unwrap().len();
    let store = open();
    let after = path.metadata().unwrap().len();
    assert!(before > 64 << 20 && after < before / 4, "{before} -> {after}");
    images::get(&store.shared().read().unwrap(), &default(), "kept").unwrap();
}
