//! Power cuts at any operation, passing faults and a full disk: nothing acknowledged is lost, nothing is torn.

use cofferdam_types::{Descriptor, Timestamp};

use super::{
    disk::{Disk, Rng},
    *,
};
use crate::{
    graph::{Graph, Sweep, Swept},
    records::{check, content, events, images, leases},
};

const SEEDS: u64 = 200;

/// By turns as a small file and as a large one: they are grown and committed in different ways.
fn open(disk: &Disk, turn: u64) -> Result<(Arc<Shared>, Store)> {
    let disk = disk.clone();
    let scanned = if turn.is_multiple_of(2) { 0 } else { u64::MAX };
    let shared = Arc::new(Shared::new(Opener::backend(scanned, move || disk.clone())));
    let store = shared.open()?;
    Ok((shared, store))
}

/// A job that writes records and an event: torn if one is there without the others. The image keeps one blob, and that
/// another; nothing keeps the third.
fn pair(n: u64) -> Write {
    job(&Authority::system(), move |tx| {
        let key = name(&format!("{n:06}"));
        leases::create(tx, &default(), leases::Lease::new(key.clone()))?;
        let [stood_for, kept, loose] = blobs(n);
        let mut image = images::Image::new(key, Descriptor::new("application/json", stood_for.clone(), 1));
        image.labels.insert("padding".into(), "x".repeat((n % 97 * 40) as usize));
        images::create(tx, &default(), image)?;
        let mut link = content::Link::new(stood_for, 1);
        link.labels.insert("containerd.io/gc.ref.content.0".into(), kept.to_string());
        for link in [link, content::Link::new(kept, 1), content::Link::new(loose, 1)] {
            content::create(tx, &default(), link)?;
        }
        Ok(())
    })
}

fn blobs(n: u64) -> [Digest; 3] {
    ["a", "b", "c"].map(|which| digest(&format!("{which}{n}")))
}

/// Collects, a few records to a commit, and gives how many blobs went by commits that were acknowledged.
fn collect(shared: &Shared, store: &mut Store) -> Result<u64> {
    const SLICE: usize = 3;
    let collection = shared.spared().begin();
    let view = shared.read()?;
    let graph = Graph::read(&view, &default(), Timestamp::now())?;
    let sweep = Arc::new(Mutex::new(Sweep::new(collection, default(), &graph)));
    let mut gone = 0;
    while !sweep.lock().unwrap().is_done() {
        let swept = Arc::new(Mutex::new(Swept::default()));
        let (theirs, place) = (sweep.clone(), swept.clone());
        let slice = job(&Authority::system(), move |tx| {
            *place.lock().unwrap() = theirs.lock().unwrap().slice(tx, SLICE)?;
            Ok(())
        });
        if store.commit(&[slice]).remove(0).is_err() {
            break;
        }
        let swept = swept.lock().unwrap();
        gone += swept.removed.len() as u64;
        sweep.lock().unwrap().done(&swept, SLICE);
    }
    shared.spared().end(collection);
    Ok(gone)
}

