//! The conformance suite of the reference (section 5.6) and what it does not ask: confinement, crashes, damage.

mod check;
mod resume;
mod unreadable;

use std::{
    fs,
    future::Future,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{Metadata, records};
use cofferdam_types::{Algorithm, Authority, Code, Digest, Labels, Name, Namespace, Timestamp};

use super::*;

struct Rig {
    dir: tempfile::TempDir,
    kernel: Kernel,
    meta: Metadata,
    content: Content,
    auth: Authority,
    ns: Namespace,
}

impl Rig {
    async fn start(dir: tempfile::TempDir) -> Rig {
        let kernel = Kernel::new().unwrap();
        let meta = Metadata::start(&kernel, Placement::Own, &dir.path().join("meta.redb")).unwrap();
        let root = dir.path().join("content");
        fs::create_dir_all(&root).unwrap();
        let root = fs::File::open(&root).unwrap().into();
        let content = Content::start(&kernel, Placement::Shared("test"), meta.clone(), root).unwrap();
        kernel.ready().await.unwrap();
        Rig { dir, kernel, meta, content, auth: Authority::system(), ns: Namespace::default_namespace() }
    }

    /// The daemon ends and another one starts; `between` sees the disk meanwhile.
    async fn restart(self, between: impl FnOnce(&Rig)) -> Rig {
        self.kernel.stop().await;
        between(&self);
        let Rig { dir, kernel, meta, content, .. } = self;
        drop((kernel, meta, content));
        Rig::start(dir).await
    }

    async fn namespace(&self, name: &str) -> Namespace {
        let ns = Namespace::new(name).unwrap();
        let made = ns.clone();
        let create =
            move |tx: &mut cofferdam_metadata::Tx<'_>| records::namespaces::create(tx, &made, &Labels::new()).map(drop);
        self.meta.write(&self.auth, create).await.unwrap();
        ns
    }

    async fn open(&self, reference: &str) -> cofferdam_types::Result<Ingest> {
        self.content.ingest(&self.auth, &self.ns, options(reference)).await
    }

    async fn put(&self, ns: &Namespace, bytes: &[u8]) -> Digest {
        let put = self.content.put_bytes(&self.auth, ns, Algorithm::Sha256, bytes.to_vec(), Labels::new());
        put.await.unwrap()
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("content/blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// How many files the store has: blobs, and ingests.
    fn files(&self) -> (usize, usize) {
        let count = |dir: &str| fs::read_dir(self.dir.path().join("content").join(dir)).unwrap().count();
        (["blobs/sha256", "blobs/sha512", "blobs/blake3"].map(count).iter().sum(), count("ingest"))
    }
}

fn run<F: Future<Output = Rig>>(test: impl FnOnce(Rig) -> F) {
    actix_rt::System::new().block_on(async {
        let rig = test(Rig::start(tempfile::tempdir().unwrap()).await).await;
        rig.kernel.stop().await;
    });
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn options(reference: &str) -> IngestOptions {
    IngestOptions::new(name(reference))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Bytes that differ from one seed to the next.
fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) ^ (i >> 8) as u8).collect()
}

fn sha(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

// "Writer": four writers at once, with every combination of known and unknown size and digest.
#[test]
fn writer() {
    run(|rig| async move {
        let before = Timestamp::now();
        let mut writers = Vec::new();
        for seed in 0..4u8 {
            let data = bytes(seed, 1000 + usize::from(seed));
            let total = (seed & 1 != 0).then_some(data.len() as u64);
            let expected = (seed & 2 != 0).then(|| sha(&data));
            let options = IngestOptions { total, expected, ..options(&format!("c{seed}")) };
            writers.push((rig.content.ingest(&rig.auth, &rig.ns, options).await.unwrap(), data));
        }
        for (ingest, data) in &mut writers {
            for chunk in data.chunks(32) {
                ingest.write_all(chunk).unwrap();
            }
        }
        for (ingest, data) in writers {
            assert_eq!(ingest.offset(), data.len() as u64);
            let wanted = labels(&[("k1", "v1"), ("k2", "v2")]);
            let digest = ingest.commit(&rig.auth, None, None, wanted.clone()).await.unwrap();
            assert_eq!(digest, sha(&data));
            let info = rig.content.info(&rig.ns, &digest).unwrap();
            assert_eq!((info.size, &info.digest, info.labels), (data.len() as u64, &digest, wanted));
            for time in [info.created, info.updated] {
                assert!(before <= time && time <= Timestamp::now());
            }
            let path = rig.blob(&digest);
            assert_eq!(fs::read(&path).unwrap(), data);
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o400);
        }
        assert_eq!(rig.files(), (4, 0));
        assert_eq!(rig.content.statuses(&rig.ns, None, 10).unwrap(), []);
        assert_eq!(rig.content.list(&rig.ns, None, 10).unwrap().len(), 4);
        rig
    });
}

// "UploadStatus".
#[test]
fn upload_status() {
    run(|rig| async move {
        let data = bytes(9, 256);
        let opened = IngestOptions { total: Some(256), expected: Some(sha(&data)), ..options("status") };
        let mut ingest = rig.content.ingest(&rig.auth, &rig.ns, opened).await.unwrap();
        let first = rig.content.status(&rig.ns, &name("status")).unwrap();
        assert_eq!((first.offset, first.total, &first.expected), (0, Some(256), &Some(sha(&data))));
        let mut updated = first.updated;
        for (from, to) in [(0, 64), (64, 192), (192, 256)] {
            ingest.append(&data[from..to]).unwrap();
            assert_eq!(ingest.digest_so_far(), sha(&data[..to]));
            let status = rig.content.status(&rig.ns, &name("status")).unwrap();
            assert_eq!((&status.reference, status.offset), (&name("status"), to as u64));
            assert_eq!((status.started, ingest.started()), (first.started, first.started));
            assert!(status.updated >= updated);
            assert_eq!(status.updated, ingest.updated().unwrap());
            updated = status.updated;
            assert_eq!(rig.content.statuses(&rig.ns, None, 10).unwrap(), [status]);
        }
        ingest.commit(&rig.auth, Some(256), Some(&sha(&data)), Labels::new()).await.unwrap();
        assert_eq!(rig.content.status(&rig.ns, &name("status")).unwrap_err().code, Code::NotFound);
        rig
    });
}

// "Resume", in the same daemon and in the next.
#[test]
fn resume() {
    run(|mut rig| async move {
        for (round, restart) in [(1, false), (2, true)] {
            let (data, reference) = (bytes(round, 256), format!("resume-{round}"));
            let opened = IngestOptions { total: Some(256), expected: Some(sha(&data)), ..options(&reference) };
            let mut ingest = rig.content.ingest(&rig.auth, &rig.ns, opened.clone()).await.unwrap();
            ingest.append(&data[..128]).unwrap();
            drop(ingest);
            let status = rig.content.status(&rig.ns, &name(&reference)).unwrap();
            assert_eq!((status.offset, status.total), (128, Some(256)));
            if restart {
                rig = rig.restart(|_| ()).await;
            }
            let mut ingest = rig.content.ingest(&rig.auth, &rig.ns, opened).await.unwrap();
            assert_eq!(rig.content.status(&rig.ns, &name(&reference)).unwrap(), status);
            assert_eq!((ingest.offset(), ingest.digest_so_far()), (128, sha(&data[..128])));
            assert_eq!((ingest.started(), ingest.updated().unwrap()), (status.started, status.updated));
            ingest.append(&data[128..]).unwrap();
            ingest.commit(&rig.auth, Some(256), None, Labels::new()).await.unwrap();
            assert_eq!(rig.content.info(&rig.ns, &sha(&data)).unwrap().size, 256);
        }
        rig
    });
}

#[test]
fn what_was_written_ahead_is_found_by_the_next() {
    run(|mut rig| async move {
        let data = bytes(7, 4 << 20);
        let (total, expected) = (Some(4 << 20), Some(sha(&data)));
        let opened = IngestOptions { total, expected, unread: true, ..options("far") };
        let mut ingest = rig.content.ingest(&rig.auth, &rig.ns, opened.clone()).await.unwrap();
        assert!(ingest.left().is_empty());
        ingest.append(&data[..300_000]).unwrap();
        let ahead = ingest.ahead().unwrap().unwrap();
        ahead.write_at(&data[2 << 20..3 << 20], 2 << 20).unwrap();
        assert_eq!(ahead.write_at(b"xx", (4 << 20) - 1).unwrap_err().code, Code::OutOfRange);
        drop((ingest, ahead));
        rig = rig.restart(|_| ()).await;
        // Who makes no use of it has the beginning alone.
        let ingest =
            rig.content.ingest(&rig.auth, &rig.ns, IngestOptions { unread: true, ..opened.clone() }).await.unwrap();
        let [(0, first), (2_097_152, 3_145_728)] = ingest.left()[..] else { panic!("{:?}", ingest.left()) };
        assert!((100_000..=300_000).contains(&first), "{first}");
        drop(ingest);
        let mut ingest = rig.content.ingest(&rig.auth, &rig.ns, opened.clone()).await.unwrap();
        let mut buffer = vec![0; first as usize];
        ingest.recover(&mut buffer).unwrap();
        assert!(buffer == data[..first as usize] && ingest.digest_so_far() == sha(&buffer));
        ingest.append(&data[first as usize..2 << 20]).unwrap();
        ingest.recover(&mut vec![0; 1 << 20]).unwrap();
        ingest.append(&data[3 << 20..]).unwrap();
        ingest.commit(&rig.auth, Some(4 << 20), None, Labels::new()).await.unwrap();

        // Opened without a word of holes it goes on behind the first piece.
        let data = bytes(8, 4 << 20);
        let opened = IngestOptions { total, expected: Some(sha(&data)), ..options("near") };
        let mut ingest = rig.content.ingest(&rig.auth, &rig.ns, opened.clone()).await.unwrap();
        ingest.append(&data[..300_000]).unwrap();
        ingest.ahead().unwrap().unwrap().write_at(&data[2 << 20..], 2 << 20).unwrap();
        drop(ingest);
        let ingest = rig.content.ingest(&rig.auth, &rig.ns, opened).await.unwrap();
        assert_eq!((ingest.offset(), ingest.digest_so_far()), (first, sha(&data[..first as usize])));
        rig
    });
}

// "Labels".
#[test]
fn label_updates() {
    run(|rig| async move {
        let mut ingest = rig.open("labels").await.unwrap();
        ingest.append(b"x").unwrap();
        let digest = ingest.commit(&rig.auth, None, None, labels(&[("k1", "v1"), ("k2", "v2")])).await.unwrap();
        let old = rig.content.info(&rig.ns, &digest).unwrap();
        let given = labels(&[("k1", "v1"), ("k2", "changed"), ("k3", "v3")]);
        let info = rig.content.update(&rig.auth, &rig.ns, &digest, given.clone(), vec![]).await.unwrap();
        assert_eq!((info.labels, info.created), (given, old.created));
        assert!(info.updated > old.updated);
        let mask = vec!["labels.k3".to_owned(), "labels.k1".to_owned()];
        let given = labels(&[("k1", ""), ("k2", "ignored"), ("k3", "v3b")]);
        let info = rig.content.update(&rig.auth, &rig.ns, &digest, given, mask).await.unwrap();
        assert_eq!(info.labels, labels(&[("k2", "changed"), ("k3", "v3b")]));
        assert_eq!(rig.content.info(&rig.ns, &digest).unwrap(), info);
        for (filter, wanted) in [
            (format!("digest==\"{digest}\""), true),
            ("labels.k2==changed,labels.k3".to_owned(), true),
            ("labels.k1".to_owned(), false),
            ("size".to_owned(), false),
        ] {
            let filter = cofferdam_types::Filter::parse(&filter).unwrap();
            assert_eq!(filter.matches(&|path| field(&info, path)), wanted, "{filter:?}");
        }
        rig
    });
}

// TestContentWriter, but for its last line: here a namespace is told that it has the blob.
#[test]
fn content_writer() {
    run(|rig| async move {
        drop(rig.open("ref").await.unwrap());
        let mut ingest = rig.open("ref").await.unwrap();
        assert_eq!(rig.open("ref").await.unwrap_err().code, Code::Unavailable);
        let statuses = rig.content.statuses(&rig.ns, None, 10).unwrap();
        assert_eq!(statuses.iter().map(|s| (&*s.reference, s.offset)).collect::<Vec<_>>(), [("ref", 0)]);
        let data = bytes(3, 4 << 20);
        ingest.write_all(&data).unwrap();
        let digest = ingest.commit(&rig.auth, Some(4 << 20), Some(&sha(&data)), Labels::new()).await.unwrap();
        assert_eq!(fs::read(rig.blob(&digest)).unwrap(), data);

        let mut again = rig.open("other").await.unwrap();
        again.write_all(&data).unwrap();
        let error = again.commit(&rig.auth, None, None, Labels::new()).await.unwrap_err();
        assert_eq!(error.code, Code::AlreadyExists);
        let expecting = IngestOptions { expected: Some(digest), ..options("third") };
        let error = rig.content.ingest(&rig.auth, &rig.ns, expecting).await.unwrap_err();
        assert_eq!(error.code, Code::AlreadyExists);
        assert_eq!((rig.files(), rig.content.statuses(&rig.ns, None, 10).unwrap()), ((1, 0), vec![]));
        rig
    });
}

// TestWriterTruncateRecoversFromIncompleteWrite, TestWalkBlobs.
#[test]
fn truncate_and_walk() {
    run(|rig| async move {
        let mut ingest = rig.open("t").await.unwrap();
        ingest.append(b"incomplete and wrong").unwrap();
        drop(ingest);
        let mut ingest = rig.open("t").await.unwrap();
        ingest.truncate().unwrap();
        assert_eq!((ingest.offset(), ingest.digest_so_far()), (0, sha(b"")));
        ingest.append(b"whole").unwrap();
        ingest.commit(&rig.auth, Some(5), Some(&sha(b"whole")), Labels::new()).await.unwrap();

        let mut wanted: Vec<Digest> = vec![sha(b"whole")];
        let mut commits = Vec::new();
        for seed in 0..79 {
            let mut ingest = rig.content.scratch(&rig.ns, Algorithm::ALL[seed % 3]).unwrap();
            ingest.append(&bytes(seed as u8, 100 + seed)).unwrap();
            wanted.push(ingest.digest_so_far());
            commits.push(Commit { ingest, size: None, expected: None, labels: Labels::new() });
        }
        assert_eq!(rig.content.commit_many(&rig.auth, commits).await.unwrap(), wanted[1..]);
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = rig.content.list(&rig.ns, after.as_ref(), 7).unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.digest.clone());
            seen.extend(page.into_iter().map(|info| info.digest));
        }
        wanted.sort_by_key(Digest::to_string);
        assert_eq!(seen, wanted);
        assert_eq!(rig.files(), (80, 0));
        rig
    });
}

