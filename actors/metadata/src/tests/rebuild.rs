//! What of a damaged file is taken over into a new one: what was written, and nothing else.

use std::{collections::BTreeSet, fs, path::Path};

use cofferdam_types::Descriptor;

use super::{
    damage::{Row, rows},
    disk::Rng,
    *,
};
use crate::{
    rebuild::{Replacement, Taken},
    records::{check, content, images, leases, snapshots},
    salvage::Salvage,
    table::{Read as _, Table},
};

const SEEDS: u64 = 120;

/// An image with a blob, a lease that holds it, and a snapshot on the one before.
fn things(n: u64) -> Write {
    job(&Authority::system(), move |tx| {
        let key = name(&format!("{n:06}"));
        let mut image = images::Image::new(key.clone(), Descriptor::new("application/json", digest(&key), 7));
        image.labels.insert("padding".into(), "x".repeat((n % 97 * 40) as usize));
        images::create(tx, &default(), image)?;
        content::create(tx, &default(), content::Link::new(digest(&key), 7))?;
        leases::create(tx, &default(), leases::Lease::new(key.clone()))?;
        let parent = n.checked_sub(1).map(|n| name(&format!("{n:06}")));
        let snapshot = snapshots::Snapshot::new("overlay", key, snapshots::Kind::Committed, parent, n + 1);
        snapshots::create(tx, &default(), snapshot).map(drop)
    })
}

/// What the salvage gives, and how many pages are lost.
fn salvaged(path: &Path) -> (Vec<Row>, u64) {
    let (salvage, mut rows, mut lost) = (Salvage::open(path).unwrap(), Vec::new(), 0);
    for table in Table::ALL {
        lost += salvage.rows(table.name(), &mut |key, value| rows.push((table, key.to_vec(), value.to_vec())));
    }
    (rows, lost)
}

/// A file with a lot in it, closed; and as a kill would leave it.
fn files(dir: &Path) -> (Vec<Row>, [Vec<u8>; 2]) {
    let path = dir.join("meta.redb");
    let shared = Arc::new(Shared::new(Opener::file(&path)));
    let mut store = shared.open().unwrap();
    for n in 0..60 {
        store.commit(&[things(2 * n), things(2 * n + 1)]).into_iter().for_each(Result::unwrap);
    }
    let all = rows(&shared.read().unwrap()).unwrap();
    let open = fs::read(&path).unwrap();
    drop(store);
    drop(shared);
    (all, [fs::read(&path).unwrap(), open])
}

#[test]
fn all_of_a_good_file_is_read_and_of_one_that_is_no_database_nothing() {
    let dir = memory();
    let (all, files) = files(dir.path());
    let path = dir.path().join("copy");
    for bytes in files {
        fs::write(&path, bytes).unwrap();
        let (rows, lost) = salvaged(&path);
        assert_eq!((rows.len(), lost), (all.len(), 0));
        assert!(rows == all);
    }
    for nothing in [&b""[..], b"redb", &[7; 100_000]] {
        fs::write(&path, nothing).unwrap();
        assert_eq!(salvaged(&path).0.len(), 0);
    }
}