/// Writes until the power goes, then looks at what is left. The error says what is wrong with it.
fn run(seed: u64, lies: bool) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let disk = Disk::default();
    let (shared, mut store) = open(&disk, seed).unwrap();
    if lies {
        disk.set_lies();
    }
    disk.cut_after(1 + rng.below(600));
    let (mut next, mut acknowledged, mut collected, mut cut) = (0, Vec::new(), 0, false);
    while !cut {
        let batch: Vec<u64> = (next..next + 1 + rng.below(6)).collect();
        next += batch.len() as u64;
        let writes: Vec<_> = batch.iter().map(|n| pair(*n)).collect();
        for (n, result) in batch.into_iter().zip(store.commit(&writes)) {
            match result {
                Ok(()) => acknowledged.push(n),
                Err(_) => cut = true,
            }
        }
        // A read may fail for the same reason that a write does.
        if !cut && rng.below(3) == 0 {
            match collect(&shared, &mut store) {
                Ok(gone) => collected += gone,
                Err(_) => cut = true,
            }
        }
    }
    let image = disk.crash_image(&mut rng);
    drop(store);

    let caught = std::panic::catch_unwind(|| open(&Disk::with(image), seed));
    let (shared, mut store) = caught.map_err(|_| "opening panics".to_owned())?.map_err(|e| format!("opening: {e}"))?;
    let view = shared.read().map_err(|e| e.to_string())?;
    let check = || -> Result<Option<String>> {
        let (mut found, mut gone) = (0, 0);
        for n in 0..next {
            let key = format!("{n:06}");
            let lease = leases::find(&view, &default(), &key)?.is_some();
            let image = images::find(&view, &default(), &key)?.is_some();
            let [stood_for, kept, loose] = blobs(n);
            let has = |digest| content::find(&view, &default(), digest).map(|found| found.is_some());
            // What the image keeps no collection has taken, however much of one is there.
            if lease != image || has(&stood_for)? != image || has(&kept)? != image || (has(&loose)? && !image) {
                return Ok(Some(format!("{n} is torn")));
            }
            if !image && acknowledged.contains(&n) {
                return Ok(Some(format!("{n} was acknowledged and is lost")));
            }
            found += u64::from(image);
            gone += u64::from(image && !has(&loose)?);
        }
        if gone < collected {
            return Ok(Some(format!("{collected} blobs were collected, and {gone} are gone")));
        }
        let contradictions = check::all(&view)?;
        if !contradictions.is_empty() {
            return Ok(Some(format!("{contradictions:?}")));
        }
        // One event for each image, each blob that is gone, and the default namespace, in a row.
        let last = found + gone + 1;
        let sequences: Vec<_> = events::outbox_after(&view, 0, usize::MAX)?.iter().map(|e| e.sequence).collect();
        let whole = sequences == (1..=last).collect::<Vec<_>>() && *shared.outbox.borrow() == last;
        Ok((!whole).then(|| format!("{found} images and {gone} collected blobs, but events {sequences:?}")))
    };
    match check() {
        Ok(None) => {}
        Ok(Some(wrong)) => return Err(wrong),
        Err(error) => return Err(error.to_string()),
    }
    // The next collection finds what is left, and no more.
    drop(view);
    collect(&shared, &mut store).map_err(|e| e.to_string())?;
    let view = shared.read().map_err(|e| e.to_string())?;
    let left = content::list(&view, &default(), None, usize::MAX).map_err(|e| e.to_string())?.len();
    let kept = 2 * images::list(&view, &default(), None, usize::MAX).map_err(|e| e.to_string())?.len();
    if left == kept { Ok(()) } else { Err(format!("{left} blobs, of which images keep {kept}")) }
}

#[test]
fn no_acknowledged_write_is_lost_and_none_is_torn() {
    for seed in 1..=SEEDS {
        if let Err(wrong) = run(seed, false) {
            panic!("seed {seed}: {wrong}");
        }
    }
}

#[test]
fn a_disk_that_lies_is_found_out() {
    let caught = (1..=10).filter(|seed| run(*seed, true).is_err()).count();
    assert!(caught >= 5, "only {caught} of 10: the test above would not see a lost write either");
}

#[test]
fn after_a_passing_fault_the_store_serves_again() {
    for seed in 1..=50 {
        let disk = Disk::default();
        let (shared, mut store) = open(&disk, seed).unwrap();
        store.commit(&[pair(0)]).remove(0).unwrap();
        disk.cut_after(1 + seed % 25);
        let failed = store.commit(&[pair(1), pair(2)]);
        if failed.iter().all(Result::is_ok) {
            continue; // The batch took fewer operations than that.
        }
        assert!(failed.iter().all(Result::is_err), "seed {seed}: all of a batch fail together");
        disk.mend();
        store.recover().unwrap();
        // Whether the failed batch is there is open; but all of it or nothing.
        let view = shared.read().unwrap();
        let found = |n: u64| images::find(&view, &default(), &format!("{n:06}")).unwrap().is_some();
        assert!(found(0), "seed {seed}");
        assert_eq!(found(1), found(2), "seed {seed}");
        store.commit(&[pair(3)]).remove(0).unwrap();
        let events = events::outbox_after(&shared.read().unwrap(), 0, 99).unwrap();
        assert_eq!(events.last().unwrap().sequence as usize, events.len(), "seed {seed}: no gap");
    }
}

#[test]
fn a_full_disk_refuses_writes_and_forgets_nothing() {
    (0..2).for_each(full);
}

/// A job that writes two records and an event, all of which [`removal`] takes away again.
fn plain(n: u64) -> Write {
    job(&Authority::system(), move |tx| {
        let key = name(&format!("{n:06}"));
        leases::create(tx, &default(), leases::Lease::new(key.clone()))?;
        let mut image = images::Image::new(key, Descriptor::new("application/json", digest("x"), 1));
        image.labels.insert("padding".into(), "x".repeat((n % 97 * 40) as usize));
        images::create(tx, &default(), image).map(drop)
    })
}

/// Writes until the disk is full, and says which is the first that it refused, and how.
fn fill(store: &mut Store, first: u64) -> (u64, Error) {
    for n in first..first + 100_000 {
        if let Err(error) = store.commit(&[plain(n)]).remove(0) {
            return (n, error);
        }
    }
    panic!("the disk never gets full");
}

