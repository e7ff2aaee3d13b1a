//! Rows that a disk has changed, at random: whatever they say, a repair takes nothing from what can be read, what can't be read stays,
//! and nothing ends otherwise than with an answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use cofferdam_types::{Code, Digest, Labels, Name, Timestamp};

use super::{
    Fixture, default,
    gc::{CHAINS, Dice, History, chain, other, step},
    name,
};
use crate::{
    Read, Table, codec,
    graph::{Graph, Sweep, end_leases},
    records::{
        check,
        content::{self, Link},
        decode, namespaces,
        replace::{self, Stays},
        snapshots::Snapshot,
    },
    table::scan,
};

type Row = (Vec<u8>, Vec<u8>);

fn rows(read: &dyn Read, table: Table) -> Vec<Row> {
    let mut rows = Vec::new();
    scan(read, table, b"", None, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    rows
}

/// The tables that somebody's bytes hang on.
const SPOILED: [Table; 11] = [
    Table::CONTENT,
    Table::SNAPSHOTS,
    Table::SNAPSHOTS,
    Table::LEASES,
    Table::IMAGES,
    Table::CONTAINERS,
    Table::BLOBS,
    Table::DIRS,
    Table::CHILDREN,
    Table::LAYERS,
    Table::HELD,
];

/// One row becomes something else.
fn spoil(f: &mut Fixture, dice: &mut Dice) {
    let table = SPOILED[dice.roll(SPOILED.len() as u64) as usize];
    let all = rows(&f.view(), table);
    if all.is_empty() {
        return;
    }
    let mut pick = || all[dice.roll(all.len() as u64) as usize].clone();
    let ((key, value), (other_key, other_value)) = (pick(), pick());
    let how = dice.roll(7);
    f.write(move |tx| match how {
        0..=2 => tx.put(table, &key, b"\xff"),
        3 => tx.remove(table, &key).map(drop),
        4 => {
            tx.remove(table, &key)?;
            tx.put(table, &[&key[..], b"\xff"].concat(), &value)
        }
        // It says what another says.
        5 => tx.put(table, &key, &other_value),
        // It lies on another: of enough of these some go round in a circle.
        _ => {
            let Ok(mut one) = codec::decode::<Snapshot>("snapshot", &key, &value) else { return Ok(()) };
            let Some(on) = codec::parts(&other_key).ok().and_then(|parts| parts.last().copied()) else { return Ok(()) };
            let (Ok(on), Ok(parts)) = (Name::new(on), codec::parts(&key)) else { return Ok(()) };
            tx.put(Table::CHILDREN, &codec::key(&[parts[0], &one.driver, &on, &one.key]), b"")?;
            one.parent = Some(on);
            tx.put(table, &key, &codec::encode("snapshot", &one)?)
        }
    })
    .unwrap();
}

/// What there is of links and directories that can be read, and how often.
fn counted(read: &dyn Read) -> (BTreeMap<Digest, u64>, BTreeMap<(String, u64), u64>) {
    let (mut blobs, mut dirs) = (BTreeMap::new(), BTreeMap::new());
    // One whose key can't be read can't be, whatever it holds.
    let named = |row: &Row| codec::parts(&row.0).is_ok();
    for (key, value) in rows(read, Table::CONTENT).into_iter().filter(named) {
        if let Ok(link) = decode::<Link>(&key, &value) {
            *blobs.entry(link.digest).or_default() += 1;
        }
    }
    for (key, value) in rows(read, Table::SNAPSHOTS).into_iter().filter(named) {
        if let Ok(one) = decode::<Snapshot>(&key, &value) {
            *dirs.entry((one.driver, one.dir)).or_default() += 1;
        }
    }
    (blobs, dirs)
}

fn is_counted(read: &dyn Read, seed: u64) {
    let (blobs, dirs) = counted(read);
    for (digest, links) in blobs {
        // A count that can't be read, beside a link that can't, is no count that is too low.
        let found = content::blob(read, &digest).map_or(u64::MAX, |blob| blob.map_or(0, |blob| blob.links));
        assert!(found >= links, "seed {seed}: {digest} has {links} links and counts {found}");
    }
    for ((driver, dir), count) in dirs {
        let found = crate::records::snapshots::dir_references(read, &driver, dir).unwrap_or(u64::MAX);
        assert!(found >= count, "seed {seed}: directory {dir} has {count} snapshots and counts {found}");
    }
}

/// The rows that can't be read of what can be collected.
fn unreadable(read: &dyn Read) -> BTreeSet<Row> {
    let links = rows(read, Table::CONTENT)
        .into_iter()
        .filter(|(key, value)| codec::parts(key).is_err() || decode::<Link>(key, value).is_err());
    let snapshots = rows(read, Table::SNAPSHOTS)
        .into_iter()
        .filter(|(key, value)| codec::parts(key).is_err() || decode::<Snapshot>(key, value).is_err());
    links.chain(snapshots).collect()
}

/// A collection as the collector makes it: what can't be removed is left out.
fn collect(f: &mut Fixture) {
    let collection = f.write(|tx| Ok(tx.spared().begin())).unwrap();
    for ns in [default(), other()] {
        let view = f.view();
        let graph = Graph::read(&view, &ns, Timestamp::now()).unwrap();
        let ended = graph.ended().to_vec();
        let space = ns.clone();
        answered(f.write(move |tx| end_leases(tx, &space, &ended)));
        let sweep = Arc::new(Mutex::new(Sweep::new(collection, ns.clone(), &graph)));
        while !sweep.lock().unwrap().is_done() {
            let theirs = sweep.clone();
            match f.write(move |tx| theirs.lock().unwrap().slice(tx, 1)) {
                Ok(swept) => sweep.lock().unwrap().done(&swept, 1),
                Err(error) => {
                    assert_eq!(error.code, Code::DataLoss, "{error}");
                    sweep.lock().unwrap().skip();
                }
            }
        }
    }
    f.shared.spared().end(collection);
}

fn answered<T>(result: cofferdam_types::Result<T>) {
    if let Err(error) = result {
        assert!(error.code != Code::Internal, "{error}");
    }
}

fn one(seed: u64) {
    let (mut f, mut history) = (Fixture::new(), History::of(seed));
    f.write(|tx| namespaces::create(tx, &other(), &Labels::new()).map(drop)).unwrap();
    for _ in 0..80 {
        step(&mut f, &mut history);
    }
    for _ in 0..1 + history.dice.roll(6) {
        spoil(&mut f, &mut history.dice);
    }
    let view = f.view();
    let (lost, blobs, dirs) = (unreadable(&view), rows(&view, Table::BLOBS), rows(&view, Table::DIRS));
    check::all(&view).unwrap();
    f.write(check::mend).unwrap();
    let view = f.view();
    is_counted(&view, seed);
    assert_eq!(unreadable(&view), lost, "seed {seed}");
    // What was counted for one that can't be read is.
    let there: BTreeSet<_> = rows(&view, Table::BLOBS).into_iter().map(|(key, _)| key).collect();
    for (key, _) in lost.iter().filter(|(key, _)| codec::parts(key).is_ok()) {
        let digest = codec::parts(key).unwrap().last().unwrap().as_bytes().to_vec();
        let before = blobs.iter().any(|(key, _)| *key == digest);
        assert!(!before || there.contains(&digest), "seed {seed}: the link of a blob can't be read");
    }
    let snapshots = rows(&view, Table::SNAPSHOTS);
    if snapshots.iter().any(|row| lost.contains(row)) {
        let after: BTreeSet<_> = rows(&view, Table::DIRS).into_iter().map(|(key, _)| key).collect();
        let gone: Vec<_> = dirs.iter().filter(|(key, _)| codec::parts(key).is_ok() && !after.contains(key)).collect();
        assert!(gone.is_empty(), "seed {seed}: a snapshot that can't be read may have {gone:?}");
    }
    // Nothing that goes on ends it, and what can't be read stays.
    collect(&mut f);
    for n in 0..CHAINS {
        let stays = [Stays::All, Stays::Views, Stays::None][history.dice.roll(3) as usize];
        answered(f.write(move |tx| {
            let old = crate::records::layers::get(tx, "overlay", &chain(n))?.dir;
            replace::replace(tx, "overlay", &chain(n), old, (9_000_000 + n, Default::default()), stays)
        }));
    }
    answered(f.write(|tx| crate::records::snapshots::delete(tx, &default(), "overlay", &name("s1"))));
    collect(&mut f);
    assert!(unreadable(&f.view()).is_superset(&lost), "seed {seed}");
    answered(f.write(|tx| namespaces::delete(tx, &other())));
    f.write(check::mend).unwrap();
    is_counted(&f.view(), seed);
}

#[test]
fn whatever_rows_say_nothing_that_can_be_read_is_taken_and_all_is_answered() {
    let (sender, receiver) = mpsc::channel();
    let all = std::thread::spawn(move || {
        for seed in 1..=300 {
            one(seed);
            let _ = sender.send(seed);
        }
    });
    let mut last = 0;
    // What hangs can't be ended, but told.
    loop {
        match receiver.recv_timeout(Duration::from_secs(60)) {
            Ok(seed) => last = seed,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the one behind {last} doesn't end"),
        }
    }
    all.join().unwrap();
}