#[test]
fn of_a_damaged_file_only_what_was_written_is_taken_over() {
    let dir = memory();
    let (all, files) = files(dir.path());
    let written: BTreeSet<_> = all.iter().map(|(table, key, value)| (table.name(), key, value)).collect();
    let path = dir.path().join("meta.redb");
    let (mut most, mut damaged) = (0, 0);
    for seed in 0..SEEDS {
        let mut rng = Rng::new(seed);
        let mut bad = files[(seed % 2) as usize].clone();
        let at = rng.below(bad.len() as u64) as usize;
        match seed / 2 % 3 {
            0 => bad[at] ^= 1 << rng.below(8),
            1 => {
                let end = bad.len().min(at + 1 + rng.below(20_000) as usize);
                bad[at..end].iter_mut().for_each(|byte| *byte = rng.below(256) as u8);
            }
            // The beginning, but for the commits.
            _ => bad[..64].iter_mut().for_each(|byte| *byte = rng.below(256) as u8),
        }
        fs::write(&path, &bad).unwrap();
        let opened = Arc::new(Shared::new(Opener::file(&path))).open();
        if opened.is_ok() {
            drop(opened);
            fs::write(&path, &bad).unwrap();
        }
        assert!(fs::read(&path).unwrap() == bad, "seed {seed}: what can't be opened was written");
        let (rows, lost) = salvaged(&path);
        let wrong = rows.iter().find(|(table, key, value)| !written.contains(&(table.name(), key, value)));
        assert_eq!(wrong, None, "seed {seed}");
        assert!(lost > 0 || rows.len() == all.len(), "seed {seed}: rows are lost, and nothing says so");
        most += u64::from(rows.len() > all.len() / 2);
        damaged += u64::from(lost > 0);

        let mut new = Replacement::begin(&path).unwrap();
        assert_eq!(new.tables.taken().pages, lost, "seed {seed}");
        let left = new.tables.settle().unwrap();
        let kept = new.finish().unwrap();
        assert!(fs::read(&kept).unwrap() == bad, "seed {seed}: the old file was written");
        fs::remove_file(kept).unwrap();
        let shared = Arc::new(Shared::new(Opener::file(&path)));
        let mut store = shared.open().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(check::all(&shared.read().unwrap()).unwrap(), left, "seed {seed}");
        for (table, key, _) in rows.iter().filter(|row| row.0 == Table::IMAGES || row.0 == Table::TASKS) {
            assert!(shared.read().unwrap().get(*table, key).unwrap().is_some(), "seed {seed}");
        }
        let write =
            job(&Authority::system(), |tx| leases::create(tx, &default(), leases::Lease::new(name("new"))).map(drop));
        store.commit(&[write]).remove(0).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    assert!(most > SEEDS / 2, "of {SEEDS} only {most} give more than half of what was in them");
    assert!(damaged > SEEDS / 5, "of {SEEDS} only {damaged} are damaged where something lies");
}

#[test]
fn what_may_have_lost_its_keeper_is_held_and_counters_go_on() {
    let dir = memory();
    let path = dir.path().join("meta.redb");
    let shared = Arc::new(Shared::new(Opener::file(&path)));
    let mut store = shared.open().unwrap();
    let alone = job(&Authority::system(), |tx| {
        content::create(tx, &default(), content::Link::new(digest("alone"), 1)).map(drop)
    });
    store.commit(&[alone]).remove(0).unwrap();
    drop(store);
    drop(shared);
    let mut new = Replacement::begin(&path).unwrap();
    let Taken { rows, unsound, pages } = new.tables.taken();
    assert!(rows > 3 && unsound == 0 && pages == 0, "{rows}");
    let event = crate::records::events::last(&new.tables.read().unwrap()).unwrap();
    assert!(event > 0);
    new.tables.count_from("event", event - 1).unwrap();
    new.tables.settle().unwrap();
    let view = new.tables.read().unwrap();
    let blob = crate::records::Resource::Content(digest("alone"));
    assert!(leases::is_by_hand(&view, &default(), &blob).unwrap());
    assert_eq!(crate::records::events::last(&view).unwrap(), event, "it was taken over");
    drop(view);
    new.finish().unwrap();
    // The tables are of the commit before the last, or the journal's numbers are not theirs.
    let mut new = Replacement::begin(&path).unwrap();
    new.tables.count_from("event", 3000).unwrap();
    assert_eq!(crate::records::events::last(&new.tables.read().unwrap()).unwrap(), 3000);
    new.finish().unwrap();
    // One that is lost whole.
    fs::write(&path, b"").unwrap();
    let mut new = Replacement::begin(&path).unwrap();
    new.tables.count_from("event", 5000).unwrap();
    assert_eq!(crate::records::events::last(&new.tables.read().unwrap()).unwrap(), 5000);
    new.finish().unwrap();
    let shared = Arc::new(Shared::new(Opener::file(&path)));
    let _store = shared.open().unwrap();
    assert_eq!(check::all(&shared.read().unwrap()).unwrap(), []);
}

/// Nothing else says it: without that the blob would be good until somebody has read it.
#[test]
fn what_is_known_to_be_damaged_is_known_of_new_tables_too() {
    let dir = memory();
    let path = dir.path().join("meta.redb");
    let shared = Arc::new(Shared::new(Opener::file(&path)));
    let mut store = shared.open().unwrap();
    let fill = job(&Authority::system(), |tx| {
        for text in ["fine", "bad", "gone"] {
            content::create(tx, &default(), content::Link::new(digest(text), 1))?;
        }
        content::damaged(tx, &digest("bad"))?;
        content::damaged(tx, &digest("gone"))?;
        // How many links there are is what the links say.
        let wrong = content::Blob { links: 7, ..content::blob(tx, &digest("bad"))?.unwrap() };
        crate::records::save(tx, digest("bad").to_string().as_bytes(), &wrong)?;
        tx.remove(Table::CONTENT, &crate::codec::key(&["default", &digest("gone").to_string()])).map(drop)
    });
    store.commit(&[fill]).remove(0).unwrap();
    drop(store);
    drop(shared);
    let mut new = Replacement::begin(&path).unwrap();
    new.tables.settle().unwrap();
    let view = new.tables.read().unwrap();
    let blob = |text: &str| content::blob(&view, &digest(text)).unwrap().map(|blob| (blob.links, blob.altered));
    assert_eq!((blob("fine"), blob("bad"), blob("gone")), (Some((1, false)), Some((1, true)), None));
}

#[test]
fn a_newer_format_and_a_file_in_use_are_left_alone() {
    let dir = memory();
    let path = dir.path().join("meta.redb");
    let shared = Arc::new(Shared::new(Opener::file(&path)));
    let mut store = shared.open().unwrap();
    assert!(Replacement::begin(&path).map(drop).unwrap_err().message.contains("in use"));
    let newer = job(&Authority::system(), |tx| tx.put(Table::META, b"version", &99_u64.to_be_bytes()));
    store.commit(&[newer]).remove(0).unwrap();
    drop(store);
    drop(shared);
    let error = Replacement::begin(&path).map(drop).unwrap_err();
    assert!(error.message.contains("format 99"), "{error}");
}
