//! Rows that can't be read: what they are of stays, and everything else is swept, checked, listed and read as ever.

use cofferdam_types::Fault;

use super::*;

/// The daemon ends, what is no record takes the place of a row, and another daemon starts.
async fn spoiled(rig: Rig, table: &'static str, key: String) -> Rig {
    rig.kernel.stop().await;
    let Rig { dir, kernel, meta, content, .. } = rig;
    drop((kernel, meta, content));
    let database = redb::Database::open(dir.path().join("meta.redb")).unwrap();
    let write = database.begin_write().unwrap();
    let table = redb::TableDefinition::<&[u8], &[u8]>::new(table);
    let was = write.open_table(table).unwrap().insert(key.as_bytes(), &b"\xff"[..]).unwrap().is_some();
    assert!(was, "{key:?} was there");
    write.commit().unwrap();
    drop(database);
    Rig::start(dir).await
}

/// The daemon ends, rows are lost, and another daemon starts.
async fn lost(rig: Rig, rows: &[(&'static str, String)]) -> Rig {
    rig.kernel.stop().await;
    let Rig { dir, kernel, meta, content, .. } = rig;
    drop((kernel, meta, content));
    let database = redb::Database::open(dir.path().join("meta.redb")).unwrap();
    let write = database.begin_write().unwrap();
    for (table, key) in rows {
        let table = redb::TableDefinition::<&[u8], &[u8]>::new(table);
        assert!(write.open_table(table).unwrap().remove(key.as_bytes()).unwrap().is_some(), "{key:?} was there");
    }
    write.commit().unwrap();
    drop(database);
    Rig::start(dir).await
}

/// What nobody has: an ingest's file, a scratch file, and a blob.
fn strays(rig: &Rig) -> [PathBuf; 3] {
    let content = rig.dir.path().join("content");
    let strays = [content.join("ingest/999999"), content.join("ingest/scratch-7"), rig.blob(&sha(b"unrecorded"))];
    strays.iter().for_each(|stray| fs::write(stray, "unrecorded").unwrap());
    strays
}

fn faults(found: Vec<cofferdam_types::Finding>) -> Vec<(Fault, bool)> {
    found.into_iter().map(|one| (one.fault, one.repaired)).collect()
}

fn ingest_file(rig: &Rig, reference: &str) -> PathBuf {
    let id = records::ingests::get(&rig.meta.read().unwrap(), &rig.ns, reference).unwrap().id;
    rig.dir.path().join("content/ingest").join(id.to_string())
}

#[test]
fn an_ingest_that_cant_be_read_keeps_its_file_and_the_rest_is_swept() {
    run(|rig| async move {
        for reference in ["first", "odd", "without"] {
            rig.open(reference).await.unwrap().append(b"half").unwrap();
        }
        let (kept, lost) = (ingest_file(&rig, "odd"), ingest_file(&rig, "without"));
        let damaged = rig.put(&rig.ns, b"damaged").await;
        let rig = spoiled(rig, "ingests", "default\0odd".into()).await;
        fs::remove_file(lost).unwrap();
        fs::remove_file(rig.blob(&damaged)).unwrap();
        let [numbered, scratch, blob] = strays(&rig);
        rig.content.sweep().await.unwrap();
        assert!(kept.exists() && numbered.exists(), "either may be its file");
        assert!(!scratch.exists() && !blob.exists());
        let listed = rig.content.statuses(&rig.ns, None, 10).unwrap();
        assert!(listed.iter().map(|one| &*one.reference).eq(["first"]), "what lost its file is dropped: {listed:?}");
        assert_eq!(faults(rig.content.check(true).await.unwrap()), [(Fault::BlobMissing, true)]);
        assert!(kept.exists());
        assert_eq!(rig.open("first").await.unwrap().offset(), 4);
        rig
    });
}

#[test]
fn a_count_that_cant_be_read_keeps_its_blob_and_what_is_behind_it_is_looked_at() {
    run(|rig| async move {
        let mut blobs = Vec::new();
        for n in 0..4 {
            blobs.push(rig.put(&rig.ns, format!("blob {n}").as_bytes()).await);
        }
        blobs.sort();
        let odd = blobs[1].to_string();
        let rig = spoiled(rig, "blobs", odd).await;
        fs::remove_file(rig.blob(&blobs[2])).unwrap();
        let length = fs::metadata(rig.blob(&blobs[3])).unwrap().len();
        fs::write(rig.blob(&blobs[3]), vec![b'x'; length as usize]).unwrap();
        let [.., stray] = strays(&rig);
        let swept = rig.content.sweep().await.unwrap();
        assert!(swept.damaged == 1 && !stray.exists(), "{swept:?}");
        let mut scrub = rig.content.scrub().unwrap();
        while scrub.read(1 << 20).unwrap().is_some() {}
        let mut found = faults(rig.content.check(true).await.unwrap());
        found.sort();
        assert_eq!(found, [(Fault::BlobMissing, true), (Fault::BlobDamaged, true)]);
        assert!(rig.blob(&blobs[0]).exists() && rig.blob(&blobs[1]).exists());
        // Stored again it is the same one; linked once more, it is counted anew.
        let other = rig.namespace("other").await;
        let text = fs::read(rig.blob(&blobs[1])).unwrap();
        assert_eq!(rig.put(&rig.ns, &text).await, blobs[1]);
        assert_eq!(rig.put(&other, &text).await, blobs[1]);
        assert_eq!(records::content::blob(&rig.meta.read().unwrap(), &blobs[1]).unwrap().unwrap().links, 2);
        rig
    });
}

#[test]
fn a_namespace_that_cant_be_read_is_swept_and_checked_like_the_others() {
    run(|rig| async move {
        for reference in ["lost", "resumable"] {
            rig.open(reference).await.unwrap().append(b"half").unwrap();
        }
        let lost = ingest_file(&rig, "lost");
        let (kept, gone) = (rig.put(&rig.ns, b"kept").await, rig.put(&rig.ns, b"gone").await);
        let rig = spoiled(rig, "namespaces", "default".into()).await;
        fs::remove_file(lost).unwrap();
        fs::remove_file(rig.blob(&gone)).unwrap();
        let strays = strays(&rig);
        rig.content.sweep().await.unwrap();
        assert!(strays.iter().all(|stray| !stray.exists()));
        assert_eq!(rig.content.statuses(&rig.ns, None, 10).unwrap().len(), 1);
        assert_eq!(faults(rig.content.check(true).await.unwrap()), [(Fault::BlobMissing, true)]);
        assert_eq!(rig.content.info(&rig.ns, &gone).unwrap_err().code, Code::NotFound);
        assert_eq!(rig.content.read_verified(&rig.ns, &kept, 10).unwrap(), b"kept");
        assert_eq!(rig.put(&rig.ns, b"gone").await, gone);
        rig
    });
}

/// Its bytes are gone, and one of its links can't be read: it can't be taken off the records, and the check goes on.
#[test]
fn a_link_that_cant_be_read_ends_no_repair() {
    run(|rig| async move {
        let mut blobs = [rig.put(&rig.ns, b"one").await, rig.put(&rig.ns, b"two").await];
        blobs.sort();
        let rig = spoiled(rig, "content", format!("default\0{}", blobs[0])).await;
        blobs.iter().for_each(|blob| fs::remove_file(rig.blob(blob)).unwrap());
        let found = rig.content.check(true).await.unwrap();
        assert!(found[0].message.contains("cannot be read"), "{found:?}");
        assert_eq!(faults(found), [(Fault::BlobMissing, false), (Fault::BlobMissing, true)]);
        rig
    });
}

/// A count that is lost, or a namespace's own row, says nothing of who has a blob: his link does.
#[test]
fn a_blob_whose_count_is_lost_stays_for_those_who_link_it() {
    run(|rig| async move {
        let (other, third) = (rig.namespace("other").await, rig.namespace("third").await);
        let blob = rig.put(&rig.ns, b"theirs").await;
        rig.put(&other, b"theirs").await;
        let rig = lost(rig, &[("blobs", blob.to_string()), ("namespaces", "other".into())]).await;
        rig.content.sweep().await.unwrap();
        assert!(rig.blob(&blob).exists(), "no start takes it");
        assert_eq!(rig.content.check(true).await.unwrap(), []);
        rig.put(&third, b"theirs").await;
        for ns in [&third, &rig.ns] {
            rig.content.delete(&rig.auth, ns, &blob).await.unwrap();
            assert_eq!(rig.content.read_verified(&other, &blob, 10).unwrap(), b"theirs");
        }
        // Its bytes are gone: it goes from the namespace without a row too, and is told once.
        fs::remove_file(rig.blob(&blob)).unwrap();
        assert_eq!(faults(rig.content.check(true).await.unwrap()), [(Fault::BlobMissing, true)]);
        assert_eq!(rig.content.check(true).await.unwrap(), []);
        rig
    });
}