#[test]
fn a_wrong_size_or_digest_is_data_loss_and_the_ingest_stays() {
    run(|rig| async move {
        let mut ingest = rig.open("w").await.unwrap();
        ingest.append(b"abc").unwrap();
        let error = ingest.commit(&rig.auth, Some(4), None, Labels::new()).await.unwrap_err();
        assert_eq!(error.code, Code::DataLoss, "{error}");
        let ingest = rig.open("w").await.unwrap();
        assert_eq!(ingest.offset(), 3);
        let error = ingest.commit(&rig.auth, None, Some(&sha(b"abd")), Labels::new()).await.unwrap_err();
        assert_eq!(error.code, Code::DataLoss, "{error}");
        assert_eq!(rig.files(), (0, 1));

        let limited = IngestOptions { total: Some(4), ..options("w") };
        let mut ingest = rig.content.ingest(&rig.auth, &rig.ns, limited).await.unwrap();
        assert_eq!(ingest.append(b"de").unwrap_err().code, Code::OutOfRange);
        ingest.append(b"d").unwrap();
        ingest.commit(&rig.auth, Some(4), Some(&sha(b"abcd")), Labels::new()).await.unwrap();
        let other = IngestOptions { total: Some(5), ..options("v") };
        drop(rig.content.ingest(&rig.auth, &rig.ns, other).await.unwrap());
        let other = IngestOptions { total: Some(6), ..options("v") };
        assert_eq!(rig.content.ingest(&rig.auth, &rig.ns, other).await.unwrap_err().code, Code::InvalidArgument);
        rig.content.abort(&rig.auth, &rig.ns, &name("v")).await.unwrap();
        assert_eq!(rig.files(), (1, 0));
        rig
    });
}

