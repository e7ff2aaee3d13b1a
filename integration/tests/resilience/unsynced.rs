//! What a daemon that was killed has written and not synced: memory has it, and so has whoever reads it next. Only a power cut
//! shows what the disk has.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use cofferdam_audit::{Record, Verdict, files::Log};
use cofferdam_content::{Content, IngestOptions};
use cofferdam_events::Journal;
use cofferdam_integration::{DEADLINE, Mounted};
use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{Metadata, records::ingests};
use cofferdam_types::{Algorithm, Authority, Digest, Event, Name, Namespace};

const MIB: usize = 64;

/// The file system after a power cut that leaves what the disk has by now.
fn cut(dir: &Path, disk: &Mounted) -> Mounted {
    let place = dir.join("cut");
    fs::create_dir(&place).unwrap();
    Mounted::of(&place, disk.platter.image())
}

/// The only segments, in order.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// Writes what `whole` has more than `there`, and syncs none of it.
fn go_on(there: &Path, whole: &Path) {
    for segment in segments(whole) {
        let (bytes, to) = (fs::read(&segment).unwrap(), there.join(segment.file_name().unwrap()));
        let to = File::options().create(true).append(false).truncate(false).write(true).open(to).unwrap();
        let had = to.metadata().unwrap().len();
        to.write_all_at(&bytes[had as usize..], had).unwrap();
    }
}

fn event(sequence: u64) -> Event {
    Event { sequence, ..Event::new(&Namespace::default_namespace(), "/test", serde_json::json!({})) }
}

#[test]
fn an_event_counts_as_moved_when_the_disk_has_it() {
    // In the segment that there was, and in one that was begun.
    for next in [4, 10] {
        let dir = tempfile::tempdir().unwrap();
        let disk = Mounted::start(dir.path(), MIB, "mkfs.ext4");
        let (there, whole) = (disk.top().join("events"), dir.path().join("whole"));
        let open = |dir: &Path| {
            Journal::open(File::open(dir).unwrap().into(), cofferdam_events::RETENTION, u64::MAX, 0).unwrap()
        };
        let events: Vec<_> = [1, 2, 3, next].map(event).into();
        for (dir, events) in [(&there, &events[..3]), (&whole, &events[..])] {
            fs::create_dir(dir).unwrap();
            open(dir).append(events).unwrap();
        }
        File::open(disk.top()).unwrap().sync_all().unwrap();
        go_on(&there, &whole);
        // From here on the next daemon trims the outbox by what it says.
        assert_eq!(open(&there).last(), next);
        let cut = cut(dir.path(), &disk);
        assert_eq!(open(&cut.top().join("events")).last(), next);
    }
}

#[test]
fn a_record_of_the_audit_log_counts_as_kept_when_the_disk_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Mounted::start(dir.path(), MIB, "mkfs.ext4");
    let (there, whole) = (disk.top().join("audit"), dir.path().join("whole"));
    let open = |dir: &Path, head| Log::open(File::open(dir).unwrap().into(), cofferdam_audit::RETENTION, head).unwrap();
    let records: Vec<_> = (0..4).map(|_| Record::new("Task.exec", Verdict::Allowed)).collect();
    let mut head = None;
    for (dir, records) in [(&there, &records[..3]), (&whole, &records[..])] {
        fs::create_dir(dir).unwrap();
        let (mut log, _) = open(dir, None);
        log.append(records).unwrap();
        head = head.or_else(|| Some(log.head()));
    }
    File::open(disk.top()).unwrap().sync_all().unwrap();
    go_on(&there, &whole);
    let (log, said) = open(&there, head);
    assert_eq!((log.head().last, said), (4, None));
    let cut = cut(dir.path(), &disk);
    // What the row says by then, the log leads to.
    let (again, said) = open(&cut.top().join("audit"), Some(log.head()));
    assert_eq!((again.head(), said), (log.head(), None));
}

/// The hash of an ingest is on record of bytes that a power cut doesn't take.
#[test]
fn the_hash_that_is_kept_of_an_ingest_is_of_bytes_that_the_disk_has() {
    const LONG: usize = 65 << 20;
    let dir = tempfile::tempdir().unwrap();
    let disk = Mounted::start(dir.path(), 256, "mkfs.ext4");
    let bytes: Vec<u8> =
        (0..LONG as u64 / 8).flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect();
    let (auth, ns, reference) = (Authority::system(), Namespace::default_namespace(), Name::new("long").unwrap());
    // The records are on another disk, which keeps all: they are ahead of the bytes, if anything is.
    let begin = async |kernel: &Kernel, top: &Path| {
        let meta = Metadata::start(kernel, Placement::Own, &dir.path().join("meta.redb")).unwrap();
        let root = File::open(top).unwrap().into();
        let content = Content::start(kernel, Placement::Shared("content"), meta.clone(), root).unwrap();
        kernel.ready().await.unwrap();
        (meta, content)
    };
    let options = || IngestOptions {
        reference: reference.clone(),
        total: None,
        expected: None,
        algorithm: Algorithm::Sha256,
        unread: false,
    };
    actix_rt::System::new().block_on(async {
        let kernel = Kernel::new().unwrap();
        let (meta, content) = begin(&kernel, disk.top()).await;
        let mut ingest = content.ingest(&auth, &ns, options()).await.unwrap();
        bytes.chunks(1 << 20).for_each(|chunk| ingest.append(chunk).unwrap());
        let end = Instant::now() + DEADLINE;
        let kept = loop {
            let record = ingests::get(&meta.read().unwrap(), &ns, "long").unwrap();
            if let Some(kept) = record.hashed {
                break kept;
            }
            assert!(Instant::now() < end, "nothing is kept");
            tokio::task::yield_now().await;
        };
        let after = cut(dir.path(), &disk);
        drop(ingest);
        kernel.stop().await;
        drop((meta, content));
        assert!(kept.offset >= 64 << 20);
        let kernel = Kernel::new().unwrap();
        let (_meta, content) = begin(&kernel, after.top()).await;
        let ingest = content.ingest(&auth, &ns, options()).await.unwrap();
        let there = ingest.offset() as usize;
        assert!(there as u64 >= kept.offset, "{there} bytes are there, and {} were hashed", kept.offset);
        let found = fs::read(segments(&after.top().join("ingest")).remove(0)).unwrap();
        assert!(found[..kept.offset as usize] == bytes[..kept.offset as usize], "they are what was hashed");
        assert_eq!(ingest.digest_so_far(), Digest::of(Algorithm::Sha256, &found[..there]));
        drop(ingest);
        kernel.stop().await;
    });
}
