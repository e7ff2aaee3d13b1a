//! A hash that is kept: what is on record goes on, after a crash too, and never on bytes that became others.

use std::{os::unix::fs::FileExt as _, path::Path};

use super::*;
use crate::kept::STEP;

fn hashed(rig: &Rig, reference: &str) -> Option<records::ingests::Hashed> {
    records::ingests::get(&rig.meta.read().unwrap(), &rig.ns, reference).unwrap().hashed
}

fn ingest_path(rig: &Rig, reference: &str) -> PathBuf {
    let id = records::ingests::get(&rig.meta.read().unwrap(), &rig.ns, reference).unwrap().id;
    rig.dir.path().join("content/ingest").join(id.to_string())
}

fn file(path: &Path) -> fs::File {
    fs::File::options().read(true).write(true).open(path).unwrap()
}

/// The first byte becomes another: who hashes it anew finds that out.
fn alter(path: &Path) {
    let (file, mut byte) = (file(path), [0]);
    file.read_exact_at(&mut byte, 0).unwrap();
    file.write_all_at(&[!byte[0]], 0).unwrap();
}

#[test]
fn what_was_hashed_before_a_crash_is_not_hashed_again() {
    run(|mut rig| async move {
        for algorithm in Algorithm::ALL {
            let reference = format!("r-{}", algorithm.as_str());
            let data = bytes(5, 300_000);
            let opened = IngestOptions { algorithm, ..options(&reference) };
            let mut ingest = rig.content.ingest(&rig.auth, &rig.ns, opened.clone()).await.unwrap();
            ingest.append(&data[..200_000]).unwrap();
            ingest.sync().unwrap();
            assert_eq!(hashed(&rig, &reference).map(|hashed| hashed.offset), Some(200_000));
            // What came since is hashed again.
            ingest.append(&data[200_000..250_000]).unwrap();
            drop(ingest);
            let path = ingest_path(&rig, &reference);
            rig = rig.restart(|_| alter(&path)).await;
            let mut ingest = rig.content.ingest(&rig.auth, &rig.ns, opened).await.unwrap();
            assert_eq!(ingest.offset(), 250_000);
            let right = ingest.digest_so_far() == Digest::of(algorithm, &data[..250_000]);
            assert!(right, "{algorithm:?}: the byte that became another is read");
            alter(&path);
            ingest.append(&data[250_000..]).unwrap();
            let digest = ingest.commit(&rig.auth, Some(300_000), None, Labels::new()).await.unwrap();
            assert_eq!(digest, Digest::of(algorithm, &data));
            assert_eq!(fs::read(rig.blob(&digest)).unwrap(), data);
        }
        rig
    });
}

#[test]
fn a_hash_is_kept_by_itself_as_bytes_come() {
    run(|rig| async move {
        let mut ingest = rig.open("long").await.unwrap();
        let piece = bytes(1, (STEP / 4) as usize);
        for _ in 0..3 {
            ingest.append(&piece).unwrap();
        }
        assert_eq!(hashed(&rig, "long"), None, "not for less");
        ingest.append(&piece).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let kept = loop {
            if let Some(kept) = hashed(&rig, "long") {
                break kept;
            }
            assert!(std::time::Instant::now() < end, "nothing is kept");
            tokio_yield().await;
        };
        assert_eq!((kept.offset, kept.digest), (STEP, ingest.digest_so_far()));
        // It goes with its ingest.
        let digest = ingest.commit(&rig.auth, None, None, Labels::new()).await.unwrap();
        assert_eq!(digest, sha(&piece.repeat(4)));
        rig
    });
}

async fn tokio_yield() {
    let mut polled = false;
    std::future::poll_fn(|cx| {
        cx.waker().wake_by_ref();
        match std::mem::replace(&mut polled, true) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
}

#[test]
fn what_became_something_else_is_never_gone_on_with() {
    run(|mut rig| async move {
        // Truncated, and written anew, as long as before: nothing is left of what was kept of it.
        let (first, second) = (bytes(1, 100_000), bytes(2, 120_000));
        let mut ingest = rig.open("anew").await.unwrap();
        ingest.append(&first).unwrap();
        ingest.sync().unwrap();
        assert!(hashed(&rig, "anew").is_some());
        ingest.truncate().unwrap();
        assert_eq!(hashed(&rig, "anew"), None);
        ingest.append(&second).unwrap();
        drop(ingest);
        rig = rig.restart(|_| ()).await;
        let ingest = rig.open("anew").await.unwrap();
        assert_eq!((ingest.offset(), ingest.digest_so_far()), (120_000, sha(&second)));
        drop(ingest);

        // A file that is shorter than what is kept of it: a disk has lost its end.
        let mut ingest = rig.open("short").await.unwrap();
        ingest.append(&first).unwrap();
        ingest.sync().unwrap();
        drop(ingest);
        let path = ingest_path(&rig, "short");
        rig = rig.restart(|_| file(&path).set_len(10).unwrap()).await;
        let mut ingest = rig.open("short").await.unwrap();
        assert_eq!((ingest.offset(), ingest.digest_so_far()), (10, sha(&first[..10])));
        assert_eq!(hashed(&rig, "short"), None, "it may become as long again");
        ingest.append(&second).unwrap();
        drop(ingest);
        let ingest = rig.open("short").await.unwrap();
        assert_eq!(ingest.digest_so_far(), sha(&[&first[..10], &second].concat()));
        drop(ingest);

        // A state that is none, and one of another algorithm.
        for (reference, algorithm, state) in
            [("odd", Algorithm::Sha256, vec![1; 3]), ("other", Algorithm::Sha512, vec![])]
        {
            let mut ingest = rig.open(reference).await.unwrap();
            ingest.append(&first).unwrap();
            ingest.sync().unwrap();
            drop(ingest);
            let ns = rig.ns.clone();
            let write = move |tx: &mut cofferdam_metadata::Tx<'_>| {
                let record = records::ingests::get(tx, &ns, reference)?;
                let mut kept = record.hashed.clone().unwrap();
                kept.state = if state.is_empty() { kept.state } else { state.clone() };
                records::ingests::keep(tx, &ns, reference, record.id, Some(kept))
            };
            rig.meta.write(&rig.auth, write).await.unwrap();
            let opened = IngestOptions { algorithm, ..options(reference) };
            let ingest = rig.content.ingest(&rig.auth, &rig.ns, opened).await.unwrap();
            assert_eq!(ingest.digest_so_far(), Digest::of(algorithm, &first), "{reference}");
        }

        // What another ingest of the same name has kept is not this one's.
        let mut ingest = rig.open("twice").await.unwrap();
        ingest.append(&first).unwrap();
        ingest.sync().unwrap();
        let kept = hashed(&rig, "twice").unwrap();
        let id = records::ingests::get(&rig.meta.read().unwrap(), &rig.ns, "twice").unwrap().id;
        ingest.abort(&rig.auth).unwrap();
        drop(rig.open("twice").await.unwrap());
        let ns = rig.ns.clone();
        let write =
            move |tx: &mut cofferdam_metadata::Tx<'_>| records::ingests::keep(tx, &ns, "twice", id, Some(kept.clone()));
        rig.meta.write(&rig.auth, write).await.unwrap();
        assert_eq!(hashed(&rig, "twice"), None);
        rig
    });
}
