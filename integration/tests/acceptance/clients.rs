//! The connection, images and content.

use std::{fs::File, process::Command};

use cofferdam_client::{Client, ImportOptions, Output, PullOptions, channel};
use cofferdam_integration::{BUSYBOX, output, until_async};
use cofferdam_types::{Algorithm, Code, Digest};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

use crate::place::Place;

/// Something stands between client and daemon that sees the end of each.
pub async fn new_client(place: &Place) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("between.sock");
    let (listener, socket) = (UnixListener::bind(&path).unwrap(), place.socket());
    let between = tokio::task::spawn_local(async move {
        let (mut near, mut to_near) = listener.accept().await.unwrap().0.into_split();
        let (mut far, mut to_far) = UnixStream::connect(socket).await.unwrap().into_split();
        let asked = async {
            let bytes = tokio::io::copy(&mut near, &mut to_far).await.unwrap();
            to_far.shutdown().await.unwrap();
            bytes
        };
        let answered = async {
            let (mut bytes, mut chunk) = (0, [0; 4096]);
            loop {
                let n = far.read(&mut chunk).await.unwrap();
                if n == 0 {
                    return bytes;
                }
                // Nobody may be there any more.
                let _ = to_near.write_all(&chunk[..n]).await;
                bytes += n;
            }
        };
        tokio::join!(asked, answered)
    });
    let client = Client::connect(&path).await.unwrap();
    let hello = client.hello().await.unwrap();
    assert!(hello.api > 0 && !hello.daemon.is_empty(), "{hello:?}");
    assert_eq!(client.namespace(place.name()).info().await.unwrap().name, place.name());
    assert!(!between.is_finished());
    drop(client);
    let (asked, answered) = between.await.unwrap();
    assert!(asked > 0 && answered > 0);
}

fn from(place: &Place, fetch_only: bool) -> PullOptions {
    let reference = place.registry().reference("busybox");
    PullOptions { reference, plain_http: true, fetch_only, ..PullOptions::default() }
}

pub async fn image_pull(place: &Place) {
    let images = place.namespace.images();
    let names = images.pull(&from(place, false)).wait().await.unwrap();
    let image = images.get(&names[0]);
    let first = image.detail("").await.unwrap();
    assert!(first.unpacked && first.size > 0, "{first:?}");
    // Once more, and not unpacked.
    assert_eq!(images.pull(&from(place, true)).wait().await.unwrap(), names);
    assert_eq!(image.detail("").await.unwrap().manifest, first.manifest);
}

pub async fn image_is_unpacked(place: &Place) {
    let images = place.namespace.images();
    let names = images.pull(&from(place, true)).wait().await.unwrap();
    let image = images.get(&names[0]);
    let fetched = image.detail("").await.unwrap();
    assert!(!fetched.unpacked);
    assert_eq!(image.unpack("", "").await.unwrap(), fetched.chain_id);
    assert!(image.detail("").await.unwrap().unpacked);
    let snapshot = place.namespace.snapshots("").get(&fetched.chain_id).info().await.unwrap();
    assert_eq!(snapshot.key, fetched.chain_id);
}

/// Exports busybox as a tar archive: its members, and where it lies.
async fn exported(place: &Place) -> (tempfile::TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.tar");
    let image = place.namespace.images().get(BUSYBOX);
    image.export_fd(File::create_new(&path).unwrap().into()).wait().await.unwrap();
    let listed = Command::new("tar").arg("-tf").arg(&path).output().unwrap();
    assert!(listed.status.success(), "{listed:?}");
    (dir, String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect())
}

pub async fn oci_export(place: &Place) {
    let (_dir, members) = exported(place).await;
    for member in ["oci-layout", "index.json"] {
        assert_eq!(members.iter().filter(|name| *name == member).count(), 1, "{members:?}");
    }
}

pub async fn oci_export_and_import(place: &Place) {
    let (dir, _) = exported(place).await;
    let images = place.namespace.images();
    let before = images.get(BUSYBOX).detail("").await.unwrap();
    let options = ImportOptions { name: "test/imported".into(), ..ImportOptions::default() };
    let archive = File::open(dir.path().join("image.tar")).unwrap();
    let names = images.import_fd(&options, archive.into()).wait().await.unwrap();
    assert_eq!(names, ["docker.io/test/imported:latest"]);
    assert_eq!(images.get(&names[0]).detail("").await.unwrap().manifest, before.manifest);
    images.remove(&names[0]).await.unwrap();
    assert_eq!(images.get(&names[0]).info().await.unwrap_err().code, Code::NotFound);
}