#[test]
fn a_batch_that_fails_leaves_nothing() {
    run(|rig| async move {
        let missing = Namespace::new("missing").unwrap();
        assert_eq!(rig.content.scratch(&missing, Algorithm::Sha256).unwrap_err().code, Code::NotFound);
        let commit = |data: &[u8], expected: Option<Digest>| {
            let mut ingest = rig.content.scratch(&rig.ns, Algorithm::Sha256).unwrap();
            ingest.append(data).unwrap();
            Commit { ingest, size: None, expected, labels: Labels::new() }
        };
        let batch = vec![commit(b"a", None), commit(b"b", Some(sha(b"c")))];
        assert_eq!(rig.content.commit_many(&rig.auth, batch).await.unwrap_err().code, Code::DataLoss);
        assert_eq!(rig.files(), (0, 0));

        // The second fails only once the first has been moved into place.
        let mut aborted = rig.open("aborted").await.unwrap();
        aborted.append(b"d").unwrap();
        rig.content.abort(&rig.auth, &rig.ns, &name("aborted")).await.unwrap();
        assert_eq!(rig.content.abort(&rig.auth, &rig.ns, &name("aborted")).await.unwrap_err().code, Code::NotFound);
        let mut kept = rig.open("kept").await.unwrap();
        kept.append(b"e").unwrap();
        let aborted = Commit { ingest: aborted, size: None, expected: None, labels: Labels::new() };
        let kept = Commit { ingest: kept, size: None, expected: None, labels: Labels::new() };
        let batch = vec![commit(b"a", None), kept, aborted];
        assert_eq!(rig.content.commit_many(&rig.auth, batch).await.unwrap_err().code, Code::FailedPrecondition);
        assert_eq!((rig.files(), rig.content.list(&rig.ns, None, 9).unwrap()), ((0, 1), vec![]));
        assert_eq!(rig.open("kept").await.unwrap().digest_so_far(), sha(b"e"));

        // One blob twice in a batch, and once more after it, with labels that add up.
        let with = |key: &str| Commit { labels: labels(&[(key, "x")]), ..commit(b"twice", None) };
        let batch = vec![with("a"), with("b")];
        rig.content.commit_many(&rig.auth, batch).await.unwrap();
        rig.content.commit_many(&rig.auth, vec![with("c")]).await.unwrap();
        let info = rig.content.info(&rig.ns, &sha(b"twice")).unwrap();
        assert_eq!(info.labels, labels(&[("a", "x"), ("b", "x"), ("c", "x")]));
        assert_eq!(rig.files(), (1, 1));
        rig
    });
}