fn full(turn: u64) {
    let disk = Disk::default();
    let (shared, mut store) = open(&disk, turn).unwrap();
    let first: Vec<Write> = (0..500).map(plain).collect();
    store.commit(&first).into_iter().for_each(Result::unwrap);
    drop(store);
    // So that most of it is not in redb's cache.
    let mut store = shared.open().unwrap();
    disk.fill(0);
    let (refused, error) = fill(&mut store, 500);
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    store.recover().unwrap();
    let view = shared.read().unwrap();
    for n in 0..refused {
        images::get(&view, &default(), &format!("{n:06}")).unwrap();
    }
    disk.mend();
    store.commit(&[removal(0)]).remove(0).unwrap();
    store.commit(&[plain(refused)]).remove(0).unwrap();
}

fn removal(n: u64) -> Write {
    job(&Authority::system(), move |tx| {
        leases::delete(tx, &default(), &format!("{n:06}"))?;
        images::delete(tx, &default(), &format!("{n:06}"))
    })
}

#[test]
fn on_a_full_disk_all_can_be_removed_and_nothing_else_uses_the_reserve() {
    for turn in 0..2 {
        emptied(turn, 512).unwrap();
        assert_eq!(emptied(turn, 0).unwrap_err().code, Code::ResourceExhausted, "without a reserve it shows nothing");
    }
}

/// Removes all from a full disk, with so many pages that are kept for that.
fn emptied(turn: u64, kept: u64) -> Result<()> {
    let (disk, scanned) = (Disk::default(), if turn == 0 { 0 } else { u64::MAX });
    let (below, reserve) = (disk.clone(), Arc::new(disk.clone()));
    let shared = Arc::new(Shared::new(Opener::reserved(scanned, move || below.clone(), reserve)));
    let mut store = shared.open().unwrap();
    store.commit(&(0..300).map(plain).collect::<Vec<_>>()).into_iter().for_each(Result::unwrap);
    disk.fill(kept);
    let (refused, error) = fill(&mut store, 300);
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    for n in 0..refused {
        // In one batch with what has to be refused still. What was freed may be room for that later.
        let results = store.commit(&[plain(1_000_000 + n), removal(n)]);
        results[1].clone()?;
        if n == 0 {
            assert_eq!(results[0].clone().unwrap_err().code, Code::ResourceExhausted);
        }
        let there = images::find(&shared.read().unwrap(), &default(), &format!("{:06}", 1_000_000 + n)).unwrap();
        assert_eq!(there.is_some(), results[0].is_ok(), "{n}");
    }
    Ok(())
}

/// The disk has no room for what a commit that is already the good one syncs last: it is there when the file is opened again.
#[test]
fn a_batch_whose_commit_is_there_after_all_is_not_run_again() {
    let mut there = 0;
    for turn in 0..2 {
        for sync in 1..=2 {
            let disk = Disk::default();
            let (shared, mut store) = open(&disk, turn).unwrap();
            store.commit(&[plain(0), plain(1)]).into_iter().for_each(Result::unwrap);
            let answers = Arc::new(Mutex::new(Vec::new()));
            let told = answers.clone();
            let counted = job(&Authority::system(), move |tx| {
                images::delete(tx, &default(), "000000")?;
                told.lock().unwrap().push(tx.next("test", 1)?);
                Ok(())
            });
            disk.full_at_sync(sync);
            let last = *shared.outbox.borrow();
            // What creates has to be refused, unless it has happened.
            let results = store.commit(&[counted, plain(2)]);
            let view = shared.read().unwrap();
            let found = |n: u64| images::find(&view, &default(), &format!("{n:06}")).unwrap().is_some();
            results[0].clone().unwrap();
            assert!(!found(0) && found(1));
            assert_eq!(found(2), results[1].is_ok(), "turn {turn}, sync {sync}: {results:?}");
            let told = u64::from(found(2)) + 1;
            assert_eq!(*shared.outbox.borrow(), last + told);
            assert_eq!(events::outbox_after(&view, last, 99).unwrap().len() as u64, told);
            let ran = answers.lock().unwrap().clone();
            assert_eq!(ran, vec![1; ran.len()], "what was counted is counted once");
            there += u64::from(ran.len() == 1 && disk.syncs() > 0);
            // It is on disk too, whatever was only in the page cache when the sync failed.
            drop(view);
            let (shared, _store) = open(&Disk::with(disk.crash_image(&mut Rng::new(sync))), turn).unwrap();
            let found = images::find(&shared.read().unwrap(), &default(), "000000").unwrap();
            assert!(found.is_none(), "turn {turn}, sync {sync}: it was answered, and is lost");
        }
    }
    assert!(there >= 2, "no commit is there after its sync has failed: {there}");
}
