//! Records and files compared beside ordinary work.

use cofferdam_types::Fault;

use super::*;

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