// Z7 of the negative tests: knowing a digest grants nothing.
#[test]
fn z7_a_namespace_sees_what_it_presented_and_nothing_else() {
    run(|rig| async move {
        let other = rig.namespace("other").await;
        let digest = rig.put(&rig.ns, b"secret").await;
        assert_eq!(rig.content.reader(&other, &digest).unwrap_err().code, Code::NotFound);
        assert_eq!(rig.content.info(&other, &digest).unwrap_err().code, Code::NotFound);
        assert_eq!(rig.content.delete(&rig.auth, &other, &digest).await.unwrap_err().code, Code::NotFound);
        assert_eq!(rig.content.list(&other, None, 10).unwrap(), []);

        // Expecting it is no error and no shortcut: all bytes must come.
        let expecting = IngestOptions { expected: Some(digest.clone()), ..options("mine") };
        let mut ingest = rig.content.ingest(&rig.auth, &other, expecting).await.unwrap();
        assert_eq!(ingest.offset(), 0);
        ingest.append(b"secre").unwrap();
        assert_eq!(ingest.commit(&rig.auth, None, None, Labels::new()).await.unwrap_err().code, Code::DataLoss);
        assert_eq!(rig.content.info(&other, &digest).unwrap_err().code, Code::NotFound);
        let mut ingest = rig.content.ingest(&rig.auth, &other, options("mine")).await.unwrap();
        ingest.append(b"t").unwrap();
        ingest.commit(&rig.auth, None, None, Labels::new()).await.unwrap();
        assert_eq!(rig.files(), (1, 0), "stored once");

        // The file goes with the last link, under the eyes of a reader.
        let reader = rig.content.reader(&rig.ns, &digest).unwrap();
        rig.content.delete(&rig.auth, &rig.ns, &digest).await.unwrap();
        assert_eq!(rig.content.reader(&rig.ns, &digest).unwrap_err().code, Code::NotFound);
        assert_eq!(rig.content.read_verified(&other, &digest, 10).unwrap(), b"secret");
        rig.content.delete(&rig.auth, &other, &digest).await.unwrap();
        assert_eq!(rig.files(), (0, 0));
        assert_eq!(reader.read_verified(10).unwrap(), b"secret");
        rig
    });
}

