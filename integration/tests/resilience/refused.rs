//! A disk that fails to write some of what it is given, and is in order again. The kernel tells that once, and from then on counts
//! the pages as clean: what is in memory is not what the disk has, which the next power cut shows.

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    time::Instant,
};

use cofferdam_client::Namespace;
use cofferdam_content::{Commit, Content};
use cofferdam_integration::{DEADLINE, Mounted, Powered, bounded};
use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::Metadata;
use cofferdam_types::{Algorithm, Authority, Code, Digest, Labels};

use crate::ledger::agrees;

const MIB: usize = 256;
/// What the disk doesn't take.
const BAD: &[u8] = b"the disk does not take this; ";

async fn leases(ns: &Namespace) -> Vec<String> {
    ns.leases().list::<&str>(&[]).all().await.unwrap().into_iter().map(|lease| lease.id).collect()
}

#[test]
fn records_that_a_disk_did_not_take_are_not_believed_from_memory() {
    let mut powered = Powered::start(MIB, "mkfs.ext4", &[]);
    let there = bounded(async {
        let Powered { daemon, platter, .. } = &powered;
        let ns = daemon.open().await;
        for n in 0..20 {
            ns.leases().create(&format!("before-{n}"), &Labels::new(), None).info().await.unwrap();
        }
        platter.refuse(BAD);
        let text = String::from_utf8(BAD.repeat(60)).unwrap();
        let refused = ns.leases().create("refused", &Labels::from([("text".into(), text)]), None).info().await;
        assert!(refused.is_err(), "{refused:?}");
        assert!(platter.relent() > 0, "the disk was asked to write it");
        // The file is opened again; then all goes on.
        let end = Instant::now() + DEADLINE;
        for n in 0..20 {
            let id = format!("after-{n}");
            loop {
                match ns.leases().create(&id, &Labels::new(), None).info().await {
                    Ok(_) => break,
                    Err(error) if error.code == Code::AlreadyExists => break,
                    Err(error) => assert!(Instant::now() < end, "{error}"),
                }
                tokio::task::yield_now().await;
            }
        }
        assert!(!daemon.root().join("meta.redb.doubt").exists(), "it was read anew");
        let there = leases(&ns).await;
        assert!((0..20).all(|n| ["before", "after"].iter().all(|w| there.contains(&format!("{w}-{n}")))), "{there:?}");
        there
    });
    powered.cut(powered.platter.image());
    bounded(async {
        let client = powered.daemon.client().await;
        let ns = client.namespace(powered.daemon.namespace());
        assert_eq!(leases(&ns).await, there, "what was there is there after a power cut");
        agrees(&client).await;
        ns.leases().create("at last", &Labels::new(), None).info().await.unwrap();
    });
}

/// Their bytes go to the disk with one sync of the file system, and what went wrong with it is told to each open file once.
#[test]
fn of_two_who_wrote_each_hears_of_what_the_disk_did_not_take() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Mounted::start(dir.path(), 64, "mkfs.ext4");
    actix_rt::System::new().block_on(async {
        let kernel = Kernel::new().unwrap();
        let meta = Metadata::start(&kernel, Placement::Own, &dir.path().join("meta.redb")).unwrap();
        let root = File::open(disk.top()).unwrap().into();
        let content = Content::start(&kernel, Placement::Shared("content"), meta, root).unwrap();
        kernel.ready().await.unwrap();
        let (auth, ns) = (Authority::system(), cofferdam_types::Namespace::default_namespace());
        let begin = |text: &[u8]| {
            let one = |n: u8| {
                let mut ingest = content.scratch(&ns, Algorithm::Sha256).unwrap();
                ingest.append(&[text.repeat(2000), vec![n]].concat()).unwrap();
                Commit { ingest, size: None, expected: None, labels: Labels::new() }
            };
            vec![one(1), one(2)]
        };
        let (good, bad) = (begin(b"nothing is wrong with this; "), begin(BAD));
        disk.platter.refuse(BAD);
        // Whose bytes were lost the disk doesn't say: the first is told, and so is the other.
        content.commit_many(&auth, good).await.unwrap_err();
        assert!(disk.platter.relent() > 0, "the disk was asked to write it");
        content.commit_many(&auth, bad).await.unwrap_err();
        assert!(content.list(&ns, None, 9).unwrap().is_empty());
        // Who begins now is not told of it.
        let again =
            content.commit_many(&auth, [begin(BAD), begin(b"as before; ")].into_iter().flatten().collect()).await;
        assert_eq!(again.unwrap().len(), 4);
        kernel.stop().await;
    });
}

#[test]
fn bytes_that_a_disk_did_not_take_are_sent_again() {
    let mut powered = Powered::start(MIB, "mkfs.ext4", &[]);
    let bytes = BAD.repeat(20_000);
    let digest = Digest::of(Algorithm::Sha256, &bytes).to_string();
    bounded(async {
        let ns = powered.daemon.open().await;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let mut send = async || {
            file.rewind().unwrap();
            let ingest = ns.content().ingest("bad", bytes.len() as u64, &digest, "");
            let offset = ingest.info().await?.offset;
            ingest.copy_fd(file.try_clone().unwrap().into()).await?;
            ingest.commit(bytes.len() as u64, &digest, &Labels::new()).await.map(|_| offset)
        };
        powered.platter.refuse(BAD);
        let refused = send().await;
        assert!(refused.is_err(), "{refused:?}");
        assert!(powered.platter.relent() > 0, "the disk was asked to write it");
        assert_eq!(send().await.unwrap(), 0, "nothing of it is gone on with");
    });
    powered.cut(powered.platter.image());
    bounded(async {
        let client = powered.daemon.client().await;
        let ns = client.namespace(powered.daemon.namespace());
        let mut file = tempfile::tempfile().unwrap();
        ns.content().get(&digest).read_fd(0, 0, file.try_clone().unwrap().into()).await.unwrap();
        file.rewind().unwrap();
        let mut found = Vec::new();
        file.read_to_end(&mut found).unwrap();
        assert!(found == bytes, "what was acknowledged is what was sent");
        agrees(&client).await;
    });
}
