//! Records and files compared beside ordinary work.

use std::collections::BTreeSet;

use cofferdam_types::Fault;

use super::*;

/// The record of a blob goes in a commit of somebody else's, the file behind it: in between neither is a contradiction.
#[test]
fn what_another_is_just_removing_is_no_contradiction() {
    run(|rig| async move {
        let digest = rig.put(&rig.ns, b"removed").await;
        for repair in [false, true] {
            let removing = rig.content.removing().await;
            let (ns, id) = (rig.ns.clone(), digest.clone());
            let gone = rig.meta.write(&rig.auth, move |tx| records::content::delete(tx, &ns, &id)).await;
            assert!(gone.unwrap());
            let store = rig.content.store().clone();
            let check = std::thread::spawn(move || store.check(repair));
            while !rig.content.store().is_awaited() {
                if check.is_finished() {
                    panic!("it was told: {:?}", check.join());
                }
                std::thread::yield_now();
            }
            rig.content.discard(vec![digest.clone()], removing).await.unwrap();
            assert_eq!(check.join().unwrap(), []);
            assert!(!rig.blob(&digest).exists());
            rig.put(&rig.ns, b"removed").await;
        }
        // Checks that wait take no thread from who has to end first.
        let removing = rig.content.removing().await;
        fs::write(rig.blob(&sha(b"stray")), "stray").unwrap();
        let checks: Vec<_> = (0..8).map(|_| rig.content.clone()).collect();
        let checks: Vec<_> =
            checks.into_iter().map(|content| actix_rt::spawn(async move { content.check(false).await })).collect();
        while !rig.content.store().is_awaited() {
            actix_rt::task::yield_now().await;
        }
        rig.content.discard(vec![digest], removing).await.unwrap();
        for check in checks {
            assert_eq!(check.await.unwrap().unwrap().len(), 1);
        }
        rig
    });
}

/// Bytes of the right number are no sign: who reads all of them is told, and everybody knows from then on.
#[test]
fn who_reads_all_of_a_blob_finds_what_the_disk_has_changed() {
    run(|rig| async move {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        let (digest, nothing) = (rig.put(&rig.ns, &bytes).await, rig.put(&rig.ns, b"").await);
        let all = |digest: &Digest| {
            let (mut whole, mut all) = (rig.content.whole(&rig.ns, digest).unwrap(), Vec::new());
            // It ends where the blob does, for who counts and for who reads on.
            let counted = (&mut whole).take(bytes.len() as u64).read_to_end(&mut all);
            counted.and_then(|_| whole.read_to_end(&mut all)).map(|_| all)
        };
        assert_eq!(all(&digest).unwrap(), bytes);
        assert_eq!(all(&nothing).unwrap(), b"");
        assert_eq!(rig.content.check(false).await.unwrap(), []);
        let mut changed = bytes.clone();
        changed[60_000] ^= 1;
        fs::write(rig.blob(&digest), changed).unwrap();
        let error = all(&digest).unwrap_err();
        let error = error.get_ref().and_then(|e| e.downcast_ref::<cofferdam_types::Error>()).unwrap();
        assert_eq!((error.code, &error.id), (Code::DataLoss, &digest.to_string()));
        let found = rig.content.check(false).await.unwrap();
        assert_eq!(found.iter().map(|one| one.fault).collect::<Vec<_>>(), [Fault::BlobDamaged]);
        rig
    });
}