#[test]
fn readers() {
    run(|rig| async move {
        let data = bytes(7, 100_000);
        let digest = rig.put(&rig.ns, &data).await;
        let mut reader = rig.content.reader(&rig.ns, &digest).unwrap();
        assert_eq!((reader.size(), reader.digest()), (100_000, &digest));
        let mut buffer = vec![0; 60_000];
        assert_eq!(reader.read_at(&mut buffer, 70_000).unwrap(), 30_000);
        assert_eq!(buffer[..30_000], data[70_000..]);
        assert_eq!(reader.read_at(&mut buffer, 100_001).unwrap(), 0);
        assert_eq!(reader.seek(SeekFrom::End(-10)).unwrap(), 99_990);
        let mut tail = Vec::new();
        reader.read_to_end(&mut tail).unwrap();
        assert_eq!(tail, data[99_990..]);
        assert!(reader.seek(SeekFrom::Current(-200_000)).is_err());
        reader.seek(SeekFrom::Start(99_999)).unwrap();
        reader.verify().unwrap();
        assert_eq!(reader.read_verified(99_999).unwrap_err().code, Code::ResourceExhausted);
        let mut file = reader.into_file().unwrap();
        tail.clear();
        file.read_to_end(&mut tail).unwrap();
        assert_eq!(tail, data[99_999..]);
        assert!(file.write_all(b"x").is_err(), "read-only, even for root");
        rig
    });
}

