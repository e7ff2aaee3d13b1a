//! A file that something else has altered: it is refused with what to do, or nothing of what counts was altered.

use std::{ops::ControlFlow, path::Path};

use cofferdam_types::Descriptor;

use super::{disk::Rng, *};
use crate::{
    Table,
    records::{check, images},
    table::scan,
};

const SEEDS: u64 = 150;

fn image(n: u64) -> Write {
    job(&Authority::system(), move |tx| {
        let mut image =
            images::Image::new(name(&format!("{n:06}")), Descriptor::new("application/json", digest("x"), 1));
        image.labels.insert("padding".into(), "x".repeat((n % 97 * 40) as usize));
        images::create(tx, &default(), image).map(drop)
    })
}

pub(super) type Row = (Table, Vec<u8>, Vec<u8>);

/// Every row of every table.
pub(super) fn rows(view: &View) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for table in Table::ALL {
        scan(view, table, b"", None, &mut |key, value| {
            rows.push((table, key.to_vec(), value.to_vec()));
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(rows)
}

/// Opens, reads and writes. A panic that comes out of any of that is the test's end.
fn used(path: &Path, good: &[Row]) -> Result<()> {
    let shared = Arc::new(Shared::new(Opener::file(path)));
    let mut store = shared.open()?;
    assert!(rows(&shared.read()?)? == good, "what was altered is taken for what was written");
    assert_eq!(check::all(&shared.read()?)?, []);
    store.commit(&[image(1_000_000)]).remove(0)?;
    images::get(&shared.read()?, &default(), "1000000").map(drop)
}

#[test]
fn what_was_altered_is_refused_or_is_nothing_that_counts() {
    let dir = memory();
    let path = dir.path().join("meta.redb");
    let shared = Arc::new(Shared::new(Opener::file(&path)));
    let mut store = shared.open().unwrap();
    for n in 0..40 {
        store.commit(&[image(10 * n), image(10 * n + 1), image(10 * n + 2)]).into_iter().for_each(Result::unwrap);
    }
    let all = rows(&shared.read().unwrap()).unwrap();
    drop(store);
    drop(shared);
    let good = std::fs::read(&path).unwrap();
    used(&path, &all).unwrap();
    let mut refused = 0;
    for seed in 0..SEEDS {
        let mut rng = Rng::new(seed);
        let mut bad = good.clone();
        // The beginning is the header; what is behind it is hit where something lies, more often than not.
        let at = match rng.below(4) {
            0 => rng.below(512) as usize,
            _ => rng.below(bad.len() as u64) as usize,
        };
        match seed % 4 {
            0 => bad.truncate(at),
            1 => bad[at] ^= 1 << rng.below(8),
            2 => {
                let end = bad.len().min(at + 1 + rng.below(5000) as usize);
                bad[at..end].iter_mut().for_each(|byte| *byte = rng.below(256) as u8);
            }
            _ => bad[0..9].iter_mut().for_each(|byte| *byte = rng.below(256) as u8),
        }
        // An empty file is a new one: whether there was another is known by what lies beside it.
        if bad.is_empty() || bad == good {
            continue;
        }
        std::fs::write(&path, &bad).unwrap();
        if let Err(error) = used(&path, &all) {
            assert_eq!(error.code, Code::DataLoss, "seed {seed}: {error}");
            assert!(error.message.contains("put a good copy in its place"), "seed {seed}: {error}");
            refused += 1;
        }
    }
    assert!(refused > SEEDS / 3, "only {refused} of {SEEDS} are seen");
}

/// A file that is too long to be read whole at each start: what is altered in it is met later.
#[test]
fn a_read_that_meets_an_altered_page_is_an_error() {
    let disk = super::disk::Disk::default();
    let open = |bytes: Vec<u8>| {
        let disk = super::disk::Disk::with(bytes);
        let shared = Arc::new(Shared::new(Opener::backend(0, move || disk.clone())));
        shared.open().map(|store| (shared, store))
    };
    let below = disk.clone();
    let shared = Arc::new(Shared::new(Opener::backend(0, move || below.clone())));
    let mut store = shared.open().unwrap();
    (0..30).for_each(|n| store.commit(&[image(n)]).remove(0).unwrap());
    drop(store);
    drop(shared);
    let good = disk.crash_image(&mut Rng::new(1));
    let mut met = 0;
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let mut bad = good.clone();
        let at = 4096 + rng.below(bad.len() as u64 / 2) as usize;
        let end = bad.len().min(at + 4096);
        bad[at..end].iter_mut().for_each(|byte| *byte = rng.below(256) as u8);
        let Ok((shared, _store)) = open(bad) else { continue };
        let read = shared.read().and_then(|view| rows(&view));
        met += u64::from(read.is_err_and(|error| error.code == Code::DataLoss));
    }
    assert!(met > 0, "no page that is read is ever hit");
}

/// A long file is read by us instead of redb: whatever is altered where something lies is found before anything is served, and
/// nothing is found in a good one, closed or as a kill leaves it.
#[test]
fn of_a_long_file_too_nothing_altered_is_believed() {
    let dir = memory();
    let path = dir.path().join("meta.redb");
    let shared = Arc::new(Shared::new(Opener::file(&path)));
    let mut store = shared.open().unwrap();
    let commit = |store: &mut Store, numbers: std::ops::Range<u64>| {
        store.commit(&numbers.map(image).collect::<Vec<_>>()).into_iter().for_each(Result::unwrap);
    };
    (0..16).for_each(|n| commit(&mut store, n * 1000..n * 1000 + 1000));
    // The last commits as they are in a long file.
    (0..20).for_each(|n| commit(&mut store, 20_000 + n..20_001 + n));
    let all = rows(&shared.read().unwrap()).unwrap();
    let killed = std::fs::read(&path).unwrap();
    drop(store);
    drop(shared);
    let closed = std::fs::read(&path).unwrap();
    assert!(closed.len() > 32 << 20, "{}", closed.len());
    let (mut refused, mut unharmed) = (0, 0);
    let seeds = if std::env::var_os("COFFERDAM_LONG").is_some() { 60 } else { 20 };
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let mut bad = if seed % 2 == 0 { killed.clone() } else { closed.clone() };
        if seed > 1 {
            let at = 4096 + rng.below(bad.len() as u64 - 4096) as usize;
            let end = bad.len().min(at + 1 + rng.below(5000) as usize);
            bad[at..end].iter_mut().for_each(|byte| *byte ^= 0x5A);
        }
        std::fs::write(&path, &bad).unwrap();
        match used(&path, &all) {
            Ok(()) => unharmed += 1,
            Err(error) => {
                assert!(seed > 1, "a good file is refused: {error}");
                assert_eq!(error.code, Code::DataLoss, "seed {seed}: {error}");
                assert!(error.message.contains("put a good copy in its place"), "seed {seed}: {error}");
                assert!(std::fs::read(&path).unwrap() == bad, "seed {seed}: what was refused was written");
                refused += 1;
            }
        }
    }
    assert!(
        refused > seeds / 6 && unharmed > 2,
        "of what is hit {refused} is seen, and {unharmed} is nothing that counts"
    );

    // What is readable is served, and nothing is written.
    let places = closed.windows(6).enumerate().filter(|(_, window)| *window == b"020007").map(|(at, _)| at);
    let mut bad = closed.clone();
    places.for_each(|at| bad[at] ^= 1);
    std::fs::write(&path, &bad).unwrap();
    actix_rt::System::new().block_on(async {
        let kernel = cofferdam_kernel::Kernel::new().unwrap();
        let meta = crate::Metadata::start(&kernel, cofferdam_kernel::Placement::Own, &path).unwrap();
        kernel.ready().await.unwrap();
        let error = code(meta.writable(), Code::DataLoss);
        assert!(error.message.contains("not what was written"), "{error}");
        let found = images::list(&meta.read().unwrap(), &default(), None, usize::MAX).unwrap().len();
        assert!((15_000..16_020).contains(&found), "{found}");
        code(meta.probe().await, Code::DataLoss);
        kernel.stop().await;
    });
    assert!(std::fs::read(&path).unwrap() == bad);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something lies beside it");
}