#[test]
fn a_check_tells_both_ways_and_spares_what_is_under_way() {
    run(|rig| async move {
        let other = rig.namespace("other").await;
        let kept = rig.put(&rig.ns, b"kept").await;
        let lost = rig.put(&rig.ns, b"lost").await;
        assert_eq!(rig.put(&other, b"lost").await, lost);
        let short = rig.put(&rig.ns, b"short").await;
        rig.open("without").await.unwrap().append(b"half").unwrap();
        let mut open = rig.open("open").await.unwrap();
        open.append(b"open").unwrap();
        let mut placed = rig.content.scratch(&rig.ns, Algorithm::Sha256).unwrap();
        placed.append(b"placed").unwrap();
        let commit = Commit { ingest: placed, size: None, expected: None, labels: Labels::new() };
        let placed = rig.content.place(&rig.auth, vec![commit]).unwrap();
        let mut scratch = rig.content.scratch(&rig.ns, Algorithm::Sha256).unwrap();
        scratch.append(b"scratch").unwrap();
        assert_eq!(rig.content.check(true).await.unwrap(), []);

        let content = rig.dir.path().join("content");
        let without = records::ingests::get(&rig.meta.read().unwrap(), &rig.ns, "without").unwrap().id;
        fs::remove_file(content.join("ingest").join(without.to_string())).unwrap();
        fs::remove_file(rig.blob(&lost)).unwrap();
        fs::remove_file(rig.blob(&short)).unwrap();
        fs::write(rig.blob(&short), "sho").unwrap();
        for stray in ["ingest/999999", "blobs/sha256/nonsense"] {
            fs::write(content.join(stray), "stray").unwrap();
        }
        fs::write(rig.blob(&sha(b"unrecorded")), "unrecorded").unwrap();
        let check = async |repair| {
            let found = rig.content.check(repair).await.unwrap();
            assert!(found.iter().all(|one| one.repaired == repair), "{found:?}");
            let mut faults: Vec<_> = found.into_iter().map(|one| one.fault).collect();
            faults.sort();
            faults
        };
        let all = [
            Fault::BlobMissing,
            Fault::BlobDamaged,
            Fault::BlobUnrecorded,
            Fault::BlobUnrecorded,
            Fault::IngestMissing,
            Fault::IngestUnrecorded,
        ];
        assert_eq!(check(false).await, all);
        assert_eq!(check(true).await, all);
        assert_eq!(check(false).await, []);

        assert_eq!(rig.content.read_verified(&rig.ns, &kept, 10).unwrap(), b"kept");
        for ns in [&rig.ns, &other] {
            assert_eq!(rig.content.info(ns, &lost).unwrap_err().code, Code::NotFound);
        }
        assert_eq!(rig.put(&rig.ns, b"lost").await, lost);
        assert_eq!(rig.content.read_verified(&rig.ns, &lost, 10).unwrap(), b"lost");
        rig.meta.write(&rig.auth, placed.rows()).await.unwrap();
        placed.done();
        open.commit(&rig.auth, None, None, Labels::new()).await.unwrap();
        scratch.commit(&rig.auth, None, None, Labels::new()).await.unwrap();
        assert_eq!(check(false).await, []);
        rig
    });
}