// Files of length 0 after a power cut, and bits that flip: found, told, and cured by fetching again.
#[test]
fn damage_is_found_and_can_be_cured() {
    run(|rig| async move {
        let digest = rig.put(&rig.ns, b"precious").await;
        let damage = |with: &[u8]| {
            fs::remove_file(rig.blob(&digest)).unwrap();
            fs::write(rig.blob(&digest), with).unwrap();
        };
        damage(b"preciouz");
        let error = rig.content.read_verified(&rig.ns, &digest, 100).unwrap_err();
        assert_eq!(error.code, Code::DataLoss);
        assert_eq!(rig.content.reader(&rig.ns, &digest).unwrap().verify().unwrap_err().code, Code::DataLoss);
        rig.put(&rig.ns, b"precious").await;
        assert_eq!(rig.content.read_verified(&rig.ns, &digest, 100).unwrap(), b"precious");

        for with in [Some(&b""[..]), None] {
            damage(b"");
            if with.is_none() {
                fs::remove_file(rig.blob(&digest)).unwrap();
            }
            assert!(rig.content.reader(&rig.ns, &digest).is_err());
            assert_eq!(rig.content.sweep().await.unwrap(), Swept { damaged: 1, ..Swept::default() });
            let expecting = IngestOptions { expected: Some(digest.clone()), ..options("again") };
            let mut ingest = rig.content.ingest(&rig.auth, &rig.ns, expecting).await.unwrap();
            ingest.append(b"precious").unwrap();
            ingest.commit(&rig.auth, None, None, Labels::new()).await.unwrap();
            assert_eq!(rig.content.read_verified(&rig.ns, &digest, 100).unwrap(), b"precious");
            assert_eq!(rig.content.sweep().await.unwrap(), Swept::default());
        }
        rig
    });
}