pub async fn content_client(place: &Place) {
    const TEXT: &str = "hello world\n";
    const DIGEST: &str = "sha256:a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447";
    let content = place.namespace.content();
    let begun = content.ingest("one", 0, "", "");
    let sink = begun.sink();
    sink.write(&TEXT.as_bytes()[..6]).await.unwrap();
    sink.end().await.unwrap();
    drop((begun, sink));
    // It is taken up where it ended, by another client.
    let other = place.elsewhere().await.content();
    let taken_up = until_async("the first one has let go", async || {
        let ingest = other.ingest("one", 0, "", "");
        match ingest.info().await {
            Ok(info) => Some((ingest, info.offset)),
            Err(error) => (error.code != Code::Unavailable).then(|| panic!("{error}")),
        }
    });
    let (taken_up, offset) = taken_up.await;
    assert_eq!(offset, 6);
    let sink = taken_up.sink();
    sink.write(&TEXT.as_bytes()[6..]).await.unwrap();
    sink.end().await.unwrap();
    let labels = [("kind".to_owned(), "greeting".to_owned())].into();
    let digest = taken_up.commit(12, DIGEST, &labels).await.unwrap();
    assert_eq!(digest.to_string(), DIGEST);

    let blob = content.get(DIGEST);
    let info = blob.info().await.unwrap();
    assert_eq!((info.size, &info.labels), (12, &labels));
    let (sink, mut chunks) = channel();
    let read = blob.read(6, 5, &sink);
    assert_eq!(chunks.next().await.unwrap(), b"world");
    assert_eq!(chunks.next().await, None);
    read.await.unwrap();
    let (Output::Fd(fd), all) = output() else { panic!("a pipe") };
    blob.read_fd(0, 0, fd).await.unwrap();
    assert_eq!(all.text().await, TEXT);
    let listed = content.list(&["labels.kind==greeting"]).all().await.unwrap();
    assert_eq!(listed, [info]);

    // What is not what it was said to be becomes no blob.
    let wrong = content.ingest("two", 0, "", "");
    let sink = wrong.sink();
    sink.write(b"something else").await.unwrap();
    sink.end().await.unwrap();
    let refused = wrong.commit(0, DIGEST, &Default::default()).await.unwrap_err();
    assert!(refused.to_string().contains(DIGEST), "{refused}");
    content.abort("two").await.unwrap();
    assert!(content.ingests::<&str>(&[]).all().await.unwrap().is_empty());
    content.remove(DIGEST).await.unwrap();
    assert_eq!(blob.info().await.unwrap_err().code, Code::NotFound);
}

pub async fn content_client_writer(place: &Place) {
    let content = place.namespace.content();
    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n % 253) as u8).collect();
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    // Four at a time, with and without a size and a digest that are known. All but one find the blob there.
    let mut open = Vec::new();
    for (n, (size, expected)) in
        [(0, ""), (200_000, ""), (0, &*digest.to_string()), (200_000, &*digest.to_string())].into_iter().enumerate()
    {
        let ingest = content.ingest(&format!("writer-{n}"), size, expected, "");
        let info = ingest.info().await.unwrap();
        assert_eq!((info.offset, info.total, &*info.expected), (0, size, expected));
        open.push(ingest);
    }
    let mut committed = 0;
    for half in [&bytes[..64_001], &bytes[64_001..]] {
        for ingest in &open {
            let sink = ingest.sink();
            sink.write(half).await.unwrap();
            sink.end().await.unwrap();
        }
    }
    assert_eq!(content.ingests(&["ref==writer-1", "ref~=/-[23]$/"]).all().await.unwrap().len(), 3);
    for ingest in open {
        assert_eq!(ingest.info().await.unwrap().digest, digest.to_string());
        match ingest.commit(0, "", &Default::default()).await {
            Ok(made) => committed += u32::from(made == digest),
            Err(error) => assert_eq!(error.code, Code::AlreadyExists, "{error}"),
        }
    }
    assert_eq!(committed, 1);
    assert!(content.ingests::<&str>(&[]).all().await.unwrap().is_empty());

    // Labels: all of them, or those that a mask names; nothing else can be changed.
    let blob = content.get(&digest.to_string());
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let first = blob.update::<&str>(&labels(&[("k1", "v1"), ("k2", "v2"), ("k3", "v3")]), &[]).await.unwrap();
    let second = blob.update(&labels(&[("k1", "new")]), &["labels.k1", "labels.k3"]).await.unwrap();
    assert_eq!(second.labels, labels(&[("k1", "new"), ("k2", "v2")]));
    assert!(second.created == first.created && second.updated > first.updated);
    let third = blob.update(&labels(&[("only", "one")]), &["labels"]).await.unwrap();
    assert_eq!(third.labels, labels(&[("only", "one")]));
    for field in ["size", "digest", "labels.k", "label.x"] {
        let refused = blob.update(&labels(&[("k", &"x".repeat(4096))]), &[field]).await.unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument, "{field}: {refused}");
    }
    assert_eq!(blob.info().await.unwrap(), third);
    assert_eq!(
        blob.read_fd(1, 200_000, File::create("/dev/null").unwrap().into()).await.unwrap_err().code,
        Code::OutOfRange
    );
    content.remove(&digest.to_string()).await.unwrap();
}