#[test]
fn bytes_that_the_disk_changed_are_found_told_and_replaced() {
    run(|rig| async move {
        let other = rig.namespace("other").await;
        let large = vec![7; 3 << 20];
        for text in [&b"fine"[..], b"bad", &large] {
            rig.put(&rig.ns, text).await;
        }
        let (bad, cured, gone) = (sha(b"bad"), rig.put(&rig.ns, b"cured").await, rig.put(&rig.ns, b"gone").await);
        rig.put(&other, b"bad").await;
        let scrub = || {
            let mut pass = rig.content.scrub().unwrap();
            let mut read = 0;
            while let Some(count) = pass.read(1 << 20).unwrap() {
                read += count;
            }
            read
        };
        let whole = large.len() + b"finebadcuredgone".len();
        assert_eq!(scrub(), whole);
        assert_eq!(rig.content.check(false).await.unwrap(), []);

        // Of the same size: only who reads it sees it.
        for (digest, text) in [(&bad, "sad"), (&cured, "CURED"), (&gone, "GONE")] {
            let path = rig.blob(digest);
            fs::remove_file(&path).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(rig.content.check(false).await.unwrap(), []);
        let before = records::events::last(&rig.meta.read().unwrap()).unwrap();
        assert_eq!(scrub(), whole);
        // Told once, wherever it is.
        scrub();
        let events = records::events::outbox_after(&rig.meta.read().unwrap(), before, 99).unwrap();
        let told: BTreeSet<_> = events
            .iter()
            .map(|e| (e.topic.as_str(), e.namespace.clone(), e.payload["digest"].as_str().unwrap().to_owned()))
            .collect();
        let expected = [(&rig.ns, &bad), (&other, &bad), (&rig.ns, &cured), (&rig.ns, &gone)]
            .map(|(ns, digest)| ("/content/damaged", ns.clone(), digest.to_string()));
        assert_eq!((events.len(), told), (4, BTreeSet::from(expected)));

        let found = async |repair| {
            let found = rig.content.check(repair).await.unwrap();
            assert!(found.iter().all(|one| one.fault == Fault::BlobDamaged && one.repaired == repair), "{found:?}");
            found.len()
        };
        assert_eq!(found(false).await, 3);
        // Stored again, or removed, it is fine.
        let mut ingest = rig.open("again").await.unwrap();
        ingest.append(b"cured").unwrap();
        ingest.commit(&rig.auth, None, None, Labels::new()).await.unwrap();
        rig.content.delete(&rig.auth, &rig.ns, &gone).await.unwrap();
        assert_eq!(found(false).await, 1);
        assert_eq!(found(true).await, 1);
        assert_eq!(found(false).await, 0);
        assert_eq!(rig.content.read_verified(&rig.ns, &cured, 10).unwrap(), b"cured");
        assert_eq!(rig.content.info(&other, &bad).unwrap_err().code, Code::NotFound);
        assert_eq!(rig.put(&rig.ns, b"bad").await, bad);
        scrub();
        assert_eq!(found(false).await, 0);
        rig
    });
}

/// What somebody has found by reading the next daemon knows, without reading all that there is.
#[test]
fn what_was_found_damaged_is_known_behind_a_restart() {
    run(|rig| async move {
        let (bad, fine) = (rig.put(&rig.ns, b"bad").await, rig.put(&rig.ns, b"fine").await);
        fs::remove_file(rig.blob(&bad)).unwrap();
        fs::write(rig.blob(&bad), "sad").unwrap();
        let whole = |rig: &Rig| [&bad, &fine].map(|digest| rig.content.is_whole(&rig.ns, digest).unwrap());
        assert_eq!(whole(&rig), [true, true], "nobody has read it");
        rig.content.suspect(&fine);
        // Who reads it for himself need not wait for that.
        assert_eq!(rig.content.read_verified(&rig.ns, &bad, 10).unwrap_err().code, Code::DataLoss);
        let begun = std::time::Instant::now();
        while whole(&rig)[0] {
            assert!(begun.elapsed().as_secs() < 30, "nobody else says it");
            actix_rt::task::yield_now().await;
        }
        let rig = rig.restart(|_| ()).await;
        assert_eq!(whole(&rig), [false, true]);
        let told = async |repair| {
            let found = rig.content.check(repair).await.unwrap();
            found.into_iter().map(|one| (one.fault, one.id)).collect::<Vec<_>>()
        };
        assert_eq!(told(false).await, [(Fault::BlobDamaged, format!("blob/{bad}"))]);
        assert_eq!(records::check::all(&rig.meta.read().unwrap()).unwrap(), [], "that is no count that is wrong");
        // A good file that somebody has put there is no damage, and a repair says so.
        fs::write(rig.blob(&bad), "bad").unwrap();
        assert_eq!(told(true).await, []);
        assert_eq!(whole(&rig), [true, true]);
        fs::write(rig.blob(&bad), "sad").unwrap();
        rig.content.suspect(&bad);
        assert_eq!(rig.put(&rig.ns, b"bad").await, bad);
        assert_eq!((whole(&rig), told(false).await), ([true, true], vec![]));
        rig
    });
}

/// What can't be removed, or looked at, is told beside what was done and what lies behind it.
#[test]
fn what_cant_be_put_right_is_told_and_ends_no_check() {
    run(|rig| async move {
        let mut blobs = Vec::new();
        for text in ["one", "two", "three", "four"] {
            blobs.push(rig.put(&rig.ns, text.as_bytes()).await);
        }
        blobs.sort();
        for blob in &blobs {
            fs::remove_file(rig.blob(blob)).unwrap();
        }
        // One whose file is a directory can't be removed, one whose file is a link can't be opened.
        fs::create_dir(rig.blob(&blobs[0])).unwrap();
        let length = rig.content.info(&rig.ns, &blobs[1]).unwrap().size as usize;
        std::os::unix::fs::symlink("x".repeat(length), rig.blob(&blobs[1])).unwrap();
        let altered = blobs[1].clone();
        rig.meta.write(&rig.auth, move |tx| records::content::damaged(tx, &altered)).await.unwrap();
        let found = rig.content.check(true).await.unwrap();
        let told: Vec<_> = found.iter().map(|one| (one.fault, one.repaired)).collect();
        let expected = [
            (Fault::BlobDamaged, true),
            (Fault::Unchecked, false),
            (Fault::BlobMissing, true),
            (Fault::BlobMissing, true),
            (Fault::BlobUnrecorded, false),
        ];
        assert_eq!(told, expected, "{found:?}");
        assert!(found[0].message.contains("its file can't be removed"), "{found:?}");
        assert_eq!((&found[1].id, &found[4].id), (&format!("blob/{}", blobs[1]), &format!("blob/{}", blobs[0])));
        fs::remove_dir(rig.blob(&blobs[0])).unwrap();
        rig
    });
}

/// A disk that takes nothing: what is there is read.
#[test]
fn a_store_on_a_disk_that_is_read_only_is_read() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    run(|rig| async move {
        let none = None::<&str>;
        let freeze = |dir: &std::path::Path| {
            mount(Some(dir), dir, none, MsFlags::MS_BIND, none).unwrap();
            mount(none, dir, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
        };
        let digest = rig.put(&rig.ns, b"kept").await;
        fs::write(rig.blob(&sha(b"stray")), "stray").unwrap();
        let rig = rig.restart(|rig| freeze(rig.dir.path())).await;
        assert_eq!(rig.content.read_verified(&rig.ns, &digest, 10).unwrap(), b"kept");
        let put = rig.content.put_bytes(&rig.auth, &rig.ns, Algorithm::Sha256, b"new".to_vec(), Labels::new());
        assert!(put.await.is_err());
        let found = rig.content.check(false).await.unwrap();
        let [stray] = &found[..] else { panic!("{found:?}") };
        assert!(stray.fault == Fault::BlobUnrecorded && !stray.message.contains("--repair"), "{stray:?}");
        rig.restart(|rig| umount2(rig.dir.path(), MntFlags::MNT_DETACH).unwrap()).await
    });
}