#[test]
fn the_start_sweeps_what_a_crash_left() {
    run(|rig| async move {
        let kept = rig.put(&rig.ns, b"kept").await;
        for reference in ["resumable", "lost"] {
            rig.open(reference).await.unwrap().append(b"half").unwrap();
        }
        let lost = records::ingests::get(&rig.meta.read().unwrap(), &rig.ns, "lost").unwrap().id;
        let rig = rig
            .restart(|rig| {
                let content = rig.dir.path().join("content");
                fs::remove_file(content.join("ingest").join(lost.to_string())).unwrap();
                for stray in ["ingest/999999", "ingest/scratch-0", "blobs/sha256/nonsense"] {
                    fs::write(content.join(stray), "stray").unwrap();
                }
                // Moved into place, and then the power went.
                fs::write(rig.blob(&Digest::of(Algorithm::Blake3, b"unrecorded")), "unrecorded").unwrap();
            })
            .await;
        // The sweep of the start runs beside us; this one comes out the same whichever is first.
        let mut scratch = rig.content.scratch(&rig.ns, Algorithm::Sha256).unwrap();
        scratch.append(b"open").unwrap();
        rig.content.sweep().await.unwrap();
        assert_eq!(rig.files(), (1, 2));
        assert_eq!(rig.content.read_verified(&rig.ns, &kept, 10).unwrap(), b"kept");
        assert_eq!(rig.content.statuses(&rig.ns, None, 10).unwrap().len(), 1);
        assert_eq!(rig.open("resumable").await.unwrap().offset(), 4);
        let digest = scratch.commit(&rig.auth, None, None, Labels::new()).await.unwrap();
        assert_eq!(digest, sha(b"open"));
        assert_eq!(rig.content.sweep().await.unwrap(), Swept::default());
        rig
    });
}

/// What a job has placed: kept from being removed, seen by jobs of its namespace alone, and an ingest again if it fails.
#[test]
fn what_is_placed_is_neither_seen_nor_removed() {
    run(|rig| async move {
        let other = rig.namespace("other").await;
        let digest = rig.put(&rig.ns, b"abc").await;
        let place = |ns: &Namespace| {
            let mut ingest = rig.content.scratch(ns, Algorithm::Sha256).unwrap();
            ingest.append(b"abc").unwrap();
            let commit = Commit { ingest, size: Some(3), expected: None, labels: Labels::new() };
            rig.content.place(&rig.auth, vec![commit]).unwrap()
        };
        let (first, second) = (place(&other), place(&other));
        rig.content.delete(&rig.auth, &rig.ns, &digest).await.unwrap();
        rig.content.sweep().await.unwrap();
        assert_eq!(rig.content.reader(&other, &digest).unwrap_err().code, Code::NotFound);
        assert_eq!(rig.content.job_reader(&rig.ns, &digest).unwrap_err().code, Code::NotFound);
        rig.content.job_holds(&other, &digest).unwrap();
        assert_eq!(rig.content.job_reader(&other, &digest).unwrap().read_verified(10).unwrap(), b"abc");
        drop(first);
        rig.content.job_reader(&other, &digest).unwrap();
        second.sync().await.unwrap();
        rig.meta.write(&rig.auth, second.rows()).await.unwrap();
        second.done();
        assert_eq!(rig.content.read_verified(&other, &digest, 10).unwrap(), b"abc");
        assert_eq!(rig.files(), (1, 0));
        rig.content.delete(&rig.auth, &other, &digest).await.unwrap();

        // A failed job whose file is in the place of a recorded blob's by now.
        let kept = rig.put(&rig.ns, b"abc").await;
        place(&other).withdraw(std::time::Instant::now());
        assert_eq!(rig.content.read_verified(&rig.ns, &kept, 10).unwrap(), b"abc");
        rig.content.delete(&rig.auth, &rig.ns, &kept).await.unwrap();

        let mut ingest = rig.open("far").await.unwrap();
        ingest.append(b"abc").unwrap();
        let commit = Commit { ingest, size: None, expected: None, labels: Labels::new() };
        drop(rig.content.place(&rig.auth, vec![commit]).unwrap());
        assert_eq!(rig.open("far").await.unwrap().offset(), 3, "it can be gone on with");
        let commit =
            Commit { ingest: rig.open("far").await.unwrap(), size: None, expected: None, labels: Labels::new() };
        rig.content.place(&rig.auth, vec![commit]).unwrap().withdraw(std::time::Instant::now());
        assert_eq!(rig.content.statuses(&rig.ns, None, 10).unwrap().len(), 0);
        assert_eq!(rig.files(), (0, 0));
        rig
    });
}

#[test]
fn a_crash_of_the_actor_does_not_touch_open_ingests_and_readers() {
    run(|rig| async move {
        let digest = rig.put(&rig.ns, b"abc").await;
        let reader = rig.content.reader(&rig.ns, &digest).unwrap();
        let mut ingest = rig.open("open").await.unwrap();
        ingest.append(b"be").unwrap();
        rig.kernel.poison("content").unwrap();
        let crashed = || rig.kernel.statuses().iter().any(|slot| slot.name == "content" && slot.restarts > 0);
        while !crashed() || rig.content.sweep().await.is_err() {
            actix_rt::task::yield_now().await;
        }
        ingest.append(b"fore").unwrap();
        assert_eq!(rig.open("open").await.unwrap_err().code, Code::Unavailable, "still held");
        ingest.commit(&rig.auth, None, Some(&sha(b"before")), Labels::new()).await.unwrap();
        assert_eq!(reader.read_verified(10).unwrap(), b"abc");
        rig
    });
}

// One deletes while others present the same bytes: whoever has a link has a file.
#[test]
fn a_deletion_never_takes_the_file_of_a_concurrent_commit() {
    run(|rig| async move {
        let spaces = [rig.ns.clone(), rig.namespace("one").await, rig.namespace("two").await];
        let (content, auth) = (rig.content.clone(), rig.auth.clone());
        let work = actix_rt::task::spawn_blocking(move || {
            std::thread::scope(|scope| {
                for ns in &spaces {
                    let (content, auth) = (&content, &auth);
                    scope.spawn(move || {
                        for _ in 0..15 {
                            let put = content.put_bytes_blocking(auth, ns, Algorithm::Sha256, b"same", Labels::new());
                            let digest = put.unwrap();
                            assert_eq!(content.read_verified(ns, &digest, 10).unwrap(), b"same");
                            let delete = content.delete(auth, ns, &digest);
                            cofferdam_kernel::block_on(delete).unwrap();
                        }
                    });
                }
            });
        });
        work.await.unwrap();
        assert_eq!(rig.files(), (0, 0));
        rig
    });
}
